"""The writer with judged jobs waiting, in process: against the bare file operations, and as it grows.

A lap is `Writer.drain` from the first look at ready/ to the last answer and artifact link. The
catalog's snapshot, which follows, is timed by when its file was published. One lake of 1,000 artifacts
is held against one for the bare operations, with plain jobs. Two more, of 1,000 and of 200,000, take
jobs as people have them: each artifact was made from two that are there, carries tags, and an alias
moves to it.
"""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import inputs, lakes, machine
from benchmarks.bare import BareWriter, Pattern
from bus.intake import Intake
from bus.lake import RECEIPT, Lake
from bus.process import settle_heap
from bus.settings import Settings
from bus.specs import Registry
from bus.staging import Staging
from bus.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.rounds import Lap, Rounds
    from benchmarks.workshop import Workshop

_ROWS = 50
_SMALL, _LARGE = "1,000", "200,000"
_ALIASES = 40
_SOURCES = 1_000
#: A writer at work has the pages that every batch needs in memory, and those of a batch lie far apart.
_BATCHES_BEFORE = 3


def measure(shop: Workshop) -> None:
    """Jobs of one artifact of ten columns; what a table's rows cost was the validators' affair."""
    jobs = shop.size(400, 100)
    sizes = {_SMALL: 1_000, _LARGE: shop.size(200_000, 10_000)}
    folder = shop.room("writer")
    with ExitStack() as stack:
        files = inputs.make_files(folder / "files", jobs, rows=_ROWS)
        plain = stack.enter_context(_bench(folder / "plain", 1_000, files, _plain))
        pattern = plain.pattern()
        settle_heap()  # as the writer's own process does
        sides = {"plain": partial(_drained, plain), "bare": partial(_bare, folder, files, pattern)}
        of_limit = shop.plan().run(sides)
        grown = {}
        for name, size in sizes.items():
            bench = stack.enter_context(_bench(folder / f"lake-{size}", size, files, _in_use))
            for _ in range(_BATCHES_BEFORE):
                bench.drain(bench.prepare())
            grown[name] = partial(_drained, bench)
        if not shop.quick:  # else the larger snapshot takes the pages that cost more
            shop.say(stack.enter_context(machine.full_memory(folder)))
        growth = shop.plan(15).run(grown)
    gc.unfreeze()
    shop.show(
        "writer_alone.of_limit",
        of_limit.ratio("bare", "plain"),
        "x limit",
        at_least=0.60,
        rounds=of_limit,
        remark=_each(of_limit, jobs, "plain", "bare"),
    )
    shop.show(
        "writer_alone.growth_200000_to_1000",
        growth.ratio(_LARGE, _SMALL),
        "x",
        at_most=1.2,
        rounds=growth,
        remark=f"{_each(growth, jobs, _LARGE, _SMALL)}, with inputs, tags, alias",
    )
    published = zip(*(growth.noted(name, "published_s") for name in (_LARGE, _SMALL)), strict=True)
    shop.show(
        "writer_alone.growth_with_snapshot",
        median(large / small for large, small in published),
        "x",
        at_most=1.2,
        rounds=growth,
    )
    cpu_ms = of_limit.cpu_s("plain") / jobs * 1000
    shop.show("writer_alone.cpu_per_artifact", cpu_ms, "CPU ms", rounds=of_limit)
    by_cpu = growth.cpu_s(_LARGE) / growth.cpu_s(_SMALL)
    shop.show("writer_alone.growth_by_cpu", by_cpu, "x", rounds=growth)


def _each(rounds: Rounds, jobs: int, ours: str, other: str) -> str:
    """What an artifact took on either side."""
    ours_us, other_us = (rounds.wall_s(side) / jobs * 1e6 for side in (ours, other))
    return f"{ours_us:,.0f} us per artifact, {other} {other_us:,.0f}"


@dataclass(slots=True)
class _Bench:
    """A lake with a writer, files for new jobs, and how these are staged."""

    lake: Lake
    settings: Settings
    registry: Registry
    writer: Writer
    files: list[Path]
    stage: Callable[[Lake, list[Path], str], None]
    prepared: int = 0

    def prepare(self) -> int:
        """Stage the files as new jobs and have them judged; how many lie in ready/."""
        self.stage(self.lake, self.files, f"round{self.prepared}")
        _judge(self.lake, self.settings, self.registry, len(self.files))
        self.prepared += 1
        return len(self.files)

    def drain(self, jobs: int) -> None:
        """Commit and answer so many jobs that lie in ready/."""
        done = 0
        while done < jobs:
            result = self.writer.drain(budget_s=0)
            assert result.jobs, "a job in ready/ is not taken"
            done += result.jobs

    def pattern(self) -> Pattern:
        """Commit one batch (which warms up, too) and take its pattern."""
        jobs = self.prepare()
        seq = self.writer.seq
        assert self.writer.drain(budget_s=0).jobs == jobs
        assert self.writer.seq == seq + 1, "one batch was expected to be one commit"
        receipt = next(self.lake.processed.iterdir()) / RECEIPT
        return Pattern.of(self.lake, self.writer.seq, receipt)


@contextmanager
def _bench(
    root: Path,
    artifacts: int,
    files: list[Path],
    stage: Callable[[Lake, list[Path], str], None],
) -> Iterator[_Bench]:
    lake = lakes.grown_lake(root, artifacts)
    lakes.catalogue(lake)
    settings = Settings.load(root)
    registry = Registry.load(settings)
    with Writer.open(lake, settings, registry) as writer:
        yield _Bench(lake, settings, registry, writer, files, stage)


def _plain(lake: Lake, files: list[Path], prefix: str) -> None:
    lakes.stage(lake, list(lakes.each_alone(files)), prefix)


def _in_use(lake: Lake, files: list[Path], prefix: str) -> None:
    """Artifacts that were made from others, with tags, each the target of an alias from now on."""
    sources = lakes.some_ids(lake, _SOURCES)
    for number, path in enumerate(files):
        job_id = f"{prefix}-{number:05d}"
        with Staging(lake, f"run-{job_id}", inputs.PRODUCER, inputs.KIND, job_id) as staging:
            staging.add(
                path,
                name="table",
                logical_key=f"token={prefix}-{number}/res=1s",
                inputs=[sources[2 * number % _SOURCES], sources[(2 * number + 1) % _SOURCES]],
                tags={"token": [f"T{number % 50}"], "round": [prefix]},
            )
            alias = {"op": "alias", "kind": inputs.KIND, "alias": f"best-{number % _ALIASES}"}
            staging.submit(mutations=[alias | {"target": f"job:{job_id}/table"}])


def _judge(lake: Lake, settings: Settings, registry: Registry, jobs: int) -> None:
    result = Intake(lake, settings, registry).drain(budget_s=600)
    assert len(result.judged) == jobs, result


def _drained(bench: _Bench, lap: Lap) -> None:
    jobs = bench.prepare()
    begin_s = time.time()
    with lap.measured():
        bench.drain(jobs)
    while bench.writer.drain().more:  # snapshot and run trees: nothing is left for the next lap
        pass
    lap.notes["published_s"] = bench.lake.catalog_db.stat().st_ctime - begin_s


def _bare(folder: Path, files: list[Path], pattern: Pattern, lap: Lap) -> None:
    lake = lakes.new_lake(folder / f"bare-{lap.number}")
    settings = Settings.load(lake.root)
    _plain(lake, files, "bare")
    _judge(lake, settings, Registry.load(settings), len(files))
    bare = BareWriter(lake, pattern, folder / f"bare-{lap.number}.sqlite")
    with lap.measured():
        done = bare.commit()
    bare.close()
    assert done == len(files)
