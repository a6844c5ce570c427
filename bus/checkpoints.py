"""Checkpoints: views of the journal up to one commit, so that a rebuild need not begin at record 1.

A checkpoint is a directory `store/checkpoints/<seq>/`: a copy of the manifest as of commit `seq`, a
copy of the catalog's snapshot that was published then, and a document with the SHA-256 of both and
of the journal's record `seq`. It is made beside the writer's work when enough is new, appears by one
rename, and is never changed. The newest two are kept.

It is never relied on unseen: before a rebuild starts from one, its bytes are hashed, and record
`seq` must be the one that the checkpoint speaks of. One with anything wrong is passed over, an older
one is tried, and at last record 1. So nothing here is synced, and no commit depends on it: a power
cut costs at most the newest one, which the first writer after it takes away.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Literal

import structlog
from pydantic import Field, StringConstraints, ValidationError

from bus import disk
from bus.hashing import file_hash
from bus.journal import GENESIS
from bus.lake import CHECKPOINT
from bus.manifest import SCHEMA_VERSION, BrokenManifestError, Manifest
from bus.model import Document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bus.journal import Journal
    from bus.lake import Lake

log = structlog.get_logger("bus.checkpoints")

_KEPT = 2
#: The next checkpoint waits until so large a share of everything is new: what checkpoints cost an
#: artifact is then bounded, and so is what a rebuild reads beyond the newest.
_NEW_SHARE = 1 / 20
_SPARE_BYTES = 1 << 30

# In no other spelling: every byte of the document counts.
RecordHash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileHash = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class Checkpoint(Document):
    """checkpoint.json. Nothing stands in it that is not checked against something else.

    entries   jobs and artifacts that the manifest's copy holds
    files     name -> file hash; the manifest's copy, and the catalog's where one was published
    """

    version: Literal[1] = 1
    seq: int = Field(ge=1)
    record_sha256: RecordHash
    schema_version: int
    entries: int
    files: dict[str, FileHash]


class UnusableError(Exception):
    """This checkpoint cannot be relied on, or says nothing to this version; the text says why."""


# ── finding ───────────────────────────────────────────────────────────────────────────────────


def read(lake: Lake, seq: int) -> Checkpoint:
    """The document of one checkpoint. Raises `UnusableError`."""
    path = lake.checkpoint_path(seq) / CHECKPOINT
    try:
        found = Checkpoint.from_bytes(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UnusableError(f"unreadable: {str(error).partition(chr(10))[0]}") from None
    if found.seq != seq:
        raise UnusableError(f"it says it is {found.seq}")
    return found


def file_of(lake: Lake, found: Checkpoint, name: str) -> Path:
    """One of its files, hashed just now. Raises `UnusableError`."""
    path = lake.checkpoint_path(found.seq) / name
    try:
        seen = file_hash(path)
    except OSError as error:
        raise UnusableError(f"{name}: {error.strerror}") from None
    if seen != found.files.get(name):
        raise UnusableError(f"the bytes of {name} have changed")
    return path


def announced(lake: Lake, journal: Journal, seq: int) -> Checkpoint:
    """One whose document and whose commit were looked at. Raises `UnusableError`."""
    found = read(lake, seq)
    if (sha256 := journal.sha256(seq)) != found.record_sha256:
        what = "is another one" if sha256 else "is not in the journal"
        raise UnusableError(f"record {seq} {what}")
    return found


def verified(lake: Lake, journal: Journal, seq: int) -> Checkpoint:
    """One of which everything was looked at but its rows. Raises `UnusableError`."""
    found = announced(lake, journal, seq)
    for name in {lake.manifest_db.name, *found.files}:
        file_of(lake, found, name)
    with closing(Manifest.read_copy(lake.checkpoint_path(seq) / lake.manifest_db.name)) as copy:
        for what, said, held in (
            ("commit", (found.seq, found.record_sha256), copy.applied),
            ("version of the tables", found.schema_version, copy.meta()["schema_version"]),
            ("number of entries", found.entries, copy.entries),
        ):
            if said != held:
                raise UnusableError(f"the {what} is {held} in the copy and {said} in the document")
    return found


def _usable(lake: Lake, journal: Journal) -> Iterator[Checkpoint]:
    """Those of this version whose commit is in the journal, newest first; others are logged."""
    for seq in lake.checkpoint_seqs():
        try:
            found = announced(lake, journal, seq)
            if found.schema_version != SCHEMA_VERSION:
                raise UnusableError(f"made with tables of version {found.schema_version}")  # noqa: TRY301 - one road
        except UnusableError as reason:
            _ignore(lake, seq, reason)
        else:
            yield found


def _ignore(lake: Lake, seq: int, reason: Exception) -> None:
    log.warning("checkpoint_ignored", checkpoint=str(lake.checkpoint_path(seq)), reason=str(reason))


# ── going on from one ─────────────────────────────────────────────────────────────────────────


def open_manifest(lake: Lake, journal: Journal) -> Manifest:
    """The manifest that a writer goes on with: the live one, if it is sound and continues the journal.

    Else another begins (`begin_manifest`).
    """
    if not lake.manifest_db.exists():
        return begin_manifest(lake, journal)
    try:
        manifest = Manifest.open(lake)
        if _continues(manifest, lake, journal):
            return manifest
        manifest.close()
        reason = "it does not continue the journal"
    except BrokenManifestError as error:
        reason = str(error)
    log.warning("manifest_rebuilt", reason=reason)
    return begin_manifest(lake, journal)


def _continues(manifest: Manifest, lake: Lake, journal: Journal) -> bool:
    meta = manifest.meta()
    if meta.get("schema_version") != SCHEMA_VERSION:
        return False
    if meta["objects_root"] != lake.public(lake.objects):
        return False
    seq, sha256 = manifest.applied
    if seq == 0:
        return sha256 == GENESIS
    newest = journal.read(seq)  # read, so that a newer release's is told as such
    return newest is not None and newest.sha256 == sha256


def begin_manifest(lake: Lake, journal: Journal, *, from_journal: bool = False) -> Manifest:
    """One that takes the live one's place when it is finished: from a checkpoint, or from nothing.

    Nobody knows then whether links and trees show what it holds: their mark is taken away.
    """
    disk.remove(lake.boot_mark)
    for found in () if from_journal else _usable(lake, journal):
        try:
            path = file_of(lake, found, lake.manifest_db.name)
            manifest = Manifest.begin(lake, path)
        except (UnusableError, BrokenManifestError) as reason:
            _ignore(lake, found.seq, reason)
            continue
        log.info("checkpoint_taken", seq=found.seq)
        return manifest
    return Manifest.begin(lake)


def seed_catalog(lake: Lake, journal: Journal) -> None:
    """Where the catalog's working copy is missing, let it begin with a checkpoint's."""
    if lake.catalog_work.exists():
        return
    for found in _usable(lake, journal):
        if lake.catalog_db.name not in found.files:
            continue
        try:
            path = file_of(lake, found, lake.catalog_db.name)
        except UnusableError as reason:
            _ignore(lake, found.seq, reason)
            continue
        lake.catalog_work.parent.mkdir(parents=True, exist_ok=True)
        draft = lake.catalog_work.with_suffix(".begun")
        disk.copy_file(path, draft)
        disk.replace(draft, lake.catalog_work)
        return


# ── making one ────────────────────────────────────────────────────────────────────────────────


def make(lake: Lake) -> int:
    """Make a checkpoint of the manifest as it stands, while its writer goes on; the commit it is of.

    Raises OSError, `BrokenManifestError` or `Unavailable` when it cannot be made; nothing stays then.
    """
    draft = lake.checkpoint_draft(secrets.token_hex(4))
    draft.mkdir(parents=True)
    try:
        found = _fill(lake, draft)
        disk.crash_point("checkpoint.filled")
        disk.write_plain(draft / CHECKPOINT, found.to_bytes(), mode=0o444)
        final = lake.checkpoint_path(found.seq)
        disk.remove_tree(final)  # one that was there already: this one is known to be right
        disk.move(draft, final)
        disk.crash_point("checkpoint.made")
    finally:
        disk.remove_tree(draft)
    for seq in lake.checkpoint_seqs()[_KEPT:]:
        disk.remove_tree(lake.checkpoint_path(seq))
    return found.seq


def _fill(lake: Lake, draft: Path) -> Checkpoint:
    """Copy the views into a draft. The catalog first, so that it never is ahead of the manifest."""
    catalog, copy = draft / lake.catalog_db.name, draft / lake.manifest_db.name
    _check_room(lake)
    if lake.catalog_db.exists():
        disk.copy_file(lake.catalog_db, catalog)
    with closing(Manifest.read(lake)) as live:
        live.copy(copy)
    for path in draft.iterdir():
        disk.freeze(path)
    with closing(Manifest.read_copy(copy)) as copied:
        seq, sha256 = copied.applied
        return Checkpoint(
            seq=seq,
            record_sha256=sha256,
            schema_version=copied.meta()["schema_version"],
            entries=copied.entries,
            files={path.name: file_hash(path) for path in sorted(draft.iterdir())},
        )


def _check_room(lake: Lake) -> None:
    """A copy must never be what fills a disk: as much again stays free, and a gigabyte."""
    views = [path for path in (lake.manifest_db, lake.catalog_db) if path.exists()]
    needed_bytes = sum(path.stat().st_size for path in views)
    if shutil.disk_usage(lake.checkpoints).free < 2 * needed_bytes + _SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(lake.checkpoints))


class Checkpointer:
    """Looks after the checkpoints for a writer, in a thread of its own: makes them, when enough is new.

    `after_a_boot`: a power cut may have torn some, which go.
    """

    def __init__(self, lake: Lake, journal: Journal, every: int, *, after_a_boot: bool) -> None:
        self._lake = lake
        self._journal = journal
        self._every = every
        self._thread: threading.Thread | None = None
        for draft in lake.checkpoint_drafts():
            disk.remove_tree(draft)  # by a writer that was killed
        self._held = max(map(self._entries, lake.checkpoint_seqs()), default=0)
        if after_a_boot:
            self._start(self._weed)

    def _entries(self, seq: int) -> int:
        try:
            found = read(self._lake, seq)
        except UnusableError:  # told by whoever would use it
            return 0
        return found.entries if found.schema_version == SCHEMA_VERSION else 0

    def look(self, manifest: Manifest) -> None:
        """Begin a checkpoint if one is due; whatever becomes of it, the next follows as much later."""
        entries = manifest.entries
        new = entries - self._held
        if new < max(self._every, entries * _NEW_SHARE) or self._is_at_work():
            return
        self._held = entries
        self._start(self._make)

    def _start(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work, name="checkpoints")
        self._thread.start()

    def _is_at_work(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _make(self) -> None:
        try:
            log.info("checkpoint_made", seq=make(self._lake))
        except Exception as error:  # noqa: BLE001 - it is only a view: the next one will do
            log.warning("checkpoint_not_made", reason=str(error))

    def _weed(self) -> None:
        for seq in self._lake.checkpoint_seqs():
            try:
                verified(self._lake, self._journal, seq)
            except (UnusableError, BrokenManifestError) as reason:
                _ignore(self._lake, seq, reason)
                disk.remove_tree(self._lake.checkpoint_path(seq))

    def close(self) -> None:
        """Wait for what is being done."""
        if self._thread is not None:
            self._thread.join()
