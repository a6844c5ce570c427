"""From an error to what a person reads and what the shell is told: the only place that decides.

Exit codes: 0 done · 1 an expected failure (rejected, bad data, not found, no answer in time, damage found) ·
2 usage or infrastructure (bad arguments, no lake, no Redis, disk full) · 130 interrupted.
"""

from __future__ import annotations

import os
import sys

from bus.cli.output import Block, complain, print_json, problem_blocks
from bus.errors import BusError, Refused, Unavailable

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130
_BROKEN_PIPE = 141
#: A table that breaks its contract, a source that cannot be read: as if the bus had rejected it.
_DATA = ("E2", "E6")


def of_bus(error: BusError, *, as_json: bool) -> int:
    """Report an error that the bus raised on purpose; the exit code."""
    if as_json:
        print_json({"error": error.as_dict()})
    else:
        complain(problem_blocks(p.as_dict() for p in error.problems))
    wrong_data = error.code.startswith(_DATA)
    return USAGE if isinstance(error, Refused | Unavailable) and not wrong_data else FAILED


def of_usage(message: str, command: str, *, as_json: bool) -> int:
    """Report a command line that was not understood; the exit code."""
    message = message.strip()
    hint = f"See: {command} --help"
    if as_json:
        print_json({"error": {"code": "usage", "where": command, "message": message, "hint": hint}})
    else:
        complain([Block(message, [hint], "bad")])
    return USAGE


def of_system(error: OSError, *, as_json: bool) -> int:
    """Report what the operating system refused; the exit code."""
    if isinstance(error, BrokenPipeError):  # the reader (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return of_bus(Unavailable.of_system(error), as_json=as_json)
