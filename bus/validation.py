"""Step 4: a job directory is read in full and judged.

`judge` opens every listed file safely, takes away the right to write it, makes sure that nobody
still does, hashes the very bytes it reads, and holds them against manifest and contract. All
problems of all files are in the verdict. What goes wrong because of *us* (a full disk, no memory)
is raised, never a rejection.

Most files are judged in the calling process. One that is large or unusual, or that was dropped by
a death, is judged by `judge_in_child`: there it may crash, hang or eat memory without harm.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import tempfile
import time
import uuid
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

from bus import disk
from bus.attempt import STARTS_DUCKDB, AttemptEndedError, Limits, run_limited
from bus.errors import MAX_PROBLEMS, Code, Problem, Rejected, problem
from bus.hashing import OutOfOrder, file_hash
from bus.lake import MANIFEST
from bus.model import DUCKDB_UNREADABLE, ArtifactFacts, ProblemDoc, Verdict, iso, utc_now
from bus.objects import JudgedFile
from bus.parquet import Limits as ParquetLimits, is_odd, open_parquet
from bus.readiness import lacks_its_end, quiet_for_s
from bus.remarks import redacted, warnings_of
from bus.submission import (
    Submission,
    entry_place,
    is_producers_fault,
    is_unchanged,
    read_submission,
    relpath_fault,
)
from bus.table import TableFacts, TablePass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pyarrow as pa

    from bus.contract import Spec
    from bus.hashing import HashPlan
    from bus.lake import Lake
    from bus.model import ArtifactEntry, JobManifest
    from bus.parquet import ParquetSource
    from bus.settings import Settings
    from bus.specs import Registry

#: A file that somebody has open for writing is looked at again after this.
_STILL_OPEN_S = 2.0
#: The time that a child has: so much, and a second for each 20 MB that the files may decode to. A
#: shuffled table takes a fifth of that on an idle core, and half of it on a busy machine (measured).
_WALL_S = 60.0
_WALL_BYTES_PER_S = 20e6
_USUAL_EXPANSION = 5
#: What the sort of a table that does not fit in memory may write into one file.
_MIN_FILE_LIMIT_BYTES = 1 << 30
_SORT_EXPANSION = 20
#: What the pool's process reads itself: files that declare to decode to no more than this, in jobs
#: that come to no more than this, without nested columns.
_LIGHT_FILE_BYTES = 64 << 20
_LIGHT_JOB_BYTES = 1 << 30
_LIGHT_COLUMNS = 500
SORT_PREFIX = "sort-"
#: What a verdict repeats of the manifest.
_SAID = {"run_id", "producer", "kind", "created_at_utc", "provenance"}


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and the files it read (none when the job is rejected)."""

    verdict: Verdict
    files: list[JudgedFile]

    def to_bytes(self) -> bytes:
        """One line of JSON, for the pipe between child and parent."""
        files = json.dumps([asdict(file) for file in self.files]).encode()
        return b'{"verdict":' + self.verdict.to_bytes() + b',"files":' + files + b"}"


class NotYetError(Exception):
    """The job cannot be judged now, through nobody's fault: look again after `delay_s`."""

    def __init__(self, delay_s: float) -> None:
        super().__init__(f"look again in {delay_s} s")
        self.delay_s = delay_s


class NeedsChildError(Exception):
    """The job is too large or too unusual for the pool's process: use `judge_in_child`."""


class OurFaultError(Exception):
    """A child met a fault of ours (a full disk …), as its text says."""


def judge(
    directory: Path,
    lake: Lake,
    settings: Settings,
    registry: Registry,
    *,
    submission: Submission | None = None,
) -> Judgement:
    """Judge the job in `directory`, in this process.

    `submission`: what was read of it before it was claimed, to spare a second parsing. Changes
    nothing outside the directory; in it, files become read-only and hard links become copies.
    Raises `NotYetError`, `NeedsChildError`, OSError and MemoryError.
    """
    with _Court(directory, lake, settings, registry) as court:
        return court.judge(submission)


def judge_in_child(
    directory: Path, lake: Lake, settings: Settings, registry: Registry
) -> Judgement:
    """Judge the job in a forked child with limits of its own.

    Raises `AttemptEndedError` when the child did not survive it, `NotYetError`, `OurFaultError`.
    """
    limits = limits_for(directory, settings)
    with tempfile.TemporaryDirectory(prefix=SORT_PREFIX, dir=lake.run) as sort_dir:

        def work(note: Callable[[str], None]) -> bytes:
            # A quarter for the sort: with what is read and hashed beside it that stays under a half.
            lent = _Child(note, Path(sort_dir), settings.validator_memory_bytes // 4, limits)
            try:
                with _Court(directory, lake, settings, registry, lent) as court:
                    return court.judge(None).to_bytes()
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - it must reach the parent, whatever it is
                return json.dumps(_instead(error)).encode()

        try:
            answer = json.loads(run_limited(work, limits))
        except AttemptEndedError as ended:
            if ended.is_ours:
                raise OurFaultError(str(ended)) from None
            raise
    match answer:
        case {"not_yet_s": delay_s}:
            raise NotYetError(delay_s)
        case {"fault": text}:
            raise OurFaultError(text)
        case {"defect": text}:
            raise AttemptEndedError(text, "")
    files = [JudgedFile(**file) for file in answer["files"]]
    return Judgement(Verdict.model_validate(answer["verdict"]), files)


def _instead(error: Exception) -> dict[str, Any]:
    """What a child answers that could not judge."""
    match error:
        case NotYetError():
            return {"not_yet_s": error.delay_s}
        case AttemptEndedError():  # of a child of its own
            return {"defect": str(error)}
    text = f"{type(error).__name__}: {error}"[:500]
    ours = isinstance(error, OSError) or "No space left" in text
    return {"fault" if ours else "defect": text}


def limits_for(directory: Path, settings: Settings) -> Limits:
    """What a child may use for this job: time and disk by the size of its files."""
    size_bytes = sum(path.lstat().st_size for path in directory.rglob("*"))
    return Limits(
        memory_bytes=settings.validator_memory_bytes,
        wall_s=_WALL_S + _USUAL_EXPANSION * size_bytes / _WALL_BYTES_PER_S,
        file_bytes=max(_MIN_FILE_LIMIT_BYTES, _SORT_EXPANSION * size_bytes),
    )


def crashed(directory: Path, ends: list[str]) -> Judgement:
    """The rejection of a job whose every attempt brought the validator down (E303)."""
    directory_fd = _open_directory(directory)
    try:
        submission = read_submission(directory_fd, directory.name)
    finally:
        os.close(directory_fd)
    place = ends[-1].rpartition(" at ")[2] if " at " in ends[-1] else MANIFEST
    message = f"{len(ends)} attempts ended: {'; '.join(ends)}"
    found = [*submission.problems, problem(Code.E303, place, message)]
    return Judgement(_verdict(submission, directory.name, found), [])


def _open_directory(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _verdict(
    submission: Submission, job_id: str, problems: Sequence[Problem], **facts: Any
) -> Verdict:
    """A verdict with what the submission says about itself; `facts` where it is accepted."""
    manifest = submission.manifest
    said = submission.claims if manifest is None else manifest.model_dump(include=_SAID)
    return Verdict(
        verdict_id=_fresh_id(),
        job_id=job_id,
        submission_id=submission.submission_id,
        manifest_sha256=submission.manifest_sha256,
        accepted=not problems,
        judged_at_utc=iso(utc_now()),
        problems=[ProblemDoc(**found.as_dict()) for found in _bounded(problems)],
        **(said | facts),
    )


def _fresh_id() -> str:
    """An id that sorts after those of earlier milliseconds: an index of them grows at its end.

    RFC 9562, section 5.7 (UUID version 7).
    """
    moment = (time.time_ns() // 1_000_000) << 80
    version, variant = 0x7 << 76, 0x2 << 62
    return uuid.UUID(
        int=moment | version | secrets.randbits(12) << 64 | variant | secrets.randbits(62)
    ).hex


def _bounded(problems: Sequence[Problem]) -> Iterator[Problem]:
    """As many problems as a verdict, and so the journal, takes; and that there are more."""
    yield from problems[:MAX_PROBLEMS]
    if len(problems) > MAX_PROBLEMS:
        yield problem(Code.E107, MANIFEST, f"there are more than {MAX_PROBLEMS:,} problems")


# ── one job ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Child:
    """What a child is lent: a way to say what it is at, and room for a sort on disk."""

    note: Callable[[str], None]
    sort_dir: Path
    sort_memory_bytes: int
    limits: Limits


class _Court:
    """One job before the judge: its open directory, and what was found so far."""

    def __init__(
        self,
        directory: Path,
        lake: Lake,
        settings: Settings,
        registry: Registry,
        child: _Child | None = None,
    ) -> None:
        self._directory = directory
        self._lake = lake
        self._settings = settings
        self._registry = registry
        self._child = child
        self._self_contained = False
        self._problems: list[Problem] = []
        self._facts: list[ArtifactFacts] = []
        self._files: list[JudgedFile] = []
        self._unreadable: dict[str, str] = {}
        self._declared_bytes = 0
        self._directory_fd = _open_directory(directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._directory_fd)

    def judge(self, known: Submission | None) -> Judgement:
        """The verdict on manifest and files together."""
        submission = known
        if submission is None or not is_unchanged(self._directory_fd, submission):
            submission = read_submission(self._directory_fd, self._directory.name)
        self._self_contained = submission.self_contained
        manifest = submission.manifest
        if manifest is not None:
            for index, entry in enumerate(manifest.artifacts):
                if len(self._problems) > MAX_PROBLEMS:
                    break  # whoever mends those will submit again anyway
                self._artifact(manifest, index, entry)
        problems = [*submission.problems, *self._problems]
        if manifest is None or problems:
            return Judgement(_verdict(submission, self._directory.name, problems), [])
        facts = self._accepted(manifest)
        return Judgement(_verdict(submission, self._directory.name, [], **facts), self._files)

    def _accepted(self, manifest: JobManifest) -> dict[str, Any]:
        """What only the verdict on an accepted job says."""
        meta, secrets_at = redacted(manifest.meta)
        hashes = {facts.name: facts.content_hash for facts in self._facts}
        return {
            "job_digest": manifest.digest(hashes),
            "artifacts": self._facts,
            "mutations": manifest.mutations,
            "after": manifest.after,
            "meta": meta,
            "warnings": list(warnings_of(self._directory_fd, manifest, secrets_at)),
        }

    # ── one artifact ──────────────────────────────────────────────────────────────────────────

    def _artifact(self, manifest: JobManifest, index: int, entry: ArtifactEntry) -> None:
        kind = manifest.kind_of(entry)
        spec = self._registry.find(kind, entry.schema_version)
        before = len(self._problems)
        self._problems += self._contract_problems(kind, spec, index, entry)
        if relpath_fault(entry.relpath) is not None or entry.format != "parquet":
            return  # said already, by the submission
        if self._child is not None:
            self._child.note(entry.relpath)
        try:
            fd = self._settled(entry.relpath)
            try:
                file, table = self._read(fd, entry, spec)
            finally:
                os.close(fd)
        except Rejected as refused:
            self._problems += refused.problems
            return
        if len(self._problems) == before:
            self._files.append(file)
            facts = _facts(manifest, entry, spec, file, table)
            if spec is None:
                near = self._registry.near(kind)
                meant = f": did you mean {near!r}?" if near else ""
                facts.warnings.insert(0, f"generic_kind{meant}")
            if unreadable := self._unreadable.get(entry.relpath):
                facts.warnings.append(unreadable)
            self._facts.append(facts)

    def _contract_problems(
        self, kind: str, spec: Spec | None, index: int, entry: ArtifactEntry
    ) -> Iterator[Problem]:
        place = entry_place(index)
        versions = self._registry.versions(kind)
        if spec is None and versions:
            message = f"{kind} has version {', '.join(map(str, versions))}"
            found = f"{message}, not {entry.schema_version}"
            yield problem(Code.E207, f"{place}.schema_version", found)
        elif spec is None and self._settings.strict_kinds:
            near = self._registry.near(kind)
            hint = f"Did you mean {near!r}? {Code.E201.hint}" if near else None
            yield problem(Code.E201, f"{place}.kind", f"no contract for kind {kind!r}", hint)
        elif spec is not None:
            yield from spec.undeclared(entry.inputs, place)

    # ── one file ──────────────────────────────────────────────────────────────────────────────

    def _settled(self, relpath: str) -> int:
        """The file, open, read-only for everybody, under this name alone, and nobody writing it.

        The order matters: first the right to open it for writing goes, then the lease tells
        whether someone had done so before. Raises `Rejected`, `NotYetError`.
        """
        fd = self._opened(relpath)
        try:
            shared = os.fstat(fd).st_nlink > 1 or not disk.make_read_only(fd)
            if not disk.try_read_lease(fd):
                self._wait_or_refuse(relpath)
            if not shared or self._is_our_object(fd):
                return fd
            self._adopt(fd, relpath)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return self._settled(relpath)

    def _opened(self, relpath: str) -> int:
        try:
            return disk.open_foreign(self._directory_fd, relpath)
        except FileNotFoundError:
            code = Code.E301 if self._self_contained else Code.E306
            raise Rejected("there is no such file", code=code, where=relpath) from None
        except OSError as error:
            if not is_producers_fault(error):
                raise
            why = error.strerror or "not a regular file"
            raise Rejected(why, code=Code.E302, where=relpath) from None

    def _wait_or_refuse(self, relpath: str) -> NoReturn:
        quiet_s = quiet_for_s(self._directory_fd)
        if quiet_s < self._settings.incomplete_after_s:
            raise NotYetError(_STILL_OPEN_S)
        message = (
            f"some program has it open for writing, and has changed nothing for {quiet_s:.0f} s"
        )
        raise Rejected(message, code=Code.E316, where=relpath)

    def _is_our_object(self, fd: int) -> bool:
        """Whether the file's other name is the object that an earlier try made of it."""
        sha256 = file_hash(fd).removeprefix("sha256:")
        try:
            theirs = self._lake.object_path(sha256).stat()
        except FileNotFoundError:
            return False
        ours = os.fstat(fd)
        return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)

    def _adopt(self, fd: int, relpath: str) -> None:
        """Put a copy of ours in the place of a file that has other names or another owner."""
        path = self._directory / relpath
        name = f".bus-copy-{secrets.token_hex(8)}"
        temporary = path.parent / name
        disk.copy_file(Path(f"/proc/self/fd/{fd}"), temporary)
        disk.replace(temporary, path)

    def _read(
        self, fd: int, entry: ArtifactEntry, spec: Spec | None
    ) -> tuple[JudgedFile, TableFacts]:
        """Hash and read every byte; claims of the manifest are held against what was read."""
        seen = os.fstat(fd)  # before the first byte: whatever changes later moves its ctime
        where = entry.relpath
        if not self._self_contained and lacks_its_end(fd):
            message = "empty, or only the beginning of a Parquet file"
            raise Rejected(message, code=Code.E306, where=where)
        # The footer first: of ten sparse gigabytes nobody needs the hash.
        source = self._source(fd, entry, seen.st_size)
        sha256 = file_hash(fd).removeprefix("sha256:")
        self._problems += _claim_problems(entry, seen.st_size, sha256)
        table = self._table(source, where, spec)
        self._problems += table.problems
        if self._child is not None and not table.problems:
            self._note_duckdb(fd, source, entry, self._child)
        if entry.rows is not None and entry.rows != table.rows:
            message = f"the manifest says {entry.rows:,} rows, the file has {table.rows:,}"
            self._problems.append(problem(Code.E305, where, message))
        file = JudgedFile(where, sha256, seen.st_dev, seen.st_ino, seen.st_size, seen.st_ctime_ns)
        return file, table

    def _source(self, fd: int, entry: ArtifactEntry, size_bytes: int) -> ParquetSource:
        """The file's footer, if it is acceptable. Raises `Rejected`, `NeedsChildError`."""
        limits = ParquetLimits(max_decoded_bytes=self._settings.max_decoded_bytes)
        try:
            source = open_parquet(fd, size_bytes, limits, entry.relpath)
        except Rejected:
            if size_bytes <= _LIGHT_FILE_BYTES:  # tells damage on the way from a writer's mistake
                sha256 = file_hash(fd).removeprefix("sha256:")
                self._problems += _claim_problems(entry, size_bytes, sha256)
            raise
        self._declared_bytes += source.declared_bytes
        if self._child is None and not self._is_light(source):
            raise NeedsChildError(entry.relpath)
        return source

    def _table(self, source: ParquetSource, where: str, spec: Spec | None) -> TableFacts:
        table_pass = TablePass(source, where, spec, self._child.sort_dir if self._child else None)
        table = table_pass.run()
        if table.problems:
            return table
        try:
            table.content_hash = table_pass.content_hash()
        except OutOfOrder:
            if self._child is None:
                raise NeedsChildError(where) from None
            table.content_hash = _sorted_hash(source, table_pass.plan, self._child, where)
        return table

    def _note_duckdb(
        self, fd: int, source: ParquetSource, entry: ArtifactEntry, child: _Child
    ) -> None:
        """Note what only pyarrow can read: DuckDB's views must leave it out."""
        if not is_odd(source):
            return
        with _loading():
            from bus import second_reader  # noqa: PLC0415 - imports DuckDB: only ever in a child

        fault = second_reader.duckdb_fault(
            fd, entry.relpath, child.sort_dir, child.sort_memory_bytes, child.limits
        )
        if fault is not None:
            self._unreadable[entry.relpath] = f"{DUCKDB_UNREADABLE}: {fault}"

    def _is_light(self, source: ParquetSource) -> bool:
        """Whether the pool's process may read it: small, flat, narrow, as are those before it."""
        return (
            source.declared_bytes <= _LIGHT_FILE_BYTES
            and self._declared_bytes <= _LIGHT_JOB_BYTES
            and len(source.schema) <= _LIGHT_COLUMNS
            and not is_odd(source)
        )


@contextmanager
def _loading() -> Iterator[None]:
    """Load what only a child needs. That it cannot be is never the job's fault: an OSError."""
    try:
        yield
    except ImportError as error:
        raise OSError(errno.EIO, str(error)) from error


def _sorted_hash(source: ParquetSource, plan: HashPlan | None, child: _Child, where: str) -> str:
    """The content hash of a table that neither fits in memory nor comes in order."""
    with _loading():
        from bus.hashing import out_of_core  # noqa: PLC0415 - imports DuckDB: only ever in a child

    def batches() -> Iterator[pa.RecordBatch]:
        child.note(where)  # DuckDB has started, and asks for the first
        yield from source.batches()

    child.note(STARTS_DUCKDB)
    return out_of_core.content_hash(
        batches(),
        source.schema,
        plan,
        temp_dir=child.sort_dir,
        memory_limit_bytes=child.sort_memory_bytes,
    )


def _claim_problems(entry: ArtifactEntry, size_bytes: int, sha256: str) -> Iterator[Problem]:
    if entry.size_bytes is not None and entry.size_bytes != size_bytes:
        message = f"the manifest says {entry.size_bytes:,} bytes, the file has {size_bytes:,}"
        yield problem(Code.E304, entry.relpath, message)
    elif entry.sha256 is not None and entry.sha256 != sha256:
        message = f"the manifest says {entry.sha256}, the file has {sha256}"
        yield problem(Code.E304, entry.relpath, message)


def _facts(
    manifest: JobManifest,
    entry: ArtifactEntry,
    spec: Spec | None,
    file: JudgedFile,
    table: TableFacts,
) -> ArtifactFacts:
    kind = manifest.kind_of(entry)
    file_hash_text = f"sha256:{file.sha256}"
    return ArtifactFacts(
        name=entry.artifact_id,
        kind=kind,
        schema_version=entry.schema_version,
        logical_key=manifest.key_of(entry),
        relpath=entry.relpath,
        file_hash=file_hash_text,
        content_hash=table.content_hash or f"file:{file_hash_text}",
        size_bytes=file.size_bytes,
        rows=table.rows,
        columns=table.columns,
        column_stats=table.column_stats,
        min_ts=table.min_ts,
        max_ts=table.max_ts,
        schema_hint=entry.schema_hint,
        inputs=entry.inputs,
        tags=entry.tags,
        supersedes=entry.supersedes,
        generic=spec is None,
        contract="" if spec is None or spec.open else spec.fingerprint,
        warnings=list(_artifact_warnings(kind, entry, table)),
    )


def _artifact_warnings(kind: str, entry: ArtifactEntry, table: TableFacts) -> Iterator[str]:
    if table.content_hash is None:
        yield "unhashable_type"
    hint = entry.schema_hint or ""
    if hint.startswith("canon.") and hint.removeprefix("canon.") != kind:
        yield f"schema_hint_differs: {hint} for kind {kind}"
