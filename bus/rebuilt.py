"""A second manifest and catalog, made from the journal alone, and where the live ones differ.

The twin grows commit by commit, so that each live view is compared with what it should be at the
commit which that view says it has come to: a working bus need not stand still for it.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from bus import views
from bus.catalog import DIGESTED, Catalog, connect_snapshot
from bus.journal import GENESIS, Journal, in_chunks, reading_much
from bus.lake import Lake
from bus.manifest import Manifest
from bus.sqltypes import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    import duckdb

    from bus.journal import Commit
    from bus.model import CommitRecord
    from bus.settings import Settings
    from bus.specs import Registry

#: Hints where to go on with file views: not made from the journal.
_NOT_FROM_THE_JOURNAL = {"progress"}
_SHOWN = 3
#: File systems tell times to a tick of the kernel.
_TICK_NS = 20_000_000

Row = tuple[Any, ...]


class Twin:
    """A lake of views only, in a directory of its own."""

    def __init__(self, lake: Lake, folder: Path, views: Lake | None = None) -> None:
        """`views`: where they are kept; by default in `folder`, and name what the lake's own name."""
        self._lake = views or Lake(folder, lake.public_root)
        self._lake.manifest_db.parent.mkdir(exist_ok=True)
        self._commits = Journal(lake).after(0, GENESIS)
        self._ahead: Commit | None = None
        self.manifest = Manifest.begin(self._lake)

    def close(self) -> None:
        """Close the manifest; the folder is the caller's."""
        self.manifest.close()

    def grow(self, seq: int | None, look: Callable[[Commit], None] = lambda _: None) -> None:
        """Apply commits up to and including `seq` (None: all there are); `look` sees each once.

        Raises `Damaged` where the journal breaks.
        """
        with reading_much():
            for chunk in in_chunks(self._until(seq, look)):
                self.manifest.apply(chunk)
        self.manifest.index()

    def _until(self, seq: int | None, look: Callable[[Commit], None]) -> Iterator[Commit]:
        while (commit := self._ahead or next(self._commits, None)) is not None:
            self._ahead = commit
            if seq is not None and commit.record.seq > seq:
                return
            self._ahead = None
            look(commit)
            yield commit

    def publish_catalog(self, settings: Settings, registry: Registry) -> None:
        """Make the catalog of what has been applied."""
        with closing(Catalog.open(self._lake, settings, registry, self.manifest)) as catalog:
            catalog.catch_up(self.manifest)
            catalog.publish(lambda: True)

    def catalog_differences(
        self, published: duckdb.DuckDBPyConnection, settings: Settings, registry: Registry
    ) -> Iterator[str]:
        """How an open snapshot differs from one made of the twin's manifest, at the same commit."""
        self.publish_catalog(settings, registry)
        with connect_snapshot(self._lake) as rebuilt:
            for name in DIGESTED:
                if _digest(published, name) != _digest(rebuilt, name):
                    yield _where_they_differ(name, published, rebuilt)
            ours: dict[str, str] = dict(published.execute(_VIEWS).fetchall())
            theirs: dict[str, str] = dict(rebuilt.execute(_VIEWS).fetchall())
            for name in sorted(ours.keys() | theirs.keys()):
                if ours.get(name) != theirs.get(name):
                    yield f"view {name} has another text"


_VIEWS = """
SELECT schema_name || '.' || view_name, sql FROM duckdb_views()
WHERE schema_name IN ('catalog', 'canon')
UNION ALL
SELECT schema_name || '.' || function_name, macro_definition FROM duckdb_functions()
WHERE schema_name IN ('catalog', 'held')
"""


def _digest(db: duckdb.DuckDBPyConnection, name: str) -> list[Any]:
    """Number of rows, and the sum of their hashes."""
    sql = f"SELECT count(*), sum(hash(t)::HUGEINT) FROM catalog.{quoted(name)} t"  # noqa: S608 - the catalog's own names
    return db.execute(sql).fetchall()


def _where_they_differ(
    name: str, published: duckdb.DuckDBPyConnection, rebuilt: duckdb.DuckDBPyConnection
) -> str:
    sql = f"SELECT * FROM catalog.{quoted(name)}"  # noqa: S608 - likewise
    ours, theirs = (set(map(repr, db.execute(sql).fetchall())) for db in (published, rebuilt))
    return _told(f"table catalog.{name}", sorted(ours - theirs), sorted(theirs - ours))


def _told(table: str, extra: Sequence[Any], missing: Sequence[Any]) -> str:
    """`table …: 1 row too many (…), 2 missing (…, …)`."""
    parts = [
        f"{len(rows)} row{'s' * (len(rows) > 1)} {what}: "
        + "; ".join(f"{row!s:.300}" for row in rows[:_SHOWN])
        for rows, what in ((extra, "that a rebuild has not"), (missing, "missing"))
        if rows
    ]
    return f"{table} has {' and '.join(parts) or 'repeated rows'}"


class TreeDocuments:
    """Sidecars and the documents of run trees, held against what the journal says they must be.

    `until`: the commit up to which they are known to be written. Show it every record in order;
    memory is needed only for what is wrong, or is said otherwise by a later commit.
    """

    def __init__(self, lake: Lake, until: int) -> None:
        self._lake = lake
        self._until = until
        self._began_ns = time.time_ns() - _TICK_NS
        self._wrong: dict[str, int] = {}

    def look(self, record: CommitRecord) -> None:
        """Compare what one commit says of them."""
        for place, data in views.documents(self._lake, record):
            if _bytes_of(place) == data:
                self._wrong.pop(place, None)
            elif record.seq <= self._until:
                self._wrong[place] = record.seq

    def differences(self) -> Iterator[tuple[str, str]]:
        """Place and what is wrong there; what was written since we began is as new as can be."""
        for place, seq in self._wrong.items():
            try:
                if os.stat(place).st_mtime_ns < self._began_ns:  # noqa: PTH116 - texts: a million
                    yield place, f"differs from what commit {seq} says"
            except FileNotFoundError:
                yield place, "the document is missing"


def _bytes_of(place: str) -> bytes | None:
    try:
        with open(place, "rb") as file:  # noqa: PTH123 - as above
            return file.read()
    except OSError:
        return None


def manifest_differences(
    live: Manifest, rebuilt: Manifest, *, but: Collection[str] = ()
) -> Iterator[str]:
    """Every table (`but` those) whose rows are not those of the rebuilt one, and some of the rows."""
    ours, theirs = (set(manifest.rows(_SCHEMA)) for manifest in (live, rebuilt))
    if ours != theirs:
        yield _told("the schema", sorted(ours - theirs), sorted(theirs - ours))
    tables = sorted({*_tables(live), *_tables(rebuilt)}.difference(but))
    for table in tables:
        for manifest, missing in ((live, "is missing"), (rebuilt, "is none of ours")):
            if table not in _tables(manifest):
                yield f"table {table} {missing}"
                break
        else:
            if (difference := _table_difference(table, live, rebuilt)) is not None:
                yield difference


#: Where a table lies in the file is its own affair.
_SCHEMA = "SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master"


def _tables(manifest: Manifest) -> set[str]:
    found = manifest.rows("SELECT name FROM sqlite_master WHERE type = 'table'")
    return {name for (name,) in found} - _NOT_FROM_THE_JOURNAL


def _table_difference(table: str, live: Manifest, rebuilt: Manifest) -> str | None:
    """Both are read in the order of their key, in chunks: rows alike are compared in C."""
    key = rebuilt.rows(
        f"SELECT cid + 1 FROM pragma_table_info('{table}') WHERE pk > 0 ORDER BY pk"  # noqa: S608 - our own tables
    )
    order = ", ".join(str(number) for (number,) in key)
    sql = f"SELECT * FROM {table} ORDER BY {order}"  # noqa: S608 - likewise
    extra: set[Row] = set()
    missing: set[Row] = set()
    none: list[Row] = []
    for ours, theirs in zip_longest(live.chunks(sql), rebuilt.chunks(sql), fillvalue=none):
        if ours == theirs:
            continue
        # A row that is missing shifts all that follow: what cancels out is no difference.
        here, there = set(ours), set(theirs)
        extra, missing = (extra | here) - (missing | there), (missing | there) - (extra | here)
    if not extra and not missing:
        return None
    return _told(f"table {table}", sorted(extra, key=repr), sorted(missing, key=repr))
