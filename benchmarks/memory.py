"""Validation streams: a 2 GB artifact stays under 1 GiB of resident memory, sorted or not.

The job is staged by one process and taken by a real `Intake` in another. What is reported is the
largest resident set of that process or of any child it waited for, as the kernel noted it.

As a program: `python -m benchmarks.memory stage LAKE BYTES ORDER`, then `… validate LAKE`.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import inputs, lakes
from benchmarks.workshop import REPOSITORY
from bus.intake import Intake
from bus.lake import VERDICT, Lake
from bus.model import Verdict
from bus.settings import Settings
from bus.specs import Registry
from bus.staging import Staging

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.workshop import Workshop

_SIZE_BYTES = 2_000_000_000
_LIMIT_MIB = 1024
_JOB = "big"
_ORDERS = ("in_order", "shuffled")
_BATCH_ROWS = 131_072
_FLOATS = 12
_ROW_BYTES = 8 * (_FLOATS + 1)
#: An odd factor permutes the 64-bit integers: no two rows are alike, none is where it belongs.
_FACTOR = -7046029254386353131


def measure(shop: Workshop) -> None:
    """Once in order, once shuffled; memory is no matter of noise, so there are no rounds."""
    for order in _ORDERS:
        lake = lakes.new_lake(shop.room("memory") / "lake")
        _run("stage", str(lake.root), str(shop.size(_SIZE_BYTES, 300_000_000)), order)
        begin_s = time.perf_counter()
        peak_mib = float(_run("validate", str(lake.root)))
        wall_s = time.perf_counter() - begin_s
        facts = Verdict.from_bytes((lake.ready / _JOB / VERDICT).read_bytes()).artifacts[0]
        shop.show(
            f"memory.validate_2gb_{order}",
            peak_mib,
            "MiB resident",
            at_most=_LIMIT_MIB,
            remark=f"{facts.size_bytes / 1e9:.2f} GB, {facts.rows / 1e6:.0f} M rows, {wall_s:.0f} s",
        )
        (lake.ready / _JOB / facts.relpath).unlink()  # its 2 GB are in the way of the next
        lake.object_path(facts.sha256).unlink()


def _run(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    run = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    return run.stdout


# ── the program ──────────────────────────────────────────────────────────────────────────────────


def _stage(root: str, size_bytes: int, order: str) -> None:
    """Put one big job into the inbox. Its file is not compressed: what counts is its size."""
    lake = Lake(Path(root))
    path = lake.run / "big.parquet"
    batches = _batches(size_bytes // _ROW_BYTES, shuffle=order == "shuffled")
    first = next(batches)
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    with pq.ParquetWriter(path, first.schema, **options) as writer:
        for batch in (first, *batches):
            writer.write_batch(batch)
    with Staging(lake, "run-big", inputs.PRODUCER, inputs.KIND, _JOB) as staging:
        staging.add(path, name=_JOB, move=True)
        staging.submit()


def _batches(rows: int, *, shuffle: bool) -> Iterator[pa.RecordBatch]:
    floats = {f"x{n:02d}": pc.random(_BATCH_ROWS, initializer=n) for n in range(_FLOATS)}
    for start in range(0, rows, _BATCH_ROWS):
        number = pc.add(pa.array(range(_BATCH_ROWS), pa.int64()), start)
        key = pc.multiply(number, _FACTOR) if shuffle else number
        yield pa.record_batch({"key": key} | floats)


def _validate(root: str) -> None:
    settings = Settings.load(root)
    lake = Lake(settings.lake)
    result = Intake(lake, settings, Registry.load(settings)).drain(_JOB, budget_s=600)
    verdict = Verdict.from_bytes((lake.ready / _JOB / VERDICT).read_bytes())
    assert verdict.accepted, (result, verdict.problems)
    print(_peak_mib())


def _peak_mib() -> float:
    """Of this process (`ru_maxrss` would count what it was forked from) and of its children."""
    return max(resident_mib("VmHWM"), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)


def resident_mib(name: str) -> float:
    """What this process holds in memory now (VmRSS), or held at most (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(li.split()[1]) for li in status.splitlines() if li.startswith(name)) / 1024


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["stage", root, size_bytes, order]:
            _stage(root, int(size_bytes), order)
        case ["validate", root]:
            _validate(root)
