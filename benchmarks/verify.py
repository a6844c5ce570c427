"""`bus verify` and the way back: against hashing alone, and in seconds for 100,000 artifacts.

The limit of a full verification hashes the same objects, with as many threads, and does nothing
else. Where objects are large that is nearly all there is to do; where they are small, a verification
is mostly about journal, views and answers, and the ratio says how much more that is.

Large objects are files with holes: hashing them costs as much as any other bytes.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import lakes
from bus import checkpoints, disk
from bus.invariants import HASHERS
from bus.settings import Settings
from bus.specs import Registry
from bus.verify import verify
from bus.writer import Writer

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.rounds import Lap
    from benchmarks.workshop import Workshop
    from bus.lake import Lake
    from bus.verify import Level

_BLOCK_BYTES = 1 << 18


def measure(shop: Workshop) -> None:
    """Full verification of large and of small objects, a quick one, and a start without views."""
    _of_hashing(shop)
    _of_small_objects(shop)
    _of_many_artifacts(shop)


def _of_hashing(shop: Workshop) -> None:
    size_bytes = shop.size(256 << 20, 32 << 20)
    lake = _ready(lakes.lake_of_large_objects(shop.room("verify") / "lake", 24, size_bytes))
    rounds = shop.plan(3).run({"verify": partial(_full, lake), "limit": partial(_hash, lake)})
    bytes_per_s = 24 * size_bytes / rounds.wall_s("verify")
    shop.show(
        "verify.full_of_hashing",
        rounds.ratio("limit", "verify"),
        "x limit",
        at_least=0.80,
        rounds=rounds,
        remark=f"{bytes_per_s / 1e9:.2f} GB/s, {HASHERS} threads, objects of {size_bytes >> 20} MiB",
    )


def _of_small_objects(shop: Workshop) -> None:
    artifacts = shop.size(1_000, 500)
    lake = _ready(lakes.grown_lake(shop.room("verify") / "lake", artifacts, objects=artifacts))
    rounds = shop.plan().run({"verify": partial(_full, lake), "limit": partial(_hash, lake)})
    each_us = rounds.wall_s("verify") / artifacts * 1e6
    shop.show(
        "verify.small_objects_of_hashing",
        rounds.ratio("limit", "verify"),
        "x limit",
        rounds=rounds,
        remark=f"{each_us:,.0f} us per artifact, {artifacts:,} objects of 5 kB",
    )


def _of_many_artifacts(shop: Workshop) -> None:
    artifacts = shop.size(100_000, 10_000)
    lake = shop.lake_of(artifacts)
    # Of the measurements that share this lake the last: from here on it is another one.
    lakes.answer(lake, documents=False)
    checkpoints.make(lake)
    quick = shop.plan(3).run({"quick": partial(_verify, lake, "quick")})
    shop.show(f"verify.quick_{artifacts}", quick.wall_s("quick"), "s", at_most=10, rounds=quick)
    back = shop.plan(3).run({"start": partial(_start_without_views, lake)})
    shop.show(
        f"verify.views_of_{artifacts}_from_a_checkpoint",
        back.wall_s("start"),
        "s",
        at_most=10,
        rounds=back,
        remark="rm -r manifest catalog; a writer starts, and has published",
    )


def _ready(lake: Lake) -> Lake:
    """With every view, and with what answered jobs leave: nothing for a verification to find."""
    settings = Settings.load(lake.root)
    lakes.answer(lake)
    with Writer.open(lake, settings, Registry.load(settings)) as writer:
        while writer.drain().more:
            pass
    return lake


def _full(lake: Lake, lap: Lap) -> None:
    _verify(lake, "full", lap)


def _verify(lake: Lake, level: Level, lap: Lap) -> None:
    settings = Settings.load(lake.root)
    registry = Registry.load(settings)
    with lap.measured():
        report = verify(lake, settings, registry, level)
    assert not report.findings, report.findings[:3]


def _hash(lake: Lake, lap: Lap) -> None:
    paths = list(lake.all_objects())
    with lap.measured(), ThreadPoolExecutor(HASHERS) as pool:
        hashed = list(pool.map(_sha256, paths))
    assert hashed == [path.stem for path in paths]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    block = bytearray(_BLOCK_BYTES)
    view = memoryview(block)
    fd = os.open(path, os.O_RDONLY)
    try:
        while count := os.readv(fd, [block]):
            digest.update(view[:count])
    finally:
        os.close(fd)
    return digest.hexdigest()


def _start_without_views(lake: Lake, lap: Lap) -> None:
    settings = Settings.load(lake.root)
    registry = Registry.load(settings)
    for view in (lake.manifest_db.parent, lake.catalog_db.parent):
        disk.move(view, lake.root / f".lost-{lap.number}-{view.name}")
    with lap.measured():
        writer = Writer.open(lake, settings, registry)
        writer.drain(budget_s=0)
    writer.close()
    assert lake.catalog_db.exists()
