"""Reading the published catalog: a locked-down connection, and one SELECT at a time.

The connection is in memory with the snapshot attached read-only, so that it never meets the file
that replaces it. It may read what lies below artifacts/, objects/ and exports/ and nothing else,
loads no extension, and cannot be opened up again.

That lock does not forbid *writing* inside those directories, and DuckDB 2.0 takes a COPY or an
INSERT hidden in a WITH for a SELECT (measured). So a query is admitted by its syntax tree: only
nodes that read, and only table functions of a list.
"""

from __future__ import annotations

import json
import os
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from bus.errors import Code, Refused, Unavailable
from bus.sqltypes import literal, unglobbed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from bus.lake import Lake
    from bus.settings import Settings

#: Rows a query returns when nobody says how many; more is an error, not a silent cut.
MAX_ROWS = 1_000_000
MAX_QUERY_CHARACTERS = 100_000
_BATCH_ROWS = 10_000
#: How often a snapshot is opened anew because another was published while it was being opened.
_ATTACH_TRIES = 20
_FIRST_WORDS = {
    "select",
    "with",
    "from",
    "values",
    "table",
    "describe",
    "desc",
    "show",
    "summarize",
}
_FIRST_WORD = re.compile(r"(?:\s|\(|--[^\n]*(?:\n|$)|/\*.*?\*/)*(\w*)", re.DOTALL)

#: Nodes of a syntax tree that only read.
_READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
#: Table functions that only read, and only what the connection lets them.
_TABLE_FUNCTIONS = {
    *("range", "generate_series", "unnest", "repeat", "repeat_row", "json_each", "json_tree"),
    *("read_parquet", "parquet_scan", "parquet_schema", "parquet_metadata"),
    *("parquet_file_metadata", "parquet_kv_metadata", "glob", "histogram", "histogram_values"),
    *("duckdb_columns", "duckdb_constraints", "duckdb_databases", "duckdb_functions"),
    *("duckdb_indexes", "duckdb_keywords", "duckdb_schemas", "duckdb_settings", "duckdb_tables"),
    *("duckdb_types", "duckdb_views", "pragma_table_info", "pragma_version", "summary"),
    *("pg_timezone_names", "artifacts_asof"),
}
#: … and read nothing.
PURE = {"range", "generate_series", "unnest", "repeat", "repeat_row", "json_each", "json_tree"}
#: What makes rows depend on the moment of the query.
VOLATILE = {
    *("now", "current_timestamp", "get_current_timestamp", "transaction_timestamp"),
    *("current_date", "today", "current_time", "get_current_time", "localtime", "localtimestamp"),
    *("current_localtime", "current_localtimestamp", "random", "uuid", "uuidv4", "uuidv7"),
    *("gen_random_uuid",),
}
#: Scalar functions that do more than compute.
_REFUSED_FUNCTIONS = {"nextval", "setval", "setseed", "write_log", "json_execute_serialized_sql"}


@dataclass(frozen=True, slots=True)
class Reading:
    """What an admitted query reads, in lower case.

    tables           ``schema.name``, or ``name`` alone
    table_functions  such as ``duckdb_views``
    words            every function's name, and columns by themselves (``current_date`` is one)
    """

    tables: frozenset[str]
    table_functions: frozenset[str]
    words: frozenset[str]


def connect_snapshot(
    lake: Lake,
    settings: Settings | None = None,  # noqa: ARG001 - limits of a query may become settings
    *,
    threads: int = 2,
    memory_limit: str = "1GB",
    spill: Path | None = None,
) -> duckdb.DuckDBPyConnection:
    """The published catalog as the database `bus`, read-only and locked down; close it after use.

    `spill`: a directory where queries larger than `memory_limit` go on; without it they fail.
    Raises `Unavailable` (E508) when there is no readable catalog.
    """
    if not lake.catalog_db.exists():
        raise Unavailable("no catalog yet", code=Code.E508, where=str(lake.catalog_db))
    open_to = [lake.artifacts, lake.objects, lake.exports]
    # The next snapshot is attached under the lock too; DuckDB looks for a log beside it.
    db = closed_database(
        [*(lake.public(path) for path in open_to), *map(str, open_to)],
        [str(lake.catalog_db), f"{lake.catalog_db}.wal"],
        threads=threads,
        memory_limit=memory_limit,
        spill=spill,
    )
    try:
        _attach(db, lake)
    except BaseException:
        db.close()
        raise
    return db


def closed_database(
    directories: Iterable[str],
    files: Iterable[str],
    *,
    threads: int = 2,
    memory_limit: str = "1GB",
    spill: Path | None = None,
) -> duckdb.DuckDBPyConnection:
    """A database in memory that may read these directories and files, and nothing else for good."""
    db = duckdb.connect(
        ":memory:",
        config={
            "threads": threads,
            "memory_limit": memory_limit,
            "temp_directory": str(spill) if spill else "",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "python_enable_replacements": False,
        },
    )
    try:
        db.execute("SET TimeZone = 'UTC'")
        # A column is what its Parquet type says: one file with bad `geo` metadata would stop a view.
        db.execute("SET enable_geoparquet_conversion = false")
        db.execute(f"SET allowed_directories = [{_listed(directories)}]")
        db.execute(f"SET allowed_paths = [{_listed(files)}]")
        db.execute("SET enable_external_access = false")
        db.execute("SET lock_configuration = true")
    except BaseException:
        db.close()
        raise
    return db


def _listed(paths: Iterable[str]) -> str:
    """The paths, each also as the pattern that means it: patterns are compared unexpanded."""
    known = [*paths]
    return ", ".join(literal(path) for path in dict.fromkeys([*known, *map(unglobbed, known)]))


def _attach(db: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    """Attach one and the same file: DuckDB opens it three times by name, one after the other.

    A snapshot published in between would give it the header of one and the blocks of another.
    """
    path = lake.catalog_db
    for left in reversed(range(_ATTACH_TRIES)):
        before = _identity(path)
        try:
            db.execute(f"ATTACH {literal(str(path))} AS bus (READ_ONLY)")
        except duckdb.Error as error:
            if left == 0 or _identity(path) == before:
                raise Unavailable(str(error), code=Code.E508, where=str(path)) from error
            continue
        if left == 0 or _identity(path) == before:
            break
        db.execute("DETACH bus")
    db.execute("USE bus")


class Snapshots:
    """The newest snapshot again and again, through one DuckDB instance that stays.

    Starting DuckDB costs three times as much as opening a snapshot in it (measured). Safe to share
    between threads: while one reads, another gets a connection of its own; and across a fork.
    """

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._busy = threading.Lock()
        self._db: duckdb.DuckDBPyConnection | None = None
        self._inherited: duckdb.DuckDBPyConnection | None = None
        self._shown: tuple[int, ...] = ()

    @contextmanager
    def newest(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The snapshot that is published now, for one block. Raises as `connect_snapshot` does."""
        if not self._busy.acquire(blocking=False):
            with connect_snapshot(self._lake) as db:
                yield db
            return
        try:
            try:
                yield self._opened()
            except BaseException:  # whatever it was, the next reader begins with a new instance
                self.close()
                raise
        finally:
            self._busy.release()

    def _opened(self) -> duckdb.DuckDBPyConnection:
        published = _identity(self._lake.catalog_db)
        if self._db is not None and self._shown[0] != os.getpid():
            # Closing it would wait for threads that did not come along.
            self._inherited, self._db = self._db, None
        if self._db is None:
            self._db = connect_snapshot(self._lake)
        elif self._shown != published:
            self._db.execute("USE memory")
            self._db.execute("DETACH bus")
            _attach(self._db, self._lake)
        self._shown = published  # what was there before we opened it: at worst it is opened again
        return self._db

    def close(self) -> None:
        """Let the instance go; the next reader starts another."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def select(
        self, sql: str, limit: int | None = None, *, timeout_s: float | None = None
    ) -> tuple[list[str], list[tuple[Any, ...]]]:
        """As `select` below, on the instance that stays."""
        with self.newest() as db:
            return _select(db, sql, limit, timeout_s)


def _identity(path: Path) -> tuple[int, ...]:
    """Ours, and the published file's: a child after a fork must not use what its parent opened."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise Unavailable("no catalog yet", code=Code.E508, where=str(path)) from None
    return os.getpid(), found.st_ino, found.st_ctime_ns


def select(
    lake: Lake,
    settings: Settings | None,
    sql: str,
    limit: int | None = None,
    *,
    timeout_s: float | None = None,
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """`(column names, rows)` of one SELECT over the published catalog.

    At most `limit` rows; without a limit, more than `MAX_ROWS` are an error. Values are plain
    Python: instants are aware datetimes in UTC. Raises `Refused` (E510) for anything but reading,
    for bad SQL and for queries that take too long or too much memory; `Unavailable` (E508) without
    a catalog.
    """
    with connect_snapshot(lake, settings) as db:
        return _select(db, sql, limit, timeout_s)


def _select(
    db: duckdb.DuckDBPyConnection, sql: str, limit: int | None, timeout_s: float | None
) -> tuple[list[str], list[tuple[Any, ...]]]:
    read(db, sql)
    with asking(sql), time_limit(db, timeout_s):
        reader = db.sql(sql).to_arrow_reader(_BATCH_ROWS)
        return list(reader.schema.names), _rows(reader, limit)


def _rows(reader: pa.RecordBatchReader, limit: int | None) -> list[tuple[Any, ...]]:
    most = MAX_ROWS + 1 if limit is None else limit
    rows: list[tuple[Any, ...]] = []
    for batch in reader:
        if len(rows) >= most:
            break
        columns = [plain_values(column) for column in batch.slice(0, most - len(rows)).columns]
        rows.extend(zip(*columns, strict=True))
    if limit is None and len(rows) > MAX_ROWS:
        raise Refused(f"more than {MAX_ROWS:,} rows", hint="Write a LIMIT, or aggregate.")
    return rows


def plain_values(column: pa.Array) -> list[Any]:
    """A column as plain Python: instants in UTC, microseconds at best, wide integers as integers."""
    kind = column.type
    if pa.types.is_timestamp(kind) and (kind.tz or kind.unit == "ns"):
        moments = column.cast(pa.timestamp("us"), safe=False).to_pylist()
        return [m and m.replace(tzinfo=UTC) for m in moments] if kind.tz else moments
    values: list[Any] = column.to_pylist()
    if pa.types.is_decimal(kind) and kind.scale == 0:
        return [None if v is None else int(v) for v in values]
    return values


def select_from_files(files: Sequence[str], sql: str) -> pa.Table:
    """What one SELECT finds in the table `this`, which is exactly these Parquet files.

    Of several files, columns are brought together by name. Raises `Refused` (E510) for anything but
    reading, for bad SQL, and for files that DuckDB cannot read.
    """
    listed = ", ".join(literal(unglobbed(file)) for file in files)
    by_name = "true" if len(files) > 1 else "false"
    options = f"hive_partitioning = false, union_by_name = {by_name}"
    with closed_database([], files) as db:
        with asking(sql):
            db.execute(f"CREATE VIEW this AS FROM read_parquet([{listed}], {options})")
        read(db, sql)
        with asking(sql):
            return db.sql(sql).to_arrow_reader(_BATCH_ROWS).read_all()


# ── admission ─────────────────────────────────────────────────────────────────────────────────


def read(db: duckdb.DuckDBPyConnection, sql: str) -> Reading:
    """What a query reads, if it is one SELECT and does nothing else. Raises `Refused` (E510)."""
    if len(sql) > MAX_QUERY_CHARACTERS:
        raise Refused(f"a query of more than {MAX_QUERY_CHARACTERS:,} characters")
    with asking(sql):
        statements = duckdb.extract_statements(sql)
    if len(statements) != 1:
        raise Refused(f"{len(statements)} statements; one SELECT is taken at a time")
    first = _FIRST_WORD.match(sql)
    word = first[1].lower() if first else ""
    if word not in _FIRST_WORDS or statements[0].type != duckdb.StatementType.SELECT:
        raise Refused(f"{word.upper() or 'this'} is not a SELECT")
    return _admitted(_tree(db, sql))


def _tree(db: duckdb.DuckDBPyConnection, sql: str) -> Any:
    with asking(sql):
        found = db.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchall()
    try:
        tree = json.loads(found[0][0])
    except RecursionError:
        raise Refused("nested too deeply") from None
    if tree.get("error"):
        raise Refused(str(tree.get("error_message", "not a SELECT"))[:500])
    return tree


def _admitted(tree: Any) -> Reading:
    tables: set[str] = set()
    table_functions: set[str] = set()
    words: set[str] = set()
    for node in _nodes(tree):
        kind = str(node.get("type", ""))
        _check_node(kind, node)
        if kind == "BASE_TABLE":
            tables.add(_table_name(node))
        elif kind == "TABLE_FUNCTION":
            table_functions.add(_checked(_function_name(node.get("function", {}))))
        elif kind == "COLUMN_REF" and len(node.get("column_names", ())) == 1:
            words.add(str(node["column_names"][0]).lower())
        if "function_name" in node:
            words.add(_function_name(node))
    if refused := words & _REFUSED_FUNCTIONS:
        raise Refused(f"the function {min(refused)} is not allowed here")
    return Reading(frozenset(tables), frozenset(table_functions), frozenset(words))


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object in the syntax tree, without recursion: the depth is the asker's choice."""
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            yield node
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)


def _check_node(kind: str, node: dict[str, Any]) -> None:
    if (kind.endswith("_NODE") or "cte_map" in node) and kind not in _READING_NODES:
        what = kind.removesuffix("_NODE").removesuffix("_QUERY") or "this"
        raise Refused(f"{what} does more than read")


def _table_name(node: dict[str, Any]) -> str:
    schema, name = (str(node.get(key) or "").lower() for key in ("schema_name", "table_name"))
    return f"{schema}.{name}" if schema else name


def _function_name(node: dict[str, Any]) -> str:
    return str(node.get("function_name", "")).lower()


def _checked(table_function: str) -> str:
    if table_function not in _TABLE_FUNCTIONS:
        raise Refused(f"the table function {table_function[:80]} is not allowed here")
    return table_function


@contextmanager
def asking(sql: str) -> Iterator[None]:
    """DuckDB's complaints about somebody's SQL as `Refused` (E510)."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError, UnicodeError, RuntimeError) as error:
        first = str(error).strip().split("\n\n")[0]
        hint = None
        if isinstance(error, duckdb.PermissionException):
            hint = "A query reads the catalog and what lies in artifacts/, objects/ and exports/."
        raise Refused(first[:1000], where=sql[:200], hint=hint) from None


@contextmanager
def time_limit(db: duckdb.DuckDBPyConnection, timeout_s: float | None) -> Iterator[None]:
    """Interrupt what the connection does after `timeout_s`, and say so: `Refused` (E510)."""
    expired = threading.Event()

    def interrupt() -> None:
        expired.set()
        db.interrupt()

    timer = threading.Timer(timeout_s, interrupt) if timeout_s is not None else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield
    except Exception:
        if expired.is_set():
            raise Refused(f"took longer than {timeout_s:g} s", hint="Ask for less.") from None
        raise
    finally:
        if timer is not None:
            timer.cancel()
