"""`bus verify`: every invariant of the design, as a function that looks and changes nothing.

Invariants, numbered as in DESIGN section 11: 1 every artifact has its object, and the object its
hash · 2 objects are never modified · 3 the journal is gapless and chained · 4 the views equal a
rebuild · 5 each submission is journaled once, each job committed at most once, answered jobs lie
where the journal says · 7 one artifact for each identity · 8 lineage inputs exist, without cycles ·
9 exports and snapshots are whole. The others (6, 10, 11, 12) are about crashes: tests hold them.

It may run beside a working bus: it takes what was committed when it began, and compares each view
with a rebuild up to what that view says of itself.
"""

from __future__ import annotations

import logging
import random
import stat
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from bus.catalog import Catalog, published_seq
from bus.errors import BusError, Damaged
from bus.hashing import file_hash
from bus.journal import GENESIS, Journal
from bus.lake import RECEIPT, REJECT_REASON, VERDICT, Lake
from bus.manifest import Manifest
from bus.model import JobState, Outcome, Receipt, RejectReason, Verdict, artifact_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bus.journal import Commit
    from bus.model import ArtifactRecord, CommitRecord, JobRecord
    from bus.settings import Settings
    from bus.specs import Registry

log = logging.getLogger("bus.verify")

Level = Literal["quick", "sample", "full"]

#: Tables of the manifest that a rebuild must give again, row for row.
_TABLES = (
    *("meta", "commits", "objects", "artifact_facts", "column_stats_facts", "runs"),
    *("run_artifacts", "jobs", "lineage_facts", "tag_facts", "supersede_facts"),
    *("tombstone_facts", "alias_facts", "pin_facts"),
)
_REBUILD = "Run `bus rebuild`; the truth is not affected."
_RESTORE = "Restore it from a backup, or submit the same rows again."
_REPLAY_CHUNK = 200
_HASHERS = 2
_IN_JOURNAL = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken invariant: its number, the place, what is wrong, and what to do."""

    invariant: int
    where: str
    message: str
    fix: str


@dataclass(slots=True)
class Report:
    """What a verification looked at, and what it found. No findings: all is well."""

    level: Level
    seq: int = 0
    jobs: int = 0
    artifacts: int = 0
    objects: int = 0
    hashed_bytes: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def verify(
    lake: Lake,
    settings: Settings,
    registry: Registry,
    level: Level = "full",
    *,
    sample_size: int | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Report:
    """Check every invariant; `level` says how many objects are hashed (none, some, all).

    `progress(what, done, total)` is called as work goes on. Never raises for damage: it is found.
    """
    started_s = time.monotonic()
    report = Report(level)
    facts = _Facts()
    report.findings += _chain(lake, facts, progress)
    report.seq, report.jobs = facts.seq, len(facts.verdicts)
    report.artifacts, report.objects = len(facts.artifacts), len(facts.objects)
    for check in (_identities, _lineage, _submissions):
        report.findings += check(facts)
    report.findings += _answers(lake, facts)
    report.findings += _objects(lake, facts, progress)
    chosen = _chosen(facts, level, sample_size or settings.verify_sample_size)
    report.findings += _hashes(lake, chosen, report, progress)
    report.findings += _exports(lake)
    if level != "quick" and not any(f.invariant == _IN_JOURNAL for f in report.findings):
        report.findings += _views(lake, settings, registry)
    report.seconds = round(time.monotonic() - started_s, 3)
    return report


def sample(lake: Lake, settings: Settings) -> Report:
    """Hash a random sample of objects, for beat; damage is logged as an error."""
    facts, report = _Facts(), Report("sample")
    report.findings += _chain(lake, facts, lambda *_: None)
    report.seq, report.objects = facts.seq, len(facts.objects)
    chosen = _chosen(facts, "sample", settings.verify_sample_size)
    report.findings += _hashes(lake, chosen, report, lambda *_: None)
    for finding in report.findings:
        log.error("damage: %s: %s", finding.where, finding.message)
    return report


# ── what the journal says ─────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Facts:
    """The journal's content, as far as the checks need it."""

    seq: int = 0
    verdicts: list[tuple[str, JobRecord, int]] = field(default_factory=list)
    artifacts: dict[str, ArtifactRecord] = field(default_factory=dict)
    created: list[ArtifactRecord] = field(default_factory=list)
    objects: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, set[str]] = field(default_factory=dict)

    def take(self, record: CommitRecord) -> None:
        self.seq = record.seq
        for job in record.jobs:
            self.verdicts.append((job.verdict_id, job, record.seq))
            for artifact in job.artifacts:
                self.inputs.setdefault(artifact.artifact_id, set()).update(artifact.inputs or ())
                if artifact.decision != "deduped":
                    self.artifacts[artifact.artifact_id] = artifact
                    self.created.append(artifact)
                    self.objects[artifact.sha256] = artifact.size_bytes


def _chain(
    lake: Lake, facts: _Facts, progress: Callable[[str, int, int], None]
) -> Iterator[Finding]:
    """3: numbers without gaps, each record holding the hash of the one before."""
    journal = Journal(lake)
    numbers = journal.numbers()
    try:
        for commit in journal.after(0, GENESIS):
            facts.take(commit.record)
            if commit.record.seq % _REPLAY_CHUNK == 0:
                progress("journal", commit.record.seq, len(numbers))
    except Damaged as damage:
        yield Finding(_IN_JOURNAL, damage.where, damage.message, damage.hint)
        return
    if beyond := [n for n in numbers if n > facts.seq and facts.seq + 1 not in numbers]:
        where = str(lake.record_path(facts.seq + 1))
        message = f"record {facts.seq + 1} is missing, {len(beyond)} later ones exist"
        yield Finding(
            _IN_JOURNAL, where, message, "Restore the record from a backup before anything else."
        )


def _identities(facts: _Facts) -> Iterator[Finding]:
    """7: an artifact_id follows from its identity, and is created once (or revived)."""
    seen: set[str] = set()
    for artifact in facts.created:
        expected = artifact_id_of(
            artifact.kind, artifact.schema_version, artifact.logical_key, artifact.content_hash
        )
        if expected != artifact.artifact_id:
            message = f"its identity gives {expected}"
            yield Finding(7, artifact.artifact_id, message, "Report this: the writer erred.")
        if artifact.artifact_id in seen and artifact.decision == "created":
            message = "created more than once"
            yield Finding(7, artifact.artifact_id, message, "Report this: the writer erred.")
        seen.add(artifact.artifact_id)


def _lineage(facts: _Facts) -> Iterator[Finding]:
    """8: every input exists, and nothing descends from itself."""
    pending = {a: set(inputs) & facts.inputs.keys() for a, inputs in facts.inputs.items()}
    for artifact_id, inputs in facts.inputs.items():
        for missing in sorted(inputs - facts.artifacts.keys()):
            message = f"its input {missing} does not exist"
            yield Finding(8, artifact_id, message, "Report this: the writer erred.")
    children: dict[str, list[str]] = {}
    for artifact_id, inputs in pending.items():
        for source in inputs:
            children.setdefault(source, []).append(artifact_id)
    free = [artifact_id for artifact_id, inputs in pending.items() if not inputs]
    while free:
        done = free.pop()
        for child in children.get(done, ()):
            pending[child].discard(done)
            if not pending[child]:
                free.append(child)
        pending.pop(done, None)
    for artifact_id in sorted(pending):
        message = "it descends from itself"
        yield Finding(8, artifact_id, message, "Report this: the writer erred.")


def _submissions(facts: _Facts) -> Iterator[Finding]:
    """5: each verdict is journaled once, each job_id committed at most once."""
    seen: set[str] = set()
    committed: set[str] = set()
    for verdict_id, job, seq in facts.verdicts:
        if verdict_id in seen:
            message = f"its verdict {verdict_id} is in the journal twice (again in {seq})"
            yield Finding(5, job.job_id, message, "Report this: the writer erred.")
        seen.add(verdict_id)
        if job.outcome is Outcome.COMMITTED:
            if job.job_id in committed:
                message = f"committed twice (again in {seq})"
                yield Finding(5, job.job_id, message, "Report this: the writer erred.")
            committed.add(job.job_id)


# ── the directories ───────────────────────────────────────────────────────────────────────────


def _answers(lake: Lake, facts: _Facts) -> Iterator[Finding]:
    """5: what lies in processed/ and rejected/ was journaled so, and nothing journaled is open.

    A commit that is being answered this moment may still lie in ready/: only jobs that are both
    answered and open are wrong.
    """
    outcomes = {verdict_id: (job, seq) for verdict_id, job, seq in facts.verdicts}
    answered: dict[str, Path] = {}
    for state, name in ((JobState.COMMITTED, RECEIPT), (JobState.REJECTED, REJECT_REASON)):
        for waiting in lake.listing(state):
            directory = lake.state_dir(state) / waiting.name
            yield from _answer(directory, state, name, outcomes, facts.seq, answered)
    for waiting in lake.listing(JobState.READY):
        verdict = _verdict(lake.ready / waiting.name)
        if verdict is not None and verdict.verdict_id in answered:
            message = f"answered already, in {answered[verdict.verdict_id]}"
            yield Finding(5, str(lake.ready / waiting.name), message, "Remove this copy.")


def _answer(
    directory: Path,
    state: JobState,
    name: str,
    outcomes: dict[str, tuple[JobRecord, int]],
    seq: int,
    answered: dict[str, Path],
) -> Iterator[Finding]:
    verdict = _verdict(directory)
    model: type[Receipt | RejectReason] = Receipt if state is JobState.COMMITTED else RejectReason
    try:
        answer = model.from_bytes((directory / name).read_bytes())
    except (OSError, ValueError):
        yield Finding(
            5,
            str(directory / name),
            "missing or unreadable",
            "Nothing is lost: the journal has it.",
        )
        return
    if verdict is None or answer.seq > seq:
        return  # committed after we began
    if verdict.verdict_id in answered:
        message = f"the same submission lies in {answered[verdict.verdict_id]}"
        yield Finding(5, str(directory), message, "Keep one of the two.")
    answered[verdict.verdict_id] = directory
    known = outcomes.get(verdict.verdict_id)
    if known is None:
        yield Finding(5, str(directory), "answered, but not in the journal", "Submit it again.")
        return
    rejected = known[0].outcome is Outcome.REJECTED
    if rejected != (state is JobState.REJECTED):
        message = f"the journal says {known[0].outcome} (commit {known[1]})"
        yield Finding(5, str(directory), message, "The journal is right.")


def _verdict(directory: Path) -> Verdict | None:
    try:
        return Verdict.from_bytes((directory / VERDICT).read_bytes())
    except (OSError, ValueError):
        return None


# ── the objects ───────────────────────────────────────────────────────────────────────────────


def _objects(
    lake: Lake, facts: _Facts, progress: Callable[[str, int, int], None]
) -> Iterator[Finding]:
    """1 and 2: every object is there, a regular read-only file of the right size."""
    for number, (sha256, size_bytes) in enumerate(facts.objects.items()):
        if number % 1000 == 0:
            progress("objects", number, len(facts.objects))
        path = lake.object_path(sha256)
        try:
            seen = path.lstat()
        except FileNotFoundError:
            yield Finding(1, str(path), f"missing; {_users(facts, sha256)}", _RESTORE)
            continue
        if not stat.S_ISREG(seen.st_mode) or seen.st_size != size_bytes:
            message = f"{seen.st_size:,} bytes where {size_bytes:,} were committed"
            yield Finding(1, str(path), f"{message}; {_users(facts, sha256)}", _RESTORE)
        if seen.st_mode & 0o222:
            message = f"writable (mode {stat.S_IMODE(seen.st_mode):o})"
            yield Finding(2, str(path), message, f"chmod 0444 {path}, then verify it in full.")


def _chosen(facts: _Facts, level: Level, size: int) -> list[tuple[str, str]]:
    """The objects to hash, each with the artifacts that stand on it in words."""
    names = {"quick": [], "full": list(facts.objects)}.get(level)
    if names is None:
        names = random.sample(list(facts.objects), min(size, len(facts.objects)))
    return [(name, _users(facts, name)) for name in names]


def _users(facts: _Facts, sha256: str) -> str:
    users = [a for a in facts.artifacts.values() if a.sha256 == sha256] if facts.artifacts else []
    if not users:
        return "no artifact stands on it"
    first = users[0]
    more = f" and {len(users) - 1} more" if len(users) > 1 else ""
    return f"{first.kind} {first.logical_key} ({first.artifact_id}){more}"


def _hashes(
    lake: Lake,
    chosen: list[tuple[str, str]],
    report: Report,
    progress: Callable[[str, int, int], None],
) -> Iterator[Finding]:
    """1: hashed again, each object has its name."""

    def look(item: tuple[str, str]) -> tuple[str, str, str | None, int]:
        sha256, users = item
        path = lake.object_path(sha256)
        try:
            return sha256, users, file_hash(path).removeprefix("sha256:"), path.stat().st_size
        except FileNotFoundError:
            return sha256, users, sha256, 0  # found missing already
        except OSError as error:
            return sha256, users, f"unreadable: {error.strerror}", 0

    with ThreadPoolExecutor(_HASHERS) as pool:
        for number, (sha256, users, seen, size_bytes) in enumerate(pool.map(look, chosen)):
            progress("hashing", number + 1, len(chosen))
            report.hashed_bytes += size_bytes
            if seen != sha256:
                path = str(lake.object_path(sha256))
                yield Finding(1, path, f"its bytes are {seen}; {users}", _RESTORE)


# ── the views ─────────────────────────────────────────────────────────────────────────────────


def _exports(lake: Lake) -> Iterator[Finding]:
    """9: what readers open is whole."""
    for path in sorted(lake.exports.glob("*.parquet")):
        try:
            pq.read_metadata(path)
        except (OSError, pa.ArrowException) as error:
            yield Finding(9, str(path), f"unreadable: {error}", "Run `bus export`.")


def _views(lake: Lake, settings: Settings, registry: Registry) -> Iterator[Finding]:
    """4: manifest, catalog and artifact links equal a rebuild."""
    with tempfile.TemporaryDirectory(prefix="bus-verify-") as folder:
        twin = Lake(Path(folder), lake.public_root)
        twin.create()
        with closing(Manifest.open(twin)) as rebuilt:
            yield from _catalog(lake, twin, rebuilt, settings, registry)
            yield from _manifest(lake, rebuilt)
    yield from _links(lake)


def _catalog(
    lake: Lake, twin: Lake, rebuilt: Manifest, settings: Settings, registry: Registry
) -> Iterator[Finding]:
    seq = published_seq(lake)
    if seq is None:
        if Journal(lake).read(1) is not None:
            yield Finding(9, str(lake.catalog_db), "missing or unreadable", _REBUILD)
        return
    try:
        digest = Catalog.digest(lake)
        if published_seq(lake) != seq:
            return  # published again while we looked: the next verification will compare it
        _replay(lake, rebuilt, seq)
        with closing(Catalog.open(twin, settings, registry, rebuilt)) as catalog:
            catalog.catch_up(rebuilt)
            catalog.publish(lambda: True)
        if Catalog.digest(twin) != digest:
            message = f"differs from a rebuild up to commit {seq}"
            yield Finding(4, str(lake.catalog_db), message, _REBUILD)
    except BusError as error:
        yield Finding(9, str(lake.catalog_db), error.message, _REBUILD)


def _manifest(lake: Lake, rebuilt: Manifest) -> Iterator[Finding]:
    try:
        live = Manifest.read(lake)
    except BusError as error:
        yield Finding(4, str(lake.manifest_db), error.message, _REBUILD)
        return
    with closing(live), live.frozen():
        seq, _ = live.applied
        _replay(lake, rebuilt, seq)
        for table in _TABLES:
            columns = ", ".join(str(n + 1) for n in range(_width(rebuilt, table)))
            dump = f"SELECT * FROM {table} ORDER BY {columns}"  # noqa: S608 - our own table names
            ours, theirs = live.rows(dump), rebuilt.rows(dump)
            if ours == theirs:
                continue
            wrong = len(set(ours) ^ set(theirs))
            message = f"table {table} differs from a rebuild in {wrong} rows"
            yield Finding(4, str(lake.manifest_db), message, _REBUILD)


def _width(manifest: Manifest, table: str) -> int:
    return len(manifest.rows(f"SELECT 1 FROM pragma_table_info('{table}')"))  # noqa: S608 - our own table names


def _replay(lake: Lake, manifest: Manifest, seq: int) -> None:
    """Apply the journal up to and including `seq`."""
    chunk: list[Commit] = []
    for commit in _until(Journal(lake).after(*manifest.applied), seq):
        chunk.append(commit)
        if len(chunk) == _REPLAY_CHUNK:
            manifest.apply(chunk)
            chunk = []
    manifest.apply(chunk)


def _until(commits: Iterable[Commit], seq: int) -> Iterator[Commit]:
    for commit in commits:
        if commit.record.seq > seq:
            return
        yield commit


def _links(lake: Lake) -> Iterator[Finding]:
    """4: `artifacts/` shows each active artifact, with the bytes of its object."""
    try:
        live = Manifest.read(lake)
    except BusError:
        return  # told already
    with closing(live), live.frozen():
        done = live.progress("links")
        rows = live.rows(
            "SELECT a.artifact_type, a.schema_version, a.artifact_id, a.file_hash, f.added_seq "
            "FROM artifacts a JOIN artifact_facts f USING (artifact_id) "
            "WHERE a.status = 'active' AND f.ended_seq IS NULL"
        )
    for kind, version, artifact_id, file_hash_text, seq in rows:
        path = lake.artifact_path(kind, version, artifact_id)
        source = lake.object_path(file_hash_text.removeprefix("sha256:"))
        if seq > done or not source.exists():
            continue
        if not path.exists():
            yield Finding(4, str(path), "the link is missing", _REBUILD)
        elif not path.samefile(source) and path.stat().st_size != source.stat().st_size:
            yield Finding(4, str(path), "the link shows other bytes", _REBUILD)
