"""CH1 is what it was: committed hashes, found by two independent programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from bus.hashing import HashPlan, content_hash
from tests.contract.content_hash_reference import VECTORS, reference_hash, written
from tests.contract.described_tables import arrow_table

if TYPE_CHECKING:
    import pyarrow as pa

TABLES: list[dict[str, Any]] = json.loads(VECTORS.read_text(encoding="utf-8"))
BY_NAME = {table["name"]: table for table in TABLES}

#: Groups of vectors that describe the same rows; all other vectors differ from each other.
EQUAL = (
    (
        "candles in order of their time",
        "the same candles in another order, in other widths and flavours",
    ),
    ("one row", "the integer 1"),
    ("integers of 8 bits, signed and not", "the same integers in 64 bits"),
    ("uint64 within int64", "int64 with the same values"),
    ("floats that fit 16 bits, in 16", "the same floats in 64"),
    ("text of many scripts", "the same text, large"),
    ("UUIDs as fixed binary", "the same UUIDs as plain binary"),
    ("whole days as date64", "the same days as date32"),
    ("instants in milliseconds", "instants of another zone are the same instants"),
    (
        "decimals with zeros to remove",
        "the same decimals with fewer places where they can",
    ),
    ("structs", "the same structs, fields the other way round"),
)


def plan_of(table: dict[str, Any], arrow: pa.Table) -> HashPlan:
    return HashPlan(dict.fromkeys(arrow.schema.names), tuple(table.get("sort_by", ())))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table["name"])
def test_a_described_table_has_its_committed_hash(table: dict[str, Any]) -> None:
    arrow = arrow_table(table)
    assert content_hash(arrow, plan_of(table, arrow)) == table["hash"]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table["name"])
def test_a_program_written_from_the_definition_alone_agrees(table: dict[str, Any]) -> None:
    assert reference_hash(table) == table["hash"]


def test_hashes_are_equal_exactly_where_the_rows_are() -> None:
    twin = {name: names[0] for names in EQUAL for name in names}
    owners: dict[str, set[str]] = {}
    for table in TABLES:
        owners.setdefault(table["hash"], set()).add(twin.get(table["name"], table["name"]))
    assert [sorted(names) for names in owners.values() if len(names) > 1] == []
    for names in EQUAL:
        assert len({BY_NAME[name]["hash"] for name in names}) == 1, names


def test_the_vectors_cover_every_family_and_no_name_stands_twice() -> None:
    text = VECTORS.read_text(encoding="utf-8")
    assert len(BY_NAME) == len(TABLES)
    for word in ("NaN", "-0.0", "inf", "decimal:76", "date64", "float16", "uint64", "map", "null"):
        assert f'"{word}' in text, word


def test_the_file_is_as_the_reference_writes_it() -> None:
    assert written(TABLES) == VECTORS.read_text(encoding="utf-8")
