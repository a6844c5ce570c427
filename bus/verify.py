"""`bus verify`: hold a lake against its journal; look, and change nothing.

What must be true is in `bus.invariants`, one function each. Here is what they are held against:
the manifest that the journal makes. A quick look takes the live one; any other makes a second one,
which the live one must equal row for row, as the catalog must equal one made anew.

Closed files are held against a hash: objects, records (each by its successor, and by what was
indexed), checkpoints. Views that change are held against what they must say, every row of every
table, each index, each schema: a byte that nobody reads (the counters in SQLite's first page, free
room) may differ, and is no harm.

A verification may run beside a working bus. It fixes the newest commit first and looks at nothing
later; each view is compared at the commit it says it has come to; and what looks wrong only because
it is being done at this moment is looked at twice.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import deque
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import structlog

from bus import checkpoints, damage, disk, invariants
from bus.answered import AnsweredJobs, Recorded
from bus.catalog import connect_snapshot
from bus.checkpoints import UnusableError
from bus.errors import BusError, Damaged, Unavailable
from bus.invariants import (
    OUR_ERROR,
    REBUILD,
    RECORD_READ_ONLY,
    RELINK,
    REMAKE,
    RESTORE_RECORD,
    RETRACT,
    Finding,
)
from bus.journal import Journal
from bus.manifest import SCHEMA_VERSION, BrokenManifestError, Manifest
from bus.model import JobState
from bus.rebuilt import TreeDocuments, Twin, manifest_differences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import duckdb

    from bus.journal import Commit
    from bus.lake import Lake
    from bus.settings import Settings
    from bus.specs import Registry

__all__ = ["Finding", "Level", "Report", "sample", "verify"]

log = structlog.get_logger("bus.verify")

#: quick: what exists and how it hangs together, without a second manifest; sample: also views
#: against a rebuild, some objects and some answers; full: every byte of everything.
Level = Literal["quick", "sample", "full"]
_T = TypeVar("_T")
_ANSWERED = (JobState.COMMITTED, JobState.REJECTED)
_ABOUT_VIEWS = (4, 9)
#: What reading the journal raises: a record that is damaged, or of a newer release.
_UNREADABLE = (Damaged, Unavailable)
_JUDGED = (JobState.VALIDATING, JobState.READY)


@dataclass(slots=True)
class Report:
    """What a verification looked at, and what it found. No findings: all is well.

    `damaged`: artifacts that are known to stand on damaged objects, which is no finding any more.
    """

    level: Level
    seq: int = 0
    jobs: int = 0
    artifacts: int = 0
    objects: int = 0
    damaged: int = 0
    checkpoints: int = 0
    hashed_bytes: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every invariant held, as far as was looked."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self) | {"ok": self.ok}

    def was_read(self, _: int, size_bytes: int) -> None:
        """Count the bytes of an object that was hashed."""
        self.hashed_bytes += size_bytes


def verify(
    lake: Lake,
    settings: Settings,
    registry: Registry,
    level: Level = "full",
    *,
    sample_size: int | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Report:
    """Check every invariant; `level` says how much is read. Never raises for damage: it is found.

    `progress(what, done, total)` is called as work goes on. `sample_size`: objects and answers
    read at level ``sample``; default `settings.verify_sample_size`.
    """
    started_s = time.monotonic()
    size = sample_size or settings.verify_sample_size
    with ExitStack() as stack:
        check = _Verification(lake, settings, registry, Report(level), size, progress)
        check.run(stack)
    check.report.seconds = round(time.monotonic() - started_s, 3)
    return check.report


def sample(lake: Lake, settings: Settings) -> Report:
    """Hash the next few objects, so that every one has its turn; for beat. Damage is logged."""
    started_s = time.monotonic()
    report = Report("sample")
    try:
        manifest = Manifest.read(lake)
    except Unavailable:
        return report  # nothing was ever committed
    with closing(manifest):
        try:
            report.seq, _ = manifest.applied
            found = invariants.next_objects(lake, manifest, settings.verify_sample_size)
        except BrokenManifestError as error:
            report.findings.append(Finding(4, str(lake.manifest_db), f"damaged: {error}", REBUILD))
            log.exception("damage", where=str(lake.manifest_db))
            return report
        report.objects = len(found)
        for finding in invariants.hashes(found, report.was_read):
            named = _named(manifest, finding)
            report.findings.append(named)
            log.error("damage", where=named.where, message=named.message)
    if found:
        disk.replace_view(lake.verify_cursor, found[-1][0].encode())
    report.seconds = round(time.monotonic() - started_s, 3)
    return report


def _named(facts: Manifest, finding: Finding) -> Finding:
    """A finding about an object, and who stands on it."""
    return invariants.naming(finding, damage.on_object(facts, f"sha256:{Path(finding.where).stem}"))


class _View(NamedTuple):
    """A view that has come to one commit, and how it is compared with the twin as of that."""

    seq: int
    path: Path
    compare: Callable[[Twin], Iterable[Finding]]


class _Verification:
    """One run: the lake, the facts to hold it against, and the report that grows."""

    def __init__(
        self,
        lake: Lake,
        settings: Settings,
        registry: Registry,
        report: Report,
        size: int,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self._lake = lake
        self._settings = settings
        self._registry = registry
        self._journal = Journal(lake)
        self.report = report
        self._size = size
        self._progress = progress
        self._newest = 0
        self._documents = TreeDocuments(lake, until=0)
        self._recorded = lru_cache(maxsize=8)(self._record)

    def run(self, stack: ExitStack) -> None:
        """Every check in turn; one that cannot be made is a finding and stops no other."""
        with ExitStack() as views:  # not for longer than needed: what is open cannot be tidied
            snapshot = self._snapshot(views)  # before the manifest, which must not lie behind it
            live = self._live(views)
            facts = self._facts(live, snapshot, stack)
            if facts is live:
                stack.enter_context(views.pop_all())
        self._count(facts)
        level = self.report.level
        lake = self._lake
        checks: list[tuple[int, Callable[[], Iterable[Finding]]]] = [
            (7, lambda: invariants.identities(facts)),
            (8, lambda: invariants.references(facts)),
            (5, lambda: self._submissions(facts)),
            (5, lambda: invariants.commits_of_jobs(facts)),
            (12, lambda: invariants.writers(facts)),
            (1, lambda: self._objects(facts)),
            (1, lambda: invariants.purges(facts)),
            (10, lambda: _twice(lambda: invariants.unanswered(lake, facts))),
            (5, lambda: self._answers(facts)),
            (6, lambda: _twice(lambda: invariants.staged(lake))),
            (11, lambda: _twice(lambda: invariants.stuck(lake, self._settings, facts))),
            (9, lambda: invariants.exports(lake, whole=level == "full")),
            (4, lambda: _twice(lambda: _file_views(lake, level))),
            (4, self._tree_documents),
        ]
        for number, check in checks:
            self._check(number, lake.root, check)

    def _count(self, facts: Manifest) -> None:
        self.report.seq, _ = facts.applied
        self.report.jobs, self.report.artifacts, self.report.objects = (
            facts.rows(f"SELECT count(*) FROM {table}")[0][0]  # noqa: S608 - our own tables
            for table in ("jobs", "artifacts", "objects")
        )
        self.report.damaged = facts.rows("SELECT count(*) FROM damaged")[0][0]

    def _check(self, number: int, where: Path, check: Callable[[], Iterable[Finding]]) -> None:
        try:
            for finding in check():
                self.report.findings.append(finding)
        except Exception as error:  # noqa: BLE001 - whatever damage does to a check is a finding
            message = f"could not be checked: {type(error).__name__}: {error}"
            fix = REBUILD if number in _ABOUT_VIEWS else OUR_ERROR
            self._found(number, where, message, fix)

    def _found(self, invariant: int, where: object, message: str, fix: str) -> None:
        self.report.findings.append(Finding(invariant, str(where), message, fix))

    # ── what is there to be looked at ─────────────────────────────────────────────────────────

    def _snapshot(self, stack: ExitStack) -> duckdb.DuckDBPyConnection | None:
        """The published catalog, open: it stays the same file whatever is published meanwhile."""
        try:
            return stack.enter_context(connect_snapshot(self._lake))
        except Unavailable as error:
            if self._lake.record_path(1).exists():
                self._found(9, self._lake.catalog_db, error.message, REBUILD)
            return None

    def _live(self, stack: ExitStack) -> Manifest | None:
        """The live manifest, all reads of it at one and the same commit; None without one."""
        try:
            if Manifest.keeps_writers_out(self._lake):
                self._found(4, self._lake.manifest_db, "its first page keeps writers out", REBUILD)
            manifest = stack.enter_context(closing(Manifest.read(self._lake)))
            stack.enter_context(manifest.frozen())
            _ = manifest.applied
        except Exception as error:  # noqa: BLE001 - damage has many faces, and each is a finding
            if self._lake.record_path(1).exists():
                message = error.message if isinstance(error, BusError) else f"damaged: {error}"
                self._found(4, self._lake.manifest_db, message, REBUILD)
            return None
        return manifest

    def _facts(
        self,
        live: Manifest | None,
        snapshot: duckdb.DuckDBPyConnection | None,
        stack: ExitStack,
    ) -> Manifest:
        """What to hold everything else against: a second manifest, made from the journal.

        For a quick look, and where the journal is broken, the live one must do.
        """
        try:
            self._newest = self._journal.check_gapless()
            if self.report.level == "quick" and live is not None:
                self.report.findings += self._as_indexed(live)
                deque(self._checkpoints(), maxlen=0)
                return live
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bus-verify-"))
            twin = stack.enter_context(closing(Twin(self._lake, Path(folder))))
            self._compare(twin, live, snapshot)
        except _UNREADABLE as broken:
            found = list(self._as_indexed(live)) if live is not None else []
            first = Finding(3, broken.where, broken.message, broken.hint)
            self.report.findings += found or [first]
            self._documents = TreeDocuments(self._lake, until=0)
            if live is not None:
                return live
            return stack.enter_context(closing(self._whatever_is_left(stack)))
        return twin.manifest

    def _whatever_is_left(self, stack: ExitStack) -> Manifest:
        """A manifest of the records before the damage."""
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bus-verify-"))
        twin = Twin(self._lake, Path(folder))
        with suppress(*_UNREADABLE):
            twin.grow(None)
        return twin.manifest

    # ── 3: the journal ────────────────────────────────────────────────────────────────────────

    def _as_indexed(self, live: Manifest) -> Iterator[Finding]:
        """Each record that was indexed has the bytes that were indexed, and is read-only."""
        last, last_sha256 = live.applied
        for rows in live.chunks("SELECT seq, sha256 FROM commits ORDER BY seq"):
            for seq, indexed in rows:
                self._progress("journal", seq, last)
                path = self._lake.record_path(seq)
                seen = self._journal.sha256(seq)
                if seen is None:
                    yield self._missing(live, seq, last)
                elif seen != indexed:
                    told = last_sha256 if seq == last else self._said_by_next(seq)
                    yield self._changed(live, seq, seen, told)
                elif finding := _writable(path):
                    yield finding

    def _missing(self, live: Manifest, seq: int, last: int) -> Finding:
        message, fix = "the record is missing", RESTORE_RECORD
        if seq > self._newest > 0:
            message = (
                f"the manifest has come to commit {last}, the journal ends with {self._newest}"
            )
            fix = "Restore the newest records from a backup, or run `bus rebuild` to go on without."
        finding = Finding(3, str(self._lake.record_path(seq)), message, fix)
        return invariants.naming(finding, damage.in_record(live, seq))

    def _changed(self, live: Manifest, seq: int, seen: str, told: str | None) -> Finding:
        """Of a record and the manifest that differ, the one that nobody else agrees with."""
        if seen == told:
            message = f"does not know record {seq} as the journal has it"
            return Finding(4, str(self._lake.manifest_db), message, REMAKE)
        message = f"record {seq} is not the one that was indexed: its bytes are sha256:{seen}"
        finding = Finding(3, str(self._lake.record_path(seq)), message, RESTORE_RECORD)
        return invariants.naming(finding, damage.in_record(live, seq))

    def _said_by_next(self, seq: int) -> str | None:
        """What the record after it says of a record."""
        then = self._recorded(seq + 1)
        return then.record.prev if then else None

    def _record(self, seq: int) -> Recorded | None:
        with suppress(*_UNREADABLE):
            if commit := self._journal.read(seq):
                return Recorded(commit.record, {j.verdict_id: j for j in commit.record.jobs})
        return None

    def _look(self, commit: Commit) -> None:
        """2: records are read-only. 4: trees say what they say."""
        seq = commit.record.seq
        if finding := _writable(self._lake.record_path(seq)):
            self.report.findings.append(finding)
        if self.report.level == "full":
            self._documents.look(commit.record)
        self._progress("journal", seq, self._newest)

    def _submissions(self, facts: Manifest) -> Iterator[Finding]:
        """5: each verdict is in the journal once."""
        for seq in invariants.submissions(facts):
            then = self._recorded(seq)
            for verdict_id, job in then.jobs.items() if then else ():
                if facts.rows(
                    "SELECT 1 FROM jobs WHERE verdict_id = ? AND seq < ?", (verdict_id, seq)
                ):
                    message = f"the verdict {verdict_id} is in the journal again, in {seq}"
                    yield Finding(5, job.job_id, message, OUR_ERROR)

    # ── 4: what is made from the journal ──────────────────────────────────────────────────────

    def _compare(
        self, twin: Twin, live: Manifest | None, snapshot: duckdb.DuckDBPyConnection | None
    ) -> None:
        """Let the twin grow to where each view stands, and compare."""
        last = None if live is None else live.applied[0]
        if live is not None:
            self._documents = TreeDocuments(self._lake, until=live.progress("trees"))
        views = [*self._checkpoints()]
        if snapshot is not None and (seq := self._come_to(snapshot)) is not None:
            views.append(_View(seq, self._lake.catalog_db, partial(self._catalog, snapshot)))
        for view in sorted(views, key=lambda view: view.seq):
            twin.grow(view.seq if last is None else min(view.seq, last), self._look)
            if twin.manifest.applied[0] < view.seq:
                message = f"has come to commit {view.seq}, beyond journal and manifest"
                self._found(4, view.path, message, REBUILD)
            else:
                self._check(4, view.path, partial(view.compare, twin))
        twin.grow(last, self._look)
        if live is not None and self._compare_ends(live, twin.manifest.applied):
            self._check(4, self._lake.manifest_db, lambda: self._manifest(live, twin))

    def _checkpoints(self) -> Iterator[_View]:
        """What is wrong with a checkpoint is found; what must be compared is the newest's rows."""
        look = checkpoints.announced if self.report.level == "quick" else checkpoints.verified
        rows = self.report.level != "quick"
        for seq in self._lake.checkpoint_seqs():
            path = self._lake.checkpoint_path(seq)
            try:
                found = look(self._lake, self._journal, seq)
            except (UnusableError, BrokenManifestError) as error:
                if path.exists():  # else the writer has made newer ones
                    self._found(4, path, str(error), RETRACT)
                continue
            self.report.checkpoints += 1
            if rows and found.schema_version == SCHEMA_VERSION:
                rows = False  # of the newest only
                copy = path / self._lake.manifest_db.name
                yield _View(seq, path, partial(_checkpoint, path, copy))

    def _come_to(self, snapshot: duckdb.DuckDBPyConnection) -> int | None:
        try:
            ((seq,),) = snapshot.execute("SELECT applied_seq FROM catalog.applied_v").fetchall()
        except Exception as error:  # noqa: BLE001 - DuckDB has no one error for a damaged file
            self._found(9, self._lake.catalog_db, f"unreadable: {error}", REBUILD)
            return None
        return int(seq)

    def _compare_ends(self, live: Manifest, end: tuple[int, str]) -> bool:
        """3: the journal's last record is the one that was indexed."""
        seq, sha256 = live.applied
        if end == (seq, sha256):
            return True
        self.report.findings += self._as_indexed(live)
        return False

    def _catalog(self, snapshot: duckdb.DuckDBPyConnection, twin: Twin) -> Iterator[Finding]:
        for difference in twin.catalog_differences(snapshot, self._settings, self._registry):
            yield Finding(4, str(self._lake.catalog_db), difference, REMAKE)

    def _manifest(self, live: Manifest, twin: Twin) -> Iterator[Finding]:
        where = str(self._lake.manifest_db)
        for difference in manifest_differences(live, twin.manifest):
            yield Finding(4, where, difference, REMAKE)
        if self.report.level == "full":
            yield from (Finding(4, where, f"damaged: {fault}", REBUILD) for fault in live.faults())

    def _tree_documents(self) -> Iterator[Finding]:
        for place, message in self._documents.differences():
            yield Finding(4, place, message, RELINK)

    # ── 1, 2, 5, 10: objects and answers ──────────────────────────────────────────────────────

    def _objects(self, facts: Manifest) -> Iterator[Finding]:
        """Every object that an artifact stands on is there, whole, read-only, and has its hash."""
        there: list[tuple[str, str]] = []
        for rows in facts.chunks(invariants.OBJECTS_IN_USE):
            for file_hash_text, size_bytes in rows:
                place = self._lake.object_place(file_hash_text.removeprefix("sha256:"))
                found = list(invariants.object_at(place, size_bytes))
                yield from (_named(facts, finding) for finding in found)
                if not any(finding.invariant == 1 for finding in found):
                    there.append((file_hash_text, place))
        chosen = self._chosen(there)
        if self.report.level == "full":
            used = {place for _, place in there}
            all_there = ((f"sha256:{p.stem}", str(p)) for p in self._lake.all_objects())
            chosen += [(name, place) for name, place in all_there if place not in used]

        def was_read(number: int, size_bytes: int) -> None:
            self.report.was_read(number, size_bytes)
            self._progress("hashing", number, len(chosen))

        for finding in invariants.hashes(chosen, was_read):
            yield _named(facts, finding)

    def _answers(self, facts: Manifest) -> Iterator[Finding]:
        """Each job lies where the journal says, once, with the answer that the journal gives."""
        if self.report.level == "quick":
            return
        found = [(s, e.name) for s in _ANSWERED for e in self._lake.listing(s)]
        answered = self._chosen(found)
        judged = [(s, e.name) for s in _JUDGED for e in self._lake.listing(s)]
        jobs = AnsweredJobs(self._lake, facts, self._recorded)
        for number, (state, name) in enumerate([*answered, *judged]):
            self._progress("answers", number, len(answered) + len(judged))
            yield from jobs.look(state, name)
        if len(answered) == len(found):
            yield from jobs.odd_ones()

    def _chosen(self, items: list[_T]) -> list[_T]:
        """As many as are read at this level."""
        if self.report.level == "sample":
            return random.sample(items, min(self._size, len(items)))
        return items if self.report.level == "full" else []


def _writable(path: Path) -> Finding | None:
    if path.lstat().st_mode & 0o222:
        return Finding(2, str(path), "the record is writable", RECORD_READ_ONLY)
    return None


def _checkpoint(path: Path, copy: Path, twin: Twin) -> Iterator[Finding]:
    with closing(Manifest.read_copy(copy)) as copied:
        # `meta` tells where the lake lay, and what was looked at in checkpoints.verified.
        for difference in manifest_differences(copied, twin.manifest, but={"meta"}):
            yield Finding(4, str(path), difference, RETRACT)


def _file_views(lake: Lake, level: Level) -> Iterator[Finding]:
    """4: links and trees, as the live manifest stands at this moment."""
    told_already = (Unavailable, BrokenManifestError)
    with suppress(*told_already), closing(Manifest.read(lake)) as live, live.frozen():
        yield from invariants.links(lake, live, whole=level != "quick")
        if level == "full":
            yield from invariants.trees(lake, live)


def _twice(check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What two looks in a row find: the rest was being done at that moment."""
    found = set(check())
    return [finding for finding in check() if finding in found] if found else []
