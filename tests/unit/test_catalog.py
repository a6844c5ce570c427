"""The DuckDB catalog: what readers see, how it is brought forward, how it is published."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st

from bus import catalog as catalog_module, feed
from bus.catalog import Catalog, connect_snapshot, select
from bus.columns import Column
from bus.errors import Code, Unavailable
from bus.lake import Lake
from bus.model import Alias, Outcome, Pin, Supersede, Tag, Tombstone, Unpin, Untag
from bus.settings import Settings
from bus.specs import Registry, Spec
from tests.history import History, columns_of, digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bus.manifest import Manifest

UTC_US = pa.timestamp("us", "UTC")
BUILT_IN = Registry.built_in()


def always() -> bool:
    return True


class Shown:
    """A history and the catalog that follows it."""

    def __init__(self, path: Path, registry: Registry = BUILT_IN) -> None:
        self.history = History(path)
        self.lake = self.history.lake
        self.settings = Settings(lake=self.lake.root)
        self.registry = registry
        self.catalog = self.open()

    def open(self) -> Catalog:
        return Catalog.open(self.lake, self.settings, self.registry, self.history.manifest)

    def show(self) -> bool:
        self.catalog.catch_up(self.history.manifest)
        return self.catalog.publish(always)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return select(self.lake, self.settings, sql)[1]

    def shown(self, sql: str) -> list[tuple[Any, ...]]:
        """What readers see after publication."""
        self.show()
        return self.rows(sql)

    def rebuilt_digest(self) -> str:
        self.catalog.close()
        Catalog.delete(self.lake)
        self.catalog = self.open()
        self.show()
        return Catalog.digest(self.lake)

    def close(self) -> None:
        self.catalog.close()
        self.history.manifest.close()


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


# ── catalog.* ─────────────────────────────────────────────────────────────────────────────────


def test_the_columns_of_artifacts_f_are_those_of_the_design(bus: Shown) -> None:
    bus.show()
    columns, rows = select(bus.lake, bus.settings, "SELECT * FROM catalog.artifacts_f")
    assert columns == [
        *("artifact_key", "run_id", "name", "artifact_id", "producer", "kind", "schema_version"),
        *("format", "canonical_path", "rows", "schema_hint", "file_hash", "content_hash"),
        *("created_at_utc", "ingested_at", "seq", "meta_json"),
    ]
    assert rows == []


def test_an_artifact_is_found_with_all_its_facts_and_its_file_can_be_read(bus: Shown) -> None:
    table = pa.table({"n": [1, 2, 3]})
    artifact = bus.history.artifact(table, name="fills", schema_hint="canon.fills")
    bus.history.commit(bus.history.job(artifact, run_id="r", meta={"git_sha": "abc"}))
    (row,) = bus.shown(
        "SELECT artifact_key, artifact_id, name, producer, kind, schema_version, format, rows, "
        "schema_hint, file_hash, content_hash, meta_json, created_at_utc::VARCHAR, "
        "ingested_at::VARCHAR, canonical_path FROM catalog.artifacts_f"
    )
    assert row[:8] == (
        "r:fills:1",
        artifact.artifact_id,
        "fills",
        "tester",
        "things",
        1,
        "parquet",
        3,
    )
    assert row[8:12] == (
        "canon.fills",
        artifact.file_hash,
        artifact.content_hash,
        '{"git_sha":"abc"}',
    )
    assert row[12:14] == ("2026-01-08 05:12:33+00", "2026-01-08 06:00:00+00")
    assert Path(row[14]) == bus.lake.object_path(artifact.sha256)
    assert pq.read_table(row[14]).equals(table)


def test_a_content_hash_that_is_a_file_hash_is_told_in_full(bus: Shown) -> None:
    content_hash = f"file:sha256:{digest_of('x')}"
    bus.history.commit(bus.history.job(bus.history.artifact(content_hash=content_hash)))
    assert bus.shown("SELECT content_hash FROM catalog.artifacts_f") == [(content_hash,)]


def test_a_deduplicated_artifact_has_a_row_in_each_run(bus: Shown) -> None:
    first = bus.history.artifact()
    again = first.model_copy(update={"decision": "deduped", "mode": "file_hash"})
    bus.history.commit(bus.history.job(first, run_id="one"), bus.history.job(again, run_id="two"))
    assert bus.shown("SELECT run_id, artifact_id FROM catalog.artifacts_f ORDER BY 1") == [
        ("one", first.artifact_id),
        ("two", first.artifact_id),
    ]


def test_artifact_keys_are_unique_even_for_one_name_twice_in_one_commit(bus: Shown) -> None:
    new = bus.history.artifact
    jobs = [bus.history.job(new(name="b:c"), run_id="a") for _ in range(2)]
    bus.history.commit(*jobs, bus.history.job(new(name="c"), run_id="a:b"))
    bus.history.commit(bus.history.job(new(name="c"), run_id="a:b"))
    keys = [
        key for (key,) in bus.shown("SELECT artifact_key FROM catalog.artifacts_f ORDER BY ALL")
    ]
    assert keys == ["a:b:c:1", "a:b:c:1:1", "a:b:c:1:2", "a:b:c:2"]


def test_a_run_is_one_row_that_later_jobs_widen(bus: Shown) -> None:
    for meta in ({"a": 1}, {"b": 2}, {"a": 3}):
        bus.history.commit(bus.history.job(bus.history.artifact(), run_id="r", meta=meta))
        bus.show()
    sql = "SELECT run_id, first_seq, last_seq, meta_json, last_seen_at > first_seen_at FROM "
    assert bus.rows(sql + "catalog.runs_d") == [("r", 1, 3, '{"a":3,"b":2}', True)]


def test_the_latest_of_each_producer_kind_and_name_comes_newest_first(bus: Shown) -> None:
    new, job = bus.history.artifact, bus.history.job
    old, other = new(name="x"), new(name="y")
    bus.history.commit(job(old, other))
    newer, elsewhere = new(name="x"), new(name="x")
    bus.history.commit(job(newer), job(elsewhere, producer="another"))
    sql = "SELECT artifact_id FROM catalog.latest_artifacts_v"
    assert bus.shown(sql) == [
        (elsewhere.artifact_id,),
        (newer.artifact_id,),
        (other.artifact_id,),
    ]
    gone = Tombstone(op="tombstone", target=newer.artifact_id, reason="wrong")
    bus.history.commit(bus.history.change(gone))
    assert (old.artifact_id,) in bus.shown(sql)
    assert (newer.artifact_id,) not in bus.rows(sql)


def test_a_rejected_job_is_listed_with_its_problems(bus: Shown) -> None:
    problems = [{"code": "E301", "where": "a.parquet", "message": "missing", "hint": "write it"}]
    job = bus.history.job(job_id="bad", outcome=Outcome.REJECTED, problems=problems)
    bus.history.commit(job)
    (row,) = bus.shown("SELECT job_id, outcome, seq, problems_json->0->>'code' FROM catalog.jobs_f")
    assert row == ("bad", "rejected", 1, "E301")
    assert bus.rows("SELECT count(*) FROM catalog.artifacts_f") == [(0,)]


def test_tags_lineage_aliases_and_pins_show_what_holds_now(bus: Shown) -> None:
    source = bus.history.artifact(tags={"chain": ["solana", "evm"]})
    made = bus.history.artifact(inputs=[source.artifact_id])
    bus.history.commit(bus.history.job(source, made))
    bus.show()
    target = source.artifact_id
    bus.history.commit(
        bus.history.change(
            Untag(op="untag", target=target, tags={"chain": ["evm"]}),
            Tag(op="tag", target=made.artifact_id, tags={"good": ["yes"]}),
            Alias(op="alias", kind="things", alias="best", target=target),
            Pin(op="pin", pin="set", target=target),
        )
    )
    bus.show()
    bus.history.commit(
        bus.history.change(
            Alias(op="alias", kind="things", alias="best", target=made.artifact_id),
            Unpin(op="unpin", pin="set", target=target),
        )
    )
    assert bus.shown("SELECT artifact_id, k, v FROM catalog.tags_f ORDER BY k") == [
        (target, "chain", "solana"),
        (made.artifact_id, "good", "yes"),
    ]
    lineage = "SELECT artifact_id, input_artifact_id FROM catalog.lineage_f"
    assert bus.rows(lineage) == [(made.artifact_id, target)]
    assert bus.rows("SELECT alias, artifact_id FROM catalog.aliases_f") == [
        ("best", made.artifact_id)
    ]
    assert bus.rows("FROM catalog.pins_f") == []


def test_the_past_is_as_it_was_after_that_commit(bus: Shown) -> None:
    first, second = bus.history.artifact(name="a"), bus.history.artifact(name="b")
    bus.history.commit(bus.history.job(first, second))
    bus.show()
    newer = bus.history.artifact(name="a", supersedes=[first.artifact_id])
    bus.history.commit(bus.history.job(newer))
    gone = Tombstone(op="tombstone", target=second.artifact_id, reason="wrong")
    bus.history.commit(bus.history.change(gone))
    bus.show()

    def then(seq: int) -> dict[str, str]:
        return dict(bus.rows(f"SELECT artifact_id, status FROM catalog.artifacts_asof({seq})"))  # noqa: S608

    ids = first.artifact_id, second.artifact_id, newer.artifact_id
    assert then(0) == {}
    assert then(1) == dict(zip(ids, ("active", "active"), strict=False))
    assert then(2) == dict(zip(ids, ("superseded", "active", "active"), strict=True))
    assert then(3) == dict(zip(ids, ("superseded", "tombstoned", "active"), strict=True))


def test_a_revived_artifact_points_at_its_new_bytes_everywhere(bus: Shown) -> None:
    first = bus.history.artifact()
    bus.history.commit(bus.history.job(first, run_id="one"))
    bus.show()
    gone = Tombstone(op="tombstone", target=first.artifact_id, reason="wrong")
    bus.history.commit(bus.history.change(gone))
    bus.show()
    other = f"sha256:{digest_of('other bytes')}"
    again = first.model_copy(update={"decision": "revived", "file_hash": other})
    bus.history.commit(bus.history.job(again, run_id="two"))
    sql = "SELECT run_id, file_hash, status FROM catalog.artifacts_asof(3) ORDER BY 1"
    assert bus.shown(sql) == [("one", other, "active"), ("two", other, "active")]
    assert Catalog.digest(bus.lake) == bus.rebuilt_digest()


# ── canon.* ───────────────────────────────────────────────────────────────────────────────────


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
        Spec(
            kind="k", version=1, columns=(Column.parse("a", "int32"), Column.parse("b", "string"))
        ),
        Spec(kind="k", version=2, columns=(Column.parse("c", "bool"), Column.parse("a", "int64"))),
    ]
    bus = Shown(tmp_path / "lake", Registry(specs))
    bus.history.commit_tables("k", pa.table({"a": [1], "b": ["x"]}))
    bus.history.commit_tables("k", pa.table({"c": [True], "a": [2]}), schema_version=2)
    bus.show()
    columns, rows = select(bus.lake, None, "FROM canon.k ORDER BY a")
    assert columns == ["c", "a", "b"]
    assert rows == [(None, 1, "x"), (True, 2, None)]
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


def test_paths_are_published_under_the_public_root(tmp_path: Path) -> None:
    public = tmp_path / "public"
    public.symlink_to(tmp_path / "lake", target_is_directory=True)
    bus = Shown(tmp_path / "lake")
    bus.history.lake = bus.lake = Lake(tmp_path / "lake", public)
    bus.catalog.close()
    bus.catalog = bus.open()
    bus.history.commit_tables("things", pa.table({"n": [1]}))
    ((path,),) = bus.shown("SELECT canonical_path FROM catalog.artifacts_f")
    assert path.startswith(f"{public}/bus/store/objects/")
    assert pq.read_table(path).num_rows == 1
    assert bus.rows("FROM canon.things") == [(1,)]
    bus.close()


# ── catching up ───────────────────────────────────────────────────────────────────────────────


def test_catching_up_returns_the_commit_it_came_to(bus: Shown) -> None:
    assert bus.catalog.catch_up(bus.history.manifest) == 0
    for _ in range(3):
        bus.history.commit(bus.history.job(bus.history.artifact()))
    assert bus.catalog.catch_up(bus.history.manifest) == bus.catalog.applied_seq == 3
    assert bus.catalog.catch_up(bus.history.manifest) == 3


ACTIONS = ("new", "reuse", "supersede", "tombstone", "revive", "untag", "alias", "show", "reopen")


@given(actions=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9)), max_size=20))
@hypothesis_settings(
    max_examples=8,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_growing_commit_by_commit_equals_a_rebuild(
    actions: list[tuple[str, int]],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalog_module, "_FRESH_ROWS", 3)
    monkeypatch.setattr(catalog_module, "_FRESH_USES", 4)
    monkeypatch.setattr(feed, "WINDOW_ROWS", 2)
    bus = Shown(tmp_path_factory.mktemp("history") / "lake", Registry())
    steps = _Steps(bus)
    for action, number in actions:
        steps.take(action, number)
    bus.show()
    assert bus.rows("SELECT applied_seq FROM catalog.applied_v") == [(bus.history.seq,)]
    assert Catalog.digest(bus.lake) == bus.rebuilt_digest()
    bus.close()


class _Steps:
    """Random things that happen to a lake."""

    def __init__(self, bus: Shown) -> None:
        self._bus = bus
        self._made: list[Any] = []

    def take(self, action: str, number: int) -> None:
        history = self._bus.history
        if action == "show":
            self._bus.show()
        elif action == "reopen":
            self._bus.catalog.close()
            self._bus.catalog = self._bus.open()
        elif action == "new" or not self._made:
            columns = [{"name": f"c{number % 3}", "type": "int64" if number % 2 else "string"}]
            made = [
                history.artifact(
                    name=f"n{i}",
                    tags={"k": [str(number)]},
                    columns=columns,
                    inputs=[a.artifact_id for a in self._made[-1:]],
                )
                for i in range(number)
            ]
            history.commit(history.job(*made, run_id=f"run-{number % 2}"))
            self._made += made
        else:
            self._change(action, self._made[number % len(self._made)])

    def _change(self, action: str, old: Any) -> None:
        history, target = self._bus.history, old.artifact_id
        if action == "reuse":
            again = old.model_copy(update={"decision": "deduped", "mode": "file_hash"})
            history.commit(history.job(again, run_id="again"))
        elif action == "revive":
            bytes_now = f"sha256:{digest_of(str(history.seq))}"
            again = old.model_copy(update={"decision": "revived", "file_hash": bytes_now})
            history.commit(history.job(again))
        elif action == "supersede":
            history.commit(history.job(history.artifact(supersedes=[target])))
        elif action == "tombstone":
            gone = Tombstone(op="tombstone", target=target, reason="x")
            history.commit(history.change(gone))
        elif action == "untag":
            history.commit(history.change(Untag(op="untag", target=target, tags=old.tags)))
        else:
            alias = Alias(op="alias", kind="things", alias="a", target=target)
            history.commit(history.change(alias))


def test_a_digest_notices_a_single_changed_value(bus: Shown) -> None:
    bus.history.commit(bus.history.job(bus.history.artifact(), meta={"a": 1}))
    bus.show()
    before = Catalog.digest(bus.lake)
    with duckdb.connect(str(bus.lake.catalog_db)) as db:
        db.execute("UPDATE held.fresh SET data = replace(data, 'run-1', 'run-2')")
        db.execute("UPDATE held.uses SET run_id = 'run-2'")
    assert Catalog.digest(bus.lake) != before


def test_a_new_contract_makes_the_working_copy_anew(tmp_path: Path) -> None:
    bus = Shown(tmp_path / "lake")
    bus.history.commit_tables("things", pa.table({"n": [1], "m": ["x"]}))
    bus.show()
    bus.catalog.close()
    bus.registry = Registry([*BUILT_IN, Spec(kind="things", columns=(Column.parse("n", "int64"),))])
    bus.catalog = bus.open()
    assert bus.catalog.applied_seq == 0
    bus.show()
    assert select(bus.lake, None, "FROM canon.things") == (["n"], [(1,)])
    bus.close()


def garbage(path: Path) -> None:
    path.write_bytes(b"no database " * 1000)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(20_000, len(data), 4096):
        data[at] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [garbage, truncated, zeroed, flipped, Path.unlink])
def test_a_harmed_working_copy_is_made_anew(harm: Callable[[Path], None], bus: Shown) -> None:
    for number in range(3):
        bus.history.commit(bus.history.job(bus.history.artifact(number=number)))
        bus.show()
    before = Catalog.digest(bus.lake)
    bus.catalog.close()
    harm(bus.lake.catalog_work)
    bus.catalog = bus.open()
    bus.history.commit(bus.history.job(bus.history.artifact()))
    assert bus.shown("SELECT count(*) FROM catalog.artifacts_f") == [(4,)]
    grown = Catalog.digest(bus.lake)
    assert grown == bus.rebuilt_digest() != before


def test_a_working_copy_of_another_history_is_made_anew(bus: Shown, tmp_path: Path) -> None:
    bus.history.commit(bus.history.job(bus.history.artifact()))
    bus.show()
    bus.catalog.close()
    other, empty = History(tmp_path / "other"), History(tmp_path / "empty")
    other.commit(other.job(other.artifact(name="of another history")))
    for manifest in (empty.manifest, other.manifest):
        bus.catalog = Catalog.open(bus.lake, bus.settings, BUILT_IN, bus.history.manifest)
        bus.catalog.catch_up(bus.history.manifest)
        bus.catalog.publish(always)
        bus.catalog.close()
        unlike = Catalog.open(bus.lake, bus.settings, BUILT_IN, manifest)
        assert unlike.applied_seq == 0
        unlike.close()
        manifest.close()


def test_a_catalog_that_breaks_while_open_is_made_anew(
    bus: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus.history.commit(bus.history.job(bus.history.artifact()))
    bus.show()
    broken = iter([True])
    kept = Catalog._catch_up

    def once(self: Catalog, manifest: Manifest) -> int:
        if next(broken, False):
            raise duckdb.FatalException("database has been invalidated")
        return kept(self, manifest)

    monkeypatch.setattr(Catalog, "_catch_up", once)
    bus.history.commit(bus.history.job(bus.history.artifact()))
    assert bus.shown("SELECT count(*) FROM catalog.artifacts_f") == [(2,)]
    assert bus.rows("SELECT count(*) FROM canon.alerts_std") == [(0,)]


# ── publishing ────────────────────────────────────────────────────────────────────────────────


def test_readers_need_no_lock_and_keep_what_they_opened(bus: Shown) -> None:
    bus.history.commit(bus.history.job(bus.history.artifact()))
    bus.show()
    count = "SELECT count(*) FROM catalog.artifacts_f"
    with connect_snapshot(bus.lake) as early:
        bus.history.commit(bus.history.job(bus.history.artifact()))
        assert bus.shown(count) == [(2,)]
        assert early.execute(count).fetchall() == [(1,)]
    outside = (
        "import sys, duckdb; print(duckdb.connect(sys.argv[1], read_only=True).sql(sys.argv[2]))"
    )
    command = [sys.executable, "-c", outside, str(bus.lake.catalog_db), count]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "2" in answer.stdout


def test_the_file_can_be_opened_by_duckdb_1_5(bus: Shown) -> None:
    bus.show()
    with connect_snapshot(bus.lake) as db:
        ((tags,),) = db.execute(
            "SELECT tags FROM duckdb_databases() WHERE database_name = 'bus'"
        ).fetchall()
    assert tags["storage_version"].startswith("v1.5.0")


def test_nothing_is_published_twice_or_without_the_lock(bus: Shown) -> None:
    assert bus.show()
    before = bus.lake.catalog_db.stat()
    assert not bus.show()
    bus.history.commit(bus.history.job(bus.history.artifact()))
    bus.catalog.catch_up(bus.history.manifest)
    assert not bus.catalog.publish(lambda: False)
    assert bus.lake.catalog_db.stat() == before
    assert bus.catalog.publish(always)


def test_a_snapshot_of_a_later_commit_is_left_alone(bus: Shown, tmp_path: Path) -> None:
    bus.history.commit(bus.history.job(bus.history.artifact()))
    bus.show()
    ahead = Shown(tmp_path / "ahead")
    for _ in range(5):
        ahead.history.commit(ahead.history.job(ahead.history.artifact()))
    ahead.show()
    ahead.lake.catalog_db.replace(bus.lake.catalog_db)
    bus.history.commit(bus.history.job(bus.history.artifact()))
    assert not bus.show()
    assert bus.rows("SELECT applied_seq FROM catalog.applied_v") == [(5,)]
    ahead.close()


def test_a_rebuild_replaces_whatever_is_published_and_readers_never_miss_it(
    bus: Shown, tmp_path: Path
) -> None:
    ahead = Shown(tmp_path / "ahead")
    for _ in range(5):
        ahead.history.commit(ahead.history.job(ahead.history.artifact()))
    ahead.show()
    ahead.lake.catalog_db.rename(bus.lake.catalog_db)
    bus.catalog.close()
    Catalog.delete(bus.lake)
    assert bus.rows("SELECT applied_seq FROM catalog.applied_v") == [(5,)]
    bus.catalog = bus.open()
    bus.history.commit(bus.history.job(bus.history.artifact()))
    assert bus.shown("SELECT applied_seq FROM catalog.applied_v") == [(1,)]
    ahead.close()


def test_the_whole_directory_may_be_deleted_under_the_writer(bus: Shown) -> None:
    bus.history.commit(bus.history.job(bus.history.artifact()))
    bus.show()
    before = Catalog.digest(bus.lake)
    shutil.rmtree(bus.lake.catalog_db.parent)
    bus.history.commit(bus.history.job(bus.history.artifact()))
    try:
        bus.show()
    except Unavailable:  # the working copy could not be written: the next round begins anew
        bus.show()
    assert bus.rows("SELECT count(*) FROM catalog.artifacts_f") == [(2,)]
    assert before != Catalog.digest(bus.lake) == bus.rebuilt_digest()


@pytest.mark.parametrize("harm", [garbage, truncated, Path.unlink])
def test_a_harmed_snapshot_is_replaced_at_the_next_publication(
    harm: Callable[[Path], None], bus: Shown
) -> None:
    bus.show()
    harm(bus.lake.catalog_db)
    assert bus.shown("SELECT count(*) FROM catalog.artifacts_f") == [(0,)]


def test_no_snapshot_yet_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no catalog yet") as caught:
        select(Lake(tmp_path), None, "SELECT 1")
    assert caught.value.code is Code.E508


CRASHING = """
import sys
from pathlib import Path
from bus.specs import Registry
from tests.history import History
from bus.catalog import Catalog
history = History(Path(sys.argv[1]))
catalog = Catalog.open(history.lake, None, Registry.built_in(), history.manifest)
catalog.catch_up(history.manifest)
catalog.publish(lambda: True)
"""


def test_a_writer_killed_before_the_rename_leaves_the_old_snapshot(bus: Shown) -> None:
    bus.show()
    bus.history.commit(bus.history.job(bus.history.artifact()))
    bus.catalog.close()
    environment = os.environ | {"BUS_CRASH_AT": "views.built"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CRASHING, str(bus.lake.root)]
    killed = subprocess.run(command, cwd=root, env=environment, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert bus.rows("SELECT applied_seq FROM catalog.applied_v") == [(0,)]
    bus.catalog = bus.open()
    assert bus.shown("SELECT applied_seq FROM catalog.applied_v") == [(1,)]
    assert Catalog.digest(bus.lake) == bus.rebuilt_digest()


def test_the_history_of_the_tests_tells_columns_as_validators_do() -> None:
    assert columns_of(pa.table({"n": [1]})) == [{"name": "n", "type": "int64"}]
