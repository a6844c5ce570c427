"""Contracts and their versions: specs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bus.cli.failures import FAILED, OK
from bus.cli.options import HERE, Everywhere
from bus.cli.output import Block, Line, Part, Reply, Table, problem_blocks
from bus.errors import Code, NotFound, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bus.evolution import Change, Step
    from bus.specs import Registry, Spec


def specs(
    action: Literal["list", "diff", "check"] = "list",
    kind: str | None = None,
    old: int | None = None,
    new: int | None = None,
    /,
    *,
    everywhere: Everywhere = HERE,
) -> Reply:
    """List contracts, show what changed between two versions, or check them all.

    `list` tells how tables of each version come into canon.KIND. `diff` tells what changed, and
    whether tables of the old version keep to the new one; the exit code is 1 when they do not and no
    migration is declared. `check` holds the declared contracts against each other and against the
    lake, and reads every table that a migration applies to; the exit code is 1 when it finds
    something. Works with no bus running.

    For example:

        bus specs
        bus specs diff ohlcv_slice
        bus specs diff my_signals 1 3 --json
        bus specs check

    Parameters
    ----------
    action
        What to do: list, diff or check.
    kind
        With diff: the kind.
    old
        With diff: a version; default: the one before `new`.
    new
        With diff: a later version; default: the newest.
    """
    from bus.specs import Registry

    registry = Registry.load(everywhere.settings())
    if action == "list":
        return _specs_list(registry)
    if action == "check":
        return _specs_check(registry, everywhere)
    if kind is None:
        raise Refused("name a kind", code=Code.E103, where="KIND", hint="bus specs lists them.")
    return _specs_diff(registry, kind, old, new)


def _specs_list(registry: Registry) -> Reply:
    from bus.migrations import sound_ways

    ways, _ = sound_ways(registry)
    found = [
        {
            "kind": spec.kind,
            "schema_version": spec.version,
            "columns": len(spec.columns),
            "key": list(spec.key),
            "in_canon": _how(ways.get((spec.kind, spec.version))),
        }
        for spec in registry
    ]
    columns = ("kind", "schema_version", "columns", "key", "in_canon")
    return Reply(found, lambda: [Table(columns, [[row[c] for c in columns] for row in found])])


def _how(steps: Sequence[Step] | None) -> str:
    """How tables of a version come into the view of their kind."""
    if steps is None:
        return "left out"
    if any(step.sql is not None for step in steps):
        return "migrated"
    return "compatible" if steps else "newest"


def _specs_diff(registry: Registry, kind: str, old: int | None, new: int | None) -> Reply:
    from bus.evolution import changes

    before, after = _two_versions(registry, kind, old, new)
    found = changes(before, after)
    migration = after.migrations.get(before.version)
    compatible = all(change.compatible for change in found)
    data = {
        "kind": kind,
        "old": before.version,
        "new": after.version,
        "compatible": compatible,
        "migration": migration,
        "changes": [
            {
                "part": change.part,
                "before": change.before,
                "after": change.after,
                "compatible": change.compatible,
                "why": change.why,
            }
            for change in found
        ],
    }
    status = OK if compatible or migration is not None else FAILED

    def text() -> Iterable[Part]:
        yield Block(f"{kind} v{before.version} -> v{after.version}", [*map(_change_line, found)])
        if compatible:
            yield Line(
                f"compatible: tables of v{before.version} are tables of v{after.version}", "good"
            )
        elif migration is not None:
            yield Block("not compatible; tables are migrated by", migration.splitlines())
        else:
            yield Line(
                f"not compatible: v{after.version} declares no migrate_from_v{before.version}",
                "bad",
            )

    return Reply(data, text, status)


def _change_line(change: Change) -> str:
    sign = "+" if not change.before else "-" if not change.after else "~"
    told = " -> ".join(filter(None, (change.before, change.after)))
    return f"{sign} {change.part}: {told}" + (
        f"  (not compatible: {change.why})" * bool(change.why)
    )


def _two_versions(
    registry: Registry, kind: str, old: int | None, new: int | None
) -> tuple[Spec, Spec]:
    versions = registry.versions(kind)
    if not versions:
        hint = f"Declared kinds: {', '.join(registry.kinds())}."
        raise NotFound(f"no contract of kind {kind!r}", where="KIND", hint=hint)
    new = new or versions[-1]
    old = old or max((version for version in versions if version < new), default=new)
    found = [registry.find(kind, version) for version in (old, new)]
    if old >= new or None in found:
        hint = f"{kind} has version {', '.join(map(str, versions))}; name two, the older one first."
        raise Refused(
            f"no v{old} and later v{new} of {kind!r}", code=Code.E103, where="V1 V2", hint=hint
        )
    return found[0], found[1]  # type: ignore[return-value]  # both are there


def _specs_check(registry: Registry, everywhere: Everywhere) -> Reply:
    from bus.lake import Lake
    from bus.migrations import contract_problems, unreadable_tables

    settings = everywhere.settings()
    lake = Lake(settings.lake, settings.public_lake)
    found = contract_problems(lake, registry)
    if lake.catalog_db.exists():
        found += unreadable_tables(lake, registry)

    def text() -> Iterable[Part]:
        yield from problem_blocks(p.as_dict() for p in found)
        if not found:
            yield Line(f"{len([*registry])} contracts, nothing to say against them", "good")

    return Reply([p.as_dict() for p in found], text, FAILED if found else OK)
