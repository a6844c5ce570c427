"""What a review of the whole found, so that it stays found."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from bus import disk
from bus.intake import Intake
from bus.model import JobState
from bus.retry import retry
from tests.pipeline import Pipeline, table

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path / "lake")


def test_a_file_that_cannot_be_removed_keeps_nobodys_answer_back(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root removes anything, so the refusal of a read-only directory is put in its place."""
    pipe.stage("stubborn", table(1))
    pipe.stage("good", table(2))
    pipe.judge()
    real = disk.remove

    def remove(path: Path | str) -> None:
        if "stubborn" in str(path) and str(path).endswith(".parquet"):
            raise PermissionError(errno.EACCES, "read-only directory", str(path))
        real(path)

    monkeypatch.setattr(disk, "remove", remove)
    pipe.commit()
    assert pipe.receipt("stubborn").status == pipe.receipt("good").status == "committed"


def test_a_full_disk_leaves_no_claim_locked_behind(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [f"j{number}" for number in range(3)]
    for number, job_id in enumerate(jobs):
        pipe.stage(job_id, table(number))
    intake = Intake(pipe.lake, pipe.settings, pipe.registry)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("bus.intake.judge", full)
        patch.setattr(disk.Lock, "write", full)
        assert intake.drain().judged == []
    pipe.run()
    assert {pipe.state(job_id) for job_id in jobs} == {JobState.COMMITTED}


def test_a_duplicate_of_rows_whose_object_is_gone_revives_them(pipe: Pipeline) -> None:
    pipe.stage("first", table(1), keys=["k"], codec="zstd")
    pipe.run()
    first = pipe.receipt("first").artifacts[0]
    disk.remove(pipe.lake.object_path(first.file_hash.removeprefix("sha256:")))
    pipe.stage("again", table(1), keys=["k"], codec="snappy")
    pipe.run()
    again = pipe.receipt("again").artifacts[0]
    assert again.artifact_id == first.artifact_id
    assert not again.deduped
    assert pipe.lake.object_path(again.file_hash.removeprefix("sha256:")).exists()
    path = pipe.rows("SELECT path_parquet FROM artifacts WHERE artifact_id = ?", first.artifact_id)
    assert os.path.exists(path[0][0])  # noqa: PTH110 - a text from SQL


def test_a_caller_gets_a_moved_file_back_when_the_job_is_refused(
    pipe: Pipeline, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq  # noqa: PLC0415 - one use

    from bus.errors import Refused  # noqa: PLC0415 - likewise
    from bus.staging import Staging  # noqa: PLC0415 - likewise

    source = tmp_path / "only.parquet"
    pq.write_table(table(1), source)
    with (
        pytest.raises(Refused),
        Staging(pipe.lake, run_id="r", producer="p", kind="things") as staging,
    ):
        staging.add(source, name="../evil", move=True)
        staging.submit()
    assert pq.read_table(source).num_rows == table(1).num_rows


def test_a_retry_takes_the_job_of_that_id_and_not_one_that_is_called_like_its_second_try(
    pipe: Pipeline, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.parquet"
    disk.write_plain(broken, b"no parquet")
    for job_id in ("a", "a~2"):
        pipe.stage(job_id, broken)
    pipe.run()
    assert pipe.state("a") is pipe.state("a~2") is JobState.REJECTED
    assert retry(pipe.lake, "a").job_id == "a"
    assert pipe.state("a~2") is JobState.REJECTED
