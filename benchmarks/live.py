"""A whole bus, as `bus up` runs it: two ingest workers, the writer, pump, beat, the bundled Valkey."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks import lakes
from benchmarks.cpu import cpu_s_of
from bus.broker import Keys, open_redis
from bus.client import Bus
from bus.lake import Lake
from bus.settings import Settings
from bus.supervisor import running

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import redis

    from benchmarks.rounds import Lap, Rounds

WORKERS = 2
_WARM_UP_JOBS = 48


@dataclass(frozen=True, slots=True)
class LiveBus:
    """A running bus and a client of it."""

    settings: Settings
    lake: Lake
    client: Bus
    pids: dict[str, int]

    @contextmanager
    def accounted(self, lap: Lap) -> Iterator[None]:
        """Note in the lap what each process used of the CPU, its children included."""
        before = {name: cpu_s_of(pid) for name, pid in self.pids.items()}
        yield
        lap.notes["cpu_s"] = {name: cpu_s_of(pid) - before[name] for name, pid in self.pids.items()}

    def warm_up(self, side: Lake, files: Sequence[Path]) -> None:
        """Let every process have done its work once: a first job pays for imports."""
        chosen = [files[number % len(files)] for number in range(_WARM_UP_JOBS)]
        job_ids = lakes.stage(side, list(lakes.each_alone(chosen)), "warm")
        lakes.hand_over(side, self.lake, job_ids)
        self.ring_and_wait(job_ids)

    def ring_and_wait(self, job_ids: Sequence[str], timeout_s: float = 120.0) -> None:
        """Ring for each job, then listen until all are answered. All must be committed.

        The event stream carries one entry a job, sent together with its receipt; so one reader
        hears of them all without asking for each.
        """
        address = self.client.broker.address
        key = Keys(address.prefix).events
        with open_redis(address.url, timeout_s=10.0, block_s=timeout_s) as listener:
            begin = _newest(listener, key)
            for job_id in job_ids:
                self.client.broker.ring(job_id)
            waiting = set(job_ids)
            while waiting:
                found: Any = listener.xread({key: begin}, count=1000, block=int(timeout_s * 1000))
                assert found, f"{len(waiting)} jobs were not answered in {timeout_s:g} s"
                for entry_id, fields in found[0][1]:
                    begin = entry_id
                    assert fields.get(b"outcome", b"committed") == b"committed", fields
                    waiting.discard(fields.get(b"job_id", b"").decode())


def _newest(listener: redis.Redis, key: str) -> Any:
    """The id of the newest entry of a stream."""
    found: Any = listener.xrevrange(key, count=1)
    return found[0][0] if found else "0"


def by_process(rounds: Rounds, side: str, count: int) -> str:
    """`ingest 5.1, writer 1.2 …`: medians in CPU milliseconds for each of `count`."""
    noted = rounds.noted(side, "cpu_s")
    each = {name: median(lap[name] for lap in noted) / count * 1000 for name in noted[0]}
    ranked = sorted(each.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {cpu_ms:.2f}" for name, cpu_ms in ranked if cpu_ms >= 0.01)


@contextmanager
def live_bus(lake: Lake, **values: Any) -> Iterator[LiveBus]:
    """Start a bus on the lake, and stop it at the end. `values` are settings."""
    settings = Settings.load(lake.root, workers=WORKERS, **values)
    with running(settings) as endpoint:
        yield LiveBus(settings, Lake(settings.lake), Bus(settings), dict(endpoint.processes))


def add_export(lake: Lake, name: str, sql: str) -> None:
    """Declare one more export in the lake's bus.toml."""
    with (lake.root / "bus.toml").open("a") as file:
        file.write(f"[exports.{name}]\nsql = {json.dumps(sql)}\n\n")
