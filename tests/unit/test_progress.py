"""The bar for long writes: where somebody looks, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: A write that is long at once.
PROGRAM = """
import sys, pyarrow as pa
from bus import progress
from bus.client import Bus
from bus.settings import Settings
progress._AFTER_S = 0.0
bus = Bus(Settings.load(sys.argv[1]))
bus.submit(pa.table({"x": [1]}), kind="signals", producer="tests")
"""


def test_a_terminal_shows_what_is_being_written(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # EIO: the other end is closed
            while data := os.read(ours, 1 << 16):
                shown += data
    os.close(ours)
    assert process.returncode == 0
    assert b"tests: signals" in shown


def test_a_pipe_gets_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
