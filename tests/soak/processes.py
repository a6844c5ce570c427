"""The soak's light processes: producers, validators and the writer, started in milliseconds.

They run the real loops (`Bus`, `Intake`, `Writer`) without Celery, whose workers need three seconds
to start. Each is killed without warning, and none may end in any other way.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bus.client import Bus
from bus.intake import Intake
from bus.model import JobState
from bus.process import die_with_parent
from bus.specs import Registry
from bus.writer import Writer
from tests.soak.jobs import Plan, note

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

    from bus.settings import Settings

_fork_server = multiprocessing.get_context("forkserver")
# Each child runs the main module's imports once more: they must be there already.
_fork_server.set_forkserver_preload(["tests.crash_kit", "tests.soak.__main__", "tests.frozen"])

#: Producers wait while more jobs than this are on their way.
_BACKLOG = 300
_LOOK_EVERY = 8
_PAUSE_S = 0.05
_IDLE_S = 0.01
_SLICE_S = 1.0
_FOR_EVER_S = 1e9


@dataclass(frozen=True)
class Place:
    """Where a soak happens: the lake's settings, and a folder for notes beside the lake."""

    settings: Settings
    folder: Path
    seed: int

    @property
    def stop(self) -> Path:
        """Producers end when this file is there."""
        return self.folder / "stop"

    def complaints(self) -> list[str]:
        """What processes said that ended by themselves."""
        return [path.read_text() for path in sorted(self.folder.glob("ended-*.txt"))]


class Process:
    """One light process: `role` says what it does, `life` how often it was started before."""

    def __init__(self, place: Place, role: str, number: int = 0) -> None:
        self.place, self.role, self.number, self.life = place, role, number, 0
        self._child: ForkServerProcess | None = None
        self._started_s = 0.0

    def age_s(self) -> float:
        return time.monotonic() - self._started_s

    def start(self) -> None:
        self.life += 1
        self._started_s = time.monotonic()
        arguments = (self.place, self.role, self.number, self.life)
        self._child = _fork_server.Process(target=_run, args=arguments)
        self._child.start()

    def kill(self) -> bool:
        """SIGKILL, and wait for its end; False when it was not there to be killed."""
        if self._child is None or self._child.exitcode is not None:
            return False
        self._child.kill()
        self._child.join()
        return self._child.exitcode == -9

    def lives(self) -> bool:
        return self._child is not None and self._child.exitcode is None

    def end(self, timeout_s: float) -> None:
        """Wait for an end of its own."""
        if self._child is not None:
            self._child.join(timeout_s)


# ── in the child ────────────────────────────────────────────────────────────────────────────────


def _run(place: Place, role: str, number: int, life: int) -> None:
    die_with_parent()
    said = os.open(place.folder / f"{role}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(said, 2)
    logging.getLogger("bus").setLevel(logging.ERROR)  # that Redis is away is the point
    work: dict[str, Callable[[], None]] = {
        "producer": lambda: _produce(place, number, life),
        "validator": lambda: _validate(place),
        "writer": lambda: _write(place),
    }
    try:
        work[role]()
    except BaseException:  # noqa: BLE001 - a process that ends by itself is a finding
        text = f"{role} {number}: {traceback.format_exc()}"
        (place.folder / f"ended-{role}-{os.getpid()}.txt").write_text(text)
        os._exit(1)


def _produce(place: Place, number: int, life: int) -> None:
    """Submit as fast as the bus takes it; note every acknowledgement before the next."""
    chance = random.Random(f"{place.seed} producer {number} life {life}")
    bus = Bus(place.settings)
    acks = place.folder / f"acks-{number}.jsonl"
    mine: list[Plan] = []
    disputed: set[str] = set()  # ids under which two different jobs were handed in
    count = 0
    while not place.stop.exists():
        if count % _LOOK_EVERY == 0:
            _wait_for_room(bus, place)
        count += 1
        plan = Plan.of(f"p{number}-{life}-{count}")
        if mine and chance.random() < 0.07:  # the same id once more
            plan = chance.choice(mine[-40:])
            if plan.rejected_as is None and chance.random() < 0.3:
                plan = plan.with_other_content()
                disputed.add(plan.job_id)
        ack = plan.submit(bus, place.folder / f"producer-{number}.parquet")
        if ack is None:
            assert plan.job_id in disputed, f"{plan.job_id} is refused for no reason"
            continue
        note(acks, ack)
        if not plan.other:
            mine.append(plan)


def _wait_for_room(bus: Bus, place: Place) -> None:
    lake = bus.lake
    states = (JobState.STAGED, JobState.VALIDATING, JobState.READY)
    while sum(lake.count(state) for state in states) > _BACKLOG and not place.stop.exists():
        time.sleep(_PAUSE_S)


def _validate(place: Place) -> None:
    lake = Bus(place.settings).lake
    intake = Intake(lake, place.settings, Registry.load(place.settings))
    while True:
        if not intake.drain(budget_s=_SLICE_S).judged:
            time.sleep(_IDLE_S)


def _write(place: Place) -> None:
    lake = Bus(place.settings).lake
    registry = Registry.load(place.settings)
    with Writer.open(lake, place.settings, registry, wait_s=_FOR_EVER_S) as writer:
        while True:
            if not writer.drain(_SLICE_S).jobs:
                time.sleep(_IDLE_S)
