"""Validation streams: a 2 GB artifact stays under 1 GiB of resident memory, sorted or not.

The job is staged, then taken by a real `Intake` in a process of its own. What is reported is what
the kernel noted as the largest resident set of that process or any child it waited for (`wait4`).

As a program: `python -m benchmarks.memory LAKE` drains the lake's inbox once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import inputs, lakes
from benchmarks.workshop import REPOSITORY
from bus.intake import Intake
from bus.lake import Lake
from bus.model import JobState
from bus.settings import Settings
from bus.specs import Registry
from bus.staging import Staging

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.workshop import Workshop

_SIZE_BYTES = 2_000_000_000
_LIMIT_MIB = 1024
_BATCH_ROWS = 500_000
#: Bytes of one row in the file, nearly: four random doubles and what counting columns cost.
_ROW_BYTES = 36


def measure(shop: Workshop) -> None:
    """Once in order, once shuffled; memory is no matter of noise, so there are no rounds."""
    for order in ("in_order", "shuffled"):
        folder = shop.room("memory")
        lake = lakes.new_lake(folder / "lake")
        size_bytes = shop.size(_SIZE_BYTES, 400_000_000)
        file_bytes, rows = _stage(lake, folder, size_bytes, shuffle=order == "shuffled")
        peak_mib, wall_s = _validate(lake)
        shop.show(
            f"memory.validate_2gb_{order}",
            peak_mib,
            "MiB resident",
            at_most=_LIMIT_MIB,
            remark=f"{file_bytes / 1e9:.2f} GB, {rows / 1e6:.0f} M rows, {wall_s:.0f} s",
        )


def _stage(lake: Lake, folder: Path, size_bytes: int, *, shuffle: bool) -> tuple[int, int]:
    """Put one big job into the inbox; its file's size and rows."""
    path = folder / "big.parquet"
    rows = 0
    batches = _batches(size_bytes // _ROW_BYTES, shuffle=shuffle)
    first = next(batches)
    with pq.ParquetWriter(
        path, first.schema, compression="zstd", write_page_checksum=True
    ) as writer:
        for batch in (first, *batches):
            writer.write_batch(batch, row_group_size=131_072)
            rows += batch.num_rows
    file_bytes = path.stat().st_size
    with Staging(lake, "run-big", inputs.PRODUCER, inputs.KIND, "big") as staging:
        staging.add(path, name="big", move=True)
        staging.submit()
    return file_bytes, rows


def _batches(rows: int, *, shuffle: bool) -> Iterator[pa.RecordBatch]:
    for start in range(0, rows, _BATCH_ROWS):
        count = min(_BATCH_ROWS, rows - start)
        number = pc.add(pa.array(range(count), pa.int64()), start)
        if shuffle:  # an odd factor permutes the 64-bit integers: no two are alike
            number = pc.multiply(number, -7046029254386353131)
        columns = {"a_slot": number, "chain": pa.repeat("solana", count)}
        for index in range(4):
            columns[f"x{index}"] = pc.random(count, initializer=start + index)
        yield pa.record_batch(columns)


def _validate(lake: Lake) -> tuple[float, float]:
    """Largest resident set in MiB, and seconds."""
    begin_s = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.memory", str(lake.root)]
    child = subprocess.Popen(command, cwd=REPOSITORY)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)  # it is waited for: Popen need not
    wall_s = time.perf_counter() - begin_s
    assert child.returncode == 0, f"the validator ended with {child.returncode}"
    verdict = (lake.ready / "big" / "verdict.json").read_text()
    assert '"accepted":true' in verdict, verdict[:2000]
    return usage.ru_maxrss / 1024, wall_s


def _program(root: str) -> None:
    settings = Settings.load(root)
    lake = Lake(settings.lake)
    result = Intake(lake, settings, Registry.load(settings)).drain("big", budget_s=600)
    assert lake.count(JobState.READY) == 1, result


if __name__ == "__main__":
    _program(sys.argv[1])
