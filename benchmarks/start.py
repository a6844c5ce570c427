"""How long the command line and imports take before anything happens."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.workshop import REPOSITORY

if TYPE_CHECKING:
    from benchmarks.rounds import Lap
    from benchmarks.workshop import Workshop

_COMMANDS = {
    "python": ["-c", "pass"],
    "import bus": ["-c", "import bus"],
    "import bus.client": ["-c", "import bus.client"],
    "import bus.staging": ["-c", "import bus.staging"],
    "bus --help": ["-m", "bus", "--help"],
}
_RUNS = 3


def measure(shop: Workshop) -> None:
    """Each command as a process of its own; `python` alone is the floor."""
    sides = {name: partial(_run, arguments) for name, arguments in _COMMANDS.items()}
    rounds = shop.plan().run(sides)
    for name in _COMMANDS:
        shop.show(f"start.{name}", rounds.wall_s(name) / _RUNS * 1000, "ms", rounds=rounds)
    above_s = median(laps["import bus"].wall_s - laps["python"].wall_s for laps in rounds.laps)
    shop.show("start.import bus, above", above_s / _RUNS * 1000, "ms", at_most=150)


def _run(arguments: list[str], lap: Lap) -> None:
    command = [sys.executable, *arguments]
    with lap.measured():
        for _ in range(_RUNS):
            subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
