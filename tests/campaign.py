"""Campaigns: tests that try many states, short in `make test` and long in `make soak`.

What a campaign tries follows from its seed alone, so a failure is repeated by one line, which the
report of the failed test shows.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

T = TypeVar("T")


@dataclass(frozen=True)
class Campaign:
    """One test's share of a campaign.

    `long`: `make soak`. `chance`: all randomness, from the seed and the test's name. `results`:
    where figures are kept, one JSON document a line, or None.
    """

    test: str
    seed: int
    long: bool
    results: Path | None = None
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "chance", random.Random(f"{self.seed} {self.test}"))

    def size(self, *, short: int, long: int) -> int:
        """How many to try."""
        return long if self.long else short

    def some(self, items: Sequence[T], short: int) -> list[T]:
        """All of them in a long campaign; else so many, in their order, chosen by the seed."""
        if self.long or len(items) <= short:
            return list(items)
        chosen = sorted(self.chance.sample(range(len(items)), short))
        return [items[number] for number in chosen]

    def record(self, **figures: Any) -> None:
        """Keep what was counted (`states=20_000, violations=0`)."""
        if self.results is None:
            return
        line = {"test": self.test, "seed": self.seed, "long": self.long} | figures
        fd = os.open(self.results, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, json.dumps(line).encode() + b"\n")  # one write: others append too
        finally:
            os.close(fd)
