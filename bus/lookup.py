"""Looking things up: jobs, rejections, runs, artifacts, and what a reference means. Reads only.

Finished jobs, runs and artifacts come from the SQLite manifest, which is readable while the writer
works; jobs on their way come from the directories they lie in. Nothing here needs a running bus.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bus import references
from bus.decisions import decide
from bus.errors import NotFound
from bus.finding import Then
from bus.lake import COMMIT, REJECT_REASON, VERDICT
from bus.manifest import reading
from bus.model import JobState, RejectReason, Verdict, iso, utc_now
from bus.readiness import is_committed
from bus.retry import is_name
from bus.submission import read_submission

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bus.lake import Lake
    from bus.moments import AsOf

PENDING = (JobState.STAGED, JobState.VALIDATING, JobState.READY)
OUTCOMES = ("committed", "rejected", "repeated")


@dataclass(frozen=True, slots=True)
class JobRow:
    """One submission: on its way (no seq yet), or as the journal has it.

    `state` is a JobState or, for an equal job that came again, ``repeated``; `codes` are those of
    its problems; `waiting_for` lists references that are not there yet (or `COMMIT`, while its
    producer has not said that it is whole).
    """

    job_id: str
    state: str
    at_utc: str
    run_id: str | None = None
    producer: str | None = None
    kind: str | None = None
    seq: int | None = None
    artifacts: int | None = None
    codes: list[str] = field(default_factory=list)
    waiting_for: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


# ── jobs ──────────────────────────────────────────────────────────────────────────────────────


def jobs(
    lake: Lake,
    *,
    state: str | None = None,
    run_id: str | None = None,
    kind: str | None = None,
    limit: int = 50,
) -> list[JobRow]:
    """Submissions that fit every filter, those on their way first, then the newest.

    `state` is a `JobState`, ``repeated``, or ``pending`` for all that have no answer yet.
    """
    found: list[JobRow] = []
    for row in _pending(lake, state):
        if len(found) == limit:
            break
        if run_id in {None, row.run_id} and kind in {None, row.kind}:
            found.append(row)
    if state is None or state in OUTCOMES:
        found += _finished(lake, state=state, run_id=run_id, kind=kind, limit=limit - len(found))
    return found


def job(lake: Lake, job_id: str) -> list[JobRow]:
    """Every submission of one job_id, newest first; empty when there is none."""
    there = [
        _pending_row(lake, state, job_id)
        for state in PENDING
        if is_name(job_id) and (lake.state_dir(state) / job_id).is_dir()
    ]
    return there + _finished(lake, job_id=job_id, limit=1000)


def _pending(lake: Lake, state: str | None) -> Iterator[JobRow]:
    wanted = PENDING if state in {None, "pending"} else [s for s in PENDING if s == state]
    for where in wanted:
        for entry in reversed(lake.listing(where)):
            yield _pending_row(lake, where, entry.name)


def _pending_row(lake: Lake, state: JobState, name: str) -> JobRow:
    path = lake.state_dir(state) / name
    try:
        at_utc = iso(datetime.fromtimestamp(path.stat().st_ctime, UTC))
        if (verdict := _verdict(path)) is not None:
            return _judged_row(lake, state, name, at_utc, verdict)
        claims = _claims(path)
    except FileNotFoundError:  # it moved on while we looked
        return JobRow(name, str(lake.state_of(name)), iso(utc_now()))
    return JobRow(
        name,
        str(state),
        at_utc,
        run_id=claims.get("run_id"),
        producer=claims.get("producer"),
        kind=claims.get("kind"),
        waiting_for=[] if is_committed(path) else [COMMIT],
    )


def _claims(path: Path) -> dict[str, str]:
    """What a producer's manifest says of the job, if it can be read at all."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:
        return {}
    try:
        found = read_submission(fd, path.name)
    except OSError:
        return {}
    finally:
        os.close(fd)
    if found.manifest is None:
        return found.claims
    return {name: getattr(found.manifest, name) for name in ("run_id", "producer", "kind")}


def _judged_row(lake: Lake, state: JobState, name: str, at_utc: str, verdict: Verdict) -> JobRow:
    return JobRow(
        name,
        str(state),
        at_utc,
        run_id=verdict.run_id,
        producer=verdict.producer,
        kind=verdict.kind,
        artifacts=len(verdict.artifacts),
        codes=[p.code for p in verdict.problems],
        waiting_for=_lacks(lake, verdict) if state is JobState.READY else [],
    )


def waiting_for(lake: Lake, job_id: str) -> list[str]:
    """The references that keep a judged job in ready/; empty when only the writer does."""
    verdict = _verdict(lake.ready / job_id)
    return [] if verdict is None else _lacks(lake, verdict)


def _lacks(lake: Lake, verdict: Verdict) -> list[str]:
    """What the writer would wait for, were it to decide now."""
    refers = verdict.after or verdict.mutations or any(a.inputs for a in verdict.artifacts)
    if not refers and not any(a.supersedes for a in verdict.artifacts):
        return []
    with reading(lake) as manifest:
        if manifest is None:
            return []
        decisions = decide([verdict], manifest, now=utc_now(), lineage_wait_s=float("inf"))
    return decisions.waiting.get(verdict.job_id, [])


def _verdict(path: Path) -> Verdict | None:
    try:
        return Verdict.from_bytes((path / VERDICT).read_bytes())
    except (OSError, ValidationError):
        return None


def _finished(
    lake: Lake,
    *,
    limit: int,
    job_id: str | None = None,
    state: str | None = None,
    run_id: str | None = None,
    kind: str | None = None,
) -> list[JobRow]:
    asked = {"job_id": job_id, "outcome": state, "run_id": run_id, "kind": kind, "limit": limit}
    with reading(lake) as manifest:
        rows = [] if manifest is None else manifest.rows(_FINISHED, asked)
    return [
        JobRow(
            **dict(zip(_FINISHED_FIELDS, facts, strict=True)),
            codes=[p["code"] for p in json.loads(problems or "[]")],
        )
        for *facts, problems in rows
    ]


_FINISHED_FIELDS = (
    *("job_id", "state", "at_utc", "run_id", "producer", "kind", "seq", "artifacts"),
)
_FINISHED = """
SELECT job_id, outcome, committed_at_utc, run_id, producer, kind, seq, artifacts, problems_json
FROM jobs
WHERE (:job_id IS NULL OR job_id = :job_id) AND (:outcome IS NULL OR outcome = :outcome)
  AND (:run_id IS NULL OR run_id = :run_id) AND (:kind IS NULL OR kind = :kind)
ORDER BY job_no DESC LIMIT :limit
"""


# ── rejections ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Rejection:
    """A rejected job that lies in rejected/: why, and where its files are."""

    job_id: str
    path: str
    reason: RejectReason
    run_id: str | None
    producer: str | None
    kind: str | None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: REJECT_REASON.json with the place and the run beside it."""
        where = {"path": self.path, "run_id": self.run_id}
        made = {"producer": self.producer, "kind": self.kind}
        return self.reason.model_dump(mode="json") | where | made


def rejections(lake: Lake, job_id: str | None = None, limit: int = 20) -> list[Rejection]:
    """What lies in rejected/, newest first: all, or every submission of one job_id."""
    if job_id is not None:
        paths = reversed(rejected_directories(lake, job_id))
    else:
        listed = lake.listing(JobState.REJECTED)
        paths = (lake.rejected / entry.name for entry in reversed(listed))
    found: list[Rejection] = []
    for path in paths:
        if len(found) == limit:
            break
        if (rejection := _rejection(lake, path)) is not None:
            found.append(rejection)
    return found


def rejected_directories(lake: Lake, job_id: str) -> list[Path]:
    """Directories in rejected/ of one job_id (or of exactly that name), oldest first."""
    return lake.submissions(JobState.REJECTED, job_id) if is_name(job_id) else []


def _rejection(lake: Lake, path: Path) -> Rejection | None:
    try:
        reason = RejectReason.from_bytes((path / REJECT_REASON).read_bytes())
    except (OSError, ValidationError):
        return None
    verdict = _verdict(path)
    run_id, producer, kind = (
        (verdict.run_id, verdict.producer, verdict.kind) if verdict else (None, None, None)
    )
    return Rejection(reason.job_id, lake.public(path), reason, run_id, producer, kind)


# ── runs ──────────────────────────────────────────────────────────────────────────────────────

_RUN_COLUMNS = (
    *("run_id", "producer", "created_at_utc", "first_seen_at", "last_seen_at"),
    *("first_seq", "last_seq", "artifacts", "rows", "meta"),
)
_RUNS = """
SELECT run_id, producer, created_at_utc, first_seen_at, last_seen_at, first_seq, last_seq,
       (SELECT count(*) FROM run_artifacts u WHERE u.run_id = r.run_id),
       (SELECT coalesce(sum(rows), 0) FROM run_artifacts u WHERE u.run_id = r.run_id),
       meta_json
FROM runs r
WHERE (:run_id IS NULL OR run_id = :run_id) AND (:producer IS NULL OR producer = :producer)
  AND (:kind IS NULL OR EXISTS (
    SELECT 1 FROM run_artifacts u WHERE u.run_id = r.run_id AND u.kind = :kind))
ORDER BY last_seq DESC, run_id LIMIT :limit
"""


def runs(
    lake: Lake,
    *,
    run_id: str | None = None,
    producer: str | None = None,
    kind: str | None = None,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Runs that fit every filter, the one with the newest commit first."""
    asked = {"run_id": run_id, "producer": producer, "kind": kind, "limit": limit}
    with reading(lake) as manifest:
        found = [] if manifest is None else manifest.rows(_RUNS, asked)
    return [
        dict(zip(_RUN_COLUMNS, (*facts, json.loads(meta)), strict=True)) for *facts, meta in found
    ]


_USE_COLUMNS = (
    *("run_id", "name", "artifact_id", "job_id", "seq", "producer", "kind", "schema_version"),
    *("rows", "deduped", "mode", "status", "path"),
)
_USES = """
SELECT u.run_id, u.name, u.artifact_id, u.job_id, u.seq, u.producer, u.kind, u.schema_version,
       u.rows, u.deduped, u.mode, a.status, a.path_parquet
FROM run_artifacts u LEFT JOIN artifacts a USING (artifact_id)
WHERE (:run_id IS NULL OR u.run_id = :run_id) AND (:job_id IS NULL OR u.job_id = :job_id)
  AND (:artifact_id IS NULL OR u.artifact_id = :artifact_id)
  AND (:name IS NULL OR u.name = :name) AND (:as_of IS NULL OR u.seq <= :as_of)
ORDER BY u.use_no DESC LIMIT :limit
"""


def uses(  # noqa: PLR0913 - a filter each
    lake: Lake,
    *,
    run_id: str | None = None,
    job_id: str | None = None,
    artifact_id: str | None = None,
    name: str | None = None,
    as_of: int | None = None,
    limit: int = 1000,
) -> list[dict[str, Any]]:
    """Which run delivered which artifact under which name, newest first; `as_of`: up to then."""
    asked = {"run_id": run_id, "job_id": job_id, "artifact_id": artifact_id, "name": name}
    span = {"as_of": as_of, "limit": limit}
    with reading(lake) as manifest:
        found = [] if manifest is None else manifest.rows(_USES, asked | span)
    rows = [dict(zip(_USE_COLUMNS, row, strict=True)) for row in found]
    return [row | {"deduped": bool(row["deduped"])} for row in rows]


# ── artifacts ─────────────────────────────────────────────────────────────────────────────────


def commit(lake: Lake, as_of: AsOf) -> int:
    """The commit that is meant: see `bus.moments`."""
    with Then.of(lake, as_of) as then:
        return then.seq


def find_artifact(lake: Lake, reference: str, *, as_of: int | None = None) -> str:
    """The artifact_id that a reference means, or meant after commit `as_of`: see `bus.references`.

    Raises `NotFound` (E511), naming what is near, and `Refused` (E404), listing what it may be.
    """
    with Then.of(lake, as_of) as then:
        return references.artifact_id(then, reference)


_RELATIONS = ("inputs", "used_by", "supersedes", "superseded_by", "aliases", "pins")


def artifact(lake: Lake, artifact_id: str, *, as_of: int | None = None) -> dict[str, Any]:
    """All that is known of one artifact, or was after commit `as_of`. Raises `NotFound` (E511)."""
    with Then.of(lake, as_of) as then:
        if not (found := then.by_id([artifact_id])):
            raise NotFound(f"no artifact {artifact_id!r} in this lake", where="artifact_id")
        facts = found[0].as_dict()
        related = then.named("relations_then", id=artifact_id)
        facts["columns"] = _columns(*then.named("statistics_then", id=artifact_id)[0])
    for name in _RELATIONS:
        facts[name] = [other for relation, other in related if relation == name]
    for status in ("tombstoned", "purged"):
        reasons = (reason for relation, reason in related if relation == status)
        facts[f"{status}_because"] = next(reasons, None)
    delivered = uses(lake, artifact_id=artifact_id, as_of=then.seq, limit=50)
    shown = {name: facts[name] for name in ("status", "path")}
    return facts | {"uses": [use | shown for use in delivered]}


def _columns(columns_json: str, stats_json: str) -> list[dict[str, Any]]:
    types = {column["name"]: column["type"] for column in json.loads(columns_json)}
    return [
        {"name": column["name"], "type": types.get(column["name"], "")}
        | {fact: column.get(fact) for fact in ("nulls", "min", "max")}
        for column in json.loads(stats_json)
    ]
