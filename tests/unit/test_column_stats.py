"""Column statistics say what is in a column, in JSON, whatever the type and the batches."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given

from bus.column_stats import ColumnStats
from bus.hashing import ContentHasher, HashPlan


def stats(
    table: pa.Table, *, rows: int = 100, plan: HashPlan | None = None
) -> list[dict[str, Any]]:
    """Statistics of a table in batches of `rows`; with a plan, sharing the work of the hash."""
    found = ColumnStats(table.schema)
    hasher = ContentHasher(table.schema, plan) if plan is not None else None
    for batch in table.to_batches(max_chunksize=rows):
        found.update(batch, None if hasher is None else hasher.update(batch))
    return found.result()


def of(values: list[Any], type_: pa.DataType) -> dict[str, Any]:
    [one] = stats(pa.table({"x": pa.array(values, type_)}), rows=2)
    assert one.pop("name") == "x"
    json.dumps(one, allow_nan=False)
    return one


def raw(values: list[int | None], type_: pa.DataType) -> pa.Array:
    return pa.array(values, pa.int32() if type_.bit_width == 32 else pa.int64()).view(type_)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "type_", "expected"),
    [
        ([3, None, -1], pa.int16(), {"nulls": 1, "min": -1, "max": 3}),
        ([2**63, 1], pa.uint64(), {"nulls": 0, "min": 1, "max": str(2**63)}),
        ([1.5, NAN, -0.0, None], pa.float64(), {"nulls": 1, "nans": 1, "min": 0.0, "max": 1.5}),
        ([-1.5, -INF], pa.float64(), {"nulls": 0, "min": "-inf", "max": -1.5}),
        ([NAN, INF], pa.float32(), {"nulls": 0, "nans": 1, "min": "inf", "max": "inf"}),
        ([NAN, NAN], pa.float16(), {"nulls": 0, "nans": 2}),
        ([True, None, True], pa.bool_(), {"nulls": 1, "min": True, "max": True}),
        ([True, False], pa.bool_(), {"nulls": 0, "min": False, "max": True}),
        (["b", "", None, "ä"], pa.string(), {"nulls": 1, "min": "", "max": "ä"}),
        (["b", "a"], pa.string_view(), {"nulls": 0, "min": "a", "max": "b"}),
        (["b", "a"], pa.dictionary(pa.int8(), pa.string()), {"nulls": 0, "min": "a", "max": "b"}),
        ([b"\xff", b""], pa.binary(), {"nulls": 0, "min": "", "max": "ff"}),
        ([b"ab"], pa.binary(2), {"nulls": 0, "min": "6162", "max": "6162"}),
        (
            [Decimal("-1.50"), Decimal("1E+3")],
            pa.decimal128(9, 2),
            {"nulls": 0, "min": "-1.50", "max": "1000.00"},
        ),
        ([None, None], pa.int64(), {"nulls": 2}),
        ([None, None], pa.bool_(), {"nulls": 2}),
        ([None], pa.null(), {"nulls": 1}),
        ([], pa.string(), {"nulls": 0}),
        ([[1], None], pa.list_(pa.int64()), {"nulls": 1}),
        ([(1, 2, 3), None], pa.month_day_nano_interval(), {"nulls": 1}),
    ],
    ids=str,
)
def test_each_family_has_its_bounds(
    values: list[Any], type_: pa.DataType, expected: dict[str, Any]
) -> None:
    assert of(values, type_) == expected


@pytest.mark.parametrize(
    ("value", "type_", "text"),
    [
        (0, pa.timestamp("s", "UTC"), "1970-01-01T00:00:00Z"),
        (-1, pa.timestamp("ms", "America/New_York"), "1969-12-31T23:59:59.999Z"),
        (1_700_000_000_123_456, pa.timestamp("us"), "2023-11-14T22:13:20.123456"),
        (1, pa.timestamp("ns", "UTC"), "1970-01-01T00:00:00.000000001Z"),
        (253_402_300_799, pa.timestamp("s"), "9999-12-31T23:59:59"),
        (253_402_300_800, pa.timestamp("s"), "+10000-01-01T00:00:00"),
        (-62_135_596_800, pa.timestamp("s"), "0001-01-01T00:00:00"),
        (-62_135_596_801, pa.timestamp("s"), "+0000-12-31T23:59:59"),
        (2**63 - 1, pa.timestamp("s"), "+292277026596-12-04T15:30:07"),
        (-(2**63), pa.timestamp("s"), "-292277022657-01-27T08:29:52"),
        (0, pa.date32(), "1970-01-01"),
        (2_932_897, pa.date32(), "+10000-01-01"),
        (-719_528 - 365, pa.date32(), "-0001-01-01"),
        (86_399_999, pa.time32("ms"), "23:59:59.999"),
        (1, pa.time64("ns"), "00:00:00.000000001"),
        (-5, pa.duration("ms"), -5_000_000),
        (2**62, pa.duration("us"), str(2**62 * 1000)),
    ],
    ids=str,
)
def test_times_are_iso_8601_in_any_year(value: int, type_: pa.DataType, text: Any) -> None:
    [found] = stats(pa.table({"x": raw([value, None], type_)}))
    assert (found["min"], found["max"], found["nulls"]) == (text, text, 1)


def test_long_texts_are_cut_between_characters_and_say_so() -> None:
    assert of(["ä" * 40, "a" * 64], pa.string()) == {
        "nulls": 0,
        "min": "a" * 64,
        "max": "ä" * 32,
        "truncated": True,
    }
    assert of(["x" * 63 + "ä"], pa.string())["min"] == "x" * 63
    assert "truncated" not in of(["a" * 64], pa.string())
    assert of([b"\1" * 65], pa.binary())["truncated"] is True


_COLUMNS = st.fixed_dictionaries(
    {
        "i": st.none() | st.integers(-(2**63), 2**63 - 1),
        "f": st.none() | st.floats(),
        "s": st.none() | st.text(max_size=5),
        "b": st.none() | st.booleans(),
    }
)
_TYPES = {"i": pa.int64(), "f": pa.float64(), "s": pa.string(), "b": pa.bool_()}


@given(st.lists(_COLUMNS, max_size=12), st.integers(1, 5))
def test_statistics_are_what_python_finds_in_batches_of_any_size_hashed_or_not(
    data: list[dict[str, Any]], rows: int
) -> None:
    table = pa.table({n: pa.array([row[n] for row in data], t) for n, t in _TYPES.items()})
    expected = []
    for name in _TYPES:
        values = [row[name] for row in data if row[name] is not None]
        nans = sum(isinstance(value, float) and math.isnan(value) for value in values)
        numbers = [value for value in values if value == value]  # noqa: PLR0124 - not NaN
        facts: dict[str, Any] = {"name": name, "nulls": len(data) - len(values)}
        facts |= {"nans": nans} if nans else {}
        bounds = {"min": min(numbers), "max": max(numbers)} if numbers else {}
        expected.append(facts | {k: _json(v) for k, v in bounds.items()})
    assert stats(table, rows=rows) == expected
    assert stats(table, rows=rows, plan=HashPlan.for_schema(table.schema)) == expected
    assert stats(table, rows=rows, plan=HashPlan({"s": None}, ("s",))) == expected


def _json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def test_a_column_cast_for_its_hash_is_described_as_the_file_holds_it() -> None:
    table = pa.table(
        {"t": pa.array([0, 1500], pa.timestamp("ms")), "n": pa.array([1, 2], pa.int8())}
    )
    plan = HashPlan({"t": pa.timestamp("us", "UTC"), "n": pa.float64()})
    assert stats(table, plan=plan) == stats(table)
    assert stats(table)[0]["max"] == "1970-01-01T00:00:01.500"
