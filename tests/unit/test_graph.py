"""Walking graphs: shortest ways, each node once, and an end whatever the graph."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given, strategies as st

from bus.graph import Edges, levels, trace, walk, way

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Any graph over a few nodes, cycles and loops included: (from, to).
GRAPHS = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh")), max_size=20)


def edges_of(pairs: Iterable[tuple[str, str]]) -> Edges:
    edges = Edges()
    for start, end in pairs:
        edges.add(start, [end])
    return edges


def distances(pairs: list[tuple[str, str]], start: str) -> dict[str, int]:
    """How far each node is, by trying every edge again and again."""
    found = {start: 0}
    for _ in pairs:
        for at, to in pairs:
            if at in found:
                found[to] = min(found.get(to, 99), found[at] + 1)
    return found


@given(GRAPHS)
def test_a_walk_reaches_each_node_by_a_shortest_way_and_comes_to_its_end(
    pairs: list[tuple[str, str]],
) -> None:
    edges = edges_of(pairs)
    came_from = walk("a", edges.ahead)
    ways = {node: trace(came_from, node) for node in came_from}
    assert {node: len(found) - 1 for node, found in ways.items()} == distances(pairs, "a")
    assert all(set(pairwise(found)) <= set(pairs) for found in ways.values())
    assert list(came_from) == sorted(came_from, key=lambda node: len(ways[node]))


@given(GRAPHS)
def test_a_way_is_found_exactly_when_there_is_one(pairs: list[tuple[str, str]]) -> None:
    edges = edges_of(pairs)
    found = way(["a", "b"], "h", edges.ahead, edges.behind)
    reached = {*distances(pairs, "a"), *distances(pairs, "b")}
    assert (found is not None) == ("h" in reached)
    if found is not None:
        assert found[0] in {"a", "b"}
        assert found[-1] == "h"
        assert set(pairwise(found)) <= set(pairs)


def test_a_goal_that_nothing_leads_to_costs_one_step_back_and_none_ahead() -> None:
    steps: list[list[str]] = []

    def ahead(nodes: list[str]) -> Iterator[tuple[str, str]]:
        steps.append(nodes)
        return iter([(node, node + "x") for node in nodes])  # for ever

    def back(nodes: list[str]) -> Iterator[tuple[str, str]]:
        steps.append(nodes)
        return iter(())

    assert way(["a"], "goal", ahead, back) is None
    assert steps == [["goal"]]


def test_levels_are_taken_only_as_far_as_asked() -> None:
    edges = edges_of([("a", "b"), ("b", "c"), ("a", "c"), ("c", "d")])
    found = levels("a", edges.ahead, {})
    assert [next(found), next(found)] == [{"a": None}, {"b": "a", "c": "a"}]
