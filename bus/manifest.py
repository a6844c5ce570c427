"""The SQLite manifest: the journal as tables, readable while the writer works (WAL).

`Manifest.apply` is the only thing that changes it, and it decides nothing: whatever the journal
says is written down. So a manifest rebuilt from record 1 equals one that grew commit by commit.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import structlog
from pydantic_core import to_json

from bus import disk
from bus.errors import Code, Unavailable
from bus.indexing import Applier
from bus.journal import GENESIS
from bus.statements import statement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from bus.journal import Commit
    from bus.lake import Lake

log = structlog.get_logger("bus.manifest")

#: Raise when manifest.sql changes: an older file is rebuilt, never migrated.
SCHEMA_VERSION = 13

#: SQLite's log is folded into the file when that many rows are new (each takes at most about a page
#: of it), later in a large file, whose pages are then written once for several rows. Of a log that
#: has grown to so many pages all the same, a commit waits for the end, so that it begins anew.
_FOLD_ROWS, _FOLD_ROWS_AT_MOST, _FOLD_PAGES_AT_LAST = 4_000, 16_000, 64_000
_FOLD_SHARE, _PAGE_BYTES = 1 / 8, 4096


#: Where the first page tells how the file is written and read, and the highest that there is.
_FORMAT, _NEWEST_FORMAT = slice(18, 20), 2


class StaleManifestError(Exception):
    """The commit does not follow what this manifest has applied: replay or rebuild."""


class BrokenManifestError(Exception):
    """The file is not a sound SQLite database: delete it and rebuild."""


def _roots(lake: Lake) -> dict[str, Any]:
    """Where readers find what the rows speak of."""
    return {
        "objects_root": lake.public(lake.objects),
        "sidecars_root": lake.public(lake.sidecars),
    }


@contextmanager
def _told_broken() -> Iterator[None]:
    """SQLite says of a damaged file the bare DatabaseError, of everything else a subclass."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if type(error) is sqlite3.DatabaseError:
            raise BrokenManifestError(str(error)) from error
        raise


class Manifest:
    """An open manifest.sqlite. One process writes (the writer), any number read."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._begun: Path | None = None
        self._folder: _Folder | None = None

    @classmethod
    def open(cls, lake: Lake) -> Self:
        """Open for writing, creating it when it is missing. The caller is the writer.

        Whoever has brought it up to date calls `index` before searching it.
        Raises `BrokenManifestError`; so does every other method that meets damage.
        """
        disk.remove(lake.manifest_begun)  # by a rebuild that died
        if cls.keeps_writers_out(lake):
            raise BrokenManifestError("its first page keeps writers out")
        db = sqlite3.connect(lake.manifest_db, isolation_level=None, check_same_thread=False)
        manifest = cls(db)
        try:
            manifest._prepare(lake)
        except BaseException:
            db.close()
            raise
        manifest._folder = _Folder(lake.manifest_db)
        return manifest

    def _prepare(self, lake: Lake) -> None:
        with _told_broken():
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")  # a lost tail comes from the journal
            self._db.execute("PRAGMA cache_size = -65536")
            self._db.execute("PRAGMA wal_autocheckpoint = 0")  # see `_Folder`
            if not self.rows("SELECT 1 FROM sqlite_master WHERE name = 'meta'"):
                self._create(lake)

    @classmethod
    def begin(cls, lake: Lake, base: Path | None = None) -> Self:
        """One beside the live one, for a rebuild: fast, and worth nothing until `finish`.

        Empty, or what the file `base` holds, which was made by `copy`. Raises `BrokenManifestError`
        when that is no manifest.
        """
        path = lake.manifest_begun
        disk.remove(path)
        if base is not None:
            disk.copy_file(base, path)
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        manifest = cls(db)
        manifest._begun = path
        try:
            with _told_broken():
                db.execute("PRAGMA journal_mode = MEMORY")
                db.execute("PRAGMA synchronous = OFF")
                db.execute("PRAGMA cache_size = -65536")
                if base is None:
                    manifest._create(lake)
                else:
                    db.executemany(statement("move"), _roots(lake).items())
        except BaseException:
            db.close()
            raise
        return manifest

    @property
    def is_begun(self) -> bool:
        """Whether this one waits for `finish`."""
        return self._begun is not None

    def finish(self, lake: Lake) -> Self:
        """Make the indexes that are missing; what was begun takes the place of the live one."""
        self.index()
        if self._begun is None:
            return self
        self.close()
        disk.sync_file(
            self._begun
        )  # it takes a while: readers shall miss the old one for a moment only
        self.delete(lake)
        disk.publish_file(self._begun, lake.manifest_db)
        return self.open(lake)

    @classmethod
    def empty(cls, lake: Lake) -> Self:
        """One that knows of no commit, in memory: for looking at a lake that has none yet."""
        manifest = cls(sqlite3.connect(":memory:", isolation_level=None))
        manifest._create(lake)
        return manifest

    @classmethod
    def read(cls, lake: Lake) -> Self:
        """Open for reading.

        Raises `Unavailable`: E508 when there is none yet, or one that an older release made; E512
        when a newer one did.
        """
        where = str(lake.manifest_db)
        if not lake.manifest_db.exists():
            raise Unavailable("no manifest yet", code=Code.E508, where=where)
        uri = f"file:{quote(where)}?mode=ro"
        try:
            db = sqlite3.connect(uri, uri=True, timeout=10, check_same_thread=False)
            db.execute("PRAGMA query_only = ON")
        except sqlite3.OperationalError as error:  # a rebuild put another in its place just now
            raise Unavailable(str(error), code=Code.E508, where=where) from error
        manifest = cls(db)
        with suppress(sqlite3.DatabaseError, BrokenManifestError):  # damage shows when it is asked
            manifest._check_release(where)
        return manifest

    def _check_release(self, where: str) -> None:
        """Tables may have other columns in another release: a reader is told, not surprised."""
        found = self.meta().get("schema_version", SCHEMA_VERSION)
        if found == SCHEMA_VERSION:
            return
        self.close()
        message = f"the manifest has layout {found}, this release reads {SCHEMA_VERSION}"
        if found > SCHEMA_VERSION:
            raise Unavailable(message, code=Code.E512, where=where)
        hint = "It is made again when the writer starts: `bus up`, or `bus rebuild`."
        raise Unavailable(message, code=Code.E508, where=where, hint=hint)

    def copy(self, path: Path) -> None:
        """Write what stands here, as of one commit, into a new file, while the writer goes on."""
        with closing(sqlite3.connect(path, isolation_level=None)) as target:
            try:
                target.execute("PRAGMA synchronous = OFF")
                self._db.backup(target)
                target.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
            except sqlite3.OperationalError as error:
                raise Unavailable(str(error), code=Code.E505, where=str(path)) from error

    @classmethod
    def read_copy(cls, path: Path) -> Self:
        """Open what `copy` made, which nobody changes, for reading."""
        uri = f"file:{quote(str(path))}?mode=ro&immutable=1"
        return cls(sqlite3.connect(uri, uri=True, check_same_thread=False))

    @staticmethod
    def keeps_writers_out(lake: Lake) -> bool:
        """Whether the first page asks for a newer SQLite: who believes it reads and never writes.

        No other part of the file shows that. Ask before it is opened, not while.
        """
        try:
            with lake.manifest_db.open("rb") as file:
                return max(file.read(_FORMAT.stop)[_FORMAT], default=0) > _NEWEST_FORMAT
        except OSError:
            return False

    @staticmethod
    def delete(lake: Lake) -> None:
        """Remove the view's files; the next `open` starts from nothing."""
        for suffix in ("", "-wal", "-shm"):
            disk.remove(lake.manifest_db.with_name(lake.manifest_db.name + suffix))

    def close(self) -> None:
        """Close the connection."""
        if self._folder is not None:
            self._folder.close()
        self._db.close()

    def _create(self, lake: Lake) -> None:
        self._db.executescript("BEGIN;" + statement("tables"))
        facts = {
            "schema_version": SCHEMA_VERSION,
            "applied_seq": 0,
            "applied_sha256": GENESIS,
        } | _roots(lake)
        self._db.executemany("INSERT INTO meta VALUES (?, ?)", facts.items())
        self._db.execute("COMMIT")

    def index(self) -> None:
        """Make the indexes that are missing: all of them after a rebuild."""
        with _told_broken():
            self._db.executescript(statement("indexes"))

    # ── reading ───────────────────────────────────────────────────────────────────────────────

    def rows(
        self, sql: str, params: Sequence[Any] | Mapping[str, Any] = ()
    ) -> list[tuple[Any, ...]]:
        """All rows of one SELECT."""
        with _told_broken(), closing(self._db.execute(sql, params)) as cursor:
            return cursor.fetchall()

    def chunks(
        self, sql: str, params: Sequence[Any] = (), size: int = 10_000
    ) -> Iterator[list[tuple[Any, ...]]]:
        """The rows of one SELECT, so many at a time: bounded memory for tables of any length."""
        with _told_broken(), closing(self._db.execute(sql, params)) as cursor:
            while rows := cursor.fetchmany(size):
                yield rows

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within the block, all reads see one and the same commit."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            if self._db.in_transaction:  # after a failed read SQLite may have rolled back itself
                self._db.execute("ROLLBACK")

    def named(self, name: str, params: Sequence[Any] | Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """All rows of a named statement of manifest.sql."""
        return self.rows(statement(name), params)

    def among(self, name: str, values: Iterable[str]) -> list[tuple[Any, ...]]:
        """A named statement whose one parameter is a set of texts."""
        wanted = list(values)
        return self.named(name, (to_json(wanted).decode(),)) if wanted else []

    def meta(self) -> dict[str, Any]:
        """The `meta` table."""
        return dict(self.rows("SELECT key, value FROM meta"))

    @property
    def applied(self) -> tuple[int, str]:
        """`(seq, sha256)` of the newest commit in this view; `(0, GENESIS)` when empty."""
        meta = self.meta()
        return meta["applied_seq"], meta["applied_sha256"]

    @property
    def entries(self) -> int:
        """How many jobs and artifacts were ever written down."""
        return int(self.named("entries", ())[0][0])

    def progress(self, view: str) -> int:
        """How far a view behind this one has come."""
        found = self.rows("SELECT seq FROM progress WHERE view = ?", (view,))
        return found[0][0] if found else 0

    def faults(self) -> Iterator[str]:
        """What is wrong with the file as such: its structure, its indexes. Reads all of it."""
        for (fault,) in self.rows("PRAGMA integrity_check(3)"):
            if fault != "ok":
                yield str(fault)

    # ── applying commits ──────────────────────────────────────────────────────────────────────

    def apply(self, commits: Iterable[Commit], progress: Mapping[str, int] | None = None) -> None:
        """Step 9: write commits down in one transaction, in order; all or none.

        Raises `StaleManifestError` when one does not follow what is applied.
        """
        folder = self._folder if self._folder is not None and self._folder.is_idle else None
        with _told_broken():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                applier = Applier(self._db)
                for commit in commits:
                    self._advance(commit)
                    applier.take(commit)
                applier.flush()
                self._note(progress or {})
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # on a full disk SQLite may have rolled back itself
                    self._db.execute("ROLLBACK")
                raise
        if folder is not None:
            folder.look(self._db.total_changes)

    def note_progress(self, progress: Mapping[str, int]) -> None:
        """Remember how far views have come (not truth: a lost note only repeats work)."""
        self._note(progress)

    def _note(self, progress: Mapping[str, int]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO progress VALUES (?, ?)", progress.items())

    def _advance(self, commit: Commit) -> None:
        record = commit.record
        step = {"seq": record.seq, "sha256": commit.sha256, "prev": record.prev}
        if self._db.execute(statement("advance"), step).rowcount != 2:  # noqa: PLR2004 - two keys
            raise StaleManifestError(record.seq)


class _Folder:
    """Folds the log into the file beside the writer's work: commits do not wait for its syncs.

    Before 3.51.3, SQLite may leave commits out of the file for good when its log begins anew just as
    something begins to fold a log that is folded already (sqlite.org/wal.html, "The WAL Reset Bug").
    So nothing else folds, and this begins only when the newest commit cannot have been folded yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = 0
        self._pages = 0
        self._thread: threading.Thread | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being folded: what is committed from now on is not, until `look`."""
        return self._thread is None or not self._thread.is_alive()

    def look(self, rows: int) -> None:
        """Begin if enough of these rows, ever written, are new. It was idle when a commit began."""
        new = rows - self._rows
        if new < _FOLD_ROWS or new < self._enough():
            return
        self._thread = threading.Thread(target=self._fold, args=[rows], name="manifest-fold")
        self._thread.start()
        if self._pages >= _FOLD_PAGES_AT_LAST:
            self._thread.join()

    def _enough(self) -> float:
        pages = disk.size_of(self._path) / _PAGE_BYTES
        return min(pages * _FOLD_SHARE, _FOLD_ROWS_AT_MOST)

    def _fold(self, rows: int) -> None:
        uri = f"file:{quote(str(self._path))}?mode=rw"  # one that was deleted is not made anew
        try:
            with closing(sqlite3.connect(uri, uri=True)) as db:
                ((_, self._pages, folded),) = db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.DatabaseError as error:  # nothing is lost, and who meets it next will say so
            log.warning("manifest_not_folded", reason=str(error))
            return
        if folded == self._pages:  # else somebody reads what was there before
            self._rows = rows

    def close(self) -> None:
        """Wait for what is being done."""
        if self._thread is not None:
            self._thread.join()


@contextmanager
def reading(lake: Lake) -> Iterator[Manifest | None]:
    """The manifest for reading; None while nothing was ever committed.

    Raises `Unavailable`: E508 when it cannot be read, or is being made again at this moment; E512
    when a newer release made it.
    """
    if not lake.manifest_db.exists() and not lake.record_path(1).exists():
        yield None
        return
    with closing(Manifest.read(lake)) as manifest:
        try:
            yield manifest
        except BrokenManifestError as error:
            raise Unavailable(
                f"the manifest cannot be read: {error}",
                code=Code.E508,
                where=str(lake.manifest_db),
                hint="Run `bus rebuild`; the manifest is only a view.",
            ) from None
