"""The soak itself: who runs, who is killed when, and how it ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bus.broker import endpoint
from bus.client import Bus
from bus.model import JobState
from bus.process import die_with_parent
from bus.settings import Settings
from bus.specs import Registry
from bus.supervisor import processes
from bus.writer import Writer
from tests.soak.check import Findings, check
from tests.soak.processes import Place, Process

if TYPE_CHECKING:
    from collections.abc import Callable

PRODUCERS = 4
VALIDATORS = 2
#: How often one of each kind is the next to die.
_LIGHT = {"producer": 4, "validator": 3, "writer": 1}
#: A writer that was only just started has committed nothing yet: then a producer dies in its place.
_YOUNG_S = 0.5
#: What takes seconds to start again dies more rarely: its start takes the others' processor.
_REAL = {
    "ingest": 1,
    "ingest's child": 6,
    "writer": 1,
    "writer's child": 4,
    "pump": 1,
    "beat": 1,
    "redis": 4,
    "supervisor": 1,
}
#: The light writer and Celery's take turns: both hold the lake's lock until they die. Celery's
#: turn begins when it has the lock, and ends anyway when it does not come for so long.
_LIGHT_TURN_S = (8.0, 15.0)
_CELERY_TURN_S = (1.0, 3.0)
_CELERY_COMES_S = 15.0
_SETTLE_S = 10.0
_PROGRESS_S = 10.0


@dataclass(frozen=True)
class Options:
    """How long and how hard. `real`: with Redis, Celery and the supervisor, killed as well.

    `least`: go on until there are so many kills and acknowledgements, however slow the machine.
    """

    seconds: float
    seed: int
    light_kills_per_s: float = 7.0
    real_kills_per_s: float = 0.3
    real: bool = True
    drain_s: float = 180.0
    least: int = 0


@dataclass
class Outcome:
    """What happened. Its text is the one line that sums it up."""

    options: Options
    place: Place
    seconds: float
    kills: Counter[str] = field(default_factory=Counter)
    findings: Findings = field(default_factory=Findings)

    @property
    def ok(self) -> bool:
        return not self.findings.violations

    def __str__(self) -> str:
        found = self.findings
        return (
            f"soak: {sum(self.kills.values()):,} kills, {found.acknowledged:,} submissions of "
            f"{found.jobs:,} jobs acknowledged, {len(found.lost)} lost, {len(found.doubled)} "
            f"doubled, {len(found.altered)} altered, {len(found.broken)} other findings; "
            f"{found.commits:,} commits, {found.repeated:,} repeated, {found.rejected:,} rejected, "
            f"{found.objects:,} objects in {self.seconds:.0f} s (seed {self.options.seed})"
        )


def run(folder: Path, options: Options, say: Callable[[str], None] = lambda _: None) -> Outcome:
    """A soak in an empty folder; nothing of it is left running."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings.load(
        folder / "lake",
        find=False,
        workers=2,
        sweep_interval_s=1.0,
        lineage_wait_s=1.0,
        quiet_s=0.2,
    )
    Bus(settings).lake.create()
    soak = _Soak(Place(settings, folder, options.seed), options, say)
    try:
        soak.run()
    finally:
        soak.kill_all()
    say(f"Celery's writer had {soak.turns} turns; now everything is held against the acknowledged")
    try:
        _finish(settings)
    except Exception as error:  # noqa: BLE001 - whatever it is, the check must say the rest
        findings = check(soak.place, whole=False)
        findings.broken.append(f"no writer can be opened any more: {error!r}")
    else:
        findings = check(soak.place)
    findings.broken += [f"ended by itself: {text}" for text in soak.place.complaints()]
    return Outcome(options, soak.place, soak.seconds, soak.kills, findings)


def told(kills: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(kills.items())) or "nobody"


def _finish(settings: Settings) -> None:
    """Bring the views forward, as the next start of a writer would."""
    lake = Bus(settings).lake
    with Writer.open(lake, settings, Registry.load(settings), wait_s=10.0) as writer:
        while writer.drain().more:
            pass


class _Soak:
    def __init__(self, place: Place, options: Options, say: Callable[[str], None]) -> None:
        self.place = place
        self.kills: Counter[str] = Counter()
        self.turns = 0
        self.seconds = 0.0
        self._options = options
        self._say = say
        self._chance = random.Random(f"soak {options.seed}")
        self._lake = Bus(place.settings).lake
        self._producers = [Process(place, "producer", n) for n in range(PRODUCERS)]
        self._validators = [Process(place, "validator", n) for n in range(VALIDATORS)]
        self._writer = Process(place, "writer")
        self._light = [*self._producers, *self._validators, self._writer]
        self._bus: subprocess.Popen[bytes] | None = None
        self._turn, self._turn_ends_s = "light", 0.0
        self._celery_came = False

    # ── the course ────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        began_s = time.monotonic()
        if self._options.real:
            self._start_bus()
        for process in self._light:
            process.start()
        while not self._acknowledged() and time.monotonic() < began_s + _SETTLE_S:
            time.sleep(0.01)  # the first ones import everything
        self._kill_for(self._options.seconds)
        self.place.stop.touch()
        for producer in self._producers:
            producer.end(_SETTLE_S)
        self._turn = "light"
        self._look_after()
        self._drain()
        self._stop_bus()
        self.seconds = time.monotonic() - began_s

    def _kill_for(self, seconds: float) -> None:
        now = began_s = time.monotonic()
        end_s = began_s + seconds
        next_light_s = began_s + 0.5
        next_real_s = began_s + self._gap(self._options.real_kills_per_s)
        next_say_s = began_s + _PROGRESS_S
        self._turn_ends_s = began_s + 15.0  # Celery needs a while to come up
        while now < end_s or not self._enough(now - end_s):
            if now >= next_light_s:
                self._kill_light()
                next_light_s += self._gap(self._options.light_kills_per_s)
            if self._options.real and now >= next_real_s:
                self._kill_real(self._chance.choices([*_REAL], [*_REAL.values()])[0])
                next_real_s = now + self._gap(self._options.real_kills_per_s)
            if self._options.real:
                self._take_turns(now)
            self._look_after()
            if now >= next_say_s:
                self._tell(now - began_s)
                next_say_s += _PROGRESS_S
            time.sleep(max(0.0, min(0.05, next_light_s - time.monotonic())))
            now = time.monotonic()

    def _gap(self, per_s: float) -> float:
        return self._chance.expovariate(per_s)

    def _enough(self, late_s: float) -> bool:
        least = self._options.least
        reached = min(sum(self.kills.values()), self._acknowledged() if least else 0) >= least
        return reached or late_s > self._options.drain_s

    def _acknowledged(self) -> int:
        acks = self.place.folder.glob("acks-*.jsonl")
        return sum(path.read_bytes().count(b"}\n") for path in acks)

    def _tell(self, so_far_s: float) -> None:
        lines = self._acknowledged()
        states = {state: self._lake.count(state) for state in (JobState.STAGED, JobState.READY)}
        waiting = ", ".join(f"{count} {state}" for state, count in states.items())
        kills = sum(self.kills.values())
        self._say(
            f"{so_far_s:5.0f} s: {kills:,} kills ({kills / so_far_s:.1f}/s), {lines:,} acknowledged "
            f"({lines / so_far_s:.0f}/s), {waiting}, {self._turn}'s turn to write"
        )

    def _drain(self) -> None:
        """Let everybody who is left finish what waits."""
        deadline = time.monotonic() + self._options.drain_s
        on_their_way = (JobState.STAGED, JobState.VALIDATING, JobState.READY)
        while any(self._lake.has_any(state) for state in on_their_way):
            if time.monotonic() > deadline:
                return  # the check says what still lies there
            self._look_after()
            time.sleep(0.05)

    # ── light processes ───────────────────────────────────────────────────────────────────────

    def _kill_light(self) -> None:
        role = self._chance.choices([*_LIGHT], [*_LIGHT.values()])[0]
        if role == "writer" and self._writer.age_s() < _YOUNG_S:
            role = "producer"
        victim = self._chance.choice([p for p in self._light if p.role == role])
        if victim.kill():
            self.kills[f"light {role}"] += 1

    def _look_after(self) -> None:
        """Start again whoever is not there."""
        stopping = self.place.stop.exists()
        for process in self._light:
            idle = process is self._writer and self._turn == "celery"
            idle |= process.role == "producer" and stopping
            if not idle and not process.lives():
                process.start()
        if self._options.real and self._bus is not None and self._bus.poll() is not None:
            self._start_bus()

    # ── the real bus ──────────────────────────────────────────────────────────────────────────

    def _start_bus(self) -> None:
        us = os.getpid()
        state = {"XDG_STATE_HOME": str(self.place.folder / "state")}
        with (self.place.folder / "up.log").open("ab") as output:
            self._bus = subprocess.Popen(
                [sys.executable, "-m", "tests.soak.up", "up"],
                env=processes.environment(self.place.settings) | state,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=lambda: die_with_parent(us),  # noqa: PLW1509 - a system call only
            )

    def _stop_bus(self) -> None:
        bus, self._bus = self._bus, None
        if bus is not None:
            bus.terminate()
            with suppress(subprocess.TimeoutExpired):
                bus.wait(30)
            bus.kill()
            bus.wait()

    def _take_turns(self, now: float) -> None:
        """Let the other writer have the lock: it is only given up by dying."""
        if self._turn == "celery" and not self._celery_came and self._celery_writes():
            self._celery_came = True
            self.turns += 1
            self._turn_ends_s = now + self._chance.uniform(*_CELERY_TURN_S)
        if now < self._turn_ends_s:
            return
        if self._turn == "light":
            if self._writer.kill():
                self.kills["light writer"] += 1
            self._turn, self._celery_came = "celery", False
            self._turn_ends_s = now + _CELERY_COMES_S
        else:
            self._kill_real(self._chance.choice(["writer", "writer's child", "writer's child"]))
            self._turn = "light"
            self._turn_ends_s = now + self._chance.uniform(*_LIGHT_TURN_S)

    def _celery_writes(self) -> bool:
        """Whether Celery's writer holds the lake's lock."""
        running = endpoint(self._lake)
        main = None if running is None else running.processes.get("writer")
        try:
            holder = int(self._lake.writer_lock.read_text())
        except (OSError, ValueError):
            return False
        return main is not None and holder in _children(main)

    def _kill_real(self, name: str) -> None:
        pid = self._pid_of(name)
        if pid is None or not self._serves(pid):
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.kills[name if name in {"redis", "supervisor"} else f"celery {name}"] += 1
            if name == "supervisor" and self._bus is not None:
                self._bus.wait()

    def _pid_of(self, name: str) -> int | None:
        if name == "supervisor":
            return None if self._bus is None or self._bus.poll() is not None else self._bus.pid
        running = endpoint(self._lake)
        role, _, child = name.partition("'s ")
        pid = None if running is None else running.processes.get(role)
        if pid is None or not child:
            return pid
        children = _children(pid)
        return self._chance.choice(children) if children else None

    def _serves(self, pid: int) -> bool:
        """Whether a process is one of this lake's: its number may be somebody else's by now."""
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return f"BUS_LAKE={self._lake.root}".encode() in environment

    def kill_all(self) -> None:
        """Whatever happened, nobody is left."""
        for process in self._light:
            process.kill()
        if self._bus is not None:
            self._bus.kill()  # its children die with it
            self._bus.wait()


def _children(pid: int) -> list[int]:
    try:
        return sorted(int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except OSError:
        return []
