"""Views made again from the journal: manifest and catalog, then the link trees.

Each lap deletes what it is about and lets a real `Writer` make it again. The links under
`artifacts/` are in place when manifest and catalog are rebuilt, as after the loss of the two files.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks import lakes
from bus.settings import Settings
from bus.specs import Registry
from bus.writer import Writer

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.rounds import Lap
    from benchmarks.workshop import Workshop
    from bus.lake import Lake


def measure(shop: Workshop) -> None:
    """A lake of 10,000 artifacts, each of ten columns and by a job of its own."""
    artifacts = shop.size(10_000, 3_000)
    folder = shop.room("rebuild")
    lake = lakes.grown_lake(folder / "lake", artifacts)
    lakes.catalogue(lake)
    settings = Settings.load(lake.root)
    with Writer.open(lake, settings, Registry.load(settings)) as writer:
        sides = {
            "views": partial(_views, writer),
            "links": partial(_links, writer, lake),
            "trees": partial(_trees, writer, lake),
        }
        rounds = shop.plan().run(sides)

    def rate(side: str) -> float:
        return artifacts / rounds.wall_s(side)

    unit = "artifacts/s"
    shop.show("rebuild.manifest_and_catalog", rate("views"), unit, at_least=10_000, rounds=rounds)
    shop.show("rebuild.link_trees", rate("trees"), unit, at_least=4_000, rounds=rounds)
    shop.show(
        "rebuild.with_artifact_links",
        rate("links"),
        unit,
        rounds=rounds,
        remark="manifest, catalog and artifacts/ all lost",
    )


def _views(writer: Writer, lap: Lap) -> None:
    with lap.measured():
        writer.rebuild(trees=False)


def _links(writer: Writer, lake: Lake, lap: Lap) -> None:
    _lose(lake.artifacts, lap)
    with lap.measured():
        writer.rebuild(trees=False)


def _trees(writer: Writer, lake: Lake, lap: Lap) -> None:
    """Sidecars and run trees, as the writer makes them between drains."""
    for directory in (lake.sidecars, lake.run_trees):
        _lose(directory, lap)
    writer.rebuild()
    with lap.measured():
        while writer.drain(budget_s=5.0).more:
            pass
    assert any(lake.sidecars.iterdir()), "no tree was built"


def _lose(directory: Path, lap: Lap) -> None:
    """An empty directory instead; the old one is put aside, as deleting slows creating down."""
    lost = directory.parent / f".lost-{lap.number}-{directory.name}"
    directory.rename(lost)
    directory.mkdir()
