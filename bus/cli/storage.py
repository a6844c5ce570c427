"""Room on the disk, and copies of the lake elsewhere: gc, policy, backup, restore."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from bus.cli.options import HERE, Everywhere, Limit, Many, Switch
from bus.cli.output import Block, Facts, Line, Part, Reply, Table, size
from bus.cli.receipts import answer, bus_that_listens
from bus.errors import Code, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bus.backup import Report
    from bus.retention import Piece, Plan

_Days = Annotated[float | None, Parameter(validator=Number(gte=0, lte=100_000))]


def gc(
    *,
    apply: Switch = False,
    kept: Switch = False,
    grace_days: _Days = None,
    undo: Many = (),
    wait: Switch = False,
    timeout: float = 600.0,
    limit: Limit = 20,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Show what may be deleted and why; with --apply, have it deleted.

    Deletes nothing by itself. What is active, has an alias, is pinned, was used to make any of
    these, or became unneeded only lately, always stays. What remains are tombstoned artifacts,
    superseded ones beyond their kind's policy (`bus policy`), objects that nothing stands on, and
    directories of jobs that were answered long ago. --apply submits jobs that ask the writer for
    it; the writer looks again, and moves things to the trash, where they lie for `trash_days`.
    An artifact whose bytes are gone keeps its id, hashes and lineage.

    For example:

        bus gc
        bus gc --kept --json
        bus gc --apply --wait
        bus gc --undo run-42/trades

    Parameters
    ----------
    apply
        Ask the writer for what the plan says.
    kept
        List also what stays although nobody may need it, and why.
    grace_days
        What became unneeded so many days ago or less stays; default: the setting `gc_grace_days`.
    undo
        Bring the bytes of this artifact back from the trash instead (repeat for more).
    wait
        Wait for the writer's answers.
    timeout
        Wait this many seconds for each, at most.
    limit
        List at most so many, the largest first; --json has all.
    """
    from bus.client import Job

    _, settings = everywhere.open()
    bus, heard = bus_that_listens(settings)
    wait_s = timeout if wait else None
    if undo:
        if apply or kept:
            raise Refused("--undo is asked for alone", code=Code.E103, where="--undo")
        return answer(bus, bus.take_back(*undo), rung=all(heard), wait_s=wait_s)
    plan = bus.gc(apply=apply, grace_days=grace_days)
    jobs = [Job(bus, job_id) for job_id in plan.jobs]
    replies = [answer(bus, job, rung=all(heard), wait_s=wait_s) for job in jobs]

    def text() -> Iterable[Part]:
        asked = "bus gc" if grace_days is None else f"bus gc --grace-days {grace_days:g}"
        yield from _plan(plan, limit, asked, kept=kept)
        for reply in replies:
            yield from reply.text()

    data = plan.as_dict() | ({"answers": [reply.data for reply in replies]} if apply else {})
    return Reply(data, text)


def _plan(plan: Plan, limit: int, asked: str, *, kept: bool) -> Iterable[Part]:
    columns = ("what", "", "count", "size", "why")
    totals = sorted(plan.totals, key=lambda t: (not t.goes, -t.size_bytes))
    rows = [(t.what, _goes(t.goes), t.count, size(t.size_bytes), t.why) for t in totals]
    yield Table(columns, rows)
    if going := plan.going:
        yield _pieces("may go", going, limit)
    if kept and (staying := [piece for piece in plan.pieces if not piece.goes]):
        yield _pieces("stays", sorted(staying, key=lambda p: -p.size_bytes), limit)
    if not going:
        yield Line("Nothing may go.", "good")
    elif not plan.jobs:
        yield Line(f"{size(plan.size_bytes)} may go. To let it go: {asked} --apply")


def _goes(goes: bool) -> str:  # noqa: FBT001 - a cell of a table
    return "may go" if goes else "stays"


def _pieces(title: str, pieces: list[Piece], limit: int) -> Table:
    rows = [
        (p.name, size(p.size_bytes), p.since_utc[:19], f"{p.why}: {p.whom}" if p.whom else p.why)
        for p in pieces[:limit]
    ]
    more = len(pieces) - len(rows)
    note = f"{more} more; --limit or --json shows them." if more else ""
    return Table((title, "size", "since", "why"), rows, note)


def policy(
    kind: str | None = None,
    /,
    *,
    keep_last: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    keep_days: Annotated[int | None, Parameter(validator=Number(gte=0))] = None,
    remove: Switch = False,
    show: Switch = False,
    wait: Switch = False,
    timeout: float = 600.0,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Show or set how long replaced versions of a kind are kept.

    Without a policy, superseded artifacts are kept for ever, and tombstoned ones until the next
    `bus gc`. A policy keeps the newest versions of each logical key (--keep-last), and everything
    for some days after it was superseded or tombstoned (--keep-days); what neither keeps, `bus gc`
    collects. A policy is a fact in the journal: it is set by a job, and deletes nothing itself.

    For example:

        bus policy ohlcv_slice --keep-last 3 --keep-days 30
        bus policy ohlcv_slice --show
        bus policy ohlcv_slice --remove --wait
        bus policy --json

    Parameters
    ----------
    kind
        The kind; without one, every policy is shown.
    keep_last
        Keep so many versions of each logical key, the newest first; tombstoned ones do not count.
    keep_days
        Keep what was superseded or tombstoned less than so many days ago.
    remove
        From now on the kind has no policy.
    show
        Only show the policy that holds.
    wait
        Wait for the writer's answer.
    timeout
        Wait this many seconds, at most.
    """
    from bus import retention

    lake, settings = everywhere.open()
    sets = keep_last is not None or keep_days is not None
    if sets + remove + show > 1:
        hint = "Give --keep-last and --keep-days, or --remove, or --show."
        raise Refused("one thing at a time", code=Code.E103, where="policy", hint=hint)
    if not sets and not remove:
        found = retention.policies(lake, kind)
        return Reply(found, lambda: _policies(found))
    if kind is None:
        hint = "For example: bus policy ohlcv_slice --keep-last 3"
        raise Refused("of which kind?", code=Code.E103, where="KIND", hint=hint)
    bus, heard = bus_that_listens(settings)
    job = bus.set_policy(kind, keep_last=keep_last, keep_days=keep_days)
    return answer(bus, job, rung=all(heard), wait_s=timeout if wait else None)


def _policies(found: list[dict[str, Any]]) -> Iterable[Part]:
    if not found:
        yield Line("No policy: superseded artifacts are kept for ever.", "dim")
        return
    columns = ("kind", "keep_last", "keep_days", "seq")
    yield Table(columns, [[policy[c] for c in columns] for policy in found])


# ── copies elsewhere ──────────────────────────────────────────────────────────────────────────


def backup(
    dest: Path,
    /,
    *,
    verify: Switch = False,
    progress: Switch = False,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Copy the truth of the lake elsewhere, while it works; only what is new.

    The journal up to the newest commit, every object that it needs, and the settings file. Each
    object is hashed on the way; one that is damaged is named, makes exit code 1, and keeps nothing
    else back. Interrupt it at any moment: the next one goes on. What was purged from the lake stays
    in the backup. Jobs that are not committed yet, and files in rejected/, are not in it.

    For example:

        bus backup /backup/lake
        bus backup /backup/lake --verify --json

    Parameters
    ----------
    dest
        An empty directory, one that is not there yet, or the place of an earlier backup of this lake.
    verify
        Copy nothing: hash all that lies there, and check the chain.
    progress
        Tell on stderr how far it is, once a second; with --json as JSON, one object a line.
    """
    from bus.backup import backup as copy, check
    from bus.cli.views import talk_of_progress

    talk = talk_of_progress(everywhere, wanted=progress)
    if verify:
        return _copied("verified", check(dest, talk))
    lake, settings = everywhere.open()
    return _copied("backed up", copy(lake, settings, dest, talk))


def restore(
    src: Path, dest: Path, /, *, progress: Switch = False, everywhere: Everywhere = HERE
) -> Reply:
    """Make a new lake of a backup, every byte checked, every view made anew.

    Nothing is written into a lake that holds anything. What is damaged in the backup is named and
    makes exit code 1; the rest is restored. Interrupted, it goes on when it is asked for again.

    For example:

        bus restore /backup/lake /data/lake
        bus restore /backup/lake /data/lake --json

    Parameters
    ----------
    src
        The backup's directory.
    dest
        The root of the new lake.
    progress
        Tell on stderr how far it is, once a second; with --json as JSON, one object a line.
    """
    import logging

    from bus.backup import restore as bring_back
    from bus.cli.views import talk_of_progress
    from bus.process import configure_logging

    configure_logging("restore", logging.WARNING)
    talk = talk_of_progress(everywhere, wanted=progress)
    return _copied("restored", bring_back(src, dest, talk))


def _copied(what: str, report: Report) -> Reply:
    def text() -> Iterable[Part]:
        for found in report.findings:
            yield Block(found.where, [found.message, f"hint: {found.fix}"], "bad")
        sizes = {"size": size(report.size_bytes), "copied": size(report.copied_bytes)}
        facts = {k: v for k, v in report.as_dict().items() if k not in {"findings", "ok"}}
        yield Facts(f"{what}, up to commit {report.seq}", facts | sizes)

    return Reply(report.as_dict(), text, int(bool(report.findings)))
