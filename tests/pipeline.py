"""A small pipeline in one process: real directories, validators and writer, no queue between.

`Pipeline` stages, judges and commits through the real code. `Pipeline.judged` puts a job into
ready/ with a verdict made by hand, for tests of what the writer decides.
"""

from __future__ import annotations

import hashlib
import io
import secrets
from contextlib import closing, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from bus import disk
from bus.frames import ParquetOptions
from bus.intake import Intake
from bus.journal import Journal
from bus.lake import MANIFEST, RECEIPT, REJECT_REASON, VERDICT, Lake
from bus.manifest import Manifest
from bus.model import (
    ArtifactEntry,
    ArtifactFacts,
    JobManifest,
    JobState,
    Receipt,
    RejectReason,
    Verdict,
    artifact_id_of,
    iso,
    utc_now,
)
from bus.settings import Settings
from bus.specs import Registry
from bus.staging import StagedJob, Staging
from bus.writer import Answer, DrainResult, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path
    from types import ModuleType

    from bus.model import CommitRecord

KIND = "signals"  # a kind without a contract
#: Tests wait for nothing: no pacing, no patience.
IMPATIENT: dict[str, Any] = {"commit_pace_s": 0.0, "quiet_s": 0.0, "lineage_wait_s": 0.0}


@cache
def parquet(number: int, codec: str = "snappy") -> bytes:
    """A tiny Parquet file. Another `codec` gives the same rows in other bytes."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": [number, number + 1]}), sink, compression=codec)
    return sink.getvalue()


def table(number: int, rows: int = 3) -> pa.Table:
    """A small table, different for each `number`."""
    return pa.table({"x": range(number, number + rows), "y": [f"{number}"] * rows})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def facts(name: str, number: int, *, codec: str = "snappy", **fields: Any) -> ArtifactFacts:
    """What a validator would say of `parquet(number, codec)`, delivered as `name`."""
    data = parquet(number, codec)
    known: dict[str, Any] = {
        "kind": KIND,
        "schema_version": 1,
        "logical_key": f"name={name}",
        "relpath": f"{name}.parquet",
        "file_hash": f"sha256:{sha256(data)}",
        "content_hash": f"ch1:{number:064x}",
        "size_bytes": len(data),
        "rows": 2,
        "columns": [{"name": "x", "type": "int64"}],
        "column_stats": [{"name": "x", "nulls": 0, "min": number, "max": number + 1}],
    }
    return ArtifactFacts(name=name, **(known | fields))


def id_of(found: ArtifactFacts) -> str:
    return artifact_id_of(found.kind, found.schema_version, found.logical_key, found.content_hash)


def verdict(job_id: str, *artifacts: ArtifactFacts, **fields: Any) -> Verdict:
    """An acceptance of a job with these artifacts (or mutations=…, after=…)."""
    known: dict[str, Any] = {
        "verdict_id": secrets.token_hex(16),
        "submission_id": secrets.token_hex(12),
        "job_digest": sha256(repr((job_id, artifacts, sorted(fields.items()))).encode()),
        "accepted": True,
        "judged_at_utc": iso(utc_now()),
        "run_id": "run-1",
        "producer": "tests",
        "kind": KIND,
        "created_at_utc": "2026-01-08T05:12:33.000000Z",
        "artifacts": list(artifacts),
    }
    return Verdict(job_id=job_id, **(known | fields))


class Pipeline:
    """A lake and everything that works on it, under the test's control."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.settings = Settings.load(root, **(IMPATIENT | settings))
        self.lake = Lake(root, self.settings.public_root)
        self.lake.create()
        self.registry = Registry.load(self.settings)
        self.answers: list[Answer] = []

    # ── producing ─────────────────────────────────────────────────────────────────────────────

    def stage(self, job_id: str, *tables: pa.Table, **fields: Any) -> StagedJob:
        """A job with one artifact a table, named t0, t1 …; fields as in `Staging.submit`.

        `keys`: a logical key for each table; `entries`: ArtifactEntry fields for all of them.
        """
        codec = fields.pop("codec", "zstd")
        keys: Sequence[str | None] = fields.pop("keys", [None] * len(tables))
        entries = fields.pop("entries", {})
        with Staging(
            self.lake,
            run_id=fields.pop("run_id", "run-1"),
            producer=fields.pop("producer", "tests"),
            kind=fields.pop("kind", KIND),
            job_id=job_id,
            options=ParquetOptions(compression=codec),
        ) as staging:
            for index, (data, key) in enumerate(zip(tables, keys, strict=True)):
                staging.add(data, name=f"t{index}", logical_key=key, **entries)
            return staging.submit(**fields)

    def judged(self, found: Verdict, files: dict[str, bytes] | None = None) -> Path:
        """Put a job into ready/ as if a validator had judged it; its objects are stored."""
        path = self.lake.ready / found.job_id
        path.mkdir()
        if files is None:
            files = {a.relpath: _bytes_of(a) for a in found.artifacts}
        for relpath, data in files.items():
            disk.write_plain(path / relpath, data, 0o444)
            target = self.lake.object_path(sha256(data))
            target.parent.mkdir(exist_ok=True)
            disk.link_new(path / relpath, target)
        manifest = manifest_of(found).to_bytes()
        disk.write_plain(path / MANIFEST, manifest)
        complete = found.model_copy(update={"manifest_sha256": sha256(manifest)})
        disk.write_plain(path / VERDICT, complete.to_bytes())
        return path

    # ── working ───────────────────────────────────────────────────────────────────────────────

    def judge(self) -> None:
        """Steps 3 to 6 for all that waits in the inbox."""
        Intake(self.lake, self.settings, self.registry).drain()

    def writer(self, **options: Any) -> Writer:
        """The writer of this lake, open; the caller closes it."""
        options.setdefault("announce", self.answers.extend)
        return Writer.open(self.lake, self.settings, self.registry, **options)

    def commit(self) -> DrainResult:
        """Steps 7 to 11 for all that waits in ready/, by a writer that has just started."""
        with self.writer() as writer:
            return writer.drain()

    def run(self) -> None:
        """Everything that waits, through the whole pipeline."""
        self.judge()
        self.commit()

    # ── looking ───────────────────────────────────────────────────────────────────────────────

    def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        """A query of manifest.sqlite."""
        with closing(Manifest.read(self.lake)) as manifest:
            return manifest.rows(sql, params)

    def records(self) -> list[CommitRecord]:
        """The journal."""
        journal = Journal(self.lake)
        commits = (journal.read(seq) for seq in journal.numbers())
        return [commit.record for commit in commits if commit is not None]

    def state(self, job_id: str) -> JobState:
        return self.lake.state_of(job_id)

    def receipt(self, job_id: str) -> Receipt:
        """The newest receipt of a job."""
        path = self.lake.submissions(JobState.COMMITTED, job_id)[-1]
        return Receipt.from_bytes((path / RECEIPT).read_bytes())

    def reason(self, job_id: str) -> RejectReason:
        """The newest rejection of a job."""
        path = self.lake.submissions(JobState.REJECTED, job_id)[-1]
        return RejectReason.from_bytes((path / REJECT_REASON).read_bytes())

    def codes(self, job_id: str) -> list[str]:
        return [p.code for p in self.reason(job_id).problems]

    def links(self) -> set[str]:
        """The ids whose Parquet `canon.*` reads."""
        return {p.stem for p in self.lake.artifacts.glob("*/v*/*.parquet") if "-" in p.stem}


class Log:
    """In the place of a module's `log`: what it says, at whatever level other tests let it speak."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.said.append({"event": event, **fields})

    warning = info

    @classmethod
    @contextmanager
    def of(cls, module: ModuleType) -> Iterator[list[dict[str, Any]]]:
        """What is said within the block."""
        log = cls()
        before, vars(module)["log"] = vars(module)["log"], log
        try:
            yield log.said
        finally:
            vars(module)["log"] = before


class LightCatalog:
    """In the place of `bus.catalog.Catalog` where a test is about the writer: 200 times faster."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self.applied_seq = 0

    @classmethod
    def open(cls, lake: Lake, *_: object) -> Self:
        return cls(lake)

    def catch_up(self, manifest: Manifest) -> int:
        self.applied_seq = manifest.applied[0]
        return self.applied_seq

    def publish(self, still_ours: Callable[[], bool]) -> bool:
        disk.crash_point("views.built")
        if still_ours():
            disk.replace_view(self._lake.catalog_db, b"%d" % self.applied_seq)
        return still_ours()

    def close(self) -> None:
        pass

    @staticmethod
    def delete(lake: Lake) -> None:
        disk.remove(lake.catalog_db)


def manifest_of(found: Verdict) -> JobManifest:
    """A manifest that such a verdict could have judged."""
    entries: Iterable[ArtifactEntry] = (
        ArtifactEntry(artifact_id=a.name, relpath=a.relpath) for a in found.artifacts
    )
    return (
        JobManifest(
            job_id=found.job_id,
            run_id=found.run_id or "run-1",
            producer=found.producer or "tests",
            kind=found.kind or KIND,
            created_at_utc=utc_now(),
            artifacts=list(entries),
            mutations=found.mutations,
            after=found.after,
            meta={"for": "a test"},
        )
        if found.artifacts or found.mutations
        else JobManifest.model_construct(job_id=found.job_id)  # type: ignore[call-arg]  # a broken one
    )


def _bytes_of(found: ArtifactFacts) -> bytes:
    """The bytes that `facts` described."""
    number = int(found.content_hash.removeprefix("ch1:"), 16)
    for codec in ("snappy", "zstd", "none"):
        if found.file_hash == f"sha256:{sha256(parquet(number, codec))}":
            return parquet(number, codec)
    raise AssertionError(found)
