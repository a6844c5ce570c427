"""Which code made a table: the Git commit of the running program, found without making it wait.

Asking Git takes tens of milliseconds, and more in a large repository. So a thread asks, once the
program has begun to submit, and again when the answer is old; a job is given the newest answer.
Only a program's first job waits for it, and never longer than `_FIRST_S`.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from bus.model import Provenance

_FRESH_S = 10.0
_FIRST_S = 0.1
_PATIENCE_S = 10.0
#: More of a diff is not read: two programs with so many changes are not told apart by it.
_DIFF_BYTES = 64 << 20


@cache
def of_program() -> Watch:
    """The watch over the directory of the running program: its script's, or the current one."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return Watch(Path(script).resolve().parent if script else Path.cwd())


class Watch:
    """What Git says of a directory, at most some seconds old. Threads may share it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._known = Provenance(writer_name=Path(sys.argv[0]).name or None)
        self._asked_s = float("-inf")
        self._answered = threading.Event()

    def newest(self) -> Provenance:
        """The newest answer; None in every Git field where there is no repository, or no Git."""
        self.look()
        self._answered.wait(_FIRST_S)
        return self._known

    def look(self) -> None:
        """Have a thread ask, unless the answer is fresh. Returns at once."""
        with self._lock:
            is_old = time.monotonic() - self._asked_s > _FRESH_S
            if is_old:
                self._asked_s = time.monotonic()
        if is_old:
            threading.Thread(target=self._ask, name="bus-provenance", daemon=True).start()

    def _ask(self) -> None:
        with suppress(OSError, subprocess.SubprocessError):
            self._known = ask(self._directory, self._known.writer_name)
        self._answered.set()


def ask(directory: Path, writer_name: str | None = None) -> Provenance:
    """What Git says now. Raises OSError without Git and `SubprocessError` where it fails."""

    def git(*words: str) -> bytes:
        command = ["git", "-C", str(directory), "--no-optional-locks", *words]
        return subprocess.run(  # noqa: S603 - fixed words
            command, capture_output=True, check=True, timeout=_PATIENCE_S
        ).stdout

    commit, branch = git("rev-parse", "HEAD", "--abbrev-ref", "HEAD").decode().split()
    changes = git("status", "--porcelain", "--untracked-files=no")
    diff = git("diff", "HEAD", "--no-ext-diff", "--binary")[:_DIFF_BYTES] if changes else b""
    return Provenance(
        writer_name=writer_name,
        git_commit=commit,
        git_branch=branch,
        git_dirty=bool(changes),
        git_diff_sha256=hashlib.sha256(diff).hexdigest() if diff else None,
    )
