"""Rounds: every side of a comparison once, one right after the other, in changing order.

What slows the machine down for a minute then slows ours and the limit alike, and the ratio of the
two stands. A round in which other processes took more than `MAX_OTHERS_CORES` is thrown away and
repeated, a bounded number of times; what is reported is the median over the rounds that are left.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.cpu import Load, Meter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MAX_OTHERS_CORES = 0.3
#: Of each wanted round at most so many tries.
_TRIES_PER_ROUND = 3


@dataclass(slots=True)
class Patience:
    """Seconds that all repetitions of a run together may still take: a busy machine has an end."""

    left_s: float = 180.0


@dataclass(slots=True)
class Lap:
    """One side of one round. `notes` is for what a side finds out besides how long it took."""

    number: int
    load: Load | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """The part that counts; preparing and checking stay outside."""
        meter = Meter()
        begin_s = time.perf_counter()
        yield
        wall_s = time.perf_counter() - begin_s
        load = meter.stop()
        self.load = Load(wall_s, load.cpu_s, load.others_cores)

    @property
    def wall_s(self) -> float:
        """Seconds that the measured part took."""
        return self._measured.wall_s

    @property
    def cpu_s(self) -> float:
        """CPU seconds that our processes used in the measured part."""
        return self._measured.cpu_s

    @property
    def others_cores(self) -> float:
        """Cores that other processes used in the measured part."""
        return self._measured.others_cores

    @property
    def _measured(self) -> Load:
        assert self.load is not None, "the side measured nothing"
        return self.load


@dataclass(frozen=True, slots=True)
class Rounds:
    """Laps of the rounds that count, by side, and what is to be said about the others."""

    laps: list[dict[str, Lap]]
    discarded: int
    dirty: int

    def wall_s(self, side: str) -> float:
        """Median seconds of a side."""
        return median(lap[side].wall_s for lap in self.laps)

    def cpu_s(self, side: str) -> float:
        """Median CPU seconds of a side."""
        return median(lap[side].cpu_s for lap in self.laps)

    def ratio(self, over: str, under: str) -> float:
        """Median over the rounds of one side's time divided by another's in the same round."""
        return median(lap[over].wall_s / lap[under].wall_s for lap in self.laps)

    def noted(self, side: str, what: str) -> list[Any]:
        """What a side noted, for each round that counts."""
        return [lap[side].notes[what] for lap in self.laps]

    @property
    def remark(self) -> str:
        """What a reader must know about the noise; empty when every round was clean."""
        said = []
        if self.discarded:
            said.append(f"{self.discarded} noisy rounds discarded")
        if self.dirty:
            said.append(
                f"ONLY {len(self.laps) - self.dirty} OF {len(self.laps)} ROUNDS WERE CLEAN: "
                f"others took up to {self.noisiest_cores:.2f} cores"
            )
        return "; ".join(said)

    @property
    def noisiest_cores(self) -> float:
        """What others took in the worst lap that counts."""
        return max(lap.others_cores for laps in self.laps for lap in laps.values())


@dataclass(frozen=True, slots=True)
class Plan:
    """How many rounds, what repetitions may cost, whether noise is accepted (while developing)."""

    wanted: int = 5
    accept_noise: bool = False
    patience: Patience = field(default_factory=Patience)

    def run(self, sides: Mapping[str, Callable[[Lap], None]]) -> Rounds:
        """Interleave the sides until enough rounds were clean, or tries or patience are used up."""
        os.sync()  # what preparing has left to be written is not written while we measure
        clean: list[dict[str, Lap]] = []
        noisy: list[dict[str, Lap]] = []
        for number in range(self.wanted * _TRIES_PER_ROUND):
            begin_s = time.monotonic()
            laps = _round(number, sides)
            is_clean = _others(laps) <= MAX_OTHERS_CORES
            (clean if is_clean or self.accept_noise else noisy).append(laps)
            if number >= self.wanted:
                self.patience.left_s -= time.monotonic() - begin_s
            enough = number + 1 >= self.wanted and self.patience.left_s <= 0
            if enough or len(clean) >= self.wanted:
                break
        # Better a figure with a remark than none: the least noisy of the others fill up.
        noisy.sort(key=_others)
        filled = noisy[: self.wanted - len(clean)]
        dirty = sum(_others(laps) > MAX_OTHERS_CORES for laps in clean + filled)
        return Rounds(clean + filled, len(noisy) - len(filled), dirty)


def _round(number: int, sides: Mapping[str, Callable[[Lap], None]]) -> dict[str, Lap]:
    laps = {}
    names = list(sides)
    turn = number % len(names)
    for name in names[turn:] + names[:turn]:
        laps[name] = Lap(number)
        sides[name](laps[name])
    return laps


def _others(laps: dict[str, Lap]) -> float:
    return max(lap.others_cores for lap in laps.values())
