"""Step 1: a producer builds a job in staging and renames it into the inbox, durably.

Everything is written below `inbox/.staging-*` and synced before the one rename that makes the job
visible whole. When `Staging.submit` returns, the job is acknowledged: it survives a power cut and
needs no broker. A producer that dies earlier leaves only a staging directory, swept after a day.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError
from pydantic_core import to_json

from bus import disk, strict_json
from bus.diagnosis import manifest_problems
from bus.errors import Code, JobConflict, Refused, Unavailable, problem
from bus.frames import ParquetOptions, Progress, check_file, write_parquet
from bus.hashing import file_hash
from bus.lake import COMMIT, MANIFEST
from bus.model import (
    ID_PATTERN,
    ArtifactEntry,
    CommitMarker,
    JobManifest,
    iso,
    utc_now,
)
from bus.submission import entry_place, tag_problems

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from bus.contract import Spec
    from bus.lake import Lake
    from bus.specs import Registry


_ID = re.compile(ID_PATTERN)

#: The run and the kind of jobs that the bus gives to itself.
MAINTENANCE = "maintenance"


@dataclass(frozen=True, slots=True)
class StagedJob:
    """An acknowledged submission: it lies in the inbox, whole and durable."""

    job_id: str
    submission_id: str


@dataclass(slots=True)
class Staging:
    """A job under construction. Use as a context manager: an exception discards it.

    `job_id` defaults to `<time>__<producer>__<kind>__<8 hex>`, unique for each call. `kind` may be
    empty where each artifact says its own. With a `registry`, what a contract refuses is refused
    here, before it costs anybody anything. `progress(rows, of)` is called while a table is written.
    """

    lake: Lake
    run_id: str
    producer: str
    kind: str
    job_id: str = ""
    options: ParquetOptions = field(default_factory=ParquetOptions)
    registry: Registry | None = None
    progress: Progress = lambda *_: None
    _path: Path = field(init=False)
    _entries: list[dict[str, Any]] = field(init=False, default_factory=list)
    _moved: list[tuple[Path, Path]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if not self.job_id:
            kind = self.kind or "tables"
            _refuse_unless_identifiers(producer=self.producer, kind=kind)
            self.job_id = new_job_id(self.producer, kind)
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
        `bus.model.ArtifactEntry`. Raises `Refused`: E601 for anything else and for a file that may
        not be read, E301 and E302 where there is no file, E304 for one that changes meanwhile,
        E2xx for what the contract refuses; `Unavailable` when the disk is full (E504) or fails
        (E505).
        """
        with _told():
            self._add(data, name, fields, move=move)

    def _add(self, data: Any, name: str | None, fields: dict[str, Any], *, move: bool) -> None:
        kind = fields.get("kind") or self.kind
        if not kind:
            raise Refused("what kind of table is it?", code=Code.E103, where="kind")
        relpath = f"{len(self._entries):03d}.parquet"
        target = self._path / relpath
        rows: int | None = None
        spec = self._spec(kind, fields.get("schema_version", 1))
        place = entry_place(len(self._entries))
        if spec is not None and (found := spec.undeclared(fields.get("inputs"), place)):
            raise Refused.of(found)
        if isinstance(data, str | Path):
            source = SourceFile(Path(data))
            if spec is not None:
                check_file(source.path, spec, relpath)
            if source.adopt(target, move=move):
                self._moved.append((source.path, target))
        else:
            rows = write_parquet(
                data, target, self.options, spec=spec, where=relpath, progress=self.progress
            )
        entry = {
            "artifact_id": name or kind,
            "format": "parquet",
            "relpath": relpath,
            "size_bytes": target.stat().st_size,
            "sha256": file_hash(target),
            "rows": rows,
        }
        self._entries.append(entry | {k: v for k, v in fields.items() if v is not None})

    def _spec(self, kind: str, version: int) -> Spec | None:
        """The contract that the validator will hold the artifact against, where we know it."""
        spec = self.registry.find(kind, version) if self.registry is not None else None
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
        disk.write_plain(self._path / MANIFEST, data)
        disk.write_plain(self._path / COMMIT, marker.to_bytes())
        relpaths = [entry["relpath"] for entry in self._entries]
        disk.sync_all([self._path / name for name in (*relpaths, MANIFEST, COMMIT)])
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
            "kind": self.kind or (self._entries[0].get("kind") if self._entries else None),
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
        if over := list(tag_problems(manifest)):
            raise Refused.of(over)
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


def stage_mutations(lake: Lake, producer: str, mutations: list[dict[str, Any]]) -> StagedJob:
    """A job of the bus's own, without tables: what the writer is asked to commit.

    It lies in the inbox when this returns; whoever runs a bus may ring for it, the sweep finds it.
    """
    with Staging(lake, MAINTENANCE, producer, MAINTENANCE) as job:
        return job.submit(mutations=mutations)


@contextmanager
def _told() -> Iterator[None]:
    """What the operating system refuses is told as `Unavailable`, with a code and a hint."""
    try:
        yield
    except OSError as error:
        raise Unavailable.of_system(error) from error


def _refuse_unless_identifiers(**words: Any) -> None:
    found = [
        problem(Code.E104, name, f"{word[:160]!r} is not an identifier")
        for name, word in words.items()
        if isinstance(word, str) and not _ID.fullmatch(word)  # other types: the manifest says so
    ]
    if found:
        raise Refused.of(found)


def new_job_id(producer: str, kind: str) -> str:
    """`2026-01-08T05-12-33Z__baseline__alerts__1f3a9c0e`: sorts by time, never repeats."""
    moment = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
    return f"{moment}__{producer}__{kind}"[:118] + f"__{secrets.token_hex(4)}"


def _files(entries: list[ArtifactEntry]) -> dict[str, str]:
    return {entry.artifact_id: entry.sha256 or "" for entry in entries}


@dataclass(slots=True)
class SourceFile:
    """A caller's file, as it was when we first looked.

    Raises `Refused`, also when it is made: E301 where there is none, E302 where it is no regular
    file, E601 where it may not be read.
    """

    path: Path
    _seen: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._seen = self._look()

    def _look(self) -> tuple[int, ...]:
        try:
            found = self.path.stat()
        except PermissionError as error:
            raise self._unreadable(error) from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise self._refused(Code.E301, f"no such file ({_reason(error)})") from None
        if not stat.S_ISREG(found.st_mode):
            raise self._refused(Code.E302, "a directory or a device, not a file")
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def adopt(self, target: Path, *, move: bool) -> bool:
        """Copy it into the job, or move it there: then True, and `discard` must give it back.

        Raises `Refused` (E304) when it changed since we first looked.
        """
        if move:
            try:
                disk.move(self.path, target)
            except OSError:
                pass  # another file system: copy instead
            else:
                return True
        try:
            disk.copy_file(self.path, target)
        except PermissionError as error:
            raise self._unreadable(error) from None
        if self._look() != self._seen:
            hint = "Submit it when it is complete."
            raise self._refused(Code.E304, "the file changed while it was copied", hint)
        if move:
            disk.remove(self.path)
        return move

    def _unreadable(self, error: OSError) -> Refused:
        hint = "Give the user who runs this the right to read it."
        return self._refused(Code.E601, _reason(error), hint)

    def _refused(self, code: Code, message: str, hint: str | None = None) -> Refused:
        return Refused(message, code=code, where=str(self.path)[:1000], hint=hint)


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", None) or error)


def _give_back(target: Path, source: Path) -> None:
    """Undo a move: it was the caller's only copy, and a full disk has no room for another."""
    try:
        disk.move(target, source)
    except OSError:  # it came from another file system
        disk.copy_file(target, source)
