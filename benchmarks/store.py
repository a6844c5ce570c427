"""Questions to a store of 100,000 artifacts: one lake, and a list of small measurements.

Each measurement is a function that is given the workshop and the lake, and reports its own figures;
it must leave the lake as it was for the next one. A new one goes into `_MEASUREMENTS`.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks import inputs, lakes
from benchmarks.workshop import REPOSITORY
from bus.reader import Reader
from bus.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.rounds import Lap
    from benchmarks.workshop import Workshop
    from bus.lake import Lake

#: How often each question is asked in a lap: about others each time, far apart.
_ASKED = 100
_BY_KEY_MS = 5.0
_OPEN_MS = 30.0


def measure(shop: Workshop) -> None:
    """A lake of 100,000 artifacts of one kind, with names, keys and tags of their own."""
    artifacts = shop.size(100_000, 10_000)
    lake = shop.lake_of(artifacts)
    for measurement in _MEASUREMENTS:
        measurement(shop, lake, artifacts)


# ── find, get, latest ────────────────────────────────────────────────────────────────────────────


def _by_key(shop: Workshop, lake: Lake, artifacts: int) -> None:
    """Each call opens the manifest anew, as any call of `Reader` does."""
    reader = Reader(Settings.load(lake.root))
    kind, producer = lakes.KIND_OF_OLD, inputs.PRODUCER
    numbers = range(0, artifacts, artifacts // _ASKED)
    keys = [f"token={number}/res=1m" for number in numbers]
    ids = [reader.find(kind=kind, logical_key=key)[0].artifact_id for key in keys]
    names = [f"table-{number}" for number in numbers]
    seqs = [reader.get(artifact_id).seq for artifact_id in ids]
    questions: dict[str, list[Callable[[], Any]]] = {
        "find_by_key": [partial(reader.find, kind=kind, logical_key=key) for key in keys],
        "find_by_tag": [partial(reader.find, tags={"token": str(n)}) for n in numbers],
        "get_by_id": [partial(reader.get, artifact_id) for artifact_id in ids],
        "get_by_prefix": [partial(reader.get, artifact_id[:13]) for artifact_id in ids],
        "get_latest": [partial(reader.get, f"{kind}:latest") for _ in keys],
        "latest_by_name": [
            partial(reader.latest, kind, producer=producer, name=name) for name in names
        ],
        "get_as_of": [
            partial(reader.get, artifact_id, as_of=seq)
            for artifact_id, seq in zip(ids, seqs, strict=True)
        ],
    }
    rounds = shop.plan().run({name: partial(_asked, asked) for name, asked in questions.items()})
    for name in questions:
        each_ms = rounds.wall_s(name) / _ASKED * 1000
        shop.show(f"store.{name}", each_ms, "ms", at_most=_BY_KEY_MS, rounds=rounds)


def _asked(questions: list[Callable[[], Any]], lap: Lap) -> None:
    with lap.measured():
        answers = [ask() for ask in questions]
    assert all(answers), "a question found nothing"


# ── opening ──────────────────────────────────────────────────────────────────────────────────────

_OPEN = """
import sys, time
from bus import connect
begin_s = time.perf_counter()
connect(sys.argv[1]).get(sys.argv[2])
print((time.perf_counter() - begin_s) * 1000)
"""


def _opening(shop: Workshop, lake: Lake, artifacts: int) -> None:  # noqa: ARG001 - as the others
    """From `bus.connect` to the first answer, in a process that has done no more than import it."""
    command = [sys.executable, "-c", _OPEN, str(lake.root), f"{lakes.KIND_OF_OLD}:latest"]
    rounds = shop.plan().run({"open": partial(_opened, command)})
    opened_ms = median(rounds.noted("open", "ms"))
    shop.show("store.open", opened_ms, "ms", at_most=_OPEN_MS, rounds=rounds)


def _opened(command: list[str], lap: Lap) -> None:
    with lap.measured():
        run = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    lap.notes["ms"] = float(run.stdout)


_MEASUREMENTS: tuple[Callable[[Workshop, Lake, int], None], ...] = (_by_key, _opening)
