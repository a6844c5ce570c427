"""Points in time as people name them, and the commits they mean.

`as_of` is a commit's number or a moment: a datetime with a zone, or ISO 8601 text with one. A moment
means the newest commit at it or before it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

from bus.errors import Code, NotFound, Refused
from bus.model import iso

if TYPE_CHECKING:
    from bus.manifest import Manifest

Moment: TypeAlias = datetime | str
AsOf: TypeAlias = int | datetime | str | None

_ZONE = "Write a zone, such as 2026-01-08T05:12:33Z."


def moment(value: Moment, where: str) -> datetime:
    """A moment in UTC. Raises `Refused` (E103) for text that is none, and where the zone is left out."""
    try:
        found = datetime.fromisoformat(value.strip()) if isinstance(value, str) else value
    except ValueError:
        message = f"{str(value)[:80]!r} is no moment"
        raise Refused(message, code=Code.E103, where=where, hint=_ZONE) from None
    if found.tzinfo is None:
        message = f"{found.isoformat()} is a moment in no zone"
        raise Refused(message, code=Code.E103, where=where, hint=_ZONE)
    return found.astimezone(UTC)


def seq_of(manifest: Manifest, as_of: AsOf) -> int:
    """The commit that `as_of` means; None is the newest, 0 is before the first.

    Raises `NotFound` (E511) when there is none, `Refused` (E103) when it names neither.
    """
    newest, _ = manifest.applied
    if as_of is None:
        return newest
    if isinstance(as_of, str) and as_of.strip().isdecimal():
        as_of = int(as_of)
    if isinstance(as_of, int):
        if 0 <= as_of <= newest:
            return as_of
        message, hint = f"there is no commit {as_of}", f"The newest is {newest}."
        raise NotFound(message, where="as_of", hint=hint)
    then = moment(as_of, "as_of")
    if found := manifest.named("commit_at", (iso(then),)):
        return int(found[0][0])
    first = manifest.rows("SELECT committed_at_utc FROM commits WHERE seq = 1")
    hint = f"The first commit was made at {first[0][0]}." if first else "There is no commit yet."
    raise NotFound(f"nothing was committed by {iso(then)}", where="as_of", hint=hint)
