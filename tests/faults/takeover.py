"""Writers in processes that stop (SIGSTOP) where they are told, and wake up when it is too late.

A stopped writer keeps its lock. Someone deletes the lock file, another writer takes over, the old
one goes on where it stood: what it does then is what these tests are about.
"""

from __future__ import annotations

import os
import signal
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bus import disk, writer as writer_module
from bus.errors import LakeBusy
from tests.crash_kit import _fork_server
from tests.pipeline import LightCatalog, Pipeline
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import ForkServerProcess

#: What a writer passes between taking a job from ready/ and having published it.
POINTS = [
    name
    for name in disk.CRASH_POINTS
    if name.startswith(("commit.", "index.", "answer.", "views."))
]
#: How a writer ends: in good order, fenced (E503), by anything else it did not expect.
DONE, FENCED, OTHER = 0, 3, 4
_PATIENCE_S = 30.0


@dataclass
class WriterProcess:
    """A writer in a child process. `stop_at` is ``<crash point>[:n]``, or empty."""

    root: Path
    stop_at: str = ""
    light: bool = True

    def __post_init__(self) -> None:
        self._child: ForkServerProcess = _fork_server.Process(
            target=_write, args=(self.root, self.stop_at, self.light)
        )
        self._child.start()

    @property
    def pid(self) -> int:
        assert self._child.pid is not None
        return self._child.pid

    @property
    def said(self) -> str:
        """With which error it ended."""
        path = _said(self.root, self.pid)
        return path.read_text() if path.exists() else ""

    def stopped(self) -> bool:
        """Wait until it stands still or has ended; whether it stands still."""
        wait_until(
            lambda: self._child.exitcode is not None or _state(self.pid) == "T",
            _PATIENCE_S,
            what=f"the writer neither stops at {self.stop_at!r} nor ends",
        )
        return self._child.exitcode is None

    def wake(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._child.kill()
        self._child.join(_PATIENCE_S)

    def end(self) -> int:
        """Wait for its end; how it ended."""
        self._child.join(_PATIENCE_S)
        assert self._child.exitcode is not None, f"writer {self.pid} does not end"
        return self._child.exitcode


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _said(root: Path, pid: int) -> Path:
    return root.parent / f"writer-{pid}.txt"


# ── in the child ────────────────────────────────────────────────────────────────────────────────


def _write(root: Path, stop_at: str, light: bool) -> None:
    if light:
        vars(writer_module)["Catalog"] = LightCatalog
    _stop_at(stop_at)
    try:
        with Pipeline(root).writer(wait_s=_PATIENCE_S) as writer:
            while writer.drain().more:
                pass
            writer.drain()  # a celery worker is always asked again: whoever was fenced finds out
    except LakeBusy as error:
        _end(root, FENCED, str(error))
    except BaseException:  # noqa: BLE001 - as the worker's task does: say it, and end the process
        _end(root, OTHER, traceback.format_exc())


def _end(root: Path, code: int, text: str) -> None:
    _said(root, os.getpid()).write_text(text)
    os._exit(code)


def _stop_at(point: str) -> None:
    name, _, nth = point.partition(":")
    passed = _countdown(int(nth or 1))

    def stop(reached: str) -> None:
        if reached == name and next(passed) == 0:
            os.kill(os.getpid(), signal.SIGSTOP)

    vars(disk)["crash_point"] = stop


def _countdown(start: int) -> Iterator[int]:
    while True:
        start -= 1
        yield start
