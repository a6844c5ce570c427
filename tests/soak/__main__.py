"""`python -m tests.soak --seconds 600 --seed 1`: random kills, then every promise is checked."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.soak.campaign import Options, Outcome, run, told

_SHOWN = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--light", action="store_true", help="without Celery and Redis")
    rates = (Options.light_kills_per_s, Options.real_kills_per_s)
    parser.add_argument("--kills", type=float, nargs=2, default=rates, metavar=("LIGHT", "REAL"))
    parser.add_argument("--folder", type=Path, help="keep everything here (must be empty)")
    chosen = parser.parse_args()
    light, real = chosen.kills
    options = Options(chosen.seconds, chosen.seed, light, real, real=not chosen.light)
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="soak-", dir=Path.cwd()))
    outcome = run(folder.resolve(), options, _say)
    if outcome.ok and chosen.folder is None:
        shutil.rmtree(folder)
    return _told(outcome, folder)


def _told(outcome: Outcome, folder: Path) -> int:
    for violation in outcome.findings.violations[:_SHOWN]:
        _say(f"VIOLATION: {violation}")
    if not outcome.ok:
        _say(f"everything is kept in {folder}")
    _say(f"killed: {told(outcome.kills)}")
    _say(str(outcome))
    return 0 if outcome.ok else 1


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
