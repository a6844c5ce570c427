"""What `bus --help` offers, as a user reads it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

_RUN_BUS = "from bus.cli import main; main()"
# A line of the list of commands: inside rich's box or not, a name and then what it does.
_COMMAND = re.compile(r"^[\s│|]*([a-z][a-z0-9-]*)\s{2,}\S", re.MULTILINE)


def bus(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process of its own, wide and without colours."""
    return subprocess.run(
        [sys.executable, "-c", _RUN_BUS, *arguments],
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def commands_in_help() -> set[str]:
    """The names of all commands on the help page; never empty."""
    page = bus("--help")
    assert page.returncode == 0, page.stderr
    found = set(_COMMAND.findall(page.stdout))
    assert found, f"no commands on the help page:\n{page.stdout}"
    return found
