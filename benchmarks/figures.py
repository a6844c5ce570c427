"""Figures: what was measured, what it should be, the table, and latest.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. Without a bound it is informative. `value` None: not measured."""

    name: str
    value: float | str | None
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    remark: str = ""

    @property
    def goal(self) -> str | None:
        """The bound as text."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return None if self.at_most is None else f"<= {self.at_most:g}"

    @property
    def ok(self) -> bool:
        """Whether the goal is reached; informative figures are never in the way."""
        if self.goal is None:
            return True
        if not isinstance(self.value, int | float):
            return False
        if self.at_least is not None:
            return self.value >= self.at_least
        return self.at_most is not None and self.value <= self.at_most

    def document(self) -> dict[str, Any]:
        """The entry of latest.json."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "goal": self.goal,
            "ok": self.ok,
        }


@dataclass(slots=True)
class Report:
    """All figures of a run, in order."""

    figures: list[Figure] = field(default_factory=list)

    def add(self, figure: Figure) -> None:
        """Print a figure as soon as it is known, and keep it."""
        self.figures.append(figure)
        print(f"    {line(figure)}", flush=True)

    @property
    def missed(self) -> list[Figure]:
        """Goals that were not reached."""
        return [figure for figure in self.figures if not figure.ok]

    def write(self, path: Path) -> None:
        """latest.json: a list of ``{name, value, unit, goal, ok}``."""
        documents = [figure.document() for figure in self.figures]
        path.write_text(json.dumps(documents, indent=1, ensure_ascii=False) + "\n")

    def table(self) -> str:
        """Everything, aligned."""
        return "\n".join(line(figure) for figure in self.figures)


def line(figure: Figure) -> str:
    """One aligned line: verdict, name, value, unit, goal, remark."""
    verdict = "    " if figure.goal is None else " ok " if figure.ok else "MISS"
    shown = _shown(figure.value)
    goal = figure.goal or ""
    text = f"{verdict} {figure.name:<46} {shown:>10} {figure.unit:<18} {goal:<10} {figure.remark}"
    return text.rstrip()


def _shown(value: float | str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
