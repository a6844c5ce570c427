"""Step 4: a job directory is read in full and judged.

`judge` opens every listed file safely, takes away the right to write it, makes sure that nobody
still does, hashes the very bytes it reads, and holds them against manifest and contract. All
problems of all files are in the verdict. What goes wrong because of *us* (a full disk, no memory)
is raised, never a rejection.

Most files are judged in the calling process. One that is large or unusual, or that was dropped by
a death, is judged by `judge_in_child`: there it may crash, hang or eat memory without harm.
"""

from __future__ import annotations

import json
import os
import secrets
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bus import disk
from bus.attempt import Limits, run_limited
from bus.errors import Code, Problem, problem
from bus.hashing import file_hash
from bus.model import ArtifactFacts, ProblemDoc, Verdict, iso, utc_now
from bus.objects import JudgedFile
from bus.readiness import lacks_its_end, quiet_for_s
from bus.remarks import redacted, warnings_of
from bus.submission import (
    Submission,
    entry_place,
    is_producers_fault,
    read_submission,
    relpath_fault,
    unchanged,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bus.contract import Spec
    from bus.lake import Lake
    from bus.model import ArtifactEntry, JobManifest
    from bus.settings import Settings
    from bus.specs import Registry

#: A file that somebody has open for writing is looked at again after this.
_STILL_OPEN_S = 2.0
_WALL_S = 60.0
_WALL_BYTES_PER_S = 20e6
#: A table that decodes to more than so many times its size gets no more time for it.
_WALL_EXPANSION = 20
#: What the sort of a table that does not fit in memory may write, at least.
_MIN_FILE_LIMIT_BYTES = 1 << 30


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

    def work(note: Callable[[str], None]) -> bytes:
        try:
            with _Court(directory, lake, settings, registry, note=note) as court:
                return court.judge(None).to_bytes()
        except NotYetError as error:
            return json.dumps({"not_yet_s": error.delay_s}).encode()
        except OSError as error:
            return json.dumps({"fault": str(error)}).encode()

    answer = json.loads(run_limited(work, limits_for(directory, settings)))
    if "not_yet_s" in answer:
        raise NotYetError(answer["not_yet_s"])
    if "fault" in answer:
        raise OurFaultError(answer["fault"])
    files = [JudgedFile(**file) for file in answer["files"]]
    return Judgement(Verdict.model_validate(answer["verdict"]), files)


def limits_for(directory: Path, settings: Settings) -> Limits:
    """60 s, and 1 s for each 20 MB of the job's files; memory as the settings say."""
    size_bytes = sum(p.lstat().st_size for p in directory.rglob("*"))
    return Limits(
        memory_bytes=settings.validator_memory_bytes,
        wall_s=_WALL_S + size_bytes / _WALL_BYTES_PER_S,
        file_bytes=max(_MIN_FILE_LIMIT_BYTES, _WALL_EXPANSION * size_bytes),
    )


def crashed(directory: Path, ends: list[str]) -> Judgement:
    """The rejection of a job whose every attempt brought the validator down (E303)."""
    with _open(directory) as opened:
        submission = read_submission(opened.fd, directory.name)
    message = f"{len(ends)} attempts ended: {'; '.join(ends)}"
    found = [*submission.problems, problem(Code.E303, _last_place(ends), message)]
    return Judgement(_verdict(submission, directory.name, found), [])


class _Court:
    """One job before the judge: its open directory, and what was found so far."""

    def __init__(
        self,
        directory: Path,
        lake: Lake,
        settings: Settings,
        registry: Registry,
        *,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self._directory = directory
        self._lake = lake
        self._settings = settings
        self._registry = registry
        self._note = note
        self._problems: list[Problem] = []
        self._facts: list[ArtifactFacts] = []
        self._files: list[JudgedFile] = []
        self._decoded_bytes = 0
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._directory_fd = os.open(directory, flags)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._directory_fd)

    def judge(self, known: Submission | None) -> Judgement:
        """The verdict on manifest and files together."""
        self._submission = known
        if known is None or not is_unchanged(self._directory_fd, known):
            self._submission = read_submission(self._directory_fd, self._directory.name)
        manifest = submission.manifest
        if manifest is None:
            return Judgement(_verdict(submission, self._directory.name, submission.problems), [])
        for index, entry in enumerate(manifest.artifacts):
            self._artifact(manifest, index, entry)
        problems = [*submission.problems, *self._problems]
        verdict = _verdict(submission, self._directory.name, problems)
        if problems:
            return Judgement(verdict, [])
        return Judgement(self._accepted(verdict, manifest), self._files)

    def _accepted(self, verdict: Verdict, manifest: JobManifest) -> Verdict:
        meta, secrets_at = redacted(manifest.meta)
        hashes = {facts.name: facts.content_hash for facts in self._facts}
        return verdict.model_copy(
            update={
                "accepted": True,
                "job_digest": manifest.digest(hashes),
                "artifacts": self._facts,
                "mutations": manifest.mutations,
                "after": manifest.after,
                "meta": meta,
                "warnings": list(warnings_of(self._directory_fd, manifest, secrets_at)),
            }
        )
