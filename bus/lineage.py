"""Lineage: what an artifact was made from, what was made from it, and what hangs on that.

Walks follow the manifest's edges breadth first, a level at a time: a graph of any shape costs what
its nodes and edges cost, and the way that is told to each node is a shortest one. Reads only.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic_core import to_json

from bus import references
from bus.errors import Code, NotFound, Refused, Unavailable
from bus.finding import Then
from bus.graph import levels, trace, walk
from bus.manifest import reading
from bus.moments import seq_of
from bus.pedigree import Direction, Lineage, Node
from bus.statements import statement

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from bus.lake import Lake
    from bus.manifest import Manifest
    from bus.moments import AsOf
    from bus.settings import Settings
    from bus.snapshot import Snapshots

    #: Something hit, its name (none for artifacts), and where the artifact stands that makes it so.
    _End = tuple[Literal["artifact", "export", "alias", "pin"], str, int]

#: A graph with more is cut there, and says so.
MAX_NODES = 100_000
#: Hit artifacts that are described and have their way told; all of them are counted.
MAX_HITS = 1000
#: Of a longer way the end is told: all of many long ways would be too much.
MAX_STEPS = 100


# ── the graph around an artifact ──────────────────────────────────────────────────────────────


def lineage(
    lake: Lake,
    reference: str,
    direction: Direction = "both",
    depth: int | None = None,
    as_of: AsOf = None,
) -> Lineage:
    """What an artifact was made from (up), what was made from it (down), or both.

    `depth`: at most so many steps away; default: all. `as_of`: as it was after that commit, or at
    that moment. Raises `NotFound` (E511) and `Refused` (E404 when several may be meant, E103 for a
    direction, a depth or a moment that is none).
    """
    if direction not in get_args(Direction):
        message = f"no direction {direction!r}; there are {', '.join(get_args(Direction))}"
        raise Refused(message, code=Code.E103, where="direction", hint="")
    if depth is not None and depth < 0:
        raise Refused(f"{depth} is no depth", code=Code.E103, where="depth", hint="0 or more.")
    with _frozen(lake) as manifest:
        seq = seq_of(manifest, as_of)
        artifact_id = references.artifact_id(Then(manifest, lake, seq), reference)
        (root,) = _describe(manifest, [artifact_id], seq)
        if root.status == "missing":
            raise NotFound(f"no artifact {artifact_id} after commit {seq}", where="as_of")
        ways = [way for way in ("up", "down") if direction in {way, "both"}]
        start = _node(manifest, artifact_id)
        parts = [_part(manifest, way, start, depth, seq) for way in ways]
        ids = {start: artifact_id}
        ids |= _ids(manifest, dict.fromkeys(node for nodes, _, _ in parts for node in nodes))
        described = _describe(manifest, ids.values(), seq)
    return Lineage(
        root,
        direction,
        depth,
        seq,
        {node.artifact_id: node for node in described},
        tuple((ids[made], ids[source]) for _, edges, _ in parts for made, source in edges),
        any(cut for *_, cut in parts),
    )


def _part(
    manifest: Manifest, way: str, start: int, depth: int | None, seq: int
) -> tuple[list[int], list[tuple[int, int]], bool]:
    """One direction: its nodes, nearest first, its edges, and whether there is more beyond."""
    edges: list[tuple[int, int]] = []

    def step(nodes: list[int]) -> list[tuple[int, int]]:
        found = _step(manifest, way, nodes, seq)
        edges.extend(found if way == "up" else ((made, source) for source, made in found))
        return found

    reached: dict[int, int | None] = {}
    for distance, level in enumerate(levels([start], step, {})):
        too_far = depth is not None and distance > depth
        if too_far or len(reached) + len(level) > MAX_NODES:
            between = [edge for edge in edges if edge[0] in reached and edge[1] in reached]
            return list(reached), between, True
        reached |= level
    return list(reached), edges, False


# ── what hangs on an artifact ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Hit:
    """Something that depends on an artifact, and the way that makes it so.

    what  artifact, or what shows or names one: export, alias, pin
    name  of an artifact what people call it
    path  from the cause to the artifact that is hit, or that is shown or named; of a way of more
          than `MAX_STEPS` artifacts the last ones
    """

    what: Literal["artifact", "export", "alias", "pin"]
    name: str
    path: tuple[Node, ...]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form; the path as artifact ids."""
        path = [node.artifact_id for node in self.path]
        return {"what": self.what, "name": self.name, "status": self.path[-1].status, "path": path}


@dataclass(frozen=True, slots=True)
class Impact:
    """What is hit when an artifact is superseded, tombstoned or damaged: all that stands on it.

    artifacts  how many artifacts were made from it, directly or not; `kinds`: how many of each kind
    hits       the nearest of those, nearest first, then exports, aliases and pins
    """

    cause: Node
    artifacts: int
    kinds: Mapping[str, int]
    hits: tuple[Hit, ...]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "cause": self.cause.as_dict(),
            "artifacts": self.artifacts,
            "kinds": dict(self.kinds),
            "hits": [hit.as_dict() for hit in self.hits],
        }


def impact(
    lake: Lake,
    reference: str,
    shown_by: Mapping[str, Collection[str]],
    limit: int | None = MAX_HITS,
) -> Impact:
    """What is hit when something befalls an artifact.

    `shown_by`: exports, and the kinds whose active artifacts each shows (`bus.exports.kinds_shown`).
    A newer version that was made from the one it replaces is hit as well: what is wrong in one may
    be in the other. `limit`: at most so many artifacts are listed, None for all. Raises `NotFound`
    (E511) and `Refused` (E404).
    """
    with _frozen(lake) as manifest:
        seq = seq_of(manifest, None)
        artifact_id = references.artifact_id(Then(manifest, lake, seq), reference)
        start = _node(manifest, artifact_id)
        came_from = walk([start], lambda nodes: _step(manifest, "down", nodes, seq))
        order = list(came_from)  # the artifact itself is the first
        kinds = dict(manifest.rows(_sql("kinds_among"), (_json(order[1:]),)))
        (cause,) = _describe(manifest, [artifact_id], seq)
        ends: list[_End] = [("artifact", "", at) for at in range(1, len(order))[:limit]]
        shown = _nearest_active(manifest, order, kinds.keys() & set().union(*shown_by.values()))
        ends += _exports(shown_by, shown | {cause.kind: 0})
        ends += _pointers(manifest, cause, order)
        paths = [trace(came_from, order[at], MAX_STEPS) for *_, at in ends]
        ids = {start: artifact_id} | _ids(manifest, {node for path in paths for node in path})
        nodes = dict(zip(ids, _describe(manifest, ids.values(), seq), strict=True))
    hits = (
        Hit(what, name or nodes[path[-1]].words, tuple(nodes[node] for node in path))
        for (what, name, _), path in zip(ends, paths, strict=True)
    )
    return Impact(cause, len(order) - 1, kinds, tuple(hits))


def _nearest_active(
    manifest: Manifest, order: list[int], kinds: Iterable[str]
) -> dict[str | None, int]:
    """Where in `order` the first active artifact of each of these kinds stands, if there is one."""
    asked = {"nodes": _json(order), "as_of": seq_of(manifest, None)}
    found: dict[str | None, int] = {}
    for kind in kinds:
        for (at,) in manifest.rows(_sql("active_of_kind"), asked | {"kind": kind}):
            found[kind] = at
    return found


def _exports(
    shown_by: Mapping[str, Collection[str]], nearest: Mapping[str | None, int]
) -> Iterator[_End]:
    """Exports that show an artifact of these kinds, each by the nearest."""
    for export, shown in sorted(shown_by.items()):
        if hit := [nearest[kind] for kind in shown if kind in nearest]:
            yield "export", export, min(hit)


def _pointers(manifest: Manifest, cause: Node, order: list[int]) -> Iterator[_End]:
    """Aliases and pins of the cause and of what is below it; of those in a pin, the nearest."""
    pointers = manifest.rows(_sql("pointers"))
    place = {node: at for at, node in enumerate(order)} if pointers else {}
    nearest: dict[tuple[Any, str], int] = {}
    for what, name, artifact_id, node in pointers:
        at = 0 if artifact_id == cause.artifact_id else place.get(node)
        if at is not None:
            nearest[what, name] = min(at, nearest.get((what, name), at))
    yield from ((what, name, at) for (what, name), at in nearest.items())


# ── what should be looked after, as things stand ──────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Stale:
    """An active artifact that was made, directly or not, from something that was superseded since.

    because_of  the nearest superseded artifact
    newest      what to make it from instead: the newest versions of that
    path        from that to this one; of a way of more than `MAX_STEPS` artifacts the last ones
    """

    artifact: Node
    because_of: Node
    newest: tuple[Node, ...]
    path: tuple[Node, ...]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form; the path as artifact ids."""
        return {
            "artifact": self.artifact.as_dict(),
            "because_of": self.because_of.as_dict(),
            "newest": [node.as_dict() for node in self.newest],
            "path": [node.artifact_id for node in self.path],
        }


def stale(lake: Lake) -> list[Stale]:
    """All that is stale now; what must be made again first stands before what is made from it.

    What was made from the very artifact that it replaces is not stale because of that, nor is what
    was made from it.
    """
    with reading(lake) as manifest:
        return [] if manifest is None else _stale(manifest)


def _stale(manifest: Manifest) -> list[Stale]:
    with manifest.frozen():
        seq = seq_of(manifest, None)
        newest: defaultdict[int, list[str]] = defaultdict(list)
        replacing: set[tuple[int, int]] = set()
        for old, newest_id, newest_node in manifest.rows(_sql("newest_versions")):
            newest[old].append(newest_id)
            replacing.add((old, newest_node))

        made_from: defaultdict[int, set[int]] = defaultdict(set)

        def step(nodes: list[int]) -> Iterator[tuple[int, int]]:
            for edge in _step(manifest, "down", nodes, seq):
                if edge not in replacing:
                    source, made = edge
                    made_from[made].add(source)
                    yield edge

        came_from = walk(newest, step)
        ids = _ids(manifest, came_from)
        wanted = dict.fromkeys([*ids.values(), *(i for found in newest.values() for i in found)])
        described = {node.artifact_id: node for node in _describe(manifest, wanted, seq)}
    nodes = {node: described[artifact_id] for node, artifact_id in ids.items()}
    cause: dict[int, int] = {}
    for node, before in came_from.items():
        cause[node] = node if before is None else cause[before]
    return [
        Stale(
            nodes[node],
            nodes[cause[node]],
            tuple(described[newest_id] for newest_id in newest[cause[node]]),
            tuple(nodes[step] for step in trace(came_from, node, MAX_STEPS)),
        )
        for node in _inputs_first(made_from)
        if came_from[node] is not None and nodes[node].status == "active"
    ]


def _inputs_first(made_from: Mapping[int, set[int]]) -> Iterable[int]:
    """The nodes so that each stands behind what it was made from."""
    try:
        return list(TopologicalSorter(made_from).static_order())
    except CycleError:  # somebody changed the manifest by hand: then there is no such order
        return made_from


@dataclass(frozen=True, slots=True)
class Orphan:
    """An active artifact, and what it was made from that nobody shall start from any more."""

    artifact: Node
    inputs: tuple[Node, ...]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        inputs = [node.as_dict() for node in self.inputs]
        return {"artifact": self.artifact.as_dict(), "inputs": inputs}


def orphans(lake: Lake) -> list[Orphan]:
    """Active artifacts made straight from something tombstoned, damaged or missing; newest first.

    An artifact that says it was made from nothing (``inputs = []``) is none.
    """
    with reading(lake) as manifest:
        return [] if manifest is None else _orphans(manifest)


def _orphans(manifest: Manifest) -> list[Orphan]:
    with manifest.frozen():
        seq = seq_of(manifest, None)
        inputs: defaultdict[str, list[str]] = defaultdict(list)
        for made, source in manifest.rows(_sql("orphans"), {"as_of": seq}):
            inputs[made].append(source)
        wanted = dict.fromkeys([*inputs, *(i for found in inputs.values() for i in found)])
        nodes = {node.artifact_id: node for node in _describe(manifest, wanted, seq)}
    return [Orphan(nodes[made], tuple(nodes[i] for i in found)) for made, found in inputs.items()]


# ── as a part of Bus ──────────────────────────────────────────────────────────────────────────


class Genealogy:
    """What `Bus` is asked of lineage; references are those of `bus show`."""

    lake: Lake
    settings: Settings
    if TYPE_CHECKING:

        @property
        def _snapshots(self) -> Snapshots: ...

    def lineage(
        self,
        ref: str,
        direction: Direction = "both",
        depth: int | None = None,
        as_of: AsOf = None,
    ) -> Lineage:
        """What an artifact was made from, what was made from it, or both: `bus.lineage.lineage`."""
        return lineage(self.lake, ref, direction, depth, as_of)

    def impact(self, ref: str, limit: int | None = MAX_HITS) -> Impact:
        """What is hit when an artifact is superseded, tombstoned or damaged: `bus.lineage.impact`."""
        from bus.exports import kinds_shown  # noqa: PLC0415 - brings duckdb; producers need it not

        shown_by: dict[str, set[str]] = {}
        with suppress(Unavailable), self._snapshots.newest() as db:  # no catalog, no exports
            shown_by = kinds_shown(db, self.settings)
        return impact(self.lake, ref, shown_by, limit)

    def stale(self) -> list[Stale]:
        """Artifacts that something newer should be made from by now: `bus.lineage.stale`."""
        return stale(self.lake)

    def orphans(self) -> list[Orphan]:
        """Artifacts made from what nobody shall start from any more: `bus.lineage.orphans`."""
        return orphans(self.lake)


# ── reading the manifest ──────────────────────────────────────────────────────────────────────


@contextmanager
def _frozen(lake: Lake) -> Iterator[Manifest]:
    """The manifest, all of one commit. Raises `NotFound` (E511) where nothing was ever committed."""
    with reading(lake) as manifest:
        if manifest is None:
            raise NotFound("nothing was ever committed", where=str(lake.root))
        with manifest.frozen():
            yield manifest


@cache
def _sql(name: str) -> str:
    """A statement of lineage.sql."""
    return statement(name, "lineage.sql").replace("{status}", statement("status_then"))


def _json(values: Iterable[Any]) -> str:
    return to_json(list(values)).decode()


def _node(manifest: Manifest, artifact_id: str) -> int:
    """The number of an artifact; 0, which leads nowhere, when there is none."""
    ((node,),) = manifest.named("node_of", (artifact_id,))
    return int(node or 0)


def _step(manifest: Manifest, way: str, nodes: list[int], seq: int) -> list[tuple[Any, ...]]:
    return manifest.rows(_sql(way), (_json(nodes), seq))


def _ids(manifest: Manifest, nodes: Iterable[int]) -> dict[int, str]:
    """The artifacts behind these numbers, in this order."""
    return dict(manifest.rows(_sql("ids_of"), (_json(nodes),)))


def _describe(manifest: Manifest, artifact_ids: Iterable[str], seq: int) -> list[Node]:
    """These artifacts as they stood after a commit, in this order."""
    asked = {"ids": _json(artifact_ids), "as_of": seq}
    return [Node(*row) for row in manifest.rows(_sql("describe"), asked)]
