"""The text of every `canon.*` view: what readers see of a kind's tables, as one table.

A view reads one constant glob for each schema version and names the columns and types it wants, so
DuckDB needs to open no file to know them, files may differ, and the text changes only when a kind,
a version or a column appears. Kinds with a contract show the columns of its newest version, and
tables of older ones as these become the newest (`bus.evolution`); a version for which there is no
way is left out, and has a view of its own. Kinds without a contract show every column that their
tables have had.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from bus.sqltypes import common_type, duck_type, literal, quoted, unglobbed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from bus.evolution import Step, Ways
    from bus.lake import Lake
    from bus.specs import Registry, Spec

#: Columns of tables without a full contract: (kind, version) -> [(name, Arrow type)], as they came.
SeenColumns = dict[tuple[str, int], list[tuple[str, str]]]

#: What DuckDB calls the file a row came from; no column can have this name (ids of ours do not).
_FILE = "\x1ffile"


@dataclass(frozen=True, slots=True)
class View:
    """`canon.<name>`, which reads tables of `kind`, and the SELECT it stands for."""

    name: str
    kind: str
    sql: str


@dataclass(frozen=True, slots=True)
class Branch:
    """One schema version of a kind: where its tables lie, and its columns in DuckDB's types.

    `steps` are how they become tables of the newest version; None if there is no way.
    """

    version: int
    columns: tuple[tuple[str, str], ...]
    empty: pa.Schema
    steps: Sequence[Step] | None = ()


def branches(
    registry: Registry, seen: SeenColumns, ways: Ways | None = None
) -> dict[str, list[Branch]]:
    """Every kind that readers can see, with its versions, newest first (its columns lead).

    `ways` are those of `bus.migrations.sound_ways`; without them no version is left out.
    """
    found: dict[str, list[Branch]] = {}
    for spec in registry:
        steps = () if ways is None else ways.get((spec.kind, spec.version))
        found.setdefault(spec.kind, []).append(_of_spec(spec, seen, steps))
    for (kind, version), columns in seen.items():
        if columns and all(b.version != version for b in found.get(kind, [])):
            found.setdefault(kind, []).append(_of_columns(version, columns))
    for versions in found.values():
        versions.sort(key=lambda branch: -branch.version)
    return found


def _of_spec(spec: Spec, seen: SeenColumns, steps: Sequence[Step] | None) -> Branch:
    columns = [(c.name, duck_type(str(c.type))) for c in spec.columns]
    if spec.extensible:
        known = {name.lower() for name, _ in columns}
        more = _merged(seen.get((spec.kind, spec.version), []))
        columns += [(name, kind) for name, kind in more if name.lower() not in known]
    return Branch(spec.version, tuple(columns), spec.schema, steps)


def _of_columns(version: int, columns: Sequence[tuple[str, str]]) -> Branch:
    merged = _merged(columns)
    return Branch(version, tuple(merged), pa.schema([(merged[0][0], pa.string())]))


def _merged(columns: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """One type for each name. DuckDB does not tell names apart by case; the first spelling stays."""
    types: dict[str, set[str]] = {}
    spelled: dict[str, str] = {}
    for name, arrow_type in columns:
        spelled.setdefault(name.lower(), name)
        types.setdefault(name.lower(), set()).add(duck_type(arrow_type))
    return [(spelled[key], common_type(found)) for key, found in types.items()]


def views(lake: Lake, registry: Registry, seen: SeenColumns, ways: Ways) -> list[View]:
    """Every view of schema canon; those that others read come first."""
    found: dict[str, View] = {}
    for kind, versions in branches(registry, seen, ways).items():
        row_key = _row_key(registry, kind)
        every = _free_name(f"{kind}_all" if row_key else kind, found)
        shown = [branch for branch in versions if branch.steps is not None]
        tables = [_table(lake, kind, branch, with_id=row_key is not None) for branch in shown]
        found[every.lower()] = View(every, kind, "\nUNION ALL BY NAME\n".join(tables))
        if row_key is not None:
            name = _free_name(kind, found)
            found[name.lower()] = View(name, kind, _newest(every, row_key))
        for branch in versions:
            if branch.steps is None:
                name = _free_name(f"{kind}_v{branch.version}", found)
                found[name.lower()] = View(name, kind, _read(lake, kind, branch, {}, with_id=False))
    return list(found.values())


def as_newest(lake: Lake, registry: Registry, ways: Ways, kind: str, version: int) -> str:
    """SELECT of one declared version's rows as the newest version has them, as in the view."""
    versions = branches(registry, {}, ways)[kind]
    branch = next(branch for branch in versions if branch.version == version)
    return _table(lake, kind, branch, with_id=_row_key(registry, kind) is not None)


def _free_name(name: str, taken: Mapping[str, View]) -> str:
    """`name`, or `name#2` … where another kind differs from it only by case."""
    number, free = 2, name
    while free.lower() in taken:
        free = f"{name}#{number}"  # no kind's name holds a #
        number += 1
    return free


def _row_key(registry: Registry, kind: str) -> str | None:
    """The newest contract's row key."""
    versions = registry.versions(kind)
    spec = registry.find(kind, versions[-1]) if versions else None
    return spec.row_key if spec is not None else None


def _table(lake: Lake, kind: str, branch: Branch, *, with_id: bool) -> str:
    """SELECT of one version's rows as the newest version has them."""
    steps = list(branch.steps or ())
    shape = branch.columns
    while steps and steps[0].sql is None:  # compatible: read at once in the types of the later one
        later = {c.name: duck_type(str(c.type)) for c in steps.pop(0).new.columns}
        shape = tuple((name, later.get(name, duck)) for name, duck in shape)
        shape += tuple(item for item in later.items() if item[0] not in dict(shape))
    sql = _read(lake, kind, branch, dict(shape), with_id=with_id)
    for step in steps:
        sql = _migrated(step, sql, with_id=with_id)
    return sql


def _read(lake: Lake, kind: str, branch: Branch, shape: Mapping[str, str], *, with_id: bool) -> str:
    """SELECT over the files of one version, with `artifact_id` from the file's name if wanted.

    `shape`: other types to read its columns in, and columns of later versions, which it lacks. Those
    are not looked for in the files: what stood in them was not held to a contract.
    """
    types = {name: shape.get(name, duck) for name, duck in branch.columns}
    schema = f"held.shape({literal(json.dumps(types, ensure_ascii=False))})"
    options = f"hive_partitioning = false, schema = {schema}"
    glob, file = literal(glob_of(lake, kind, branch.version)), quoted(_FILE)
    own = dict(branch.columns)
    lacking = [f", {_null(name, duck)}" for name, duck in shape.items() if name not in own]
    columns = _whole_structs(branch, shape)
    if not with_id:
        return f"SELECT {columns}{''.join(lacking)} FROM read_parquet({glob}, {options})"  # noqa: S608 - all parts are quoted
    return (
        f"SELECT {columns.replace('*', f'* EXCLUDE ({file})', 1)}{''.join(lacking)}, "
        f"parse_filename({file}, true) AS artifact_id\n"
        f"FROM read_parquet({glob}, filename = {literal(_FILE)}, {options})"
    )


def _null(name: str, duck: str) -> str:
    return f"CAST(NULL AS {duck}) AS {quoted(name)}"


def _migrated(step: Step, old: str, *, with_id: bool) -> str:
    """A declared migration over `old`, in the columns and types of the version it leads to."""
    if step.sql is None:
        return _retyped(step, old)
    made = {name.lower(): name for name in step.makes}
    picks = []
    for column in step.new.columns:
        duck, name = duck_type(str(column.type)), made.pop(column.name.lower(), None)
        picks.append(_null(column.name, duck) if name is None else _cast(name, column.name, duck))
    picks += [quoted(name) for name in made.values()] if step.new.extensible or with_id else []
    return (
        f"SELECT * FROM (WITH old AS (\n{old}\n)\nSELECT {', '.join(picks)} "  # noqa: S608 - bound before
        f"FROM (\n{step.sql}\n))"
    )


def _retyped(step: Step, old: str) -> str:
    """Rows of one version in the types of a later one that is compatible."""
    casts, nulls = [], []
    for column in step.new.columns:
        duck = duck_type(str(column.type))
        if step.old.column(column.name) is None:
            nulls.append(f", {_null(column.name, duck)}")
        else:
            casts.append(_cast(column.name, column.name, duck))
    return f"SELECT * REPLACE ({', '.join(casts)}){''.join(nulls)} FROM (\n{old}\n)"  # noqa: S608 - all parts are quoted


def _cast(name: str, column: str, duck: str) -> str:
    return f"CAST({quoted(name)} AS {duck}) AS {quoted(column)}"


def _whole_structs(branch: Branch, shape: Mapping[str, str]) -> str:
    """All columns, structs by way of an expression.

    DuckDB 2.0 dies of an internal error when it reads a single field of a struct column which one
    of the files lacks (1.5 does not): the expression keeps it from reaching into the column.
    """
    types = ((name, shape.get(name, duck)) for name, duck in branch.columns)
    structs = [quoted(name) for name, duck in types if duck.startswith("STRUCT(")]
    whole = ", ".join(f"CASE WHEN {s} IS NOT NULL THEN {s} END AS {s}" for s in structs)
    return f"* REPLACE ({whole})" if structs else "*"


def _newest(every: str, row_key: str) -> str:
    """One row for each key: that of the artifact which was submitted last."""
    return (
        "SELECT r.* EXCLUDE (artifact_id)\n"  # noqa: S608 - the names are quoted
        f"FROM canon.{quoted(every)} r JOIN (\n"
        "  SELECT artifact_id::VARCHAR AS artifact_id, max(use_no) AS use_no\n"
        "  FROM catalog.uses GROUP BY 1) u USING (artifact_id)\n"
        f"QUALIFY row_number() OVER (PARTITION BY r.{quoted(row_key)} ORDER BY u.use_no DESC) = 1"
    )


def glob_of(lake: Lake, kind: str, version: int) -> str:
    """The pattern of a version's files."""
    return unglobbed(lake.public(lake.kind_dir(kind, version))) + "/*.parquet"


def empties(lake: Lake, registry: Registry, seen: SeenColumns) -> Iterator[tuple[Path, pa.Schema]]:
    """(path, schema) of the file without rows that keeps each glob from matching nothing."""
    for kind, versions in branches(registry, seen).items():
        for branch in versions:
            yield lake.empty_path(kind, branch.version), branch.empty
