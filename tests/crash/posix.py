"""A strict reading of POSIX beside a real directory: every state that a power cut may leave.

`Watched` stands behind `bus.disk` and looks at the tree before and after every operation. A
`Moment` is what is durable at one of them (a file's bytes and mode as of its last fsync, a
directory's names as of the directory's), and everything that came since. `Moment.state` chooses one
disk that a power cut at that moment may leave; `Disk.lay` makes it real. What programs do does not
depend on what fsync did, so a moment may also be asked for as if some fsync had been left out.

What may be lost is more than any file system loses: each name of a directory that was not synced
is there or not, whatever became of its neighbours; bytes that were not synced are there, gone,
zeros, or a mixture; modes likewise. Two things hold, as they do on every file system that has a
log: a rename is one change, so what was renamed has the old name or the new one and never none
(a directory never both), and a directory whose old name is durably gone has its new one durably.

SQLite's fsyncs are its own and do not pass through `bus.disk`: its file is as SQLite left it, its
write-ahead log, which the bus never has synced, may be cut or torn anywhere.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bus import disk

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

#: A file that changed within this time of the look may have changed again in the same tick.
_TICK_NS = 20_000_000
_SQLITE = re.compile(r"/manifest/manifest\.sqlite$")
_SQLITE_LOG = re.compile(r"manifest\.sqlite-wal$")
_NOT_KEPT = re.compile(r"-shm$")
FOR_EVER = 1 << 60


class Known(NamedTuple):
    """A file's bytes and mode at one time."""

    data: bytes
    mode: int


class Since(NamedTuple):
    """What a name stood for, from `time` on: an inode, or None for nothing."""

    inode: int | None
    time: int


class Rename(NamedTuple):
    """One change: `inode` went from one name to another, at `time`."""

    source: tuple[int, str]
    target: tuple[int, str]
    inode: int
    time: int


class Sync(NamedTuple):
    """An fsync: of which inode, by which path below the root, at which time."""

    inode: int
    path: str
    time: int


class Version(NamedTuple):
    """What a file held from `time` on, and what it was called then."""

    known: Known
    time: int
    path: str


Names = dict[int, dict[str, tuple[Since, ...]]]
#: The first is durable (None: nothing of it), the last is what programs see.
Files = dict[int, tuple[Known | None, ...]]


@dataclass(slots=True)
class Watched(disk.Device):
    """A device that notes all that changes below `root`, and every fsync.

    What lies there at the beginning is durable.

    `before` is called before each operation with its name and path.
    """

    root: Path
    before: Callable[[str, str], None] = lambda *_: None
    now: int = 0
    syncs: list[Sync] = field(default_factory=list)
    _names: dict[int, dict[str, list[Since]]] = field(default_factory=dict)
    _files: dict[int, list[Version]] = field(default_factory=dict)
    _directories: dict[int, int] = field(default_factory=dict)  # inode: mode
    _renames: list[Rename] = field(default_factory=list)
    _seen: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _pins: list[int] = field(default_factory=list)
    _root: int = 0
    _began: int = 0

    def __post_init__(self) -> None:
        self._pin(str(self.root))
        self._root = self.root.stat().st_ino
        self.look()
        self._began = self.now

    def close(self) -> None:
        """Let go of the inodes, which were held so that no number is given twice."""
        while self._pins:
            os.close(self._pins.pop())

    # ── operations ────────────────────────────────────────────────────────────────────────────

    def fsync(self, fd: int) -> None:
        path = str(Path(f"/proc/self/fd/{fd}").readlink())
        self._begin("fsync", path)
        self.syncs.append(Sync(os.fstat(fd).st_ino, os.path.relpath(path, self.root), self.now))

    def link(self, source: Path | str, target: Path | str) -> None:
        self._begin("link", str(target))
        super(Watched, self).link(source, target)

    def rename(self, source: Path | str, target: Path | str) -> None:
        self._begin("rename", str(target))
        inode = os.lstat(source).st_ino
        places = self._place(source), self._place(target)
        super(Watched, self).rename(source, target)
        self.look()
        self._renames.append(Rename(*places, inode, self.now))

    def unlink(self, path: Path | str) -> None:
        self._begin("unlink", str(path))
        super(Watched, self).unlink(path)

    def _begin(self, operation: str, path: str) -> None:
        self.look()
        self.before(operation, path)

    @staticmethod
    def _place(path: Path | str) -> tuple[int, str]:
        directory, name = os.path.split(path)
        return Path(directory).stat().st_ino, name

    # ── looking ───────────────────────────────────────────────────────────────────────────────

    def look(self) -> None:
        """Notice every change of the tree since the last look."""
        self.now += 1
        for inode, found in list(self._walk()):
            names = self._names.setdefault(inode, {})
            for name, target in found.items():
                since = names.setdefault(name, [Since(None, 0)])
                if since[-1].inode != target:
                    since.append(Since(target, self.now))
            for name in names.keys() - found.keys():
                if names[name][-1].inode is not None:
                    names[name].append(Since(None, self.now))

    def _walk(self) -> Iterator[tuple[int, dict[str, int]]]:
        waiting = [(str(self.root), self._root)]
        while waiting:
            path, inode = waiting.pop()
            found: dict[str, int] = {}
            with os.scandir(path) as entries:
                for entry in entries:
                    if _NOT_KEPT.search(entry.name):
                        continue
                    found[entry.name] = entry.inode()
                    seen = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(seen.st_mode):
                        waiting.append((entry.path, seen.st_ino))
                        if seen.st_ino not in self._directories:
                            self._pin(entry.path)
                        self._directories[seen.st_ino] = stat.S_IMODE(seen.st_mode)
                    else:
                        self._look_at_file(entry.path, seen)
            yield inode, found

    def _look_at_file(self, path: str, seen: os.stat_result) -> None:
        inode = seen.st_ino
        stamp = (seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_mode)
        if self._seen.get(inode) == stamp and time.time_ns() - seen.st_ctime_ns > _TICK_NS:
            return
        if inode not in self._seen:
            self._pin(path)
        self._seen[inode] = stamp
        known = Known(Path(path).read_bytes(), stat.S_IMODE(seen.st_mode))
        versions = self._files.setdefault(inode, [])
        if not versions or versions[-1].known != known:
            versions.append(Version(known, self.now, path))

    def _pin(self, path: str) -> None:
        self._pins.append(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))

    # ── what may be left ──────────────────────────────────────────────────────────────────────

    def moment(self, at: int, forgets: Callable[[str], bool] = lambda _: False) -> Moment:
        """All that a power cut at the time `at` may leave; an fsync of a path that `forgets` names
        has done nothing.
        """
        synced = {s.inode: s.time for s in self.syncs if s.time <= at and not forgets(s.path)}
        renames = [r for r in self._renames if r.time <= at]
        # Their old names are durably gone: so are their new ones durably there.
        floors = {r.target: r.time for r in renames if synced.get(r.source[0], 0) >= r.time}
        names: Names = {}
        for directory, entries in self._names.items():
            there = names[directory] = {}
            for name, history in entries.items():
                floor = max(synced.get(directory, self._began), floors.get((directory, name), 0))
                options = _from(history, floor, at)
                if options != (Since(None, 0),):
                    there[name] = options
        files = {
            inode: self._bytes(inode, synced.get(inode, self._began), at) for inode in self._files
        }
        return Moment(self._root, names, files, self._directories, tuple(renames))

    def _bytes(self, inode: int, synced: int, at: int) -> tuple[Known | None, ...]:
        versions = [v for v in self._files[inode] if v.time <= at]
        if not versions:
            return ()
        before = [v.known for v in versions if v.time <= synced]
        later = [v.known for v in versions if v.time > synced]
        last = versions[-1]
        if _SQLITE.search(last.path):
            return (last.known,)
        if _SQLITE_LOG.search(last.path):
            later = later[-1:]
        return (before[-1] if before else None, *later)


def _from(history: list[Since], durable: int, at: int) -> tuple[Since, ...]:
    """What a name stood for at the time `durable`, and all since then up to `at`."""
    options: list[Since] = []
    for since in history:
        if since.time > at:
            break
        if since.time <= durable:
            options.clear()
        options.append(since)
    return tuple(options)


@dataclass(frozen=True, slots=True)
class Moment:
    """All that may be found after a power cut at one operation."""

    root: int
    names: Names
    files: Files
    directories: dict[int, int]
    renames: tuple[Rename, ...]

    def state(self, strategy: str, chance: random.Random) -> Disk:
        """One of them: `none` (only what is durable), `all` (whatever programs saw), `meta` (every
        name and length, no bytes), `random`.
        """
        eager = chance.choice((0.1, 0.5, 0.9))  # how much of what was not synced came through
        chosen = {
            (directory, name): _choose_name(strategy, since, chance, eager)
            for directory, names in self.names.items()
            for name, since in names.items()
        }
        self._keep_renames(chosen)
        self._one_name_a_directory(chosen, chance)
        names: dict[int, dict[str, int]] = {}
        for (directory, name), since in chosen.items():
            if since.inode is not None:
                names.setdefault(directory, {})[name] = since.inode
        used = {inode for found in names.values() for inode in found.values()}
        files = {
            inode: _choose_bytes(strategy, known, chance)
            for inode, known in self.files.items()
            if inode in used
        }
        return Disk(self.root, names, files, self.directories)

    def _keep_renames(self, chosen: dict[tuple[int, str], Since]) -> None:
        """What lost its old name has its new one, or one that came later."""
        changed = True
        while changed:
            changed = False
            for rename in self.renames:
                source = chosen.get(rename.source)
                gone = source is None or source.time >= rename.time
                target = chosen.get(rename.target)
                if gone and target is not None and target.time < rename.time:
                    directory, name = rename.target
                    options = self.names[directory][name]
                    later = [one for one in options if one.time >= rename.time]
                    if later:
                        chosen[rename.target] = later[0]
                        changed = True

    def _one_name_a_directory(
        self, chosen: dict[tuple[int, str], Since], chance: random.Random
    ) -> None:
        """A directory has one parent: of its names one is there, none older than a durable one."""
        places: dict[int, list[tuple[int, str]]] = {}
        durable: dict[int, int] = {}
        for (directory, name), since in chosen.items():
            if since.inode in self.directories:
                places.setdefault(since.inode, []).append((directory, name))
            first = self.names[directory][name][0]
            if first.inode is not None:
                durable[first.inode] = max(first.time, durable.get(first.inode, 0))
        for inode, candidates in places.items():
            floor = durable.get(inode, 0)
            kept = chance.choice([c for c in candidates if chosen[c].time >= floor])
            for place in candidates:
                if place != kept:
                    chosen[place] = Since(None, FOR_EVER)


def _choose_name(
    strategy: str, since: tuple[Since, ...], chance: random.Random, eager: float
) -> Since:
    if strategy == "none":
        return since[0]
    if strategy in {"all", "meta"} or chance.random() < eager:
        return since[-1]
    return chance.choice(since)


def _choose_bytes(strategy: str, known: tuple[Known | None, ...], chance: random.Random) -> Known:
    last = known[-1]
    assert last is not None
    durable = known[0] or Known(b"", last.mode)
    if len(known) == 1 or strategy == "all":
        return last
    if strategy == "none":
        return durable
    if strategy == "meta":
        return Known(durable.data[: len(last.data)].ljust(len(last.data), b"\0"), last.mode)
    some = chance.choice(known) or durable
    mode = (chance.choice(known) or some).mode
    if durable.data == last.data == some.data:
        return Known(last.data, mode)
    return Known(_spoiled(durable.data, some.data, chance), mode)


def _spoiled(durable: bytes, newer: bytes, chance: random.Random) -> bytes:
    """Bytes of which nothing was promised but what they were."""
    cut = chance.randrange(len(newer) + 1)
    match chance.randrange(5):
        case 0:
            return durable
        case 1:
            return newer
        case 2:
            return newer[:cut]
        case 3:
            return newer[:cut].ljust(len(newer), b"\0")
    size = max(1, len(newer) // 4)
    pieces = [
        chance.choice((newer, durable, b""))[at : at + size].ljust(size, b"\0")
        for at in range(0, len(newer), size)
    ]
    return b"".join(pieces)[: len(newer)]


@dataclass(frozen=True, slots=True)
class Disk:
    """A tree as it is found after a power cut."""

    root: int
    names: dict[int, dict[str, int]]
    files: dict[int, Known]
    directories: dict[int, int]

    def lay(self, root: Path) -> None:
        """Make it real in `root`, an empty directory. Second names are hard links."""
        first: dict[int, str] = {}
        modes: list[tuple[str, int]] = []
        for path, inode in self._walk():
            target = f"{root}/{path}"
            if inode in self.directories:
                Path(target).mkdir()
                modes.append((target, self.directories[inode]))
            elif inode in first:
                os.link(first[inode], target)
            else:
                first[inode] = target
                known = self.files[inode]
                fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                os.write(fd, known.data)
                os.fchmod(fd, known.mode)
                os.close(fd)
        for path, mode in modes:
            if mode != 0o755:
                Path(path).chmod(mode)

    def digest(self) -> bytes:
        """Tells this disk from others."""
        first: dict[int, str] = {}
        summary = hashlib.sha256()
        for path, inode in self._walk():
            known = self.files.get(inode)
            same = first.setdefault(inode, path)
            summary.update(f"{path}\0{same}\0{known.mode if known else ''}\0".encode())
            if known and same == path:
                summary.update(known.data)
        return summary.digest()

    def _walk(self) -> Iterator[tuple[str, int]]:
        """(path, inode), each directory before what lies in it."""
        waiting = [("", self.root)]
        while waiting:
            prefix, directory = waiting.pop()
            for name, inode in sorted(self.names.get(directory, {}).items()):
                yield f"{prefix}{name}", inode
                if inode in self.directories:
                    waiting.append((f"{prefix}{name}/", inode))
