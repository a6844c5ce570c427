"""Clocks that jump by days, forward and back, under producers, workers and the writer.

Commit times never run backwards, and waiting is no reason to lose anything. The clock of the file
system stays where it is: to a process whose clock jumped, files seem to come from another day.
"""

from __future__ import annotations

import sys
import time
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from bus import writer as writer_module
from bus.errors import Unavailable
from bus.intake import clean
from bus.model import JobState, utc_now
from bus.staging import Staging
from tests import crash_kit
from tests.pipeline import LightCatalog, Pipeline, table

if TYPE_CHECKING:
    from pathlib import Path

    from bus.writer import Writer
    from tests.campaign import Campaign

_DAY_S = 24 * 3600.0
_JUMPS_S = (3 * _DAY_S, -2 * 3600.0, -3 * _DAY_S, 1.0, -0.001)


class Clock:
    """Every clock that tells this process the time of day; `ahead_s` may be set."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0.0
        real_s = time.time
        patch.setattr(time, "time", lambda: real_s() + self.ahead_s)
        for name, module in list(sys.modules.items()):
            if name.startswith("bus.") and getattr(module, "utc_now", None) is utc_now:
                patch.setattr(module, "utc_now", self.now)

    def now(self) -> datetime:
        return utc_now() + timedelta(seconds=self.ahead_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setitem(vars(writer_module), "Catalog", LightCatalog)
    return Clock(monkeypatch)


def assert_time_runs_forward(pipe: Pipeline) -> None:
    """Of records, of rows in the manifest, and of receipts, in the order of seq."""
    records = pipe.records()
    assert [record.seq for record in records] == [*range(1, len(records) + 1)]
    moments = [datetime.fromisoformat(record.committed_at_utc) for record in records]
    assert all(earlier < later for earlier, later in pairwise(moments))
    rows = pipe.rows("SELECT committed_at_utc FROM commits ORDER BY seq")
    assert [at for (at,) in rows] == [record.committed_at_utc for record in records]
    ingested = [
        at for (at,) in pipe.rows("SELECT created_at FROM artifact_facts ORDER BY added_seq")
    ]
    assert ingested == sorted(ingested)


@pytest.mark.timeout(1200)
def test_time_never_runs_backwards_and_nothing_is_lost(
    tmp_path: Path, clock: Clock, campaign: Campaign
) -> None:
    chance = campaign.chance
    jumps = campaign.size(short=12, long=300)
    pipe = Pipeline(tmp_path, lineage_wait_s=600.0)
    submitted: set[str] = set()
    writer: Writer | None = None
    for number in range(jumps):
        for _ in range(chance.randint(1, 2)):
            job_id = f"j{len(submitted)}"
            pipe.stage(job_id, table(len(submitted)))
            submitted.add(job_id)
        clock.ahead_s += chance.choice(_JUMPS_S)
        pipe.judge()
        clock.ahead_s += chance.choice(_JUMPS_S)
        if writer is None:  # every other time someone new, who knows only what is on the disk
            writer = pipe.writer()
        writer.drain()
        if number % 2:
            writer.close()
            writer = None
        clean(pipe.lake)
    if writer is not None:
        writer.close()
    assert_time_runs_forward(pipe)
    journaled = [job.job_id for record in pipe.records() for job in record.jobs]
    assert sorted(journaled) == sorted(submitted)
    assert {pipe.state(job_id) for job_id in submitted} == {JobState.COMMITTED}
    assert crash_kit._verified(pipe, light=True) == []
    campaign.record(jumps=2 * jumps, jobs=len(submitted), violations=0)


@pytest.mark.parametrize("jump_s", [-2 * 3600.0, 300.0], ids=["2-h-back", "5-min-forward"])
def test_a_job_that_waits_for_another_is_committed_with_it_after_a_jump(
    tmp_path: Path, clock: Clock, jump_s: float
) -> None:
    pipe = Pipeline(tmp_path, lineage_wait_s=600.0)
    with pipe.writer() as writer:
        pipe.stage("built-on", table(1), entries={"inputs": ["job:base/t0"]})
        pipe.judge()
        writer.drain()
        assert pipe.state("built-on") is JobState.READY
        clock.ahead_s = jump_s
        pipe.stage("base", table(2))
        pipe.judge()
        writer.drain()
    assert {pipe.state(job_id) for job_id in ("base", "built-on")} == {JobState.COMMITTED}
    assert_time_runs_forward(pipe)


def test_a_producer_whose_half_job_was_swept_by_a_clock_of_next_week_is_told(
    tmp_path: Path, clock: Clock
) -> None:
    pipe = Pipeline(tmp_path)
    with (
        pytest.raises(Unavailable) as caught,
        Staging(pipe.lake, "run-1", "tests", "signals", "slow") as staging,
    ):
        staging.add(table(1))
        clock.ahead_s = 3 * _DAY_S
        clean(pipe.lake)
        staging.submit()
    assert caught.value.code == "E505"
    assert pipe.state("slow") is JobState.UNKNOWN
    pipe.stage("slow", table(1))
    pipe.run()
    assert pipe.state("slow") is JobState.COMMITTED


def test_a_commit_that_went_back_in_time_would_be_noticed(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module.Writer, "_next_moment", lambda _: clock.now())
    pipe = Pipeline(tmp_path)
    for number, clock.ahead_s in enumerate((0.0, -2 * 3600.0)):
        pipe.stage(f"j{number}", table(number))
        pipe.run()
    with pytest.raises(AssertionError):
        assert_time_runs_forward(pipe)
