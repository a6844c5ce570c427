"""The log files of the children: opened for them, bounded, and shown on request."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, BinaryIO

from bus import disk

if TYPE_CHECKING:
    from bus.lake import Lake

_MAX_BYTES = 20 << 20
_LOOK_EVERY_S = 30.0


class Logs:
    """One file for each child, with one predecessor; `verbose` repeats every line on stderr."""

    def __init__(self, lake: Lake, *, verbose: bool = False) -> None:
        self._lake = lake
        self._verbose = verbose
        self._shown_bytes: dict[str, int] = {}
        self._next_look_s = 0.0

    def open(self, name: str) -> BinaryIO:
        """The child's log, for appending."""
        path = self._lake.log_path(name)
        size_bytes = path.stat().st_size if path.exists() else 0
        self._shown_bytes.setdefault(name, size_bytes)
        return path.open("ab", buffering=0)

    def look(self) -> None:
        """Show what is new; start files anew that have grown too long."""
        if self._verbose:
            for name in self._shown_bytes:
                self._show(name)
        if time.monotonic() >= self._next_look_s:
            self._next_look_s = time.monotonic() + _LOOK_EVERY_S
            for name in self._shown_bytes:
                self._bound(name)

    def _show(self, name: str) -> None:
        with self._lake.log_path(name).open("rb") as file:
            file.seek(self._shown_bytes[name])
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._shown_bytes[name] += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            sys.stderr.write(f"{name:>7} | {line}\n")

    def _bound(self, name: str) -> None:
        path = self._lake.log_path(name)
        if path.stat().st_size <= _MAX_BYTES:
            return
        disk.copy_file(path, self._lake.log_path(f"{name}.1"))
        with path.open("r+b") as file:  # the child appends, so it goes on at the new end
            file.truncate(0)
        self._shown_bytes[name] = 0
