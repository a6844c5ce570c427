"""Contracts: what a table of a kind is held to, and how a user declares one."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from bus import contract, rules
from bus.columns import Column, convert, fits, parse_type, type_text
from bus.errors import Code, Problem, Refused
from bus.hashing import content_hash
from bus.kinds import OPEN_KINDS
from bus.settings import Settings
from bus.specs import Check, Registry, Spec

if TYPE_CHECKING:
    from pathlib import Path

UTC_US = pa.timestamp("us", "UTC")
BUILT_IN = Registry.built_in()


def spec_of(kind: str, version: int = 1) -> Spec:
    found = BUILT_IN.find(kind, version)
    assert found is not None
    return found


def a_value(column: Column, row: int) -> Any:
    if pa.types.is_string(column.type):
        return f"{column.name}-{row}"
    if pa.types.is_boolean(column.type):
        return row % 2 == 0
    if pa.types.is_timestamp(column.type):
        return datetime(2026, 1, 1, 0, row % 60, tzinfo=UTC)
    return row + 1


ENUMS = {
    "alert_kind": "human",
    "chain": "solana",
    "level": "info",
    "phase": "plan",
    "stop_out_rate": 0.5,
}


def a_table(spec: Spec, rows: int = 3) -> pa.Table:
    return pa.table(
        {
            c.name: pa.array([ENUMS.get(c.name, a_value(c, i)) for i in range(rows)], c.type)
            for c in spec.columns
        }
    )


def judge(spec: Spec, table: pa.Table, batch_rows: int = 1000) -> list[Problem]:
    checker = spec.checker("t.parquet")
    for batch in table.to_batches(batch_rows):
        checker.update(batch)
    return spec.schema_problems(table.schema, "t.parquet") + checker.finish(table.num_rows)


def codes(problems: list[Problem]) -> list[str]:
    return [str(p.code) for p in problems]


def replaced(table: pa.Table, name: str, array: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, array)


# ── the built-in kinds ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("spec", list(BUILT_IN), ids=lambda s: f"{s.kind}-v{s.version}")
def test_every_built_in_contract_accepts_its_own_tables(spec: Spec) -> None:
    table = a_table(spec, rows=1 if spec.rows == 1 else 3)
    assert judge(spec, table) == []
    assert spec.extra_columns(table.schema) == []
    assert content_hash(table, spec.hash_plan(table.schema)).startswith("ch1:")


def test_the_documents_columns_of_alerts_std_are_all_there() -> None:
    assert spec_of("alerts_std").schema.names == [
        *("alert_id", "alert_chat_id", "alert_message_id", "alert_ts_ms", "alert_kind", "mint"),
        *("chain", "mint_source", "caller_raw_name", "caller_id", "caller_name_norm"),
        *("caller_base", "alert_text", "run_id", "ingested_at"),
    ]


@pytest.mark.parametrize("version", [1, 2])
def test_slices_are_known_as_version_one_and_two(version: int) -> None:
    names = ["ts", "open", "high", "low", "close", "volume"]
    assert spec_of("ohlcv_slice", version).schema.names == names


def test_only_the_summary_must_have_one_row() -> None:
    summary = spec_of("bt_summary")
    assert codes(judge(summary, a_table(summary, rows=2))) == ["E209"]
    assert codes(judge(summary, a_table(summary, rows=0))) == ["E209"]
    assert {s.kind for s in BUILT_IN if s.rows is not None} == {"bt_summary"}


@pytest.mark.parametrize("kind", OPEN_KINDS)
def test_open_kinds_take_any_columns_in_any_version(kind: str) -> None:
    spec = BUILT_IN.find(kind, 7)
    assert spec is not None
    assert spec.open
    table = pa.table({"whatever": [1, 1, None]})
    assert judge(spec, table) == []
    assert spec.hash_plan(table.schema).columns == {"whatever": None}


def test_unknown_kinds_and_versions_have_no_contract() -> None:
    assert BUILT_IN.find("my_own_thing", 1) is None
    assert BUILT_IN.find("alerts_std", 2) is None
    assert BUILT_IN.versions("alerts_std") == [1]
    assert BUILT_IN.versions("my_own_thing") == []


def test_feature_columns_beyond_the_contract_are_hashed_and_a_strangers_are_not() -> None:
    features = pa.table({"run_id": ["r"], "call_id": ["c"], "rsi_14": [55.0]})
    spec = spec_of("bt_features")
    assert spec.extra_columns(features.schema) == []
    assert set(spec.hash_plan(features.schema).columns) == {"run_id", "call_id", "rsi_14"}

    metrics = a_table(spec_of("run_metrics")).append_column("note", pa.array(["x", "y", "z"]))
    plan = spec_of("run_metrics").hash_plan(metrics.schema)
    assert spec_of("run_metrics").extra_columns(metrics.schema) == ["note"]
    assert "note" not in plan.columns


@pytest.mark.parametrize("kind", ["alerts_std", "alerts_v1"])
def test_the_same_alerts_under_another_run_have_the_same_hash(kind: str) -> None:
    spec = spec_of(kind)
    first = a_table(spec)
    again = replaced(first, "run_id", pa.array(["another run"] * 3))
    other = replaced(first, "mint", pa.array(["another mint"] * 3))
    hashes = [content_hash(t, spec.hash_plan(t.schema)) for t in (first, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]


# ── columns and types ─────────────────────────────────────────────────────────────────────────


def test_a_missing_column_is_named_and_a_near_miss_is_asked_about() -> None:
    spec = spec_of("run_metrics")
    table = a_table(spec).rename_columns(["run_id", "metricName", "metric_value", "ts"])
    (found,) = judge(spec, table)
    assert found.code is Code.E202
    assert found.where == "t.parquet:metric_name"
    assert "'metricName'" in found.message


def test_an_optional_column_may_be_absent_and_its_rules_still_hold() -> None:
    spec = Spec(
        kind="k",
        columns=(Column.parse("a", "int64"), Column.parse("b", "int64?")),
        checks=(Check("ordered", "a < b"), Check("b_or_small", "b is not null or a < 10")),
    )
    assert judge(spec, pa.table({"a": [1, 2]})) == []
    assert codes(judge(spec, pa.table({"a": [1, 20]}))) == ["E204"]


FITTING = {
    "int32 for int64": (pa.array([1, None], pa.int32()), pa.int64()),
    "uint64 for int64": (pa.array([1, None], pa.uint64()), pa.int64()),
    "float for double": (pa.array([1.5, None], pa.float32()), pa.float64()),
    "half for double": (pa.array([1.5, None], pa.float16()), pa.float64()),
    "exact integers for double": (pa.array([2**53, None]), pa.float64()),
    "large text": (pa.array(["a", None], pa.large_string()), pa.string()),
    "text views": (pa.array(["a", None], pa.string_view()), pa.string()),
    "dictionaries": (pa.array(["a", None]).dictionary_encode(), pa.string()),
    "nothing but NULL": (pa.nulls(2), pa.float64()),
    "seconds for microseconds": (pa.array([1, None], pa.timestamp("s", "UTC")), UTC_US),
    "whole microseconds in ns": (pa.array([1000, None], pa.timestamp("ns", "UTC")), UTC_US),
    "another zone's instants": (pa.array([1, None], pa.timestamp("us", "+02:00")), UTC_US),
    "narrower lists": (pa.array([[1], None], pa.list_(pa.int16())), pa.list_(pa.int64())),
    "smaller decimals": (pa.array([1, None]).cast(pa.decimal128(20, 1)), pa.decimal128(30, 2)),
}


@pytest.mark.parametrize(("array", "want"), FITTING.values(), ids=FITTING.keys())
def test_any_width_and_flavour_of_a_family_fits(array: pa.Array, want: pa.DataType) -> None:
    assert fits(array.type, want)
    values, lossy = convert(array, want)
    assert lossy is None
    assert values.type == want
    assert values.is_valid().to_pylist() == array.is_valid().to_pylist()


LOSSY = {
    "too large for double": (pa.array([1, 2**53 + 1]), pa.float64(), [False, True]),
    "above int64": (pa.array([1, 2**63], pa.uint64()), pa.int64(), [False, True]),
    "above int8": (pa.array([1, -129, None]), pa.int8(), [False, True, False]),
    "negative": (pa.array([1, -1]), pa.uint64(), [False, True]),
    "nanoseconds": (pa.array([1000, 1], pa.timestamp("ns", "UTC")), UTC_US, [False, True]),
    "double for float": (pa.array([0.5, 0.1, float("nan")]), pa.float32(), [False, True, False]),
    "in a dictionary": (pa.array([1, 300]).dictionary_encode(), pa.int8(), [False, True]),
}


@pytest.mark.parametrize(("array", "want", "expected"), LOSSY.values(), ids=LOSSY.keys())
def test_values_that_would_change_are_found(
    array: pa.Array, want: pa.DataType, expected: list[bool]
) -> None:
    assert fits(array.type, want)
    lossy = convert(array, want)[1]
    assert lossy is not None
    assert lossy.to_pylist() == expected


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_integers_fit_a_float_exactly_when_arithmetic_says_so(values: list[int]) -> None:
    lossy = convert(pa.array(values, pa.int64()), pa.float64())[1]
    # Arrow calls integers beyond 2^53 lossy as a whole; what comes back changed must be among them.
    found = [False] * len(values) if lossy is None else lossy.to_pylist()
    assert found == [int(float(v)) != v for v in values]


MISFITS = {
    "naive timestamps": (pa.timestamp("us"), UTC_US, "tz_localize"),
    "epoch numbers": (pa.int64(), UTC_US, "unit='ms'"),
    "time as text": (pa.string(), UTC_US, "to_datetime"),
    "floats for integers": (pa.float64(), pa.int64(), "Int64"),
    "bytes for text": (pa.binary(), pa.string(), "UTF-8"),
    "text for numbers": (pa.string(), pa.float64(), "contract's type"),
    "numbers for text": (pa.int64(), pa.string(), "contract's type"),
    "instants for local times": (UTC_US, pa.timestamp("us"), "remove the zone"),
    "a list for a number": (pa.list_(pa.int64()), pa.int64(), "contract's type"),
}


@pytest.mark.parametrize(("have", "want", "hint"), MISFITS.values(), ids=MISFITS.keys())
def test_another_family_does_not_fit_and_the_hint_helps(
    have: pa.DataType, want: pa.DataType, hint: str
) -> None:
    spec = Spec(kind="k", columns=(Column("c", want),), checks=(Check("some", "c is not null"),))
    (found,) = judge(spec, pa.table({"c": pa.nulls(1, have)}))
    assert found.code is Code.E203
    assert hint in found.hint


TYPES = [
    *("int8", "uint64", "float32", "float64", "string", "binary", "bool", "date"),
    *("timestamp[us, UTC]", "timestamp[ns]", "time[us]", "time[s]", "duration[ms]"),
    *("decimal(18, 6)", "list<int64>", "list<list<string>>"),
]


@pytest.mark.parametrize("text", TYPES)
def test_a_type_is_written_as_it_is_read(text: str) -> None:
    assert type_text(parse_type(text)).replace("time64", "time").replace("time32", "time") == text


def test_a_type_that_does_not_exist_lists_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"no type 'int'.*int64.*timestamp\[us, UTC\]"):
        parse_type("int")


# ── rows ──────────────────────────────────────────────────────────────────────────────────────


def test_nulls_where_none_may_be_are_counted_and_located() -> None:
    spec = spec_of("run_metrics")
    names = pa.array([None if i in {4, 7} else "m" for i in range(10)])
    table = replaced(a_table(spec, 10), "metric_name", names)
    (found,) = judge(spec, table, batch_rows=5)
    assert found.code is Code.E205
    assert found.message == "2 rows, counted from 0: row 4, row 7"


def test_a_broken_rule_shows_rows_and_values() -> None:
    spec = spec_of("ohlcv_slice")
    table = replaced(a_table(spec, 6), "low", pa.array([0.0, 9, 0, 9, 9, 9]))
    (found,) = judge(spec, table, batch_rows=2)
    assert found.code is Code.E204
    assert found.where == "t.parquet:high_low"
    assert "4 rows" in found.message
    assert "row 1 (high=2.0, low=9.0), row 3 (high=4.0, low=9.0), row 4" in found.message
    assert found.message.endswith("…")


def test_gaps_in_candles_break_no_rule() -> None:
    spec = spec_of("ohlcv_slice")
    table = replaced(a_table(spec), "volume", pa.array([None, float("nan"), 0.0]))
    assert judge(spec, replaced(table, "high", pa.nulls(3))) == []
    assert codes(judge(spec, replaced(table, "volume", pa.array([-1.0, 1, 1])))) == ["E204"]


def test_an_unknown_kind_of_alert_is_refused_and_a_missing_one_is_not() -> None:
    spec = spec_of("alerts_std")
    kinds = pa.array(["human", "bot_only", "robot"])
    assert codes(judge(spec, replaced(a_table(spec), "alert_kind", kinds))) == ["E204"]
    assert judge(spec, replaced(a_table(spec), "alert_kind", pa.nulls(3))) == []


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_a_repeated_key_is_found_wherever_its_rows_are(batch_rows: int) -> None:
    spec = spec_of("alerts_std")
    ids = pa.array(["b", "a", "c", "a", "b", "a"])
    (found,) = judge(spec, replaced(a_table(spec, 6), "alert_id", ids), batch_rows)
    assert found.code is Code.E206
    assert found.where == "t.parquet:alert_id"
    assert found.message.startswith("3 rows too many")
    assert "alert_id='a' (3 times)" in found.message


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5)), max_size=12), st.integers(1, 5)
)
def test_keys_are_judged_as_a_set_would(pairs: list[tuple[str, int]], batch_rows: int) -> None:
    spec = Spec(
        kind="k",
        columns=(Column.parse("a", "string!"), Column.parse("b", "int64!")),
        key=("a", "b"),
    )
    columns = {
        "a": pa.array([p[0] for p in pairs], pa.string()),
        "b": pa.array([p[1] for p in pairs], pa.int64()),
    }
    expected = [] if len(set(pairs)) == len(pairs) else ["E206"]
    assert codes(judge(spec, pa.table(columns), batch_rows)) == expected


def test_more_keys_than_memory_may_hold_must_come_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contract, "MAX_KEY_BYTES", 100)
    spec = spec_of("callers_d")
    table = a_table(spec, 100)
    ordered = replaced(table, "caller_id", pa.array([f"{i:03d}" for i in range(100)]))
    assert judge(spec, ordered, 10) == []
    (found,) = judge(spec, ordered.take(list(range(99, -1, -1))), 10)
    assert found.code is Code.E206
    assert "Sort the rows by caller_id" in found.hint


def test_every_problem_of_a_table_is_told_at_once() -> None:
    spec = spec_of("alerts_std")
    table = a_table(spec).drop_columns(["alert_text"])
    table = replaced(table, "alert_id", pa.array(["x", "x", None]))
    table = replaced(table, "alert_chat_id", pa.array(["1", "2", "3"]))
    table = replaced(table, "alert_message_id", pa.array([1, 2**63, 2], pa.uint64()))
    table = replaced(table, "chain", pa.array(["solana", "tron", "evm"]))
    assert sorted(codes(judge(spec, table))) == ["E202", "E203", "E204", "E205", "E206", "E208"]


def test_a_table_without_rows_is_fine() -> None:
    assert judge(spec_of("alerts_std"), a_table(spec_of("alerts_std"), 0)) == []


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("alerts_std", 1767225600123, "2026-01-01T00:00:00.123000Z"),
        ("ohlcv_slice", datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00.000000Z"),
        ("alerts_std", 2**62, None),
        ("alerts_std", None, None),
        ("bt_summary", 5, None),
    ],
)
def test_the_time_column_bounds_the_artifact_in_utc(
    kind: str, value: int | datetime | None, text: str | None
) -> None:
    assert spec_of(kind).time_text(value) == text


# ── rules ─────────────────────────────────────────────────────────────────────────────────────

ROWS = {
    "n": pa.array([1, 5, None, -3]),
    "x": pa.array([1.5, float("nan"), 2.0, 0.0]),
    "s": pa.array(["it's", "b", None, "c"]),
    "ok": pa.array([True, False, None, True]),
    "t": pa.array([0, 86_400_000_000, None, -1], UTC_US),
    "odd name": pa.array([1, 2, 3, 4]),
}
RULES = {
    "n >= 0": [3],
    "n>=+0 and n<5": [1, 3],
    "n > 2 or x > 1": [3],
    "not n = 5": [1],
    "not (n < 0 or n > 4)": [1, 3],
    "s in ('b', 'it''s')": [3],
    "s not in ('b')": [1],
    "n between -3 and 1": [1],
    "n not between -3 and 1": [0, 3],
    "x is not null": [1],
    "n not null": [2],
    "n is null": [0, 1, 3],
    "ok": [1],
    "ok = true AND x < 2": [1, 2],
    "t < '1970-01-01T12:00:00Z'": [1],
    "n <> 5 or s != 'b'": [1],
    '"odd name" < 4': [3],
    "x < n": [0, 3],
    "n < 1e3 and .5 < 1.0": [],
}


@pytest.mark.parametrize(("text", "broken"), RULES.items(), ids=RULES.keys())
def test_a_rule_is_broken_only_where_it_is_false(text: str, broken: list[int]) -> None:
    rule = rules.compile_rule(text)
    rule.check_types({name: column.type for name, column in ROWS.items()})
    flags = rule.broken({name: ROWS[name] for name in rule.columns}).to_pylist()
    assert [i for i, is_broken in enumerate(flags) if is_broken] == broken


NOT_RULES = {
    "": "empty",
    "n >=": "a column or a value expected at the end",
    "n >= 0 0": "character 8",
    "n ~ 1": "cannot read '~ 1'",
    "n in 1": r"'\(' expected",
    "(n > 1": r"'\)' expected at the end",
    "__import__('os')": "expected at character 11",
    "n > 1; drop table x": "cannot read ';",
    "n > (select 1)": "a column or a value expected",
    "missing > 1": "no column 'missing'",
    "n > 'text'": "greater",
    "1 < 2": "names no column",
    "not " * 40 + "ok": "nested deeper",
    "ok or " * 200 + "ok": "longer than",
    "t < 'yesterday'": "yesterday",
}


@pytest.mark.parametrize(("text", "message"), NOT_RULES.items(), ids=range(len(NOT_RULES)))
def test_what_is_no_rule_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(rules.RuleError, match=message):
        rules.compile_rule(text).check_types({n: c.type for n, c in ROWS.items()})


# ── declaring your own ────────────────────────────────────────────────────────────────────────

DECLARED = """
[kinds.my_signals]
version = 1
key = ["ts", "mint"]
time_column = "ts"
[kinds.my_signals.columns]
ts = "timestamp[us, UTC]"
mint = "string!"
score = "float64"
note = "string?"
seen_at = { type = "timestamp[us, UTC]", hashed = false }
[kinds.my_signals.checks]
score_is_a_share = "score between 0 and 1"

[kinds.two.v1]
columns = { a = "int64" }
[kinds.two.v2]
columns = { a = "int64", b = "string" }

[kinds.trades]
columns = { price = "float64" }
"""


def registry_of(text: str, tmp_path: Path) -> Registry:
    return Registry.load(Settings.load(tmp_path, kinds=tomllib.loads(text)["kinds"]))


def test_a_kind_declared_in_bus_toml_is_held_to_it(tmp_path: Path) -> None:
    (tmp_path / "bus.toml").write_text(DECLARED)
    spec = Registry.load(Settings.load(tmp_path)).find("my_signals", 1)
    assert spec is not None
    assert [str(c) for c in spec.columns] == [
        *("timestamp[us, UTC]!", "string!", "float64", "string?", "timestamp[us, UTC]"),
    ]
    assert spec.sort_by == ("ts", "mint")
    table = pa.table(
        {
            "ts": pa.array([1, 1], UTC_US),
            "mint": ["m", "m"],
            "score": [0.5, 2.0],
            "seen_at": pa.nulls(2),
        }
    )
    assert codes(judge(spec, table)) == ["E204", "E206"]
    assert set(spec.hash_plan(table.schema).columns) == {"ts", "mint", "score"}


def test_versions_stand_beside_each_other(tmp_path: Path) -> None:
    registry = registry_of(DECLARED, tmp_path)
    assert registry.versions("two") == [1, 2]
    assert [len(s.columns) for s in registry if s.kind == "two"] == [1, 2]


def test_an_open_kind_is_open_until_someone_declares_it(tmp_path: Path) -> None:
    registry = registry_of(DECLARED, tmp_path)
    spec = registry.find("trades", 1)
    assert spec is not None
    assert not spec.open
    assert registry.find("trades", 2) is None


BAD_KINDS = {
    "a changed built-in": ('[kinds.run_metrics]\ncolumns = { a = "int64" }', "new schema_version"),
    "an unknown type": ('[kinds.k]\ncolumns = { a = "varchar" }', "no type 'varchar'"),
    "a misspelt field": ('[kinds.k]\ncolum = {}\ncolumns = { a = "int64" }', "kinds.k.colum"),
    "no columns": ("[kinds.k]\ncolumns = {}", "at least 1"),
    "a rule about nothing": (
        '[kinds.k]\ncolumns = { a = "int64" }\nchecks = { c = "b > 1" }',
        "check 'c': no column 'b'",
    ),
    "a key about nothing": ('[kinds.k]\ncolumns = { a = "int64" }\nkey = ["b"]', "no column 'b'"),
    "an optional key": ('[kinds.k]\ncolumns = { a = "int64?" }\nkey = ["a"]', "must not be NULL"),
    "a time that is none": (
        '[kinds.k]\ncolumns = { a = "string" }\ntime_column = "a"',
        "neither a timestamp nor epoch",
    ),
    "a bad name": ('[kinds."a/b"]\ncolumns = { a = "int64" }', "not a kind's name"),
    "equal but for case": ('[kinds.k]\ncolumns = { a = "int64", A = "int64" }', "one name"),
}


@pytest.mark.parametrize(("text", "message"), BAD_KINDS.values(), ids=BAD_KINDS.keys())
def test_a_contract_that_contradicts_itself_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused) as caught:
        registry_of(text, tmp_path)
    assert message in f"{caught.value} {caught.value.as_dict()}"
    assert caught.value.code is Code.E103


def test_all_contradictions_are_told_at_once(tmp_path: Path) -> None:
    text = '[kinds.a]\ncolumns = { x = "no" }\n[kinds.b]\ncolumns = { y = "nope" }'
    with pytest.raises(Refused) as caught:
        registry_of(text, tmp_path)
    assert [p.where for p in caught.value.problems] == [
        "kinds.a.columns.x",
        "kinds.b.columns.y",
    ]


def test_declaring_the_same_contract_twice_changes_nothing() -> None:
    registry = Registry.built_in()
    registry.add(spec_of("run_metrics"))
    assert registry.versions("run_metrics") == [1]


def test_fingerprints_tell_contracts_apart_and_nothing_else() -> None:
    prints = {spec.fingerprint for spec in BUILT_IN}
    assert len(prints) == len(list(BUILT_IN))
    one = Spec(kind="k", columns=(Column.parse("a", "int64"),), description="x")
    two = Spec(kind="k", columns=(Column.parse("a", "int64"),), description="y")
    assert one.fingerprint == two.fingerprint


class FakeEntryPoint:
    name, value = "mine", "my_package:specs"

    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded

    def load(self) -> Any:
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


MINE = Spec(kind="mine", columns=(Column.parse("a", "int64"),))


@pytest.mark.parametrize(
    "loaded", [MINE, [MINE], lambda: [MINE]], ids=["a spec", "several", "a function"]
)
def test_an_installed_package_offers_contracts(
    loaded: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entries = {"artifact_bus.specs": [FakeEntryPoint(loaded)]}
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entries[group])
    assert Registry.load(Settings.load(tmp_path)).find("mine", 1) == MINE


def test_a_package_that_fails_to_load_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = FakeEntryPoint(ImportError("no module named my_package"))
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [broken])  # noqa: ARG005
    with pytest.raises(Refused, match=r"entry point mine.*no module"):
        Registry.load(Settings.load(tmp_path))
