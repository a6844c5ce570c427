"""The graph around an artifact as a value, and how people look at it: a tree, a Mermaid flowchart."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Direction = Literal["up", "down", "both"]
_SHORT = 8
#: Deeper than this a tree is no picture any more.
_DEEPEST = 100
_TITLES = {"up": "made from", "down": "used for"}
#: What could end a label, or mean something in it.
_SPECIAL = re.compile(r"[^\w\s/=:.,+@~()-]")
_LOOKS = {
    "superseded": "stroke-dasharray:4",
    "tombstoned": "fill:#fdd,stroke:#a00",
    "damaged": "fill:#fdd,stroke:#a00",
    "purged": "fill:#eee,stroke:#888",
}


@dataclass(frozen=True, slots=True)
class Node:
    """An artifact in a graph, as it stood at one commit.

    logical_key   what it is about
    run_id, name  the delivery that brought it first, and `seq` the commit of that
    status        active, superseded, tombstoned, damaged, purged …; `missing`: there was no such artifact
    """

    artifact_id: str
    kind: str | None
    logical_key: str | None
    run_id: str | None
    name: str | None
    seq: int | None
    status: str

    @property
    def words(self) -> str:
        """What people call it: its kind, and what it is about (by default its run and name)."""
        is_default = self.logical_key == f"run={self.run_id}/name={self.name}"
        about = f"{self.run_id}/{self.name}" if is_default else self.logical_key
        return f"{self.kind or 'unknown'} {about or 'artifact'}"

    @property
    def short_id(self) -> str:
        """The beginning of its id: enough to ask for it again."""
        return self.artifact_id[:_SHORT]

    def __str__(self) -> str:
        standing = "" if self.status == "active" else f" {self.status}"
        return f"{self.words} ({self.short_id}){standing}"

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Lineage:
    """The graph around one artifact, as it was after commit `as_of`.

    nodes  by artifact_id: `root`, then the nearest ones, then ever farther ones
    edges  (artifact_id, input_artifact_id): the steps from the root to them
    cut    whether there is more beyond `depth`, or beyond what is shown at once

    `str()` of it is the tree; a notebook draws the graph.
    """

    root: Node
    direction: Direction
    depth: int | None
    as_of: int
    nodes: Mapping[str, Node]
    edges: tuple[tuple[str, str], ...]
    cut: bool

    def __str__(self) -> str:
        return "\n".join(_tree(self))

    def _repr_markdown_(self) -> str:
        return f"```mermaid\n{self.mermaid()}\n```"

    def mermaid(self) -> str:
        """The graph as a Mermaid flowchart: arrows from inputs to what was made from them."""
        return "\n".join(_mermaid(self))

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: ``{root, direction, depth, as_of, cut, nodes: [{…}], edges: [{…}]}``."""
        names = ("artifact_id", "input_artifact_id")
        return {
            "root": self.root.artifact_id,
            "direction": self.direction,
            "depth": self.depth,
            "as_of": self.as_of,
            "cut": self.cut,
            "nodes": [node.as_dict() for node in self.nodes.values()],
            "edges": [dict(zip(names, edge, strict=True)) for edge in self.edges],
        }


# ── drawing ───────────────────────────────────────────────────────────────────────────────────


def _tree(found: Lineage) -> Iterator[str]:
    """Lines: the artifact, then below it what it was made from, and what was made from it.

    An artifact that is met again is named again, and what is below it is not repeated.
    """
    yield str(found.root)
    ways = [way for way in _TITLES if found.direction in {way, "both"}]
    for way in ways:
        below = _below(found, way)
        if found.root.artifact_id in below:
            yield f"{_TITLES[way]}:"
            yield from _branches(below, found.root.artifact_id)
        else:
            yield f"{_TITLES[way]} nothing in this lake"
    if found.cut:
        yield "… and more beyond"


def _below(found: Lineage, way: str) -> dict[str, list[Node]]:
    """What stands below each artifact, in the order of its words."""
    below: defaultdict[str, list[Node]] = defaultdict(list)
    for made, source in found.edges:
        above, under = (made, source) if way == "up" else (source, made)
        below[above].append(found.nodes[under])
    for nodes in below.values():
        nodes.sort(key=lambda node: (node.words, node.artifact_id))
    return dict(below)


def _branches(below: Mapping[str, list[Node]], root: str) -> Iterator[str]:
    drawn = {root}
    to_draw = [(node, "", node is below[root][-1]) for node in reversed(below[root])]
    while to_draw:
        node, margin, is_last = to_draw.pop()
        under = below.get(node.artifact_id, ())
        again = " (above)" if under and node.artifact_id in drawn else ""
        yield f"{margin}{'└─' if is_last else '├─'} {node}{again}"
        if again or not under:
            continue
        drawn.add(node.artifact_id)
        margin += "   " if is_last else "│  "
        if len(margin) > 3 * _DEEPEST:
            yield f"{margin}…"
            continue
        to_draw += [(part, margin, part is under[-1]) for part in reversed(under)]


def _mermaid(found: Lineage) -> Iterator[str]:
    """Lines of a flowchart: arrows from inputs to what was made from them."""
    names = {artifact_id: f"n{number}" for number, artifact_id in enumerate(found.nodes)}
    looking: defaultdict[str, list[str]] = defaultdict(list)
    yield "flowchart LR"
    for artifact_id, node in found.nodes.items():
        words = _SPECIAL.sub(lambda met: f"#{ord(met[0])};", node.words)
        yield f'  {names[artifact_id]}["{words}<br/>{node.short_id}"]'
        if node.status != "active":
            looking[node.status].append(names[artifact_id])
    yield from (f"  {names[source]} --> {names[made]}" for made, source in found.edges)
    for status, those in looking.items():
        yield f"  classDef {status} {_LOOKS.get(status, 'fill:#eee')}"
        yield f"  class {','.join(those)} {status}"
    if found.root.artifact_id in names:
        yield f"  style {names[found.root.artifact_id]} stroke-width:3px"
