"""What producers hand in becomes one well-made Parquet file, or a refusal that says why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus.errors import Code, Refused
from bus.frames import ParquetOptions, as_reader, check_file, write_parquet
from bus.specs import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROWS = {"x": [1, 2, 3], "y": ["a", "b", None]}


def from_duckdb() -> Any:
    return duckdb.sql("SELECT * FROM (VALUES (1::BIGINT, 'a'), (2, 'b'), (3, NULL)) t(x, y)")


FORMS: dict[str, Callable[[], Any]] = {
    "a pyarrow table": lambda: pa.table(ROWS),
    "a record batch": lambda: pa.RecordBatch.from_pydict(ROWS),
    "a stream": lambda: pa.table(ROWS).to_reader(),
    "a pandas frame": lambda: pd.DataFrame({"x": [1, 2, 3], "y": ["a", "b", None]}),
    "a polars frame": lambda: pl.DataFrame(ROWS),
    "a polars lazy frame": lambda: pl.LazyFrame(ROWS),
    "a DuckDB relation": from_duckdb,
    "a list of dicts": lambda: pa.table(ROWS).to_pylist(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_table_becomes_the_same_rows(form: str, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    assert write_parquet(FORMS[form](), path, ParquetOptions()) == 3
    assert pq.read_table(path).to_pydict() == ROWS


@pytest.mark.parametrize("thing", [None, 7, "text", b"bytes", {"x": [1]}, object()])
def test_what_is_no_table_is_refused_with_a_hint(thing: object) -> None:
    with pytest.raises(Refused) as refused:
        as_reader(thing)
    assert refused.value.code is Code.E601
    assert "path" in str(refused.value)


def test_a_stream_of_small_batches_becomes_few_row_groups(tmp_path: Path) -> None:
    schema = pa.schema([("x", pa.int64())])
    live_bytes: list[int] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, 3_000_000, 10_000):
            live_bytes.append(pa.total_allocated_bytes())
            rows = pa.array(range(first, first + 10_000))
            yield pa.RecordBatch.from_arrays([rows], schema=schema)

    path = tmp_path / "t.parquet"
    told: list[tuple[int, int | None]] = []
    write_parquet(
        pa.RecordBatchReader.from_batches(schema, batches()),
        path,
        ParquetOptions(row_group_rows=100_000),
        progress=lambda *rows: told.append(rows),
    )
    assert told == [(100_000 * (n + 1), None) for n in range(30)]
    assert pq.ParquetFile(path).metadata.num_row_groups == 30
    assert pq.read_table(path)["x"].to_pylist() == list(range(3_000_000))
    assert max(live_bytes) - min(live_bytes) < 12_000_000, "of 24,000,000"


def test_pages_carry_checksums_and_statistics(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(pa.table(ROWS), path, ParquetOptions(compression="snappy"))
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    assert column.compression == "SNAPPY"
    assert (column.statistics.min, column.statistics.max) == (1, 3)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 15] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.built_in()


def test_a_contract_refuses_before_anything_is_written(tmp_path: Path, registry: Registry) -> None:
    spec = registry.find("ohlcv_slice", 1)
    path = tmp_path / "t.parquet"
    with pytest.raises(Refused) as refused:
        write_parquet(pa.table({"x": [1]}), path, ParquetOptions(), spec=spec, where="000.parquet")
    assert {found.code for found in refused.value.problems} == {Code.E202}
    assert not path.exists()


def test_a_file_of_the_wrong_columns_is_refused_and_one_that_is_no_parquet_is_left_to_the_validator(
    tmp_path: Path, registry: Registry
) -> None:
    spec = registry.find("ohlcv_slice", 1)
    assert spec is not None
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(Refused):
        check_file(path, spec, "000.parquet")
    path.write_bytes(b"no Parquet")
    check_file(path, spec, "000.parquet")
