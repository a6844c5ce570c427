"""Jobs through the whole running bus, against the same checks in plain processes without a queue.

The clock runs from the first bell to the last receipt. Every lap has a fresh lake and a fresh bus
with warm processes; the jobs are staged before, beside it. See `plain.py` for the limit.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks import lakes
from benchmarks.live import WORKERS, by_process, live_bus
from benchmarks.plain import PlainCheckers
from bus import disk

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.rounds import Lap
    from benchmarks.workshop import Workshop


def measure(shop: Workshop) -> None:
    """500 jobs of one artifact: 0.45 of the limit; one job of 400 artifacts: 0.75."""
    many, wide = shop.size(500, 100), shop.size(400, 80)
    files = shop.files(many + wide)
    singles = [[path] for path in files[:many]]
    together = [files[many:]]
    sides = {
        "bus": partial(_through_the_bus, shop, singles),
        "limit": partial(_plainly, shop, files[:many], WORKERS),
        "bus, one job": partial(_through_the_bus, shop, together),
        "limit, one job": partial(_plainly, shop, files[many:], 1),
    }
    rounds = shop.plan().run(sides)

    def each(side: str, count: int) -> str:
        return f"{count / rounds.wall_s(side):,.0f} artifacts/s"

    shop.show(
        f"end_to_end.{many}_jobs_of_1",
        rounds.ratio("limit", "bus"),
        "x limit",
        at_least=0.45,
        rounds=rounds,
        remark=f"{each('bus', many)}, limit {each('limit', many)}",
    )
    shop.show(
        f"end_to_end.1_job_of_{wide}",
        rounds.ratio("limit, one job", "bus, one job"),
        "x limit",
        at_least=0.75,
        rounds=rounds,
        remark=f"{each('bus, one job', wide)}, limit {each('limit, one job', wide)}",
    )
    shop.show(
        f"end_to_end.{many}_jobs_of_1.by_cpu",
        rounds.cpu_s("limit") / rounds.cpu_s("bus"),
        "x limit",
        remark="the same ratio of CPU seconds: noise hardly moves it",
    )
    for side, count in zip(sides, (many, many, wide, wide), strict=True):
        cpu_ms = rounds.cpu_s(side) / count * 1000
        remark = by_process(rounds, side, count) if side.startswith("bus") else ""
        shop.show(f"end_to_end.cpu_per_artifact.{side}", cpu_ms, "CPU ms", remark=remark)


def _through_the_bus(shop: Workshop, jobs: Sequence[Sequence[Path]], lap: Lap) -> None:
    folder = shop.room("bus")
    lake = lakes.new_lake(folder / "lake")
    side = lakes.new_lake(folder / "side")
    job_ids = lakes.stage(side, jobs, "job")
    with live_bus(lake) as bus:
        bus.warm_up(side, shop.files(8))
        lakes.hand_over(side, lake, job_ids)
        with bus.accounted(lap), lap.measured():
            bus.ring_and_wait(job_ids)


def _plainly(shop: Workshop, files: Sequence[Path], processes: int, lap: Lap) -> None:
    folder = shop.room("limit")
    copies = [_copied(path, folder / path.name) for path in files]
    with PlainCheckers(copies, folder / "objects", processes) as checkers, lap.measured():
        checkers.go()
    kept = sum(1 for _ in (folder / "objects").iterdir())
    assert kept == len(files), f"{kept} of {len(files)} were kept"


def _copied(source: Path, target: Path) -> Path:
    """As durable as a staged file is."""
    disk.copy_file(source, target)
    disk.sync_file(target)
    return target
