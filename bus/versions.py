"""What changes about artifacts after they are committed: versions, tags, aliases, pins; and reads of it.

Artifacts never change; what is said of them does. Every method of `Changes` is a mutation in a job,
so it lies in the inbox, durably, before anybody is told, and in the journal for good. The writer
decides (`bus.mutations`): a change that may not be refuses its whole job, one that holds already
changes nothing and is a warning in the receipt.
"""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bus.errors import Code, NotFound, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bus.lake import Lake

_Done = TypeVar("_Done")
#: References that the writer resolves: they may name what is not committed yet.
_LEFT_TO_THE_WRITER = re.compile(r"job:|name:|pin:|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


class Changes(ABC, Generic[_Done]):
    """The changes that can be made to committed artifacts, one method each.

    On `Bus` each call is a job of its own and returns it; on the draft of a job it joins that job,
    whose changes happen all together or not at all. References are those of `bus show`; the record
    holds the ids that they meant at the call. ``job:JOB/NAME``, ``name:SIBLING`` and whole ids are
    left to the writer, which waits for what is still on its way.

    Raises `NotFound` (E511) and `Refused` (E404, E103); the writer's refusals (`Rejected`) come
    with `Job.wait`: E402 a cycle, E403 no such artifact, E405 another than expected, E406 a
    tombstoned one, E407 too many tags or members.
    """

    lake: Lake

    @abstractmethod
    def mutate(self, *mutations: Mapping[str, Any]) -> _Done:
        """Make changes given as they stand in manifest.json, e.g. ``{"op": "tombstone", …}``."""

    def supersede(
        self, old: str | Sequence[str], by: str | Sequence[str], expect: str | None = None
    ) -> _Done:
        """`by` replaces `old`: both stay readable, `old` leaves ``canon.*`` and the exports.

        Several may be replaced by one, one by several. `expect`: the file hash that `old` must
        still have (``sha256:…``).
        """
        olds, news = self._all_meant(old), self._all_meant(by)
        if same := set(olds).intersection(news):
            message = f"it would replace itself: {min(same)} → {min(same)}"
            raise Refused(message, code=Code.E402, where="by")
        return self.mutate(
            *(
                {"op": "supersede", "target": target, "by": new} | _expecting(expect)
                for target in olds
                for new in news
            )
        )

    def tombstone(self, ref: str, reason: str, expect: str | None = None) -> _Done:
        """Say that an artifact must not be used any more, and why; its bytes stay until gc.

        Submitting the same rows again revives it. `expect` as for `supersede`.
        """
        if not reason.strip():
            raise Refused("a tombstone says why", code=Code.E103, where="reason")
        change = {"op": "tombstone", "target": self._meant(ref), "reason": reason}
        return self.mutate(change | _expecting(expect))

    def tag(
        self,
        ref: str,
        tags: Mapping[str, str | Sequence[str]] | None = None,
        /,
        **more: str | Sequence[str],
    ) -> _Done:
        """Let an artifact carry tags as well: ``tag(ref, token="SOL", regime=["up", "calm"])``."""
        found = {k: _listed(v) for k, v in {**(tags or {}), **more}.items()}
        return self.mutate({"op": "tag", "target": self._meant(ref), "tags": found})

    def untag(self, ref: str, /, *keys: str, **tags: str | Sequence[str]) -> _Done:
        """Take tags off: every value of the `keys`, and single values: ``untag(ref, token="SOL")``."""
        found: dict[str, list[str]] = {key: [] for key in keys}
        found |= {k: _listed(v) for k, v in tags.items()}
        return self.mutate({"op": "untag", "target": self._meant(ref), "tags": found})

    def alias(self, alias: str, ref: str | None, expect: str | None = None) -> _Done:
        """Let ``KIND:NAME`` mean an artifact from now on; None takes the alias away.

        `expect`: the artifact that it must mean at this moment, "" for none. Of several who expect
        the same, one gets it and the others are refused (E405): compare and set.
        """
        kind, name = split_alias(alias)
        change: dict[str, Any] = {"op": "alias", "kind": kind, "alias": name}
        if ref is not None:
            change["target"] = self._meant(ref)
        return self.mutate(change | _expecting(expect and self._meant(expect)))

    def pin(self, pin: str, refs: str | Sequence[str]) -> _Done:
        """Put artifacts into the frozen set `pin`, which gc keeps and jobs take as ``pin:NAME``."""
        return self.mutate({"op": "pin", "pin": pin, "target": self._all_meant(refs)})

    def unpin(self, pin: str, refs: str | Sequence[str] | None = None) -> _Done:
        """Take artifacts out of a pin; without `refs`, all of them."""
        members = {} if refs is None else {"target": self._all_meant(refs)}
        return self.mutate({"op": "unpin", "pin": pin} | members)

    def _all_meant(self, refs: str | Sequence[str]) -> list[str]:
        return [self._meant(ref) for ref in _listed(refs)]

    def _meant(self, ref: str) -> str:
        if _LEFT_TO_THE_WRITER.match(ref):
            return ref
        from bus.lookup import find_artifact  # noqa: PLC0415 - brings sqlite3; producers need it not

        return find_artifact(self.lake, ref)


def _expecting(expect: str | None) -> dict[str, str]:
    return {} if expect is None else {"expect": expect}


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def split_alias(alias: str) -> tuple[str, str]:
    """``KIND:NAME`` as its two parts. Raises `Refused` (E104)."""
    kind, _, name = alias.partition(":")
    if not kind or not name:
        hint = "Give KIND:NAME, such as signals:prod."
        raise Refused(f"{alias[:160]!r} is no alias", code=Code.E104, where="alias", hint=hint)
    return kind, name


# ── reading ───────────────────────────────────────────────────────────────────────────────────

_ALIASES = """
SELECT a.kind || ':' || a.alias, a.artifact_id, f.status, f.logical_key, a.added_seq,
       c.committed_at_utc
FROM aliases a JOIN artifacts f USING (artifact_id) JOIN commits c ON c.seq = a.added_seq
WHERE (:kind IS NULL OR a.kind = :kind) ORDER BY 1
"""
_ALIAS_COLUMNS = ("alias", "artifact_id", "status", "logical_key", "seq", "since_utc")

_MOVES = """
SELECT m.seq, j.committed_at_utc, lag(m.artifact_id) OVER (ORDER BY m.move_no), m.artifact_id,
       j.producer, j.run_id, j.job_id
FROM alias_moves m JOIN jobs j USING (verdict_id)
WHERE m.kind = ? AND m.alias = ? ORDER BY m.move_no DESC
"""
_MOVE_COLUMNS = ("seq", "at_utc", "from", "to", "producer", "run_id", "job_id")

_PINS = """
SELECT pin, count(*), min(p.added_seq), max(p.added_seq), max(c.committed_at_utc)
FROM pins p JOIN commits c ON c.seq = p.added_seq GROUP BY pin ORDER BY pin
"""
_PIN_COLUMNS = ("pin", "artifacts", "first_seq", "last_seq", "last_at_utc")

_MEMBERS = """
SELECT p.artifact_id, a.artifact_type, a.schema_version, a.logical_key, a.status, a.row_count,
       p.added_seq
FROM pins p JOIN artifacts a USING (artifact_id)
WHERE p.pin = ? ORDER BY a.artifact_type, a.logical_key, p.artifact_id
"""
_MEMBER_COLUMNS = (
    *("artifact_id", "kind", "schema_version", "logical_key", "status", "rows", "seq"),
)


def aliases(lake: Lake, kind: str | None = None) -> list[dict[str, Any]]:
    """What every alias (of one kind) means now, and since when."""
    return _rows(lake, _ALIASES, _ALIAS_COLUMNS, {"kind": kind})


def alias_history(lake: Lake, alias: str) -> list[dict[str, Any]]:
    """Every move of ``KIND:NAME``, the newest first: seq, at_utc, from, to, and whose it was.

    Raises `NotFound` (E511) of one that never was.
    """
    name = split_alias(alias)
    if found := _rows(lake, _MOVES, _MOVE_COLUMNS, name):
        return found
    known = [row["alias"] for row in aliases(lake)]
    raise _unknown("alias", alias, known, "See `bus alias --list`.")


def pins(lake: Lake) -> list[dict[str, Any]]:
    """Every pin, how many artifacts it holds, and the commits that first and last added some."""
    return _rows(lake, _PINS, _PIN_COLUMNS, ())


def pin_members(lake: Lake, pin: str) -> list[dict[str, Any]]:
    """The artifacts of one pin. Raises `NotFound` (E511)."""
    if found := _rows(lake, _MEMBERS, _MEMBER_COLUMNS, (pin,)):
        return found
    raise _unknown("pin", pin, [row["pin"] for row in pins(lake)], "See `bus pins`.")


def _rows(lake: Lake, sql: str, columns: Sequence[str], params: Any) -> list[dict[str, Any]]:
    from bus.manifest import reading  # noqa: PLC0415 - as above

    with reading(lake) as manifest:
        found = [] if manifest is None else manifest.rows(sql, params)
    return [dict(zip(columns, row, strict=True)) for row in found]


def _unknown(what: str, name: str, known: Sequence[str], hint: str) -> NotFound:
    near = difflib.get_close_matches(name, known, n=3)
    meant = f"Did you mean {', '.join(near)}? " if near else ""
    return NotFound(f"no {what} {name[:160]!r} in this lake", where=what, hint=meant + hint)
