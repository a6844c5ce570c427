"""Lakes in a known state: grown ones with many artifacts, and jobs staged beside a running bus.

A grown lake has a real journal and real (small) objects, so that every view can be made from it and
every path can be read. Many artifacts share an object, as empty slices of many tokens do.
"""

from __future__ import annotations

import json
import os
from contextlib import closing
from typing import TYPE_CHECKING

from pydantic_core import to_json

from benchmarks import inputs
from bus import answers, disk
from bus.frames import ParquetOptions, write_parquet
from bus.hashing import content_hash, file_hash
from bus.journal import GENESIS, Journal
from bus.lake import RECEIPT, VERDICT, Lake
from bus.manifest import Manifest
from bus.model import (
    ArtifactFacts,
    ArtifactRecord,
    CommitRecord,
    JobRecord,
    Outcome,
    Verdict,
    artifact_id_of,
)
from bus.settings import Settings
from bus.specs import Registry
from bus.staging import Staging
from bus.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

KIND_OF_OLD = "bench_old"
_OBJECTS = 64
_OBJECT_ROWS = 20
_JOBS_A_COMMIT = 500
_ARTIFACTS_A_RUN = 50
_THEN = "2026-01-08T05:12:33.000000Z"


def new_lake(root: Path) -> Lake:
    """An empty lake."""
    lake = Lake(root)
    lake.create()
    return lake


def grown_lake(root: Path, artifacts: int, objects: int = _OBJECTS) -> Lake:
    """A lake whose journal holds that many artifacts, each by a job of its own; no views yet."""
    lake = new_lake(root)
    _write_journal(lake, artifacts, [_an_object(lake, number) for number in range(objects)])
    return lake


def lake_of_large_objects(root: Path, objects: int, size_bytes: int) -> Lake:
    """A lake of so many artifacts, each on an object of its own that is nearly all hole."""
    lake = new_lake(root)
    _write_journal(lake, objects, [_a_large_object(lake, n, size_bytes) for n in range(objects)])
    return lake


def _write_journal(lake: Lake, artifacts: int, objects: Sequence[dict[str, object]]) -> None:
    journal = Journal(lake)
    prev = GENESIS
    for seq, first in enumerate(range(0, artifacts, _JOBS_A_COMMIT), start=1):
        numbers = range(first, min(first + _JOBS_A_COMMIT, artifacts))
        jobs = [_job(number, objects) for number in numbers]
        record = CommitRecord(seq=seq, prev=prev, committed_at_utc=_THEN, writer="bench", jobs=jobs)
        prev = journal.append(record).sha256


def catalogue(lake: Lake) -> None:
    """Make every view but the run trees, which count as made: nothing is left to do in the idle."""
    settings = Settings.load(lake.root)
    with Writer.open(lake, settings, Registry.load(settings)) as writer:
        writer.rebuild(trees=False)


def counted(lake: Lake) -> tuple[int, int]:
    """How many artifacts and steps of lineage the manifest has."""
    sql = "SELECT (SELECT count(*) FROM artifact_facts), (SELECT count(*) FROM lineage_facts)"
    with closing(Manifest.read(lake)) as manifest:
        ((artifacts, edges),) = manifest.rows(sql)
    return artifacts, edges


def some_ids(lake: Lake, count: int) -> list[str]:
    """So many artifact_ids, evenly out of all that the manifest has."""
    sql = """SELECT artifact_id FROM artifact_facts
        WHERE artifact_no % (SELECT max(1, max(artifact_no) / ?) FROM artifact_facts) = 0 LIMIT ?"""
    with closing(Manifest.read(lake)) as manifest:
        return [artifact_id for (artifact_id,) in manifest.rows(sql, (count, count))]


def published_lake(root: Path, tables: Mapping[str, pa.Table]) -> tuple[Lake, dict[str, str]]:
    """A lake with these tables, written as our clients write them, and their artifact_ids by name."""
    lake = new_lake(root)
    objects = []
    for number, table in enumerate(tables.values()):
        draft = lake.objects / ".draft.tmp"
        write_parquet(table, draft, ParquetOptions())
        facts = _table_facts(table, f"ch1:{number:064x}")
        objects.append(facts | _stored(lake, draft))
    jobs = [_job(number, objects) for number in range(len(objects))]
    record = CommitRecord(seq=1, prev=GENESIS, committed_at_utc=_THEN, writer="bench", jobs=jobs)
    Journal(lake).append(record)
    catalogue(lake)
    ids = [job.artifacts[0].artifact_id for job in jobs]
    return lake, dict(zip(tables, ids, strict=True))


def answer(lake: Lake, *, documents: bool = True) -> None:
    """What answered jobs leave in processed/; without `documents` only the directories."""
    for commit in Journal(lake).after(0, GENESIS):
        for job in commit.record.jobs:
            directory = lake.processed / job.job_id
            directory.mkdir()
            if documents:
                receipt = answers.receipt(lake, job, commit.record)
                disk.write_plain(directory / RECEIPT, receipt.to_bytes())
                disk.write_plain(directory / VERDICT, _verdict(job).to_bytes())


def _verdict(job: JobRecord) -> Verdict:
    (artifact,) = job.artifacts
    known = artifact.model_dump(include=set(ArtifactFacts.model_fields))
    texts = {name: json.loads(known[name]) for name in ("columns", "column_stats")}
    facts = ArtifactFacts.model_validate(known | texts | {"relpath": "000.parquet"})
    said = job.model_dump(
        include=set(Verdict.model_fields) - {"artifacts", "mutations", "problems"}
    )
    return Verdict.model_validate(
        said | {"accepted": True, "judged_at_utc": _THEN, "artifacts": [facts]}
    )


def _a_large_object(lake: Lake, number: int, size_bytes: int) -> dict[str, object]:
    path = lake.objects / f".{number}.tmp"
    disk.write_plain(path, number.to_bytes(8, "little"), 0o644)
    os.truncate(path, size_bytes)
    return _stored(lake, path) | {
        "content_hash": f"ch1:{number:064x}",
        "rows": 1,
        "columns": "[]",
        "column_stats": "[]",
    }


def _stored(lake: Lake, path: Path) -> dict[str, object]:
    """A finished file becomes an object; its hash and size."""
    hashed = file_hash(path)
    target = lake.object_path(hashed.removeprefix("sha256:"))
    target.parent.mkdir(exist_ok=True)
    path.chmod(0o444)
    disk.move(path, target)
    return {"file_hash": hashed, "size_bytes": target.stat().st_size}


def _an_object(lake: Lake, number: int) -> dict[str, object]:
    """A real object in the store, and the facts about it that every artifact over it shares."""
    table = inputs.mixed(1_000_000 + number, _OBJECT_ROWS)
    path = inputs.write(table, lake.objects / f".{number}.tmp")
    return _table_facts(table, content_hash(table)) | _stored(lake, path)


def _table_facts(table: pa.Table, hashed_content: str) -> dict[str, object]:
    """What every artifact over a table's object shares, but for the file."""
    columns = [{"name": field.name, "type": str(field.type)} for field in table.schema]
    stats = [
        {"name": field.name, "nulls": 0, "min": "0", "max": "999999"} for field in table.schema
    ]
    return {
        "content_hash": hashed_content,
        "rows": table.num_rows,
        "columns": to_json(columns).decode(),
        "column_stats": to_json(stats).decode(),
    }


def _job(number: int, objects: Sequence[dict[str, object]]) -> JobRecord:
    artifact = ArtifactRecord.model_validate(
        {
            "name": f"table-{number}",
            "artifact_id": old_id(number, objects),
            "decision": "created",
            "kind": KIND_OF_OLD,
            "schema_version": 1,
            "logical_key": _key(number),
            "inputs": [old_id(source, objects) for source in old_inputs(number)],
            "tags": {"token": [str(number)]},
        }
        | objects[number % len(objects)]
    )
    return JobRecord(
        job_id=f"old-{number}",
        verdict_id=f"old-verdict-{number}",
        submission_id=f"old-submission-{number}",
        outcome=Outcome.COMMITTED,
        job_digest=f"{number:064x}",
        run_id=f"old-run-{number // _ARTIFACTS_A_RUN}",
        producer=inputs.PRODUCER,
        kind=KIND_OF_OLD,
        created_at_utc=_THEN,
        artifacts=[artifact],
    )


def _key(number: int) -> str:
    return f"token={number}/res=1m"


def old_id(number: int, objects: Sequence[dict[str, object]]) -> str:
    """The id of a grown lake's artifact."""
    content_hash = str(objects[number % len(objects)]["content_hash"])
    return artifact_id_of(KIND_OF_OLD, 1, _key(number), content_hash)


def old_inputs(number: int) -> list[int]:
    """What a grown lake's artifact was made from: all of them, in the end, from number 0.

    A heap, so that each level is twice as wide as the one above, and every tenth has a second
    input beside the first: a path would double at each such diamond.
    """
    if number == 0:
        return []
    first = (number - 1) // 2
    return [first, first - 1] if number % 10 == 0 and first else [first]


# ── staged jobs ──────────────────────────────────────────────────────────────────────────────────


def stage(
    lake: Lake, jobs: Sequence[Sequence[Path]], prefix: str, kind: str = inputs.KIND
) -> list[str]:
    """Stage one job for each group of Parquet files, as our client does; their ids.

    Each job is a run of its own, and each artifact has a key of its own.
    """
    job_ids = []
    for number, files in enumerate(jobs):
        job_id = f"{prefix}-{number:05d}"
        with Staging(lake, f"run-{job_id}", inputs.PRODUCER, kind, job_id) as staging:
            for index, path in enumerate(files):
                key = f"token={prefix}-{number}-{index}/res=1s"
                staging.add(path, name=f"table-{index}", logical_key=key)
            staging.submit()
        job_ids.append(job_id)
    return job_ids


def hand_over(source: Lake, target: Lake, job_ids: Sequence[str]) -> None:
    """Move staged jobs into another lake's inbox, all within moments, before anybody rings.

    Staged right there, the first ones would be swept up while the last ones are still being made.
    """
    for job_id in job_ids:
        disk.move(source.inbox / job_id, target.inbox / job_id)
    disk.sync_dir(target.inbox)


def each_alone(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Groups of one, for `stage`."""
    return ([path] for path in files)
