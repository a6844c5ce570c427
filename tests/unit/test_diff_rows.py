"""The rows in which two files differ: the same as plain multisets say, however they are stored."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from bus.diff import rows as rows_module
from bus.diff.chunks import Stored, layout
from bus.diff.rows import RowDifference, row_difference
from bus.diff.tables import Shared, Tables
from bus.parquet import open_parquet
from tests.plain_diff import assert_same, plain_difference

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hypothesis.strategies import DrawFn

EVERY = 10_000
SCHEMA = pa.schema(
    {
        'k"1': pa.int32(),
        "it's; --": pa.string(),
        "x": pa.float64(),
        "n": pa.list_(pa.int16()),
    }
)
KEY = 'k"1'


def stored(stack: ExitStack, path: Path) -> Stored:
    fd = os.open(path, os.O_RDONLY)
    stack.callback(os.close, fd)
    return Stored(str(path), fd, open_parquet(fd, os.fstat(fd).st_size))


def difference(
    folder: Path,
    a: pa.Table,
    b: pa.Table,
    key: Sequence[str] = (),
    *,
    options: tuple[dict[str, Any], dict[str, Any]] = ({}, {}),
    limit: int = EVERY,
    **database: Any,
) -> RowDifference:
    """Write two tables of one schema, and compare the files."""
    with ExitStack() as stack:
        files = []
        for name, table, how in zip("ab", (a, b), options, strict=True):
            path = folder / f"{name}.parquet"
            pq.write_table(table, path, store_schema=False, **how)
            files.append(stored(stack, path))
        shared = [Shared(column.name, column.type) for column in files[0].source.schema]
        database.setdefault("spill", folder / "spill")
        return row_difference(files[0], files[1], shared, key, limit=limit, **database)


# ── against plain multisets ───────────────────────────────────────────────────────────────────────

CELLS = st.tuples(
    st.one_of(st.none(), st.integers(0, 30)),
    st.sampled_from([None, "", "NaN", "a|b", "\\N"]),
    st.sampled_from([None, 0.0, -0.0, 1.5, float("nan"), float("inf")]),
    st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(0, 2)), max_size=2)),
)


@st.composite
def versions(draw: DrawFn) -> tuple[pa.Table, pa.Table]:
    """Two tables: the second is the first after some changes, or another one altogether."""
    first: list[tuple[Any, ...]] = draw(st.lists(CELLS, max_size=40))
    second = list(first)
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(second)))
        match draw(st.sampled_from(["insert", "delete", "repeat", "change", "shuffle"])):
            case "insert":
                second.insert(at, draw(CELLS))
            case "delete":
                del second[at : at + 2]
            case "repeat":
                second[at:at] = second[:1]
            case "change" if at < len(second):
                place = draw(st.integers(0, 3))
                row = list(second[at])
                row[place] = draw(CELLS)[place]
                second[at] = tuple(row)
            case "shuffle":
                second = draw(st.permutations(second))
    return table_of(first), table_of(second)


def table_of(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(SCHEMA)
    arrays = [pa.array(column, t) for column, t in zip(columns, SCHEMA.types, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


@st.composite
def how_written(draw: DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mostly alike, as two versions by one program are."""
    one = {"row_group_size": draw(st.integers(1, 12)), "compression": "zstd"}
    if draw(st.integers(0, 3)):
        return one, one
    return one, {"row_group_size": draw(st.integers(1, 50)), "compression": "none"}


@settings(max_examples=40)
@given(
    tables=versions(),
    options=how_written(),
    key=st.sampled_from([(), (KEY,), ("x", KEY), ("n",)]),
    few_rows=st.sampled_from([1, 100_000]),
)
def test_a_difference_is_what_plain_multisets_say(
    tables: tuple[pa.Table, pa.Table],
    options: tuple[dict[str, Any], dict[str, Any]],
    key: tuple[str, ...],
    few_rows: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("diff")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "_FEW_ROWS", few_rows)  # 1: joins, as large tables do
        found = difference(folder, *tables, key, options=options)
    assert_same(found, plain_difference(*tables, key), key)


# ── large tables, and what need not be read ───────────────────────────────────────────────────────


def numbers(rows: int, start: int = 0) -> pa.Table:
    n = pa.array(range(start, start + rows), pa.int64())
    return pa.table({"id": n, "price": pc.multiply(n, 0.5), "text": pc.cast(n, pa.string())})


def changed(table: pa.Table, *places: int, column: str = "price") -> pa.Table:
    """The same with other values of one column in these rows."""
    here = pc.is_in(pa.array(range(table.num_rows)), pa.array(places))
    values = pc.if_else(here, pc.add(table[column], 0.25), table[column])
    return table.set_column(table.schema.get_field_index(column), column, values)


def compared_again(
    folder: Path, key: Sequence[str], limit: int = EVERY, **database: Any
) -> RowDifference:
    """The two files that lie there, as they are now."""
    with ExitStack() as stack:
        a, b = (stored(stack, folder / f"{name}.parquet") for name in "ab")
        shared = [Shared(column.name, column.type) for column in a.source.schema]
        return row_difference(a, b, shared, key, limit=limit, spill=folder / "spill", **database)


@pytest.mark.parametrize(("group", "column"), [(3, "id"), (0, "text")], ids=["row group", "column"])
def test_what_has_the_same_bytes_in_both_is_never_decoded(
    group: int, column: str, tmp_path: Path
) -> None:
    before = numbers(10_000)
    options = {"row_group_size": 1000, "compression": "zstd"}
    found = difference(tmp_path, before, changed(before, 5), ["id"], options=(options, options))
    assert (found.changed, found.cells, found.row_groups_read) == (1, {"price": 1}, 2)
    # The same damage in both: nobody could read that chunk any more.
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        index = file.schema_arrow.get_field_index(column)
        chunk = file.metadata.row_group(group).column(index)
    for name in "ab":
        data = bytearray((tmp_path / f"{name}.parquet").read_bytes())
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        data[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
        (tmp_path / f"{name}.parquet").write_bytes(data)
    with pytest.raises(OSError, match="page header"):
        pq.read_table(tmp_path / "a.parquet")
    assert compared_again(tmp_path, ["id"]) == found


def moved(rows: int) -> dict[str, tuple[pa.Table, pa.Table]]:
    """Versions in which rows lie elsewhere; ten of them are others, too."""
    table = numbers(rows)
    other = changed(table, *range(7, rows, rows // 10))
    new = numbers(1, start=-1)
    middle = rows // 3
    order = pc.sort_indices(pc.random(rows, initializer=1))
    return {
        "one in front": (table, pa.concat_tables([new, other])),
        "one in the middle": (table, pa.concat_tables([other[:middle], new, other[middle:]])),
        "some at the end": (table, pa.concat_tables([other, numbers(3, start=rows)])),
        "shuffled": (table, other.take(order)),
        "a row less": (table, pa.concat_tables([other[:middle], other[middle + 1 :]])),
    }


@pytest.mark.parametrize("key", [["id"], []], ids=["key", "whole rows"])
@pytest.mark.parametrize("how", moved(100))
def test_rows_that_moved_are_found_by_a_join(
    how: str, key: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_needed(_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(rows_module, "_FEW_ROWS", 1)
    monkeypatch.setattr(rows_module._Comparison, "_group", not_needed)
    a, b = moved(5000)[how]
    options = {"row_group_size": 1000}
    found = difference(tmp_path, a, b, key, options=(options, options))
    assert_same(found, plain_difference(a, b, key), key)


def test_other_row_groups_and_another_codec_change_nothing(tmp_path: Path) -> None:
    a, b = numbers(5000), changed(numbers(5000), 1, 4999)
    for options in ({"row_group_size": 700}, {"compression": "gzip"}, {"version": "1.0"}):
        found = difference(tmp_path, a, b, ["id"], options=({"row_group_size": 999}, options))
        assert (found.changed, found.added, found.removed) == (2, 0, 0)
        same = difference(tmp_path, a, a, ["id"], options=({"row_group_size": 999}, options))
        assert (same.changed, same.added, same.removed) == (0, 0, 0)


def test_row_groups_that_only_one_file_has_at_an_end_leave_the_others_unread(
    tmp_path: Path,
) -> None:
    options = ({"row_group_size": 1000}, {"row_group_size": 1000})
    for a, b in ((numbers(4000), numbers(6000)), (numbers(4000, start=2000), numbers(6000))):
        found = difference(tmp_path, a, b, ["id"], options=options)
        assert (found.added, found.removed, found.row_groups_read) == (2000, 0, 2)
        back = difference(tmp_path, b, a, ["id"], options=options)
        assert (back.added, back.removed, back.row_groups_read) == (0, 2000, 2)


def test_a_difference_larger_than_memory_goes_to_the_disk(tmp_path: Path) -> None:
    rows = 400_000
    a, b = numbers(rows), changed(numbers(rows, start=10), *range(0, rows, 2))
    found = difference(tmp_path, a, b, ["id"], limit=1, memory_limit="48MB")
    assert (found.added, found.removed, found.changed) == (10, 10, rows // 2 - 5)
    assert found.first_removed == [{"id": 0, "price": 0.0, "text": "0"}]


# ── values and types ──────────────────────────────────────────────────────────────────────────────

NS, US_UTC, NS_UTC = pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.timestamp("ns", "UTC")
LONG = pa.decimal256(50, 2)
MAPS = pa.map_(pa.string(), pa.int64())
#: Values that are as near to each other as their type allows.
NEIGHBOURS: dict[str, tuple[pa.DataType, Any, Any]] = {
    "bool": (pa.bool_(), True, False),
    "int64": (pa.int64(), 2**63 - 1, 2**63 - 2),
    "uint64": (pa.uint64(), 2**64 - 1, 2**64 - 2),
    "float64": (pa.float64(), 0.1 + 0.2, 0.3),
    "float32": (pa.float32(), 1.0, 1.0000001192092896),
    "float16": (pa.float16(), 1.0, 1.0009765625),
    "text": (pa.string(), "1", "1 "),
    "NULL and text": (pa.string(), None, ""),
    "bytes": (pa.binary(), b"a\0", b"a"),
    "16 bytes": (pa.binary(16), bytes(16), bytes(15) + b"1"),
    "day": (pa.date32(), 19_000, 19_001),
    "instant": (US_UTC, 1, 2),
    "nanosecond": (NS, 1, 2),
    "nanosecond in UTC": (NS_UTC, 1, 2),
    "years beyond microseconds": (pa.timestamp("ms"), 10**17, 10**17 + 1),
    "time of day": (pa.time64("ns"), 1, 2),
    "decimal": (pa.decimal128(38, 2), "1.01", "1.02"),
    "long decimal": (LONG, f"{10**47}.01", f"{10**47}.02"),
    "list": (pa.list_(NS_UTC), [1, None], [1, 0]),
    "struct": (pa.struct([("a", pa.int64()), ("b", LONG)]), {"a": 1}, {"a": None}),
    "repeated key": (MAPS, [("a", 1), ("a", 2)], [("a", 1), ("a", 1)]),
    "order of a map": (MAPS, [("a", 1), ("b", 2)], [("b", 2), ("a", 1)]),
}


def of_type(type_: pa.DataType, value: Any) -> pa.Array:
    if pa.types.is_decimal(type_):
        return pa.array([value], pa.string()).cast(type_)
    if pa.types.is_temporal(type_):
        integers = pa.int32() if type_ == pa.date32() else pa.int64()
        return pa.array([value], integers).cast(type_)
    if type_ == pa.float16():
        return pa.array([value], pa.float32()).cast(type_)
    return pa.array([value], type_)


@pytest.mark.parametrize(("type_", "one", "other"), NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_values_are_told_apart_to_their_last_digit(
    type_: pa.DataType, one: Any, other: Any, tmp_path: Path
) -> None:
    a, b = (pa.table({"k": [1], "v": of_type(type_, value)}) for value in (one, other))
    found = difference(tmp_path, a, b, ["k"])
    assert (found.changed, found.added, found.removed) == (1, 0, 0)
    assert len({repr(cell) for cell in found.first_changed[0].cells["v"]}) == 2
    rewritten = difference(tmp_path, a, a, ["k"], options=({}, {"compression": "none"}))
    assert (rewritten.changed, rewritten.added, rewritten.removed) == (0, 0, 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [(0.0, -0.0), (float("nan"), -float("nan")), (None, None)],
    ids=["zeros", "no numbers", "nothing"],
)
def test_zeros_are_equal_and_so_is_what_is_no_number(
    one: float | None, other: float | None, tmp_path: Path
) -> None:
    a, b = (
        pa.table(
            {
                "x": pa.array([value], pa.float64()),
                "list": pa.array([[value]], pa.list_(pa.float32())),
                "struct": pa.array([{"f": value}], pa.struct([("f", pa.float64())])),
            }
        )
        for value in (one, other)
    )
    for key in (["x"], ["list"], []):
        found = difference(tmp_path, a, b, key, options=({}, {"compression": "none"}))
        assert (found.changed, found.added, found.removed) == (0, 0, 0)


def test_a_key_may_be_null_and_of_several_columns(tmp_path: Path) -> None:
    a = pa.table({"k": [None, 1, 1], "l": ["x", None, "x"], "v": [1, 2, 3]})
    b = pa.table({"k": [None, 1, 2], "l": ["x", None, "x"], "v": [9, 2, 3]})
    found = difference(tmp_path, a, b, ["k", "l"])
    assert_same(found, plain_difference(a, b, ["k", "l"]), ["k", "l"])
    assert (found.changed, found.added, found.removed) == (1, 1, 1)


def test_where_rows_that_differ_share_a_key_whole_rows_are_told(tmp_path: Path) -> None:
    a = pa.table({"k": [1, 1, 2], "v": [1, 2, 3]})
    b = pa.table({"k": [1, 1, 2], "v": [1, 5, 4]})
    assert difference(tmp_path, a, b, ["k"]).changed == 2  # (1, 1) is the same in both
    worse = pa.table({"k": [1, 1, 2], "v": [7, 5, 4]})
    found = difference(tmp_path, a, worse, ["k"])
    assert (found.key_repeats, found.added, found.removed) == (True, 3, 3)


def test_the_first_rows_are_those_of_the_smallest_keys(tmp_path: Path) -> None:
    a, b = numbers(50), changed(numbers(60), *range(0, 50, 5))
    found = difference(tmp_path, a, b.take(pa.array(range(59, -1, -1))), ["id"], limit=2)
    assert [change.key for change in found.first_changed] == [{"id": 0}, {"id": 5}]
    assert found.first_changed[1].cells == {"price": (2.5, 2.75)}
    assert [row["id"] for row in found.first_added] == [50, 51]
    none = difference(tmp_path, a, b, ["id"], limit=0)
    assert (none.first_added, none.first_changed, none.added) == ([], [], 10)


@pytest.mark.parametrize("name", ["file_row_number", "FileName", "select", "it's\"", "p", "c0", ""])
def test_columns_may_have_any_name(name: str, tmp_path: Path) -> None:
    a = pa.table({name: [1, 2], "a.b": ["x", "y"], "a": [{"b": 1}, {"b": 2}]})
    b = a.set_column(1, "a.b", pa.array(["x", "z"]))
    assert difference(tmp_path, a, b, [name]).cells == {"a.b": 1}
    assert difference(tmp_path, a, b, []).first_added == [{name: 2, "a.b": "z", "a": {"b": 2}}]


def test_a_plain_table_is_read_by_duckdb_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_needed(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(Tables, "bring_through_arrow", not_needed)
    assert difference(tmp_path, numbers(10), changed(numbers(10), 3), ["id"]).changed == 1


def test_a_file_that_duckdb_cannot_read_is_compared_through_arrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: Any) -> Any:
        raise duckdb.IOException("no way to read this")

    monkeypatch.setattr(Tables, "bring", cannot)
    options = {"row_group_size": 500}
    for key, how in ((["id"], "one in front"), (["id"], "some at the end"), ([], "shuffled")):
        a, b = moved(3000)[how]
        found = difference(tmp_path, a, b, key, options=(options, options))
        assert_same(found, plain_difference(a, b, key), key)


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────


def test_equal_bytes_prove_nothing_under_another_type_or_writer(tmp_path: Path) -> None:
    """A file whose integers are the other's instants, byte for byte, is another table."""
    options = {"compression": "none", "write_statistics": False, "use_dictionary": False}
    instants = pa.array([1, 2], pa.int64()).cast(US_UTC)
    with ExitStack() as stack:
        files = []
        for name, values in (("a", pa.array([1, 2], pa.int64())), ("b", instants)):
            path = tmp_path / f"{name}.parquet"
            pq.write_table(pa.table({"v": values}), path, store_schema=False, **options)
            files.append(stored(stack, path))
        assert layout(files[0], files[0], ["v"]).pairs == []
        (pair,) = layout(files[0], files[1], ["v"]).pairs
    assert pair.columns == {"v"}
