"""Seeing jobs: jobs, rejected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bus.cli.options import HERE, Everywhere, Limit
from bus.cli.output import Block, Line, Part, Reply, Table, problem_blocks
from bus.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bus.lookup import JobRow, Rejection

State = Literal["pending", "staged", "validating", "ready", "committed", "rejected", "repeated"]


def jobs(
    *,
    state: State | None = None,
    run_id: str | None = None,
    kind: str | None = None,
    limit: Limit = 50,
    everywhere: Everywhere = HERE,
) -> Reply:
    """List jobs, those on their way first, then the newest.

    Each line is one submission. `repeated` is an equal job that came again and got the first
    receipt. Works with no bus running.

    For example:

        bus jobs --state pending
        bus jobs --run-id run-42 --limit 1000 --json
        bus jobs --state rejected --kind alerts_std

    Parameters
    ----------
    state
        Only these; `pending` is staged, validating and ready together.
    run_id
        Only jobs of this run.
    kind
        Only jobs of this kind.
    limit
        At most so many.
    """
    from bus import lookup

    lake, _ = everywhere.open()
    found = lookup.jobs(lake, state=state, run_id=run_id, kind=kind, limit=limit)
    return Reply([row.as_dict() for row in found], lambda: _job_table(found, limit))


def _job_table(rows: list[JobRow], limit: int) -> Iterable[Part]:
    if not rows:
        yield Line("No such job.", "dim")
        return
    note = f"The newest {limit}; more with --limit." if len(rows) == limit else ""
    yield Table(
        ("job", "state", "seq", "at", "kind", "remark", "run"),
        [(r.job_id, r.state, r.seq, r.at_utc[:19], r.kind, _remark(r), r.run_id) for r in rows],
        note,
    )


def _remark(row: JobRow) -> str:
    if row.waiting_for:
        return f"waits for {', '.join(row.waiting_for)}"
    return " ".join(dict.fromkeys(row.codes))


def rejected(
    job: str | None = None,
    /,
    *,
    limit: Limit = 20,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Show why jobs were rejected and where their files lie.

    Every problem of each job with its code, place, message and hint. `bus explain CODE` says more;
    when the cause is mended, `bus retry JOB` sends the job back. Works with no bus running.

    For example:

        bus rejected
        bus rejected 2026-01-08T05-12-33Z__baseline__alerts --json

    Parameters
    ----------
    job
        Only this job_id, all its rejected submissions.
    limit
        At most so many jobs, the newest first.
    """
    from bus import lookup

    lake, _ = everywhere.open()
    found = lookup.rejections(lake, job, limit)
    if job is not None and not found:
        known = ", ".join(f"{row.state}" for row in lookup.job(lake, job)[:1]) or "unknown"
        hint = "See `bus jobs --state rejected`, `bus show JOB`."
        raise NotFound(f"nothing in rejected/ of job {job!r} ({known})", where="JOB", hint=hint)
    return Reply([r.as_dict() for r in found], lambda: _rejections(found, limit))


def _rejections(found: list[Rejection], limit: int) -> Iterable[Part]:
    if not found:
        yield Line("No rejected jobs.", "good")
    for rejection in found:
        made = (rejection.run_id, rejection.producer, rejection.kind)
        where = [
            "/".join(word or "?" for word in made),
            f"rejected {rejection.reason.rejected_at_utc}, commit {rejection.reason.seq}",
            f"files: {rejection.path}",
            f"again: bus retry {rejection.job_id}",
        ]
        yield Block(rejection.job_id, where, "heading")
        for block in problem_blocks(p.model_dump() for p in rejection.reason.problems):
            yield Block(f"  {block.title}", [f"  {line}" for line in block.lines], block.mood)
    if len(found) == limit:
        yield Line(f"The newest {limit}; more with --limit.", "dim")
