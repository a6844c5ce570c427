"""Killed in the middle of a purge: the next writer finishes it, and nothing that is needed is gone."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from bus.model import JobState, iso, utc_now
from tests.crash_kit import RETENTION_POINTS, Job, Scene
from tests.pipeline import table

if TYPE_CHECKING:
    from pathlib import Path

#: What is tombstoned, what is built on what stays, and what stays.
BEFORE = [
    Job("wrong", (1, 2, 6), keys=("k1", "k2", "k6")),
    Job("source", (3,), keys=("k3",)),
    Job("made", (4,), keys=("k4",), entries={"inputs": ["job:source/t0"]}),
    Job("broken", (5,), broken=True),
]
#: Points that a purge or a duplicate passes, one of each.
POINTS = [
    *RETENTION_POINTS,
    *("purge.moved:2", "discard.moved:2"),
    *("store.done", "commit.decided", "commit.linked", "commit.done", "index.done"),
    *("answer.written", "answer.done", "views.linked"),
]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Everything is committed, and three artifacts are withdrawn; the trash is emptied at once."""
    scene = Scene(tmp_path, settings={"trash_days": 0})
    scene.run(*BEFORE)
    withdrawn = [
        {"op": "tombstone", "target": f"job:{name}", "reason": "wrong"}
        for name in ("wrong/t0", "wrong/t1", "wrong/t2", "source/t0")
    ]
    scene.run(Job("withdraw", fields={"mutations": withdrawn}))
    return scene


def objects_of(scene: Scene, *job_ids: str) -> list[str]:
    pipe = scene.pipe()
    return [a.file_hash[-64:] for job_id in job_ids for a in pipe.receipt(job_id).artifacts]


def purge(scene: Scene, name: str = "purge") -> Job:
    """Of all that was withdrawn; the source of what stays among it."""
    hashes = objects_of(scene, "wrong", "source")
    changes = [{"op": "purge", "object": sha256, "reason": "wrong"} for sha256 in hashes]
    return Job(name, fields={"mutations": changes})


def discard(name: str = "discard") -> Job:
    now = iso(utc_now())
    changes: list[dict[str, Any]] = [
        {"op": "discard", "jobs": jobs, "before": now} for jobs in ("committed", "rejected")
    ]
    return Job(name, fields={"mutations": changes})


def assert_nothing_needed_is_gone(scene: Scene) -> None:
    assert scene.findings() == []
    pipe = scene.pipe()
    statuses = dict(pipe.rows("SELECT logical_key, status FROM artifacts"))
    assert {statuses["k3"], statuses["k4"]} == {"tombstoned", "active"}
    for key, path, status in pipe.rows("SELECT logical_key, path_parquet, status FROM artifacts"):
        if status != "purged":
            assert pq.read_table(path) == table(int(key[1:])), key


@pytest.mark.parametrize("point", POINTS)
def test_a_purge_killed_at_a_point_is_finished_by_the_next(scene: Scene, point: str) -> None:
    # A duplicate of one of the two meets the purge.
    jobs = [purge(scene), Job("again", (1,), keys=("k1",)), discard()]
    assert scene.run(*jobs, crash=point), f"nobody passed {point}"
    missed = [job for job in jobs if job.job_id not in scene.acknowledged()]
    scene.run(*missed)
    assert_nothing_needed_is_gone(scene)
    pipe = scene.pipe()
    statuses = dict(pipe.rows("SELECT logical_key, status FROM artifacts"))
    assert statuses["k1"] == "active", "the duplicate revived it, or kept it"
    assert {statuses["k2"], statuses["k6"]} == {"purged"}
    gone = {
        path for (path,) in pipe.rows("SELECT path_parquet FROM artifacts WHERE status = 'purged'")
    }
    assert not gone & {str(path) for path in pipe.lake.all_objects()}
    assert list(pipe.lake.trash.iterdir()) == []
    assert pipe.state("made") is JobState.UNKNOWN, "its receipt was discarded"
    assert list(pipe.lake.rejected.iterdir()) == []


def test_killed_again_and_again_nothing_needed_is_gone(scene: Scene) -> None:
    chance = random.Random("purges and duplicates")
    for number in range(12):
        jobs = [purge(scene, f"purge-{number}"), _duplicate(number, chance)]
        scene.run(*chance.sample(jobs, 2), crash=chance.choice(POINTS))
    scene.run()
    assert_nothing_needed_is_gone(scene)


def _duplicate(number: int, chance: random.Random) -> Job:
    """Of one that may be purged at this moment, in the same bytes or in others."""
    which = chance.choice([1, 2])
    codec = chance.choice(["zstd", "snappy"])
    return Job(f"dup-{number}", (which,), codec=codec, keys=(f"k{which}",))
