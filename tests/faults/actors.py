"""A producer, a worker and a writer in processes of their own, and what must have come of them.

Each plays its part over a real lake through the real code, from a warm start that a tester may wait
for: `Actor.ready`, then `Actor.go`. Whatever happens to it, `assert_all_ended_once` is asked after
someone healthy has finished its work.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from bus import exports, writer as writer_module
from bus.intake import Intake
from bus.model import JobState
from tests import crash_kit
from tests.crash_kit import Scene
from tests.faults.strace import let_anybody_trace_me
from tests.pipeline import LightCatalog, Pipeline, table

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from pathlib import Path

#: What is submitted: plain tables, one of them twice, one that is judged in a child, and one that
#: has more to say than to deliver, so that documents and records are the largest files.
TABLES: dict[str, list[pa.Table]] = {
    "one": [table(1), table(2)],
    "same": [table(1)],
    "nested": [pa.table({"x": [[1], [2, 3]]})],
    "file": [table(4)],
    "wordy": [table(5)],
}
_MUCH_TO_SAY = {"notes": ["word " * 200] * 150}
#: Damaged, so it ends in rejected/ whatever happens.
BROKEN = "broken"
BROKEN_CODES = ["E308"]
#: A worker asks again and again; three ends of a validator that nobody explains reject a job.
_DRAINS = 4
_PATIENCE_S = 60.0


def stage(scene: Scene, pipe: Pipeline, job_id: str) -> None:
    """Submit one of the jobs above, and write down that it was acknowledged."""
    data: list[Any] = [*TABLES.get(job_id, ())]
    if job_id in {"file", BROKEN}:
        data = [scene.root / f"{job_id}.parquet"]
    keys = [f"{job_id}-{number}" for number in range(len(data))]
    pipe.stage(job_id, *data, keys=keys, meta=_MUCH_TO_SAY if job_id == "wordy" else None)
    (scene.root / "acks" / job_id).touch()


def make_files(scene: Scene) -> None:
    """What producers hand in as files, and the place for what they were told."""
    (scene.root / "acks").mkdir()
    pq.write_table(TABLES["file"][0], scene.root / "file.parquet")
    whole = (scene.root / "file.parquet").read_bytes()
    (scene.root / f"{BROKEN}.parquet").write_bytes(whole[:-20] + b"x" * 20)


# ── the parts ───────────────────────────────────────────────────────────────────────────────────


def produce(scene: Scene, pipe: Pipeline) -> None:
    for job_id in ("one", "nested", "file", "wordy"):
        with suppress(Exception):  # each is a program of its own
            stage(scene, pipe, job_id)


def validate(_: Scene, pipe: Pipeline) -> None:
    intake = Intake(pipe.lake, pipe.settings, pipe.registry)
    for _number in range(_DRAINS):
        intake.drain()


def write(scene: Scene, pipe: Pipeline) -> None:
    with pipe.writer() as writer:
        while writer.drain().more:
            pass
    if not scene.light:
        exports.publish(pipe.lake, exports.build(pipe.lake, pipe.settings, ["schema_objects"]))


PARTS: dict[str, Callable[[Scene, Pipeline], None]] = {
    "producer": produce,
    "worker": validate,
    "writer": write,
}


def prepare(scene: Scene, part: str) -> None:
    """The lake as `part` finds it: a commit behind it, and work before it."""
    scene.root.mkdir(exist_ok=True)
    make_files(scene)
    pipe = scene.pipe()
    pipe.stage("before", table(9))
    (scene.root / "acks" / "before").touch()
    scene.run()
    if part != "producer":
        for job_id in (*TABLES, BROKEN):
            stage(scene, pipe, job_id)
    if part == "writer":
        pipe.judge()


class Actor:
    """A process that plays `part`; it waits for `go` when everything is loaded.

    `limits` (RLIMIT_… and value) and `uid` (when not 0) hold from then on.
    """

    def __init__(
        self, scene: Scene, part: str, limits: dict[int, int] | None = None, uid: int = 0
    ) -> None:
        self._mine, theirs = crash_kit._fork_server.Pipe()
        self._process = crash_kit._fork_server.Process(
            target=_act, args=(scene, part, theirs, limits or {}, uid)
        )
        self._process.start()
        theirs.close()
        assert self._mine.poll(_PATIENCE_S)
        assert self._mine.recv() == "ready"

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def go(self) -> int:
        """Let it play to its end, good or bad; its exit code."""
        self._mine.send("go")
        self._process.join(_PATIENCE_S)
        assert self._process.exitcode is not None, "it hangs"
        return self._process.exitcode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._mine.close()


def _act(scene: Scene, part: str, told: Connection, limits: dict[int, int], uid: int) -> None:
    let_anybody_trace_me()
    if scene.light:
        vars(writer_module)["Catalog"] = LightCatalog
    pipe = scene.pipe()
    told.send("ready")
    told.recv()
    for which, limit in limits.items():
        resource.setrlimit(which, (limit, limit))
    if uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    try:
        PARTS[part](scene, pipe)
    except BaseException:  # noqa: BLE001 - however it ends, that is the experiment
        with suppress(OSError):
            (scene.root / "ended").write_text(traceback.format_exc())
        os._exit(3)
    os._exit(0)


class Stage:
    """One lake to be put back to its beginning as often as wanted; hard links stay hard links."""

    def __init__(self, root: Path, part: str, *, light: bool = True) -> None:
        self.part = part
        self.scene = Scene(root / "scene", light=light)
        self._original = root / "original"
        prepare(self.scene, part)
        self.scene.root.rename(self._original)

    def reset(self) -> Scene:
        shutil.rmtree(self.scene.root, ignore_errors=True)
        subprocess.run(["cp", "-a", self._original, self.scene.root], check=True)
        return self.scene


# ── what must have come of it ───────────────────────────────────────────────────────────────────


def assert_all_ended_once(scene: Scene) -> None:
    """After someone healthy has finished: what was acknowledged is there once, whole, and nothing
    but what is damaged was rejected."""
    scene.run()
    assert scene.findings() == []
    pipe = scene.pipe()
    journaled = [job.job_id for record in pipe.records() for job in record.jobs]
    assert sorted(journaled) == sorted(set(journaled))
    assert scene.acknowledged() <= set(journaled)
    for job_id, tables in TABLES.items():
        if job_id in journaled:
            assert pipe.state(job_id) is JobState.COMMITTED, pipe.codes(job_id)
            receipt = pipe.receipt(job_id)
            assert [pq.read_table(a.path) for a in receipt.artifacts] == tables
        else:
            assert pipe.state(job_id) is JobState.UNKNOWN
    if BROKEN in journaled:
        assert pipe.codes(BROKEN) == BROKEN_CODES
    assert {p.name for p in pipe.lake.rejected.iterdir()} <= {BROKEN}
    assert list(pipe.lake.claims.iterdir()) == []
    assert list(pipe.lake.record_drafts()) == []
