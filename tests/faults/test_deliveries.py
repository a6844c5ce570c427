"""The same job told of, found or handed in more than once: it is done once, and all are answered."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from bus import intake as intake_module
from bus.client import Bus, Job as Handle
from bus.errors import JobConflict
from bus.intake import Intake, clean, due
from bus.model import JobState, Receipt, RejectReason
from tests.crash_kit import Job, Scene, finish
from tests.faults.deliveries import deliver, judged_by, validate_slowly
from tests.pipeline import LightCatalog
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from bus.staging import StagedJob
    from tests.campaign import Campaign
    from tests.pipeline import Pipeline

PATIENCE_S = 60.0


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr("bus.writer.Catalog", LightCatalog)
    return Scene(tmp_path)


# ── told of more than once ──────────────────────────────────────────────────────────────────────


def test_ten_deliveries_at_once_of_each_job_judge_and_commit_it_once(
    scene: Scene, tmp_path: Path, campaign: Campaign
) -> None:
    """Messages are delivered again after every lost connection, and the sweep rings as well."""
    processes, threads = 2, 5
    count = campaign.size(short=20, long=1_000)
    pipe, gate = scene.pipe(), tmp_path / "gate"
    for number in range(count):
        Job(f"j{number}", (number, number % 3), keys=(f"a{number}", f"b{number}")).submit(pipe)
    told = [f"j{number}" for number in range(count)]
    campaign.chance.shuffle(told)
    children = [deliver(pipe.lake.root, told, threads, gate) for _ in range(processes)]
    try:
        gate.touch()
        for child in children:
            child.join(PATIENCE_S)
            assert child.exitcode == 0
    finally:
        for child in children:
            child.kill()

    assert Counter(judged_by(gate)) == Counter(told)
    assert all(pipe.state(job_id) is JobState.READY for job_id in told)
    finish(pipe)
    assert commits_of(pipe) == Counter(told)
    assert scene.findings() == []
    campaign.record(jobs=count, deliveries=count * processes * threads, judged_twice=0)


def commits_of(pipe: Pipeline) -> Counter[str]:
    return Counter(job.job_id for record in pipe.records() for job in record.jobs)


def test_a_delivery_of_what_is_done_already_is_harmless_ten_times(scene: Scene) -> None:
    pipe = scene.pipe()
    Job("done", (1,)).submit(pipe)
    Job("refused", (2,), broken=True).submit(pipe)
    finish(pipe)
    before = pipe.receipt("done"), pipe.reason("refused"), len(pipe.records())
    intake = Intake(pipe.lake, pipe.settings, pipe.registry)
    threads = [
        threading.Thread(target=intake.drain, args=(job_id,)) for job_id in ["done", "refused"] * 10
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finish(pipe)
    assert (pipe.receipt("done"), pipe.reason("refused"), len(pipe.records())) == before


def test_the_sweep_leaves_a_slow_but_healthy_validator_alone(scene: Scene, tmp_path: Path) -> None:
    pipe, gate = scene.pipe(), tmp_path / "gate"
    Job("slow", (1,)).submit(pipe)
    Job("other", (2,)).submit(pipe)
    child = validate_slowly(pipe.lake.root, "slow", gate)
    try:
        wait_until(lambda: pipe.state("slow") is JobState.VALIDATING, what="the job is claimed")
        wait_until(lambda: due(pipe.lake).ingest != ["slow"], what="the claim is seen")
        for _ in range(10):
            assert "slow" not in due(pipe.lake).ingest
            result = Intake(pipe.lake, pipe.settings, pipe.registry).drain("slow")
            assert "slow" not in [*result.judged, *result.later, *result.faults]
            clean(pipe.lake)
        assert pipe.state("slow") is JobState.VALIDATING
        assert pipe.lake.claim_path("slow").exists()
        gate.touch()
        child.join(PATIENCE_S)
    finally:
        child.kill()
    assert "slow" in judged_by(gate)
    finish(pipe)
    assert commits_of(pipe) == Counter(["slow", "other"])
    assert scene.findings() == []


def test_a_validator_that_died_is_not_taken_for_a_slow_one(scene: Scene, tmp_path: Path) -> None:
    """The claim protects the living only: the same look finds the job at once."""
    pipe = scene.pipe()
    Job("dropped", (1,)).submit(pipe)
    child = validate_slowly(pipe.lake.root, "dropped", tmp_path / "gate")
    wait_until(lambda: pipe.state("dropped") is JobState.VALIDATING, what="the job is claimed")
    assert due(pipe.lake).ingest == []
    child.kill()
    child.join(PATIENCE_S)
    assert due(pipe.lake).ingest == ["dropped"]
    finish(pipe)
    assert commits_of(pipe) == Counter(["dropped"])


# ── handed in more than once ────────────────────────────────────────────────────────────────────


@dataclass
class Twice:
    """A job handed in, and again under the same id while the first is in some state."""

    pipe: Pipeline
    other: bool
    first: StagedJob | None = None
    again: StagedJob | JobConflict | None = None

    def submit(self, *, broken: bool = False) -> None:
        self.first = self._stage(1, broken=broken)

    def submit_again(self, *, broken: bool = False) -> None:
        try:
            self.again = self._stage(2 if self.other else 1, broken=broken)
        except JobConflict as conflict:
            self.again = conflict

    def _stage(self, number: int, *, broken: bool) -> StagedJob:
        job = Job("twice", (number,), broken=broken)
        with pytest.MonkeyPatch.context() as patch:
            staged: list[StagedJob] = []
            stage = self.pipe.stage

            def note(*arguments: object, **fields: object) -> None:
                staged.append(stage(*arguments, **fields))  # type: ignore[arg-type]  # as they came

            patch.setattr(self.pipe, "stage", note)
            job.submit(self.pipe)
        return staged[0]

    def answer_to(self, submission: object) -> Receipt | RejectReason | None:
        """What the bus tells whoever made this submission."""
        assert not isinstance(submission, JobConflict)
        assert submission is not None
        bus = Bus(self.pipe.settings, ring=lambda _: None)
        handle = Handle(bus, "twice", submission.submission_id)  # type: ignore[attr-defined]  # StagedJob
        return handle.answer()

    def outcomes(self) -> list[str]:
        return [str(job.outcome) for record in self.pipe.records() for job in record.jobs]


def while_in_work(twice: Twice, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = vars(intake_module)["judge"]

    def judge_and_submit_again(*arguments: Any, **options: Any) -> Any:
        if twice.again is None:
            assert twice.pipe.state("twice") is JobState.VALIDATING
            twice.submit_again()
        return judge(*arguments, **options)

    monkeypatch.setattr(intake_module, "judge", judge_and_submit_again)
    twice.submit()
    twice.pipe.judge()


def while_ready(twice: Twice, _: pytest.MonkeyPatch) -> None:
    twice.submit()
    twice.pipe.judge()
    assert twice.pipe.state("twice") is JobState.READY
    twice.submit_again()
    twice.pipe.judge()


def while_committed(twice: Twice, _: pytest.MonkeyPatch) -> None:
    twice.submit()
    finish(twice.pipe)
    assert twice.pipe.state("twice") is JobState.COMMITTED
    twice.submit_again()


LATER = [while_in_work, while_ready, while_committed]


def test_the_same_job_again_while_it_waits_is_one_submission(scene: Scene) -> None:
    twice = Twice(scene.pipe(), other=False)
    twice.submit()
    twice.submit_again()
    assert twice.again == twice.first
    finish(twice.pipe)
    assert twice.outcomes() == ["committed"]
    assert isinstance(twice.answer_to(twice.again), Receipt)
    assert scene.findings() == []


def test_another_job_of_an_id_that_waits_is_refused_before_it_is_accepted(scene: Scene) -> None:
    twice = Twice(scene.pipe(), other=True)
    twice.submit()
    twice.submit_again()
    assert isinstance(twice.again, JobConflict)
    assert twice.again.code == "E105"
    finish(twice.pipe)
    assert twice.outcomes() == ["committed"]
    assert twice.pipe.receipt("twice").artifacts[0].rows == 3
    assert scene.findings() == []


@pytest.mark.parametrize("state", LATER)
def test_the_same_job_again_later_gets_the_first_receipt(
    state: object, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = Twice(scene.pipe(), other=False)
    state(twice, monkeypatch)  # type: ignore[operator]  # one of LATER
    finish(twice.pipe)
    assert twice.outcomes() == ["committed", "repeated"]
    first, again = twice.answer_to(twice.first), twice.answer_to(twice.again)
    assert isinstance(first, Receipt)
    assert isinstance(again, Receipt)
    assert (first.seq, first.artifacts) == (again.seq, again.artifacts)
    assert scene.findings() == []


@pytest.mark.parametrize("state", LATER)
def test_another_job_of_the_same_id_later_is_rejected_and_harms_nothing(
    state: object, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = Twice(scene.pipe(), other=True)
    state(twice, monkeypatch)  # type: ignore[operator]  # one of LATER
    finish(twice.pipe)
    assert twice.outcomes() == ["committed", "rejected"]
    first, again = twice.answer_to(twice.first), twice.answer_to(twice.again)
    assert isinstance(first, Receipt)
    assert isinstance(again, RejectReason)
    assert again.code == "E105"
    assert twice.pipe.rows("SELECT count(*) FROM artifacts") == [(1,)]
    assert scene.findings() == []


@pytest.mark.parametrize("better", [False, True])
def test_after_a_rejection_the_same_id_is_judged_afresh(scene: Scene, *, better: bool) -> None:
    twice = Twice(scene.pipe(), other=better)
    twice.submit(broken=True)
    finish(twice.pipe)
    assert twice.pipe.state("twice") is JobState.REJECTED
    twice.submit_again(broken=not better)
    finish(twice.pipe)
    assert twice.outcomes() == ["rejected", "committed" if better else "rejected"]
    assert isinstance(twice.answer_to(twice.first), RejectReason)
    assert isinstance(twice.answer_to(twice.again), Receipt if better else RejectReason)
    assert scene.findings() == []
