"""Seeded tables: ten columns of mixed types, as pipelines make them, no two alike.

`mixed(seed, rows)` is in the canonical row order (its first column by name rises); `shuffled` has
the same rows in another order.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 5_000
#: A kind without a contract: what is measured is the bus, not somebody's rules.
KIND = "bench_mixed"
PRODUCER = "bench"

_START_US = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
_TOKENS = 200
_CHAINS = ("solana", "ethereum", "base", "bsc")


def mixed(seed: int, rows: int = ROWS) -> pa.Table:
    """`at` (rising instants), three texts, three floats, two integers, one boolean; some NULLs."""
    number = _numbers(rows)
    jitter = pc.multiply(_random(rows, seed), 900_000)
    at = pc.add(pc.multiply(number, 1_000_000), _whole(jitter))
    close = pc.exp(pc.cumulative_sum(pc.multiply(pc.subtract(_random(rows, seed + 1), 0.5), 0.01)))
    volume = pc.multiply(_random(rows, seed + 2), 1e6)
    return pa.table(
        {
            "at": pc.add(at, _START_US).cast(pa.timestamp("us", tz="UTC")),
            "chain": _picked(pa.array(_CHAINS), rows, seed + 3),
            "close": close,
            "is_bot": pc.less(_random(rows, seed + 4), 0.3),
            "mint": _picked(_tokens(), rows, seed + 5),
            "note": _some_null(pc.binary_join_element_wise("call ", _text(number), ""), seed + 6),
            "slot": pc.add(number, 250_000_000 + seed),
            "spread_bps": _some_null(pc.multiply(_random(rows, seed + 7), 40.0), seed + 8),
            "trades": _whole(pc.multiply(_random(rows, seed + 9), 500)),
            "volume": volume,
        }
    )


def shuffled(table: pa.Table, seed: int = 0) -> pa.Table:
    """The same rows in another order."""
    return table.take(pc.sort_indices(_random(table.num_rows, seed))).combine_chunks()


def write(table: pa.Table, path: Path) -> Path:
    """Write a table as our own clients do: zstd, with page checksums."""
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)
    return path


def make_files(folder: Path, count: int, rows: int = ROWS, first_seed: int = 0) -> list[Path]:
    """That many different Parquet files in `folder`; those that exist are taken as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{first_seed + n:06d}.parquet" for n in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            write(mixed(10 * (first_seed + number), rows), path)
    return paths


@cache
def _tokens() -> pa.Array:
    """Addresses of 44 characters, as mints have."""
    return pa.array(
        [f"{seed * 0x9E3779B97F4A7C15 % 2**128:032x}pumpfunpump" for seed in range(_TOKENS)]
    )


def _numbers(rows: int) -> pa.Array:
    return pa.array(range(rows), pa.int64())


def _random(rows: int, seed: int) -> pa.Array:
    return pc.random(rows, initializer=seed)


def _whole(values: pa.Array) -> pa.Array:
    return pc.cast(values, pa.int64(), safe=False)


def _text(values: pa.Array) -> pa.Array:
    return pc.cast(values, pa.string())


def _picked(choices: pa.Array, rows: int, seed: int) -> pa.Array:
    return choices.take(_whole(pc.multiply(_random(rows, seed), len(choices))))


def _some_null(values: pa.Array, seed: int) -> pa.Array:
    return pc.if_else(pc.less(_random(len(values), seed), 0.1), None, values)
