"""Waiting in tests: for a condition, with a deadline, never for a while."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout_s: float = 15.0, *, what: str = "") -> T:
    """The first true value of `condition`; AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what or condition}"
        time.sleep(0.02)
    return found


def is_alive(pid: int) -> bool:
    """Whether a process of that number runs: one that nobody has reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def tick_after(path: Path) -> None:
    """The clock by which the file system stamps has moved on: what changes now is later than `path`."""
    before_ns = path.stat().st_ctime_ns

    def moved_on() -> bool:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            return os.fstat(probe.fileno()).st_ctime_ns > before_ns

    wait_until(moved_on, what="a tick of the file system's clock")
