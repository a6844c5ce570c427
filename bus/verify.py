"""`bus verify`: hold a lake against its journal; look, and change nothing.

What must be true is in `bus.invariants`, one function each. Here is what they are held against:
the manifest that the journal makes. A quick look takes the live one; any other makes a second one,
which the live one must equal row for row, as the catalog must equal one made anew.

A verification may run beside a working bus. It fixes the newest commit first and looks at nothing
later; each view is compared at the commit it says it has come to; and what looks wrong only because
it is being done at this moment is looked at twice.
"""

from __future__ import annotations

import random
import tempfile
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import structlog

from bus import disk, invariants
from bus.catalog import connect_snapshot
from bus.errors import BusError, Damaged, Unavailable
from bus.invariants import OUR_ERROR, REBUILD, Finding
from bus.journal import GENESIS, Journal
from bus.manifest import BrokenManifestError, Manifest
from bus.model import JobState
from bus.rebuilt import Twin, manifest_differences

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
            named = invariants.told(manifest, finding, f"sha256:{Path(finding.where).stem}")
            report.findings.append(named)
            log.error("damage", where=named.where, message=named.message)
    if found:
        disk.replace_view(lake.verify_cursor, found[-1][0].encode())
    report.seconds = round(time.monotonic() - started_s, 3)
    return report


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
        self._verdicts: set[str] = set()
        self._newest = 0

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
            (5, lambda: invariants.commits_of_jobs(facts)),
            (12, lambda: invariants.writers(facts)),
            (1, lambda: self._objects(facts)),
            (10, lambda: _twice(lambda: invariants.unanswered(lake, facts))),
            (5, lambda: self._answers(facts)),
            (6, lambda: _twice(lambda: invariants.staged(lake))),
            (11, lambda: _twice(lambda: invariants.stuck(lake, self._settings, facts))),
            (9, lambda: invariants.exports(lake, whole=level == "full")),
            (4, lambda: _twice(lambda: _file_views(lake, level))),
        ]
        for number, check in checks:
            self._check(number, check)

    def _count(self, facts: Manifest) -> None:
        self.report.seq, _ = facts.applied
        self.report.jobs, self.report.artifacts, self.report.objects = (
            facts.rows(f"SELECT count(*) FROM {table}")[0][0]  # noqa: S608 - our own tables
            for table in ("jobs", "artifacts", "objects")
        )
        self.report.damaged = facts.rows("SELECT count(*) FROM damaged")[0][0]

    def _check(self, number: int, check: Callable[[], Iterable[Finding]]) -> None:
        try:
            for finding in check():
                self.report.findings.append(finding)
        except Exception as error:  # noqa: BLE001 - whatever damage does to a check is a finding
            message = f"could not be checked: {type(error).__name__}: {error}"
            fix = REBUILD if number in _ABOUT_VIEWS else OUR_ERROR
            self._found(number, self._lake.root, message, fix)

    def _found(self, invariant: int, where: object, message: str, fix: str) -> None:
        self.report.findings.append(Finding(invariant, str(where), message, fix))

    # ── 3 and 4: the journal, and what is made from it ────────────────────────────────────────

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
                self._compare_ends(live, self._read_chain(live.applied[0]))
                return live
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bus-verify-"))
            twin = stack.enter_context(closing(Twin(self._lake, Path(folder))))
            self._compare(twin, live, snapshot)
        except _UNREADABLE as damage:
            self._found(3, damage.where, damage.message, damage.hint)
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

    def _read_chain(self, last: int) -> tuple[int, str]:
        """(number, hash) of the last record up to `last`; every one is looked at."""
        end = (0, GENESIS)
        for commit in self._journal.after(0, GENESIS):
            if commit.record.seq > last:
                break
            self._look(commit)
            end = (commit.record.seq, commit.sha256)
        return end

    def _compare(
        self,
        twin: Twin,
        live: Manifest | None,
        snapshot: duckdb.DuckDBPyConnection | None,
    ) -> None:
        """4: let the twin grow to where each view stands, and compare."""
        last = None if live is None else live.applied[0]
        if snapshot is not None and (seq := self._come_to(snapshot)) is not None:
            twin.grow(seq if last is None else min(seq, last), self._look)
            if twin.manifest.applied[0] < seq:
                message = f"has come to commit {seq}, beyond journal and manifest"
                self._found(4, self._lake.catalog_db, message, REBUILD)
            else:
                self._check(4, lambda: self._catalog(twin, snapshot))
        twin.grow(last, self._look)
        if live is not None and self._compare_ends(live, twin.manifest.applied):
            self._check(4, lambda: self._manifest(live, twin))

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
        restore = "Restore the newest records from a backup, or run `bus rebuild` to go on without."
        if end[0] < seq:
            message = f"the manifest has come to commit {seq}, the journal ends with {end[0]}"
            self._found(3, self._lake.record_path(end[0] + 1), message, restore)
        else:
            message = f"record {seq} is not the one that was indexed"
            self._found(3, self._lake.record_path(seq), message, restore)
        return False

    def _look(self, commit: Commit) -> None:
        """5: each verdict is in the journal once. 2: records are read-only."""
        record = commit.record
        for job in record.jobs:
            if job.verdict_id in self._verdicts:
                message = f"the verdict {job.verdict_id} is in the journal again, in {record.seq}"
                self._found(5, job.job_id, message, OUR_ERROR)
            self._verdicts.add(job.verdict_id)
        path = self._lake.record_path(record.seq)
        if path.lstat().st_mode & 0o222:
            self._found(2, path, "the record is writable", "Make it read-only (0444).")
        self._progress("journal", record.seq, self._newest)

    def _catalog(self, twin: Twin, snapshot: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
        for difference in twin.catalog_differences(snapshot, self._settings, self._registry):
            yield Finding(4, str(self._lake.catalog_db), difference, REBUILD)

    def _manifest(self, live: Manifest, twin: Twin) -> Iterator[Finding]:
        for difference in manifest_differences(live, twin.manifest):
            yield Finding(4, str(self._lake.manifest_db), difference, REBUILD)

    # ── 1, 2, 5, 10: objects and answers ──────────────────────────────────────────────────────

    def _objects(self, facts: Manifest) -> Iterator[Finding]:
        """Every object that an artifact stands on is there, whole, read-only, and has its hash."""
        there: list[tuple[str, Path]] = []
        for rows in facts.chunks(invariants.OBJECTS_IN_USE):
            for file_hash_text, size_bytes in rows:
                path = self._lake.object_path(file_hash_text.removeprefix("sha256:"))
                found = list(invariants.object_at(path, size_bytes))
                yield from (invariants.told(facts, finding, file_hash_text) for finding in found)
                if not any(finding.invariant == 1 for finding in found):
                    there.append((file_hash_text, path))
        chosen = self._chosen(there)
        if self.report.level == "full":
            used = {path for _, path in there}
            chosen += [(f"sha256:{p.stem}", p) for p in self._lake.all_objects() if p not in used]

        def was_read(number: int, size_bytes: int) -> None:
            self.report.was_read(number, size_bytes)
            self._progress("hashing", number, len(chosen))

        for finding in invariants.hashes(chosen, was_read):
            yield invariants.told(facts, finding, f"sha256:{Path(finding.where).stem}")

    def _answers(self, facts: Manifest) -> Iterator[Finding]:
        """Each job lies where the journal says, once, with the answer that the journal gives."""
        answered = self._chosen([(s, e.name) for s in _ANSWERED for e in self._lake.listing(s)])
        judged = [(s, e.name) for s in _JUDGED for e in self._lake.listing(s)]
        lying: dict[str, Path] = {}
        for number, (state, name) in enumerate([*answered, *judged]):
            self._progress("answers", number, len(answered) + len(judged))
            yield from invariants.answer(self._lake, state, name, facts, lying)

    def _chosen(self, items: list[_T]) -> list[_T]:
        """As many as are read at this level."""
        if self.report.level == "sample":
            return random.sample(items, min(self._size, len(items)))
        return items if self.report.level == "full" else []


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
