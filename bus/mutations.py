"""Step 7 for mutations: whether each may be, and what of it is left to do.

A mutation says what shall hold from now on. Where that contradicts what may be, the whole job is
refused. Where it holds already, nothing is left to do: the record leaves it out and the receipt
says so in a warning, so that saying a thing twice, or by two people at once, is no error.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, assert_never

from bus.errors import Code
from bus.model import (
    MAX_TAGS,
    Alias,
    Discard,
    MarkDamaged,
    Pin,
    Purge,
    Restore,
    SetPolicy,
    Supersede,
    Tag,
    Tombstone,
    Unpin,
    Untag,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from bus.model import Mutation
    from bus.present import Known, Pair, Present

#: Artifacts in one pin.
MAX_PINNED = 100_000
_SHOWN = 5


#: The clock by which a file system stamps directories may be so far behind: this job's own is stamped next.
_TICK = timedelta(milliseconds=10)


class Mutations:
    """Decides the mutations of one job, in order, each seeing the ones before it.

    `present` is the job's own layer; `problem(code, where, message)` refuses the job; `now` is the
    commit's moment; `kept` says why objects must not be purged; `warnings` tells of what was so
    already, or is left out.
    """

    def __init__(
        self,
        present: Present,
        problem: Callable[[Code, str, str], None],
        now: datetime,
        kept: Mapping[str, str],
    ) -> None:
        self._present = present
        self._problem = problem
        self._now = now
        self._kept = kept
        self.warnings: list[str] = []

    def decide(self, mutation: Mutation, where: str) -> list[Mutation]:
        """What of a mutation is to be recorded; its references are artifact ids already."""
        match mutation:
            case Supersede():
                return self._supersede(mutation, where)
            case Tombstone():
                return self._tombstone(mutation, where)
            case Tag():
                return self._tag(mutation, where)
            case Untag():
                return self._untag(mutation)
            case Alias():
                return self._alias(mutation, where)
            case Pin():
                return self._pin(mutation, where)
            case Unpin():
                return self._unpin(mutation)
            case MarkDamaged() | Restore() | Purge() | SetPolicy() | Discard():
                return self._of_bytes(mutation)
            case _:
                assert_never(mutation)

    def _of_bytes(
        self, mutation: MarkDamaged | Restore | Purge | SetPolicy | Discard
    ) -> list[Mutation]:
        """Whether damage is so, and is mended, the writer sees by looking."""
        match mutation:
            case Purge(object=sha256) if sha256 in self._kept:
                self.warnings.append(f"purge: object {sha256} stays ({self._kept[sha256]})")
                return []
            case Discard(before=before):  # a clock ahead of ours must not discard what comes yet
                latest = self._now - _TICK
                return [mutation.model_copy(update={"before": min(before, latest)})]
            case _:
                return [mutation]

    # ── versions ──────────────────────────────────────────────────────────────────────────────

    def supersede(self, new: str, old: str, where: str) -> None:
        """Let `new` replace `old`, unless it must not."""
        for artifact_id in (old, new):
            self._refuse_tombstoned(artifact_id, where)
        if above := self._present.superseded_by(new, old):
            circle = cycle([new, *reversed(above)])
            self._problem(Code.E402, where, f"{new} would supersede itself: {circle}")
        else:
            self._present.superseders[old] |= {new}

    def _supersede(self, mutation: Supersede, where: str) -> list[Mutation]:
        old, new = mutation.target, mutation.by
        self._expect_bytes(mutation, where)
        if new in self._present.superseders[old]:
            self.warnings.append(f"supersede: {new} supersedes {old} already")
            return []
        self.supersede(new, old, where)
        return [mutation]

    def _tombstone(self, mutation: Tombstone, where: str) -> list[Mutation]:
        target, reason = mutation.target, mutation.reason
        self._expect_bytes(mutation, where)
        if not reason.strip():
            self._problem(Code.E103, f"{where}.reason", "a tombstone says why")
        known = self._known(target)
        if known.tombstoned == reason:
            self.warnings.append(f"tombstone: {target} is tombstoned for this reason already")
            return []
        self._present.artifacts[target] = replace(known, tombstoned=reason)
        return [mutation]

    def _refuse_tombstoned(self, artifact_id: str, where: str) -> None:
        if (reason := self._known(artifact_id).tombstoned) is not None:
            self._problem(Code.E406, where, f"{artifact_id} is tombstoned: {reason}")

    def _expect_bytes(self, mutation: Supersede | Tombstone, where: str) -> None:
        """`expect` of supersede and tombstone names the file hash that the target must have."""
        if mutation.expect is None:
            return
        present = self._known(mutation.target).file_hash
        if present != mutation.expect:
            message = f"{mutation.target} stands on {present}, not on {mutation.expect}"
            self._problem(Code.E405, f"{where}.expect", message)

    def _known(self, artifact_id: str) -> Known:
        known = self._present.artifacts[artifact_id]
        assert known is not None  # noqa: S101 - references were resolved
        return known

    # ── tags ──────────────────────────────────────────────────────────────────────────────────

    def add_tags(self, target: str, tags: Mapping[str, Iterable[str]], where: str) -> list[Pair]:
        """Let an artifact carry these tags as well; those that it did not carry."""
        held = self._present.tags[target]
        new = [pair for pair in dict.fromkeys(_pairs(tags)) if pair not in held]
        if new:
            self._present.tags[target] = together = held.union(new)
            if len(together) > MAX_TAGS:
                message = f"{target} carries {len(held)} tags and would carry {len(together)}"
                self._problem(Code.E407, f"{where}.tags", f"{message}; {MAX_TAGS} at most")
        return new

    def _tag(self, mutation: Tag, where: str) -> list[Mutation]:
        if new := self.add_tags(mutation.target, mutation.tags, where):
            return [mutation.model_copy(update={"tags": _by_key(new)})]
        shown = _some([f"{key}={value}" for key, value in _pairs(mutation.tags)])
        self.warnings.append(f"tag: {mutation.target} carries {shown} already")
        return []

    def _untag(self, mutation: Untag) -> list[Mutation]:
        target = mutation.target
        held = self._present.tags[target]
        carried = _by_key(sorted(held))
        gone: list[Pair] = []
        absent: list[str] = []
        for key, values in mutation.tags.items():
            there = carried.get(key, [])
            gone += [(key, value) for value in there if value in values or not values]
            absent += [f"{key}={value}" for value in values if value not in there]
            absent += [] if there or values else [key]
        if absent:
            self.warnings.append(f"untag: {target} does not carry {_some(absent)}")
        if not gone:
            return []
        self._present.tags[target] = held.difference(gone)
        return [mutation.model_copy(update={"tags": _by_key(gone)})]

    # ── aliases ───────────────────────────────────────────────────────────────────────────────

    def _alias(self, mutation: Alias, where: str) -> list[Mutation]:
        """`expect` of an alias is the artifact_id that it means now, or "" for none."""
        name = (mutation.kind, mutation.alias)
        shown = ":".join(name)
        present, target = self._present.aliases[name], mutation.target
        if mutation.expect is not None and mutation.expect != (present or ""):
            means = f"{shown} means {present or 'nothing'}"
            message = f"{means}, not {mutation.expect or 'nothing'}"
            self._problem(Code.E405, f"{where}.expect", message)
        if target is not None:
            self._refuse_tombstoned(target, f"{where}.target")
        if present == target:
            self.warnings.append(f"alias: {shown} means {target or 'nothing'} already")
            return []
        self._present.aliases[name] = target
        return [mutation]

    # ── pins ──────────────────────────────────────────────────────────────────────────────────

    def _pin(self, mutation: Pin, where: str) -> list[Mutation]:
        pin = mutation.pin
        if not mutation.target:
            self._problem(Code.E403, f"{where}.target", f"pin {pin} of nothing")
        held = self._present.pins[pin]
        new = [target for target in mutation.target if target not in held]
        if (count := len(held) + len(new)) > MAX_PINNED:
            message = f"pin {pin} would hold {count:,} artifacts; {MAX_PINNED:,} at most"
            self._problem(Code.E407, f"{where}.target", message)
        if not new:
            self.warnings.append(f"pin: {pin} holds {_some(mutation.target)} already")
            return []
        self._present.pins[pin] = held.union(new)
        return [mutation.model_copy(update={"target": new})]

    def _unpin(self, mutation: Unpin) -> list[Mutation]:
        pin = mutation.pin
        held = self._present.pins[pin]
        asked = sorted(held) if mutation.target is None else mutation.target
        if not held:
            self.warnings.append(f"unpin: there is no pin {pin}")
        elif absent := [target for target in asked if target not in held]:
            self.warnings.append(f"unpin: {pin} does not hold {_some(absent)}")
        gone = [target for target in asked if target in held]
        if not gone:
            return []
        self._present.pins[pin] = held.difference(gone)
        return [mutation.model_copy(update={"target": gone})]


def cycle(way: list[str]) -> str:
    """`a → b → a`; of a long one, both ends."""
    if len(way) > 2 * _SHOWN:
        way = [*way[:_SHOWN], f"… {len(way) - 2 * _SHOWN} more …", *way[-_SHOWN:]]
    return " → ".join(way)


def _pairs(tags: Mapping[str, Iterable[str]]) -> list[Pair]:
    return [(key, value) for key, values in tags.items() for value in values]


def _by_key(pairs: Iterable[Pair]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def _some(items: Sequence[str]) -> str:
    """The first few."""
    more = f" and {len(items) - _SHOWN:,} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
