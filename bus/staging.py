"""Step 1: a producer builds a job in staging and renames it into the inbox, durably.

Everything is written below `inbox/.staging-*` and synced before the one rename that makes the job
visible whole. When `Staging.submit` returns, the job is acknowledged: it survives a power cut and
needs no broker. A producer that dies earlier leaves only a staging directory, swept after a day.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError
from pydantic_core import to_json

from bus import disk, strict_json
from bus.errors import Code, JobConflict, Refused, Unavailable
from bus.frames import ParquetOptions, check_file, write_parquet
from bus.hashing import file_hash
from bus.lake import COMMIT, MANIFEST
from bus.model import (
    ArtifactEntry,
    CommitMarker,
    JobManifest,
    iso,
    manifest_problems,
    utc_now,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from bus.contract import Spec
    from bus.lake import Lake
    from bus.specs import Registry


@dataclass(frozen=True, slots=True)
class StagedJob:
    """An acknowledged submission: it lies in the inbox, whole and durable."""

    job_id: str
    submission_id: str


@dataclass(slots=True)
class Staging:
    """A job under construction. Use as a context manager: an exception discards it.

    `job_id` defaults to `<time>__<producer>__<kind>__<8 hex>`, unique for each call. With a
    `registry`, what a contract refuses is refused here, before it costs anybody anything.
    `progress(rows, of)` is called while a table is written.
    """

    lake: Lake
    run_id: str
    producer: str
    kind: str
    job_id: str = ""
    options: ParquetOptions = field(default_factory=ParquetOptions)
    registry: Registry | None = None
    progress: Callable[[int, int | None], None] = lambda *_: None
    _path: Path = field(init=False)
    _entries: list[dict[str, Any]] = field(init=False, default_factory=list)
    _moved: list[tuple[Path, Path]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.job_id = self.job_id or new_job_id(self.producer, self.kind)
        with _told():
            try:
                self._path = self.lake.new_staging(self.job_id)
            except FileNotFoundError:
                self.lake.create()
                self._path = self.lake.new_staging(self.job_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()

    def add(self, data: Any, *, name: str | None = None, move: bool = False, **fields: Any) -> None:
        """Add one artifact: a table, or the path of a Parquet file.

        `data` is anything with the Arrow PyCapsule interface (pyarrow, pandas, polars, DuckDB
        relations, RecordBatchReader: streamed), a list of dicts, or a path, which is copied
        (`move` renames it instead, for temporary files). `fields` are those of
        `bus.model.ArtifactEntry`. Raises `Refused` (E601) for anything else, `Unavailable` when
        the disk is full (E504) or fails (E505).
        """
        with _told():
            self._add(data, name, fields, move=move)

    def _add(self, data: Any, name: str | None, fields: dict[str, Any], *, move: bool) -> None:
        label = name or fields.get("kind") or self.kind
        relpath = f"{len(self._entries):03d}.parquet"
        target = self._path / relpath
        rows: int | None = None
        spec = self._spec(fields)
        if isinstance(data, str | Path):
            if spec is not None:
                check_file(Path(data), spec, relpath)
            if _adopt(Path(data), target, move=move):
                self._moved.append((Path(data), target))
        else:
            rows = write_parquet(
                data, target, self.options, spec=spec, where=relpath, progress=self.progress
            )
        disk.sync_file(target)
        entry = {
            "artifact_id": label,
            "format": "parquet",
            "relpath": relpath,
            "size_bytes": target.stat().st_size,
            "sha256": file_hash(target),
            "rows": rows,
        }
        self._entries.append(entry | {k: v for k, v in fields.items() if v is not None})

    def _spec(self, fields: dict[str, Any]) -> Spec | None:
        """The contract that the validator will hold the artifact against, where we know it."""
        if self.registry is None:
            return None
        spec = self.registry.find(fields.get("kind") or self.kind, fields.get("schema_version", 1))
        return None if spec is None or spec.open else spec

    def submit(self, *, meta: dict[str, Any] | None = None, **fields: Any) -> StagedJob:
        """Write manifest and COMMIT and rename the job into the inbox; durable on return.

        `fields` are those of `bus.model.JobManifest`. Raises `Refused` with every problem of the
        manifest, `JobConflict` (E105) when another job of that id waits in the inbox; the same
        job again is acknowledged without a second copy. Raises `Unavailable` when the disk is full
        (E504) or fails (E505): then nothing was acknowledged.
        """
        with _told():
            return self._submit(meta or {}, fields)

    def _submit(self, meta: dict[str, Any], fields: dict[str, Any]) -> StagedJob:
        disk.crash_point("stage.files")
        manifest = self._manifest(meta, fields)
        data = manifest.to_bytes()
        digest = disk.sha256_of(data)
        marker = CommitMarker(manifest_sha256=digest, submission_id=secrets.token_hex(12))
        disk.write_durable(self._path / MANIFEST, data)
        disk.write_durable(self._path / COMMIT, marker.to_bytes())
        disk.crash_point("stage.manifest")
        try:
            waiting = self._publish(manifest)
        except JobConflict:
            self.discard()
            raise
        return waiting or StagedJob(self.job_id, marker.submission_id)

    def _publish(self, manifest: JobManifest) -> StagedJob | None:
        """Rename into the inbox; the equal job that waits there already, if one does."""
        while True:
            try:
                self.lake.publish_staged(self._path, self.job_id)
            except JobConflict:
                waiting = self._same_job_waiting(manifest)
                if waiting is not None:
                    self.discard()
                    return waiting
                if os.path.lexists(self.lake.inbox / self.job_id):
                    raise
                continue  # a validator took it while we looked: there is room now
            return None

    def discard(self) -> None:
        """Throw the unfinished job away; a file that was moved here goes back to its place."""
        with _told():
            for source, target in self._moved:
                if target.exists() and not source.exists():
                    _give_back(target, source)
        with suppress(OSError):  # on a failing disk; what is left is swept after a day
            disk.remove_tree(self._path)

    def _manifest(self, meta: dict[str, Any], fields: dict[str, Any]) -> JobManifest:
        document = {
            "job_id": self.job_id,
            "run_id": self.run_id,
            "producer": self.producer,
            "kind": self.kind,
            "created_at_utc": iso(utc_now()),
            "artifacts": self._entries,
            "meta": meta,
        } | {k: v for k, v in fields.items() if v is not None}
        try:
            manifest = JobManifest.model_validate(document)
            strict_json.loads(manifest.to_bytes(), where=MANIFEST)
            # pydantic writes NaN as null: what a producer means must not change on the way.
            strict_json.loads(to_json(meta, inf_nan_mode="constants"), where=f"{MANIFEST}.meta")
        except ValidationError as error:
            raise Refused.of(manifest_problems(error)) from None
        except strict_json.StrictJsonError as error:
            raise Refused.of([error.problem]) from None
        return manifest

    def _same_job_waiting(self, manifest: JobManifest) -> StagedJob | None:
        """The job of our id that waits in the inbox, when it holds the same files and fields."""
        there = self.lake.inbox / self.job_id
        try:
            theirs = JobManifest.from_bytes((there / MANIFEST).read_bytes())
            marker = CommitMarker.from_bytes((there / COMMIT).read_bytes())
        except (OSError, ValidationError):
            return None
        if theirs.digest(_files(theirs.artifacts)) != manifest.digest(_files(manifest.artifacts)):
            return None
        disk.sync_dir(self.lake.inbox)
        return StagedJob(self.job_id, marker.submission_id)


@contextmanager
def _told() -> Iterator[None]:
    """What the operating system refuses is told as `Unavailable`, with a code and a hint."""
    try:
        yield
    except OSError as error:
        raise Unavailable.of_system(error) from error


def new_job_id(producer: str, kind: str) -> str:
    """`2026-01-08T05-12-33Z__baseline__alerts__1f3a9c0e`: sorts by time, never repeats."""
    moment = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
    return f"{moment}__{producer}__{kind}"[:118] + f"__{secrets.token_hex(4)}"


def _files(entries: list[ArtifactEntry]) -> dict[str, str]:
    return {entry.artifact_id: entry.sha256 or "" for entry in entries}


def _adopt(source: Path, target: Path, *, move: bool) -> bool:
    """Copy a file into the job, or move it there: then True, and `discard` must give it back."""
    if not source.is_file():
        raise Refused(f"no file {source}", code=Code.E301, where=str(source))
    if move:
        try:
            disk.move(source, target)
        except OSError:
            pass  # another file system: copy instead
        else:
            return True
    disk.copy_file(source, target)
    if move:
        disk.remove(source)
    return move


def _give_back(target: Path, source: Path) -> None:
    """Undo a move: it was the caller's only copy, and a full disk has no room for another."""
    try:
        disk.move(target, source)
    except OSError:  # it came from another file system
        disk.copy_file(target, source)
