"""Steps 3 to 6, killed at every crash point and taken up again by whoever comes next."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bus import disk
from bus.disk import CRASH_POINTS
from bus.hashing import file_hash
from bus.intake import Intake, clean, due
from bus.lake import VERDICT
from bus.settings import Settings
from bus.specs import Registry
from tests.forks import exit_code_of
from tests.jobs import codes, new_lake, put_job, small_table, verdict_of

if TYPE_CHECKING:
    from pathlib import Path

    from bus.lake import Lake

POINTS = [
    name for name in CRASH_POINTS if name.startswith(("claim.", "validate.", "store.", "verdict."))
]
JOBS = ["good-1", "good-2", "bad"]

DRAIN = """
import sys
from bus.intake import Intake
from bus.lake import Lake
from bus.settings import Settings
from bus.specs import Registry
from pathlib import Path
root = Path(sys.argv[1])
result = Intake(Lake(root), Settings(lake=root), Registry.built_in()).drain(budget_s=30)
print(*sorted(result.judged))
"""


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = new_lake(tmp_path)
    put_job(lake, "good-1", {"a.parquet": small_table(), "b.parquet": small_table(start=10)})
    put_job(lake, "good-2", {"a.parquet": small_table(start=20), "same.parquet": small_table()})
    put_job(lake, "bad", {"a.parquet": b"no parquet"})
    return lake


def drain_and_die(lake: Lake, point: str) -> None:
    """A whole process of its own, killed at `point`, as its environment says."""
    run = subprocess.run(
        [sys.executable, "-c", DRAIN, str(lake.root)],
        env=os.environ | {"BUS_CRASH_AT": point},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == -signal.SIGKILL, (point, run.stdout, run.stderr)


def fork_and_die(lake: Lake, point: str, nth: int = 1) -> int:
    """The same in a fork, which starts fifty times as fast; how it ended."""

    def drain_armed() -> None:
        disk._crash_at, disk._crash_countdown = point, nth
        drain(lake)

    return exit_code_of(drain_armed)


def drain(lake: Lake) -> list[str]:
    result = Intake(lake, Settings(lake=lake.root), Registry.built_in()).drain(budget_s=30)
    assert result.faults == {}
    return result.judged


def places_of(lake: Lake, job_id: str) -> list[str]:
    states = (lake.inbox, lake.work, lake.ready)
    return [state.name for state in states if (state / job_id).exists()]


def assert_all_in_order(lake: Lake) -> None:
    """Each job is in ready/ once with its files; objects are what their names say, read-only."""
    assert [places_of(lake, job) for job in JOBS] == [["ready"]] * len(JOBS)
    assert {job: codes(verdict_of(lake, job)) for job in JOBS} == {
        "good-1": [],
        "good-2": [],
        "bad": ["E307"],
    }
    wanted = {facts.sha256 for job in JOBS for facts in verdict_of(lake, job).artifacts}
    assert {path.stem for path in lake.all_objects()} == wanted
    for path in lake.all_objects():
        assert file_hash(path) == f"sha256:{path.stem}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
    for job in JOBS:
        assert (lake.ready / job / "a.parquet").exists()
        assert not list((lake.ready / job).glob(".bus-verdict-*"))
    assert list(lake.quarantine.iterdir()) == []


def test_the_points_are_all_there() -> None:
    steps = ("claim.locked", "claim.renamed", "validate.done", "store.linked", "store.done")
    assert [*steps, "verdict.written", "verdict.ready"] == POINTS


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_is_made_good_by_the_next_drain(point: str, lake: Lake) -> None:
    drain_and_die(lake, point)

    unfinished = {job for job in JOBS if places_of(lake, job) != ["ready"]}
    assert set(due(lake).ingest) == unfinished
    drain(lake)

    assert_all_in_order(lake)
    assert drain(lake) == []
    clean(lake)
    assert list(lake.claims.iterdir()) == []
    assert list(lake.work.iterdir()) == list(lake.inbox.iterdir()) == []


@pytest.mark.parametrize("nth", [2, 3])
@pytest.mark.parametrize(
    "point", ["claim.locked", "claim.renamed", "store.linked", "verdict.ready"]
)
def test_a_kill_in_the_middle_of_a_group_is_made_good_too(point: str, nth: int, lake: Lake) -> None:
    assert fork_and_die(lake, point, nth) == -signal.SIGKILL

    drain(lake)

    assert_all_in_order(lake)


def put_more_than_a_group(lake: Lake) -> None:
    for number in range(8):
        put_job(lake, f"more-{number}", {"a.parquet": small_table(start=number)})


def test_a_verdict_that_was_durable_before_the_kill_is_the_one_that_stays(lake: Lake) -> None:
    fork_and_die(lake, "verdict.written")
    before = {job: (lake.work / job / VERDICT).read_bytes() for job in JOBS}

    drain(lake)

    assert {job: (lake.ready / job / VERDICT).read_bytes() for job in JOBS} == before


def test_killed_again_and_again_each_job_still_ends_once(lake: Lake) -> None:
    for point in POINTS * 2:
        assert fork_and_die(lake, point) in {0, -signal.SIGKILL}
    drain(lake)

    assert_all_in_order(lake)


def test_a_forged_verdict_is_not_believed_after_a_kill(lake: Lake) -> None:
    forged = json.dumps({"verdict_id": "x", "job_id": "bad", "accepted": True, "judged_at_utc": ""})
    (lake.inbox / "bad" / VERDICT).write_text(forged)
    assert fork_and_die(lake, "claim.renamed", 3) == -signal.SIGKILL

    drain(lake)

    assert codes(verdict_of(lake, "bad")) == ["E307"]


def test_two_drains_at_once_share_the_work_and_double_nothing(lake: Lake) -> None:
    put_more_than_a_group(lake)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", DRAIN, str(lake.root)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    done = [name for run in runs for name in run.communicate(timeout=60)[0].split()]

    assert sorted(done) == sorted([*JOBS, *(f"more-{n}" for n in range(8))])
    assert len(set(done)) == len(done)
