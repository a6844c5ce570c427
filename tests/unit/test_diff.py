"""`bus diff`: two artifacts of a lake, their columns, rows and cells, in words and exit codes."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus.client import Bus
from bus.columns import Column
from bus.diff import Diff, diff
from bus.errors import BusError, Damaged, NotFound, Refused
from bus.settings import Settings
from bus.specs import Registry, Spec
from tests.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bus.model import ArtifactRecord

KEYED = Spec(
    kind="keyed",
    columns=(Column.parse("id", "int64!"), Column.parse("v", "float64")),
    key=("id",),
)
WIDER = Spec(
    kind="keyed",
    version=2,
    columns=(
        *(Column.parse("id", "int64!"), Column.parse("v", "float64"), Column.parse("w", "string")),
    ),
    key=("id",),
)
NOTED = Spec(
    kind="noted",
    columns=(Column.parse("id", "int64!"), Column.parse("run_id", "string", hashed=False)),
)
REGISTRY = Registry([KEYED, WIDER, NOTED])


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    found = History(tmp_path / "lake")
    yield found
    found.manifest.close()


def compared(
    history: History, one: pa.Table, other: pa.Table, *, kind: str = "things", **options: Any
) -> Diff:
    """The difference of two tables as artifacts of a kind."""
    ((a,), (b,)) = (history.commit_tables(kind, table) for table in (one, other))
    return diff(history.lake, REGISTRY, a.artifact_id, b.artifact_id, **options)


def test_the_contracts_key_tells_which_rows_changed(history: History) -> None:
    a = pa.table({"id": [1, 2, 3], "v": [0.1, 0.2, None]})
    b = pa.table({"id": [4, 3, 2], "v": [0.4, None, 0.25]})
    found = compared(history, a, b, kind="keyed")
    assert found.key == ("id",)
    assert found.rows is not None
    assert (found.rows.added, found.rows.removed, found.rows.changed) == (1, 1, 1)
    assert found.unchanged == 1
    assert found.rows.cells == {"v": 1}
    assert found.rows.first_changed[0].key == {"id": 2}
    assert found.rows.first_changed[0].cells == {"v": (0.2, 0.25)}
    assert not found.equal


def test_without_a_key_whole_rows_are_compared_as_often_as_they_occur(history: History) -> None:
    found = compared(history, pa.table({"x": [1, 1, 2]}), pa.table({"x": [1, 2, 2]}))
    assert found.rows is not None
    assert found.key == ()
    assert found.rows.first_removed == [{"x": 1}]
    assert found.rows.first_added == [{"x": 2}]
    keyed = compared(history, pa.table({"x": [1], "y": [1]}), pa.table({"x": [1], "y": [2]}))
    assert keyed.rows is not None
    assert keyed.rows.changed == 0


def test_a_key_can_be_named_and_must_be_in_both(history: History) -> None:
    a, b = pa.table({"x": [1], "y": [1], "z": ["1"]}), pa.table({"x": [1], "y": [2], "z": [1]})
    found = compared(history, a, b, key=["x"])
    assert found.rows is not None
    assert found.rows.cells == {"y": 1}
    for key in (["nothing"], ["x", "z"]):
        with pytest.raises(Refused) as refused:
            compared(history, a, b, key=key)
        assert refused.value.code == "E103"
        assert "x, y" in refused.value.hint


def test_columns_of_one_side_and_of_two_types_are_told(history: History) -> None:
    a = pa.table({"n": pa.array([1], pa.int32()), "t": ["1"], "old": [True]})
    b = pa.table({"n": pa.array([1], pa.int64()), "t": [1], "new": [0.5]})
    found = compared(history, a, b)
    assert found.added_columns == {"new": "float64"}
    assert found.removed_columns == {"old": "bool"}
    told = [(c.name, c.a, c.b, c.compared) for c in found.retyped_columns]
    assert told == [("n", "int32", "int64", True), ("t", "string", "int64", False)]
    assert found.same_rows
    assert not found.equal


def test_tables_without_a_common_column_have_no_rows_to_compare(history: History) -> None:
    found = compared(history, pa.table({"a": [1]}), pa.table({"b": [1]}))
    assert found.rows is None
    assert not found.equal
    assert found.as_dict()["rows"] is None


def test_versions_of_a_kind_are_compared_by_their_common_key(history: History) -> None:
    (a,) = history.commit_tables("keyed", pa.table({"id": [1, 2], "v": [1.0, 2.0]}))
    wide = pa.table({"id": [1, 2], "v": [1.0, 2.5], "w": ["x", "y"]})
    (b,) = history.commit_tables("keyed", wide, schema_version=2)
    found = diff(history.lake, REGISTRY, a.artifact_id, b.artifact_id)
    assert found.rows is not None
    assert (found.key, found.rows.cells) == (("id",), {"v": 1})
    assert found.added_columns == {"w": "string"}


# ── what the hashes say ───────────────────────────────────────────────────────────────────────────


def twins(history: History, kind: str, one: pa.Table, other: pa.Table) -> list[ArtifactRecord]:
    """Two artifacts that carry the same content hash."""
    same = {"content_hash": f"ch1:{'ab' * 32}"}
    return [history.commit_tables(kind, table, **same)[0] for table in (one, other)]


def test_equal_content_hashes_say_that_rows_are_equal(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_needed(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr("bus.diff.row_difference", not_needed)
    x = pa.table({"x": [1, 2]})
    a, b = twins(history, "things", x, x.take(pa.array([1, 0])))
    assert diff(history.lake, REGISTRY, a.artifact_id, b.artifact_id).equal
    assert diff(history.lake, REGISTRY, a.artifact_id, a.artifact_id).equal


def test_columns_outside_the_hash_are_compared_all_the_same(history: History) -> None:
    one = pa.table({"id": [1], "run_id": ["r1"]})
    a, b = twins(history, "noted", one, pa.table({"id": [1], "run_id": ["r2"]}))
    found = diff(history.lake, REGISTRY, a.artifact_id, b.artifact_id, key=["id"])
    assert found.rows is not None
    assert found.rows.cells == {"run_id": 1}


# ── what cannot be compared ───────────────────────────────────────────────────────────────────────


def test_bad_references_and_lost_bytes_are_told(history: History) -> None:
    a, b = history.commit_tables("things", pa.table({"x": [1]}), pa.table({"x": [2]}))
    path = history.lake.object_path(b.sha256)
    cases: list[tuple[str, type[BusError], str]] = [("nothing", NotFound, "E511")]
    for reference, error, code in cases:
        with pytest.raises(error) as told:
            diff(history.lake, REGISTRY, a.artifact_id, reference)
        assert told.value.code == code
    path.chmod(0o644)
    path.write_bytes(b"PAR1 this is none PAR1")
    with pytest.raises(Damaged) as damaged:
        diff(history.lake, REGISTRY, a.artifact_id, b.artifact_id)
    assert damaged.value.where == str(path)
    path.unlink()
    with pytest.raises(Damaged, match="are gone"):
        diff(history.lake, REGISTRY, a.artifact_id, b.artifact_id)


def test_a_page_that_cannot_be_read_is_an_error_with_a_place(history: History) -> None:
    a, b = history.commit_tables("things", *(pa.table({"x": [n] * 5000}) for n in (1, 2)))
    path = history.lake.object_path(b.sha256)
    with pq.ParquetFile(path) as file:
        start = file.metadata.row_group(0).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 8] = bytes(8)
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(Refused, match="cannot be compared") as refused:
        diff(history.lake, REGISTRY, a.artifact_id, b.artifact_id)
    assert refused.value.where == str(path)


# ── for programs ──────────────────────────────────────────────────────────────────────────────────


def test_the_client_compares(history: History) -> None:
    a, b = history.commit_tables("things", pa.table({"x": [1, 2]}), pa.table({"x": [2, 3]}))
    bus = Bus(Settings(lake=history.lake.root))
    found = bus.diff(a.artifact_id, b.artifact_id, key="x", limit=1)
    assert found.rows is not None
    assert (found.rows.added, found.rows.removed, found.rows.first_added) == (1, 1, [{"x": 3}])
    assert "different" in found._repr_html_()
    assert bus.diff(a.artifact_id, a.artifact_id).equal


def test_the_document_is_json_whatever_the_values_are(history: History) -> None:
    inf = float("inf")
    values = {"f": [inf], "d": [Decimal("1.50")], "b": [b"\0"], "t": [datetime(2026, 1, 8)]}  # noqa: DTZ001 - naive, on purpose
    found = compared(history, pa.table({"f": [0.0]}), pa.table(values), key=["f"])
    document = json.loads(json.dumps(found.as_dict(), default=str, allow_nan=False))
    assert document["rows"]["first_added"] == [{"f": "inf"}]
    assert document["columns"]["added"] == {
        "d": "decimal(3, 2)",
        "b": "binary",
        "t": "timestamp[us]",
    }
