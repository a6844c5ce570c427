"""Golden exports: nothing changed means nothing rewritten; a burst means a handful of rebuilds.

Counted from outside, as a reader would notice: how often the file of an export was replaced.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from benchmarks import inputs, lakes
from benchmarks.live import live_bus
from bus.demo import tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.live import LiveBus
    from benchmarks.workshop import Workshop
    from bus.lake import Lake

_EXPORT = "alerts_std"
_ROWS = 20
_LOOK_S = 0.003
_PATIENCE_S = 60.0
#: Other people's commits, after which the exports are looked at again, and find nothing to do.
_UNRELATED_JOBS = 3


def measure(shop: Workshop) -> None:
    """A burst of 500 jobs of alerts, then jobs that no export of alerts depends on."""
    jobs = shop.size(500, 100)
    folder = shop.room("exports")
    lake = lakes.new_lake(folder / "lake")
    side = lakes.new_lake(folder / "side")
    files = _alerts(folder / "files", jobs)
    job_ids = lakes.stage(side, list(lakes.each_alone(files)), "alerts", kind=_EXPORT)
    with live_bus(lake) as bus, _watched(lake.export_path(_EXPORT)) as seen:
        bus.warm_up(side, shop.files(8))
        _settle(lambda: seen.count() > 0)
        before = seen.count()
        lakes.hand_over(side, lake, job_ids)
        begin_s = time.perf_counter()
        bus.ring_and_wait(job_ids)
        burst_s = time.perf_counter() - begin_s
        _settle(lambda: _rows_in(lake.export_path(_EXPORT)) == jobs * _ROWS)
        fresh_s = time.perf_counter() - begin_s - burst_s
        rebuilds = seen.count() - before
        rewrites = _rewrites_for_nothing(bus, shop, side, seen)
    remark = f"burst {burst_s:.1f} s, export complete {fresh_s:.1f} s later"
    shop.show("exports.rebuilds_in_a_burst", rebuilds, "rebuilds", at_most=10, remark=remark)
    shop.show("exports.rewrites_of_unchanged", rewrites, "rewrites", at_most=0)


def _alerts(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    return [
        inputs.write(tables.alerts(n, _ROWS, f"run-{n}"), folder / f"{n}.parquet")
        for n in range(count)
    ]


def _rewrites_for_nothing(bus: LiveBus, shop: Workshop, side: Lake, seen: _Seen) -> int:
    """Commit what the export does not read, until the exports' status covers it."""
    before = seen.count()
    status = bus.lake.export_status
    looked_at = status.stat().st_ino
    for number in range(_UNRELATED_JOBS):
        job_ids = lakes.stage(side, [[shop.files(8)[number]]], f"unrelated-{number}")
        lakes.hand_over(side, bus.lake, job_ids)
        bus.ring_and_wait(job_ids)
    _settle(lambda: status.stat().st_ino != looked_at)
    return seen.count() - before


@dataclass(slots=True)
class _Seen:
    """How often another file was found under a name."""

    path: Path
    _files: int = 0
    _newest: tuple[int, int] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self) -> int:
        """Look at what stands there now, and say how many files there have been."""
        with self._lock, suppress(FileNotFoundError):
            there = self.path.stat()
            if self._newest != (there.st_ino, there.st_mtime_ns):
                self._newest = there.st_ino, there.st_mtime_ns
                self._files += 1
        return self._files


@contextmanager
def _watched(path: Path) -> Iterator[_Seen]:
    """Watch a name for the length of a block."""
    seen = _Seen(path)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_S):
            seen.count()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _rows_in(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows) if path.exists() else 0


def _settle(condition: Callable[[], bool]) -> None:
    """Wait for a condition, with a deadline."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "the exports did not come to rest in time"
        time.sleep(0.02)
