"""Comparing artifacts: diff."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from bus.cli.options import HERE, Everywhere, Many
from bus.cli.output import Block, Facts, Line, Part, Reply, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bus.diff import Diff, RowDifference

_CELL_CHARACTERS = 60
#: Exit code of a comparison that found a difference, as diff(1) has it.
DIFFERENT = 1


def diff(
    a: str,
    b: str,
    /,
    *,
    key: Many = (),
    limit: Annotated[int, Parameter(validator=Number(gte=0, lte=10_000))] = 10,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Show what differs between two artifacts: columns, rows, cells.

    Rows count as multisets: their order does not matter, how often they occur does. With a key, rows
    that differ are added, removed or changed; without one, or where several of them share a key,
    added or removed. The exit code is 0 when both are equal, 1 when they differ, 2 when they cannot
    be compared. Works with no bus running.

    For example:

        bus diff ohlcv_slice:prod ohlcv_slice:candidate
        bus diff run-41/trades run-42/trades --key trade_id --limit 3
        bus diff 6f1f1a0e 9c41d2b7 --json

    Parameters
    ----------
    a
        An artifact_id (its beginning is enough), RUN/NAME, job:JOB/NAME or KIND:ALIAS.
    b
        The other artifact; "added" is what only this one has.
    key
        A column that tells rows apart; repeat it for several. Default: the key of the contract.
    limit
        At most so many rows of each sort are shown.
    """
    from bus.diff import diff as compare
    from bus.specs import Registry

    lake, settings = everywhere.open()
    found = compare(lake, Registry.load(settings), a, b, key=key or None, limit=limit)
    status = 0 if found.equal else DIFFERENT
    return Reply(found.as_dict(), lambda: _diff_text(found), status)


def _diff_text(found: Diff) -> Iterable[Part]:
    names = ("artifact_id", "kind", "schema_version", "logical_key", "rows", "content_hash")
    sides = (found.a, found.b)
    yield Table(
        ("", *names),
        [(name, *(getattr(s, n) for n in names)) for name, s in zip("ab", sides, strict=True)],
    )
    if found.equal:
        yield Line("equal", "good")
        return
    lines = [f"+ {name} {kind}" for name, kind in found.added_columns.items()]
    lines += [f"- {name} {kind}" for name, kind in found.removed_columns.items()]
    lines += [
        f"~ {c.name} {c.a} -> {c.b}{'' if c.compared else ' (not compared)'}"
        for c in found.retyped_columns
    ]
    if lines:
        yield Block("columns", lines, "heading")
    if found.rows is None:
        yield Line("no column in common: the rows were not compared", "bad")
    elif found.same_rows:
        yield Line("rows: the same")
    else:
        yield from _row_parts(found, found.rows)


def _row_parts(found: Diff, rows: RowDifference) -> Iterable[Part]:
    by_key = bool(found.key) and not rows.key_repeats
    counts = {"added": rows.added, "removed": rows.removed}
    counts |= {"changed": rows.changed} if by_key else {}
    counts |= {"unchanged": found.unchanged}
    told = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    how = f"by {', '.join(found.key)}" if by_key else "whole rows"
    yield Line(f"rows: {told} ({how})")
    if rows.key_repeats:
        yield Line(f"several rows that differ share a key ({', '.join(found.key)})", "dim")
    if rows.cells:
        yield Facts("changed cells", {name: f"{count:,}" for name, count in rows.cells.items()})
    yield from _first_rows("added", rows.first_added, rows.added)
    yield from _first_rows("removed", rows.first_removed, rows.removed)
    if rows.first_changed:
        cells = [
            (*change.key.values(), name, *pair)
            for change in rows.first_changed
            for name, pair in change.cells.items()
        ]
        yield Line("changed", "heading")
        note = _note(len(rows.first_changed), rows.changed)
        yield Table((*found.key, "column", "a", "b"), _short(cells), note)


def _first_rows(title: str, rows: Sequence[dict[str, Any]], of: int) -> Iterable[Part]:
    if rows:
        yield Line(title, "heading")
        yield Table(
            tuple(rows[0]), _short([tuple(row.values()) for row in rows]), _note(len(rows), of)
        )


def _note(shown: int, of: int) -> str:
    return f"{shown:,} of {of:,} rows; more with --limit" if shown < of else ""


def _short(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """Long texts cut: a line of a difference is to be looked at, --json has all of it."""
    return [[_cut(value) for value in row] for row in rows]


def _cut(value: Any) -> Any:
    text = value.hex() if isinstance(value, bytes) else value
    if isinstance(text, str) and len(text) > _CELL_CHARACTERS:
        return text[: _CELL_CHARACTERS - 1] + "…"
    return text
