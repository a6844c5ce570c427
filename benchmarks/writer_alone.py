"""The writer with judged jobs waiting, in process: against the bare file operations, and as it grows.

A lap is `Writer.drain` from the first look at ready/ to the last answer and artifact link. The
catalog's snapshot, which follows, is timed by when its file was published. Three lakes take part in
each round: one with 1,000 artifacts catalogued, one with 100,000, and one for the bare operations.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import inputs, lakes
from benchmarks.bare import BareWriter, Pattern
from bus.intake import Intake
from bus.lake import RECEIPT, Lake
from bus.settings import Settings
from bus.specs import Registry
from bus.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.rounds import Lap
    from benchmarks.workshop import Workshop

_ROWS = 50
_SMALL, _LARGE = "1,000", "100,000"


def measure(shop: Workshop) -> None:
    """Jobs of one artifact of ten columns; what a table's rows cost was the validators' affair."""
    jobs = shop.size(400, 100)
    sizes = {_SMALL: 1_000, _LARGE: shop.size(100_000, 10_000)}
    folder = shop.room("writer")
    with ExitStack() as stack:
        files = inputs.make_files(folder / "files", jobs, rows=_ROWS)
        benches = {
            name: stack.enter_context(_bench(folder / f"lake-{size}", size, files))
            for name, size in sizes.items()
        }
        pattern = benches[_SMALL].pattern()
        sides = {name: partial(_drained, bench) for name, bench in benches.items()}
        sides["bare"] = partial(_bare, folder, files, pattern)
        rounds = shop.plan().run(sides)
    each = {side: rounds.wall_s(side) / jobs * 1e6 for side in sides}
    shop.show(
        "writer_alone.of_limit",
        rounds.ratio("bare", _SMALL),
        "x limit",
        at_least=0.60,
        rounds=rounds,
        remark=f"{each[_SMALL]:,.0f} us per artifact, bare {each['bare']:,.0f}",
    )
    shop.show(
        "writer_alone.growth_100000_to_1000",
        rounds.ratio(_LARGE, _SMALL),
        "x",
        at_most=1.2,
        rounds=rounds,
        remark=f"{each[_LARGE]:,.0f} us per artifact",
    )
    published = zip(*(rounds.noted(name, "published_s") for name in (_LARGE, _SMALL)), strict=True)
    shop.show(
        "writer_alone.growth_with_snapshot",
        median(large / small for large, small in published),
        "x",
        at_most=1.2,
        rounds=rounds,
    )
    cpu_ms = rounds.cpu_s(_SMALL) / jobs * 1000
    shop.show("writer_alone.cpu_per_artifact", cpu_ms, "CPU ms", rounds=rounds)


@dataclass(slots=True)
class _Bench:
    """A lake with a writer, and files for new jobs."""

    lake: Lake
    settings: Settings
    registry: Registry
    writer: Writer
    files: list[Path]
    prepared: int = 0

    def prepare(self) -> int:
        """Stage the files as new jobs and have them judged; how many lie in ready/."""
        _judge(self.lake, self.settings, self.registry, self.files, f"round{self.prepared}")
        self.prepared += 1
        return len(self.files)

    def pattern(self) -> Pattern:
        """Commit one batch (which warms up, too) and take its pattern."""
        jobs = self.prepare()
        seq = self.writer.seq
        assert self.writer.drain(budget_s=0).jobs == jobs
        assert self.writer.seq == seq + 1, "one batch was expected to be one commit"
        receipt = next(self.lake.processed.iterdir()) / RECEIPT
        return Pattern.of(self.lake, self.writer.seq, receipt)


@contextmanager
def _bench(root: Path, artifacts: int, files: list[Path]) -> Iterator[_Bench]:
    lake = lakes.grown_lake(root, artifacts)
    lakes.catalogue(lake)
    settings = Settings.load(root)
    registry = Registry.load(settings)
    with Writer.open(lake, settings, registry) as writer:
        yield _Bench(lake, settings, registry, writer, files)


def _judge(
    lake: Lake, settings: Settings, registry: Registry, files: list[Path], prefix: str
) -> None:
    job_ids = lakes.stage(lake, list(lakes.each_alone(files)), prefix)
    result = Intake(lake, settings, registry).drain(budget_s=600)
    assert len(result.judged) == len(job_ids), result


def _drained(bench: _Bench, lap: Lap) -> None:
    jobs = bench.prepare()
    begin_s = time.time()
    with lap.measured():
        done = 0
        while done < jobs:
            done += bench.writer.drain(budget_s=0).jobs
    while bench.writer.drain().more:  # snapshot and run trees: nothing is left for the next lap
        pass
    lap.notes["published_s"] = bench.lake.catalog_db.stat().st_ctime - begin_s


def _bare(folder: Path, files: list[Path], pattern: Pattern, lap: Lap) -> None:
    lake = lakes.new_lake(folder / f"bare-{lap.number}")
    settings = Settings.load(lake.root)
    _judge(lake, settings, Registry.load(settings), files, "bare")
    bare = BareWriter(lake, pattern, folder / f"bare-{lap.number}.sqlite")
    with lap.measured():
        done = bare.commit()
    bare.close()
    assert done == len(files)
