"""`Reader`: what find, get, latest and exists answer, and what can be done with what they found."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus import finding
from bus.errors import BusError, Damaged, NotFound, Refused, Unavailable
from bus.manifest import SCHEMA_VERSION, Manifest
from bus.model import Supersede, Tombstone, artifact_id_of
from bus.reader import Reader
from bus.settings import Settings
from bus.statements import statement
from tests.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bus.model import ArtifactRecord

NUMBERS = pa.table({"n": [3, 1, 2], "text": ["c", "a", None]})


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History(tmp_path / "lake")
    yield made
    made.manifest.close()


@pytest.fixture
def reader(history: History) -> Reader:
    return Reader(Settings(lake=history.lake.root))


def deliver(history: History, table: pa.Table | None = None, **fields: Any) -> ArtifactRecord:
    """One job of one artifact; its size is the object's."""
    job = {name: fields.pop(name) for name in ("run_id", "producer", "job_id") if name in fields}
    made = history.artifact(table, **fields)
    path = history.lake.object_path(made.sha256)
    if path.exists():
        made = made.model_copy(update={"size_bytes": path.stat().st_size})
    history.commit(history.job(made, **job))
    return made


def ids(found: Any) -> list[str]:
    return [one.artifact_id for one in found]


# ── find ─────────────────────────────────────────────────────────────────────────────────────────


def test_filters_are_all_of_them_and_the_newest_comes_first(
    history: History, reader: Reader
) -> None:
    a = deliver(history, kind="k", logical_key="x", tags={"t": ["1", "2"], "u": ["1"]})
    b = deliver(history, kind="k", logical_key="y", tags={"t": ["1"]}, run_id="r2", producer="p2")
    c = deliver(history, kind="l", logical_key="x", tags={"t": ["2"]}, run_id="r2")
    every = [one.artifact_id for one in (c, b, a)]
    assert ids(reader.find()) == every
    assert ids(reader.find(limit=2)) == every[:2]
    assert ids(reader.find(limit=0)) == []
    for asked, expected in (
        ({"kind": "k"}, [b, a]),
        ({"kind": "k", "limit": 1}, [b]),
        ({"logical_key": "x"}, [c, a]),
        ({"kind": "k", "logical_key": "x"}, [a]),
        ({"kind": "l", "logical_key": "y"}, []),
        ({"tags": {"t": "1"}}, [b, a]),
        ({"tags": {"t": ["1", "2"]}}, [a]),
        ({"tags": {"t": "1", "u": "1"}}, [a]),
        ({"tags": {}}, [c, b, a]),
        ({"tags": {"t": ["1", "1"], "u": []}}, [b, a]),
        ({"tags": {"t": [str(n) for n in range(3000)]}}, []),
        ({"run_id": "r2"}, [c, b]),
        ({"run_id": "r2", "producer": "p2"}, [b]),
        ({"run_id": "run-1", "producer": "p2"}, []),
        ({"producer": "tester"}, [c, a]),
        ({"run_id": "r2", "kind": "l"}, [c]),
        ({"run_id": "r2", "logical_key": "x"}, [c]),
    ):
        assert ids(reader.find(**asked)) == [one.artifact_id for one in expected], asked


def test_a_run_and_a_producer_are_those_of_any_delivery(history: History, reader: Reader) -> None:
    made = deliver(history, run_id="r1", producer="p1")
    again = made.model_copy(update={"decision": "deduped", "mode": "file_hash"})
    history.commit(history.job(again, run_id="r2", producer="p2"))
    every: list[dict[str, Any]] = [{"run_id": "r2"}, {"producer": "p2"}]
    for asked in (*every, every[0] | every[1]):
        assert ids(reader.find(**asked)) == [made.artifact_id]
        assert ids(reader.find(**asked, as_of=1)) == []
    assert ids(reader.find(run_id="r1", producer="p2")) == []


def test_what_does_not_hold_is_found_only_when_it_is_asked_for(
    history: History, reader: Reader
) -> None:
    old, new, gone = deliver(history), deliver(history), deliver(history)
    replaced = Supersede(op="supersede", target=old.artifact_id, by=new.artifact_id)
    withdrawn = Tombstone(op="tombstone", target=gone.artifact_id, reason="wrong")
    history.commit(history.change(replaced, withdrawn))
    assert ids(reader.find()) == [new.artifact_id]
    assert ids(reader.find(status="superseded")) == [old.artifact_id]
    assert ids(reader.find(status="tombstoned")) == [gone.artifact_id]
    assert {one.artifact_id: one.status for one in reader.find(status=None)} == {
        old.artifact_id: "superseded",
        new.artifact_id: "active",
        gone.artifact_id: "tombstoned",
    }
    assert len(reader.find(as_of=3)) == 3


def test_a_time_range_finds_what_overlaps_it_and_ends_before_until(
    history: History, reader: Reader
) -> None:
    day = deliver(
        history, min_ts="2026-01-01T00:00:00.000000Z", max_ts="2026-01-01T23:59:59.500000Z"
    ).artifact_id
    deliver(history)  # without a time column
    for since, until, expected in (
        ("2026-01-01T23:59:59.5Z", None, [day]),
        ("2026-01-01T23:59:59.500001Z", None, []),
        (None, "2026-01-01T00:00:00Z", []),
        (None, "2026-01-01T00:00:00.000001+00:00", [day]),
        (None, "2026-01-01T01:00:00+02:00", []),
        (datetime(2025, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC), [day]),
    ):
        assert ids(reader.find(since=since, until=until)) == expected, (since, until)


def test_texts_are_compared_in_the_form_in_which_they_are_kept(
    history: History, reader: Reader
) -> None:
    made = deliver(history, logical_key="caf\u00e9", tags={"\u00e9": ["\u00e9"]})
    assert ids(reader.find(logical_key="cafe\u0301")) == [made.artifact_id]
    assert ids(reader.find(tags={"e\u0301": "e\u0301"})) == [made.artifact_id]


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        ({"as_of": 99}, "E511", "no commit 99"),
        ({"as_of": -1}, "E511", "no commit -1"),
        ({"as_of": "99"}, "E511", "no commit 99"),
        ({"as_of": "2026-01-08T06:00:00"}, "E103", "in no zone"),
        ({"as_of": "2026-01-08"}, "E103", "in no zone"),
        ({"as_of": datetime(2026, 1, 8)}, "E103", "in no zone"),  # noqa: DTZ001 - that is the fault
        ({"as_of": "yesterday"}, "E103", "no moment"),
        ({"as_of": "2025-12-31T23:59:59Z"}, "E511", "nothing was committed by"),
        ({"since": "noon"}, "E103", "no moment"),
        ({"since": ""}, "E103", "no moment"),
        ({"until": datetime(2026, 1, 8)}, "E103", "in no zone"),  # noqa: DTZ001 - likewise
        ({"status": "gone"}, "E103", "active, superseded"),
    ],
)
def test_bad_questions_say_what_is_wrong(
    history: History, reader: Reader, asked: dict[str, Any], code: str, said: str
) -> None:
    deliver(history)
    with pytest.raises(BusError) as caught:
        reader.find(**asked)
    assert caught.value.code == code
    assert said in caught.value.message
    assert caught.value.hint
    assert caught.value.where in asked


def test_a_moment_means_the_newest_commit_at_it_or_before(history: History, reader: Reader) -> None:
    made = [deliver(history, name="a", kind="k").artifact_id for _ in range(3)]
    ((first,), (second,), _) = history.manifest.rows("SELECT committed_at_utc FROM commits")
    at = datetime.fromisoformat(second)
    for as_of, expected in (
        (first, made[0]),
        (at - timedelta(microseconds=1), made[0]),
        (at, made[1]),
        (second.replace("Z", "+00:00"), made[1]),
        (at.astimezone(tz=None), made[1]),
        (datetime(2100, 1, 1, tzinfo=UTC), made[2]),
        ("1", made[0]),
        (3, made[2]),
        (None, made[2]),
    ):
        assert reader.get("k:latest", as_of=as_of).artifact_id == expected, as_of
        assert reader.latest("k", as_of=as_of).artifact_id == expected, as_of


# ── get, latest, exists ──────────────────────────────────────────────────────────────────────────


def test_get_gives_an_artifact_whatever_its_status(history: History, reader: Reader) -> None:
    made = deliver(history, tags={"b": ["2", "1"], "a": ["x"]})
    gone = Tombstone(op="tombstone", target=made.artifact_id, reason="wrong")
    history.commit(history.change(gone))
    found = reader.get(made.artifact_id)
    assert (found.status, found.seq, found.tags) == ("tombstoned", 1, {"a": ["x"], "b": ["1", "2"]})
    assert reader.get(made.artifact_id, as_of=1).status == "active"
    assert found.created_at == datetime(2026, 1, 8, 6, tzinfo=UTC)
    with pytest.raises(NotFound):
        reader.get(made.artifact_id, as_of=0)


def test_latest_is_by_kind_producer_and_name(history: History, reader: Reader) -> None:
    a = deliver(history, name="a", kind="k", producer="p")
    b = deliver(history, name="b", kind="k", producer="q")
    assert reader.latest("k").artifact_id == b.artifact_id
    assert reader.latest("k", producer="p").artifact_id == a.artifact_id
    assert reader.latest("k", name="a").artifact_id == a.artifact_id
    with pytest.raises(NotFound, match="kind 'k', producer 'p', name 'b'"):
        reader.latest("k", producer="p", name="b")


def test_exists_says_whether_submitting_again_would_add_nothing(
    history: History, reader: Reader
) -> None:
    made = deliver(history, artifact_id=IDENTITY_ID, logical_key="caf\u00e9", content_hash="ch1:x")
    identity: dict[str, Any] = {
        "kind": "things",
        "logical_key": "cafe\u0301",
        "content_hash": "ch1:x",
    }
    assert reader.exists(made.file_hash)
    assert reader.exists(made.sha256)
    assert reader.exists(**identity)
    assert not reader.exists(**identity, schema_version=2)
    assert not reader.exists(**(identity | {"content_hash": "ch1:y"}))
    assert not reader.exists("0" * 64)
    gone = Tombstone(op="tombstone", target=made.artifact_id, reason="wrong")
    history.commit(history.change(gone))
    assert not reader.exists(made.file_hash)
    assert not reader.exists(**identity)


#: UUIDv5 of ["things",1,"café","ch1:x"].
IDENTITY_ID = artifact_id_of("things", 1, "caf\u00e9", "ch1:x")


@pytest.mark.parametrize(
    "asked",
    [{}, {"kind": "k"}, {"kind": "k", "logical_key": "x"}, {"file_hash": "f", "kind": "k"}],
)
def test_exists_wants_one_or_the_other(reader: Reader, asked: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="name either"):
        reader.exists(**asked)


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


def test_an_artifact_is_a_table_in_any_form(history: History, reader: Reader) -> None:
    deliver(history, NUMBERS, kind="k")
    found = reader.latest("k")
    assert found.arrow().equals(NUMBERS)
    assert isinstance(found.df(), pd.DataFrame)
    assert found.df()["n"].tolist() == [3, 1, 2]
    assert isinstance(found.pl(), pl.DataFrame)
    assert found.pl()["text"].to_list() == ["c", "a", None]
    assert found.sql("SELECT sum(n)::INT AS s FROM this").to_pylist() == [{"s": 6}]
    assert pq.read_table(found.path).equals(NUMBERS)
    found.check(deep=True)


def test_artifacts_found_together_are_one_table(history: History, reader: Reader) -> None:
    deliver(history, pa.table({"n": pa.array([1], pa.int32())}), kind="k")
    deliver(history, pa.table({"n": pa.array([2], pa.int64()), "more": ["x"]}), kind="k")
    found = reader.find(kind="k")
    assert found.arrow().to_pylist() == [{"n": 2, "more": "x"}, {"n": 1, "more": None}]
    sql = "SELECT count(*) AS rows, max(n)::INT AS most, max(more) AS more FROM this"
    assert found.sql(sql).to_pylist() == [{"rows": 2, "most": 2, "more": "x"}]
    assert found[:1].arrow().num_rows == 1
    assert [one.rows for one in found] == [1, 1]
    assert found == list(found)
    assert found != found[:1]
    deliver(history, pa.table({"n": ["text"]}), kind="k")
    with pytest.raises(Refused, match="do not fit together"):
        reader.find(kind="k").arrow()


def test_of_nothing_there_is_no_table(reader: Reader) -> None:
    for read in ("arrow", "df", "pl"):
        with pytest.raises(NotFound, match="no table"):
            getattr(reader.find(kind="nobody"), read)()
    with pytest.raises(NotFound, match="no table"):
        reader.find(kind="nobody").sql("FROM this")


def test_a_lake_in_a_folder_that_looks_like_a_partition_or_a_pattern_adds_no_column(
    tmp_path: Path,
) -> None:
    history = History(tmp_path / "run=5" / "[x]*")
    deliver(history, NUMBERS, kind="k")
    found = Reader(Settings(lake=history.lake.root)).latest("k")
    assert found.arrow().equals(NUMBERS)
    assert found.sql("FROM this").equals(NUMBERS)
    history.manifest.close()


@pytest.mark.parametrize(
    "sql",
    [
        "FROM read_parquet('{other}')",
        "SELECT * FROM this, read_parquet('{folder}/*.parquet')",
        "FROM read_text('/etc/hostname')",
        "COPY this TO '{folder}/x.parquet'",
        "WITH x AS (COPY (FROM this) TO '{folder}/x.parquet') FROM x",
        "SET enable_external_access = true",
        "ATTACH '{folder}/x.db'",
        "DROP VIEW this",
        "FROM that",
        "SELECT",
        "FROM this; FROM this",
    ],
)
def test_sql_reads_this_and_nothing_else(history: History, reader: Reader, sql: str) -> None:
    other = deliver(history, pa.table({"secret": [1]}), kind="other")
    deliver(history, NUMBERS, kind="k")
    path = history.lake.object_path(other.sha256)
    with pytest.raises(Refused) as caught:
        reader.latest("k").sql(sql.format(other=path, folder=path.parent))
    assert caught.value.code == "E510"
    assert {p.name for p in path.parent.iterdir()} == {path.name}


@pytest.mark.parametrize("what", ["missing", "cut", "other bytes", "no Parquet"])
def test_an_object_that_is_not_what_was_committed_is_an_error_that_names_the_artifact(
    history: History, reader: Reader, what: str
) -> None:
    made = deliver(history, NUMBERS, kind="k", logical_key="token=SOL")
    deliver(history, NUMBERS.slice(0, 1), kind="k")
    path = history.lake.object_path(made.sha256)
    data = path.read_bytes()
    if what == "missing":
        path.unlink()
    elif what == "cut":
        os.truncate(path, len(data) - 1)
    elif what == "other bytes":
        path.write_bytes(bytes(b ^ 255 if i > 3 else b for i, b in enumerate(data)))
    else:
        path.write_bytes(b"x" * len(data))
    found = reader.find(kind="k")
    for read in (found[1].arrow, found[1].df, found[1].pl, found.arrow):
        with pytest.raises(Damaged) as caught:
            read()
        assert caught.value.code == "E315"
        assert f"k v1 token=SOL ({made.artifact_id})" in caught.value.message
        assert caught.value.where == str(path)
        assert caught.value.hint
    for one in (found[1], found):
        with pytest.raises(Damaged):
            one.sql("SELECT max(text) FROM this")
    with pytest.raises(Damaged):
        found[1].check(deep=True)


def test_an_artifact_says_what_it_is(history: History, reader: Reader) -> None:
    deliver(history, NUMBERS, kind="k", logical_key="<b>", tags={"t": ["1"]})
    found = reader.find(kind="k")
    assert "k v1 <b>, active, 3 rows" in repr(found[0])
    assert repr(found[0]) in repr(found)
    for html in (found[0]._repr_html_(), found._repr_html_()):
        assert "&lt;b&gt;" in html
        assert "<b>k v1 <b>" not in html
        assert found[0].artifact_id in html
    document = found[0].as_dict()
    assert document["created_at"] == "2026-01-08T06:00:00.000000Z"
    assert document["min_ts"] is None
    assert document["path"] == str(history.lake.object_path(found[0].file_hash[7:]))
    assert len({found[0], reader.get("k:latest")}) == 1


# ── the manifest ─────────────────────────────────────────────────────────────────────────────────


def test_another_versions_manifest_is_told_from_a_sound_one(
    history: History, reader: Reader
) -> None:
    deliver(history)
    history.manifest._db.execute(
        "UPDATE meta SET value = ? WHERE key = 'schema_version'", (SCHEMA_VERSION - 1,)
    )
    with pytest.raises(Unavailable, match="has layout") as caught:
        reader.find()
    assert caught.value.code == "E508"
    assert "bus rebuild" in caught.value.hint


def test_a_manifest_that_is_being_made_again_is_not_taken_for_an_empty_lake(
    history: History, reader: Reader
) -> None:
    deliver(history)
    history.lake.record_path(1).touch()
    history.manifest.close()
    Manifest.delete(history.lake)
    for ask in (reader.find, partial(reader.get, "things:latest"), partial(reader.change_feed, 0)):
        with pytest.raises(Unavailable) as caught:
            ask()
        assert caught.value.code == "E508"


#: What is asked by key, and the index that must answer it; never a walk through a table.
BY_KEY = {
    "an id": (finding._OF_IDS, "artifact_facts_id"),
    "kind and key": (f"{finding._OF_KIND} AND {finding._OF_KEY}", "idx_artifacts_type_key"),
    "a key": (
        f"{finding._OF_ANY_KIND.format(kinds=statement('kinds'))} AND {finding._OF_KEY}",
        "idx_artifacts_type_key",
    ),
    "tags": (
        f"{finding._OF_RAREST_TAG} AND {finding._OF_EVERY_TAG} AND {finding._AMONG_KINDS}",
        "tag_marks_kv",
    ),
    "a run": (f"{finding._OF_RUN} AND {finding._AMONG_KINDS}", "run_artifacts_run"),
}


def plan_of(manifest: Manifest, sql: str) -> list[str]:
    params = dict.fromkeys(
        (
            *("as_of", "status", "limit", "kind", "logical_key", "ids", "k", "v", "tags"),
            *("run_id", "producer", "name", "first", "second", "low", "high", "rare"),
        )
    )
    return [row[-1] for row in manifest.rows(f"EXPLAIN QUERY PLAN {sql}", params)]


def scans(plan: list[str]) -> list[str]:
    """Tables that are walked through; lists made on the way are short, and so are these few."""
    short = ("json_each", "j ", "kinds", "(subquery", "d", "commits", "CONSTANT", "policy_facts")
    return [line for line in plan if line.startswith("SCAN ") and not line[5:].startswith(short)]


@pytest.mark.parametrize("asked", BY_KEY)
def test_finding_by_key_is_answered_by_an_index(history: History, asked: str) -> None:
    where, index = BY_KEY[asked]
    history.manifest.index()
    sql = statement("artifacts_then").format(where=where, status=statement("status_then"))
    plan = plan_of(history.manifest, sql)
    assert any(f"INDEX {index} " in line for line in plan), plan
    assert scans(plan) == []


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ("u.kind = :kind", "run_artifacts_kind "),
        ("u.kind = :kind AND u.producer = :producer", "run_artifacts_kind "),
        ("u.kind = :kind AND u.name = :name", "run_artifacts_kind_name "),
    ],
)
def test_the_latest_is_the_first_that_its_index_gives(
    history: History, where: str, index: str
) -> None:
    history.manifest.index()
    sql = statement("latest").format(where=where, status=statement("status_then"))
    plan = plan_of(history.manifest, sql)
    assert f"INDEX {index}" in plan[0]
    assert not any("TEMP B-TREE" in line for line in plan)


@pytest.mark.parametrize(
    "name",
    [
        *("meant_by_run", "meant_by_job", "meant_by_alias", "meant_by_prefix", "meant_by_version"),
        *("rarest_tag", "is_rare", "changes"),
    ],
)
def test_references_and_changes_walk_through_no_table(history: History, name: str) -> None:
    history.manifest.index()
    assert scans(plan_of(history.manifest, statement(name))) == []
