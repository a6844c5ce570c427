"""Step 5: judged files become objects, named by their SHA-256, durable before anyone relies on them.

Works for a group of jobs at a time, because syncs are what it costs: first every file, then every
link, then each directory once. All of it may be repeated after a crash at any point.
"""

from __future__ import annotations

import errno
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bus import disk
from bus.errors import Code, Unavailable
from bus.hashing import file_hash

if TYPE_CHECKING:
    from collections.abc import Callable

    from bus.lake import Lake


@dataclass(frozen=True, slots=True)
class JudgedFile:
    """The very file that was read: `changed_ns` is its ctime, which any later change moves."""

    relpath: str
    sha256: str
    device: int
    inode: int
    size_bytes: int
    changed_ns: int

    @classmethod
    def of(cls, fd: int, relpath: str, sha256: str) -> JudgedFile:
        """The file behind an open descriptor."""
        seen = os.fstat(fd)
        return cls(relpath, sha256, seen.st_dev, seen.st_ino, seen.st_size, seen.st_ctime_ns)


class ChangedError(Exception):
    """A file is not the one that was judged any more: judge the job again."""


class SyncError(Unavailable):
    """An fsync failed. The kernel may have dropped the pages: this process must end (FAULTS 0.4)."""

    default_code = Code.E505


def synced(sync: Callable[[Any], None], where: Any) -> None:
    """Call a sync function of `bus.disk` on its one argument, or list of them.

    Raises `SyncError`, which nobody may swallow.
    """
    try:
        sync(where)
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        code = Code.E504 if full else Code.E505
        place = where if isinstance(where, str | Path) else where[0]
        raise SyncError(f"fsync: {error.strerror}", code=code, where=str(place)) from error


def copied(source: Path, target: Path, sha256: str) -> bool:
    """Make `target` a copy of an object, whatever is there; False when `source` is not that object.

    Its bytes are durable, and read back, before it has its name; the name is durable when the
    caller has synced the directory.
    """
    name = f".{secrets.token_hex(8)}"
    temporary = target.parent / name
    try:
        disk.copy_file(source, temporary)
        if file_hash(temporary) != f"sha256:{sha256}":
            return False
        disk.freeze(temporary)
        disk.sync_file(temporary)
        disk.replace(temporary, target)
    finally:
        disk.remove(temporary)
    return True


class Shelf:
    """The objects of one group of jobs: `take` each job, `sync_files`, `link` each, `sync`; `close`."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._taken: list[int] = []
        self._touched: set[Path] = set()
        self._proven: set[str] = set()

    def take(self, directory: Path, files: list[JudgedFile]) -> None:
        """Hold a job's files for `sync_files`. Raises `ChangedError` when one is not as judged."""
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for file in files:
                self._taken.append(_unchanged(directory_fd, file))
                if len(self._taken) == disk.SYNCED_AT_ONCE:
                    self.sync_files()
        finally:
            os.close(directory_fd)

    def sync_files(self) -> None:
        """Make the files of all jobs that were taken durable. Raises `SyncError`."""
        try:
            synced(disk.sync_fds, self._taken)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of files that were taken and not synced."""
        while self._taken:
            os.close(self._taken.pop())

    def link(self, directory: Path, files: list[JudgedFile]) -> None:
        """Give a job's files their names in objects/; one that exists is proven by its hash."""
        for file in files:
            target = self._lake.object_path(file.sha256)
            self._make_room(target.parent)
            while not self._has_name(directory / file.relpath, file, target):
                pass  # the writer purged the one that was there while we looked: now ours has room
            self._proven.add(file.sha256)
            self._touched.add(target.parent)

    def _has_name(self, source: Path, file: JudgedFile, target: Path) -> bool:
        """Make `target` the object, or see that it is one; False when it has just gone."""
        if disk.link_new(source, target):
            self._check(file, target)
            disk.crash_point("store.linked")
        elif file.sha256 not in self._proven:
            try:
                self._prove(source, file.sha256)
            except FileNotFoundError:
                return False
        return True

    def sync(self) -> None:
        """Make every name durable: each directory once. Raises `SyncError`."""
        synced(disk.sync_all, sorted(self._touched, reverse=True))

    def _make_room(self, directory: Path) -> None:
        """Create `objects/<ab>` where it is missing; objects/ itself must then be synced too."""
        if directory in self._touched or directory.is_dir():
            return
        directory.mkdir(exist_ok=True)
        self._touched.add(directory.parent)

    def _check(self, file: JudgedFile, target: Path) -> None:
        """The link was made by name: it must be the inode that was hashed."""
        seen = target.stat()
        if (seen.st_dev, seen.st_ino) != (file.device, file.inode):
            disk.move(target, self._quarantined(file.sha256))
            raise ChangedError(file.relpath)

    def _prove(self, source: Path, sha256: str) -> None:
        """An object of that name exists: its bytes must be what the name says, and durable.

        A damaged one is kept in quarantine/, and ours takes its name in one step. Raises
        FileNotFoundError when the writer has purged it meanwhile.
        """
        target = self._lake.object_path(sha256)
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:  # synced by descriptor: the writer may take the name away at any moment
            if file_hash(fd) == f"sha256:{sha256}":
                synced(disk.sync_fds, [fd])
                target.stat()
                return
        finally:
            os.close(fd)
        disk.link_new(target, self._quarantined(sha256))
        synced(disk.sync_dir, self._lake.quarantine)
        name = f".{secrets.token_hex(8)}"
        temporary = target.parent / name
        disk.link_new(source, temporary)
        disk.replace(temporary, target)

    def _quarantined(self, sha256: str) -> Path:
        name = f"{sha256}.{secrets.token_hex(4)}"
        return self._lake.quarantine / name


def _unchanged(directory_fd: int, file: JudgedFile) -> int:
    """The very file that was judged, open."""
    try:
        fd = disk.open_foreign(directory_fd, file.relpath)
    except FileNotFoundError:
        raise ChangedError(file.relpath) from None
    if JudgedFile.of(fd, file.relpath, file.sha256) != file:
        os.close(fd)
        raise ChangedError(file.relpath)
    return fd
