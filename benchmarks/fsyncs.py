"""How often one job of one artifact waits for the disk: at most 12, beside the once-per-batch ones.

Steps 1 to 10 run in this process, one job at a time, with `os.fsync` counted by what it syncs. The
journal's two, and one each of ready/ and processed/, are paid once a batch; the snapshot's by whoever publishes.
Where strace exists, a whole process is counted too, with what SQLite and DuckDB do in C.

As a program: `python -m benchmarks.fsyncs LAKE FILE…` takes one job after the other through.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import inputs, lakes
from benchmarks.workshop import REPOSITORY
from bus.intake import Intake
from bus.lake import Lake
from bus.settings import Settings
from bus.specs import Registry
from bus.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.workshop import Workshop

_JOBS = 10
_MOST = 12


def measure(shop: Workshop) -> None:
    """Each of ten jobs alone; the median."""
    folder = shop.room("fsyncs")
    files = inputs.make_files(folder / "files", _JOBS, rows=100)
    counts = list(_count_each(lakes.new_lake(folder / "lake"), files))
    shop.show("fsyncs.per_job", median(own for own, _ in counts), "fsyncs", at_most=_MOST)
    shop.show("fsyncs.per_batch", median(shared for _, shared in counts), "fsyncs")
    if strace := shutil.which("strace"):
        traced = _traced(strace, lakes.new_lake(folder / "traced"), files)
        shop.show("fsyncs.traced_per_idle_job", traced, "fsyncs", remark="with its snapshot")


def _count_each(lake: Lake, files: Sequence[Path]) -> Iterator[tuple[int, int]]:
    """For each job: syncs that are its own, syncs that a batch shares."""
    settings = Settings.load(lake.root)
    registry = Registry.load(settings)
    intake = Intake(lake, settings, registry)
    with Writer.open(lake, settings, registry) as writer:
        for number, path in enumerate(files):
            with _counted() as seen:
                lakes.stage(lake, [[path]], f"job{number}")
                intake.drain()
                assert writer.drain(budget_s=0).jobs == 1
            shared = sum(n for name, n in seen.items() if _is_shared(lake, name))
            yield sum(seen.values()) - shared, shared


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """Count the calls of `os.fsync` by the path that the descriptor stands for."""
    seen: Counter[str] = Counter()
    real = os.fsync

    def counting(fd: int) -> None:
        seen[str(Path(f"/proc/self/fd/{fd}").readlink())] += 1
        real(fd)

    os.fsync = counting  # type: ignore[assignment]
    try:
        yield seen
    finally:
        os.fsync = real


def _is_shared(lake: Lake, name: str) -> bool:
    shared = (lake.journal, lake.run, lake.catalog_db.parent, lake.exports, lake.manifest_db.parent)
    path = Path(name)
    return path in {lake.ready, lake.processed, lake.rejected} or any(
        path.is_relative_to(d) for d in shared
    )


def _traced(strace: str, lake: Lake, files: Sequence[Path]) -> float | None:
    """Calls of fsync and fdatasync for each job, counted by the kernel; None where it may not."""
    output = lake.root.with_suffix(".strace")
    command = [strace, "-f", "-c", "-e", "trace=fsync,fdatasync", "-o", str(output)]
    command += [sys.executable, "-m", "benchmarks.fsyncs", str(lake.root), *map(str, files)]
    if subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True).returncode:
        return None
    rows = [line.split() for line in output.read_text().splitlines()]
    counts = [int(row[3]) for row in rows if row and row[-1] in {"fsync", "fdatasync"}]
    return sum(counts) / len(files)


def _program(root: str, names: list[str]) -> None:
    settings = Settings.load(root)
    lake, registry = Lake(settings.lake), Registry.load(settings)
    with Writer.open(lake, settings, registry) as writer:
        for number, name in enumerate(names):
            lakes.stage(lake, [[Path(name)]], f"job{number}")
            Intake(lake, settings, registry).drain()
            writer.drain()


if __name__ == "__main__":
    _program(sys.argv[1], sys.argv[2:])
