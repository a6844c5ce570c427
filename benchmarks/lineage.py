"""Lineage over a lake of 100,000 artifacts, all made from one, with a diamond at every tenth.

Every call is a whole one, as a program makes it: the manifest is opened, the reference resolved,
the graph followed and described. `of_lake` measures on any grown lake that has its manifest.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks import lakes
from bus.client import Bus
from bus.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.rounds import Lap
    from benchmarks.workshop import Workshop
    from bus.lake import Lake

_CALLS = 3
_DEPTH = 10


def measure(shop: Workshop) -> None:
    """A lake of 100,000 artifacts; nothing here reads a table."""
    of_lake(shop, shop.lake_of(shop.size(100_000, 10_000)))


def of_lake(shop: Workshop, lake: Lake) -> None:
    """The graph around the first and the last artifact, and what hangs on the first: everything."""
    bus = Bus(Settings.load(lake.root))
    artifacts, edges = lakes.counted(lake)
    first, last = (f"job:old-{n}/table-{n}" for n in (0, artifacts - 1))
    down, up = bus.lineage(first, "down", _DEPTH), bus.lineage(last, "up", _DEPTH)
    hit = bus.impact(first)
    assert down.cut
    assert hit.artifacts == artifacts - 1
    calls: dict[str, Callable[[], object]] = {
        "down": partial(bus.lineage, first, "down", _DEPTH),
        "up": partial(bus.lineage, last, "up", _DEPTH),
        "impact": partial(bus.impact, first),
        "stale": bus.stale,
        "orphans": bus.orphans,
    }
    rounds = shop.plan().run({name: partial(_call, call) for name, call in calls.items()})

    def ms(side: str) -> float:
        return rounds.wall_s(side) / _CALLS * 1000

    def show(name: str, side: str, at_most: float | None, remark: str) -> None:
        shop.show(f"lineage.{name}", ms(side), "ms", at_most=at_most, rounds=rounds, remark=remark)

    of = f"of {edges:,} edges"
    show("depth_10_down", "down", 50, f"{len(down.nodes):,} artifacts described, {of}")
    show("depth_10_up", "up", 50, f"{len(up.nodes):,} artifacts described, {of}")
    listed = sum(each.what == "artifact" for each in hit.hits)
    show("impact", "impact", 200, f"{hit.artifacts:,} artifacts hit, {listed:,} ways told")
    show("stale", "stale", None, "")
    show("orphans", "orphans", None, "")


def _call(call: Callable[[], object], lap: Lap) -> None:
    with lap.measured():
        for _ in range(_CALLS):
            call()
