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
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from bus import canon, disk, feed
from bus.errors import Code, Unavailable
from bus.feed import FACTS, TABLES, statement
from bus.journal import GENESIS
from bus.migrations import sound_ways
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
#: DuckDB's smallest: most tables are small, and every publication copies the whole file.
_BLOCK_BYTES = 16_384
_MEMORY_LIMIT = "1GB"
#: More than this goes into the tables in bulk; less is kept as one fresh row.
_FRESH_USES = 100
#: As much is folded into the tables: readers pick fresh rows out of their JSON at every query.
_FRESH_ROWS = 200
_FRESH_CHARACTERS = 512 << 10
#: What `digest` compares, beside the text of all views.
DIGESTED = (
    *("applied_v", "runs_d", "uses", "jobs_f", "lineage_facts", "tag_facts", "supersede_facts"),
    *(
        "tombstone_facts",
        "damage_facts",
        "purge_facts",
        "policy_facts",
        "alias_facts",
        "pin_facts",
        "identity_facts",
        "columns_d",
        "views_d",
    ),
)


@dataclass(frozen=True, slots=True)
class _Fresh:
    """What the working copy keeps as fresh rows, and the last artifact_no that it knows.

    Known here because asking DuckDB takes longer than adding one more.
    """

    rows: int = 0
    characters: int = 0
    artifact_no: int = 0


class Catalog:
    """The working copy. One process has it open: the writer, under its lock."""

    def __init__(self, lake: Lake, registry: Registry) -> None:
        self._lake = lake
        self._registry = registry
        self._layout = _layout(lake, registry)
        self._ways, _ = sound_ways(registry)
        self._db: duckdb.DuckDBPyConnection | None = None
        self._fd = -1
        # (inode, mtime, seq) of the published file as we last knew it. It begins with -1: replace
        # what is there, whatever it is; we hold the lock and know all of the journal.
        self._published = (*_place(lake.catalog_db), -1)
        self._seen: canon.SeenColumns = {}
        self._fresh = _Fresh()
        self.applied_seq = 0

    @classmethod
    def open(cls, lake: Lake, settings: Settings, registry: Registry, manifest: Manifest) -> Self:  # noqa: ARG003 - all views open alike
        """Open the working copy, or begin an empty one where it is of no use. Reads, inserts nothing.

        Raises `Unavailable` (E508) when not even an empty one can be made.
        """
        catalog = cls(lake, registry)
        for left in lake.catalog_db.parent.glob(f".{lake.catalog_db.name}.*.tmp"):
            disk.remove(left)  # by a writer that was killed while it published
        usable = False
        try:
            if lake.catalog_work.exists():
                catalog._attach()
                usable = catalog._follows(manifest)
        except duckdb.Error as error:
            log.warning("catalog_unusable", reason=str(error)[:200])
        try:
            if usable:
                catalog._fresh = _Fresh(*catalog._rows(statement("how_fresh"))[0])
                catalog._load_columns()
                catalog._show()
            else:
                catalog._start_anew()
        except duckdb.Error as error:
            raise Unavailable(str(error), code=Code.E508, where=str(lake.catalog_work)) from error
        return catalog

    @staticmethod
    def delete(lake: Lake) -> None:
        """Remove the working copy: the next `open` starts from nothing.

        Readers keep the published file until a new one takes its place.
        """
        path = lake.catalog_work
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
        # Nor without syncs: the writer deletes a working copy that is older than the machine's boot.
        if self._rows("SELECT 1 FROM duckdb_settings() WHERE name = 'fsync_mode'"):
            self._run("SET fsync_mode = 'NONE'")
        self._run(
            f"ATTACH {literal(str(path))} AS bus (STORAGE_VERSION '{STORAGE_VERSION}', "
            f"BLOCK_SIZE {_BLOCK_BYTES}, RECOVERY_MODE no_wal_writes)"
        )
        self._run("USE bus")
        self._run("SET TimeZone = 'UTC'")
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _start_anew(self) -> None:
        self.close()
        self.delete(self._lake)
        self._attach()
        objects = literal(self._lake.public(self._lake.objects))
        spelled = {
            "artifact": statement("artifact").format(objects=objects),
            "status_now": statement("status").format(begun="true", ended="ended_seq IS NOT NULL"),
            "status_then": statement("status").format(
                begun="added_seq <= as_of", ended="coalesce(ended_seq <= as_of, false)"
            ),
        }
        fresh = {table.name: table.pick_fresh for table in TABLES}
        with self._transaction():
            self._run(statement("tables"))
            self._run(statement("views").format(**spelled, **fresh))
            self._run("INSERT INTO held.meta VALUES (0, ?, 0, ?)", [GENESIS, self._layout])
        self.applied_seq = 0
        self._seen = {}
        self._fresh = _Fresh()
        self._show()

    def _follows(self, manifest: Manifest) -> bool:
        """Whether this copy is a beginning of the manifest's history, in today's layout."""
        if not self._rows("SELECT 1 FROM duckdb_tables() WHERE table_name = 'meta'"):
            return False
        if self._rows("SELECT layout FROM held.meta") != [(self._layout,)]:
            return False
        ((seq, sha256),) = self._rows("SELECT applied_seq, applied_sha256 FROM catalog.applied_v")
        self.applied_seq = int(seq)
        found = manifest.rows(statement("read_sha256"), {"seq": seq})
        return found == [(sha256,)] if seq else True

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
        if self._db is None:
            self._start_anew()
        with manifest.frozen():  # dozens of short queries share one read transaction
            low, (high, sha256) = self.applied_seq, manifest.applied
            if low < high and not self._keep_fresh(manifest, low, high, sha256):
                self._fold(manifest, high, sha256)
        self.applied_seq = high
        return high

    def _keep_fresh(self, manifest: Manifest, low: int, high: int, sha256: str) -> bool:
        """Take a few new rows in as one fresh row; False where that is not enough."""
        held = self._fresh
        span = {"low": low, "high": high, "size": _FRESH_USES}
        many = held.rows >= _FRESH_ROWS or manifest.rows(statement("read_window"), span)
        if many or self._changes_the_old(manifest, low, held.artifact_no):
            return False
        data = feed.fresh_json(manifest, low, high)
        if held.characters + len(data) > _FRESH_CHARACTERS:
            return False
        last = feed.last_artifact_no(manifest)
        self._run("INSERT INTO held.fresh VALUES (?, ?, ?, ?)", [high, sha256, last, data])
        self._fresh = _Fresh(held.rows + 1, held.characters + len(data), last)
        return True

    def _changes_the_old(self, manifest: Manifest, low: int, artifact_no: int) -> bool:
        """Whether commits after `low` did more than add rows."""
        known = {"low": low, "artifact_no": artifact_no}
        return (
            any(table.read_ended(manifest, low) for table in FACTS)
            or bool(manifest.rows(statement("read_revived"), {"artifact_no": artifact_no}))
            or bool(manifest.rows(statement("read_identities"), known))
            or bool(self._new_columns(manifest, artifact_no))
        )

    def _fold(self, manifest: Manifest, high: int, sha256: str) -> None:
        """Bring the tables in bulk forward, in one transaction; nothing stays fresh."""
        ((low, known),) = self._rows("SELECT applied_seq, artifact_no FROM held.meta")
        columns = self._new_columns(manifest, known)
        with self._transaction():
            self._run(statement("forget_fresh"))
            for window in feed.windows(manifest, low, high):
                self._add_window(manifest, *window)
            self._change_the_old(manifest, low, known)
            incoming = feed.arrow(feed.COLUMNS, columns)
            self._take_in(incoming, "INSERT INTO catalog.columns_d SELECT * FROM incoming")
            last = feed.last_artifact_no(manifest)
            self._run(
                "UPDATE held.meta SET applied_seq = ?, applied_sha256 = ?, artifact_no = ?",
                [high, sha256, last],
            )
        self._fresh = _Fresh(artifact_no=last)
        if columns:
            self._load_columns()
            self._show()

    def _add_window(self, manifest: Manifest, low: int, high: int) -> None:
        """Rows that commits low+1 … high added."""
        for table in TABLES:
            incoming = feed.arrow(table.columns, table.read(manifest, low, high))
            forget = [statement("forget_runs")] if table.name == "runs" and low else []
            self._take_in(incoming, *forget, f"INSERT INTO held.{table.name} {table.pick}")

    def _change_the_old(self, manifest: Manifest, low: int, artifact_no: int) -> None:
        """What commits after `low` changed about older rows."""
        for table in FACTS:
            same = " AND ".join(
                f"f.{c}::VARCHAR IS NOT DISTINCT FROM i.{c}::VARCHAR" for c in table.identity
            )
            self._take_in(
                feed.arrow(table.columns, table.read_ended(manifest, low)),
                f"UPDATE held.{table.name} f SET ended_seq = i.ended_seq FROM incoming i "  # noqa: S608 - our own names
                f"WHERE {same} AND f.added_seq = i.added_seq",
            )
        known = {"low": low, "artifact_no": artifact_no}
        revived = manifest.rows(statement("read_revived"), {"artifact_no": artifact_no})
        self._take_in(feed.arrow(feed.REVIVED, revived), statement("change_revived"))
        identities = manifest.rows(statement("read_identities"), known)
        self._take_in(
            feed.arrow(feed.IDENTITIES, identities),
            statement("forget_identities"),
            statement("add_identities"),
        )

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
            "ORDER BY min(first_seq) OVER (PARTITION BY kind), kind, schema_version, ordinal"
        ):
            self._seen.setdefault((kind, version), []).append((name, arrow_type))

    def _new_columns(self, manifest: Manifest, artifact_no: int) -> list[tuple[Any, ...]]:
        """Rows for columns_d: columns, or types of them, that nobody has seen before."""
        full = [f"{s.kind} {s.version}" for s in self._registry if not s.extensible]
        known = {"artifact_no": artifact_no, "known": json.dumps(full)}
        fresh: list[tuple[Any, ...]] = []
        met: dict[tuple[str, int], dict[tuple[str, str], None]] = {}
        for kind, version, columns_json, seq in manifest.rows(statement("read_columns"), known):
            key = (kind, version)
            seen = met.setdefault(key, dict.fromkeys(self._seen.get(key, ())))
            for column in json.loads(columns_json):
                entry = (column["name"], column["type"])
                if entry not in seen:
                    fresh.append((kind, version, len(seen), *entry, seq))
                    seen[entry] = None
        return fresh

    def _show(self) -> None:
        """Make every canon view what it must be now; those that are right stay untouched."""
        for path, schema in canon.empties(self._lake, self._registry, self._seen):
            _write_empty(path, schema)
        wanted = {
            v.name: v for v in canon.views(self._lake, self._registry, self._seen, self._ways)
        }
        present = dict(self._rows("SELECT view_name, sql FROM catalog.views_d"))
        gone = [name for name in present if name not in wanted]
        changed = [view for name, view in wanted.items() if present.get(name) != view.sql]
        try:
            self._replace_views(gone, changed)
        except duckdb.Error:  # one that cannot be made must stop no other: each by itself
            for view in changed:
                try:
                    self._replace_views([], [view])
                except duckdb.Error as error:
                    log.warning("view_not_made", view=f"canon.{view.name}", reason=str(error)[:500])

    def _replace_views(self, gone: Sequence[str], changed: Sequence[canon.View]) -> None:
        if not gone and not changed:
            return
        names = [*gone, *(view.name for view in changed)]
        rows = [(view.name, view.kind, view.sql) for view in changed]
        with self._transaction():
            for name in gone:
                self._run(f"DROP VIEW IF EXISTS canon.{quoted(name)}")
            for view in changed:
                self._run(f"CREATE OR REPLACE VIEW canon.{quoted(view.name)} AS\n{view.sql}")
            self._run("DELETE FROM catalog.views_d WHERE list_contains(?, view_name)", [names])
            incoming = feed.arrow(("view_name", "kind", "sql"), rows)
            self._take_in(incoming, "INSERT INTO catalog.views_d SELECT * FROM incoming")

    # ── publishing ────────────────────────────────────────────────────────────────────────────

    def publish(self, still_ours: Callable[[], bool]) -> bool:
        """Put a closed copy of this view where readers look, atomically; False when there is no need.

        Nothing is published when the lock is no longer ours, or a file of a later commit is there
        already (then another writer has taken over). Raises `Unavailable` (E508) when DuckDB
        cannot write (a full disk); the next `catch_up` begins anew.
        """
        if self._is_published() or not still_ours():
            return False
        final = self._lake.catalog_db
        temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
        try:
            self._run("CHECKPOINT bus")
        except duckdb.Error as error:  # it has closed the database for good
            self.close()
            self.applied_seq = 0
            raise Unavailable(str(error), code=Code.E508, where=str(final)) from error
        final.parent.mkdir(parents=True, exist_ok=True)
        disk.copy_descriptor(self._fd, temporary)
        disk.crash_point("views.built")
        if not still_ours():  # copying takes a while, and another writer may have taken over
            disk.remove(temporary)
            return False
        disk.show_file(temporary, final)
        self._published = (*_place(final), self.applied_seq)
        return True

    def _is_published(self) -> bool:
        place = _place(self._lake.catalog_db)
        if place == self._published[:2]:
            return self._published[2] >= self.applied_seq
        seq = published_seq(self._lake)  # somebody else put it there: who?
        return seq is not None and seq > self.applied_seq

    @staticmethod
    def digest(lake: Lake) -> str:
        """SHA-256 over every row of the published snapshot, in any order, and every view's text.

        Equal before and after a rebuild, with one DuckDB version. Raises `Unavailable` (E508).
        """
        with connect_snapshot(lake) as db:
            facts: list[Any] = [
                db.execute(statement("digest").format(name=name)).fetchall() for name in DIGESTED
            ]
            facts += db.execute(
                "SELECT schema_name, view_name, sql FROM duckdb_views() "
                "WHERE schema_name IN ('catalog', 'canon') ORDER BY ALL"
            ).fetchall()
        return hashlib.sha256(repr(facts).encode()).hexdigest()


def _layout(lake: Lake, registry: Registry) -> str:
    """Changes when a working copy of before can no longer be brought forward."""
    parts = [
        feed.catalog_sql(),
        lake.public(lake.objects),
        *(spec.fingerprint for spec in registry),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _write_empty(path: Path, schema: pa.Schema) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    disk.replace_view(path, sink.getvalue().to_pybytes())


def _place(path: Path) -> tuple[int, int]:
    """(inode, mtime) of a file; zeros when there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def published_seq(lake: Lake) -> int | None:
    """How far the published file has come; None when it cannot be read."""
    try:
        with connect_snapshot(lake) as db:
            found = db.execute("SELECT applied_seq FROM catalog.applied_v").fetchall()
    except (Unavailable, duckdb.Error):
        return None
    return int(found[0][0]) if found else None
