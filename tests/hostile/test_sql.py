"""SQL from strangers: nothing outside the lake is read, nothing at all is written.

Two walls are tested each by itself: `select` admits only what reads, and the connection refuses
what slips through.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus.catalog import Catalog, connect_snapshot, select
from bus.errors import Code, Refused
from bus.settings import Settings
from bus.snapshot import MAX_QUERY_CHARACTERS, read
from bus.specs import Registry
from tests.history import History

if TYPE_CHECKING:
    from pathlib import Path

    from bus.lake import Lake


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "secret.txt").write_text("root:x:0:0")
    (folder / "secret.csv").write_text("a,b\n1,2\n")
    pq.write_table(pa.table({"secret": [1]}), folder / "secret.parquet")
    duckdb.connect(str(folder / "other.duckdb")).execute("CREATE TABLE t(i INT)").close()
    history = History(folder / "lake")
    history.commit_tables("things", pa.table({"n": [1, 2, 3]}))
    catalog = Catalog.open(
        history.lake, Settings(lake=history.lake.root), Registry.built_in(), history.manifest
    )
    catalog.catch_up(history.manifest)
    catalog.publish(lambda: True)
    catalog.close()
    history.manifest.close()
    (history.lake.exports / "link.parquet").symlink_to(folder / "secret.parquet")
    return history.lake


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below, with its size and time of change."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in found}


#: {outside}: the directory around the lake; {inside}: a directory the connection may read.
READING_OUTSIDE = {
    "read_text": "SELECT * FROM read_text('{outside}/secret.txt')",
    "read_blob": "SELECT * FROM read_blob('{outside}/secret.txt')",
    "read_csv": "SELECT * FROM read_csv('{outside}/secret.csv')",
    "read_json": "SELECT * FROM read_json('{outside}/secret.txt')",
    "read_parquet": "SELECT * FROM read_parquet('{outside}/secret.parquet')",
    "a path as a table": "SELECT * FROM '{outside}/secret.parquet'",
    "up and out": "SELECT * FROM read_parquet('{inside}/../../secret.parquet')",
    "a link in an allowed directory": "SELECT * FROM read_parquet('{inside}/link.parquet')",
    "a glob": "SELECT * FROM glob('{outside}/*')",
    "sniff_csv": "SELECT * FROM sniff_csv('{outside}/secret.csv')",
    "the manifest": "SELECT * FROM read_blob('{outside}/lake/manifest/manifest.sqlite')",
    "another database": "SELECT * FROM read_duckdb('{outside}/other.duckdb', table_name = 't')",
    "the web": "SELECT * FROM read_parquet('https://127.0.0.1:9/x.parquet')",
    "an object store": "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
    "parquet_metadata": "SELECT * FROM parquet_metadata('{outside}/secret.parquet')",
    "in a subquery": "SELECT (SELECT max(secret) FROM '{outside}/secret.parquet')",
    "in a string": "SELECT * FROM query('SELECT * FROM ''{outside}/secret.parquet''')",
    "in a serialised tree": (
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql("
        "'SELECT * FROM ''{outside}/secret.parquet'''))"
    ),
    "a Python variable": "SELECT * FROM treasure",
}
DOING_MORE = {
    "COPY": "COPY (SELECT 1) TO '{inside}/new.parquet'",
    "COPY in a WITH": "WITH x AS (COPY (SELECT 1) TO '{inside}/new.parquet') SELECT 1",
    "COPY over an object": "WITH x AS (COPY (SELECT 1) TO '{object}') SELECT 1",
    "COPY in a string": (
        "SELECT * FROM query('WITH x AS (COPY (SELECT 1) TO ''{inside}/new.parquet'') SELECT 1')"
    ),
    "INSERT in a WITH": "WITH x AS (INSERT INTO catalog.uses SELECT * FROM catalog.uses) SELECT 1",
    "DELETE in a WITH, deeper": (
        "SELECT * FROM (WITH x AS (DELETE FROM held.uses RETURNING *) SELECT * FROM x) q"
    ),
    "EXPORT": "EXPORT DATABASE '{inside}/dump'",
    "IMPORT": "IMPORT DATABASE '{outside}'",
    "ATTACH": "ATTACH '{outside}/other.duckdb' AS o",
    "ATTACH to write": "ATTACH '{inside}/new.duckdb' AS o",
    "DETACH": "DETACH bus",
    "INSTALL": "INSTALL httpfs",
    "LOAD": "LOAD '{outside}/evil.duckdb_extension'",
    "SET": "SET enable_external_access = true",
    "SET more memory": "SET memory_limit = '100GB'",
    "RESET": "RESET enable_external_access",
    "PRAGMA": "PRAGMA enable_profiling",
    "CALL": "CALL enable_logging(storage = 'file', storage_path = '{inside}')",
    "logging by SELECT": "SELECT * FROM enable_logging(storage = 'file', storage_path = '{inside}')",
    "a checkpoint by SELECT": "SELECT * FROM force_checkpoint()",
    "a secret": "CREATE SECRET s (TYPE s3, KEY_ID 'k', SECRET 's')",
    "CREATE": "CREATE TABLE memory.main.t AS SELECT 1",
    "a macro": "CREATE MACRO memory.main.f() AS 1",
    "DROP": "DROP VIEW canon.things",
    "UPDATE": "UPDATE held.uses SET run_id = 'x'",
    "USE": "USE memory",
    "PREPARE": "PREPARE p AS SELECT 1",
    "EXPLAIN ANALYZE": "EXPLAIN ANALYZE SELECT 1",
    "two statements": "SELECT 1; SELECT 2",
    "a second one after a comment": "SELECT 1 /* ; */ ; DROP VIEW canon.things",
    "nothing": "  -- nothing\n",
    "no SQL": "give me everything",
    "an unfinished text": "SELECT 'abc",
    "a log entry": "SELECT write_log('x')",
    "the seed": "SELECT setseed(0.5)",
}


def filled(lake: Lake, sql: str) -> str:
    (path,) = lake.all_objects()
    return sql.format(outside=lake.root.parent, inside=lake.exports, object=path)


@pytest.mark.parametrize(
    "attempt",
    [*READING_OUTSIDE.values(), *DOING_MORE.values()],
    ids=[*READING_OUTSIDE, *DOING_MORE],
)
def test_select_refuses_it_and_nothing_changes(attempt: str, lake: Lake) -> None:
    treasure = pa.table({"secret": [1]})
    before = everything(lake.root.parent)
    with pytest.raises(Refused) as caught:
        select(lake, None, filled(lake, attempt), timeout_s=20)
    assert caught.value.code is Code.E510
    assert everything(lake.root.parent) == before
    assert treasure.num_rows == 1


#: What the connection itself stops, for the day when admission has a hole.
_WRITES_INSIDE = {"COPY", "COPY in a WITH", "COPY over an object", "COPY in a string"}
LOCKED = {
    name: sql
    for name, sql in (READING_OUTSIDE | DOING_MORE).items()
    if name
    not in {
        *("a secret", "CREATE", "a macro", "USE", "PREPARE", "EXPLAIN ANALYZE", "two statements"),
        *("nothing", "no SQL", "an unfinished text", "a log entry", "the seed", "a glob", "DETACH"),
        *("a checkpoint by SELECT", "PRAGMA", "ATTACH to write", "EXPORT"),
        *("CALL", "logging by SELECT"),  # DuckDB 1.5 would log into a directory it may read
        *_WRITES_INSIDE,
    }
}


@pytest.mark.parametrize("attempt", LOCKED.values(), ids=LOCKED.keys())
def test_the_connection_alone_refuses_it(attempt: str, lake: Lake) -> None:
    treasure = pa.table({"secret": [1]})
    before = everything(lake.root.parent)
    with connect_snapshot(lake) as db, pytest.raises(duckdb.Error):
        db.execute(filled(lake, attempt)).fetchall()
    assert everything(lake.root.parent) == before
    assert treasure.num_rows == 1


def test_a_glob_outside_shows_no_name(lake: Lake) -> None:
    with connect_snapshot(lake) as db:
        try:
            found = db.execute("SELECT * FROM glob(?)", [f"{lake.root.parent}/*"]).fetchall()
        except duckdb.Error:
            found = []
    assert found == []


QUERIES = {
    "SELECT": "SELECT count(*) FROM canon.things",
    "WITH": "WITH q AS (SELECT n FROM canon.things) SELECT count(*) FROM q",
    "recursion": (
        "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 3) "
        "SELECT count(*) FROM r"
    ),
    "FROM first": "FROM canon.things SELECT count(*)",
    "brackets and comments": "/* a */ -- b\n (SELECT count(*) FROM canon.things)",
    "a union": "SELECT count(*) FROM (SELECT 1 UNION SELECT 2 UNION SELECT 3)",
    "VALUES": "VALUES (3)",
    "the schema": (
        "SELECT 3 WHERE EXISTS (SELECT 1 FROM information_schema.columns) "
        "AND EXISTS (SELECT 1 FROM duckdb_views())"
    ),
    "the past": "SELECT sum(rows) FROM catalog.artifacts_asof(1)",
    "an object by its path": "SELECT count(*) FROM read_parquet('{object}')",
    "windows and lambdas": (
        "SELECT count(*) FROM (SELECT row_number() OVER (ORDER BY n), "
        "list_transform([n], lambda x: x + 1) FROM canon.things QUALIFY n > 0)"
    ),
    "a semicolon at the end": "SELECT count(*) FROM canon.things;",
    "words in texts": "SELECT 3 WHERE 'COPY x TO y' <> 'INSERT_QUERY_NODE' AND 'cte_map' <> ''",
}


@pytest.mark.parametrize("sql", QUERIES.values(), ids=QUERIES.keys())
def test_honest_queries_are_answered(sql: str, lake: Lake) -> None:
    assert select(lake, None, filled(lake, sql), timeout_s=20)[1] == [(3,)]


def test_describe_and_show_are_answered(lake: Lake) -> None:
    assert select(lake, None, "DESCRIBE canon.things")[1][0][0] == "n"
    assert ("things",) in select(lake, None, "SELECT view_name FROM duckdb_views()")[1]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT * FROM canon.nothing", "nothing does not exist"),
        ("SELECT no_such_column FROM canon.things", "no_such_column"),
        ("SELEC 1", "SELEC is not a SELECT|syntax error"),
        ("SELECT 1 / ", "syntax error"),
        ("SELECT error('on purpose')", "on purpose"),
    ],
)
def test_a_mistake_is_explained(sql: str, message: str, lake: Lake) -> None:
    with pytest.raises(Refused, match=message):
        select(lake, None, sql)


def test_rows_are_bounded(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(select(lake, None, "FROM range(1000000000)", 5)[1]) == 5
    assert select(lake, None, "FROM range(10)", 0)[1] == []
    monkeypatch.setattr("bus.snapshot.MAX_ROWS", 100)
    assert len(select(lake, None, "FROM range(100)")[1]) == 100
    with pytest.raises(Refused, match="more than 100 rows"):
        select(lake, None, "FROM range(1000000000)")


def test_time_is_bounded(lake: Lake) -> None:
    endless = "SELECT count(*) FROM range(10000000000) a, range(10000000000) b"
    started_s, threads = time.monotonic(), threading.active_count()
    with pytest.raises(Refused, match=r"longer than 0\.2 s"):
        select(lake, None, endless, timeout_s=0.2)
    assert time.monotonic() - started_s < 15
    assert threading.active_count() <= threads + 2


def test_memory_is_bounded(lake: Lake) -> None:
    with (
        connect_snapshot(lake, memory_limit="50MB") as db,
        pytest.raises(duckdb.OutOfMemoryException),
    ):
        db.execute("SELECT list(i) FROM range(100000000) t(i)").fetchall()


def test_a_query_may_not_be_endless_itself(lake: Lake) -> None:
    with pytest.raises(Refused, match="characters"):
        select(lake, None, "SELECT " + "1+" * MAX_QUERY_CHARACTERS + "1")


def test_deep_nesting_harms_nobody(lake: Lake) -> None:
    deep = "SELECT " + "(" * 3000 + "1" + ")" * 3000
    try:
        answer: Any = select(lake, None, deep, timeout_s=20)[1]
    except Refused as refused:  # DuckDB 2.0 gives up, 1.5 does not
        answer = refused.code
    assert answer in ([(1,)], Code.E510)


_ID = "8ece08f4-9b98-5f2e-8eb5-0c8644b32835"
VALUES: dict[str, tuple[str, Any]] = {
    "a sum": ("SELECT sum(n) FROM canon.things", 6),
    "beyond 64 bits": ("SELECT 170141183460469231731687303715884105727::HUGEINT", 2**127 - 1),
    "an instant": ("SELECT epoch_ms(ingested_at) FROM catalog.artifacts_f", 1767852000000),
    "nanoseconds": ("SELECT year('2026-01-01 00:00:00.000000001'::TIMESTAMP_NS)", 2026),
    "an id": ("SELECT ('8ece08f4-9b98-5f2e-8eb5-0c8644b32835'::UUID)::VARCHAR", _ID),
    "NULL": ("SELECT NULL", None),
}


@pytest.mark.parametrize(("sql", "value"), VALUES.values(), ids=VALUES.keys())
def test_values_are_plain_python(sql: str, value: Any, lake: Lake) -> None:
    assert select(lake, None, sql)[1] == [(value,)]


def test_instants_are_aware_and_in_utc(lake: Lake) -> None:
    ((moment, wall),) = select(
        lake, None, "SELECT '2026-01-01 12:00:00+02'::TIMESTAMPTZ, '2026-01-01'::TIMESTAMP_NS"
    )[1]
    assert moment.isoformat() == "2026-01-01T10:00:00+00:00"
    assert wall.isoformat() == "2026-01-01T00:00:00"


def test_what_a_query_reads_is_told(lake: Lake) -> None:
    sql = (
        "WITH q AS (SELECT * FROM canon.Things) SELECT now() FROM q, catalog.jobs_f, "
        "read_parquet('x') WHERE current_date > '2026-01-01'"
    )
    with connect_snapshot(lake) as db:
        reading = read(db, sql)
    assert {"canon.things", "catalog.jobs_f"} <= reading.tables
    assert reading.table_functions == {"read_parquet"}
    assert {"now", "current_date"} <= reading.words
