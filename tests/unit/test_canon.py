"""What `canon.*` shows: all tables of a kind as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from bus.catalog import Catalog, connect_snapshot, select
from bus.columns import Column
from bus.model import Supersede, Tombstone
from bus.specs import Registry, Spec
from tests.shown import BUILT_IN, Shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UTC_US = pa.timestamp("us", "UTC")


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Shown]:
    shown = Shown(tmp_path / "lake")
    yield shown
    shown.close()


def alerts(*ids: str, mint: str = "m", text: str | None = None) -> pa.Table:
    rows = len(ids)
    names = ["alert_kind", "mint_source", "caller_raw_name", "caller_id", "caller_name_norm"]
    return pa.table(
        {
            "alert_id": list(ids),
            "alert_chat_id": pa.array([1] * rows, pa.int32()),
            "alert_message_id": list(range(rows)),
            "alert_ts_ms": list(range(rows)),
            "mint": [mint] * rows,
            "chain": ["solana"] * rows,
            **{name: pa.nulls(rows, pa.string()) for name in [*names, "caller_base", "run_id"]},
            "alert_text": pa.array([text] * rows, pa.string()),
        }
    )


def test_kinds_with_a_contract_have_an_empty_view_from_the_start(bus: Shown) -> None:
    bus.show()
    with connect_snapshot(bus.lake) as db:
        for spec in BUILT_IN:
            reader = db.sql(f"FROM canon.{spec.kind}").to_arrow_reader(10)
            assert reader.schema.names == spec.schema.names
            assert reader.read_all().num_rows == 0
        times = db.sql("SELECT ts, close FROM canon.ohlcv_slice").to_arrow_reader(10).schema
    assert times.types == [UTC_US, pa.float64()]


def test_files_of_a_kind_may_differ_within_the_contract(bus: Shown) -> None:
    plain = {"run_id": ["r"], "metric_name": ["m"], "metric_value": [1.5]}
    times = pa.array([1_000_000_000], pa.timestamp("ns", "UTC"))
    bus.history.commit_tables("run_metrics", pa.table(plain | {"ts": pa.nulls(1), "note": ["x"]}))
    bus.history.commit_tables(
        "run_metrics",
        pa.table(
            {
                "ts": times,
                "metric_value": pa.array([2], pa.int8()),
                "metric_name": pa.array(["n"]).dictionary_encode(),
                "run_id": pa.array(["r"], pa.large_string()),
            }
        ),
    )
    sql = "SELECT metric_name, metric_value, epoch_ms(ts) FROM canon.run_metrics ORDER BY 1"
    assert bus.shown(sql) == [("m", 1.5, None), ("n", 2.0, 1000)]


def test_an_optional_column_that_a_file_lacks_is_null(bus: Shown) -> None:
    bus.history.commit_tables("alerts_std", alerts("a"))
    assert bus.shown("SELECT alert_id, ingested_at FROM canon.alerts_std") == [("a", None)]


def test_alerts_have_one_row_a_key_from_the_newest_submission(bus: Shown) -> None:
    (first,) = bus.history.commit_tables("alerts_std", alerts("a", "b", text="first"))
    (second,) = bus.history.commit_tables("alerts_std", alerts("b", "c", text="second"))
    sql = "SELECT alert_id, alert_text FROM canon.alerts_std ORDER BY 1"
    assert bus.shown(sql) == [("a", "first"), ("b", "second"), ("c", "second")]
    every = "SELECT alert_id, artifact_id FROM canon.alerts_std_all ORDER BY ALL"
    assert set(bus.rows(every)) == {
        *((alert_id, first.artifact_id) for alert_id in "ab"),
        *((alert_id, second.artifact_id) for alert_id in "bc"),
    }
    again = first.model_copy(update={"decision": "deduped", "mode": "file_hash"})
    bus.history.commit(bus.history.job(again))
    assert bus.shown(sql) == [("a", "first"), ("b", "first"), ("c", "second")]


def test_superseded_and_tombstoned_tables_leave_the_view(bus: Shown) -> None:
    (old,) = bus.history.commit_tables("things", pa.table({"n": [1]}))
    (new,) = bus.history.commit_tables("things", pa.table({"n": [2]}))
    supersede = Supersede(op="supersede", target=old.artifact_id, by=new.artifact_id)
    bus.history.commit(bus.history.change(supersede))
    assert bus.shown("FROM canon.things") == [(2,)]
    gone = Tombstone(op="tombstone", target=new.artifact_id, reason="wrong")
    bus.history.commit(bus.history.change(gone))
    assert bus.shown("FROM canon.things") == []


def test_a_kind_without_a_contract_shows_every_column_its_tables_had(bus: Shown) -> None:
    nested = pa.array([{"a b": 1, "l": ["x"]}])
    bus.history.commit_tables("things", pa.table({"n": [1], "odd \"name'": ["q"], "s": nested}))
    bus.history.commit_tables("things", pa.table({"extra": [True], "N": [2.5]}))
    columns, rows = select(bus.lake, bus.settings, "SELECT 1") if bus.show() else ([], [])
    columns, rows = select(bus.lake, bus.settings, "FROM canon.things ORDER BY n")
    assert columns == ["n", "odd \"name'", "s", "extra"]
    assert rows == [
        (1.0, "q", {"a b": 1, "l": ["x"]}, None),
        (2.5, None, None, True),
    ]
    assert bus.rows('SELECT s."a b", s.l[1] FROM canon.things WHERE n = 1') == [(1, "x")]


CONFLICTS = {
    "integers of two widths": (pa.int8(), pa.int64(), pa.int64()),
    "integers and floats": (pa.int64(), pa.float32(), pa.float64()),
    "text and numbers": (pa.string(), pa.int64(), pa.string()),
    "nothing and numbers": (pa.null(), pa.int16(), pa.int16()),
    "lists and numbers": (pa.list_(pa.int64()), pa.int64(), pa.string()),
    "days and moments": (pa.date32(), pa.timestamp("us"), pa.timestamp("us")),
}


@pytest.mark.parametrize(("one", "two", "shown"), CONFLICTS.values(), ids=CONFLICTS.keys())
def test_columns_that_differ_in_type_are_shown_as_one_that_holds_both(
    one: pa.DataType, two: pa.DataType, shown: pa.DataType, bus: Shown
) -> None:
    bus.history.commit_tables("things", pa.table({"c": pa.nulls(1, one)}))
    bus.history.commit_tables("things", pa.table({"c": pa.nulls(1, two)}))
    bus.show()
    with connect_snapshot(bus.lake) as db:
        table = db.sql("FROM canon.things").to_arrow_reader(10).read_all()
    assert table.schema.types == [shown]
    assert table.num_rows == 2


def test_features_show_the_contract_first_and_then_whatever_came(bus: Shown) -> None:
    base = {"run_id": ["r"], "call_id": ["c"]}
    bus.history.commit_tables("bt_features", pa.table({"rsi": [1.0], **base}))
    bus.history.commit_tables("bt_features", pa.table({**base, "ema": [2.0]}))
    bus.show()
    columns, rows = select(bus.lake, None, "FROM canon.bt_features ORDER BY rsi")
    assert columns == ["run_id", "call_id", "rsi", "ema"]
    assert rows == [("r", "c", 1.0, None), ("r", "c", None, 2.0)]


def test_versions_of_a_kind_are_joined_by_name(tmp_path: Path) -> None:
    specs = [
        Spec(kind="k", version=1, columns=(Column.parse("a", "int32"),)),
        Spec(kind="k", version=2, columns=(Column.parse("c", "bool"), Column.parse("a", "int64"))),
    ]
    bus = Shown(tmp_path / "lake", Registry(specs))
    bus.history.commit_tables("k", pa.table({"a": [1]}))
    bus.history.commit_tables("k", pa.table({"c": [True], "a": [2]}), schema_version=2)
    bus.show()
    columns, rows = select(bus.lake, None, "FROM canon.k ORDER BY a")
    assert columns == ["c", "a"]
    assert rows == [(None, 1), (True, 2)]
    bus.close()


def test_kinds_that_differ_only_by_case_do_not_hide_each_other(bus: Shown) -> None:
    bus.history.commit_tables("things", pa.table({"n": [1]}))
    bus.history.commit_tables("Things", pa.table({"n": [2]}))
    bus.history.commit_tables("alerts_std_all", pa.table({"n": [3]}))
    names = "SELECT view_name FROM catalog.views_d WHERE lower(kind) = 'things' ORDER BY 1"
    bus.history.commit_tables("A", pa.table({"n": [1]}))
    assert bus.shown(names) == [("Things#2",), ("things",)]
    assert bus.rows('FROM canon."Things#2"') == [(2,)]
    assert bus.rows('FROM canon."alerts_std_all#2"') == [(3,)]
    assert Catalog.digest(bus.lake) == bus.rebuilt_digest()


def test_a_table_that_duckdb_cannot_read_stops_only_its_own_kind(bus: Shown) -> None:
    bus.history.commit_tables("good", pa.table({"n": [1]}))
    (bad,) = bus.history.commit_tables("bad", pa.table({"n": [1]}))
    link = bus.lake.artifact_path("bad", 1, bad.artifact_id)
    link.unlink()
    link.write_bytes(b"not Parquet at all")
    assert bus.shown("FROM canon.good") == [(1,)]
    assert bus.rows("SELECT count(*) FROM information_schema.columns WHERE table_name = 'bad'")
    assert Catalog.digest(bus.lake) == bus.rebuilt_digest()


def test_the_text_of_a_view_changes_only_when_a_column_or_a_version_appears(bus: Shown) -> None:
    def texts() -> list[tuple[Any, ...]]:
        return bus.shown("SELECT view_name, sql FROM catalog.views_d ORDER BY 1")

    bus.history.commit_tables("things", pa.table({"n": [1]}))
    before = texts()
    bus.history.commit_tables("things", pa.table({"n": [2]}), pa.table({"n": [3]}))
    bus.history.commit_tables("alerts_std", alerts("a"))
    assert texts() == before
    bus.history.commit_tables("things", pa.table({"n": [1], "m": [1]}))
    assert [b[0] for b, a in zip(before, texts(), strict=True) if a != b] == ["things"]


def test_a_lake_whose_path_holds_a_pattern_reads_its_own_files(tmp_path: Path) -> None:
    bus = Shown(tmp_path / "we[1]rd * 'lake'")
    bus.history.commit_tables("things", pa.table({"n": [1]}))
    assert bus.shown("FROM canon.things") == [(1,)]
    bus.close()
