"""A lake in plain dicts and sets: what must become of a job, and what must hold after it.

It knows nothing of files, commits, batches and crashes, so whatever those lead to must agree with
it.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bus.model import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.crash_kit import Job

#: (logical key, number of the table): what tells artifacts apart.
Key = tuple[str, int]
Edges = set[tuple[Key, Key]]
#: (number of the table, codec): what tells objects apart.
Bytes = tuple[int, str]

#: What is wrong with a job, and the code that says so.
FAULTS = {"a wrong hash": "E304", "a missing column": "E202", "a torn file": "E308"}


@dataclass
class Expected:
    """What must become of a job; `changes`: the mutations that had something left to do."""

    outcome: Outcome
    code: str | None = None
    decision: tuple[str, str | None] | None = None
    changes: list[str] = field(default_factory=list)


class RefusedError(Exception):
    """The job must be rejected; the text is a code that says why."""


@dataclass
class State:
    """What holds after the jobs decided so far."""

    committed: dict[str, Job] = field(default_factory=dict)
    delivered: dict[str, Key] = field(default_factory=dict)
    codecs: dict[Key, str] = field(default_factory=dict)
    tombstoned: dict[Key, str] = field(default_factory=dict)
    supersedes: Edges = field(default_factory=set)
    made_from: Edges = field(default_factory=set)
    tags: set[tuple[Key, str, str]] = field(default_factory=set)
    aliases: dict[str, Key] = field(default_factory=dict)
    moves: list[tuple[Key | None, Key | None]] = field(default_factory=list)
    pins: dict[str, set[Key]] = field(default_factory=dict)
    purged: set[Bytes] = field(default_factory=set)

    def status(self, key: Key) -> str:
        if self.stands_on(key) in self.purged:
            return "purged"
        if key in self.tombstoned:
            return "tombstoned"
        return "superseded" if any(old == key for _, old in self.supersedes) else "active"

    def stands_on(self, key: Key) -> Bytes:
        return key[1], self.codecs[key]

    def needed(self) -> set[Bytes]:
        """What everything reachable stands on: nothing is superseded by policy here."""
        kept = {key for key in self.codecs if key not in self.tombstoned}
        kept |= {*self.aliases.values()}.union(*self.pins.values())
        while more := {source for made, source in self.made_from if made in kept} - kept:
            kept |= more
        return {self.stands_on(key) for key in kept}

    # ── artifacts ─────────────────────────────────────────────────────────────────────────────

    def add(self, job: Job) -> Expected:
        key = (job.keys[0], job.tables[0])
        for pin in job.entries.get("inputs", ()):
            members = self.pins.get(pin.removeprefix("pin:"))
            if not members:
                raise RefusedError("E401")
            if any(leads(self.made_from, member, key) for member in members):
                raise RefusedError("E402")
            self.made_from |= {(key, member) for member in members}
        known = self.codecs.get(key)
        if known is not None and key not in self.tombstoned:
            mode = "file_hash" if known == job.codec else "content_hash"
            decision: tuple[str, str | None] = ("deduped", mode)
        else:
            decision = ("created" if known is None else "revived", None)
            self.codecs[key] = job.codec
            self.tombstoned.pop(key, None)
            self.purged.discard(self.stands_on(key))
        self.delivered[job.job_id] = key
        self.tags |= {(key, k, v) for k, v in job.entries.get("tags", {}).items()}
        return Expected(Outcome.COMMITTED, decision=decision)

    # ── changes ───────────────────────────────────────────────────────────────────────────────

    def change(self, job: Job, ids: dict[Key, str], objects: dict[str, Bytes]) -> Expected:
        done = [
            (
                change["op"],
                self._purge(change["object"], objects)
                if change["op"] == "purge"
                else self._say(change, ids),
            )
            for change in job.fields["mutations"]
        ]
        return Expected(Outcome.COMMITTED, changes=[op for op, effect in done if effect])

    def _purge(self, sha256: str, objects: dict[str, Bytes]) -> bool:
        """An object that no artifact ever stood on may always go."""
        found = objects.get(sha256)
        if found in self.needed():
            return False
        self.purged |= {found} if found else set()
        return True

    def _meant(self, reference: str) -> Key:
        job_id = reference.removeprefix("job:").partition("/")[0]
        if job_id not in self.delivered:
            raise RefusedError("E403")
        return self.delivered[job_id]

    def _say(self, change: dict[str, Any], ids: dict[Key, str]) -> bool:
        """Whether it had something left to do."""
        said = change.get("target")
        targets = [self._meant(ref) for ref in ([said] if isinstance(said, str) else said or ())]
        match change["op"]:
            case "supersede":
                return self._supersede(targets[0], self._meant(change["by"]))
            case "tombstone":
                return self._tombstone(targets[0], change["reason"])
            case "tag":
                return self._extend(self.tags, pairs(targets[0], change["tags"]))
            case "untag":
                return self._reduce(self.tags, self._taken_off(targets[0], change["tags"]))
            case "alias":
                present = self.aliases.get(change["alias"])
                self._expect(change, ids[present] if present else "")
                return self._alias(change["alias"], present, targets)
            case "pin":
                return self._extend(self.pins.setdefault(change["pin"], set()), targets)
            case "unpin":
                held = self.pins.setdefault(change["pin"], set())
                return self._reduce(held, set(held) if said is None else targets)
            case op:
                raise AssertionError(op)

    def _supersede(self, old: Key, new: Key) -> bool:
        if (new, old) in self.supersedes:
            return False
        self._refuse_tombstoned(old, new)
        if leads(self.supersedes, old, new):
            raise RefusedError("E402")
        return self._extend(self.supersedes, [(new, old)])

    def _tombstone(self, key: Key, reason: str) -> bool:
        before = self.tombstoned.get(key)
        self.tombstoned[key] = reason
        return before != reason

    def _refuse_tombstoned(self, *keys: Key) -> None:
        if any(key in self.tombstoned for key in keys):
            raise RefusedError("E406")

    def _taken_off(self, key: Key, tags: dict[str, list[str]]) -> set[tuple[Key, str, str]]:
        every = {(of, k, v) for of, k, v in self.tags if of == key and tags.get(k) == []}
        return every | set(pairs(key, tags))

    def _expect(self, change: dict[str, Any], present: str) -> None:
        if change.get("expect", present) != present:
            raise RefusedError("E405")

    def _alias(self, alias: str, present: Key | None, targets: list[Key]) -> bool:
        self._refuse_tombstoned(*targets)
        target = targets[0] if targets else None
        if target == present:
            return False
        self.moves.append((present, target))
        self.aliases.pop(alias, None)
        self.aliases |= {alias: target} if target else {}
        return True

    @staticmethod
    def _extend(held: set[Any], more: Iterable[Any]) -> bool:
        before = len(held)
        held.update(more)
        return len(held) > before

    @staticmethod
    def _reduce(held: set[Any], less: Iterable[Any]) -> bool:
        before = len(held)
        held.difference_update(less)
        return len(held) < before


class PlainLake:
    """Decides jobs one by one; `now` is what holds, and is never changed in place.

    `ids`, `objects`: the artifact_id of each key, and what each SHA-256 stands for, once known.
    """

    def __init__(self, ids: dict[Key, str], objects: dict[str, Bytes]) -> None:
        self.ids = ids
        self.objects = objects
        self.now = State()

    def decide(self, job: Job) -> Expected:
        """What must become of a job; afterwards `now` holds what it changed."""
        if (fault := fault_of(job)) is not None:
            return Expected(Outcome.REJECTED, FAULTS[fault])
        like = replace(job, codec="zstd")
        if job.job_id in self.now.committed:
            if self.now.committed[job.job_id] == like:
                return Expected(Outcome.REPEATED)
            return Expected(Outcome.REJECTED, "E105")
        after = deepcopy(self.now)
        try:
            is_change = "mutations" in job.fields
            expected = after.change(job, self.ids, self.objects) if is_change else after.add(job)
        except RefusedError as refused:
            return Expected(Outcome.REJECTED, str(refused))
        after.committed[job.job_id] = like
        self.now = after
        return expected


def fault_of(job: Job) -> str | None:
    """What makes validators reject it."""
    if "sha256" in job.entries:
        return "a wrong hash"
    if job.broken:
        return "a torn file"
    return "a missing column" if "kind" in job.fields else None


def leads(edges: Edges, start: Key, end: Key) -> bool:
    """Whether `end` is `start`, or is reached from it."""
    return start == end or any(leads(edges, to, end) for at, to in edges if at == start)


def pairs(key: Key, tags: dict[str, list[str]]) -> list[tuple[Key, str, str]]:
    return [(key, k, v) for k, values in tags.items() for v in values]
