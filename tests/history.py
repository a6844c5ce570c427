"""A lake with a history, made without validators or a writer: commits as the journal holds them.

Each commit's artifacts are real Parquet objects with links, and the manifest knows them, so that
views (catalog, exports) can be built and compared.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from bus import views
from bus.journal import GENESIS, Commit
from bus.lake import Lake
from bus.manifest import Manifest
from bus.model import ArtifactRecord, CommitRecord, JobRecord, Mutation, Outcome

if TYPE_CHECKING:
    from pathlib import Path

_SPACE = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class History:
    """Commits to one lake. `commit` takes jobs; `job` and `artifact` make them."""

    def __init__(self, path: Path) -> None:
        self.lake = Lake(path)
        self.lake.create()
        self.manifest = Manifest.open(self.lake)
        self.seq, self._sha256 = self.manifest.applied

    def artifact(self, table: pa.Table | None = None, **fields: Any) -> ArtifactRecord:
        """A new artifact over a real object (or, without a table, over none)."""
        kind, name = fields.get("kind", "things"), fields.get("name", "a0")
        number = fields.pop("number", None)
        text = f"{kind}/{name}/{number if number is not None else uuid.uuid4()}"
        sha256 = digest_of(text) if table is None else self._store(table)
        facts = {
            "name": name,
            "artifact_id": str(uuid.uuid5(_SPACE, text)),
            "decision": "created",
            "kind": kind,
            "schema_version": 1,
            "logical_key": text,
            "file_hash": f"sha256:{sha256}",
            "content_hash": f"ch1:{digest_of('content of ' + text)}",
            "size_bytes": 1000,
            "rows": 0 if table is None else table.num_rows,
            "columns": [] if table is None else columns_of(table),
        }
        return ArtifactRecord.model_validate(facts | fields)

    def _store(self, table: pa.Table) -> str:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        data = sink.getvalue().to_pybytes()
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.lake.object_path(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return sha256

    def job(self, *artifacts: ArtifactRecord, **fields: Any) -> JobRecord:
        """A committed job with these artifacts."""
        facts = {
            "job_id": f"job-{uuid.uuid4()}",
            "verdict_id": str(uuid.uuid4()),
            "outcome": Outcome.COMMITTED,
            "run_id": "run-1",
            "producer": "tester",
            "kind": "things",
            "created_at_utc": "2026-01-08T05:12:33.000000Z",
            "artifacts": list(artifacts),
        }
        return JobRecord.model_validate(facts | fields)

    def change(self, *mutations: Mutation, **fields: Any) -> JobRecord:
        """A committed job with mutations and no artifacts."""
        return self.job(mutations=list(mutations), **fields)

    def commit(self, *jobs: JobRecord) -> int:
        """One commit of these jobs, as the writer makes it: record, manifest, links."""
        record = CommitRecord(
            seq=self.seq + 1,
            prev=self._sha256 if self.seq else GENESIS,
            committed_at_utc=f"2026-01-08T06:00:{self.seq % 60:02d}.{self.seq:06d}Z",
            writer="tests",
            jobs=list(jobs),
        )
        self._sha256 = hashlib.sha256(record.to_bytes()).hexdigest()
        self.manifest.apply([Commit(record, self._sha256)])
        self.seq = record.seq
        linkable = [
            a for j in jobs for a in j.artifacts if self.lake.object_path(a.sha256).exists()
        ]
        if linkable or any(job.mutations for job in jobs):
            views.link_artifacts(self.lake, record)
            views.unlink_inactive(self.lake, record, self.manifest)
        return self.seq

    def commit_tables(self, kind: str, *tables: pa.Table, **fields: Any) -> list[ArtifactRecord]:
        """One job that delivers these tables."""
        made = [self.artifact(t, kind=kind, name=f"a{i}", **fields) for i, t in enumerate(tables)]
        self.commit(self.job(*made))
        return made


def columns_of(table: pa.Table) -> list[dict[str, Any]]:
    """The `columns` of an artifact's facts."""
    return [{"name": field.name, "type": str(field.type)} for field in table.schema]
