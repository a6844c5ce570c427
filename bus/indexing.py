"""Step 9, record by record: what each says becomes rows of the manifest. Decides nothing."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, assert_never

from pydantic_core import to_json

from bus.model import (
    Alias,
    Discard,
    MarkDamaged,
    Outcome,
    Pin,
    Purge,
    Restore,
    SetPolicy,
    Supersede,
    Tag,
    Tombstone,
    Unpin,
    Untag,
    iso,
)
from bus.statements import statement

if TYPE_CHECKING:
    import sqlite3

    from bus.journal import Commit
    from bus.model import ArtifactRecord, JobRecord, Mutation


class Applier:
    """Writes records' facts. Rows are collected first, then inserted table by table.

    Facts that begin and end are inserted when a later one asks whether they hold, and at the end of
    each record; all other rows when there are enough, or when `flush` is called.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._artifact_no = _newest(db, "artifact_facts", "artifact_no")
        self._use_no = _newest(db, "run_artifacts", "use_no")
        damaged = db.execute("SELECT file_hash FROM damage_facts WHERE ended_seq IS NULL")
        self._damaged = {file_hash for (file_hash,) in damaged}
        # Of purged ones there may be very many: they are asked for one by one, if there are any.
        self._any_purged = db.execute("SELECT 1 FROM purge_facts LIMIT 1").fetchone() is not None
        self._contracts: set[tuple[str, int]] = set()
        self._rows: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)
        self._facts: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)
        self._edges: list[tuple[str, str, int]] = []
        self._nodes: dict[str, int] = {}
        self._runs: dict[str | None, tuple[str | None, ...]] = {}
        self._seq = 0
        self._at = ""

    def take(self, commit: Commit) -> None:
        """Collect what one record says."""
        record = commit.record
        self._seq, self._at = record.seq, record.committed_at_utc
        self._runs.clear()
        for job in record.jobs:
            self._job(job)
        counts = (len(record.jobs), sum(len(job.artifacts) for job in record.jobs), self._use_no)
        summary = (self._seq, commit.sha256, self._at, record.writer, *counts)
        self._rows["commits"].append(summary)
        self._insert(self._facts)

    def flush(self) -> None:
        """Insert every row that was collected."""
        self._insert(self._rows)
        self._insert(self._facts)
        # After the artifacts that they join; what is said again was so before.
        self._insert_rows(
            "lineage_edges", [(self._node(i), self._node(o), seq) for i, o, seq in self._edges]
        )
        self._edges.clear()

    def _insert(self, tables: dict[str, list[tuple[Any, ...]]]) -> None:
        for table, rows in tables.items():
            self._insert_rows(table, rows)
        tables.clear()

    def _insert_rows(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        if not rows:
            return
        marks = ", ".join("?" * len(rows[0]))
        self._db.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", rows)  # noqa: S608 - our own table names

    def _write(self, table: str) -> None:
        """Facts that this commit began: before one is asked whether it holds, or is ended."""
        self._insert_rows(table, self._facts.pop(table, []))

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
            self._mutate(job, mutation)

    def _run(self, job: JobRecord, meta_json: str) -> None:
        facts = (job.run_id, job.producer, job.created_at_utc, meta_json)
        if self._runs.get(job.run_id) != facts:  # else this commit has said the same before
            self._runs[job.run_id] = facts
            self._db.execute(statement("add_run"), (*facts, self._at, self._seq))

    def _artifact(self, artifact: ArtifactRecord) -> None:
        if artifact.decision == "revived":
            # The earlier one may be in this very batch.
            self._insert_rows("artifact_facts", self._rows.pop("artifact_facts", []))
            self._db.execute(statement("end_identity"), (self._seq, artifact.artifact_id))
            self._end("tombstone_facts", "artifact_id = ?", artifact.artifact_id)
        if artifact.decision != "deduped":
            self._identity(artifact)
            self._bytes_are_back(artifact.file_hash)
        self._edges += [(artifact.artifact_id, i, self._seq) for i in artifact.inputs or ()]
        if artifact.contract:
            self._contract(artifact.kind, artifact.schema_version, artifact.contract)
        # Of an artifact that is new nothing holds yet.
        begin = self._begin if artifact.decision == "created" else self._once
        for key, values in artifact.tags.items():
            for value in values:
                begin("tag_marks", node=self._node(artifact.artifact_id), k=key, v=value)
        for old in artifact.supersedes:
            begin("supersede_facts", artifact_id=artifact.artifact_id, supersedes_artifact_id=old)

    def _contract(self, kind: str, version: int, fingerprint: str) -> None:
        """The first of a kind and version stays; `INSERT OR IGNORE` passes over later ones."""
        if (kind, version) not in self._contracts:
            self._contracts.add((kind, version))
            self._rows["contracts"].append((kind, version, fingerprint, self._seq))

    def _identity(self, artifact: ArtifactRecord) -> None:
        self._artifact_no += 1
        if artifact.decision == "created":
            self._nodes[artifact.artifact_id] = self._artifact_no
            self._rows["nodes"].append((self._artifact_no, artifact.artifact_id, artifact.kind))
        identity = (
            self._artifact_no,
            self._node(artifact.artifact_id),
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
        self._use_no += 1
        row = (
            self._use_no,
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
            self._node(artifact.artifact_id),
        )
        self._rows["run_artifacts"].append(row)

    def _node(self, artifact_id: str) -> int:
        """The number of an artifact, which was created by now."""
        node = self._nodes.get(artifact_id)
        if node is None:
            ((node,),) = self._db.execute(statement("node_of"), (artifact_id,))
            if node is None:
                self._db.execute(statement("add_unknown"), (artifact_id,))
                ((node,),) = self._db.execute("SELECT min(node) FROM nodes")
            self._nodes[artifact_id] = node
        return node

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
                        self._once("tag_marks", node=self._node(target), k=k, v=v)
            case Untag(target=target, tags=tags):
                for k, values in tags.items():
                    for v in values:
                        node = self._node(target)
                        self._end("tag_marks", "node = ? AND k = ? AND v = ?", node, k, v)
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
                self._bytes_are_back(f"sha256:{sha256}")
            case Purge(object=sha256, reason=reason):
                self._begin_purge(f"sha256:{sha256}", reason)
            case SetPolicy(kind=kind, keep_last=last, keep_days=days):
                self._end("policy_facts", "kind = ?", kind)
                if last is not None or days is not None:
                    self._begin("policy_facts", kind=kind, keep_last=last, keep_days=days)
            case Discard(jobs=jobs, before=before):
                self._end("discard_facts", "jobs = ?", jobs)
                self._begin("discard_facts", jobs=jobs, before=iso(before))
            case _:
                assert_never(mutation)

    def _begin_damage(self, file_hash: str, found: str) -> None:
        if file_hash not in self._damaged:
            self._damaged.add(file_hash)
            self._begin("damage_facts", file_hash=file_hash, found=found)

    def _begin_purge(self, file_hash: str, reason: str) -> None:
        """Again, too: a file of that name has come to the store since, and nothing stands on it."""
        self._any_purged = True
        self._end("purge_facts", "file_hash = ?", file_hash)
        self._begin("purge_facts", file_hash=file_hash, reason=reason)

    def _is_purged(self, file_hash: str) -> bool:
        if not self._any_purged:
            return False
        self._write("purge_facts")  # this very commit may have purged it
        holds = "SELECT 1 FROM purge_facts WHERE file_hash = ? AND ended_seq IS NULL"
        return self._db.execute(holds, (file_hash,)).fetchone() is not None

    def _bytes_are_back(self, file_hash: str) -> None:
        """A validator has just proven them, or the writer has."""
        if file_hash in self._damaged:
            self._damaged.remove(file_hash)
            self._end("damage_facts", "file_hash = ?", file_hash)
        if self._is_purged(file_hash):
            self._end("purge_facts", "file_hash = ?", file_hash)

    def _once(self, table: str, **values: str | int) -> None:
        """Begin a fact unless it already holds."""
        self._write(table)
        same = " AND ".join(f"{column} = ?" for column in values)
        holds = f"SELECT 1 FROM {table} WHERE {same} AND ended_seq IS NULL"  # noqa: S608 - our own names
        if self._db.execute(holds, tuple(values.values())).fetchone() is None:
            self._begin(table, **values)

    def _begin(self, table: str, **values: str | int | None) -> None:
        self._facts[table].append((*values.values(), self._seq, None))

    def _end(self, table: str, condition: str, *values: str | int) -> None:
        """End a fact; one that began in this very commit never held, and leaves no row.

        So the same fact may begin again in this commit, under the same key.
        """
        self._write(table)
        self._db.execute(
            f"DELETE FROM {table} WHERE {condition} AND added_seq = ?",  # noqa: S608 - our own names
            (*values, self._seq),
        )
        self._db.execute(
            f"UPDATE {table} SET ended_seq = ? WHERE {condition} AND ended_seq IS NULL",  # noqa: S608 - our own names
            (self._seq, *values),
        )


def _newest(db: sqlite3.Connection, table: str, number: str) -> int:
    """The largest number given so far; 0 for none."""
    (found,) = db.execute(f"SELECT coalesce(max({number}), 0) FROM {table}").fetchone()  # noqa: S608 - our own names
    return int(found)
