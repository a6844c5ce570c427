"""Retention: what may go, and why everything else stays. A plan only reads.

Bytes stay while something reachable needs them: an artifact that is active, has an alias or is
pinned, whatever one of these was made from, and what was withdrawn (superseded or tombstoned) only
lately. Of what was withdrawn longer ago, tombstoned artifacts may go, and superseded ones where
their kind has a policy that keeps neither so many versions nor so old ones. Objects that nothing
stands on may go after the same grace; so may the directories of jobs that were answered long ago.

What a plan says may go is asked for by jobs. The writer looks again (`kept`) before it commits that
bytes are given up, and `bus.trash` moves them.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import ValidationError
from pydantic_core import to_json

from bus import disk
from bus.errors import NotFound
from bus.journal import reading_much
from bus.lake import STALE_STAGING_S, VERDICT
from bus.manifest import Manifest
from bus.model import MAX_ARTIFACTS, JobState, Verdict, iso, utc_now
from bus.statements import statement

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from bus.lake import Lake
    from bus.settings import Settings
    from bus.staging import StagedJob

What = Literal["object", "committed job", "rejected job", "staging", "damaged object", "trash"]

_SQL = "retention.sql"
#: Later than any moment: nothing is so young.
_NEVER = "~"
_ON_ITS_WAY = "a job on its way speaks of it"
#: Why an artifact keeps its bytes, by what `fates` says.
_WHY = {
    "active": "it is active",
    "aliased": "it has an alias",
    "pinned": "it is pinned",
    "lately": "it was withdrawn only lately",
    "no policy": "superseded, and its kind has no policy",
    "keep_last": "among the last versions of its key, which its kind keeps",
    "keep_days": "withdrawn not so long ago as its kind keeps",
    "input": "something that is kept was made from it",
    "shared": "something that is kept has the same bytes",
}
#: Characters of a reason that are kept in the journal.
_REASON_CHARACTERS = 200


class Piece(NamedTuple):
    """Bytes that go or stay together, in names a person knows.

    `name`: kind and logical key of what stands on an object (or stood), a job, a file. `since_utc`:
    since when they are of no use. `why`: for what reason they go, or stay; `whom`: for the sake of
    what. `because`: how what stood on them ended.
    """

    what: What
    name: str
    size_bytes: int
    since_utc: str
    goes: bool
    why: str
    whom: str | None = None
    because: str = ""
    object: str | None = None
    artifacts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Total:
    """Everything of one sort that goes, or stays, for one reason."""

    what: What
    goes: bool
    why: str
    count: int
    size_bytes: int


@dataclass(slots=True)
class Plan:
    """What may go, as of commit `seq`, and every byte that stays with its reason.

    `pieces` lists all that goes, and what stays although nobody may need it; what is in use is only
    counted, in `totals`. `discards`: outcome of jobs, and before when they were answered. `jobs`:
    the ids of those that were submitted to carry it out.
    """

    seq: int
    at_utc: str
    pieces: list[Piece] = field(default_factory=list)
    totals: list[Total] = field(default_factory=list)
    discards: dict[str, datetime] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)

    @property
    def going(self) -> list[Piece]:
        """What may go, the largest first."""
        return sorted((p for p in self.pieces if p.goes), key=lambda p: -p.size_bytes)

    @property
    def size_bytes(self) -> int:
        """How much room that makes, once it has left the trash."""
        return sum(p.size_bytes for p in self.pieces if p.goes)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "seq": self.seq,
            "at_utc": self.at_utc,
            "size_bytes": self.size_bytes,
            "totals": [asdict(total) for total in self.totals],
            "pieces": [piece._asdict() for piece in self.pieces],
            "discards": {jobs: iso(at) for jobs, at in self.discards.items()},
            "jobs": self.jobs,
        }


def plan(
    lake: Lake,
    settings: Settings,
    *,
    grace_days: float | None = None,
    now: datetime | None = None,
) -> Plan:
    """What may go now, and why the rest stays. Changes nothing, and may run beside a working bus.

    `grace_days`: how lately something became unneeded and yet stays; default
    `settings.gc_grace_days`. Raises `Unavailable` (E508) where nothing was ever committed.
    """
    now = now or utc_now()
    grace = timedelta(days=settings.gc_grace_days if grace_days is None else grace_days)
    with reading_much(), closing(Manifest.read(lake)) as manifest, manifest.frozen():
        made = Plan(manifest.applied[0], iso(now))
        planner = _Planner(lake, manifest, made, now, now - grace)
        planner.objects()
    planner.answered(JobState.COMMITTED, settings.keep_processed_days)
    planner.answered(JobState.REJECTED, settings.keep_rejected_days)
    planner.rest(settings.trash_days)
    made.totals += _totals(made.pieces)
    return made


def apply(lake: Lake, made: Plan) -> list[StagedJob]:
    """Ask the writer for what a plan says: the jobs that lie in the inbox when this returns."""
    from bus.staging import stage_mutations  # noqa: PLC0415 - brings pyarrow, which readers need not

    purges = [
        {"op": "purge", "object": piece.object, "reason": piece.because[:_REASON_CHARACTERS]}
        for piece in made.pieces
        if piece.goes and piece.object
    ]
    discards = [
        {"op": "discard", "jobs": jobs, "before": iso(at)} for jobs, at in made.discards.items()
    ]
    parts = [purges[at : at + MAX_ARTIFACTS] for at in range(0, len(purges), MAX_ARTIFACTS)]
    staged = [stage_mutations(lake, "bus.gc", part) for part in [*parts, discards] if part]
    made.jobs = [job.job_id for job in staged]
    return staged


def restores(lake: Lake, artifact_ids: Iterable[str]) -> list[dict[str, Any]]:
    """Mutations that bring these artifacts' bytes back from the trash.

    Raises `NotFound` (E511) where they are not there.
    """
    found: dict[str, dict[str, Any]] = {}
    with closing(Manifest.read(lake)) as manifest:
        for artifact_id, file_hash, *_ in manifest.among("known_artifacts", artifact_ids):
            sha256 = file_hash.removeprefix("sha256:")
            if lake.in_trash(sha256) is None:
                hint = "Submit the same rows again: that brings it back, under the same id."
                message = f"the bytes of {artifact_id} are not in the trash"
                raise NotFound(message, where=artifact_id, hint=hint)
            found[sha256] = {"op": "restore", "object": sha256}
    return [*found.values()]


def policies(lake: Lake, kind: str | None = None) -> list[dict[str, Any]]:
    """The policies that hold, of all kinds or of one: ``{kind, keep_last, keep_days, seq}``."""
    columns = ("kind", "keep_last", "keep_days", "seq")
    with closing(Manifest.read(lake)) as manifest:
        rows = manifest.rows(statement("policies", _SQL), (kind,))
    return [dict(zip(columns, row, strict=True)) for row in rows]


# ── the second look ───────────────────────────────────────────────────────────────────────────


def kept(
    manifest: Manifest,
    objects: Collection[str],
    now: datetime,
    spoken_of: Callable[[], Collection[str]] = tuple,
) -> dict[str, str]:
    """Of these objects (SHA-256), those that must stay, and why. For the writer.

    The grace is not asked for: it spares people their mistakes, and whoever names an object has
    looked. `spoken_of`: see there.
    """
    asked = set(objects)
    wanted = to_json(sorted(asked)).decode()
    found = _fates(manifest, "on_objects", now, _NEVER, objects=wanted)
    on_them = [fate for fate in found if fate.object in asked]
    reasons = {fate.object: f"{fate.name}: {_WHY[fate.kept]}" for fate in on_them if fate.kept}
    mentioned = _with_ids(manifest, spoken_of())
    reasons |= {f.object: f"{f.name}: {_ON_ITS_WAY}" for f in on_them if f.artifact_id in mentioned}
    return reasons | {sha256: _ON_ITS_WAY for sha256 in objects if sha256 in mentioned}


def spoken_of(lake: Lake) -> set[str]:
    """The objects (SHA-256), and the references as they were written, that judged jobs in work/ and
    ready/ speak of.
    """  # noqa: D205 - one sentence
    found: set[str] = set()
    for state in (JobState.VALIDATING, JobState.READY):
        for entry in lake.listing(state):
            try:
                verdict = Verdict.from_bytes(
                    (lake.state_dir(state) / entry.name / VERDICT).read_bytes()
                )
            except (OSError, ValidationError):
                continue  # not judged yet: it brings its bytes along
            for facts in verdict.artifacts:
                found |= {facts.sha256, *(facts.inputs or ()), *facts.supersedes}
            for mutation in verdict.mutations:
                for name in ("target", "by"):
                    said = getattr(mutation, name, None) or ()
                    found |= {said} if isinstance(said, str) else {*said}
    return found


def _with_ids(manifest: Manifest, mentioned: Collection[str]) -> set[str]:
    """And the artifacts that are spoken of as `job:<job>/<name>`."""
    found = set(mentioned)
    for reference in mentioned:
        if reference.startswith("job:"):
            job_id, _, name = reference.removeprefix("job:").partition("/")
            found |= {i for (i,) in manifest.named("artifacts_of_job", (job_id, name))}
    return found


class _Fate(NamedTuple):
    """A row of `fates`: an artifact, its object, and why its bytes stay, if they do."""

    object: str
    artifact_id: str
    kind: str
    logical_key: str
    size_bytes: int
    since: str
    withdrawn: str
    kept: str | None
    whom: str | None

    @property
    def name(self) -> str:
        return f"{self.kind} {self.logical_key}"


def _fates(manifest: Manifest, scope: str, now: datetime, young: str, **asked: str) -> list[_Fate]:
    sql = statement("fates", _SQL).format(scope=statement(scope, _SQL))
    rows = manifest.rows(sql, {"now": iso(now), "young": young, **asked})
    return [_Fate(*row) for row in rows]


# ── the plan ──────────────────────────────────────────────────────────────────────────────────


class _Planner:
    """Fills a plan, sort by sort."""

    def __init__(
        self, lake: Lake, manifest: Manifest, made: Plan, now: datetime, young: datetime
    ) -> None:
        self._lake = lake
        self._manifest = manifest
        self._plan = made
        self._now = now
        self._young = young

    def objects(self) -> None:
        """What artifacts stand on, and what nothing stands on."""
        there = set(self._lake.object_names())
        live = {
            sha256: (size_bytes, bool(purged))
            for sha256, size_bytes, purged in self._manifest.rows(statement("live_objects", _SQL))
        }
        mentioned = _with_ids(self._manifest, spoken_of(self._lake))
        told = self._withdrawn(there, mentioned)
        self._in_use(live, there, told)
        self._unreferenced(there - live.keys(), mentioned)

    def _withdrawn(self, there: set[str], mentioned: set[str]) -> set[str]:
        """Objects under withdrawn artifacts, each once; their SHA-256."""
        fates: dict[str, list[_Fate]] = {}
        for fate in _fates(self._manifest, "all_withdrawn", self._now, iso(self._young)):
            if fate.object in there:  # else it is damaged, or went by other ways: no room to gain
                fates.setdefault(fate.object, []).append(fate)
        self._plan.pieces += [_piece(group, mentioned) for group in fates.values()]
        return set(fates)

    def _in_use(
        self, live: Mapping[str, tuple[int, bool]], there: set[str], told: set[str]
    ) -> None:
        for purged, why in ((False, "in use"), (True, "purged, on its way to the trash")):
            sizes = [
                size_bytes
                for sha256, (size_bytes, gone) in live.items()
                if gone is purged and sha256 in there and sha256 not in told
            ]
            if sizes:
                self._plan.totals.append(
                    Total("object", goes=False, why=why, count=len(sizes), size_bytes=sum(sizes))
                )

    def _unreferenced(self, names: set[str], mentioned: set[str]) -> None:
        """Of a job that was never committed, or bytes that an artifact stood on once."""
        wanted = to_json([*names]).decode()
        found = self._manifest.rows(statement("once_on_objects", _SQL), (wanted,))
        once = {sha256: f"earlier bytes of {kind} {key}" for sha256, kind, key in found}
        for sha256 in sorted(names):
            try:
                seen = self._lake.object_path(sha256).stat()
            except FileNotFoundError:
                continue  # moved while we looked
            why = None
            if sha256 in mentioned:
                why = _ON_ITS_WAY
            elif seen.st_ctime > self._young.timestamp():
                why = "nothing stands on it, but it came only lately"
            piece = Piece(
                "object",
                once.get(sha256, f"object {sha256}"),
                seen.st_size,
                _moment(seen.st_ctime),
                goes=why is None,
                why=why or "nothing stands on it",
                because="nothing stands on it",
                object=sha256,
            )
            self._plan.pieces.append(piece)

    def answered(self, state: JobState, keep_days: float) -> None:
        """Directories of answered jobs, by when they came there."""
        before = self._now - timedelta(days=keep_days)
        base = self._lake.state_dir(state)
        what: What = "committed job" if state is JobState.COMMITTED else "rejected job"
        for entry in self._lake.listing(state):
            goes = entry.changed_at_s < before.timestamp()
            limit = f"answered more than {keep_days:g} days ago"
            size_bytes = disk.size_of(base / entry.name)
            self._plan.pieces.append(
                Piece(
                    what,
                    entry.name,
                    size_bytes,
                    _moment(entry.changed_at_s),
                    goes=goes,
                    why=limit if goes else f"not {limit}",
                )
            )
            if goes:
                self._plan.discards[str(state)] = before

    def rest(self, trash_days: int) -> None:
        """What no job can ask for: it goes by itself, or only by hand."""
        lake, now_s = self._lake, self._now.timestamp()
        for path in lake.stale_staging(STALE_STAGING_S, now_s):
            self._keep("staging", path, "abandoned; the pump sweeps it")
        for path in lake.quarantine.iterdir():
            self._keep("damaged object", path, "damaged; never deleted by the bus")
        for day in lake.trash_days():
            self._keep("trash", day, f"deleted {trash_days} days later; may be deleted by hand")

    def _keep(self, what: What, path: Path, why: str) -> None:
        try:
            since = _moment(path.lstat().st_ctime)
        except FileNotFoundError:
            return
        size_bytes = disk.size_of(path)
        self._plan.pieces.append(Piece(what, path.name, size_bytes, since, goes=False, why=why))


def _piece(group: list[_Fate], mentioned: Collection[str]) -> Piece:
    """An object under withdrawn artifacts."""
    first = group[0]
    ids = tuple(fate.artifact_id for fate in group)
    keeper = next((fate for fate in group if fate.kept), None)
    why = _WHY[keeper.kept] if keeper and keeper.kept else None
    if why is None and any(name in mentioned for name in (first.object, *ids)):
        why = _ON_ITS_WAY
    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
    return Piece(
        "object",
        f"{first.name}{more}",
        first.size_bytes,
        max(fate.since for fate in group),
        goes=why is None,
        why=why or first.withdrawn.partition(":")[0],
        whom=keeper.whom if keeper else None,
        because=first.withdrawn,
        object=first.object,
        artifacts=ids,
    )


def _moment(at_s: float) -> str:
    return iso(datetime.fromtimestamp(at_s, UTC))


def _totals(pieces: Iterable[Piece]) -> Iterator[Total]:
    sums: dict[tuple[What, bool, str], tuple[int, int]] = {}
    for piece in pieces:
        key = (piece.what, piece.goes, piece.why)
        count, size_bytes = sums.get(key, (0, 0))
        sums[key] = count + 1, size_bytes + piece.size_bytes
    for (what, goes, why), (count, size_bytes) in sums.items():
        yield Total(what, goes, why, count, size_bytes)
