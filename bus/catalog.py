"""The DuckDB catalog: the manifest as tables and views for readers, published as closed files.

The writer keeps a private working copy, brings it forward in bulk when a snapshot is due, and
publishes a copy of the file by rename: readers never meet a lock and never see half a file. A
working copy that is damaged, or is not a beginning of the manifest's history, is made anew.

What is said here about commits is `applied_seq`: everything up to that commit is in this view.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Self

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog

from bus import canon, disk
from bus.columns import UTC_INSTANT
from bus.errors import Code, Unavailable
from bus.journal import GENESIS
from bus.snapshot import connect_snapshot, select
from bus.sqltypes import literal, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bus.lake import Lake
    from bus.manifest import Manifest
    from bus.settings import Settings
    from bus.specs import Registry

__all__ = ["Catalog", "connect_snapshot", "published_seq", "select"]

log = structlog.get_logger("bus.catalog")

#: Files must open in DuckDB 1.5 (the newest Node client); 2.0 writes a newer format by default.
STORAGE_VERSION = "v1.5.0"
_MEMORY_LIMIT = "1GB"
#: The smallest there is: a publication writes the blocks a few rows touched, then copies them all.
_BLOCK_SIZE_BYTES = 262_144
#: Uses inserted at a time while catching up; bounds memory, not what one transaction holds.
_WINDOW_ROWS = 50_000


@cache
def statement(name: str) -> str:
    """One named statement (or script) of catalog.sql."""
    text = resources.files("bus").joinpath("catalog.sql").read_text(encoding="utf-8")
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[name].strip()


@dataclass(frozen=True, slots=True)
class _Facts:
    """A table of facts that begin and end: `columns` identify one, together with added_seq."""

    table: str
    columns: tuple[str, ...]
    ids: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.columns, "added_seq", "ended_seq")

    def read(self, condition: str) -> str:
        """(SQLite) The facts for which `condition` holds."""
        names = ", ".join(self.names)
        return f"SELECT {names} FROM {self.table} WHERE {condition}"  # noqa: S608 - our own names

    @property
    def add(self) -> str:
        values = ", ".join(f"{c}::UUID" if c in self.ids else c for c in self.columns)
        return (
            f"INSERT INTO catalog.{self.table} SELECT {values}, added_seq, ended_seq FROM incoming"  # noqa: S608 - our own names
        )

    @property
    def end(self) -> str:
        casts = {c: "::UUID" if c in self.ids else "" for c in self.columns}
        same = " AND ".join(f"f.{c} = i.{c}{cast}" for c, cast in casts.items())
        return (
            f"UPDATE catalog.{self.table} f SET ended_seq = i.ended_seq FROM incoming i "  # noqa: S608 - our own names
            f"WHERE {same} AND f.added_seq = i.added_seq"
        )


_FACTS = (
    _Facts(
        "lineage_facts", ("artifact_id", "input_artifact_id"), ("artifact_id", "input_artifact_id")
    ),
    _Facts("tag_facts", ("artifact_id", "k", "v"), ("artifact_id",)),
    _Facts(
        "supersede_facts",
        ("artifact_id", "supersedes_artifact_id"),
        ("artifact_id", "supersedes_artifact_id"),
    ),
    _Facts("tombstone_facts", ("artifact_id", "reason"), ("artifact_id",)),
    _Facts("alias_facts", ("kind", "alias", "artifact_id"), ("artifact_id",)),
    _Facts("pin_facts", ("pin", "artifact_id"), ("artifact_id",)),
)
#: What the (SQLite) statements of catalog.sql select.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "read_runs": (
        *("run_id", "producer", "created_at_utc", "first_seen_at", "last_seen_at"),
        *("first_seq", "last_seq", "meta_json"),
    ),
    "read_uses": (
        *("use_no", "run_id", "name", "artifact_id", "producer", "kind", "schema_version"),
        *("rows", "schema_hint", "file_hash", "content_hash", "created_at_utc", "ingested_at"),
        *("seq", "meta_json"),
    ),
    "read_jobs": (
        *("job_no", "job_id", "seq", "outcome", "first_seq", "run_id", "producer", "kind"),
        *("created_at_utc", "committed_at_utc", "artifacts", "problems_json"),
    ),
    "read_revived": ("artifact_id", "file_hash"),
    "read_identities": ("artifact_no", "artifact_id", "added_seq", "ended_seq"),
}
_INTEGERS = {
    *("use_no", "job_no", "artifact_no", "seq", "first_seq", "last_seq", "added_seq", "ended_seq"),
    *("schema_version", "rows", "artifacts", "ordinal"),
}


_MOMENTS = {
    *("created_at_utc", "first_seen_at", "last_seen_at", "ingested_at", "committed_at_utc"),
}


class Catalog:
    """The working copy. One process has it open: the writer, under its lock."""

    def __init__(self, lake: Lake, registry: Registry) -> None:
        self._lake = lake
        self._registry = registry
        self._layout = _layout(lake, registry)
        self._db: duckdb.DuckDBPyConnection | None = None
        self._fd = -1
        self._published: tuple[int, int, int] | None = None  # inode, seq, mtime of our own file
        self._seen: canon.SeenColumns = {}
        self.applied_seq = 0

    @classmethod
    def open(cls, lake: Lake, settings: Settings, registry: Registry, manifest: Manifest) -> Self:  # noqa: ARG003 - all views open alike
        """Open the working copy, or begin an empty one where it is of no use. Reads, inserts nothing.

        Raises `Unavailable` (E508) when not even an empty one can be made.
        """
        catalog = cls(lake, registry)
        try:
            catalog._attach()
            usable = catalog._follows(manifest)
        except duckdb.Error as error:
            log.warning("catalog_unusable", reason=str(error)[:200])
            usable = False
        try:
            if usable:
                catalog._load_columns()
                catalog._show()
            else:
                catalog._start_anew()
        except duckdb.Error as error:
            raise Unavailable(str(error), code=Code.E508, where=str(lake.catalog_work)) from error
        return catalog

    @staticmethod
    def delete(lake: Lake) -> None:
        """Remove the working copy and the published file; the next `open` starts from nothing."""
        for path in (lake.catalog_work, lake.catalog_db):
            for suffix in ("", ".wal"):
                disk.remove(path.with_name(path.name + suffix))

    def close(self) -> None:
        """Let the working copy go."""
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._fd >= 0:  # after the database: closing a descriptor drops DuckDB's file lock
            os.close(self._fd)
            self._fd = -1

    # ── the working copy ──────────────────────────────────────────────────────────────────────

    def _attach(self) -> None:
        path = self._lake.catalog_work
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = duckdb.connect(
            ":memory:",
            config={
                "threads": 1,
                "memory_limit": _MEMORY_LIMIT,
                "temp_directory": str(path.parent / "spill"),
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "python_enable_replacements": False,
            },
        )
        # Nothing is lost without a write-ahead log: what a crash forgets, the manifest still knows.
        self._run(
            f"ATTACH {literal(str(path))} AS bus "
            f"(STORAGE_VERSION '{STORAGE_VERSION}', RECOVERY_MODE no_wal_writes, "
            f"BLOCK_SIZE {_BLOCK_SIZE_BYTES})"
        )
        self._run("USE bus")
        self._run("SET TimeZone = 'UTC'")
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _start_anew(self) -> None:
        self.close()
        path = self._lake.catalog_work
        for suffix in ("", ".wal"):
            disk.remove(path.with_name(path.name + suffix))
        self._attach()
        objects = literal(self._lake.public(self._lake.objects))
        artifact = statement("artifact").format(objects=objects)
        with self._transaction():
            self._run(statement("schema"))
            self._run(statement("views").format(artifact=artifact))
            self._run("INSERT INTO catalog.meta VALUES (0, ?, 0, ?)", [GENESIS, self._layout])
        self.applied_seq = 0
        self._seen = {}
        self._show()

    def _follows(self, manifest: Manifest) -> bool:
        """Whether this copy is a beginning of the manifest's history, in today's layout."""
        if not self._rows("SELECT 1 FROM duckdb_tables() WHERE table_name = 'meta'"):
            return False
        meta = self._rows("SELECT applied_seq, applied_sha256, layout FROM catalog.meta")
        if not meta or meta[0][2] != self._layout:
            return False
        self.applied_seq = int(meta[0][0])
        return _hash_of(manifest, self.applied_seq) == str(meta[0][1])

    def _run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        self._connection.execute(sql, parameters)

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql).fetchall()

    @property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        if self._db is None:
            raise Unavailable("the catalog is closed", code=Code.E508)
        return self._db

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing; in DuckDB an error leaves the transaction aborted until ROLLBACK."""
        self._run("BEGIN")
        try:
            yield
        except BaseException:
            self._run("ROLLBACK")
            raise
        self._run("COMMIT")

    # ── catching up ───────────────────────────────────────────────────────────────────────────

    def catch_up(self, manifest: Manifest) -> int:
        """Take in every commit the manifest has and this view lacks; returns `applied_seq`.

        One transaction. A working copy that turns out to be broken is made anew from commit 1;
        `Unavailable` (E508) when that fails too (a full disk, for instance).
        """
        try:
            return self._catch_up(manifest)
        except duckdb.Error as error:
            log.warning("catalog_made_anew", reason=str(error)[:200])
        try:
            self._start_anew()
            return self._catch_up(manifest)
        except duckdb.Error as error:
            raise Unavailable(
                str(error), code=Code.E508, where=str(self._lake.catalog_work)
            ) from error

    def _catch_up(self, manifest: Manifest) -> int:
        low = self.applied_seq
        high, sha256 = manifest.applied
        if high == low:
            return low
        known = int(self._rows("SELECT artifact_no FROM catalog.meta")[0][0])
        with self._transaction():
            for window in _windows(manifest, low, high):
                self._add_window(manifest, *window, applied=low)
            self._change_facts(manifest, {"applied": low, "artifact_no": known})
            new_columns = self._add_columns(manifest, known)
            self._run(
                "UPDATE catalog.meta SET applied_seq = ?, applied_sha256 = ?, artifact_no = ?",
                [high, sha256, _last_number(manifest)],
            )
        self.applied_seq = high
        if new_columns:
            self._show()
        return high

    def _add_window(self, manifest: Manifest, low: int, high: int, *, applied: int) -> None:
        """Rows that commits low+1 … high added."""
        window = {"low": low, "high": high}
        runs = self._read(manifest, "read_runs", window)
        if any(row["first_seq"] <= applied for row in runs.select(["first_seq"]).to_pylist()):
            self._take_in(runs, statement("forget_runs"))
        self._take_in(runs, statement("add_runs"))
        self._take_in(_numbered(self._read(manifest, "read_uses", window)), statement("add_uses"))
        self._take_in(self._read(manifest, "read_jobs", window), statement("add_jobs"))
        for facts in _FACTS:
            sql = facts.read("added_seq > :low AND added_seq <= :high")
            self._take_in(_arrow(facts.names, manifest.rows(sql, window)), facts.add)

    def _change_facts(self, manifest: Manifest, known: dict[str, int]) -> None:
        """What commits after `applied` changed about rows that are older."""
        for facts in _FACTS:
            sql = facts.read("ended_seq > :applied AND +added_seq <= :applied")
            rows = manifest.rows(sql, {"applied": known["applied"]})
            self._take_in(_arrow(facts.names, rows), facts.end)
        revived = self._read(manifest, "read_revived", {"artifact_no": known["artifact_no"]})
        self._take_in(revived, statement("change_revived"))
        identities = self._read(manifest, "read_identities", known)
        self._take_in(identities, statement("forget_identities"), statement("add_identities"))

    @staticmethod
    def _read(manifest: Manifest, name: str, parameters: dict[str, int]) -> pa.Table:
        return _arrow(_COLUMNS[name], manifest.rows(statement(name), parameters))

    def _take_in(self, incoming: pa.Table, *statements: str) -> None:
        """Run statements that read the table `incoming`; none where it has no rows."""
        if incoming.num_rows == 0:
            return
        self._connection.register("incoming", incoming)
        for sql in statements:
            self._run(sql)
        self._connection.unregister("incoming")

    # ── columns of kinds without a full contract, and the canon views ─────────────────────────

    def _load_columns(self) -> None:
        self._seen = {}
        for kind, version, name, arrow_type in self._rows(
            "SELECT kind, schema_version, name, type FROM catalog.columns_d "
            "ORDER BY kind, schema_version, ordinal"
        ):
            self._seen.setdefault((kind, version), []).append((name, arrow_type))

    def _add_columns(self, manifest: Manifest, artifact_no: int) -> bool:
        """Note columns nobody has seen before; True when there are some."""
        full = [f"{s.kind} {s.version}" for s in self._registry if not s.extensible]
        known = {"artifact_no": artifact_no, "known": json.dumps(full)}
        fresh: list[tuple[Any, ...]] = []
        for kind, version, columns_json, seq in manifest.rows(statement("read_columns"), known):
            seen = self._seen.setdefault((kind, version), [])
            held = set(seen)
            for column in json.loads(columns_json):
                entry = (column["name"], column["type"])
                if entry not in held:
                    fresh.append((kind, version, len(seen), *entry, seq))
                    seen.append(entry)
                    held.add(entry)
        names = ("kind", "schema_version", "ordinal", "name", "type", "first_seq")
        self._take_in(_arrow(names, fresh), "INSERT INTO catalog.columns_d SELECT * FROM incoming")
        return bool(fresh)

    def _show(self) -> None:
        """Make every canon view what it must be now; those that are right stay untouched."""
        for path, schema in canon.empties(self._lake, self._registry, self._seen):
            _write_empty(path, schema)
        wanted = {v.name: v for v in canon.views(self._lake, self._registry, self._seen)}
        present = dict(self._rows("SELECT view_name, sql FROM catalog.views_d"))
        for name in present.keys() - wanted.keys():
            self._replace_view(name, None)
        for name, view in wanted.items():
            if present.get(name) != view.sql:
                self._replace_view(name, view)

    def _replace_view(self, name: str, view: canon.View | None) -> None:
        """One transaction for each, so that a view that cannot be made stops no other."""
        try:
            with self._transaction():
                self._run("DELETE FROM catalog.views_d WHERE view_name = ?", [name])
                if view is None:
                    self._run(f"DROP VIEW IF EXISTS canon.{quoted(name)}")
                    return
                self._run(f"CREATE OR REPLACE VIEW canon.{quoted(name)} AS\n{view.sql}")
                self._run(
                    "INSERT INTO catalog.views_d VALUES (?, ?, ?)", [name, view.kind, view.sql]
                )
        except duckdb.Error as error:
            log.warning("view_not_made", view=f"canon.{name}", reason=str(error)[:500])

    # ── publishing ────────────────────────────────────────────────────────────────────────────

    def publish(self, still_ours: Callable[[], bool]) -> bool:
        """Put a closed copy of this view where readers look, atomically; False when there is no need.

        Nothing is published when the lock is no longer ours, or a file of a later commit is there
        already (then another writer has taken over).
        """
        if self._is_published() or not still_ours():
            return False
        final = self._lake.catalog_db
        temporary = final.with_name(f".{final.name}.tmp")
        self._run("CHECKPOINT bus")
        disk.copy_descriptor(self._fd, temporary)
        disk.crash_point("views.built")
        disk.publish_file(temporary, final)
        self._note_published()
        return True

    def _is_published(self) -> bool:
        try:
            there = self._lake.catalog_db.stat()
        except FileNotFoundError:
            return False
        if self._published is not None and self._published[::2] == (
            there.st_ino,
            there.st_mtime_ns,
        ):
            return self._published[1] >= self.applied_seq
        seq = published_seq(self._lake)  # not our own work: what somebody else left there
        return seq is not None and seq > self.applied_seq

    def _note_published(self) -> None:
        there = self._lake.catalog_db.stat()
        self._published = (there.st_ino, self.applied_seq, there.st_mtime_ns)

    @staticmethod
    def digest(lake: Lake) -> str:
        """SHA-256 over every row of the published snapshot, in any order, and every view's text.

        Equal before and after a rebuild, with one DuckDB version. Raises `Unavailable` (E508).
        """
        with connect_snapshot(lake) as db:
            tables = db.execute(
                "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'catalog' ORDER BY ALL"
            ).fetchall()
            facts: list[Any] = [
                db.execute(
                    f"SELECT {literal(name)}, count(*), sum(md5_number_lower(t::VARCHAR)::HUGEINT), "  # noqa: S608 - our own tables
                    f"sum(md5_number_upper(t::VARCHAR)::HUGEINT) FROM catalog.{quoted(name)} t"
                ).fetchall()
                for (name,) in tables
            ]
            facts += db.execute(
                "SELECT schema_name, view_name, sql FROM duckdb_views() "
                "WHERE schema_name IN ('catalog', 'canon') ORDER BY ALL"
            ).fetchall()
        return hashlib.sha256(repr(facts).encode()).hexdigest()


def _layout(lake: Lake, registry: Registry) -> str:
    """Changes when a working copy of before can no longer be brought forward."""
    parts = [
        resources.files("bus").joinpath("catalog.sql").read_text(encoding="utf-8"),
        lake.public(lake.objects),
        *(spec.fingerprint for spec in registry),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _hash_of(manifest: Manifest, seq: int) -> str | None:
    """The hash of commit `seq` as the manifest knows it."""
    if seq == 0:
        return GENESIS
    found = manifest.rows("SELECT sha256 FROM commits WHERE seq = ?", (seq,))
    return str(found[0][0]) if found else None


def _last_number(manifest: Manifest) -> int:
    return int(manifest.rows("SELECT coalesce(max(artifact_no), 0) FROM artifact_facts")[0][0])


def _windows(manifest: Manifest, low: int, high: int) -> Iterator[tuple[int, int]]:
    """Spans of whole commits, each with about `_WINDOW_ROWS` uses."""
    while low < high:
        found = manifest.rows(
            "SELECT seq FROM run_artifacts WHERE seq > ? AND seq < ? ORDER BY seq LIMIT 1 OFFSET ?",
            (low, high, _WINDOW_ROWS),
        )
        end = int(found[0][0]) if found else high
        yield low, end
        low = end


def _arrow(names: Sequence[str], rows: list[tuple[Any, ...]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    arrays = [_array(name, column) for name, column in zip(names, columns, strict=True)]
    return pa.table(arrays, names=list(names))


def _array(name: str, values: Sequence[Any]) -> pa.Array:
    if name in _INTEGERS:
        return pa.array(values, pa.int64())
    texts = pa.array(values, pa.string())
    return texts.cast(UTC_INSTANT) if name in _MOMENTS else texts


def _numbered(uses: pa.Table) -> pa.Table:
    """With `again`: how often the same name came before, in the same run and commit."""
    keys = pc.binary_join_element_wise(
        uses["run_id"], uses["name"], uses["seq"].cast(pa.string()), ":"
    )
    again = [0] * uses.num_rows
    if pc.count_distinct(keys).as_py() < uses.num_rows:
        seen: Counter[str] = Counter()
        for row, key in enumerate(keys.to_pylist()):
            again[row] = seen[key]
            seen[key] += 1
    return uses.append_column("again", pa.array(again, pa.int32()))


def _write_empty(path: Path, schema: pa.Schema) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    disk.replace_view(path, sink.getvalue().to_pybytes())


def published_seq(lake: Lake) -> int | None:
    """How far the published file has come; None when it cannot be read."""
    try:
        with connect_snapshot(lake) as db:
            found = db.execute("SELECT applied_seq FROM catalog.meta").fetchall()
    except (Unavailable, duckdb.Error):
        return None
    return int(found[0][0]) if found else None
