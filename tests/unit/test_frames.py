"""What producers hand in becomes one well-made Parquet file, or a refusal that says why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus.columns import Column
from bus.contract import Spec
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
    "polars categories": lambda: pl.DataFrame(ROWS).with_columns(pl.col("y").cast(pl.Categorical)),
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


def test_one_large_batch_is_cut_into_row_groups_and_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    write_parquet(
        pl.DataFrame({"x": range(250)}),
        tmp_path / "t.parquet",
        ParquetOptions(row_group_rows=100),
        progress=lambda *rows: told.append(rows),
    )
    assert told == [(100, 250), (200, 250), (250, 250)]
    assert pq.read_metadata(tmp_path / "t.parquet").num_row_groups == 3


def test_a_query_is_run_once_and_not_to_count_its_rows_first(tmp_path: Path) -> None:
    class Relation:
        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            return pa.table(ROWS).__arrow_c_stream__(requested_schema)

        def __len__(self) -> int:
            raise AssertionError("a DuckDB relation would run its query for this")

    assert write_parquet(Relation(), tmp_path / "t.parquet", ParquetOptions()) == 3


def test_a_table_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    assert write_parquet(pa.table(ROWS).slice(0, 0), path, ParquetOptions()) == 0
    assert pq.read_table(path).to_pydict() == {"x": [], "y": []}


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


def test_floats_are_written_plainly_and_texts_with_a_dictionary(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"mint": ["a", "b"] * 50, "price": [1.5, 2.5] * 50, "side": [1, -1] * 50})
    write_parquet(table, path, ParquetOptions())
    group = pq.ParquetFile(path).metadata.row_group(0)
    encoded = {group.column(n).path_in_schema: group.column(n).encodings for n in range(3)}
    assert {name for name, how in encoded.items() if "RLE_DICTIONARY" in how} == {"mint", "side"}

    nested = table.append_column("tags", pa.array([["x"]] * 100))
    write_parquet(nested, path, ParquetOptions())
    column = pq.ParquetFile(path).metadata.row_group(0).column(3)
    assert (column.path_in_schema, "RLE_DICTIONARY" in column.encodings) == (
        "tags.list.element",
        True,
    )


# ── in the contract's order ─────────────────────────────────────────────────────────────────────

CANDLES = Spec(
    "candles",
    columns=(Column("ts", pa.int64(), nullable=False), Column("mint", pa.string())),
    sort_by=("ts", "mint"),
)
UNORDERED = {"ts": [3, 1, 2, 1], "mint": ["a", "b", None, "a"], "x": [0, 1, 2, 3]}
IN_ORDER = {"ts": [1, 1, 2, 3], "mint": ["a", "b", None, "a"], "x": [3, 1, 2, 0]}


@pytest.mark.parametrize(
    "make",
    [
        pa.table,
        lambda rows: pa.table(rows).to_reader(max_chunksize=1),
        pd.DataFrame,
        pl.DataFrame,
        lambda rows: pl.DataFrame(rows).with_columns(pl.col("mint").cast(pl.Categorical)),
    ],
    ids=["pyarrow", "stream", "pandas", "polars", "categories"],
)
def test_rows_lie_in_the_order_of_the_contract_and_the_file_says_so(
    make: Callable[[Any], Any], tmp_path: Path
) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(make(UNORDERED), path, ParquetOptions(), spec=CANDLES)
    assert pq.read_table(path).to_pydict() == IN_ORDER
    (first, second) = pq.read_metadata(path).row_group(0).sorting_columns
    assert [(first.column_index, first.descending), second.column_index] == [(0, False), 1]
    write_parquet(make(UNORDERED), path, ParquetOptions(sort=False), spec=CANDLES)
    assert pq.read_table(path).to_pydict() == UNORDERED
    assert not pq.read_metadata(path).row_group(0).sorting_columns


def test_each_row_group_is_ordered_by_itself_so_that_a_stream_stays_a_stream(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.parquet"
    options = ParquetOptions(row_group_rows=2)
    write_parquet(pa.table(UNORDERED).to_reader(1), path, options, spec=CANDLES)
    assert pq.read_table(path)["ts"].to_pylist() == [1, 3, 1, 2]


def test_the_same_rows_in_another_order_are_the_same_file(tmp_path: Path) -> None:
    files = []
    for number, rows in enumerate((UNORDERED, IN_ORDER)):
        files.append(tmp_path / f"{number}.parquet")
        write_parquet(pa.table(rows), files[-1], ParquetOptions(), spec=CANDLES)
    assert files[0].read_bytes() == files[1].read_bytes()


# ── against the contract ────────────────────────────────────────────────────────────────────────


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
