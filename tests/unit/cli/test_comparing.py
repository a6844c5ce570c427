"""Commands that compare: diff for artifacts, specs for contracts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from tests.history import History

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.said import Said

LONG = "long " * 30


@pytest.fixture
def names(tmp_path: Path) -> dict[str, str]:
    """A lake here with the artifacts `a`, `b` (which differs) and `c` (other bytes, the same rows)."""
    history = History(tmp_path / "data")
    a = pa.table({"id": [1, 2, 3], "price": [1.0, 2.0, 3.0], "note": ["x", None, LONG]})
    b = pa.table(
        {"id": [2, 3, 4], "price": [2.5, 3.0, 4.0], "note": ["y", LONG, "n"], "new": [1] * 3}
    )
    c = a.take(pa.array([2, 0, 1]))
    made = history.commit_tables("things", a, b, c)
    history.manifest.close()
    return dict(zip("abc", (artifact.artifact_id for artifact in made), strict=True))


def test_the_exit_code_of_diff_says_equal_different_or_trouble(
    names: dict[str, str], bus: Callable[..., Said]
) -> None:
    a, b, c = names.values()
    assert bus("diff", a, c).status == 0
    assert bus("diff", a, c).out.splitlines()[-1] == "equal"
    assert bus("diff", a, b).status == 1
    for bad in ((a, "nobody"), (a, b, "--key", "new"), (a,), (a, b, "--limit", "-1")):
        said = bus("diff", *bad)
        assert (said.status, said.out) == (2, "")
        assert said.err


def test_diff_tells_columns_rows_and_cells(names: dict[str, str], bus: Callable[..., Said]) -> None:
    said = bus("diff", names["a"], names["b"], "--key", "id")
    lines = [line.split() for line in said.out.splitlines()]
    assert ["+", "new", "int64"] in lines
    assert "rows: 1 added, 1 removed, 1 changed, 1 unchanged (by id)" in said.out
    assert ["price", "1"] in lines
    assert ["2", "price", "2.0", "2.5"] in lines
    assert ["2", "note", "-", "y"] in lines
    assert ["4", "4.0", "n"] in lines
    whole = bus("diff", names["a"], names["b"])
    assert "rows: 2 added, 2 removed, 1 unchanged (whole rows)" in whole.out
    few = bus("diff", names["a"], names["b"], "--limit", "1")
    assert "1 of 2 rows; more with --limit" in few.out


def test_diff_in_json_has_everything_whole(names: dict[str, str], bus: Callable[..., Said]) -> None:
    found = bus("diff", names["b"], names["a"], "--json").json
    assert (found["equal"], found["key"]) == (False, [])
    assert found["columns"]["removed"] == {"new": "int64"}
    assert found["rows"]["first_added"] == [
        {"id": 1, "price": 1.0, "note": "x"},
        {"id": 2, "price": 2.0, "note": None},
    ]
    assert found["a"]["artifact_id"] == names["b"]


def test_diff_says_so_when_a_key_does_not_tell_rows_apart(
    bus: Callable[..., Said], tmp_path: Path
) -> None:
    history = History(tmp_path / "twice")
    tables = (pa.table({"k": [1, 1], "v": [1, 2]}), pa.table({"k": [1, 1], "v": [3, 4]}))
    a, b = (found.artifact_id for found in history.commit_tables("things", *tables))
    history.manifest.close()
    said = bus("diff", a, b, "--key", "k", "--lake", tmp_path / "twice")
    assert "several rows that differ share a key (k)" in said.out
    assert "rows: 2 added, 2 removed, 0 unchanged (whole rows)" in said.out


# ── specs ─────────────────────────────────────────────────────────────────────────────────────────

CONTRACTS = """
[kinds.prices.v1]
columns = { cents = "int64" }
[kinds.prices.v2]
columns = { price = "float64" }
migrate_from_v1 = "SELECT cents / 100 AS price FROM old"
[kinds.prices.v3]
columns = { price = "float64", note = "string" }
[kinds.notes.v1]
columns = { text = "string" }
[kinds.notes.v2]
columns = { text = "string!" }
"""


@pytest.fixture
def contracts(tmp_path: Path) -> None:
    (tmp_path / "bus.toml").write_text(CONTRACTS)


@pytest.mark.usefixtures("contracts")
def test_specs_lists_versions_and_how_they_come_into_the_view(bus: Callable[..., Said]) -> None:
    found = bus("specs", "--json").json
    how = {(spec["kind"], spec["schema_version"]): spec["in_canon"] for spec in found}
    assert how["prices", 1] == "migrated"
    assert how["prices", 2] == "compatible"
    assert how["prices", 3] == "newest"
    assert how["notes", 1] == "left out"
    assert how["ohlcv_slice", 1] == "compatible"
    assert "left out" in bus("specs").out


@pytest.mark.usefixtures("contracts")
def test_specs_diff_says_what_changed_and_whether_old_tables_fit(bus: Callable[..., Said]) -> None:
    said = bus("specs", "diff", "prices")
    assert said.status == 0
    assert "+ column note: string" in said.out
    assert "compatible: tables of v2 are tables of v3" in said.out
    migrated = bus("specs", "diff", "prices", "1", "2")
    assert migrated.status == 0
    assert "SELECT cents / 100 AS price FROM old" in migrated.out
    unfit = bus("specs", "diff", "notes", "--json")
    assert unfit.status == 1
    assert unfit.json == {
        "kind": "notes",
        "old": 1,
        "new": 2,
        "compatible": False,
        "migration": None,
        "changes": [
            {
                "part": "column text",
                "before": "string",
                "after": "string!",
                "compatible": False,
                "why": "old tables may have NULL in it",
            }
        ],
    }
    assert "declares no migrate_from_v1" in bus("specs", "diff", "notes").out


@pytest.mark.usefixtures("contracts")
def test_specs_diff_of_what_is_not_there_names_what_is(bus: Callable[..., Said]) -> None:
    for words, names in (
        (["prices", "3", "1"], "has version 1, 2, 3"),
        (["prices", "1", "7"], "has version 1, 2, 3"),
        (["alerts_std"], "has version 1"),
        (["price"], "prices"),
        ([], "bus specs lists them"),
    ):
        said = bus("specs", "diff", *words)
        assert (said.status in {1, 2}, said.out) == (True, "")
        assert names in said.err


@pytest.mark.usefixtures("contracts")
def test_specs_check_tells_what_is_left_out(bus: Callable[..., Said], tmp_path: Path) -> None:
    said = bus("specs", "check", "--json")
    assert said.status == 1
    assert [(p["code"], p["where"]) for p in said.json] == [("E211", "kinds.notes v1")]
    (tmp_path / "bus.toml").write_text(CONTRACTS.partition("[kinds.notes.v2]")[0])
    assert bus("specs", "check").status == 0
    assert bus("show", "--kind", "prices", "--json").json[1]["migrations"] == {
        "v1": "SELECT cents / 100 AS price FROM old"
    }
