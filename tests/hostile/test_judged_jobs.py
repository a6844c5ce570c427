"""A producer that goes on changing its job's directory after the job was judged.

Whoever made a directory may keep it open, and may keep second names of its files. What the writer
puts there must not be led elsewhere, and no such job keeps the others waiting.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from bus.lake import COMMIT, MANIFEST, OLD, RECEIPT, REJECT_REASON, VERDICT
from bus.model import JobState, RejectReason
from bus.retry import retry
from tests.pipeline import Pipeline, table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PRECIOUS = b"nobody may touch this"
WRONG = {"mutations": [{"op": "tag", "target": "nonsense", "tags": {"a": "b"}}]}


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path / "lake", lineage_wait_s=0.0)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(PRECIOUS)
    return path


def as_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def as_fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def as_directory(path: Path, _: Path) -> None:
    path.mkdir()
    (path / "something").write_bytes(b"in it")


def as_file(path: Path, _: Path) -> None:
    path.write_bytes(b"another")


LAID = pytest.mark.parametrize("lay", [as_link, as_fifo, as_directory, as_file])


@LAID
@pytest.mark.parametrize("wrong", [False, True], ids=["committed", "rejected"])
def test_an_answer_replaces_what_lies_under_its_name(
    pipe: Pipeline, victim: Path, lay: Callable[[Path, Path], None], *, wrong: bool
) -> None:
    pipe.stage("evil", table(1), **(WRONG if wrong else {}))
    pipe.judge()
    name = REJECT_REASON if wrong else RECEIPT
    lay(pipe.lake.ready / "evil" / name, victim)
    pipe.stage("good", table(2))
    pipe.run()
    assert pipe.state("good") is JobState.COMMITTED
    assert pipe.state("evil") is (JobState.REJECTED if wrong else JobState.COMMITTED)
    assert pipe.codes("evil") == ["E403"] if wrong else pipe.receipt("evil").seq
    assert victim.read_bytes() == PRECIOUS


@LAID
def test_a_rejected_file_is_parted_from_its_object_beside_anything(
    pipe: Pipeline, victim: Path, lay: Callable[[Path, Path], None]
) -> None:
    pipe.stage("evil", table(1), **WRONG)
    lay(pipe.lake.inbox / "evil" / ".000.parquet.own", victim)
    pipe.run()
    (path,) = pipe.lake.submissions(JobState.REJECTED, "evil")
    assert (path / "000.parquet").stat().st_nlink == 1
    assert victim.read_bytes() == PRECIOUS


@LAID
def test_a_file_that_was_replaced_after_its_verdict_keeps_nobody_waiting(
    pipe: Pipeline, victim: Path, lay: Callable[[Path, Path], None]
) -> None:
    pipe.stage("evil", table(1), **WRONG)
    pipe.judge()
    place = pipe.lake.ready / "evil" / "000.parquet"
    place.unlink()
    lay(place, victim)
    pipe.stage("good", table(2))
    pipe.run()
    assert pipe.state("good") is JobState.COMMITTED
    assert pipe.state("evil") is JobState.REJECTED
    assert victim.read_bytes() == PRECIOUS


@LAID
@pytest.mark.parametrize("name", [MANIFEST, VERDICT])
def test_a_judged_document_that_was_replaced_is_judged_once_more(
    pipe: Pipeline, victim: Path, lay: Callable[[Path, Path], None], name: str
) -> None:
    pipe.stage("evil", table(1))
    pipe.judge()
    place = pipe.lake.ready / "evil" / name
    place.unlink()
    lay(place, victim)
    pipe.stage("good", table(2))
    for _ in range(3):
        pipe.run()
    assert pipe.state("good") is JobState.COMMITTED
    assert pipe.state("evil") is (JobState.COMMITTED if name == VERDICT else JobState.REJECTED)
    assert victim.read_bytes() == PRECIOUS


@pytest.mark.parametrize("lay", [as_link, as_file, as_fifo])
def test_a_manifest_changed_by_its_second_name_is_rejected_whatever_lies_beside_it(
    pipe: Pipeline, victim: Path, tmp_path: Path, lay: Callable[[Path, Path], None]
) -> None:
    pipe.stage("evil", table(1))
    directory = pipe.lake.inbox / "evil"
    second = tmp_path / "second name"
    second.hardlink_to(directory / MANIFEST)
    lay(directory / OLD, victim)
    pipe.judge()
    second.write_bytes(second.read_bytes() + b"\n")
    pipe.stage("good", table(2))
    for _ in range(3):
        pipe.run()
    assert pipe.state("good") is JobState.COMMITTED
    assert pipe.state("evil") is JobState.REJECTED
    assert victim.read_bytes() == PRECIOUS


@LAID
def test_a_retry_writes_its_marker_and_nothing_else(
    pipe: Pipeline, victim: Path, lay: Callable[[Path, Path], None]
) -> None:
    pipe.stage("evil", table(1), **WRONG)
    pipe.run()
    (directory,) = pipe.lake.submissions(JobState.REJECTED, "evil")
    (directory / COMMIT).unlink()
    lay(directory / COMMIT, victim)
    retry(pipe.lake, "evil")
    assert victim.read_bytes() == PRECIOUS
    pipe.run()
    assert isinstance(pipe.reason("evil"), RejectReason)
    assert pipe.codes("evil") == ["E403"]
