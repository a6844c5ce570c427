"""What happens while the power is cut: a story with every way of a job, and what must be left of it.

Producers, validators and the writer take turns in one process, so that the story is the same each
time; where they would work at once in life, one acts at a crash point of another. Some die on the
way, and others go on from what they left.
"""

from __future__ import annotations

import secrets
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from bus import checkpoints, disk, intake as intake_module, validation, writer as writer_module
from bus.intake import clean
from bus.lake import RECEIPT, REJECT_REASON
from bus.model import JobState, Receipt, RejectReason
from bus.retry import retry
from tests.crash_kit import Job, _verified
from tests.pipeline import LightCatalog, Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pyarrow as pa

    from bus.staging import StagedJob
    from tests.crash.posix import Watched

#: Rounds after which a job that is still on its way is stuck.
_ROUNDS = 8
_ON_THEIR_WAY = (JobState.STAGED, JobState.VALIDATING, JobState.READY)

FIRST = Job("first", (1, 2), keys=("k1", "k2"))
MEANWHILE = Job("meanwhile", (5,), keys=("k5",))
BROKEN = Job("broken", (7,), broken=True)
HOPELESS = Job("hopeless", (8,), broken=True)
ORPHAN = Job("orphan", (9,), keys=("k9",))
BATCH = [
    Job("new", (3, 4), keys=("k3", "k4")),
    Job("same-rows", (1,), codec="snappy", keys=("k1",)),
    Job("same-bytes", (2,), keys=("k6",), fields={"run_id": "run-2", "kind": "other_kind"}),
    Job("built-on", (6,), keys=("k7",), entries={"inputs": ["job:new/t0"]}),
    BROKEN,
    Job(
        "changes",
        fields={
            "mutations": [
                {"op": "tombstone", "target": "job:first/t1", "reason": "wrong"},
                {"op": "alias", "kind": "signals", "alias": "best", "target": "job:new/t0"},
            ]
        },
    ),
]


class DeathError(BaseException):
    """A process that dies here. The kernel keeps what it wrote; the power is still on."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A moment at which the power may go, and how many submissions were acknowledged by then."""

    at: str
    time: int
    acknowledged: int


@dataclass(slots=True)
class Story:
    """Told in `root`, on a disk that is watched; `scenes` names the parts to tell."""

    root: Path
    device: Watched
    acknowledged: list[str] = field(default_factory=list)  # submission ids
    retried: dict[str, int] = field(default_factory=dict)  # submission id: when its answer may go
    cuts: list[Cut] = field(default_factory=list)
    at_point: dict[str, Callable[[], None]] = field(default_factory=dict)
    pipe: Producing = field(init=False)

    # ── what is told ──────────────────────────────────────────────────────────────────────────

    def tell(self, *scenes: Callable[[Story], None]) -> Story:
        self.device.before = lambda operation, path: self._keep(f"{operation} {path}")
        with disk.using(self.device), pytest.MonkeyPatch.context() as patch:
            patch.setattr(disk, "crash_point", self._passed)
            with light():
                self.pipe = Producing(self.root / "lake", lineage_wait_s=600.0)
                self.pipe.acknowledged = self.acknowledged
                for scene in scenes:
                    scene(self)
        self._keep("the end")
        return self

    def work(self) -> None:
        """Validators and writer, until nothing is left to do."""
        work(self.pipe)

    def once(self, point: str, action: Callable[[], None]) -> None:
        """Do something when a crash point is passed next."""
        self.at_point[point] = action

    def dies(self, point: str, action: Callable[[], object]) -> None:
        """Whoever does this dies at that point."""

        def die() -> None:
            raise DeathError

        self.once(point, die)
        with suppress(DeathError):
            action()
            raise AssertionError(f"nobody passed {point}")

    def _passed(self, point: str) -> None:
        self.device.look()
        self._keep(point)
        self.at_point.pop(point, lambda: None)()

    def _keep(self, at: str) -> None:
        self.cuts.append(Cut(at, self.device.now, len(self.acknowledged)))


class Producing(Pipeline):
    """A pipeline that notes what its producers were told."""

    acknowledged: list[str]

    def stage(self, job_id: str, *tables: pa.Table, **fields: Any) -> StagedJob:
        staged = super().stage(job_id, *tables, **fields)
        self.acknowledged.append(staged.submission_id)
        return staged


@contextmanager
def light() -> Iterator[None]:
    """Without DuckDB and without children: their starts would take longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer_module, "Catalog", LightCatalog)
        patch.setattr(intake_module, "judge_in_child", validation.judge)
        yield


def work(pipe: Pipeline) -> None:
    """Everything that waits, until nothing is left to do; jobs that do not end stay."""
    with pipe.writer() as writer:
        for _ in range(_ROUNDS):
            pipe.judge()
            more = writer.drain().more
            if not more and not any(pipe.lake.has_any(state) for state in _ON_THEIR_WAY):
                break
    clean(pipe.lake)


# ── the story ─────────────────────────────────────────────────────────────────────────────────


def a_job_comes_and_another_meanwhile(story: Story) -> None:
    FIRST.submit(story.pipe)
    # While a job is on its way from inbox/, another producer makes inbox/ durable.
    story.once("claim.renamed", lambda: MEANWHILE.submit(story.pipe))
    story.work()
    FIRST.submit(story.pipe)  # committed before: repeated
    story.work()


def a_batch_with_everything_and_deaths(story: Story) -> None:
    for job in BATCH:
        job.submit(story.pipe)
    BATCH[0].submit(story.pipe)  # it waits: the same job, acknowledged again
    story.dies("store.linked", story.pipe.judge)
    story.pipe.judge()
    story.dies("commit.linked", story.pipe.commit)
    story.work()


def a_producer_dies_before_its_answer(story: Story) -> None:
    story.dies("stage.renamed", lambda: ORPHAN.submit(story.pipe))
    ORPHAN.submit(story.pipe)  # its successor finds the job waiting
    story.work()


def a_rejected_job_is_tried_again(story: Story) -> None:
    HOPELESS.submit(story.pipe)
    story.work()
    story.retried[story.acknowledged[-1]] = story.device.now
    again = retry(story.pipe.lake, HOPELESS.job_id)
    story.acknowledged.append(str(again.submission_id))
    story.work()


def checkpoints_are_made_between_commits(story: Story) -> None:
    FIRST.submit(story.pipe)
    story.work()
    checkpoints.make(story.pipe.lake)
    MEANWHILE.submit(story.pipe)
    story.work()
    story.dies("checkpoint.filled", lambda: checkpoints.make(story.pipe.lake))
    checkpoints.make(story.pipe.lake)
    ORPHAN.submit(story.pipe)
    story.work()
    checkpoints.make(story.pipe.lake)  # and the oldest goes


#: What is tried disk by disk: short stories, for a start on a small lake takes half as long.
STORIES = {
    "two jobs": (a_job_comes_and_another_meanwhile,),
    "a batch": (a_job_comes_and_another_meanwhile, a_batch_with_everything_and_deaths),
    "second tries": (a_producer_dies_before_its_answer, a_rejected_job_is_tried_again),
}


# ── what must be left of it ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Ends:
    """How submissions ended: what the journal says, and what lies in processed/ and rejected/."""

    journal: Counter[str]
    told: dict[str, list[str]]

    @classmethod
    def of(cls, pipe: Pipeline) -> Ends:
        journal = Counter(
            str(job.submission_id) for record in pipe.records() for job in record.jobs
        )
        told: dict[str, list[str]] = {}
        for directory in pipe.lake.processed.iterdir():
            receipt = Receipt.from_bytes((directory / RECEIPT).read_bytes())
            what = sorted(f"{a.name} {a.content_hash}" for a in receipt.artifacts)
            told.setdefault(str(receipt.submission_id), []).append(f"committed {what}")
        for directory in pipe.lake.rejected.iterdir():
            reason = RejectReason.from_bytes((directory / REJECT_REASON).read_bytes())
            codes = [problem.code for problem in reason.problems]
            told.setdefault(str(reason.submission_id), []).append(f"rejected {codes}")
        return cls(journal, told)


@contextmanager
def another_boot() -> Iterator[None]:
    """The machine was off: what starts now is told so by the kernel."""
    boot = secrets.token_hex(8)
    before, vars(disk)["boot_id"] = disk.boot_id, lambda: boot
    try:
        yield
    finally:
        vars(disk)["boot_id"] = before


def violations(
    pipe: Pipeline, acknowledged: set[str], expected: Ends, *, optional: set[str]
) -> list[str]:
    """Start on what lies in the lake, work until nothing is left, and say what is wrong then.

    `acknowledged`: submissions that must have ended as in `expected`; others may have. `optional`:
    those whose answer may be gone, for somebody has asked for another one.
    """
    wrong: list[str] = []
    try:
        with light(), another_boot():
            pipe.lake.create()
            work(pipe)
        found = _verified(pipe, light=True)
        wrong += [f"{f.invariant}: {f.message} ({f.where})" for f in found]
        ends = Ends.of(pipe)
    except Exception as error:  # noqa: BLE001 - whatever stops the bus is a violation
        return [*wrong, f"{type(error).__name__}: {error}"]
    stuck = [p for d in (pipe.lake.inbox, pipe.lake.work, pipe.lake.ready) for p in d.iterdir()]
    wrong += [f"stuck: {path}" for path in stuck if not path.name.startswith(".staging-")]
    for one in acknowledged:
        if ends.journal[one] == 0:
            wrong.append(f"lost: {one} {expected.told.get(one)}")
        elif one not in ends.told and one not in optional:
            wrong.append(f"unanswered: {one}")
    wrong += [f"doubled: {one}" for one, times in ends.journal.items() if times > 1]
    for one, told in ends.told.items():
        if told != expected.told.get(one, told):
            wrong.append(f"altered: {one} {told}, not {expected.told[one]}")
        if one not in expected.journal:
            wrong.append(f"made up: {one}")
    return wrong
