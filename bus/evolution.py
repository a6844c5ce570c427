"""How a contract goes on in its next version, and how tables of older versions are read then.

A new version is *compatible* when every table of the old one is one of the new as well: it adds
columns that may be NULL, widens types (`bus.columns.widens`), or demands less. Anything else needs a
migration, declared beside the new version: a SELECT over `old`. What can be read in one of these
ways, step by step up to the newest version, is part of `canon.<kind>`; what cannot is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bus.columns import type_text, widens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bus.columns import Column
    from bus.contract import Spec
    from bus.specs import Registry


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs between two versions; `why` old tables do not fit, or nothing."""

    part: str
    before: str
    after: str
    why: str = ""

    @property
    def compatible(self) -> bool:
        """Whether tables of the old version keep to it."""
        return not self.why


def changes(old: Spec, new: Spec) -> list[Change]:
    """What differs between two versions of a contract; nothing when only their numbers do."""
    return [*_column_changes(old, new), *_rule_changes(old, new), *_table_changes(old, new)]


def _column_changes(old: Spec, new: Spec) -> Iterator[Change]:
    for column in old.columns:
        after = new.column(column.name)
        if after is None:
            why = "what old tables say in it would be lost"
            yield Change(f"column {column.name}", str(column), "", why)
        elif str(column) != str(after):
            yield Change(f"column {column.name}", str(column), str(after), _misfit(column, after))
        elif column.hashed != after.hashed:
            words = {True: "hashed", False: "not hashed"}
            yield Change(f"column {column.name}", words[column.hashed], words[after.hashed])
    for column in new.columns:
        if old.column(column.name) is None:
            why = "" if column.nullable else "old tables have no value for it"
            if old.extensible:
                why = why or "old tables may have it already, in another type"
            yield Change(f"column {column.name}", "", str(column), why)


def _misfit(old: Column, new: Column) -> str:
    if not widens(old.type, new.type):
        return f"not every {type_text(old.type)} is a {type_text(new.type)}"
    return "old tables may have NULL in it" if old.nullable and not new.nullable else ""


def _rule_changes(old: Spec, new: Spec) -> Iterator[Change]:
    before = {_words(check.rule): check.name for check in old.checks}
    after = {_words(check.rule): check.name for check in new.checks}
    for rule, name in before.items():
        if rule not in after:
            yield Change(f"check {name}", rule, "")
    for rule, name in after.items():
        if rule not in before:
            yield Change(f"check {name}", "", rule, "old tables were not held to it")
    if old.rows != new.rows:
        why = "" if new.rows is None else "old tables may have another number of rows"
        yield Change("rows", _text(old.rows), _text(new.rows), why)


def _words(rule: str) -> str:
    return " ".join(rule.split())


def _table_changes(old: Spec, new: Spec) -> Iterator[Change]:
    if old.key != new.key:
        relaxed = not new.key or (bool(old.key) and set(old.key) <= set(new.key))
        why = "" if relaxed else "it may not be unique in old tables"
        yield Change("key", ", ".join(old.key), ", ".join(new.key), why)
    if old.row_key != new.row_key:
        why = "" if new.row_key is None else "rows of old tables would hide each other"
        yield Change("row_key", _text(old.row_key), _text(new.row_key), why)
    if old.extensible != new.extensible:
        why = "" if new.extensible else "old tables may have more columns"
        yield Change("extensible", _text(old.extensible), _text(new.extensible), why)
    # What only concerns new tables: their hash, their bounds, what their jobs must say.
    for part in ("sort_by", "time_column", "derived"):
        before, after = getattr(old, part), getattr(new, part)
        if before != after:
            yield Change(part, _text(before), _text(after))


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# ── from an old version to the newest ─────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Step:
    """From one version to a later one: by the declared SELECT, or (None) as it is.

    `makes`: the columns of the SELECT in its own spelling, once it has been tried.
    """

    old: Spec
    new: Spec
    sql: str | None = None
    makes: tuple[str, ...] = ()


#: (kind, version) -> how its tables become those of the newest version; what has no way is missing.
Ways = Mapping[tuple[str, int], Sequence[Step]]


def way(registry: Registry, kind: str, version: int) -> tuple[Step, ...] | None:
    """The steps from a declared version to the newest, the longest first; None if there is no way.

    A declared migration goes before reading a table as it is, even where that would do.
    """
    versions = registry.versions(kind)
    if version == versions[-1]:
        return ()
    for later in reversed(versions):
        if later <= version:
            break
        step = _step(registry, kind, version, later)
        rest = way(registry, kind, later) if step is not None else None
        if step is not None and rest is not None:
            return step, *rest
    return None


def end_of_way(registry: Registry, kind: str, version: int) -> tuple[Spec, Spec]:
    """The two versions between which the way from `version` ends, where `way` finds none."""
    versions = registry.versions(kind)
    steps = (
        later
        for later in versions
        if later > version and _step(registry, kind, version, later) is not None
    )
    if (onward := next(steps, None)) is not None:
        return end_of_way(registry, kind, onward)
    following = next(later for later in versions if later > version)
    return _declared(registry, kind, version), _declared(registry, kind, following)


def _step(registry: Registry, kind: str, version: int, later: int) -> Step | None:
    old, new = _declared(registry, kind, version), _declared(registry, kind, later)
    sql = new.migrations.get(version)
    if sql is not None or all(change.compatible for change in changes(old, new)):
        return Step(old, new, sql)
    return None


def _declared(registry: Registry, kind: str, version: int) -> Spec:
    found = registry.find(kind, version)
    assert found is not None  # noqa: S101 - one of registry.versions(kind)
    return found
