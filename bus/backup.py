"""Backup and restore: the truth of a lake, copied elsewhere and back, every byte checked on the way.

A backup is a lake that holds nothing but the truth (journal and objects), the settings file, and a
note that says up to which commit it goes. The note is written last: whatever interrupts a backup, it
speaks of what is whole, and the next one goes on. Objects are named by their hash and records are
chained, so a later backup into the same place copies only what is new. What was purged since stays.

A restore is the same the other way round, and then every view is made anew.
"""

from __future__ import annotations

import secrets
import stat
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from bus import damage, disk, invariants
from bus.errors import Code, Damaged, LakeBusy, Refused, Unavailable
from bus.invariants import Finding
from bus.journal import GENESIS, Journal, reading_much
from bus.lake import Lake
from bus.manifest import BrokenManifestError, Manifest
from bus.model import Document, JobState, iso, utc_now
from bus.objects import copied
from bus.rebuilt import Twin
from bus.settings import Settings
from bus.specs import Registry
from bus.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    #: Called with what is being done, how much of it is done, and how much there is.
    Progress = Callable[[str, int, int], None]

_COPIERS = 4
#: Objects after which their directories are synced.
_CHUNK = 256
#: How often objects may be purged under a backup before it ends with what it has.
_ROUNDS = 5
_MEND_THE_LAKE = "Run `bus verify --repair` on the lake."
_COPY_AGAIN = "Delete this file and back up again, into the same place: then it is copied anew."
_OTHER_BACKUP = "Take another backup: of what follows on the damage, nothing can be told."
_LOST = "Restore from another backup, or submit the same rows again."


class Note(Document):
    """backup.json: what a backup holds. `seq` 0: the first one has not come to its end yet."""

    version: Literal[1] = 1
    seq: int = 0
    head: str = GENESIS  # SHA-256 of record `seq`
    created_at_utc: str
    lake: str
    objects: int = 0
    size_bytes: int = 0
    config: str | None = None  # the settings file's name …
    config_sha256: str | None = None  # … and the hash of what it holds


@dataclass(slots=True)
class Report:
    """What a backup, a restore, or a check of a backup did, and what it found wrong.

    `objects` and `size_bytes` are what belongs to the backup, `copied_*` what was new.
    """

    seq: int = 0
    objects: int = 0
    size_bytes: int = 0
    copied_objects: int = 0
    copied_bytes: int = 0
    copied_records: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self) | {"ok": not self.findings}


@dataclass(frozen=True, slots=True)
class _Extent:
    """Commits up to `seq`, whose record has the SHA-256 `head`, and the objects they need."""

    seq: int
    head: str
    objects: dict[str, int]  # SHA-256 -> size in bytes

    @classmethod
    def of(cls, manifest: Manifest) -> _Extent:
        with manifest.frozen():
            rows = manifest.rows(invariants.OBJECTS_IN_USE)
            needed = {name.removeprefix("sha256:"): size_bytes for name, size_bytes in rows}
            return cls(*manifest.applied, needed)


def _silent(*_: object) -> None:
    pass


# ── there, and back ───────────────────────────────────────────────────────────────────────────


def backup(lake: Lake, settings: Settings, place: Path, progress: Progress = _silent) -> Report:
    """Bring the backup at `place` up to the newest commit. The bus may work meanwhile.

    An object that is missing or damaged in the lake is a finding, and keeps nothing else back.
    Raises `Refused` (E513) when `place` holds anything but a backup of this lake, `LakeBusy` (E503)
    while another backup writes there, `Damaged` where the journal is, `Unavailable` (E508) without
    a manifest, OSError for what the disk refuses.
    """
    target = Lake(place)
    _check_place(lake, target)
    with _timed() as report, _alone(target):
        since = _begin(target, lake)
        copy = _Copy(lake, target, report, progress)
        extent = copy.living()
        copy.records(extent, since)
        _finish(target, lake, extent, _copy_config(settings.config_path, target.root))
    return report


def restore(place: Path, root: Path, progress: Progress = _silent) -> Report:
    """Make a lake at `root` of the backup at `place`, and every view of it anew.

    What is missing or damaged in the backup is a finding; the rest is restored. One that was
    interrupted goes on when it is asked for again. Raises `Refused` (E513) when `place` holds no
    backup or `root` a lake, `LakeBusy` (E503), `Damaged` where the backup's journal is, OSError.
    """
    source, target = Lake(place), Lake(root)
    noted = read_note(source)
    _check_empty(target)
    with _timed() as report, _alone(target), _noted(source, noted) as facts:
        since = _begin(target, source)
        extent = _Extent.of(facts)
        copy = _Copy(source, target, report, progress)
        copy.report_absent(copy.objects(extent), facts, _LOST)
        copy.records(extent, since)
        if noted.config and not (target.root / noted.config).exists():
            _copy_config(source.root / noted.config, target.root)
        _make_views(target)
        disk.remove(target.backup_note)
        disk.sync_dir(target.root)
    return report


def check(place: Path, progress: Progress = _silent) -> Report:
    """Whether a backup is whole: the chain, every object's bytes, the settings. Changes nothing.

    Raises `Refused` (E513) when `place` holds no backup.
    """
    lake = Lake(place)
    note = read_note(lake)
    with _timed() as report:
        try:
            with _noted(lake, note) as twin:
                _check_objects(lake, twin, report, progress)
        except Damaged as broken:
            report.findings.append(Finding(3, broken.where, broken.message, _OTHER_BACKUP))
        if note.config and _sha256(lake.root / note.config) != note.config_sha256:
            where = str(lake.root / note.config)
            report.findings.append(Finding(3, where, "not what was backed up", _COPY_AGAIN))
    return report


def _check_objects(lake: Lake, facts: Manifest, report: Report, progress: Progress) -> None:
    extent = _Extent.of(facts)
    report.seq, report.objects = extent.seq, len(extent.objects)
    report.size_bytes = sum(extent.objects.values())
    places = [(f"sha256:{sha256}", lake.object_place(sha256)) for sha256 in extent.objects]
    missing = [place for _, place in places if not Path(place).exists()]
    found = [Finding(1, place, "missing in the backup", _COPY_AGAIN) for place in missing]
    found += invariants.hashes(places, lambda done, _: progress("hashing", done, len(places)))
    for finding in found:
        named = _named(facts, replace(finding, fix=_COPY_AGAIN), Path(finding.where).stem)
        report.findings.append(named)


def _named(facts: Manifest, finding: Finding, sha256: str) -> Finding:
    return invariants.naming(finding, damage.on_object(facts, f"sha256:{sha256}"))


# ── copying ───────────────────────────────────────────────────────────────────────────────────


class _Copy:
    """From one lake to another: what is there stays, what is new is checked on the way."""

    def __init__(self, source: Lake, target: Lake, report: Report, progress: Progress) -> None:
        self._source = source
        self._target = target
        self._report = report
        self._progress = progress

    def objects(self, extent: _Extent) -> list[str]:
        """Copy the objects that are not there, durably; those that could not be had."""
        self._report.seq, self._report.objects = extent.seq, len(extent.objects)
        self._report.size_bytes = sum(extent.objects.values())
        there = set(self._target.object_names())
        wanted = [sha256 for sha256 in extent.objects if sha256 not in there]
        absent: list[str] = []
        with ThreadPoolExecutor(_COPIERS) as pool:
            for at in range(0, len(wanted), _CHUNK):
                chunk = wanted[at : at + _CHUNK]
                done = dict(zip(chunk, pool.map(self._object, chunk), strict=True))
                new = [sha256 for sha256, is_there in done.items() if is_there]
                for directory in {self._target.object_path(sha256).parent for sha256 in new}:
                    disk.sync_dir(directory)
                absent += [sha256 for sha256 in chunk if not done[sha256]]
                self._report.copied_objects += len(new)
                self._report.copied_bytes += sum(extent.objects[sha256] for sha256 in new)
                self._progress("copying objects", at + len(chunk), len(wanted))
        disk.sync_dir(self._target.objects)
        return absent

    def _object(self, sha256: str) -> bool:
        """From its place, or from the trash, where a purge may have put it just now."""
        target = self._target.object_path(sha256)
        target.parent.mkdir(exist_ok=True)
        for source in (self._source.object_path(sha256), self._source.in_trash(sha256)):
            with suppress(FileNotFoundError):
                if source is not None and copied(source, target, sha256):
                    return True
        return False

    def records(self, extent: _Extent, since: Note) -> None:
        """Copy the records that follow on `since`, each after the one before it."""
        end = (since.seq, since.head)
        with reading_much():
            for commit in Journal(self._source).after(*end):
                if commit.record.seq > extent.seq:
                    break
                self._record(commit.record.seq, commit.sha256)
                end = (commit.record.seq, commit.sha256)
                self._progress("copying records", commit.record.seq, extent.seq)
        if end != (extent.seq, extent.head):
            where = str(self._source.record_path(extent.seq))
            raise Damaged(f"record {extent.seq} is not the one that was indexed", where=where)
        disk.sync_dir(self._target.journal)

    def _record(self, seq: int, sha256: str) -> None:
        path = self._target.record_path(seq)
        if _sha256(path) == sha256:
            return  # from a backup that did not come to its end
        if path.exists():
            raise _another_history(path, f"it has another record {seq}")
        data = self._source.record_path(seq).read_bytes()
        if disk.sha256_of(data) != sha256:
            where = str(self._source.record_path(seq))
            raise Damaged(f"record {seq} changed while it was read", where=where)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        disk.write_durable(temporary, data, 0o444)
        disk.replace(temporary, path)
        self._report.copied_records += 1

    def living(self) -> _Extent:
        """Copy the objects of a lake that is in use: the extent to which they are whole.

        Commits that follow do not need what was purged meanwhile and is gone from the trash, too:
        then the backup goes as far as those.
        """
        for _ in range(_ROUNDS):
            extent = _now(self._source)
            absent = self.objects(extent)
            needed = _now(self._source).objects
            if all(sha256 in needed for sha256 in absent):
                break
        if absent:
            with closing(_manifest(self._source)) as manifest:
                self.report_absent(absent, manifest, _MEND_THE_LAKE)
        return extent

    def report_absent(self, absent: list[str], facts: Manifest, fix: str) -> None:
        """Objects that are missing, or whose bytes are not what they were, by what stands on them."""
        for sha256 in absent:
            where = str(self._source.object_path(sha256))
            finding = Finding(1, where, "missing or damaged, and not copied", fix)
            self._report.findings.append(_named(facts, finding, sha256))


def _manifest(lake: Lake) -> Manifest:
    try:
        return Manifest.read(lake)
    except BrokenManifestError as error:
        raise Unavailable(str(error), code=Code.E508, where=str(lake.manifest_db)) from None


def _now(lake: Lake) -> _Extent:
    with closing(_manifest(lake)) as manifest:
        return _Extent.of(manifest)


@contextmanager
def _noted(lake: Lake, note: Note) -> Iterator[Manifest]:
    """A manifest of what a backup holds, made from its journal. Raises `Damaged`."""
    with (
        tempfile.TemporaryDirectory(prefix="bus-backup-") as folder,
        closing(Twin(lake, Path(folder))) as twin,
    ):
        twin.grow(note.seq)
        if twin.manifest.applied != (note.seq, note.head):
            where = str(lake.record_path(note.seq))
            raise Damaged(f"record {note.seq} is not the one that was backed up", where=where)
        yield twin.manifest


# ── the note, and the place ───────────────────────────────────────────────────────────────────


def _begin(target: Lake, source: Lake) -> Note:
    """The note of the backup that is there, or of one that begins; its directories are there."""
    for directory in (target.objects, target.journal):
        directory.mkdir(parents=True, exist_ok=True)
        for temporary in directory.glob("**/.*"):
            disk.remove(temporary)  # of one that was killed
    for directory in (target.store, target.bus, target.root, target.root.parent):
        disk.sync_dir(directory)
    if not target.backup_note.exists():
        note = Note(created_at_utc=iso(utc_now()), lake=str(source.root))
        _write_note(target, note)
        return note
    note = _note(target)
    if note.seq:
        record = Journal(source).read(note.seq)
        if record is None or record.sha256 != note.head:
            raise _another_history(target.root, f"record {note.seq} is not that of the lake")
    return note


def _finish(target: Lake, source: Lake, extent: _Extent, config: Path | None) -> None:
    note = Note(
        seq=extent.seq,
        head=extent.head,
        created_at_utc=iso(utc_now()),
        lake=str(source.root),
        objects=len(extent.objects),
        size_bytes=sum(extent.objects.values()),
        config=config.name if config else None,
        config_sha256=_sha256(config) if config else None,
    )
    _write_note(target, note)


def _write_note(target: Lake, note: Note) -> None:
    temporary = target.backup_note.with_name(f".{target.backup_note.name}")
    disk.write_plain(temporary, note.to_bytes())
    disk.publish_file(temporary, target.backup_note)


def _copy_config(config: Path | None, folder: Path) -> Path | None:
    """The settings file, in a lake's or a backup's own directory."""
    if config is None:
        return None
    target = folder / config.name
    if target != config:
        temporary = folder / f".{config.name}"
        mode = stat.S_IMODE(config.stat().st_mode)  # it may hold a password
        disk.remove(temporary)
        disk.write_plain(temporary, config.read_bytes(), mode)
        disk.publish_file(temporary, target)
    return target


def _note(lake: Lake) -> Note:
    try:
        return Note.from_bytes(lake.backup_note.read_bytes())
    except (OSError, ValidationError) as error:
        message = f"no backup: {str(error).splitlines()[0]}"
        raise Refused(message, code=Code.E513, where=str(lake.backup_note)) from None


def read_note(lake: Lake) -> Note:
    """What the backup at that place holds. Raises `Refused` (E513) when there is none."""
    note = _note(lake)
    if note.seq == 0:
        message = "the first backup into this place has not come to its end"
        raise Refused(message, code=Code.E513, where=str(lake.root))
    return note


def _check_place(lake: Lake, target: Lake) -> None:
    """A backup goes to a place of its own: empty, or with a backup in it."""
    if target.root == lake.root or target.root.is_relative_to(lake.root):
        message = "a backup within the lake would be lost with it"
        raise Refused(message, code=Code.E513, where=str(target.root))
    if not target.backup_note.exists() and _names(target.root):
        raise Refused("something else lies there", code=Code.E513, where=str(target.root))


def _check_empty(target: Lake) -> None:
    """A restore makes a lake where there is none yet, but for directories and a settings file."""
    if target.backup_note.exists() and _note(target).seq == 0:
        return  # one that was interrupted
    states = [target.state_dir(state) for state in JobState if state is not JobState.UNKNOWN]
    for folder in (target.journal, target.objects, *states):
        if _names(folder):
            message = f"there is a lake already: {folder} is not empty"
            raise Refused(message, code=Code.E513, where=str(target.root))
    if target.backup_note.exists():
        raise Refused("there is a backup already", code=Code.E513, where=str(target.root))


def _names(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


@contextmanager
def _alone(target: Lake) -> Iterator[None]:
    """Nobody else writes to the place meanwhile."""
    target.root.mkdir(parents=True, exist_ok=True)
    lock = disk.Lock.try_acquire(target.backup_lock)
    if lock is None:
        raise LakeBusy("another backup or restore is at work there", where=str(target.root))
    try:
        yield
    finally:
        lock.release(unlink=True)


@contextmanager
def _timed() -> Iterator[Report]:
    started_s = time.monotonic()
    report = Report()
    yield report
    report.seconds = round(time.monotonic() - started_s, 3)


def _another_history(where: Path, why: str) -> Refused:
    hint = "Back up into another place; this one belongs to another lake, or to what it was before."
    return Refused(
        f"the backup holds another history: {why}", code=Code.E513, where=str(where), hint=hint
    )


def _sha256(path: Path) -> str | None:
    """Hex SHA-256 of a small file; None where there is none."""
    try:
        return disk.sha256_of(path.read_bytes())
    except FileNotFoundError:
        return None


def _make_views(target: Lake) -> None:
    """Of a restored lake, by its own settings."""
    settings = Settings.load(target.root)
    lake = Lake(target.root, settings.public_lake)
    lake.create()
    disk.replace_view(lake.restored_mark, iso(utc_now()).encode())
    with Writer.open(lake, settings, Registry.load(settings)) as writer:
        while writer.drain().more:
            pass
