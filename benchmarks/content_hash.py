"""The content hash against decoding the same Parquet: 0.5 in order, 1.1 shuffled, at most.

The limit is one pass of pyarrow over the whole file with page checksums verified, on one thread,
as a validator reads it. Both sides take the same files, in memory after the first pass.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import inputs
from bus.hashing import content_hash

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.rounds import Lap
    from benchmarks.workshop import Workshop

_ORDERS = {"in_order": 0.5, "shuffled": 1.1}
_ROWS_LARGE = 500_000


def measure(shop: Workshop) -> None:
    """Small artifacts have the goals; a large one shows whether the ratio holds."""
    folder = shop.room("content-hash")
    _compare(shop, folder / "small", inputs.ROWS, shop.size(60, 20), passes=4)
    _compare(shop, folder / "large", shop.size(_ROWS_LARGE, 100_000), 1, passes=1)


def _compare(shop: Workshop, folder: Path, rows: int, count: int, passes: int) -> None:
    sides = {}
    for order in _ORDERS:
        files = _files(folder / order, rows, count, shuffle=order == "shuffled")
        tables = [_decode(path) for path in files]
        sides[f"decode {order}"] = partial(_decode_all, files, passes)
        sides[f"hash {order}"] = partial(_hash_all, tables, passes)
    rounds = shop.plan().run(sides)
    small = rows == inputs.ROWS
    for order, goal in _ORDERS.items():
        shop.show(
            f"content_hash.{order}.{rows}x10",
            rounds.ratio(f"hash {order}", f"decode {order}"),
            "x decode",
            at_most=goal if small else None,
            rounds=rounds,
            remark=_absolute(rounds.wall_s(f"hash {order}"), count * passes),
        )
    decode_s = rounds.wall_s("decode in_order") / (count * passes)
    shop.show(f"content_hash.decode.{rows}x10", decode_s * 1e6, "us")


def _files(folder: Path, rows: int, count: int, *, shuffle: bool) -> list[Path]:
    folder.mkdir(parents=True)
    paths = []
    for number in range(count):
        table = inputs.mixed(10 * number, rows)
        table = inputs.shuffled(table, number) if shuffle else table
        paths.append(inputs.write(table, folder / f"{number}.parquet"))
    return paths


def _decode(path: Path) -> pa.Table:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(use_threads=False)


def _decode_all(files: Sequence[Path], passes: int, lap: Lap) -> None:
    with lap.measured():
        for _ in range(passes):
            for path in files:
                _decode(path)


def _hash_all(tables: Sequence[pa.Table], passes: int, lap: Lap) -> None:
    with lap.measured():
        for _ in range(passes):
            for table in tables:
                content_hash(table)


def _absolute(wall_s: float, count: int) -> str:
    return f"{wall_s / count * 1e6:,.0f} us each"
