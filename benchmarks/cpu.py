"""Who used the processors: our process tree, or somebody else.

Linux counts a process's time in /proc/<pid>/stat, and when a process is waited for its time is
added to its parent's `cutime` and `cstime`. So the sum of all four numbers over a living tree never
loses what ended meanwhile, provided that nobody leaves the tree: `adopt_orphans` makes this process
the parent of every descendant whose own parent dies.

What the machine did beyond our tree and beyond the kernel's own threads (which write our dirty
pages back, too) was done by others; so was time that a hypervisor gave to other guests (steal).
"""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_PF_KTHREAD = 0x00200000
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
#: Positions in /proc/<pid>/stat after the name in brackets: ppid, flags, the four times.
_PPID, _FLAGS, _TIMES = 1, 6, slice(11, 15)
#: Positions in the first line of /proc/stat: user, nice, system, steal.
_BUSY = (1, 2, 3, 8)


def adopt_orphans() -> None:
    """Keep every descendant in this process's tree, whoever of its ancestors ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Load:
    """What a stretch of time cost: seconds, our CPU seconds, cores that others used meanwhile."""

    wall_s: float
    cpu_s: float
    others_cores: float


@dataclass(frozen=True, slots=True)
class _Reading:
    at_s: float
    busy_s: float
    ours_s: float
    kernel_s: float


class Meter:
    """Measures from its creation to `stop`."""

    def __init__(self) -> None:
        self._begin = _read()

    def stop(self) -> Load:
        """The load since the meter was made."""
        end, begin = _read(), self._begin
        wall_s = end.at_s - begin.at_s
        cpu_s = end.ours_s - begin.ours_s
        kernel_s = end.kernel_s - begin.kernel_s
        others_s = end.busy_s - begin.busy_s - cpu_s - kernel_s
        return Load(wall_s, cpu_s, max(0.0, others_s / wall_s))


def cpu_s_of(root: int) -> float:
    """CPU seconds so far of a process, its living descendants, and those it waited for."""
    return _tree_s(_processes(), root)


def descendants(root: int) -> list[int]:
    """The process ids of the living descendants of `root`."""
    return [pid for pid in _members(_processes(), root) if pid != root]


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    is_kernel: bool
    cpu_s: float


def _read() -> _Reading:
    at_s = time.monotonic()
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    busy_s = sum(int(fields[i]) for i in _BUSY if i < len(fields)) * _TICK_S
    processes = _processes()
    kernel_s = sum(p.cpu_s for p in processes.values() if p.is_kernel)
    return _Reading(at_s, busy_s, _tree_s(processes, os.getpid()), kernel_s)


def _processes() -> dict[int, _Process]:
    """Every process that can be seen. Children are read before parents: none falls between."""
    found = {}
    for pid in sorted((int(n) for n in os.listdir("/proc") if n.isdecimal()), reverse=True):
        with suppress(OSError):
            found[pid] = _parse(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8"))
    return found


def _parse(line: str) -> _Process:
    fields = line.rpartition(")")[2].split()
    ticks = sum(map(int, fields[_TIMES]))
    kernel = bool(int(fields[_FLAGS]) & _PF_KTHREAD)
    return _Process(int(fields[_PPID]), kernel, ticks * _TICK_S)


def _tree_s(processes: dict[int, _Process], root: int) -> float:
    return sum(processes[pid].cpu_s for pid in _members(processes, root) if pid in processes)


def _members(processes: dict[int, _Process], root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    found = [root]
    for pid in found:  # grows while it is walked
        found += children.get(pid, [])
    return found
