"""Validators in processes: many that are told of the same jobs at once, and one that is slow."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from bus import intake as intake_module
from bus.intake import Intake
from tests.crash_kit import _fork_server
from tests.pipeline import Pipeline

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

_PATIENCE_S = 30.0


def deliver(root: Path, job_ids: list[str], threads: int, gate: Path) -> ForkServerProcess:
    """A process whose threads are each told of every job, all at once when `gate` is there."""
    child = _fork_server.Process(target=_deliver, args=(root, job_ids, threads, gate))
    child.start()
    return child


def validate_slowly(root: Path, job_id: str, gate: Path) -> ForkServerProcess:
    """A healthy validator that has read half of a file until `gate` is there."""
    child = _fork_server.Process(target=_validate_slowly, args=(root, job_id, gate))
    child.start()
    return child


def judged_by(gate: Path) -> list[str]:
    """What all those processes say they judged, job by job."""
    return [
        name for path in gate.parent.glob("judged-*.json") for name in json.loads(path.read_bytes())
    ]


# ── in the child ────────────────────────────────────────────────────────────────────────────────


def _deliver(root: Path, job_ids: list[str], threads: int, gate: Path) -> None:
    pipe = Pipeline(root)
    judged: list[str] = []

    def told_of_each() -> None:
        intake = Intake(pipe.lake, pipe.settings, pipe.registry)
        _wait_for(gate)
        for job_id in job_ids:
            judged.extend(intake.drain(job_id, budget_s=0.0).judged)

    workers = [threading.Thread(target=told_of_each) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    _say(gate, judged)


def _validate_slowly(root: Path, job_id: str, gate: Path) -> None:
    pipe = Pipeline(root)
    judge = vars(intake_module)["judge"]

    def slowly(*arguments: Any, **options: Any) -> Any:
        _wait_for(gate)
        return judge(*arguments, **options)

    vars(intake_module)["judge"] = slowly
    _say(gate, Intake(pipe.lake, pipe.settings, pipe.registry).drain(job_id).judged)


def _wait_for(gate: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not gate.exists():
        assert time.monotonic() < deadline, f"{gate} never came"
        time.sleep(0.001)  # shorter than `wait_until` looks: all shall come through at once


def _say(gate: Path, judged: list[str]) -> None:
    (gate.parent / f"judged-{os.getpid()}.json").write_text(json.dumps(judged))
