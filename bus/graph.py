"""Walking directed graphs breadth first, a level at a time: each node once, never each path.

A graph is given by a step: for some nodes, all pairs (one of them, what it leads to). So edges may
lie in SQL, in memory, or in both, and a diamond costs its four edges. The graphs of a lake have no
cycles; a walk would come to its end in one all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from itertools import cycle
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Node = TypeVar("Node", bound=Hashable)
Step = Callable[[list[Node]], Iterable[tuple[Node, Node]]]


class Edges:
    """Edges in memory, to be followed either way."""

    def __init__(self) -> None:
        self._ahead: dict[str, list[str]] = {}
        self._behind: dict[str, list[str]] = {}

    def add(self, start: str, ends: Iterable[str]) -> None:
        """Edges from one node to others."""
        for end in ends:
            self._ahead.setdefault(start, []).append(end)
            self._behind.setdefault(end, []).append(start)

    def ahead(self, nodes: Iterable[str]) -> Iterator[tuple[str, str]]:
        """A step along the edges."""
        return ((node, end) for node in nodes for end in self._ahead.get(node, ()))

    def behind(self, nodes: Iterable[str]) -> Iterator[tuple[str, str]]:
        """A step against them."""
        return ((node, start) for node in nodes for start in self._behind.get(node, ()))


def levels(
    starts: Iterable[Node], step: Step[Node], came_from: dict[Node, Node | None]
) -> Iterator[dict[Node, Node | None]]:
    """What is first reached at distance 0, 1, 2 …: each node, and the one it was reached from.

    All that was reached so far is in `came_from`, which begins empty.
    """
    level: dict[Node, Node | None] = dict.fromkeys(starts)
    while level:
        came_from |= level
        yield level
        level = {to: at for at, to in step(list(level)) if to not in came_from}


def walk(starts: Iterable[Node], step: Step[Node]) -> dict[Node, Node | None]:
    """All that is reached, nearest first, and the node that each was reached from."""
    came_from: dict[Node, Node | None] = {}
    for _ in levels(starts, step, came_from):
        pass
    return came_from


def trace(came_from: Mapping[Node, Node | None], node: Node, most: int | None = None) -> list[Node]:
    """The nodes from where a walk began to `node`: a shortest way; of a longer one the last `most`."""
    back = [node]
    while len(back) != most and (before := came_from[back[-1]]) is not None:
        back.append(before)
    return back[::-1]


def way(
    starts: Iterable[Node], goal: Node, ahead: Step[Node], back: Step[Node]
) -> list[Node] | None:
    """The nodes of a way from one of `starts` to `goal`, both included; None when there is none.

    It is looked for from both ends in turn and given up when either has nothing more around it: a
    goal that nothing leads to costs one step, however much lies behind the starts.
    """
    to_goal: dict[Node, Node | None] = {}
    from_start: dict[Node, Node | None] = {}
    sides = (
        (levels([goal], back, to_goal), from_start),
        (levels(starts, ahead, from_start), to_goal),
    )
    for side, seen_from_there in cycle(sides):
        level = next(side, None)
        if level is None:
            break
        middle = next((node for node in level if node in seen_from_there), None)
        if middle is not None:
            return trace(from_start, middle) + trace(to_goal, middle)[-2::-1]
    return None
