"""Finding artifacts, and what changes: find, changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from bus.cli.options import HERE, AsOf, Everywhere, Limit, Many, Switch
from bus.cli.output import Line, Part, Reply, Table, cell
from bus.cli.submit import pairs_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bus.artifact import Artifacts
    from bus.changes import Change

Status = Literal["active", "superseded", "tombstoned", "damaged", "purged", "any"]
#: Commits that `bus changes` shows when nobody says since when.
_RECENT = 20


def find(
    *,
    kind: str | None = None,
    logical_key: str | None = None,
    tag: Many = (),
    run_id: str | None = None,
    producer: str | None = None,
    status: Status = "active",
    since: Annotated[str | None, Parameter(show_default=False)] = None,
    until: Annotated[str | None, Parameter(show_default=False)] = None,
    as_of: AsOf = None,
    limit: Limit = 50,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Find artifacts by kind, key, tags, run, time, and as of when.

    Every filter that is given must fit; the newest come first. What was superseded, tombstoned,
    damaged or purged is left out unless --status asks for it. Works with no bus running.

    For example:

        bus find --kind ohlcv_slice --tag token=SOL --tag res=1m
        bus find --kind ohlcv_slice --since 2026-01-01T00:00:00Z --until 2026-01-02T00:00:00Z
        bus find --run-id run-42 --status any --json
        bus find --kind trades --as-of 1200

    Parameters
    ----------
    kind
        What sort of table.
    logical_key
        What it is about.
    tag
        k=v, which it must carry; repeatable.
    run_id
        This run delivered it.
    producer
        This producer delivered it.
    status
        Whether it still holds.
    since
        Some of its rows may be as late as this moment, by the kind's time column.
    until
        Some of its rows may be from before this moment.
    as_of
        As things stood after this commit, or at this moment (with a zone).
    limit
        At most so many.
    """
    from bus.reader import Reader

    _, settings = everywhere.open()
    found = Reader(settings).find(
        kind=kind,
        logical_key=logical_key,
        tags=pairs_of(tag),
        run_id=run_id,
        producer=producer,
        status=None if status == "any" else status,
        since=since,
        until=until,
        as_of=as_of,
        limit=limit,
    )
    return Reply([one.as_dict() for one in found], lambda: _table(found, limit))


def _table(found: Artifacts, limit: int) -> Iterable[Part]:
    if not found:
        yield Line("No such artifact.", "dim")
        return
    columns = ("artifact_id", "kind", "schema_version", "logical_key", "status", "rows", "seq")
    facts = [one.as_dict() for one in found]
    rows = [[*(one[c] for c in columns), one["created_at"][:19], one["tags"]] for one in facts]
    note = f"The newest {limit}; more with --limit." if len(found) == limit else ""
    yield Table((*columns, "created_at", "tags"), rows, note)


# ── changes ───────────────────────────────────────────────────────────────────────────────────


def changes(
    *,
    since: Annotated[int | None, Parameter(show_default=False, validator=Number(gte=0))] = None,
    kind: str | None = None,
    follow: Switch = False,
    everywhere: Everywhere = HERE,
) -> Reply | None:
    """Show what each commit changed, or follow what comes.

    Jobs committed and rejected; artifacts created, deduped, revived, superseded, tombstoned, damaged,
    restored, purged; tags, aliases, pins and policies. In order, and the same however often it is asked. A program
    that keeps up remembers the last commit it has dealt with and asks --since that one. Works with
    no bus running.

    For example:

        bus changes
        bus changes --since 1200 --kind alerts_std --json
        bus changes --since 0 --follow --json | jq -r 'select(.change == "damaged").artifact_id'

    Parameters
    ----------
    since
        Changes after this commit; 0 for all. Default: those of the newest 20 commits.
    kind
        Only jobs, artifacts and aliases of this kind.
    follow
        Go on for ever; with --json each change is one line.
    """
    from bus import lookup
    from bus.reader import Reader

    lake, settings = everywhere.open()
    first = max(0, lookup.commit(lake, None) - _RECENT) if since is None else since
    feed = Reader(settings).change_feed(first, kind=kind, follow=follow)
    if follow:
        _print(feed, as_json=everywhere.json)
        return None
    found = list(feed)
    return Reply([one.as_dict() for one in found], lambda: _feed_table(found))


def _print(feed: Iterator[Change], *, as_json: bool) -> None:
    for one in feed:
        line = json.dumps(one.as_dict(), ensure_ascii=False) if as_json else _words(one)
        print(line, flush=True)


def _words(one: Change) -> str:
    return "  ".join(cell(value) for value in _row(one))


def _row(one: Change) -> tuple[object, ...]:
    at = f"{one.at:%Y-%m-%dT%H:%M:%SZ}"
    return (one.seq, at, one.change, one.kind, one.artifact_id, one.job_id, one.details)


def _feed_table(found: list[Change]) -> Iterable[Part]:
    if not found:
        yield Line("Nothing changed.", "dim")
        return
    names = ("seq", "at", "change", "kind", "artifact_id", "job", "details")
    yield Table(names, [_row(one) for one in found])
