"""Declared migrations, tried before a view relies on them: a SELECT over `old`, and nothing else.

Each is bound in an empty database that holds only `old`, with the columns of the older version. So it
can read nothing else, it is known which of the newer version's columns it makes, and one that is
wrong leaves its own version out of `canon.<kind>` and no other. Whether every value of the tables
that there are can be converted, only reading them tells: `bus specs check`.
"""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import duckdb

from bus.canon import as_newest
from bus.errors import Code, Problem, Refused, Unavailable, problem
from bus.evolution import changes, end_of_way, way
from bus.manifest import Manifest
from bus.snapshot import PURE, VOLATILE, asking, closed_database, connect_snapshot, read
from bus.sqltypes import duck_type, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bus.contract import Spec
    from bus.evolution import Step, Ways
    from bus.lake import Lake
    from bus.specs import Registry

#: The column that says which artifact a row of `old` is from, where a kind has a row key.
ARTIFACT_ID = "artifact_id"
_CHANGES_SHOWN = 3


def sound_ways(registry: Registry) -> tuple[Ways, list[Problem]]:
    """How each declared version is read as the newest of its kind; why some are not (E211)."""
    ways: dict[tuple[str, int], Sequence[Step]] = {}
    found: list[Problem] = []
    for kind in registry.kinds():
        for version in registry.versions(kind):
            try:
                ways[kind, version] = _sound_way(registry, kind, version)
            except Refused as error:
                found += error.problems
    return ways, found


def _sound_way(registry: Registry, kind: str, version: int) -> Sequence[Step]:
    steps = way(registry, kind, version)
    if steps is None:
        raise Refused.of([_no_way(registry, kind, version)])
    with_id = bool(steps) and steps[-1].new.row_key is not None
    return [
        step if step.sql is None else replace(step, makes=_makes(step, step.sql, with_id=with_id))
        for step in steps
    ]


def _no_way(registry: Registry, kind: str, version: int) -> Problem:
    old, new = end_of_way(registry, kind, version)
    reasons = [f"{c.part}: {c.why}" for c in changes(old, new) if not c.compatible]
    more = f" and {len(reasons) - _CHANGES_SHOWN} more" if len(reasons) > _CHANGES_SHOWN else ""
    told = "; ".join(reasons[:_CHANGES_SHOWN]) + more
    message = (
        f"left out of canon.{kind}: v{new.version} does not take tables of v{old.version} ({told})"
    )
    hint = f"Declare in v{new.version} how to read them: migrate_from_v{old.version}, a SELECT over old."
    return problem(Code.E211, f"kinds.{kind} v{version}", message, hint)


def _makes(step: Step, sql: str, *, with_id: bool) -> tuple[str, ...]:
    """The columns that a migration makes. Raises `Refused` (E211) unless it is sound."""
    with closed_database([], []) as db:
        try:
            return tuple(_bound(db, step, sql, with_id=with_id))
        except Refused as error:
            where = f"{step.new.where}.migrate_from_v{step.old.version}"
            hint = "Correct the SELECT; until then the old version is left out of the view."
            raise Refused(error.message, code=Code.E211, where=where, hint=hint) from None


def _bound(db: duckdb.DuckDBPyConnection, step: Step, sql: str, *, with_id: bool) -> list[str]:
    reading = read(db, sql)
    if foreign := [table for table in sorted(reading.tables) if "." in table]:
        raise Refused(f"reads {foreign[0]}, and may read only old")
    if others := reading.table_functions - PURE:
        raise Refused(f"reads {min(others)}, and may read only old")
    if volatile := reading.words & VOLATILE:
        raise Refused(f"{min(volatile)} makes other rows every time")
    nulls = [
        f"CAST(NULL AS {duck_type(str(c.type))}) AS {quoted(c.name)}" for c in step.old.columns
    ]
    nulls += [f"CAST(NULL AS VARCHAR) AS {ARTIFACT_ID}"] if with_id else []
    with asking(sql):
        db.execute(f"CREATE TEMP VIEW old AS SELECT {', '.join(nulls)}")
        # Of its own, whatever comment it ends with.
        names = [str(row[0]) for row in db.execute(f"DESCRIBE (FROM (\n{sql}\n))").fetchall()]
    if faults := [*_faults(step.new, names, with_id=with_id)]:
        raise Refused("; ".join(faults))
    return names


def _faults(new: Spec, names: list[str], *, with_id: bool) -> Iterator[str]:
    made = {name.lower() for name in names}  # DuckDB does not tell names apart by case
    for column in new.columns:
        if column.name.lower() not in made and not column.nullable:
            yield f"makes no {column.name}, which v{new.version} needs"
    if with_id and ARTIFACT_ID not in made:
        yield f"makes no {ARTIFACT_ID}; with a row_key it must hand on the one of old"
    known = {column.name.lower() for column in new.columns} | ({ARTIFACT_ID} if with_id else set())
    if not new.extensible and (more := [name for name in names if name.lower() not in known]):
        yield f"makes {more[0]}, which v{new.version} does not have"


# ── a lake against the contracts that are declared now ────────────────────────────────────────────


def contract_problems(lake: Lake, registry: Registry) -> list[Problem]:
    """What is wrong with the declared contracts, without reading a table.

    E211: versions that `canon.*` leaves out. E210: contracts that are not what this lake has held
    tables to since the first of them.
    """
    _, found = sound_ways(registry)
    with suppress(Unavailable), closing(Manifest.read(lake)) as manifest:
        found += _edited(manifest, registry)
    return found


def _edited(manifest: Manifest, registry: Registry) -> Iterator[Problem]:
    sql = (
        "SELECT artifact_type, schema_version, fingerprint, added_seq FROM contracts ORDER BY 1, 2"
    )
    for kind, version, fingerprint, seq in manifest.rows(sql):
        spec = registry.find(kind, version)
        if spec is not None and spec.fingerprint == fingerprint:
            continue
        now = "is not declared" if spec is None or spec.open else "has been edited"
        message = f"{now}: since commit {seq} tables are held to the contract {fingerprint[:12]}…"
        yield problem(Code.E210, f"kinds.{kind} v{version}", message)


def unreadable_tables(lake: Lake, registry: Registry) -> Iterator[Problem]:
    """Old versions (E211) of which some value cannot be converted: every row of them is read.

    Raises `Unavailable` (E508) without a catalog.
    """
    ways, _ = sound_ways(registry)
    with connect_snapshot(lake) as db:
        for (kind, version), steps in ways.items():
            if not steps or not lake.empty_path(kind, version).exists():
                continue  # the newest, or declared since the catalog was made: there are no tables
            sql = as_newest(lake, registry, ways, kind, version)
            try:
                db.execute(f"SELECT sum(hash(t)::HUGEINT) FROM (\n{sql}\n) t").fetchall()  # noqa: S608 - bound before
            except duckdb.Error as error:
                message = str(error).strip().splitlines()[0][:500]
                where = f"{steps[-1].new.where}: tables of v{version}"
                yield problem(Code.E211, where, message, "Correct the migration.")
