"""Whatever is published, withdrawn, collected, killed and rebuilt: what is reachable is never gone.

A model in plain sets says what is reachable; it knows nothing of how the bus finds out.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from bus import retention, writer as writer_module
from bus.hashing import content_hash
from bus.intake import Intake
from bus.model import JobState
from bus.verify import verify
from tests.crash_kit import RETENTION_POINTS, Job, Scene
from tests.pipeline import KIND, LightCatalog, Pipeline, table
from tests.waiting import wait_until

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests.campaign import Campaign

#: (logical key, number of the table): what tells artifacts apart. Bytes depend on the number alone.
Key = tuple[str, int]

KEYS, NUMBERS = ("ka", "kb", "kc"), range(4)
CONTENTS = {content_hash(table(number)): number for number in NUMBERS}
POINTS = [*RETENTION_POINTS, "commit.decided", "commit.linked", "index.done", "answer.written"]


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "Catalog", LightCatalog)
    # Nobody cuts the power here, and whoever is killed leaves the kernel what it wrote.
    monkeypatch.setattr(os, "fsync", lambda _: None)


@dataclass
class Model:
    """What is there, and what keeps it."""

    jobs: dict[Key, str] = field(default_factory=dict)  # one that delivered it
    tombstoned: set[Key] = field(default_factory=set)
    superseded: set[Key] = field(default_factory=set)
    supersedes: set[tuple[Key, Key]] = field(default_factory=set)
    inputs: set[tuple[Key, Key]] = field(default_factory=set)
    aliases: dict[str, Key] = field(default_factory=dict)
    pins: set[Key] = field(default_factory=set)
    collects_superseded: bool = False

    def reachable(self) -> set[Key]:
        kept = {k for k in self.jobs if k not in self.tombstoned | self.superseded}
        kept |= {*self.aliases.values()} | self.pins
        if not self.collects_superseded:
            kept |= self.superseded - self.tombstoned
        while more := {source for made, source in self.inputs if made in kept} - kept:
            kept |= more
        return kept

    def needed_numbers(self) -> set[int]:
        return {number for _, number in self.reachable()}


class Life:
    """One lake, what happens to it, and the model of it."""

    def __init__(self, root: Path, chance: random.Random) -> None:
        self.scene = Scene(root, lineage_wait_s=0.0, settings={"trash_days": 0, "gc_grace_days": 0})
        self.pipe = self.scene.pipe()
        self.model = Model()
        self.chance = chance
        self.count = 0
        settle(self.pipe)  # there is a manifest
        self.publish()

    def step(self) -> None:
        self.count += 1
        action = self.chance.choice([self.publish] * 3 + [self.change] * 4 + [self.collect] * 2)
        action()
        if self.chance.random() < 0.1:
            self.rebuild()

    # ── what happens ──────────────────────────────────────────────────────────────────────────

    def publish(self) -> None:
        """Something new, or again; made from something that is there, or from nothing."""
        key = (self.chance.choice(KEYS), self.chance.choice(NUMBERS))
        sources = [k for k in self._alive() if k != key and not self._descends(k, key)]
        source = self.chance.choice([*sources, None])
        entries = {"inputs": [self._reference(source)]} if source else {}
        job = Job(f"job-{self.count}", (key[1],), keys=(key[0],), entries=entries)
        self._work(job)
        self.model.jobs[key] = job.job_id
        self.model.tombstoned.discard(key)
        assert key in self._alive()
        if source:
            self.model.inputs.add((key, source))

    def change(self) -> None:
        if not (alive := self._alive()):
            return
        key = self.chance.choice(alive)
        target = self._reference(key)
        match self.chance.choice(["tombstone", "tombstone", "supersede", "alias", "pin", "policy"]):
            case "tombstone":
                self._mutate(op="tombstone", target=target, reason="wrong")
                self.model.tombstoned.add(key)
            case "supersede":
                self._supersede(key, self.chance.choice(alive))
            case "alias":
                gone = self.chance.random() < 0.4 or key in self.model.tombstoned
                self._mutate(op="alias", kind=KIND, alias="a", target=None if gone else target)
                self.model.aliases = {} if gone else {"a": key}
            case "pin":
                op = self.chance.choice(["pin", "unpin"])
                self._mutate(op=op, pin="p", target=target)
                (self.model.pins.add if op == "pin" else self.model.pins.discard)(key)
            case _:
                self.model.collects_superseded = self.chance.random() < 0.5
                days = 0 if self.model.collects_superseded else None
                self._mutate(op="set_policy", kind=KIND, keep_days=days)

    def _supersede(self, old: Key, new: Key) -> None:
        if self._leads(old, new) or {old, new} & self.model.tombstoned:
            return
        self._mutate(op="supersede", target=self._reference(old), by=self._reference(new))
        self.model.superseded.add(old)
        self.model.supersedes.add((new, old))

    def collect(self) -> None:
        """A plan is carried out, and whoever does it may be killed."""
        purged, reachable = self._purged(), self.model.reachable()
        plan = retention.plan(self.pipe.lake, self.pipe.settings)
        objects = [piece.object for piece in plan.going if piece.object]
        # What must stay is asked for as well: the writer has to look for itself.
        objects += [path.stem for path in self.pipe.lake.all_objects()]
        purges = [{"op": "purge", "object": o, "reason": "gc"} for o in dict.fromkeys(objects)]
        if purges:
            job = Job(f"gc-{self.count}", fields={"mutations": purges})
            self.scene.run(job, crash=self.chance.choice(["", *POINTS]))
            self._settle()
        assert (self._purged() - purged).isdisjoint(reachable)
        there = {CONTENTS[content_hash(pq.read_table(p))] for p in self.pipe.lake.all_objects()}
        assert there <= {number for _, number in reachable}, "what nothing needs is still there"

    def rebuild(self) -> None:
        with self.pipe.writer() as writer:
            writer.rebuild()
        self._settle()

    def _mutate(self, **change: Any) -> None:
        self._work(Job(f"change-{self.count}", fields={"mutations": [change]}))

    def _work(self, job: Job) -> None:
        job.submit(self.pipe)
        self._settle()
        assert self.pipe.state(job.job_id) is JobState.COMMITTED, job

    def _settle(self) -> None:
        settle(self.pipe)

    # ── what there is ─────────────────────────────────────────────────────────────────────────

    def _reference(self, key: Key) -> str:
        return f"job:{self.model.jobs[key]}/t0"

    def _descends(self, key: Key, ancestor: Key) -> bool:
        direct = {source for made, source in self.model.inputs if made == key}
        return ancestor in direct or any(self._descends(k, ancestor) for k in direct)

    def _leads(self, start: Key, end: Key) -> bool:
        nexts = [old for new, old in self.model.supersedes if new == start]
        return start == end or any(self._leads(k, end) for k in nexts)

    def _statuses(self) -> dict[Key, tuple[str, str]]:
        """Status and path of every artifact."""
        sql = "SELECT logical_key, content_hash, status, path_parquet FROM artifacts"
        rows = self.pipe.rows(sql)
        return {(key, CONTENTS[content]): (status, path) for key, content, status, path in rows}

    def _purged(self) -> set[Key]:
        return {key for key, (status, _) in self._statuses().items() if status == "purged"}

    def _alive(self) -> list[Key]:
        return sorted(self.model.jobs.keys() - self._purged())

    def assert_all_else_is_there(self) -> None:
        known = self._statuses()
        assert known.keys() == self.model.jobs.keys()
        for key, (status, path) in known.items():
            if status != "purged":
                assert pq.read_table(path) == table(key[1]), key


def settle(pipe: Pipeline) -> None:
    """All that waits, and the idle work."""
    pipe.judge()
    with pipe.writer() as writer:
        while writer.drain().more:
            pass


def problems(pipe: Pipeline) -> list[Any]:
    found = verify(pipe.lake, pipe.settings, pipe.registry).findings
    return [f for f in found if f.where != str(pipe.lake.catalog_db)]  # the light one is none


@pytest.mark.slow
def test_nothing_reachable_is_ever_collected_and_nothing_else_stays(
    tmp_path: Path, campaign: Campaign
) -> None:
    life = Life(tmp_path, campaign.chance)
    steps = campaign.size(short=35, long=3000)
    for _ in range(steps):
        life.step()
        life.assert_all_else_is_there()
    assert problems(life.pipe) == []
    purges = sum(job.job_id.startswith("gc-") for r in life.pipe.records() for job in r.jobs)
    campaign.record(steps=steps, purges=purges)


class Crowd:
    """Producers, validators, a writer and a collector at once, until the producers are done."""

    def __init__(self, root: Path, rounds: int) -> None:
        self.pipe = Pipeline(root, trash_days=0, gc_grace_days=0)
        self.rounds = rounds
        self.cycles = 0  # of the collector
        self.done = threading.Event()
        self.failures: list[BaseException] = []

    def run(self, numbers: tuple[int, ...]) -> None:
        settle(self.pipe)  # there is a manifest
        others = [self._start(w) for w in (self.judge, self.judge, self.commit, self.collect)]
        producers = [self._start(self.produce, i, number) for i, number in enumerate(numbers)]
        for producer in producers:
            producer.join()
        self.done.set()
        for other in others:
            other.join()

    def _start(self, work: Any, *arguments: Any) -> threading.Thread:
        def guarded() -> None:
            try:
                work(*arguments)
            except BaseException as error:  # noqa: BLE001 - the test tells it
                self.failures.append(error)
                self.done.set()

        thread = threading.Thread(target=guarded)
        thread.start()
        return thread

    def judge(self) -> None:
        intake = Intake(self.pipe.lake, self.pipe.settings, self.pipe.registry)
        while not self.done.is_set():
            assert intake.drain(budget_s=0.2).faults == {}

    def commit(self) -> None:
        with self.pipe.writer() as writer:
            while not self.done.is_set():
                writer.drain(0.2)

    def collect(self) -> None:
        while not self.done.is_set():
            retention.apply(self.pipe.lake, retention.plan(self.pipe.lake, self.pipe.settings))
            self.cycles += 1

    def produce(self, who: int, number: int) -> None:
        """Submit a table, withdraw it when it is there, and so on; the last one stays."""
        for again in range(self.rounds):
            job_id = f"job-{who}-{again}"
            self.pipe.stage(job_id, table(number), keys=[f"k{number}"])
            self._wait(job_id)
            if again < self.rounds - 1:
                change = {"op": "tombstone", "target": f"job:{job_id}/t0", "reason": "again"}
                self.pipe.stage(f"withdraw-{who}-{again}", mutations=[change])
                self._wait(f"withdraw-{who}-{again}")
                if again % 2 == 0:  # so that it meets a purge, and not only a tombstone
                    wait_until(partial(self._collected, self.cycles + 1), 60)

    def _wait(self, job_id: str) -> None:
        wait_until(partial(self._answered, job_id), 60)

    def _collected(self, cycles: int) -> bool:
        return self.done.is_set() or self.cycles > cycles

    def _answered(self, job_id: str) -> bool:
        return self.done.is_set() or self.pipe.state(job_id) is JobState.COMMITTED


@pytest.mark.slow
def test_collecting_beside_validators_and_producers_loses_no_submission(
    tmp_path: Path, campaign: Campaign
) -> None:
    crowd = Crowd(tmp_path / "lake", campaign.size(short=6, long=500))
    crowd.run((1, 2, 2))
    assert crowd.failures == []
    settle(crowd.pipe)
    pipe = crowd.pipe
    rows = pipe.rows("SELECT logical_key, status, path_parquet FROM artifacts ORDER BY 1")
    assert [row[:2] for row in rows] == [("k1", "active"), ("k2", "active")]
    for key, _, path in rows:
        assert pq.read_table(path) == table(int(key[1:]))
    assert problems(pipe) == []
    (purges,) = pipe.rows("SELECT count(*) FROM purge_facts")[0]
    assert purges > 0, "nothing was ever collected"
    campaign.record(rounds=crowd.rounds, purges=purges)
