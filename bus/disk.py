"""Durable file operations: the only module that calls fsync, link and rename.

Everything here keeps one promise each, named in its docstring. An fsync that fails is never
retried: the kernel may have dropped the pages, so the caller's process must end (FAULTS 0.4).

Crash points are places where a test may kill the process: ``BUS_CRASH_AT=<name>[:n]`` ends it
with SIGKILL the n-th time the point is reached. In production they cost one dictionary look-up.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import stat
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Every crash point, by the step of the commit protocol (DESIGN section 5) that it follows.
CRASH_POINTS: dict[str, str] = {
    "stage.files": "1: the Parquet files are written, not synced, no manifest yet",
    "stage.manifest": "1: files, manifest and COMMIT are synced, the job is still in staging",
    "stage.renamed": "1: the job lies in inbox/, which is not synced yet",
    "stage.done": "1: the job is acknowledged, nobody was told",
    "claim.locked": "3: the claim is held, the job still lies in inbox/",
    "claim.renamed": "3: the job lies in work/",
    "validate.done": "4: everything was read, nothing stored",
    "store.linked": "5: an object is linked, its directory not synced",
    "store.done": "5: all objects of the job are durable, no verdict",
    "verdict.written": "6: verdict.json is durable, the job still lies in work/",
    "verdict.ready": "6: the job lies in ready/, the writer was not told",
    "commit.decided": "7: decisions are made, nothing is written",
    "commit.written": "8: the record's temporary file is synced, not linked",
    "commit.linked": "8: the record has its number, journal/ is not synced",
    "commit.done": "8: committed, no view knows",
    "index.done": "9: SQLite knows, nobody was answered",
    "answer.written": "10: a receipt is durable, the job still lies in ready/",
    "answer.moved": "10: the job lies in processed/ or rejected/, the rest of the batch does not",
    "answer.done": "10: every job of the batch is answered, views are behind",
    "views.linked": "11: artifact links exist, the catalog is behind",
    "views.built": "11: the catalog's next snapshot is written, not renamed",
    "views.published": "11: the snapshot is published, link trees are behind",
    "checkpoint.filled": "checkpoint: the views are copied into a draft, no document says so",
    "checkpoint.made": "checkpoint: it is there, older ones are too",
    "purge.parted": "purge: run trees show the object no more, it is still in its place",
    "purge.moved": "purge: the object lies in the trash, neither directory is synced",
    "discard.moved": "discard: an answered job lies in the trash, others do not",
    "trash.emptying": "trash: some of what is due is deleted, the rest is not",
    "export.built": "export: the temporary file is complete, not renamed",
}

_crash_at, _, _crash_nth = os.environ.get("BUS_CRASH_AT", "").partition(":")
_crash_countdown = int(_crash_nth or 1)


def crash_point(name: str) -> None:
    """End this process with SIGKILL when ``BUS_CRASH_AT`` names this point; else do nothing."""
    global _crash_countdown  # noqa: PLW0603 - one armed point a process, set by the environment
    if name != _crash_at:
        return
    _crash_countdown -= 1
    if _crash_countdown <= 0:
        os.kill(os.getpid(), signal.SIGKILL)


# ── the device ────────────────────────────────────────────────────────────────────────────────


class Device:
    """The system calls that decide what a power cut leaves. Tests put another in their place."""

    def fsync(self, fd: int) -> None:
        """Make a file's bytes and mode, or a directory's names, durable."""
        os.fsync(fd)

    def fsync_all(self, fds: Sequence[int]) -> None:
        """The same for several files, in any order."""
        for fd in fds:
            self.fsync(fd)

    def write(self, fd: int, data: memoryview) -> int:
        """Write some of `data`; how much."""
        return os.write(fd, data)

    def link(self, source: Path | str, target: Path | str) -> None:
        """Give a file, itself and not what it points to, a second name."""
        os.link(source, target, follow_symlinks=False)

    def rename(self, source: Path | str, target: Path | str) -> None:
        """Give a file or directory another name, in place of whatever file has it."""
        os.replace(source, target)

    def unlink(self, path: Path | str) -> None:
        """Take a file's name away."""
        os.unlink(path)


class Kernel(Device):
    """The real one."""

    def fsync_all(self, fds: Sequence[int]) -> None:
        """All at once: the file system commits what several threads wait for together.

        400 small files: a tenth of the time that one after the other takes (ext4, measured).
        """
        first, *others = fds
        with _threads_lock:
            waiting = [_threads().submit(self.fsync, fd) for fd in others]
        try:
            self.fsync(first)
        finally:
            wait(waiting)  # whatever became of the first: the caller closes the descriptors next
        for done in waiting:
            done.result()


_SYNCING_THREADS = 16
_threads_lock = threading.Lock()


@cache
def _threads() -> ThreadPoolExecutor:
    """They stay, because starting three takes longer than the syncs of three files on an idle disk."""
    return ThreadPoolExecutor(_SYNCING_THREADS, "bus-sync")


def _before_fork() -> None:
    """A child would inherit the pool and none of its threads."""
    _threads_lock.acquire()
    _threads().shutdown()
    _threads.cache_clear()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_threads_lock.release,
    after_in_child=_threads_lock.release,
)

_device: Device = Kernel()


@contextmanager
def using(device: Device) -> Iterator[None]:
    """Let another device stand behind this module, for tests: it may watch, refuse or pretend."""
    global _device  # noqa: PLW0603 - one disk a process
    before, _device = _device, device
    try:
        yield
    finally:
        _device = before


# ── sync ──────────────────────────────────────────────────────────────────────────────────────

#: Descriptors that are open at a time for it.
SYNCED_AT_ONCE = 128


def sync_fds(fds: Sequence[int]) -> None:
    """Make the bytes behind open descriptors durable, all at once."""
    if fds:
        _device.fsync_all(fds)


def sync_file(path: Path | str) -> None:
    """Make a file's bytes durable, whoever wrote them."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _device.fsync(fd)
    finally:
        os.close(fd)


def sync_all(paths: Sequence[Path | str]) -> None:
    """Make several files (their bytes) or directories (the names in them) durable, in any order."""
    for first in range(0, len(paths), SYNCED_AT_ONCE):
        with ExitStack() as stack:
            fds = []
            for path in paths[first : first + SYNCED_AT_ONCE]:
                fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
                stack.callback(os.close, fds[-1])
            sync_fds(fds)


def sync_dir(path: Path | str) -> None:
    """Make the names in a directory durable (creations, links, renames into and out of it)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _device.fsync(fd)
    finally:
        os.close(fd)


def read(path: Path | str) -> bytes:
    """All bytes of a small file; never through a link, and nothing else but a file keeps it waiting."""
    with open(path, "rb", buffering=0, opener=_opened_strictly) as file:
        return file.readall()


def _opened_strictly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def sha256_of(data: bytes) -> str:
    """Hex SHA-256 of bytes in memory."""
    return hashlib.sha256(data).hexdigest()


# ── write and publish ─────────────────────────────────────────────────────────────────────────


def write_durable(path: Path | str, data: bytes, mode: int = 0o644) -> None:
    """Create or replace `path` with `data` and sync it; the name is durable after `sync_dir`."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        _write_all(fd, data)
        _device.fsync(fd)
    finally:
        os.close(fd)


def write_plain(path: Path | str, data: bytes, mode: int = 0o644) -> None:
    """Create or replace `path` with `data` without syncing: for views, which can be rebuilt."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        _write_all(fd, data)
    finally:
        os.close(fd)


def write_own(path: Path | str, data: bytes, mode: int = 0o644) -> None:
    """Write a file of ours into a directory that somebody else may write to; not synced.

    What lies under the name is replaced, never written to: a link there may lead anywhere.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        temporary = f"{path}.{secrets.token_hex(8)}.tmp"
        write_own(temporary, data, mode)
        if stat.S_ISDIR(os.lstat(path).st_mode):
            _device.rename(path, f"{temporary}.old")
        _device.rename(temporary, path)
        return
    try:
        _write_all(fd, data)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[_device.write(fd, view) :]


def replace_view(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a view's file by rename, so that readers see the old or the new, never a half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write_plain(temporary, data, mode)
    _device.rename(temporary, path)


def publish_file(temporary: Path, final: Path) -> None:
    """Sync a finished temporary file and rename it over `final`, durably."""
    sync_file(temporary)
    _device.rename(temporary, final)
    sync_dir(final.parent)


def show_file(temporary: Path, final: Path) -> None:
    """Rename a view's finished file over `final`, and make it durable when readers have it already.

    A power cut in between may leave a torn file there: only for what is made anew at every start.
    """
    _device.rename(temporary, final)
    sync_file(final)
    sync_dir(final.parent)


def link_new(source: Path | str, target: Path | str) -> bool:
    """Give `source` a second name that must not exist yet; False when the name is taken.

    Atomic: of many callers with one `target`, exactly one gets True.
    """
    try:
        _device.link(source, target)
    except FileExistsError:
        return False
    return True


def link_or_copy(source: Path | str, target: Path | str) -> bool:
    """Make a view's file `target` show `source`: hard link, or a copy where links run out.

    True when something was made, False when `target` exists. ext4 allows 65,000 names a file, and
    one object may serve more artifacts than that (empty slices), hence the copy.
    """
    try:
        _device.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in {errno.EMLINK, errno.EXDEV, errno.EPERM}:
            raise
        directory, name = os.path.split(target)
        temporary = Path(directory, f".{name}.{os.getpid()}.tmp")
        copy_file(Path(source), temporary)
        _device.rename(temporary, target)
    return True


_FICLONE = 0x40049409


def copy_file(source: Path, target: Path, *, new: bool = False) -> None:
    """Copy bytes, sharing extents where the file system can (reflink); not synced.

    `new`: where others may write too; raises FileExistsError instead of following a link.
    """
    with source.open("rb") as reader, target.open("xb" if new else "wb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            shutil.copyfileobj(reader, writer, 1 << 20)


def copy_descriptor(source_fd: int, target: Path) -> None:
    """Copy all bytes behind an open descriptor, which stays open where it is; not synced.

    For files whose locks would be dropped if a second descriptor of this process were closed.
    """
    size, done = os.fstat(source_fd).st_size, 0
    with target.open("wb") as writer:
        while done < size:
            count = os.copy_file_range(source_fd, writer.fileno(), size - done, done)
            if count == 0:  # a file system that cannot copy within the kernel, or a shrunk file
                writer.seek(done)
                writer.write(os.pread(source_fd, size - done, done))
                return
            done += count


def move(source: Path | str, target: Path | str) -> None:
    """Rename within the lake. A directory is never moved onto a non-empty one (OSError)."""
    _device.rename(source, target)


def replace(source: Path | str, target: Path | str) -> None:
    """Rename a file over another."""
    _device.rename(source, target)


def remove(path: Path | str) -> None:
    """Remove a file; a file that is not there is fine."""
    with suppress(FileNotFoundError):
        _device.unlink(path)


def remove_tree(path: Path) -> None:
    """Remove a directory and all in it; one that is not there is fine."""
    with suppress(FileNotFoundError):
        shutil.rmtree(path)


def size_of(path: Path | str) -> int:
    """Bytes of a file, or of all files below a directory; what vanishes meanwhile does not count."""
    try:
        if not os.path.isdir(path) or os.path.islink(path):
            return os.lstat(path).st_size
        with os.scandir(path) as entries:
            return sum(
                size_of(entry.path)
                if entry.is_dir(follow_symlinks=False)
                else entry.stat(follow_symlinks=False).st_size
                for entry in entries
            )
    except (FileNotFoundError, NotADirectoryError):
        return 0


def changed_at_s(path: Path, gone_s: float) -> float:
    """When a file was last changed in any way; `gone_s` when it has just been removed."""
    try:
        return path.lstat().st_ctime
    except FileNotFoundError:
        return gone_s


def boot_id() -> str:
    """Names the time since the machine started; empty where the kernel does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


# ── open and lock ─────────────────────────────────────────────────────────────────────────────


def open_foreign(directory_fd: int, relpath: str) -> int:
    """Open a file that a producer wrote, below `directory_fd`, for reading.

    Every component is opened without following links, and the last one without blocking (a FIFO
    would hang us). Raises OSError (ELOOP or ENOTDIR for a link, ENOENT), or IsADirectoryError /
    `NotRegular` for anything but a regular file.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    *parents, name = relpath.split("/")
    at = os.dup(directory_fd)
    try:
        for part in parents:
            deeper = os.open(part, flags | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = deeper
        fd = os.open(name, flags | os.O_NONBLOCK, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotRegularError(relpath)
    return fd


class NotRegularError(OSError):
    """A directory, FIFO, socket or device where a regular file must be."""


#: What open() says about the thing that lies there (a link, a socket, a forbidden file …); any
#: other errno is a fault of ours: a full table of descriptors, a failing disk.
FOREIGN_ERRNOS = frozenset(
    {
        *(errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENODEV),
        *(errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EINVAL, errno.ETXTBSY),
    }
)


def make_read_only(fd: int) -> bool:
    """Take away everybody's right to open the file for writing; False when it is not our file.

    A file that is read-only already stays untouched, so that its ctime still tells its last change.
    """
    if stat.S_IMODE(os.fstat(fd).st_mode) == 0o444:  # noqa: PLR2004 - r--r--r--
        return True
    try:
        os.fchmod(fd, 0o444)
    except PermissionError:
        return False
    return True


def freeze(path: Path | str) -> bool:
    """`make_read_only` for a file that nobody has open."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return make_read_only(fd)
    finally:
        os.close(fd)


def open_up(directory: Path | str) -> None:
    """Give the owner all rights to a directory, never through a link (FOREIGN_ERRNOS apply)."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.chmod(f"/proc/self/fd/{fd}", 0o700)
    finally:
        os.close(fd)


def try_read_lease(fd: int) -> bool:
    """Whether nobody has the file open for writing right now (F_SETLEASE, released at once).

    Where leases are not to be had (not our file, a network file system) the answer is True: the
    hash over the same descriptor is then the only guard.
    """
    try:
        # Whoever opens the file for writing in this moment breaks the lease, and the kernel tells
        # us by a signal: SIGIO would end the process, SIGURG is ignored unless someone asks for it.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno != errno.EAGAIN
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


class Lock:
    """An exclusive flock on a file, freed by the kernel when the holder dies."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def try_acquire(cls, path: Path) -> Lock | None:
        """The lock, or None while someone alive holds it."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        lock = cls(path, fd)
        if lock.is_ours():
            return lock
        lock.release()  # the file was unlinked between open and flock: the lock guards nothing
        return None

    def is_ours(self) -> bool:
        """Whether the path still names the file we locked (nobody deleted or replaced it)."""
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        here = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def fileno(self) -> int:
        """The descriptor: whoever inherits it holds the lock too."""
        return self._fd

    def read(self) -> bytes:
        """What the lock file holds."""
        return os.pread(self._fd, 1 << 16, 0)

    def write(self, data: bytes) -> None:
        """Replace what the lock file holds (not synced)."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, data, 0)

    def release(self, *, unlink: bool = False) -> None:
        """Give the lock up; `unlink` removes the file first, while we still hold it."""
        if unlink and self.is_ours():
            remove(self.path)
        os.close(self._fd)


def is_locked(path: Path) -> bool:
    """Whether someone alive holds the lock; a look keeps nobody from taking it but for a moment."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextmanager
def locked(path: Path) -> Iterator[Lock | None]:
    """`Lock.try_acquire` for a with-block."""
    lock = Lock.try_acquire(path)
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()
