"""``python -m bus.supervisor up|pump``: what `bus up` and `bus pump` run, without the CLI."""

from __future__ import annotations

import argparse
import sys

from bus.errors import BusError
from bus.settings import Settings
from bus.supervisor import Supervisor
from bus.supervisor.processes import run_pump


def main() -> int:
    """Exit code 0 after an orderly end, 2 when the bus cannot run."""
    parser = argparse.ArgumentParser(prog="bus.supervisor")
    parser.add_argument("process", choices=["up", "pump"])
    parser.add_argument("--flower", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    chosen = parser.parse_args()
    try:
        settings = Settings.load()
        if chosen.process == "pump":
            run_pump(settings)
            return 0
        return Supervisor(settings, flower=chosen.flower, verbose=chosen.verbose).run()
    except BusError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
