"""What was made from what: lineage, impact, stale, orphans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from bus.cli.options import HERE, AsOf, Everywhere, Limit, Switch
from bus.cli.output import Facts, Line, Part, Reply, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bus.client import Bus
    from bus.pedigree import Direction, Node

#: Of longer ways the middle is left out.
_STEPS_SHOWN = 8
_Depth = Annotated[int, Parameter(validator=Number(gte=0))]


def lineage(
    ref: str,
    /,
    *,
    up: Switch = False,
    down: Switch = False,
    both: Switch = False,
    depth: _Depth = 10,
    mermaid: Switch = False,
    as_of: AsOf = None,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Show what an artifact was made from, and what was made from it.

    As a tree; each artifact by its kind, what it is about (or its run and name) and the beginning
    of its id. What is met again is not repeated below. Works with no bus running.

    For example:

        bus lineage run-42/trades
        bus lineage run-42/trades --up --depth 3 --json
        bus lineage ohlcv_slice:prod --down --mermaid

    The first prints:

        bt_trades run-42/trades (6f1f1a0e)
        made from:
        ├─ bt_features run-42/features (0b9d3c55)
        │  └─ ohlcv_slice token=SOL/res=1m (91c2a8e7) superseded
        └─ ohlcv_slice token=SOL/res=1m (91c2a8e7) superseded (above)
        used for nothing in this lake

    Parameters
    ----------
    ref
        An artifact_id (its beginning is enough), RUN/NAME, job:JOB/NAME or KIND:ALIAS.
    up
        Only what it was made from.
    down
        Only what was made from it.
    both
        Both; so it is when neither is asked for.
    depth
        At most so many steps away.
    mermaid
        Print a Mermaid flowchart, for Markdown.
    as_of
        As it was after this commit, or at this moment (with a zone).
    """
    direction: Direction = "both" if both or up is down else "up" if up else "down"
    found = _bus(everywhere).lineage(ref, direction, depth, as_of)
    drawn = found.mermaid() if mermaid else str(found)
    more = [Line("More with a larger --depth.", "dim")] if found.cut and not mermaid else []
    return Reply(found.as_dict(), lambda: [*map(Line, drawn.splitlines()), *more])


def impact(ref: str, /, *, limit: Limit = 100, everywhere: Everywhere = HERE) -> Reply:
    """Show what is hit when an artifact is superseded, tombstoned or damaged.

    That is: what was made from it, directly or not, nearest first; golden exports that show it or
    one of those; aliases and pins that name one. Each with the ids that lead there. Works with no
    bus running.

    For example:

        bus impact ohlcv_slice:prod
        bus impact 91c2a8e7 --limit 1000000 --json

    Parameters
    ----------
    ref
        An artifact_id (its beginning is enough), RUN/NAME, job:JOB/NAME or KIND:ALIAS.
    limit
        List at most so many artifacts; all are counted.
    """
    found = _bus(everywhere).impact(ref, limit)

    def text() -> Iterable[Part]:
        yield Facts(f"{found.cause}: made from it, in the end: {found.artifacts:,}", found.kinds)
        if not found.hits:
            yield Line("Nothing else shows it or names it.", "dim")
            return
        rows = [(h.what, h.name, h.path[-1].status, _way(h.path, found.cause)) for h in found.hits]
        left = found.artifacts - limit
        note = f"The nearest {limit:,} artifacts; {left:,} more with --limit." if left > 0 else ""
        yield Table(("what", "name", "artifact", "way"), rows, note)

    return Reply(found.as_dict(), text)


def stale(*, limit: Limit = 100, everywhere: Everywhere = HERE) -> Reply:
    """List artifacts made from something that was superseded since.

    Each with the newest version to make it from, and the ids from the superseded artifact to it;
    what must be made again first stands first. Works with no bus running.

    For example:

        bus stale
        bus stale --limit 1000000 --json

    Parameters
    ----------
    limit
        At most so many.
    """
    found = _bus(everywhere).stale()

    def text() -> Iterable[Part]:
        if not found:
            yield Line("Nothing is stale.", "good")
            return
        columns = ("artifact", "because of", "newest", "way")
        rows = [
            (s.artifact, s.because_of, ", ".join(map(str, s.newest)), _way(s.path, s.because_of))
            for s in found[:limit]
        ]
        yield Table(columns, rows, _more(len(found), limit))

    return Reply([each.as_dict() for each in found[:limit]], text)


def orphans(*, limit: Limit = 100, everywhere: Everywhere = HERE) -> Reply:
    """List active artifacts made from something tombstoned, damaged or missing.

    Works with no bus running.

    For example:

        bus orphans
        bus orphans --json

    Parameters
    ----------
    limit
        At most so many.
    """
    found = _bus(everywhere).orphans()

    def text() -> Iterable[Part]:
        if not found:
            yield Line("No orphans.", "good")
            return
        rows = [(o.artifact, ", ".join(map(str, o.inputs))) for o in found[:limit]]
        yield Table(("artifact", "made from"), rows, _more(len(found), limit))

    return Reply([each.as_dict() for each in found[:limit]], text)


def _bus(everywhere: Everywhere) -> Bus:
    from bus.client import Bus

    _, settings = everywhere.open()
    return Bus(settings)


def _way(path: Sequence[Node], start: Node) -> str:
    ids = [node.short_id for node in path]
    if path[0] != start or len(ids) > _STEPS_SHOWN:
        ids = [start.short_id, "…", *ids[2 - _STEPS_SHOWN :]]
    return " → ".join(ids)


def _more(count: int, limit: int) -> str:
    return f"{limit:,} of {count:,}; more with --limit." if count > limit else ""
