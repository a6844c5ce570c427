"""`python -m benchmarks [NAME …] [--quick] [--noisy]`: measure, print, write latest.json.

Exit code 1 when a goal is missed or a measurement failed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import traceback
from pathlib import Path

from benchmarks import cpu, machine
from benchmarks.figures import Figure, Report
from benchmarks.workshop import Workshop, open_workshop

#: In this order; each is a module with `measure(workshop)`.
MEASUREMENTS = (
    "content_hash",
    "producers",
    "end_to_end",
    "idle_latency",
    "writer_alone",
    "rebuild",
    "store",
    "lineage",
    "verify",
    "retention",
    "exports",
    "fsyncs",
    "diff",
    "start",
    "memory",
)
LATEST = Path(__file__).with_name("latest.json")


def main(arguments: list[str] | None = None) -> int:
    """Run the named measurements, or all."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    names = chosen.names or MEASUREMENTS
    if unknown := set(names) - set(MEASUREMENTS):
        parser.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(MEASUREMENTS)}")
    cpu.adopt_orphans()
    os.environ["PYTHONUNBUFFERED"] = "1"
    report = Report()
    begin_s = time.monotonic()
    with open_workshop(report, quick=chosen.quick, noisy=chosen.noisy) as shop:
        print("machine")
        for figure in machine.facts(shop.folder):
            report.add(figure)
        for name in names:
            _measure(shop, name)
    report.add(Figure("took", round(time.monotonic() - begin_s), "s", remark=_mode(chosen)))
    report.write(LATEST)
    print(f"\n{report.table()}\n")
    for figure in report.missed:
        print(f"missed: {figure.name} is {figure.value}, goal {figure.goal}", file=sys.stderr)
    return 1 if report.missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--quick", action="store_true", help="small cases, few rounds: a try-out")
    parser.add_argument("--noisy", action="store_true", help="accept rounds that others disturbed")
    return parser


def _measure(shop: Workshop, name: str) -> None:
    """One measurement; whatever goes wrong in it is a missed goal, and the next one follows."""
    print(f"\n{name}", flush=True)
    begin_s = time.monotonic()
    try:
        importlib.import_module(f"benchmarks.{name}").measure(shop)
    except Exception as error:  # noqa: BLE001 - the others are worth having
        traceback.print_exc()
        what = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        shop.show(f"{name}.failed", None, "", at_most=0, remark=what)
    shop.say(f"({time.monotonic() - begin_s:.0f} s)")


def _mode(chosen: argparse.Namespace) -> str:
    said = [name for name in ("quick", "noisy") if getattr(chosen, name)]
    return f"{' and '.join(said)}: not a result to rely on" if said else ""


if __name__ == "__main__":
    sys.exit(main())
