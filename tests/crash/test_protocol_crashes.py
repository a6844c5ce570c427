"""Every step of the protocol, killed right after it and finished by whoever comes next.

After each recovery every invariant is checked, and a model of its own says what must have become of
each job: what was acknowledged is there once, with its rows; what was not is absent or whole.
"""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from bus import disk, exports
from bus.model import JobState
from tests.crash_kit import PROTOCOL_POINTS, Job, Scene
from tests.pipeline import table

if TYPE_CHECKING:
    from pathlib import Path

#: What lies there before, so that a crash is never only about the first of its kind.
BEFORE = [Job("before", (1, 2), keys=("k1", "k2"))]
#: A batch with everything: new rows, the same rows in other bytes, the same bytes under another
#: key, something built on another job, and something broken.
BATCH = [
    Job("new", (3, 4), keys=("k3", "k4")),
    Job("same-rows", (1,), codec="snappy", keys=("k1",)),
    Job("same-bytes", (2,), keys=("k5",), fields={"run_id": "run-2", "kind": "other_kind"}),
    Job("built-on", (6,), keys=("k6",), entries={"inputs": ["job:new/t0"]}),
    Job("broken", (7,), broken=True),
    Job(
        "changes",
        fields={
            "mutations": [
                {"op": "tombstone", "target": "job:before/t1", "reason": "wrong"},
                {"op": "alias", "kind": "signals", "alias": "best", "target": "job:new/t0"},
            ]
        },
    ),
]
#: Another, to be killed twice.
MORE = [Job(f"more-{n}", (20 + n, 30 + n)) for n in range(3)] + [
    Job("more-broken", (9,), broken=True)
]
ALL = {job.job_id: job for job in [*BEFORE, *BATCH, *MORE]}
#: Points that are passed for each job of a batch: the second passing finds a job half done.
ONCE_A_JOB = (
    *("stage.files", "stage.manifest", "stage.renamed", "stage.done"),
    *("claim.locked", "claim.renamed", "store.linked", "verdict.ready"),
    *("answer.written", "answer.moved"),
)
#: Points that only the real catalog, or exports, pass.
NEED_THE_CATALOG = {"views.built", "views.published", "export.built"}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def assert_all_is_well(scene: Scene, submitted: list[Job]) -> None:
    """Every invariant holds, and each job has become what it must."""
    assert scene.findings() == []
    pipe = scene.pipe()
    journaled = [job.job_id for record in pipe.records() for job in record.jobs]
    assert sorted(journaled) == sorted(set(journaled))
    acknowledged = scene.acknowledged()
    assert acknowledged <= set(journaled)
    for job in submitted:
        if job.job_id not in journaled:
            assert pipe.state(job.job_id) is JobState.UNKNOWN
            assert job.job_id not in acknowledged
        elif job.broken:
            assert pipe.codes(job.job_id) == ["E308"]
            assert len(list((pipe.lake.rejected / job.job_id).glob("*.parquet"))) == len(job.tables)
        else:
            receipt = pipe.receipt(job.job_id)
            read = [pq.read_table(artifact.path) for artifact in receipt.artifacts]
            assert read == [table(number) for number in job.tables]
    assert set(journaled) <= {job.job_id for job in submitted}
    assert [p.name for p in pipe.lake.claims.iterdir()] == []
    assert list(pipe.lake.record_drafts()) == []


def assert_the_batch_is_as_ever(scene: Scene) -> None:
    """What the batch must come to, however often it was killed: the same as in one go."""
    pipe = scene.pipe()
    decisions = {
        job.job_id: [(a.decision, a.mode) for a in job.artifacts]
        for record in pipe.records()
        for job in record.jobs
        if job.job_id in {"same-rows", "same-bytes", "built-on"}
    }
    assert decisions == {
        "same-rows": [("deduped", "content_hash")],
        "same-bytes": [("created", None)],
        "built-on": [("created", None)],
    }
    new = {a.name: a.artifact_id for a in pipe.receipt("new").artifacts}
    assert pipe.rows("SELECT artifact_id FROM aliases") == [(new["t0"],)]
    assert pipe.rows("SELECT count(*) FROM artifacts WHERE status = 'tombstoned'") == [(1,)]
    built_on = pipe.receipt("built-on").artifacts[0].artifact_id
    assert pipe.rows("SELECT * FROM artifact_lineage") == [(built_on, new["t0"])]


@pytest.mark.parametrize("point", [*PROTOCOL_POINTS, *(f"{name}:2" for name in ONCE_A_JOB)])
def test_killed_at_a_point_and_finished_by_the_next(scene: Scene, point: str) -> None:
    scene.light = point not in NEED_THE_CATALOG
    scene.run(*BEFORE)
    assert scene.run(*BATCH, crash=point), f"nobody passed {point}"
    missed = [job for job in BATCH if job.job_id not in scene.acknowledged()]
    staged = {p.name for p in scene.pipe().lake.inbox.iterdir()}
    scene.run(*(job for job in missed if job.job_id not in staged))
    if missed and missed[0].job_id in staged:
        (scene.root / "acks" / missed[0].job_id).touch()  # it was whole: nothing to submit again
    assert_all_is_well(scene, [*BEFORE, *BATCH])
    assert_the_batch_is_as_ever(scene)


@pytest.mark.parametrize("point", [p for p in PROTOCOL_POINTS if p not in NEED_THE_CATALOG])
def test_killed_again_in_the_middle_of_recovery(scene: Scene, point: str) -> None:
    chance = random.Random(f"seed of {point}")
    scene.run(*BEFORE)
    scene.run(*MORE, crash=point)
    deaths = 0
    for _ in range(4):
        later = chance.choice([*PROTOCOL_POINTS][4:])  # recovery submits nothing
        deaths += scene.run(crash=f"{later}:{chance.randint(1, 2)}")
    scene.run()
    assert_all_is_well(scene, [*BEFORE, *MORE])


def test_killed_at_any_moment_nothing_is_lost_or_doubled(scene: Scene) -> None:
    chance = random.Random("any moment")
    jobs = [
        Job(f"j{n}", (n, n + 100), codec=chance.choice(["zstd", "snappy"]), broken=n % 7 == 0)
        for n in range(60)
    ]
    scene.run(*BEFORE)
    started_s = time.monotonic()
    while jobs and time.monotonic() - started_s < 20:
        batch, jobs = jobs[:4], jobs[4:]
        child = scene.start(*batch)
        child.join(chance.uniform(0.02, 0.35))
        child.kill()
        child.join(10)
        assert child.exitcode in {0, -signal.SIGKILL}
    scene.run()
    submitted = [Job(f"j{n}", (n, n + 100), broken=n % 7 == 0) for n in range(60)]
    assert_all_is_well(scene, [*BEFORE, *submitted])
    assert len(scene.acknowledged()) > len(BEFORE)


@pytest.mark.parametrize("point", ["checkpoint.filled", "checkpoint.made"])
def test_killed_at_a_checkpoint_and_the_manifest_is_lost_as_well(scene: Scene, point: str) -> None:
    scene.run(*BEFORE)
    assert scene.run(*BATCH, crash=point)
    pipe = scene.pipe()
    newest = len(pipe.records())
    assert (newest in pipe.lake.checkpoint_seqs()) == (point == "checkpoint.made")
    disk.remove_tree(pipe.lake.manifest_db.parent)
    scene.run(*MORE)
    assert_all_is_well(scene, [*BEFORE, *BATCH, *MORE])
    assert_the_batch_is_as_ever(scene)
    assert not list(pipe.lake.checkpoint_drafts())


def test_the_model_would_notice_a_lost_job(scene: Scene) -> None:
    scene.run(*BEFORE)
    (scene.root / "acks" / "lost").touch()
    with pytest.raises(AssertionError):
        assert_all_is_well(scene, BEFORE)


def test_an_export_killed_before_its_rename_leaves_the_old_one_whole(scene: Scene) -> None:
    scene.light = False
    scene.run(*BEFORE)
    path = scene.pipe().lake.export_path("schema_objects")
    before = path.read_bytes()
    assert scene.run(Job("another", (8,), fields={"kind": "other_kind"}), crash="export.built")
    assert path.read_bytes() == before
    scene.run()
    assert path.read_bytes() != before
    results = {r["name"]: r for r in exports.status(scene.pipe().lake)["results"]}
    assert results["schema_objects"]["rows"] == pq.read_metadata(path).num_rows
