"""The content hash sees the rows, all of them, and nothing else."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import hypothesis.strategies as st
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings

from bus.hashing import (
    ContentHasher,
    HashPlan,
    LossyCast,
    OutOfOrder,
    UnhashableType,
    content_hash,
    digest,
    file_hash,
    order,
    out_of_core,
)
from tests.contract import content_hash_reference as reference
from tests.contract.described_tables import arrow_array, arrow_table

if TYPE_CHECKING:
    from collections.abc import Sequence

REPOSITORY = Path(__file__).parents[2]


# ── tables to hash ───────────────────────────────────────────────────────────────────────────────

_TEXT = st.text(st.characters(codec="utf-8"), max_size=4) | st.sampled_from(["", "a", "a\0", "\\N"])
_FLOATS = st.floats(width=64) | st.sampled_from([0.0, -0.0, float("nan"), float("inf"), 1.5])
_I64 = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2)


def _described_float(value: float) -> float | str:
    text = repr(value)
    return text if text in {"nan", "inf", "-inf", "-0.0"} else value


_SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "null": st.none(),
    "bool": st.booleans(),
    "int8": st.integers(-128, 127),
    "int64": _I64,
    "uint32": st.integers(0, 2**32 - 1),
    "uint64": st.integers(0, 2**64 - 1) | st.integers(0, 2),
    "float64": _FLOATS.map(_described_float),
    "string": _TEXT,
    "large_string": _TEXT,
    "string_view": _TEXT,
    "binary": st.binary(max_size=3).map(bytes.hex),
    "fixed_binary:2": st.binary(min_size=2, max_size=2).map(bytes.hex),
    "date32": st.integers(-(2**31), 2**31 - 1),
    "timestamp:s": _I64,
    "timestamp:ms:UTC": _I64,
    "timestamp:us": _I64,
    "timestamp:ns:UTC": _I64,
    "time:ms": st.integers(0, 86_399_999),
    "duration:us": st.integers(-(10**15), 10**15),
    "decimal:18:4": st.integers(-(10**18) + 1, 10**18 - 1).map(lambda n: f"{n}e-4"),
    "decimal:60:20": st.integers(-(10**59), 10**59).map(lambda n: f"{n}e-20"),
}
_scalar_types = st.sampled_from(sorted(_SCALARS))
_types = st.recursive(
    _scalar_types,
    lambda inner: st.one_of(
        inner.map(lambda t: {"list": t}),
        st.dictionaries(st.sampled_from("zaä"), inner, min_size=1).map(lambda f: {"struct": f}),
        st.tuples(_scalar_types.filter(lambda t: t != "null"), inner).map(
            lambda pair: {"map": [*pair]}
        ),
    ),
    max_leaves=3,
)


def values_of(type_: Any, *, nullable: bool = True) -> st.SearchStrategy[Any]:
    match type_:
        case {"list": element}:
            found: st.SearchStrategy[Any] = st.lists(values_of(element), max_size=3)
        case {"struct": fields}:
            found = st.fixed_dictionaries({name: values_of(t) for name, t in fields.items()})
        case {"map": [key, item]}:
            pair = st.tuples(values_of(key, nullable=False), values_of(item)).map(list)
            found = st.lists(pair, max_size=2)
        case _:
            found = _SCALARS[type_]
    return st.none() | found if nullable else found


@st.composite
def tables(draw: st.DrawFn, types: st.SearchStrategy[Any] = _types) -> dict[str, Any]:
    """A described table of 1 to 3 columns and 0 to 8 rows, some of them equal."""
    schema = draw(st.dictionaries(st.sampled_from(["b", "a", "Z", "é"]), types, min_size=1))
    row = st.fixed_dictionaries({name: values_of(type_) for name, type_ in schema.items()})
    rows = draw(st.lists(row, max_size=6))
    rows += draw(st.lists(st.sampled_from(rows), max_size=2)) if rows else []
    scalar = [name for name, type_ in schema.items() if isinstance(type_, str)]
    sort_by = draw(st.lists(st.sampled_from(scalar), unique=True)) if scalar else []
    columns = {
        name: {"type": type_, "values": [row[name] for row in rows]}
        for name, type_ in schema.items()
    }
    return {"columns": columns, "sort_by": sort_by}


def plan_of(table: dict[str, Any]) -> HashPlan:
    return HashPlan(dict.fromkeys(table["columns"]), tuple(table["sort_by"]))


def hashed(table: dict[str, Any]) -> str:
    return content_hash(arrow_table(table), plan_of(table))


def candles(rows: int, seed: int = 1) -> pa.Table:
    """Candles in random order, with text of few values, ties, NULL and NaN."""
    r = random.Random(seed)
    price = [r.choice([None, float("nan"), -0.0, r.lognormvariate(0, 1)]) for _ in range(rows)]
    return pa.table(
        {
            "chain": [r.choice(["solana", "evm", None]) for _ in range(rows)],
            "hits": pa.array([r.randrange(2**64 - 9, 2**64) for _ in range(rows)], pa.uint64()),
            "price": price,
            "token": [f"token{r.randrange(rows)}" for _ in range(rows)],
            "ts": pa.array(
                [r.randrange(-(10**12), 10**12) for _ in range(rows)], pa.timestamp("ms")
            ),
            "wide": pa.array([r.randrange(-(2**63), 2**63) for _ in range(rows)], pa.int64()),
            "amount": pa.array([Decimal(r.randrange(-99, 99)) / 10 for _ in range(rows)]),
            "ok": [r.random() < 0.5 for _ in range(rows)],
            "tags": [[*"ab"[: r.randrange(3)]] for _ in range(rows)],
        }
    )


def taken(table: pa.Table, positions: Sequence[int]) -> pa.Table:
    """Rows at positions. (Arrow's own `take` knows neither views nor nested views.)"""
    parts = [table.slice(row, 1) for row in positions]
    return pa.concat_tables(parts) if parts else table


def shuffled(table: pa.Table) -> pa.Table:
    return taken(table, random.Random(0).sample(range(table.num_rows), table.num_rows))


def streamed(table: pa.Table, sizes: Sequence[int], plan: HashPlan | None = None) -> ContentHasher:
    hasher = ContentHasher(table.schema, plan)
    start = 0
    for size in [*sizes, table.num_rows]:
        for batch in table.slice(start, size).to_batches():
            hasher.update(batch)
        start += size
    return hasher


# ── the same rows ────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=150)
@given(tables())
def test_a_table_has_the_hash_that_the_reference_computes(table: dict[str, Any]) -> None:
    assert hashed(table) == reference.reference_hash(table)


@settings(max_examples=60)
@given(tables(), st.randoms(use_true_random=False), st.lists(st.integers(0, 3), max_size=5))
def test_neither_the_order_of_rows_nor_the_cut_into_batches_matters(
    table: dict[str, Any], r: random.Random, sizes: list[int]
) -> None:
    arrow = arrow_table(table)
    positions = r.sample(range(arrow.num_rows), arrow.num_rows)
    permuted = taken(arrow, positions)
    expected = content_hash(arrow, plan_of(table))
    assert content_hash(permuted, plan_of(table)) == expected
    assert streamed(permuted, sizes, plan_of(table)).result() == expected


@settings(max_examples=50)
@given(tables(_scalar_types), st.lists(st.integers(0, 9), max_size=4))
def test_chunks_are_cut_by_rows_whatever_batches_arrive(
    table: dict[str, Any], sizes: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "CHUNK_ROWS", 3)
        patch.setattr(reference, "CHUNK_ROWS", 3)
        expected = reference.reference_hash(table)
        assert hashed(table) == expected
        assert streamed(arrow_table(table), sizes, plan_of(table)).result() == expected


def test_tables_of_many_rows_are_sorted_as_the_definition_says() -> None:
    # Above 1,024 rows the order is found by packed leading keys, not by comparing all keys.
    types = {
        "chain": "string",
        "hits": "uint64",
        "price": "float64",
        "token": "string",
        "ts": "timestamp:ms",
        "wide": "int64",
        "ok": "bool",
        "tags": {"list": "string"},
    }
    arrow = candles(2500)
    columns = {}
    for name, type_ in types.items():
        stored = arrow[name].cast(pa.int64()) if name == "ts" else arrow[name]
        values = stored.to_pylist()
        if name == "price":
            values = [value if value is None else _described_float(value) for value in values]
        columns[name] = {"type": type_, "values": values}
    for sort_by in ([], ["ts"], ["price", "ok"], ["hits"], ["token"], ["wide"], ["ok"]):
        table = {"columns": columns, "sort_by": sort_by}
        assert hashed(table) == reference.reference_hash(table), sort_by


@pytest.mark.parametrize("rows", [2, 1500])
def test_sorted_rows_are_recognised_and_two_swapped_rows_are_too(rows: int) -> None:
    table = candles(rows)
    hasher = ContentHasher(table.schema)
    columns = hasher.canonical(table.combine_chunks().to_batches()[0])
    keys = hasher.empty_digest(None).keys(columns)
    in_order = table.take(order.sort_permutation(keys))
    for sizes in ([], [1], [rows // 2, 1, 1]):
        assert streamed(in_order, sizes).in_order, sizes
    swapped = in_order.take([*range(rows - 2), rows - 1, rows - 2])
    for sizes in ([], [rows - 1]):
        assert not streamed(swapped, sizes).in_order, sizes
        assert streamed(swapped, sizes).result() == content_hash(table)


def small() -> pa.Table:
    return pa.table(
        {
            "s": ["b", None, "a", "a"],
            "i": pa.array([3, 1, 0, 2], pa.int64()),
            "f": [0.5, float("nan"), None, -2.0],
            "t": pa.array([0, -1, 10**9, None], pa.timestamp("ms")),
            "x": [b"\xff", b"", None, b"a"],
        }
    )


@pytest.mark.parametrize(
    ("column", "type_"),
    [
        *(("s", t) for t in (pa.large_string(), pa.string_view())),
        *(("s", pa.dictionary(i, pa.string())) for i in (pa.int8(), pa.uint32())),
        *(("x", t) for t in (pa.large_binary(), pa.binary_view())),
        *(("i", t) for t in (pa.int8(), pa.uint8(), pa.int32(), pa.uint64())),
        *(("f", t) for t in (pa.float16(), pa.float32())),
        *(("t", t) for t in (pa.timestamp("us"), pa.timestamp("ns"))),
    ],
    ids=str,
)
def test_width_flavour_and_unit_do_not_matter(column: str, type_: pa.DataType) -> None:
    table = small()
    index = table.schema.get_field_index(column)
    cast = table.set_column(index, column, table[column].cast(type_))
    assert content_hash(cast) == content_hash(table)


def test_column_order_and_metadata_do_not_matter() -> None:
    table = small()
    assert content_hash(table.select(["x", "t", "f", "i", "s"])) == content_hash(table)
    assert content_hash(table.replace_schema_metadata({"writer": "w"})) == content_hash(table)


def test_extension_types_run_ends_and_lists_of_any_kind_are_what_they_store() -> None:
    raw = [b"0123456789abcdef", None]
    uuids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array(raw, pa.binary(16)))
    assert content_hash(pa.table({"a": uuids})) == content_hash(pa.table({"a": raw}))
    run_ends = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3]), pa.array(["x", None]))
    plain = pa.table({"a": ["x", "x", None]})
    assert content_hash(pa.table({"a": run_ends})) == content_hash(plain)
    pairs = [[1, 2], None, [3, None]]
    kinds = (pa.list_, pa.large_list, pa.list_view, pa.large_list_view, lambda t: pa.list_(t, 2))
    hashes = {content_hash(pa.table({"a": pa.array(pairs, kind(pa.int32()))})) for kind in kinds}
    assert len(hashes) == 1


def test_names_of_list_elements_and_map_entries_do_not_matter() -> None:
    pairs = [[("x", 1.5), ("y", None)], None, []]
    odd = pa.map_(pa.field("k", pa.string(), nullable=False), pa.field("topics", pa.float64()))
    maps = [pa.array(pairs, type_) for type_ in (pa.map_(pa.string(), pa.float64()), odd)]
    assert len({content_hash(pa.table({"m": array})) for array in maps}) == 1
    names = [pa.field(name, pa.int8(), nullable=name == "item") for name in ("item", "element")]
    lists = [pa.array([[1], []], pa.list_(field)) for field in names]
    assert len({content_hash(pa.table({"m": array})) for array in lists}) == 1


def test_what_lies_under_null_and_outside_a_slice_does_not_matter() -> None:
    valid = pa.py_buffer(b"\x05")
    hidden = pa.Array.from_buffers(pa.int64(), 3, [valid, pa.array([1, 99, 3]).buffers()[1]])
    text = pa.array(["a", "hidden", "b"])
    hidden_text = pa.Array.from_buffers(pa.string(), 3, [valid, *text.buffers()[1:]])
    lists = pa.array([[1], [98, 99], [3]])
    hidden_lists = pa.Array.from_buffers(
        lists.type, 3, [valid, lists.buffers()[1]], children=[lists.values]
    )
    struct = pa.StructArray.from_arrays([hidden, text], ["i", "s"], mask=pc.is_null(hidden))
    table = pa.table({"i": hidden, "s": hidden_text, "l": hidden_lists, "r": struct})
    clean = pa.table(
        {
            "i": [1, None, 3],
            "s": ["a", None, "b"],
            "l": [[1], None, [3]],
            "r": [{"i": 1, "s": "a"}, None, {"i": 3, "s": "b"}],
        }
    )
    assert content_hash(table) == content_hash(clean)
    part = candles(20).slice(7, 11)
    assert content_hash(part) == content_hash(pa.Table.from_pylist(part.to_pylist(), part.schema))


def engine_table(rows: int) -> pa.Table:
    r = random.Random(5)
    return pa.table(
        {
            "day": pa.array([r.randrange(20_000) for _ in range(rows)], pa.date32()),
            "note": [r.choice([None, "", "ä", "🚀", "long " * 9]) for _ in range(rows)],
            "price": [r.choice([None, float("nan"), -0.0, r.gauss(0, 1)]) for _ in range(rows)],
            "qty": pa.array([r.choice([None, r.randrange(99)]) for _ in range(rows)], pa.int32()),
            "ts": pa.array([r.randrange(10**15) for _ in range(rows)], pa.timestamp("us")),
            "ok": [r.choice([None, True, False]) for _ in range(rows)],
            "tags": [r.choice([None, [], ["a", None]]) for _ in range(rows)],
        }
    )


def test_rewriting_by_another_engine_changes_nothing(tmp_path: Path) -> None:
    table = engine_table(300)
    expected = content_hash(table)
    target = tmp_path / "t.parquet"
    for options in (
        {"compression": "zstd", "row_group_size": 7, "use_dictionary": False},
        {"compression": "none", "data_page_version": "2.0", "data_page_size": 64},
        {"version": "1.0", "compression": "gzip"},
    ):
        pq.write_table(shuffled(table), target, **options)
        assert content_hash(pq.read_table(target)) == expected, options
    rows = duckdb.from_arrow(table).order("price")
    rows.write_parquet(str(target), row_group_size=128)
    assert content_hash(pq.read_table(target)) == expected
    pl.DataFrame(table).reverse().write_parquet(target)
    assert content_hash(pq.read_table(target)) == expected


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kathmandu"])
def test_neither_time_zone_nor_threads_nor_locale_matter(zone: str) -> None:
    code = (
        "import pyarrow as pa; from tests.unit.test_hashing import candles, content_hash;"
        "pa.set_cpu_count(8); print(content_hash(candles(1500)))"
    )
    environment = os.environ | {"TZ": zone, "LC_ALL": "tr_TR.UTF-8", "PYTHONHASHSEED": "7"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout.strip() == content_hash(candles(1500))


# ── other rows ───────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60)
@given(tables(), st.data())
def test_changing_one_cell_changes_the_hash(table: dict[str, Any], data: st.DataObject) -> None:
    rows = len(next(iter(table["columns"].values()))["values"])
    assume(rows)
    name = data.draw(st.sampled_from(sorted(table["columns"])))
    row = data.draw(st.integers(0, rows - 1))
    column = table["columns"][name]
    changed = data.draw(values_of(column["type"]))
    # NaN is NaN, 0.0 is -0.0, 1.5 is 1.50: only what the definition tells apart is a change.
    before, after = (reference.chunk(column["type"], [v]) for v in (column["values"][row], changed))
    assume(before != after)
    values = [*column["values"][:row], changed, *column["values"][row + 1 :]]
    other = table | {"columns": table["columns"] | {name: column | {"values": values}}}
    assert hashed(other) != hashed(table)


@settings(max_examples=40)
@given(tables())
def test_one_copy_of_a_row_more_or_less_changes_the_hash(table: dict[str, Any]) -> None:
    arrow = arrow_table(table)
    assume(arrow.num_rows)
    plan = plan_of(table)
    more = pa.concat_tables([arrow, arrow.slice(0, 1)])
    assert len({content_hash(t, plan) for t in (arrow, more, arrow.slice(1))}) == 3


@settings(max_examples=30)
@given(tables())
def test_another_column_name_changes_the_hash(table: dict[str, Any]) -> None:
    arrow = arrow_table(table)
    names = [f"{arrow.schema.names[0]}_", *arrow.schema.names[1:]]
    assert content_hash(arrow.rename_columns(names)) != content_hash(arrow)


def test_the_same_values_in_another_family_have_another_hash() -> None:
    ones: dict[str, Any] = {
        "bool": True,
        "int64": 1,
        "float64": 1.0,
        "string": "1",
        "binary": "31",
        "date32": 1,
        "timestamp:s": 1,
        "timestamp:s:UTC": 1,
        "time:s": 1,
        "duration:s": 1,
        "decimal:5:0": "1",
    }
    for value in (0, 1):
        hashes = set()
        for type_, one in ones.items():
            values = [None] if value == 0 else [one]
            hashes.add(content_hash(pa.table({"a": arrow_array(type_, values)})))
        assert len(hashes) == len(ones)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"a": ["a|b"], "b": ["c"]}, {"a": ["a"], "b": ["b|c"]}),
        ({"a": [None]}, {"a": ["\\N"]}),
        ({"a": [None]}, {"a": [""]}),
        ({"a": [""], "b": ["x"]}, {"a": ["x"], "b": [""]}),
        ({"a": ["ab", "c"]}, {"a": ["a", "bc"]}),
        ({"a": [1, None]}, {"a": [1, 0]}),
        ({"a": [[1], [2]]}, {"a": [[1, 2], []]}),
        ({"a": [[], None]}, {"a": [[], []]}),
        ({"a": [[None]]}, {"a": [[]]}),
        ({"a": [[[1], []]]}, {"a": [[[], [1]]]}),
        ({"a": [{"x": 1}, {"x": None}]}, {"a": [{"x": 1}, None]}),
        ({"a": [1, 2], "b": [1, 2]}, {"a": [1, 2], "b": [2, 1]}),
        ({"a": [0.1 + 0.2]}, {"a": [0.3]}),
        ({"a": ["\u00e4"]}, {"a": ["a\u0308"]}),
    ],
    ids=repr,
)
def test_rows_that_look_alike_differ(left: dict[str, Any], right: dict[str, Any]) -> None:
    schema = pa.table({name: left[name] + right[name] for name in left}).schema
    hashes = {content_hash(pa.table(rows, schema=schema)) for rows in (left, right)}
    assert len(hashes) == 2


# ── plans and casts ──────────────────────────────────────────────────────────────────────────────


def test_a_plan_hashes_its_columns_only_and_in_its_types() -> None:
    table = pa.table({"n": pa.array([1, 2], pa.int32()), "run_id": ["r1", "r1"]})
    again = table.set_column(1, "run_id", [["r2", "r2"]])
    plan = HashPlan({"n": pa.int64()}, ("n",))
    assert content_hash(table, plan) == content_hash(again, plan)
    assert content_hash(table) != content_hash(again)
    as_float = HashPlan({"n": pa.float64()})
    assert content_hash(table, as_float) == content_hash(pa.table({"n": [1.0, 2.0]}))


def test_naive_times_count_as_utc_where_the_plan_says_instant() -> None:
    naive = pa.table({"t": pa.array([0, 10**12], pa.timestamp("ms"))})
    instants = pa.table({"t": pa.array([0, 10**15], pa.timestamp("us", "UTC"))})
    plan = HashPlan({"t": pa.timestamp("us", "UTC")})
    assert content_hash(naive, plan) == content_hash(instants, plan) == content_hash(instants)


@pytest.mark.parametrize(
    ("values", "source", "target"),
    [
        ([2**31], pa.int64(), pa.int32()),
        ([-1], pa.int64(), pa.uint64()),
        ([2**64 - 1], pa.uint64(), pa.int64()),
        ([2**53 + 1], pa.int64(), pa.float64()),
        ([1.5], pa.float64(), pa.int64()),
        ([0.1], pa.float64(), pa.float32()),
        ([1e300], pa.float64(), pa.float32()),
        ([[0.1]], pa.list_(pa.float64()), pa.list_(pa.float32())),
        ([{"a": 1, "b": 2}], None, pa.struct([("a", pa.int64())])),
        (["x"], pa.string(), pa.int64()),
        (["01"], pa.string(), pa.int64()),
        ([2], pa.int64(), pa.bool_()),
        ([1], pa.timestamp("us"), pa.timestamp("ms")),
        ([10**15], pa.timestamp("s"), pa.timestamp("ns")),
        ([1], pa.timestamp("ms"), pa.date32()),
        ([Decimal("1.23")], pa.decimal128(5, 2), pa.decimal128(5, 1)),
        ([Decimal("1.23")], pa.decimal128(5, 2), pa.int64()),
        ([0.5], pa.float64(), pa.decimal128(5, 0)),
        ([b"\xff"], pa.binary(), pa.string()),
        ([b"abc"], pa.binary(), pa.binary(2)),
        ([[1]], pa.list_(pa.int64()), pa.int64()),
    ],
    ids=str,
)
def test_a_cast_that_would_lose_something_is_an_error_that_names_the_column(
    values: list[Any], source: pa.DataType | None, target: pa.DataType
) -> None:
    table = pa.table({"price": pa.array([None, *values], source)})
    with pytest.raises(LossyCast, match="'price'") as caught:
        content_hash(table, HashPlan({"price": target}))
    assert (caught.value.column, caught.value.target) == ("price", target)


@pytest.mark.parametrize(
    ("values", "source", "target"),
    [
        ([float("nan"), -0.0, 0.5], pa.float64(), pa.float32()),
        ([2**53], pa.int64(), pa.float64()),
        ([1.0], pa.float64(), pa.int64()),
        (["a"], pa.string(), pa.binary()),
        ([b"a"], pa.binary(), pa.string()),
        ([86_400_000], pa.timestamp("ms"), pa.date32()),
        ([1], pa.int64(), pa.decimal128(22, 2)),
        ([None], pa.null(), pa.float64()),
        ([[1.0]], pa.list_(pa.float64()), pa.list_(pa.int8())),
        ([[], [None]], pa.list_(pa.null()), pa.list_(pa.string())),
        ([[1]], pa.list_(pa.int8()), pa.large_list(pa.int64())),
        (["a"], pa.dictionary(pa.int8(), pa.string()), pa.large_string()),
    ],
    ids=str,
)
def test_a_cast_that_loses_nothing_hashes_as_the_target(
    values: list[Any], source: pa.DataType, target: pa.DataType
) -> None:
    array = pa.array([*values, None], source)
    plain = array.dictionary_decode() if pa.types.is_dictionary(source) else array
    expected = content_hash(pa.table({"a": plain.cast(target)}))
    assert content_hash(pa.table({"a": array}), HashPlan({"a": target})) == expected


@pytest.mark.parametrize(
    ("columns", "sort_by"),
    [({}, ()), ({"a": None}, ("b",)), ({"a": None}, ("a", "a"))],
)
def test_a_plan_that_makes_no_sense_is_refused(
    columns: dict[str, Any], sort_by: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match=r"column"):
        HashPlan(columns, sort_by)


def test_a_plan_must_fit_the_table() -> None:
    table = pa.table({"a": [1], "l": [[1]]})
    with pytest.raises(ValueError, match="'b'"):
        content_hash(table, HashPlan({"b": None}))
    with pytest.raises(ValueError, match="'l' is nested"):
        content_hash(table, HashPlan({"l": None}, ("l",)))
    twice = pa.table([[1], [2]], names=["a", "a"])
    with pytest.raises(ValueError, match="one name"):
        content_hash(twice)


@pytest.mark.parametrize(
    "array",
    [
        pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]),
        pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
        pa.array([[(1, 2, 3)]], pa.list_(pa.month_day_nano_interval())),
        pa.array([2**62], pa.duration("s")),
        pa.array([[2**62]], pa.list_(pa.duration("s"))),
        pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]),
    ],
    ids=lambda array: str(array.type),
)
def test_what_the_definition_does_not_cover_is_named(array: pa.Array) -> None:
    with pytest.raises(UnhashableType, match="'odd'") as caught:
        content_hash(pa.table({"fine": [1], "odd": array}))
    assert caught.value.column == "odd"


# ── large tables ─────────────────────────────────────────────────────────────────────────────────


def test_rows_in_order_need_no_memory_for_a_sort_and_others_say_so() -> None:
    in_order = pa.table({"a": range(10_000)})
    hasher = ContentHasher(in_order.schema, sort_limit_bytes=1000)
    for batch in in_order.to_batches(max_chunksize=100):
        hasher.update(batch)
    assert hasher.result() == content_hash(in_order)
    hasher = ContentHasher(in_order.schema, sort_limit_bytes=1000)
    for batch in shuffled(in_order).to_batches(max_chunksize=100):
        hasher.update(batch)
    with pytest.raises(OutOfOrder):
        hasher.result()


def test_a_sort_on_disk_gives_the_hash_of_a_sort_in_memory(tmp_path: Path) -> None:
    table = pa.concat_tables([candles(10_000)] * 40)
    untouched = tmp_path.stat().st_mtime_ns
    on_disk = out_of_core.content_hash(
        table.to_batches(max_chunksize=10_000),
        table.schema,
        None,
        temp_dir=tmp_path,
        memory_limit_bytes=40 << 20,
    )
    assert on_disk == content_hash(table)
    assert tmp_path.stat().st_mtime_ns > untouched, "the limit was too high to show anything"
    assert [*tmp_path.iterdir()] == []


@settings(max_examples=25)
@given(table=tables())
def test_duckdb_orders_every_family_as_the_definition_does(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any]
) -> None:
    arrow = arrow_table(table)
    on_disk = out_of_core.content_hash(
        shuffled(arrow).to_batches(),
        arrow.schema,
        plan_of(table),
        temp_dir=tmp_path_factory.getbasetemp(),
        memory_limit_bytes=50 << 20,
    )
    assert on_disk == hashed(table)


def test_long_documents_are_hashed_from_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"id": range(2000), "text": ["ä" * (n % 97) or None for n in range(2000)]})
    expected = content_hash(table)
    monkeypatch.setattr(digest, "SPOOL_BYTES", 1000)
    hasher = ContentHasher(table.schema, sort_limit_bytes=10_000, temp_dir=tmp_path)
    for batch in table.to_batches(max_chunksize=10):
        hasher.update(batch)
    assert hasher.result() == expected


# ── files ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size_bytes", [0, 1, 1 << 18, (1 << 18) + 1])
def test_the_file_hash_is_what_sha256sum_says_and_leaves_the_descriptor_alone(
    tmp_path: Path, size_bytes: int
) -> None:
    content = random.Random(1).randbytes(size_bytes)
    path = tmp_path / "file"
    path.write_bytes(content)
    expected = "sha256:" + hashlib.sha256(content).hexdigest()
    assert file_hash(path) == expected
    with path.open("rb") as opened:
        opened.seek(size_bytes // 2)
        assert file_hash(opened.fileno()) == expected
        assert opened.tell() == size_bytes // 2
        assert opened.read() == content[size_bytes // 2 :]
