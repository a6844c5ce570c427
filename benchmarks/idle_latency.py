"""One job at a time on an idle bus: from the call of `submit` to its row, found by somebody else.

The clock starts when `submit` is called (so making the Parquet file and its syncs count) and stops
when another process has opened the newly published catalog, found the row of that run, and opened
the Parquet file at the row's path. That process keeps its DuckDB, as `Bus.query` does, and opens each
snapshot anew; what it takes a reader that starts a DuckDB for each look is shown beside, measured after
that by a round of its own (starting one disturbs what follows). Samples of all clean rounds are pooled.
"""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import pairwise
from statistics import median, quantiles
from typing import TYPE_CHECKING

import duckdb

from benchmarks import inputs, lakes
from benchmarks.live import LiveBus, add_export, by_process, live_bus
from benchmarks.watcher import Watcher, is_there
from bus.client import Bus
from bus.intake import Intake
from bus.lake import RECEIPT, VERDICT
from bus.settings import Settings
from bus.snapshot import Snapshots
from bus.specs import Registry
from bus.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    import pyarrow as pa

    from benchmarks.rounds import Lap
    from benchmarks.workshop import Workshop
    from bus.client import Job
    from bus.lake import Lake

_PERIOD_S = 0.2
_STEPS = ("submit", "judge", "commit and publish", "see")
_SAMPLES_A_ROUND = 50
_WARM_UP = 10
_ARTIFACTS = 10_000
_SLOW = "SELECT count(*) AS n FROM range({}) t(i) WHERE hash(i) % 3 = 0"
_CALIBRATION_ROWS = 50_000_000
_PATIENCE_S = 60.0


def measure(shop: Workshop) -> None:
    """With 10,000 artifacts catalogued: idle, in one process, and during an export."""
    idle_p99_ms = _idle(shop)
    _in_one_process(shop)
    _during_export(shop, idle_p99_ms)


def _idle(shop: Workshop) -> float:
    """p99 in milliseconds."""
    folder = shop.room("idle")
    lake = lakes.grown_lake(folder / "lake", _ARTIFACTS)
    lakes.catalogue(lake)
    with live_bus(lake) as bus, Watcher(lake) as watcher:
        bus.pids["watcher"] = watcher.pid
        producer = _Producer(bus, watcher)
        producer.take(_WARM_UP)
        rounds = shop.plan(5).run({"idle": partial(_sample, producer)})
        with Watcher(lake, cold=True) as starter:
            producer.watcher = starter
            cold = shop.plan(1).run({"cold": partial(_sample, producer)})
    found = [sample for samples in rounds.noted("idle", "samples") for sample in samples]
    p50_ms, p99_ms = _percentiles([sample.seen_s for sample in found])
    name = f"idle_latency.{_ARTIFACTS}"
    remark = f"{len(found)} samples: {_road(found)}"
    shop.show(f"{name}.p50", p50_ms, "ms", at_most=50, rounds=rounds, remark=remark)
    shop.show(f"{name}.p99", p99_ms, "ms", at_most=120, rounds=rounds)
    (samples,) = cold.noted("cold", "samples")
    cold_ms, _ = _percentiles([sample.seen_s for sample in samples])
    remark = "the reader starts a DuckDB for each look"
    shop.show(f"{name}.p50_cold", cold_ms, "ms", rounds=cold, remark=remark)
    cpu_ms = rounds.cpu_s("idle") / _SAMPLES_A_ROUND * 1000
    remark = by_process(rounds, "idle", _SAMPLES_A_ROUND)
    shop.show(f"{name}.cpu_per_job", cpu_ms, "CPU ms", remark=remark)
    return p99_ms


def _in_one_process(shop: Workshop) -> None:
    """The same steps called one after the other, at the same pace: what no bus could be faster than.

    No Redis, no Celery, no hop from one process to another. Without pauses it tells what the steps
    cost while the machine's caches are theirs.
    """
    lake = lakes.grown_lake(shop.room("one") / "lake", _ARTIFACTS)
    lakes.catalogue(lake)
    with _OneProcess.open(lake) as chain:
        chain.take(_WARM_UP)
        sides = {"one": partial(_chained, chain, _PERIOD_S), "at_once": partial(_chained, chain, 0)}
        rounds = shop.plan(2).run(sides)
    name = f"idle_latency.{_ARTIFACTS}.in_one_process"
    for side, what in (("one", ""), ("at_once", "_without_pauses")):
        found = [seconds for lap in rounds.noted(side, "samples") for seconds in lap]
        p50_ms, _ = _percentiles([sum(steps) for steps in found])
        parts = zip(_STEPS, zip(*found, strict=True), strict=True)
        road = ", ".join(f"{step} {median(times) * 1000:.0f}" for step, times in parts)
        remark = f"the same steps, called in a row: {road}"
        shop.show(f"{name}{what}", p50_ms, "ms", rounds=rounds, remark=remark)


@dataclass(slots=True)
class _OneProcess:
    """A producer, a validator, the writer and a reader that take turns."""

    client: Bus
    intake: Intake
    writer: Writer
    snapshots: Snapshots
    submitted: int = 0

    @classmethod
    @contextmanager
    def open(cls, lake: Lake) -> Iterator[Self]:
        """On that lake, until the end of the block."""
        settings = Settings.load(lake.root)
        registry = Registry.load(settings)
        with Writer.open(lake, settings, registry) as writer:
            client = Bus(settings, ring=lambda _: None)
            yield cls(client, Intake(lake, settings, registry), writer, Snapshots(lake))

    def take(self, count: int, pause_s: float = 0.0) -> list[tuple[float, ...]]:
        """So many samples, after a pause each: the seconds that each step took."""
        samples = []
        for _ in range(count):
            time.sleep(pause_s)
            samples.append(self._one())
        return samples

    def _one(self) -> tuple[float, ...]:
        self.submitted += 1
        run_id = f"one-{self.submitted}"
        table = inputs.mixed(4_000_000 + 10 * self.submitted)
        catalog = self.client.lake.catalog_db
        moments = [time.perf_counter()]
        job = _submit(self.client, table, run_id, self.submitted)
        moments.append(time.perf_counter())
        assert self.intake.drain(job.job_id).judged == [job.job_id]
        moments.append(time.perf_counter())
        shown = catalog.stat().st_ino
        while catalog.stat().st_ino == shown:
            self.writer.drain(budget_s=0)
        moments.append(time.perf_counter())
        with self.snapshots.newest() as db:
            assert is_there(db, run_id, table.num_rows)
        moments.append(time.perf_counter())
        while self.writer.drain().more:  # run trees: between samples
            pass
        return tuple(after - before for before, after in pairwise(moments))


def _chained(chain: _OneProcess, pause_s: float, lap: Lap) -> None:
    with lap.measured():
        lap.notes["samples"] = chain.take(_SAMPLES_A_ROUND, pause_s)


def _during_export(shop: Workshop, idle_p99_ms: float) -> None:
    """The same while an export is being built that takes half a minute of one core."""
    rounds = shop.plan(1).run({"export": partial(_sample_during_export, shop)})
    (samples,) = rounds.noted("export", "samples")
    _, p99_ms = _percentiles([sample.seen_s for sample in samples])
    shop.show(
        "idle_latency.p99_during_export",
        p99_ms / idle_p99_ms,
        "x idle p99",
        at_most=2,
        rounds=rounds,
        remark=f"{p99_ms:.0f} ms; {len(samples)} samples in {rounds.wall_s('export'):.0f} s",
    )


def _sample_during_export(shop: Workshop, lap: Lap) -> None:
    folder = shop.room("export")
    lake = lakes.grown_lake(folder / "lake", _ARTIFACTS)
    lakes.catalogue(lake)
    add_export(lake, "slow", _slow_sql(shop.size(30, 8)))
    with live_bus(lake) as bus, Watcher(lake) as watcher:
        producer = _Producer(bus, watcher)
        producer.take(_WARM_UP)
        _wait_for(lambda: _is_building(lake))
        with lap.measured():
            lap.notes["samples"] = producer.take(1000, go_on=lambda: _is_building(lake))
        _wait_for(lake.export_path("slow").exists)


def _slow_sql(seconds: float) -> str:
    """A SELECT that keeps one thread of DuckDB busy for about that long."""
    with duckdb.connect(config={"threads": 1}) as db:
        begin_s = time.perf_counter()
        db.execute(_SLOW.format(_CALIBRATION_ROWS)).fetchall()
        rows_a_second = _CALIBRATION_ROWS / (time.perf_counter() - begin_s)
    return _SLOW.format(int(seconds * rows_a_second))


def _is_building(lake: Lake) -> bool:
    """Whether a build of exports is at work: its directory is there, its result is not."""
    if not lake.export_builds.is_dir():
        return False
    return any(not (build / "built.json").exists() for build in lake.export_builds.iterdir())


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "the export neither began nor ended in time"
        time.sleep(0.01)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Seconds from the call of `submit` until each step was done; the middle ones as files say.

    It returned; the verdict, the receipt were written; the snapshot was published; somebody else
    had the rows.
    """

    staged_s: float
    judged_s: float
    answered_s: float
    published_s: float
    seen_s: float


@dataclass(slots=True)
class _Producer:
    """Submits one table after the other, never two at once."""

    bus: LiveBus
    watcher: Watcher
    submitted: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311

    def take(self, count: int, go_on: Callable[[], bool] = lambda: True) -> list[_Sample]:
        """Up to that many samples, five a second, out of step with every timer of the bus."""
        samples = []
        for _ in range(count):
            if not go_on():
                break
            next_s = time.monotonic() + _PERIOD_S * self._random.uniform(0.75, 1.25)
            samples.append(self._one())
            time.sleep(max(0.0, next_s - time.monotonic()))
        return samples

    def _one(self) -> _Sample:
        self.submitted += 1
        run_id = f"idle-{self.submitted}"
        table = inputs.mixed(2_000_000 + 10 * self.submitted)
        self.watcher.expect(run_id, table.num_rows)
        begin_s = time.time()
        job = _submit(self.bus.client, table, run_id, self.submitted)
        staged_s = time.time()
        seen_s, published_s = self.watcher.seen_s()
        done = self.bus.lake.processed / job.job_id
        judged_s, answered_s = ((done / name).stat().st_mtime for name in (VERDICT, RECEIPT))
        moments = (staged_s, judged_s, answered_s, published_s, seen_s)
        staged, judged, answered, published, seen = (moment - begin_s for moment in moments)
        return _Sample(staged, judged, answered, published, seen)


def _submit(client: Bus, table: pa.Table, run_id: str, number: int) -> Job:
    return client.submit(
        table,
        kind=inputs.KIND,
        producer=inputs.PRODUCER,
        run_id=run_id,
        logical_key=f"token={number}",
    )


def _sample(producer: _Producer, lap: Lap) -> None:
    with producer.bus.accounted(lap), lap.measured():
        lap.notes["samples"] = producer.take(_SAMPLES_A_ROUND)


def _road(samples: list[_Sample]) -> str:
    """Median milliseconds at which each step was done."""
    steps = [field.name for field in fields(_Sample)]
    done_ms = {step: median(getattr(sample, step) for sample in samples) * 1000 for step in steps}
    return ", ".join(f"{step.removesuffix('_s')} {ms:.0f}" for step, ms in done_ms.items())


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    """p50 and p99 in milliseconds."""
    cuts = quantiles(seconds, n=100, method="inclusive")
    return cuts[49] * 1000, cuts[98] * 1000
