"""Versions of a contract: which follow which, and how `canon.<kind>` shows tables of all of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from bus import evolution
from bus.catalog import Catalog, select
from bus.columns import Column, parse_type, widens
from bus.errors import Refused
from bus.evolution import changes, way
from bus.migrations import contract_problems, sound_ways, unreadable_tables
from bus.model import JobState
from bus.settings import Settings
from bus.specs import Check, Registry, Spec
from tests.pipeline import Pipeline
from tests.shown import Shown

if TYPE_CHECKING:
    from pathlib import Path


def spec(version: int = 1, /, *, named: str = "k", **fields: Any) -> Spec:
    """A contract; columns as in bus.toml."""
    columns = fields.pop("columns", {"a": "int32"})
    parsed = tuple(Column.parse(name, text) for name, text in columns.items())
    return Spec(kind=named, version=version, columns=parsed, **fields)


BASE: dict[str, Any] = {"columns": {"a": "int32", "b": "string!", "c": "float32?"}}
#: What a second version may say, beside BASE, and whether tables of the first keep to it.
NEXT: dict[str, tuple[dict[str, Any], bool]] = {
    "the same": (BASE, True),
    "a column more": ({"columns": BASE["columns"] | {"d": "string"}}, True),
    "an optional column more": ({"columns": BASE["columns"] | {"d": "string?"}}, True),
    "a column more that must be filled": ({"columns": BASE["columns"] | {"d": "bool!"}}, False),
    "a column less": ({"columns": {"a": "int32", "b": "string!"}}, False),
    "another name": ({"columns": {"x": "int32", "b": "string!", "c": "float32?"}}, False),
    "a wider integer": ({"columns": BASE["columns"] | {"a": "int64"}}, True),
    "a narrower integer": ({"columns": BASE["columns"] | {"a": "int16"}}, False),
    "a wider float": ({"columns": BASE["columns"] | {"c": "float64?"}}, True),
    "an integer as a decimal": ({"columns": BASE["columns"] | {"a": "decimal(12, 2)"}}, True),
    "a decimal too short": ({"columns": BASE["columns"] | {"a": "decimal(10, 2)"}}, False),
    "text from a number": ({"columns": BASE["columns"] | {"a": "string"}}, False),
    "NULL allowed": ({"columns": BASE["columns"] | {"b": "string"}}, True),
    "NULL forbidden": ({"columns": BASE["columns"] | {"a": "int32!"}}, False),
    "an optional column now there": ({"columns": BASE["columns"] | {"c": "float32"}}, True),
    "another order of columns": ({"columns": dict(reversed(BASE["columns"].items()))}, True),
    "a rule": (BASE | {"checks": (Check("r", "a > 0"),)}, False),
    "a key": (BASE | {"key": ("b",)}, False),
    "a row key": (BASE | {"row_key": "b"}, False),
    "a number of rows": (BASE | {"rows": 1}, False),
    "an order of rows": (BASE | {"sort_by": ("a",)}, True),
    "inputs to be said": (BASE | {"derived": True}, True),
    "more columns allowed": (BASE | {"extensible": True}, True),
}


@pytest.mark.parametrize(("fields", "compatible"), NEXT.values(), ids=NEXT)
def test_a_version_is_compatible_when_it_adds_widens_or_demands_less(
    fields: dict[str, Any], compatible: bool
) -> None:
    found = changes(spec(**BASE), spec(2, **fields))
    assert all(change.compatible for change in found) is compatible
    registry = Registry([spec(**BASE), spec(2, **fields)])
    assert (way(registry, "k", 1) is not None) is compatible
    assert way(registry, "k", 2) == ()


DEMANDING: dict[str, Any] = BASE | {
    "columns": BASE["columns"] | {"e": "int64!"},
    "key": ("b",),
    "row_key": "b",
    "rows": 3,
    "checks": (Check("r", "a >  0"),),
    "extensible": True,
}
LESS: dict[str, tuple[dict[str, Any], bool]] = {
    "no rule": ({"checks": ()}, True),
    "the same rule under another name": ({"checks": (Check("s", "a > 0"),)}, True),
    "no key": ({"key": ()}, True),
    "a longer key": ({"key": ("b", "e")}, True),
    "another key": ({"key": ("e",)}, False),
    "no row key": ({"row_key": None}, True),
    "any number of rows": ({"rows": None}, True),
    "no more columns allowed": ({"extensible": False}, False),
    "a column that may have been there": (
        {"columns": DEMANDING["columns"] | {"new": "string"}},
        False,
    ),
}


@pytest.mark.parametrize(("fields", "compatible"), LESS.values(), ids=LESS)
def test_to_demand_less_is_compatible(fields: dict[str, Any], compatible: bool) -> None:
    found = changes(spec(**DEMANDING), spec(2, **(DEMANDING | fields)))
    assert all(change.compatible for change in found) is compatible


TYPES = [
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32"),
    *("float64", "decimal(5, 2)", "decimal(20, 0)", "decimal(25, 5)", "string", "binary", "bool"),
    *("date", "timestamp[s]", "timestamp[us]", "timestamp[ms, UTC]", "timestamp[us, UTC]"),
    *("timestamp[ns]", "time[ms]", "time[ns]", "duration[s]", "duration[us]", "list<int32>"),
    "list<int64>",
]


def extremes(type_: pa.DataType) -> pa.Array:
    """The smallest and the largest values of a type, and what is near to nothing."""
    types = pa.types
    if types.is_integer(type_):
        bits, signed = type_.bit_width, types.is_signed_integer(type_)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        return pa.array([low, high, high - 1, 1, 0], type_)
    if types.is_decimal(type_):
        digits = "9" * (type_.precision - type_.scale) + "." + "9" * type_.scale
        return pa.array([digits, f"-{digits}", "0.1"[: 2 + type_.scale]]).cast(type_)
    if types.is_floating(type_):
        return pa.array([3.4e38 if type_ == pa.float32() else 1.7e308, 0.1, -0.0]).cast(type_)
    if types.is_list(type_):
        return pa.array([[-(2**31), 2**31 - 1, None], []], type_)
    if types.is_temporal(type_):
        seconds = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
        scale = seconds.get(getattr(type_, "unit", ""), 1)
        days = types.is_date(type_)
        most = 2_932_896 if days else 86_399 * scale if types.is_time(type_) else 9 * 10**9 * scale
        integers = pa.int32() if type_.bit_width == 32 else pa.int64()
        return pa.array([0, 1, most], integers).cast(type_)
    values: dict[str, list[Any]] = {"string": ["", "é"], "binary": [b"\xff"], "bool": [True]}
    return pa.array(values[str(type_)], type_)


@given(st.sampled_from(TYPES), st.sampled_from(TYPES))
def test_a_type_widens_only_to_one_that_holds_all_its_values(one: str, other: str) -> None:
    old, new = parse_type(one), parse_type(other)
    if widens(old, new):
        array = extremes(old)
        values = array.cast(new)
        assert values.cast(old).equals(array)
    if widens(old, new) and widens(new, old):
        assert old == new


@pytest.mark.parametrize(
    ("old", "new", "does"),
    [
        ("int32", "int64", True),
        ("uint32", "int64", True),
        ("uint64", "int64", False),
        ("int32", "float64", True),
        ("int64", "float64", False),
        ("int64", "decimal(19, 0)", True),
        ("int64", "decimal(18, 0)", False),
        ("timestamp[ms, UTC]", "timestamp[us, UTC]", True),
        ("timestamp[us, UTC]", "timestamp[ns, UTC]", False),
        ("timestamp[us]", "timestamp[us, UTC]", False),
        ("date", "timestamp[us]", True),
        ("date", "timestamp[us, UTC]", False),
        ("time[s]", "time[ns]", True),
        ("list<int32>", "list<int64>", True),
        ("bool", "int8", False),
        ("int8", "string", False),
    ],
)
def test_the_table_of_wider_types(old: str, new: str, does: bool) -> None:
    assert widens(parse_type(old), parse_type(new)) is does


# ── the views ─────────────────────────────────────────────────────────────────────────────────────


def shown(tmp_path: Path, *specs: Spec) -> Shown:
    return Shown(tmp_path / "lake", Registry(specs))


def put(bus: Shown, version: int, **columns: Any) -> None:
    table = pa.table({n: v if isinstance(v, pa.Array) else pa.array(v) for n, v in columns.items()})
    bus.history.commit_tables("k", table, schema_version=version)


def read(bus: Shown, name: str = "canon.k") -> tuple[list[str], list[tuple[Any, ...]]]:
    bus.show()
    columns, rows = select(bus.lake, None, f"FROM {name} ORDER BY 1")
    bus.close()
    return columns, rows


def test_tables_of_a_compatible_version_are_shown_in_the_newest_types(tmp_path: Path) -> None:
    old = spec(columns={"a": "int32!", "day": "date"})
    new = spec(2, columns={"a": "decimal(12, 2)", "more": "string", "day": "timestamp[us]"})
    bus = shown(tmp_path, old, new)
    # What an old table had beside its contract was never held to one: it is not `more`.
    put(bus, 1, a=pa.array([1], pa.int32()), day=pa.array([0], pa.date32()), more=[7.5])
    put(bus, 2, a=pa.array(["2.50"]).cast(pa.decimal128(12, 2)), more=["x"], day=pa.nulls(1))
    columns, rows = read(bus)
    assert columns == ["a", "more", "day"]
    assert rows == [
        (Decimal("1.00"), None, datetime(1970, 1, 1)),  # noqa: DTZ001 - without a zone, on purpose
        (Decimal("2.50"), "x", None),
    ]


def test_a_version_that_does_not_fit_is_left_out_and_has_a_view_of_its_own(tmp_path: Path) -> None:
    bus = shown(tmp_path, spec(columns={"a": "string"}), spec(2, columns={"a": "int64"}))
    put(bus, 1, a=["not a number"])
    put(bus, 2, a=[2])
    bus.show()
    assert bus.rows("FROM canon.k") == [(2,)]
    assert bus.rows("FROM canon.k_v1") == [("not a number",)]
    assert Catalog.digest(bus.lake) == bus.rebuilt_digest()
    bus.close()


CENTS = 'SELECT a AS "A", cents / 100 AS price FROM old  -- prices were in cents'


def test_a_declared_migration_reads_old_tables_as_new_ones(tmp_path: Path) -> None:
    old = spec(columns={"a": "int32!", "cents": "int64"})
    new = spec(
        2, columns={"a": "int64!", "price": "float64", "note": "string"}, migrations={1: CENTS}
    )
    bus = shown(tmp_path, old, new)
    put(bus, 1, a=pa.array([1], pa.int32()), cents=[250])
    put(bus, 2, a=[2], price=[0.5], note=["x"])
    columns, rows = read(bus)
    assert columns == ["a", "price", "note"]
    assert rows == [(1, 2.5, None), (2, 0.5, "x")]


def test_versions_are_read_step_by_step_each_in_its_own_way(tmp_path: Path) -> None:
    specs = [
        spec(1, columns={"a": "int32"}),
        spec(2, columns={"a": "int64", "b": "string"}),  # compatible
        spec(
            3,
            columns={"ab": "string!"},
            migrations={2: "SELECT a || coalesce(b, '?') AS ab FROM old"},
        ),
        spec(4, columns={"ab": "string", "c": "bool"}),  # compatible again
    ]
    bus = shown(tmp_path, *specs)
    put(bus, 1, a=pa.array([1], pa.int32()))
    put(bus, 2, a=[2], b=["b"])
    put(bus, 3, ab=["3c"])
    put(bus, 4, ab=["4d"], c=[True])
    assert read(bus) == (
        ["ab", "c"],
        [("1?", None), ("2b", None), ("3c", None), ("4d", True)],
    )


def test_a_direct_migration_goes_before_a_longer_way(tmp_path: Path) -> None:
    specs = [
        spec(1, columns={"a": "int32"}),
        spec(2, columns={"a": "int64"}),
        spec(3, columns={"a": "int64"}, migrations={1: "SELECT a + 100 AS a FROM old"}),
    ]
    bus = shown(tmp_path, *specs)
    for version in (1, 2, 3):
        put(bus, version, a=pa.array([version], pa.int32() if version == 1 else pa.int64()))
    assert read(bus)[1] == [(2,), (3,), (101,)]


def test_one_row_a_key_holds_across_versions_and_migrations(tmp_path: Path) -> None:
    old = spec(columns={"id": "string!", "n": "string"}, row_key="id")
    sql = "WITH parsed AS (SELECT *, n::INT AS number FROM old) SELECT id, number, artifact_id FROM parsed"
    new = spec(2, columns={"id": "string!", "number": "int32"}, row_key="id", migrations={1: sql})
    bus = shown(tmp_path, old, new)
    put(bus, 1, id=["x", "y"], n=["1", "2"])
    put(bus, 2, id=["y"], number=pa.array([3], pa.int32()))
    put(bus, 1, id=["z"], n=["4"])
    bus.show()
    assert len(bus.rows("SELECT DISTINCT artifact_id FROM canon.k_all")) == 3
    assert read(bus) == (["id", "number"], [("x", 1), ("y", 3), ("z", 4)])


V1: dict[str, Any] = {"columns": {"a": "string"}}
UNSOUND = {
    "SELECT a FROM": "syntax error",
    "SELECT 1; SELECT a::INT AS x FROM old": "2 statements",
    "DELETE FROM old": "not a SELECT",
    "SELECT a AS x FROM other": "other",
    "SELECT sql::INT AS x FROM information_schema.tables": "may read only old",
    "SELECT content::INT AS x FROM read_text('/etc/passwd')": "not allowed",
    "SELECT 1 AS x FROM 'secret.parquet'": "secret.parquet",
    "SELECT x::INT AS x FROM read_parquet('p')": "may read only old",
    "SELECT random()::INT AS x FROM old": "other rows every time",
    "SELECT nothing AS x FROM old": "nothing",
    "SELECT a FROM old": "makes no x, which v2 needs",
    "SELECT a::INT AS x, 1 AS y FROM old": "makes y, which v2 does not have",
}


@pytest.mark.parametrize(("sql", "says"), UNSOUND.items(), ids=UNSOUND)
def test_a_migration_that_is_wrong_is_refused_and_stops_no_other_version(
    sql: str, says: str
) -> None:
    registry = Registry([spec(**V1), spec(2, columns={"x": "int32!"}, migrations={1: sql})])
    ways, (found,) = sound_ways(registry)
    assert (found.code, found.where) == ("E211", "kinds.k v2.migrate_from_v1")
    assert says.lower() in found.message.lower()
    assert [*ways] == [("k", 2)]


def test_with_a_row_key_a_migration_hands_on_the_artifact_id() -> None:
    old = spec(columns={"id": "string!"}, row_key="id")
    new = spec(2, columns={"id": "string!", "n": "int8!"}, row_key="id")
    short = replace(new, migrations={1: "SELECT id, 1::INT1 AS n FROM old"})
    _, (found,) = sound_ways(Registry([old, short]))
    assert "artifact_id" in found.message
    whole = replace(new, migrations={1: "SELECT *, 1::INT1 AS n FROM old"})
    assert sound_ways(Registry([old, whole]))[1] == []


def test_what_keeps_a_version_out_is_told_at_the_place_where_its_way_ends() -> None:
    specs = [
        spec(1, columns={"a": "int32"}),
        spec(2, columns={"a": "int64"}),
        spec(3, columns={"a": "string"}),
    ]
    _, found = sound_ways(Registry(specs))
    assert [p.where for p in found] == ["kinds.k v1", "kinds.k v2"]
    for told in found:
        assert "v3 does not take tables of v2" in told.message
        assert "column a: not every int64 is a string" in told.message
        assert "migrate_from_v2" in told.hint


# ── declaring them ────────────────────────────────────────────────────────────────────────────────


def loaded(tmp_path: Path, text: str) -> Registry:
    config = tmp_path / "bus.toml"
    config.write_text(text)
    return Registry.load(Settings.load(tmp_path / "lake", config))


def test_migrations_stand_beside_the_version_in_the_configuration(tmp_path: Path) -> None:
    registry = loaded(
        tmp_path,
        """
        [kinds.prices.v1]
        columns = { cents = "int64" }
        [kinds.prices.v2]
        columns = { price = "float64" }
        migrate_from_v1 = "SELECT cents / 100 AS price FROM old"
        """,
    )
    first, second = registry.find("prices", 1), registry.find("prices", 2)
    assert first is not None
    assert second is not None
    assert second.migrations == {1: "SELECT cents / 100 AS price FROM old"}
    assert second.fingerprint == replace(second, migrations={}).fingerprint
    assert way(registry, "prices", 1) == (evolution.Step(first, second, second.migrations[1]),)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('migrate_from_v2 = "SELECT 1"', "leads to no later version"),
        ("migrate_from_v1 = 7", "is no SELECT"),
        ('migrate_from_v0 = "SELECT 1"', "Extra inputs"),
        ('migrations = { 1 = "SELECT 1" }', "Extra inputs"),
    ],
)
def test_a_migration_that_leads_nowhere_is_no_declaration(
    line: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=says) as refused:
        loaded(tmp_path, f'[kinds.k.v2]\ncolumns = {{ a = "int8" }}\n{line}\n')
    assert refused.value.code == "E103"


# ── what a lake remembers ─────────────────────────────────────────────────────────────────────────


def test_fingerprints_never_change() -> None:
    """Lakes hold them: another way to write the same contract down would reject every job."""
    full = spec(3, **DEMANDING, sort_by=("e",), time_column=None, derived=True)
    assert full.fingerprint == "b4ec1eaf97cf298fa39af0552cff5ab029c8364ae7d8ce34ce12df9ee10f7974"
    plain = spec(columns={"t": "timestamp[us, UTC]!", "l": "list<decimal(5, 2)>?"}, time_column="t")
    assert plain.fingerprint == "3eeda1a792baac7a2585ed0e9ae067abc3cb4d1bdd6169cec7d046d73a70f831"


def declared(score: str) -> dict[str, Any]:
    return {"signals": {"columns": {"id": "int64!", "score": score}, "key": ["id"]}}


def scores() -> pa.Table:
    return pa.table({"id": [1], "score": [0.5]})


def test_a_contract_that_was_edited_rejects_jobs_until_it_is_a_version_of_its_own(
    tmp_path: Path,
) -> None:
    before = Pipeline(tmp_path / "lake", kinds=declared("float64"))
    before.stage("first", scores())
    before.run()
    assert contract_problems(before.lake, before.registry) == []
    edited = Pipeline(tmp_path / "lake", kinds=declared("float64!"))
    edited.stage("second", scores())
    edited.run()
    assert edited.codes("second") == ["E210"]
    (found,) = contract_problems(edited.lake, edited.registry)
    assert (found.code, found.where) == ("E210", "kinds.signals v1")
    assert "has been edited" in found.message
    (gone,) = contract_problems(edited.lake, Registry())
    assert "is not declared" in gone.message
    both = {"v1": declared("float64")["signals"], "v2": declared("float64!")["signals"]}
    versions = Pipeline(tmp_path / "lake", kinds={"signals": both})
    versions.stage("third", scores(), entries={"schema_version": 2})
    versions.run()
    assert versions.state("third") == JobState.COMMITTED
    (left_out,) = contract_problems(versions.lake, versions.registry)
    assert (left_out.code, left_out.where) == ("E211", "kinds.signals v1")


def test_values_that_a_migration_cannot_convert_are_found_by_reading_them(tmp_path: Path) -> None:
    old = spec(columns={"a": "string"})
    new = spec(2, columns={"a": "int64"}, migrations={1: "SELECT a FROM old"})
    bus = shown(tmp_path, old, new)
    put(bus, 1, a=["1"])
    bus.show()
    assert [*unreadable_tables(bus.lake, bus.registry)] == []
    put(bus, 1, a=["not a number"])
    bus.show()
    since = [spec(columns={"a": "int8"}, named="l"), spec(2, columns={"a": "int64"}, named="l")]
    (found,) = unreadable_tables(bus.lake, Registry([old, new, *since]))
    assert (found.code, found.where) == ("E211", "kinds.k v2: tables of v1")
    assert "not a number" in found.message
    bus.close()
