"""A rejected job goes back into the inbox: whole, clean, as a new submission, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus import disk
from bus.claims import claim_path
from bus.errors import JobConflict, NotFound, Refused
from bus.lake import COMMIT, MANIFEST, OUR_NAMES, REJECT_REASON, VERDICT
from bus.model import CommitMarker, JobState, ProblemDoc, RejectReason
from bus.retry import retry
from tests.pipeline import Pipeline, manifest_of, sha256, table, verdict

BROKEN = [ProblemDoc(code="E307", where="x.parquet", message="no", hint="Write Parquet.")]


@pytest.fixture
def made(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path / "lake")


def reject(made: Pipeline, job_id: str = "broken") -> Path:
    """What the writer leaves of a refused job, without the work of having one."""
    refused = verdict(job_id, accepted=False, problems=BROKEN, job_digest=None)
    reason = RejectReason(
        **BROKEN[0].model_dump(exclude={"where"}),
        problems=BROKEN,
        job_id=job_id,
        rejected_at_utc="2026-01-08T05:12:33Z",
        seq=1,
    )
    path = Path(made.lake.free_place(JobState.REJECTED, job_id))
    path.mkdir()
    manifest = manifest_of(refused).to_bytes()
    commit = CommitMarker(manifest_sha256=sha256(manifest), submission_id="first")
    for name, data in {
        MANIFEST: manifest,
        COMMIT: commit.to_bytes(),
        VERDICT: refused.to_bytes(),
        REJECT_REASON: reason.to_bytes(),
        "x.parquet": b"no",
    }.items():
        disk.write_plain(path / name, data)
    return path


def test_the_files_go_back_and_our_documents_do_not(made: Pipeline) -> None:
    reject(made)
    before = (made.lake.rejected / "broken" / MANIFEST).read_bytes()
    sent = retry(made.lake, "broken")
    there = made.lake.inbox / "broken"
    assert sent.job_id == "broken"
    assert (there / MANIFEST).read_bytes() == before
    assert (there / "x.parquet").read_bytes() == b"no"
    assert not any((there / name).exists() for name in OUR_NAMES)
    assert not (made.lake.rejected / "broken").exists()
    assert not claim_path(made.lake, "broken").exists()


def test_its_commit_fits_the_manifest_as_it_was_corrected(made: Pipeline) -> None:
    reject(made)
    corrected = b'{"job_id": "broken", "corrected": true}'
    disk.write_plain(made.lake.rejected / "broken" / MANIFEST, corrected)
    sent = retry(made.lake, "broken")
    marker = CommitMarker.from_bytes((made.lake.inbox / "broken" / COMMIT).read_bytes())
    assert marker.manifest_sha256 == sha256(corrected)
    assert marker.submission_id == sent.submission_id


def test_each_retry_is_a_submission_of_its_own(made: Pipeline) -> None:
    reject(made)
    first = retry(made.lake, "broken")
    disk.remove_tree(made.lake.inbox / "broken")
    reject(made)
    assert retry(made.lake, "broken").submission_id != first.submission_id


def test_without_a_manifest_it_goes_back_with_an_empty_commit(made: Pipeline) -> None:
    reject(made)
    disk.remove(made.lake.rejected / "broken" / MANIFEST)
    assert retry(made.lake, "broken").submission_id is None
    assert (made.lake.inbox / "broken" / COMMIT).read_bytes() == b""


def test_of_several_rejections_the_newest_goes_back(made: Pipeline) -> None:
    reject(made)
    reject(made)
    disk.write_plain(made.lake.rejected / "broken~2" / "newest", b"")
    retry(made.lake, "broken")
    assert (made.lake.inbox / "broken" / "newest").exists()
    assert (made.lake.rejected / "broken").is_dir()


def test_a_rejection_can_be_named_by_its_directory(made: Pipeline) -> None:
    reject(made)
    reject(made)
    assert retry(made.lake, "broken~2").job_id == "broken"
    assert made.lake.state_of("broken") is JobState.STAGED


@pytest.mark.parametrize("job_id", ["nobody", "../rejected/broken", ".", "..", "", "a/b", "a\0"])
def test_what_was_never_rejected_cannot_be_retried(job_id: str, made: Pipeline) -> None:
    reject(made)
    with pytest.raises(NotFound):
        retry(made.lake, job_id)
    assert (made.lake.rejected / "broken").is_dir()


def test_a_name_that_is_no_id_is_refused_with_what_to_do(made: Pipeline) -> None:
    (made.lake.rejected / "bad name").mkdir()
    with pytest.raises(Refused, match="under another job_id"):
        retry(made.lake, "bad name")


@pytest.mark.parametrize("state", [JobState.STAGED, JobState.VALIDATING, JobState.READY])
def test_a_newer_submission_on_its_way_is_never_overwritten(
    state: JobState, made: Pipeline
) -> None:
    reject(made)
    made.stage("broken", table(1))
    disk.move(made.lake.inbox / "broken", made.lake.state_dir(state) / "broken")
    with pytest.raises(JobConflict, match="on its way"):
        retry(made.lake, "broken")
    assert (made.lake.rejected / "broken" / "x.parquet").exists()


def test_a_job_that_somebody_holds_stays(made: Pipeline) -> None:
    reject(made)
    with disk.locked(claim_path(made.lake, "broken")), pytest.raises(JobConflict):
        retry(made.lake, "broken")
    assert (made.lake.rejected / "broken").is_dir()


def test_a_retried_job_is_judged_afresh(made: Pipeline) -> None:
    made.stage("late", table(1))
    disk.write_plain(made.lake.inbox / "late" / "000.parquet", b"no")
    made.run()
    assert made.lake.state_of("late") is JobState.REJECTED
    sent = retry(made.lake, "late")
    made.run()
    assert made.lake.state_of("late") is JobState.REJECTED
    assert made.reason("late").submission_id == sent.submission_id
    assert len(made.rows("SELECT 1 FROM jobs WHERE job_id = 'late'")) == 2
