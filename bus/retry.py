"""A retry: a rejected job goes back into the inbox and is judged afresh.

Its files stay as they are, corrected by hand or not. It gets a new COMMIT, which fits the manifest
that lies there now and carries a new submission id, so that nobody takes the old answer for the
new one; the bus's own documents are removed.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from bus import disk
from bus.claims import claim_path
from bus.errors import Code, JobConflict, NotFound, Refused
from bus.lake import COMMIT, MANIFEST, OUR_NAMES, REJECT_REASON
from bus.model import CommitMarker, JobState, RejectReason
from bus.submission import is_id

if TYPE_CHECKING:
    from pathlib import Path

    from bus.lake import Lake

_ON_THEIR_WAY = (JobState.STAGED, JobState.VALIDATING, JobState.READY)


@dataclass(frozen=True, slots=True)
class Retried:
    """A job that lies in the inbox again; `submission_id` None when it has no manifest."""

    job_id: str
    submission_id: str | None


def retry(lake: Lake, job_id: str) -> Retried:
    """Move the newest rejection of `job_id` back into the inbox; durable on return.

    `job_id` may also be the name of one directory in rejected/ (`<job>~2`). Whoever calls rings.

    Raises `NotFound` (E511) when nothing of that id was rejected, `Refused` (E104) when the
    directory's name can never be a job id, and `JobConflict` (E105) when a newer submission of it
    is on its way.
    """
    directory = _newest_rejection(lake, job_id)
    name = _job_of(directory)
    if not is_id(name):
        hint = f"Submit the files in {directory} under another job_id."
        raise Refused(f"{name[:160]!r} is not a job id", code=Code.E104, where="JOB", hint=hint)
    with disk.locked(claim_path(lake, name)) as claim:
        if claim is None or any((lake.state_dir(s) / name).exists() for s in _ON_THEIR_WAY):
            hint = f"Wait for its answer: bus wait {name}"
            raise JobConflict(f"a newer submission of {name} is on its way", where=name, hint=hint)
        # Nobody takes the job while we hold its claim. Dying in the middle loses nothing: it lies
        # either in rejected/ as before, or in the inbox, where validators set our documents aside.
        submission_id = _commit_anew(directory)
        lake.publish_staged(directory, name)
        disk.sync_dir(lake.rejected)
        for ours in OUR_NAMES:
            disk.remove(lake.inbox / name / ours)
        disk.sync_dir(lake.inbox / name)  # in work/ an old verdict would be taken for the new one
        disk.remove(claim.path)  # with the record of how earlier attempts ended
    return Retried(name, submission_id)


def is_name(text: str) -> bool:
    """Whether `text` names an entry of a directory, and nothing above or below it."""
    return bool(text) and "/" not in text and "\0" not in text and not text.startswith(".")


def _newest_rejection(lake: Lake, job_id: str) -> Path:
    found = lake.submissions(JobState.REJECTED, job_id) if is_name(job_id) else []
    # `a~2` is the second submission of `a`, unless a job calls itself so.
    found = [d for d in found if d.name == job_id or _job_of(d) == job_id]
    if not found:
        hint = "See `bus rejected` for what can be retried."
        raise NotFound(f"no rejected job {job_id[:160]!r}", where="JOB", hint=hint)
    return found[-1]


def _job_of(directory: Path) -> str:
    """Whose submission it is: `<job>~2` is the second one of `<job>`."""
    try:
        return RejectReason.from_bytes((directory / REJECT_REASON).read_bytes()).job_id
    except (OSError, ValidationError):
        return directory.name


def _commit_anew(directory: Path) -> str | None:
    """Write a COMMIT for the manifest that lies there now; its submission id."""
    try:
        manifest = disk.read(directory / MANIFEST)
    except OSError:
        _put(directory / COMMIT, b"")
        return None
    marker = CommitMarker(
        manifest_sha256=disk.sha256_of(manifest), submission_id=secrets.token_hex(12)
    )
    _put(directory / COMMIT, marker.to_bytes())
    return marker.submission_id


def _put(path: Path, data: bytes) -> None:
    disk.write_own(path, data)
    disk.sync_file(path)
