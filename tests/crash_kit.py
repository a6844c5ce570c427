"""A pipeline in processes that can be killed: each child starts warm and dies where it is told.

Children come from a fork server that has imported everything and used nothing, so they cost a few
milliseconds and inherit neither threads nor open databases.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from bus import checkpoints, disk, exports, verify as verify_module, writer as writer_module
from bus.catalog import published_seq
from bus.intake import clean
from bus.model import JobState
from bus.verify import Finding, verify
from tests.pipeline import LightCatalog, Pipeline, table

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

_fork_server = multiprocessing.get_context("forkserver")
_fork_server.set_forkserver_preload(["tests.crash_kit", "tests.frozen"])
_PATIENCE_S = 30.0

#: What is passed when something is let go, and what every job passes.
RETENTION_POINTS = [p for p in disk.CRASH_POINTS if p.startswith(("purge.", "discard.", "trash."))]
PROTOCOL_POINTS = [p for p in disk.CRASH_POINTS if p not in RETENTION_POINTS]


@dataclass(frozen=True)
class Job:
    """A submission, small enough to be sent to a child: `tables` are numbers of `pipeline.table`."""

    job_id: str
    tables: tuple[int, ...] = ()
    codec: str = "zstd"
    keys: tuple[str, ...] = ()
    broken: bool = False
    entries: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)

    def submit(self, pipe: Pipeline) -> None:
        made: list[Any] = [table(number) for number in self.tables]
        if self.broken:
            path = pipe.lake.root.parent / f"{self.job_id}.parquet"
            pq.write_table(made[0], path)
            path.write_bytes(path.read_bytes()[:-20] + b"x" * 20)
            made[0] = path
        keys: list[str | None] = [*self.keys] or [None] * len(made)
        pipe.stage(
            self.job_id, *made, codec=self.codec, keys=keys, entries=self.entries, **self.fields
        )


@dataclass
class Scene:
    """A lake below `root`, who was told what, and what is done to it."""

    root: Path
    light: bool = True
    lineage_wait_s: float = 600.0
    settings: dict[str, Any] = field(default_factory=dict)

    def pipe(self) -> Pipeline:
        settings = {"lineage_wait_s": self.lineage_wait_s, "checkpoint_every": 1} | self.settings
        return Pipeline(self.root / "lake", **settings)

    def acknowledged(self) -> set[str]:
        """Jobs whose producer was told that they are staged."""
        return {path.name for path in (self.root / "acks").glob("*")}

    def run(self, *jobs: Job, crash: str = "") -> bool:
        """Submit, judge, commit, publish, in a child; whether it was killed at `crash`."""
        (self.root / "acks").mkdir(exist_ok=True)
        child = self.start(*jobs, crash=crash)
        child.join(_PATIENCE_S)
        assert child.exitcode in {0, -signal.SIGKILL}, child.exitcode
        return child.exitcode != 0

    def start(self, *jobs: Job, crash: str = "") -> ForkServerProcess:
        child = _fork_server.Process(target=_work, args=(self, jobs, crash))
        child.start()
        return child

    def findings(self) -> list[Finding]:
        """What a full verification says, and whether the catalog is up to date."""
        pipe = self.pipe()
        found = _verified(pipe, light=self.light)
        newest = len(pipe.records())
        if not self.light and published_seq(pipe.lake) != newest:
            found.append(Finding(4, str(pipe.lake.catalog_db), f"is not at {newest}", "drain"))
        return found


def _verified(pipe: Pipeline, *, light: bool) -> list[Finding]:
    look = verify_module._Verification
    real = look._snapshot
    if light:
        look._snapshot = lambda *_: None  # type: ignore[method-assign]
    try:
        return verify(pipe.lake, pipe.settings, pipe.registry).findings
    finally:
        look._snapshot = real  # type: ignore[method-assign]


def _work(scene: Scene, jobs: tuple[Job, ...], crash: str) -> None:
    name, _, nth = crash.partition(":")
    disk._crash_at, disk._crash_countdown = name, int(nth or 1)
    if scene.light:
        vars(writer_module)["Catalog"] = LightCatalog
    vars(checkpoints)["_SPARE_BYTES"] = 0  # a lake may lie on a tiny disk of its own
    pipe = scene.pipe()
    for job in jobs:
        job.submit(pipe)
        (scene.root / "acks" / job.job_id).touch()
    finish(pipe)
    if not scene.light:
        exports.publish(pipe.lake, exports.build(pipe.lake, pipe.settings, ["schema_objects"]))


def finish(pipe: Pipeline) -> None:
    """Everything that waits, until nothing is left to do."""
    deadline = time.monotonic() + _PATIENCE_S
    with pipe.writer() as writer:
        while True:
            pipe.judge()
            if writer.drain().more:
                continue
            on_their_way = (JobState.STAGED, JobState.VALIDATING, JobState.READY)
            if not any(pipe.lake.has_any(state) for state in on_their_way):
                clean(pipe.lake)
                return
            assert time.monotonic() < deadline, "jobs that never end"
