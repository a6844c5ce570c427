"""Two writers: the second is refused, a late one is fenced, and take-over costs nothing.

A writer may be stopped for an hour (a laptop's lid, a paused container) while someone "repairs" the
lock by deleting its file. DESIGN's answer is the number of the next commit, which only one of them
can create, and a look at the lock before everything that could be undone by a later writer.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from bus import disk
from bus.catalog import published_seq
from bus.errors import LakeBusy
from bus.journal import Journal
from tests.crash_kit import Job, Scene, finish
from tests.faults.takeover import DONE, FENCED, OTHER, POINTS, WriterProcess
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.campaign import Campaign
    from tests.pipeline import Pipeline

#: Take-overs on one lake; then its every invariant is checked, and the next lake begins.
_PER_LAKE = 25
#: When the old writer wakes: beside its successor's start, with its successor, or when it is done.
_WAKING = ("beside", "together", "after")


class Chain:
    """Writers that take over from each other on one lake, each with jobs of its own to commit."""

    def __init__(self, root: Path, *, light: bool = True) -> None:
        root.mkdir(exist_ok=True)
        self.scene = Scene(root, light=light)
        self.pipe = self.scene.pipe()
        self.writers: list[WriterProcess] = []
        self.ends: Counter[str] = Counter()
        self._jobs = 0

    def start(self, stop_at: str = "") -> WriterProcess:
        """The next writer, with two jobs that are ready."""
        for _ in range(2):
            self._jobs += 1
            Job(f"j{self._jobs}", (self._jobs,), keys=(f"k{self._jobs}",)).submit(self.pipe)
        self.pipe.judge()
        writer = WriterProcess(self.pipe.lake.root, stop_at, self.scene.light)
        self.writers.append(writer)
        return writer

    def delete_lock(self) -> None:
        disk.remove(self.pipe.lake.writer_lock)

    def ended(self, writer: WriterProcess) -> None:
        """Note how a writer ended."""
        how = {DONE: "done", FENCED: "fenced", OTHER: "other"}
        self.ends[how.get(writer.end(), "killed")] += 1

    def stale_commits(self) -> list[int]:
        """Commits that a writer made after one who came later had committed."""
        rank = {writer.pid: number for number, writer in enumerate(self.writers)}
        found, newest = [], -1
        for record in self.pipe.records():
            number = rank.get(int(record.writer.split(":")[1]), newest)
            if number < newest:
                found.append(record.seq)
            newest = max(newest, number)
        return found

    def check(self) -> None:
        """Finish what is left, then: no stale commit, every job once, every invariant."""
        finish(self.pipe)
        assert self.stale_commits() == []
        jobs = Counter(job.job_id for record in self.pipe.records() for job in record.jobs)
        assert jobs == Counter(f"j{n}" for n in range(1, self._jobs + 1))
        assert self.scene.findings() == []
        for number in range(1, self._jobs + 1):
            receipt = self.pipe.receipt(f"j{number}")
            assert [a.rows for a in receipt.artifacts] == [3]

    def kill_all(self) -> None:
        for writer in self.writers:
            writer.kill()


@pytest.fixture
def chains() -> Iterator[list[Chain]]:
    """Chains to be killed with all their writers, whatever becomes of the test."""
    begun: list[Chain] = []
    yield begun
    for chain in begun:
        chain.kill_all()


# ── the second one ──────────────────────────────────────────────────────────────────────────────


def test_a_second_writer_is_refused_and_told_why_until_the_first_ends(tmp_path: Path) -> None:
    pipe = Scene(tmp_path).pipe()
    with pipe.writer() as first:
        with pytest.raises(LakeBusy) as caught:
            pipe.writer(wait_s=0.0)
        assert caught.value.code == "E503"
        assert "another writer holds this lake" in str(caught.value)
        assert str(pipe.lake.writer_lock) in str(caught.value)
        assert pipe.lake.writer_lock.read_text().strip() == str(os.getpid())
        Job("j", (1,)).submit(pipe)
        pipe.judge()
        assert first.drain().jobs == 1  # and was not disturbed
    with pipe.writer(wait_s=0.0) as second:
        assert second.seq == 1


def test_a_second_writer_waits_and_goes_on_when_the_first_is_killed(
    tmp_path: Path, chains: list[Chain]
) -> None:
    chain = Chain(tmp_path / "lakes")
    chains.append(chain)
    first = chain.start("answer.written")
    assert first.stopped()
    second = chain.start()
    with pytest.raises(LakeBusy):
        chain.pipe.writer(wait_s=0.3)
    assert len(chain.pipe.records()) == 1, "the second worked while the first held the lock"
    first.kill()  # it never woke up
    assert second.end() == DONE, second.said
    chain.check()


# ── a late one ──────────────────────────────────────────────────────────────────────────────────


def test_a_writer_that_wakes_up_late_is_fenced_wherever_it_stood(
    campaign: Campaign, tmp_path: Path, chains: list[Chain]
) -> None:
    """Its lock file was deleted and another writer has done everything meanwhile."""
    for point in campaign.some(POINTS, short=5):
        chain = Chain(tmp_path / point)
        chains[:] = [chain]
        fence_a_late_writer(chain, point)


def fence_a_late_writer(chain: Chain, point: str) -> None:
    old = chain.start(point)
    assert old.stopped(), f"nobody passed {point}: {old.said}"
    chain.delete_lock()
    new = chain.start()
    assert new.end() == DONE, new.said
    seen = {path: path.stat().st_mtime_ns for path in everything_that_is_shown(chain.pipe)}

    old.wake()

    assert old.end() in {FENCED, OTHER}, point
    assert {
        path: path.stat().st_mtime_ns for path in everything_that_is_shown(chain.pipe)
    } == seen, point
    chain.check()


def everything_that_is_shown(pipe: Pipeline) -> list[Path]:
    """What readers and producers open."""
    lake = pipe.lake
    answers = [*lake.processed.rglob("*.json"), *lake.rejected.rglob("*.json")]
    links = [*lake.artifact_links(), *lake.run_trees.rglob("*.parquet")]
    return [lake.catalog_db, *lake.journal.iterdir(), *answers, *links]


def test_a_late_writer_answers_no_later_submission_of_the_same_job(
    tmp_path: Path, chains: list[Chain]
) -> None:
    """What it rejected was answered by its successor; under that name lies another try now."""
    chain = Chain(tmp_path / "lakes")
    chains.append(chain)
    Job("again", (5,), broken=True).submit(chain.pipe)
    old = chain.start("index.done")
    assert old.stopped()
    chain.delete_lock()
    assert chain.start().end() == DONE
    assert chain.pipe.state("again") == "rejected"
    Job("again", (5,)).submit(chain.pipe)
    chain.pipe.judge()
    assert chain.pipe.state("again") == "ready"

    old.wake()
    old.end()

    assert chain.pipe.state("again") == "ready"
    finish(chain.pipe)
    assert chain.pipe.receipt("again").artifacts[0].rows == 3
    assert chain.scene.findings() == []


# ── take-over, again and again ──────────────────────────────────────────────────────────────────


def take_over(chain: Chain, old: WriterProcess, campaign: Campaign) -> WriterProcess | None:
    """One cycle: `old` stands still, a new writer takes over; the new one, if it stands still too."""
    chance = campaign.chance
    stop_at = f"{chance.choice(POINTS)}:{chance.choice([1, 1, 2])}"
    if chance.random() < 0.2:
        old.kill()
        new = chain.start(stop_at)
        stands = new.stopped()
    else:
        waking = chance.choice(_WAKING)
        chain.delete_lock()
        new = chain.start(stop_at)
        if waking == "beside":
            old.wake()
        stands = new.stopped()
        if waking == "together":
            new.wake()
            stands = False
        old.wake()
    chain.ended(old)
    if not stands:
        chain.ended(new)
    return new if stands else None


def test_take_over_again_and_again_without_a_stale_commit(
    campaign: Campaign, tmp_path: Path, chains: list[Chain]
) -> None:
    cycles, lakes = campaign.size(short=12, long=1_000), 0
    ends: Counter[str] = Counter()
    done = 0
    while done < cycles:
        lakes += 1
        chain = Chain(tmp_path / f"lakes-{lakes}")
        chains[:] = [chain]
        old = None
        for _ in range(min(_PER_LAKE, cycles - done)):
            while old is None:
                first = chain.start(f"{campaign.chance.choice(POINTS)}")
                old = first if first.stopped() else None
            old = take_over(chain, old, campaign)
            done += 1
        if old is not None:
            old.kill()
        chain.check()
        ends += chain.ends
    assert ends["fenced"] > 0
    campaign.record(take_overs=done, stale_commits=0, **ends)


def test_no_half_view_is_published_and_none_goes_back_while_writers_change(
    campaign: Campaign, tmp_path: Path, chains: list[Chain]
) -> None:
    """The real catalog, watched by a reader; the writers stop in the middle of publishing."""
    chain = Chain(tmp_path / "lakes", light=False)
    chains.append(chain)
    assert chain.start().end() == DONE
    seen, over = [published_seq(chain.pipe.lake)], threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.append(published_seq(chain.pipe.lake))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(campaign.size(short=2, long=100)):
            old = chain.start("views.built")
            assert old.stopped()
            chain.delete_lock()
            new = chain.start("views.built")
            assert new.stopped()
            for late in [(old, new), (new, old)][number % 2]:
                late.wake()
                late.end()
            assert new.end() == DONE, new.said
    finally:
        over.set()
        reader.join()
    newest = len(chain.pipe.records())
    wait_until(lambda: published_seq(chain.pipe.lake) == newest, 1.0)
    assert None not in seen, "a snapshot that cannot be read"
    assert seen == sorted(seen, key=lambda seq: seq or 0), "a reader was shown something older"
    chain.check()
    campaign.record(snapshots_read=len(seen), take_overs=len(chain.writers) // 2)


def test_the_campaign_would_notice_a_stale_commit(tmp_path: Path, chains: list[Chain]) -> None:
    chain = Chain(tmp_path / "lakes")
    chains.append(chain)
    assert [chain.start().end() for _ in range(2)] == [DONE] * 2
    journal = Journal(chain.pipe.lake)
    newest = journal.read(2)
    assert newest is not None
    stale = newest.record.model_copy(
        update={"seq": 3, "prev": newest.sha256, "writer": f"host:{chain.writers[0].pid}:x"}
    )
    journal.append(stale)
    assert chain.stale_commits() == [3]
