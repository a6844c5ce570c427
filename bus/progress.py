"""A progress bar for long writes: in a terminal or a notebook, and only when it lasts."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Shorter work needs no bar.
_AFTER_S = 1.0


class Bar:
    """Shows how many rows are written, from the second second on; nothing where nobody looks."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._begun_s = time.monotonic()
        self._progress: Progress | None = None
        self._tasks: dict[int | None, TaskID] = {}

    def advance(self, rows: int, of: int | None) -> None:
        """`rows` are written, of so many."""
        if self._progress is None:
            if time.monotonic() - self._begun_s < _AFTER_S or not _somebody_looks():
                return
            from rich.progress import Progress  # noqa: PLC0415 - only long writes need it

            self._progress = Progress(transient=True)
            self._progress.start()
        if of not in self._tasks:
            self._tasks[of] = self._progress.add_task(self._title, total=of)
        self._progress.update(self._tasks[of], completed=rows)

    def stop(self) -> None:
        """Take the bar away, where one is shown."""
        if self._progress is not None:
            self._progress.stop()


def _somebody_looks() -> bool:
    """Whether output goes to a terminal or into a notebook."""
    get_shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", None)
    in_notebook = get_shell is not None and type(get_shell()).__name__ == "ZMQInteractiveShell"
    return in_notebook or sys.stdout.isatty()
