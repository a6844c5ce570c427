"""A manifest that grows by decided batches, without files, locks or a writer."""

from __future__ import annotations

import hashlib
import sqlite3
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bus.decisions import Decisions, decide
from bus.journal import GENESIS, Commit
from bus.lake import Lake
from bus.manifest import Manifest
from bus.model import CommitRecord, JobRecord, Outcome, iso, utc_now

if TYPE_CHECKING:
    from pathlib import Path

    from bus.model import Verdict


class Ledger:
    """`commit` decides a batch and applies it, as the writer does; `records` is the journal."""

    def __init__(self, path: Path, *, in_memory: bool = False) -> None:
        self.lake = Lake(path)
        self.lake.manifest_db.parent.mkdir()
        self.manifest = in_memory_manifest(self.lake) if in_memory else Manifest.open(self.lake)
        self.commits: list[Commit] = []

    def decide(self, *verdicts: Verdict, wait_s: float = 0.0, later_s: float = 0.0) -> Decisions:
        now = utc_now() + timedelta(seconds=later_s)
        return decide(verdicts, self.manifest, now=now, lineage_wait_s=wait_s)

    def commit(self, *verdicts: Verdict, wait_s: float = 0.0) -> list[JobRecord]:
        """What became of a batch; jobs that wait are not in it."""
        found = self.decide(*verdicts, wait_s=wait_s)
        if found.records:
            self.apply(found.records)
        return found.records

    def apply(self, jobs: list[JobRecord]) -> None:
        self.commits.append(self.as_commit(jobs))
        self.manifest.apply(self.commits[-1:])

    def as_commit(self, jobs: list[JobRecord]) -> Commit:
        """The next record as it would be read back from the journal."""
        prev = self.commits[-1].sha256 if self.commits else GENESIS
        record = CommitRecord(
            seq=len(self.commits) + 1,
            prev=prev,
            committed_at_utc=iso(utc_now()),
            writer="test",
            jobs=jobs,
        )
        data = record.to_bytes()
        return Commit(CommitRecord.from_bytes(data), hashlib.sha256(data).hexdigest())

    def committed(self, *verdicts: Verdict) -> list[JobRecord]:
        """`commit` for jobs that must all be accepted."""
        records = self.commit(*verdicts)
        assert [(r.job_id, r.problems) for r in records] == [(v.job_id, []) for v in verdicts]
        assert {r.outcome for r in records} == {Outcome.COMMITTED}
        return records

    def codes(self, *verdicts: Verdict) -> list[list[str]]:
        """The codes with which a batch is refused, job by job."""
        return [[p.code for p in record.problems] for record in self.commit(*verdicts)]

    def status(self) -> dict[str, str]:
        return dict(self.manifest.rows("SELECT artifact_id, status FROM artifacts"))

    def alias(self, kind: str, alias: str) -> str | None:
        sql = "SELECT artifact_id FROM aliases WHERE kind = ? AND alias = ?"
        found = self.manifest.rows(sql, (kind, alias))
        return found[0][0] if found else None

    def assert_equals_a_rebuild(self) -> None:
        """A manifest made from all records in one go has the same rows in every table."""
        rebuilt = in_memory_manifest(self.lake)
        rebuilt.apply(self.commits)
        assert dump(rebuilt) == dump(self.manifest)
        rebuilt.close()


def in_memory_manifest(lake: Lake) -> Manifest:
    manifest = Manifest(sqlite3.connect(":memory:", isolation_level=None))
    manifest._prepare(lake)
    return manifest


def dump(manifest: Manifest) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table that is part of the view."""
    tables = manifest.rows(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT IN ('progress') "
        "AND name NOT LIKE 'sqlite_%' ORDER BY name"
    )
    return {name: sorted(manifest.rows(f"SELECT * FROM {name}"), key=repr) for (name,) in tables}
