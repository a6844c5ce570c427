"""System calls of a living process, counted and made to fail: strace, attached from outside.

A process is traced once without a fault, to learn which of its calls touch the lake; then once for
each call that shall fail. Calls are counted for each process and thread by itself, as strace does.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CALL = re.compile(r"^(\d+)\s+(\w+)\((.*)", re.MULTILINE)
_ATTACH_S = 20.0
_PR_SET_PTRACER = 0x59616D61


@dataclass(frozen=True, slots=True)
class Fault:
    """The n-th call of that name fails with `error`; `lasting`: so does every later one."""

    call: str
    error: str
    nth: int
    lasting: bool = False

    def __str__(self) -> str:
        return f"{self.call}:error={self.error}:when={self.nth}{'+' if self.lasting else ''}"


@contextmanager
def attached(
    pid: int, log: Path, calls: Iterable[str], fault: Fault | None = None
) -> Iterator[None]:
    """Trace `pid` and what it forks within the block; `log` gets a line for each of `calls`."""
    options = [] if fault is None else ["-e", f"inject={fault}"]
    names = ",".join(f"?{call}" for call in calls)  # `?`: not every machine has every call
    command = ["strace", "-f", "-y", "-s", "0", "-o", str(log), "-e", "signal=none"]
    command += ["-e", f"trace={names}", *options, "-p", str(pid)]
    with log.with_suffix(".said").open("wb") as said:
        tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        _await_attachment(tracer, Path(said.name))
        yield
        tracer.wait(_ATTACH_S)
    finally:
        tracer.kill()
        tracer.wait()


def _await_attachment(tracer: subprocess.Popen[bytes], said: Path) -> None:
    deadline = time.monotonic() + _ATTACH_S
    while b"attached" not in said.read_bytes():
        if tracer.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(said.read_text(errors="replace").strip() or "strace said nothing")
        time.sleep(0.001)  # the call that is to fail may come within milliseconds


def reached(log: Path) -> bool:
    """Whether the call that was to fail was made."""
    return "(INJECTED)" in log.read_text(errors="replace")


def calls_below(log: Path, directory: Path) -> dict[str, list[int]]:
    """For each system call of a log, the numbers of those calls that name a file in `directory`."""
    found: dict[str, set[int]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for pid, call, rest in _CALL.findall(log.read_text(errors="replace")):
        counts[pid, call] += 1
        if str(directory) in rest:
            found.setdefault(call, set()).add(counts[pid, call])
    return {call: sorted(numbers) for call, numbers in found.items()}


def let_anybody_trace_me() -> None:
    """Where only ancestors may trace a process (Yama), allow it to all; elsewhere nothing."""
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)


@cache
def why_not() -> str | None:
    """Why nothing can be traced here; None when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    victim_is = "from tests.faults import strace; strace.let_anybody_trace_me(); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", victim_is],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as victim:
        assert victim.stdout is not None
        victim.stdout.readline()
        command = ["strace", "-o", "/dev/null", "-p", str(victim.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
            assert tracer.stderr is not None
            said = tracer.stderr.readline().decode(errors="replace").strip()
            tracer.kill()
        victim.kill()
    return None if "attached" in said else f"strace may not attach to a process: {said}"
