"""Job directories as producers make them, good and bad, and what became of them."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from bus.lake import COMMIT, MANIFEST, VERDICT, Lake
from bus.model import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bus.intake import Intake

#: What a file of a job may be given as: a table, its bytes, or nothing at all (listed, not there).
Content: TypeAlias = pa.Table | bytes | None


def new_lake(path: Path) -> Lake:
    lake = Lake(path / "lake")
    lake.create()
    return lake


def small_table(rows: int = 3, start: int = 0) -> pa.Table:
    numbers = range(start, start + rows)
    return pa.table({"n": pa.array(numbers, pa.int64()), "text": [f"row {i}" for i in numbers]})


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True, **options)
    return bytes(sink.getvalue())


def manifest_of(job_id: str, relpaths: list[str], /, **fields: Any) -> dict[str, Any]:
    """A manifest.json with one artifact for each relpath, named a0, a1 …"""
    return {
        "version": 1,
        "job_id": job_id,
        "run_id": "run-1",
        "producer": "tester",
        "kind": "things",
        "created_at_utc": "2026-01-08T05:12:33Z",
        "artifacts": [
            {"artifact_id": f"a{i}", "format": "parquet", "relpath": relpath}
            for i, relpath in enumerate(relpaths)
        ],
    } | fields


def put_job(
    lake: Lake,
    job_id: str,
    files: Mapping[str, Content] | None = None,
    *,
    manifest: Mapping[str, Any] | bytes | None = None,
    marker: bool = True,
    directory: str | None = None,
) -> Path:
    """A committed job in the inbox, renamed into place whole; its path there.

    `marker`: COMMIT carries the manifest's hash, as our clients write it; else it is empty.
    """
    files = {"a0.parquet": small_table()} if files is None else files
    staging = lake.inbox / f".staging-{os.urandom(6).hex()}"
    staging.mkdir()
    for relpath, content in files.items():
        write_file(staging / relpath, content)
    if manifest is None:
        manifest = manifest_of(job_id, list(files))
    data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    (staging / MANIFEST).write_bytes(data)
    commit(staging, marker=marker)
    final = lake.inbox / (directory or job_id)
    staging.rename(final)
    return final


def write_file(path: Path, content: Content) -> None:
    if content is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else parquet_bytes(content))


def commit(directory: Path, *, marker: bool = True) -> None:
    """Write COMMIT: a marker for the manifest that lies there, or nothing."""
    text = ""
    if marker:
        digest = hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()
        submission_id = f"s-{os.urandom(4).hex()}"
        text = json.dumps({"manifest_sha256": digest, "submission_id": submission_id})
    (directory / COMMIT).write_text(text)


def verdict_of(lake: Lake, job_id: str) -> Verdict:
    """The verdict of a job that reached ready/."""
    return Verdict.from_bytes((lake.ready / job_id / VERDICT).read_bytes())


def judged(intake: Intake, lake: Lake, job_id: str) -> Verdict:
    """Drain once, and the verdict on a job."""
    result = intake.drain(job_id)
    assert job_id in result.judged, result
    return verdict_of(lake, job_id)


def codes(verdict: Verdict) -> list[str]:
    """The codes of a verdict's problems, in order; each problem is complete."""
    for found in verdict.problems:
        assert found.code, found
        assert found.where, found
        assert found.message, found
        assert found.hint, found
    assert bool(verdict.problems) is not verdict.accepted
    return [found.code for found in verdict.problems]
