"""Step 10: what a producer is told, and what becomes of its files.

The documents follow from the journal's record alone, so an answer can be written again after a
crash, and comes out the same.
"""

from __future__ import annotations

import secrets
import stat
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from bus import disk
from bus.errors import Unavailable
from bus.journal import Journal
from bus.manifest import BrokenManifestError, Manifest
from bus.model import Outcome, Receipt, ReceiptArtifact, RejectReason

if TYPE_CHECKING:
    from bus.lake import Lake
    from bus.model import ArtifactRecord, CommitRecord, JobRecord

log = structlog.get_logger("bus.writer")

_REPEATED = "repeated: this job was committed before; nothing was added"


def receipt(lake: Lake, job: JobRecord, first: CommitRecord) -> Receipt:
    """receipt.json of a committed job; of a repeated one too, then `first` is the first commit."""
    done = job
    warnings = list(job.warnings)
    if job.outcome is Outcome.REPEATED:
        first_time = (Outcome.COMMITTED, job.job_id)
        done = next(j for j in first.jobs if (j.outcome, j.job_id) == first_time)
        warnings = [*done.warnings, _REPEATED]
    return Receipt(
        job_id=job.job_id,
        submission_id=job.submission_id,
        job_digest=done.job_digest,
        seq=first.seq,
        status=str(Outcome.COMMITTED),
        committed_at_utc=first.committed_at_utc,
        warnings=warnings,
        artifacts=[_receipt_artifact(lake, artifact) for artifact in done.artifacts],
    )


def _receipt_artifact(lake: Lake, artifact: ArtifactRecord) -> ReceiptArtifact:
    return ReceiptArtifact(
        name=artifact.name,
        artifact_id=artifact.artifact_id,
        deduped=artifact.decision == "deduped",
        mode=artifact.mode,
        file_hash=artifact.file_hash,
        content_hash=artifact.content_hash,
        rows=artifact.rows,
        path=lake.public(lake.object_place(artifact.sha256)),
        warnings=artifact.warnings,
    )


def reason(job: JobRecord, record: CommitRecord) -> RejectReason:
    """REJECT_REASON.json of a rejected job."""
    first = job.problems[0]
    return RejectReason(
        code=first.code,
        message=first.message,
        hint=first.hint,
        problems=job.problems,
        job_id=job.job_id,
        submission_id=job.submission_id,
        rejected_at_utc=record.committed_at_utc,
        seq=record.seq,
    )


def again(lake: Lake, job_id: str, submission_id: str | None) -> Receipt | RejectReason | None:
    """The newest answer to a job (or to this submission of it), from the journal alone.

    For jobs whose directories were discarded; None for one that the journal does not know.
    """
    try:
        with closing(Manifest.read(lake)) as manifest:
            found = manifest.rows(_ANSWERED, (job_id, submission_id, submission_id))
    except (Unavailable, BrokenManifestError):
        return None
    for seq, first_seq, verdict_id in found:
        commit, first = (Journal(lake).read(number) for number in (seq, first_seq or seq))
        if commit is None or first is None:
            return None
        job = next(job for job in commit.record.jobs if job.verdict_id == verdict_id)
        if job.outcome is Outcome.REJECTED:
            return reason(job, commit.record)
        return receipt(lake, job, first.record)
    return None


_ANSWERED = """
SELECT seq, first_seq, verdict_id FROM jobs
WHERE job_id = ? AND (? IS NULL OR submission_id = ?) ORDER BY job_no DESC LIMIT 1
"""


def event(job: JobRecord, record: CommitRecord) -> dict[str, Any]:
    """The entry of the event stream."""
    return {
        "job_id": job.job_id,
        "outcome": str(job.outcome),
        "seq": record.seq,
        "run_id": job.run_id,
        "producer": job.producer,
        "kind": job.kind,
        "at": record.committed_at_utc,
        "artifacts": [
            {"artifact_id": a.artifact_id, "name": a.name, "kind": a.kind} for a in job.artifacts
        ],
        "problems": [p.code for p in job.problems],
    }


def clear_file(place: str, *, rejected: bool) -> None:
    """One file of an answered job: removed, or parted from the object that it shares bytes with.

    The job is decided. A directory that its producer made read-only must not keep anybody's answer
    back: where nothing helps, the file stays, and the log says so.
    """
    clear = _part if rejected else disk.remove
    try:
        clear(place)
    except OSError as error:
        if error.errno not in disk.FOREIGN_ERRNOS:
            raise
        try:
            disk.open_up(Path(place).parent)
            clear(place)
        except OSError as again:
            log.warning("file_kept", path=place, why=str(again))


def _part(place: str) -> None:
    """From the object that it shares bytes with, if it does."""
    path = Path(place)
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
        private = path.with_name(f".{path.name}.{secrets.token_hex(8)}.own")
        disk.copy_file(path, private, new=True)
        disk.publish_file(private, path)
