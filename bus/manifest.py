"""The SQLite manifest: the journal as tables, readable while the writer works (WAL).

`Manifest.apply` is the only thing that changes it, and it decides nothing: whatever the journal
says is written down. So a manifest rebuilt from record 1 equals one that grew commit by commit.
"""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from contextlib import closing, contextmanager, suppress
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Self, assert_never
from urllib.parse import quote

from pydantic_core import to_json

from bus import disk
from bus.errors import Code, Unavailable
from bus.journal import GENESIS
from bus.model import (
    Alias,
    MarkDamaged,
    Outcome,
    Pin,
    Restore,
    Supersede,
    Tag,
    Tombstone,
    Unpin,
    Untag,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from bus.journal import Commit
    from bus.lake import Lake
    from bus.model import ArtifactRecord, JobRecord, Mutation

#: Raise when manifest.sql changes: an older file is rebuilt, never migrated.
SCHEMA_VERSION = 9


#: Where the first page tells how the file is written and read, and the highest that there is.
_FORMAT, _NEWEST_FORMAT = slice(18, 20), 2


@cache
def statement(name: str, file: str = "manifest.sql") -> str:
    """One named statement (or script) of manifest.sql, or of another file of such."""
    text = resources.files("bus").joinpath(file).read_text(encoding="utf-8")
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[name]


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
        return manifest

    def _prepare(self, lake: Lake) -> None:
        with _told_broken():
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")  # a lost tail comes from the journal
            self._db.execute("PRAGMA cache_size = -65536")
            self._db.execute("PRAGMA wal_autocheckpoint = 4000")
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
        self.delete(lake)
        disk.publish_file(self._begun, lake.manifest_db)
        return self.open(lake)

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
        with _told_broken():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                applier = _Applier(self._db)
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


@contextmanager
def reading(lake: Lake) -> Iterator[Manifest | None]:
    """The manifest for reading; None while nothing was ever committed.

    Raises `Unavailable`: E508 when it cannot be read, E512 when a newer release made it.
    """
    if not lake.manifest_db.exists():
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


class _Applier:
    """Writes records' facts. Rows are collected first, then inserted table by table.

    Facts that begin and end are inserted at the end of each record, because the next record asks
    whether they hold; all other rows when there are enough, or when `flush` is called.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        found = db.execute("SELECT coalesce(max(artifact_no), 0) FROM artifact_facts").fetchone()
        self._artifact_no: int = found[0]
        damaged = db.execute("SELECT file_hash FROM damage_facts WHERE ended_seq IS NULL")
        self._damaged = {file_hash for (file_hash,) in damaged}
        self._contracts: set[tuple[str, int]] = set()
        self._rows: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)
        self._facts: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)
        self._edges: list[tuple[str, str, int]] = []
        self._runs: dict[str | None, tuple[str | None, ...]] = {}
        self._seq = 0
        self._at = ""

    def take(self, commit: Commit) -> None:
        """Collect what one record says."""
        record = commit.record
        self._seq, self._at = record.seq, record.committed_at_utc
        self._runs.clear()
        count = sum(len(job.artifacts) for job in record.jobs)
        summary = (self._seq, commit.sha256, self._at, record.writer, len(record.jobs), count)
        self._rows["commits"].append(summary)
        for job in record.jobs:
            self._job(job)
        self._insert(self._facts)

    def flush(self) -> None:
        """Insert every row that was collected."""
        self._insert(self._rows)
        self._insert(self._facts)
        if self._edges:  # after the artifacts that they join
            ends = ((artifact_id,) for edge in self._edges for artifact_id in edge[:2])
            self._db.executemany(statement("add_node"), ends)
            self._db.executemany(statement("add_edge"), self._edges)
            self._edges.clear()

    def _insert(self, tables: dict[str, list[tuple[Any, ...]]]) -> None:
        for table, rows in tables.items():
            marks = ", ".join("?" * len(rows[0]))
            self._db.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", rows)  # noqa: S608 - our own table names
        tables.clear()

    def _job(self, job: JobRecord) -> None:
        problems = [p.model_dump() for p in job.problems] if job.problems else None
        row = (
            None,
            job.job_id,
            job.verdict_id,
            job.submission_id,
            self._seq,
            str(job.outcome),
            job.first_seq,
            job.job_digest,
            job.run_id,
            job.producer,
            job.kind,
            job.created_at_utc,
            self._at,
            len(job.artifacts),
            to_json(problems).decode() if problems else None,
        )
        self._rows["jobs"].append(row)
        if job.outcome is not Outcome.COMMITTED:
            return
        meta_json = to_json(job.meta).decode() if job.meta else "{}"
        self._run(job, meta_json)
        for artifact in job.artifacts:
            self._artifact(artifact)
            self._use(job, artifact, meta_json)
        for mutation in job.mutations:
            self.flush()  # a mutation may end a fact that this very record adds
            self._mutate(job, mutation)

    def _run(self, job: JobRecord, meta_json: str) -> None:
        facts = (job.run_id, job.producer, job.created_at_utc, meta_json)
        if self._runs.get(job.run_id) != facts:  # else this commit has said the same before
            self._runs[job.run_id] = facts
            self._db.execute(statement("add_run"), (*facts, self._at, self._seq))

    def _artifact(self, artifact: ArtifactRecord) -> None:
        if artifact.decision == "revived":
            self.flush()
            self._db.execute(statement("end_identity"), (self._seq, artifact.artifact_id))
            self._end("tombstone_facts", "artifact_id = ?", artifact.artifact_id)
        if artifact.decision != "deduped":
            self._identity(artifact)
            self._end_damage(artifact.file_hash)
        self._edges += [(artifact.artifact_id, i, self._seq) for i in artifact.inputs or ()]
        if artifact.contract:
            self._contract(artifact.kind, artifact.schema_version, artifact.contract)
        # Of an artifact that is new nothing holds yet.
        begin = self._begin if artifact.decision == "created" else self._once
        for key, values in artifact.tags.items():
            for value in values:
                begin("tag_facts", artifact_id=artifact.artifact_id, k=key, v=value)
        for old in artifact.supersedes:
            begin("supersede_facts", artifact_id=artifact.artifact_id, supersedes_artifact_id=old)

    def _contract(self, kind: str, version: int, fingerprint: str) -> None:
        """The first of a kind and version stays; `INSERT OR IGNORE` passes over later ones."""
        if (kind, version) not in self._contracts:
            self._contracts.add((kind, version))
            self._rows["contracts"].append((kind, version, fingerprint, self._seq))

    def _identity(self, artifact: ArtifactRecord) -> None:
        self._artifact_no += 1
        identity = (
            self._artifact_no,
            artifact.artifact_id,
            artifact.kind,
            artifact.schema_version,
            artifact.logical_key,
            artifact.file_hash,
            artifact.content_hash,
            artifact.rows,
            artifact.size_bytes,
            artifact.min_ts,
            artifact.max_ts,
            artifact.columns,
            self._at,
            int(artifact.duckdb_readable),
            self._seq,
            None,
        )
        rows = self._rows
        rows["artifact_facts"].append(identity)
        rows["column_stats_facts"].append((self._artifact_no, artifact.column_stats))

    def _use(self, job: JobRecord, artifact: ArtifactRecord, meta_json: str) -> None:
        row = (
            None,
            job.run_id,
            artifact.name,
            artifact.artifact_id,
            job.job_id,
            self._seq,
            job.producer,
            artifact.kind,
            artifact.schema_version,
            artifact.schema_hint,
            artifact.rows,
            artifact.file_hash,
            artifact.content_hash,
            int(artifact.decision == "deduped"),
            artifact.mode,
            job.created_at_utc,
            self._at,
            meta_json,
        )
        self._rows["run_artifacts"].append(row)

    def _mutate(self, job: JobRecord, mutation: Mutation) -> None:  # noqa: C901, PLR0912 - a case for each
        match mutation:
            case Supersede(target=old, by=new):
                self._once("supersede_facts", artifact_id=new, supersedes_artifact_id=old)
            case Tombstone(target=target, reason=reason):
                self._end("tombstone_facts", "artifact_id = ?", target)
                self._begin("tombstone_facts", artifact_id=target, reason=reason)
            case Tag(target=target, tags=tags):
                for k, values in tags.items():
                    for v in values:
                        self._once("tag_facts", artifact_id=target, k=k, v=v)
            case Untag(target=target, tags=tags):
                for k, values in tags.items():
                    for v in values:
                        self._end("tag_facts", "artifact_id = ? AND k = ? AND v = ?", target, k, v)
            case Alias(kind=kind, alias=alias, target=aliased):
                self._end("alias_facts", "kind = ? AND alias = ?", kind, alias)
                if aliased is not None:
                    self._once("alias_facts", kind=kind, alias=alias, artifact_id=aliased)
                move = (None, kind, alias, aliased, self._seq, job.verdict_id)
                self._rows["alias_moves"].append(move)
            case Pin(pin=pin, target=targets):
                for target in targets:
                    self._once("pin_facts", pin=pin, artifact_id=target)
            case Unpin(pin=pin, target=leaving):
                for target in leaving or ():  # a decided one names each
                    self._end("pin_facts", "pin = ? AND artifact_id = ?", pin, target)
            case MarkDamaged(object=sha256, found=found):
                self._begin_damage(f"sha256:{sha256}", found)
            case Restore(object=sha256):
                self._end_damage(f"sha256:{sha256}")
            case _:
                assert_never(mutation)

    def _begin_damage(self, file_hash: str, found: str) -> None:
        if file_hash not in self._damaged:
            self._damaged.add(file_hash)
            self._begin("damage_facts", file_hash=file_hash, found=found)

    def _end_damage(self, file_hash: str) -> None:
        """Its bytes are back: a validator has just proven them, or the writer has."""
        if file_hash in self._damaged:
            self._damaged.remove(file_hash)
            self.flush()
            self._end("damage_facts", "file_hash = ?", file_hash)

    def _once(self, table: str, **values: str) -> None:
        """Begin a fact unless it already holds."""
        same = " AND ".join(f"{column} = ?" for column in values)
        holds = f"SELECT 1 FROM {table} WHERE {same} AND ended_seq IS NULL"  # noqa: S608 - our own names
        if self._db.execute(holds, tuple(values.values())).fetchone() is None:
            self._begin(table, **values)

    def _begin(self, table: str, **values: str) -> None:
        self._facts[table].append((*values.values(), self._seq, None))

    def _end(self, table: str, condition: str, *values: str) -> None:
        """End a fact; one that began in this very commit never held, and leaves no row.

        So the same fact may begin again in this commit, under the same key.
        """
        self._db.execute(
            f"DELETE FROM {table} WHERE {condition} AND added_seq = ?",  # noqa: S608 - our own names
            (*values, self._seq),
        )
        self._db.execute(
            f"UPDATE {table} SET ended_seq = ? WHERE {condition} AND ended_seq IS NULL",  # noqa: S608 - our own names
            (self._seq, *values),
        )
