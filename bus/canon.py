"""The text of every `canon.*` view: what readers see of a kind's tables, as one table.

A view reads one constant glob for each schema version and names the columns and types it wants, so
DuckDB needs to open no file to know them, files may differ, and the text changes only when a kind,
a version or a column appears. Kinds with a contract show its columns; the others show every column
that their tables have had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from bus.sqltypes import common_type, duck_type, literal, quoted, unglobbed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

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
    """One schema version of a kind: where its tables lie, and its columns in DuckDB's types."""

    version: int
    columns: tuple[tuple[str, str], ...]
    empty: pa.Schema


def branches(registry: Registry, seen: SeenColumns) -> dict[str, list[Branch]]:
    """Every kind that readers can see, with its versions, newest first (its columns lead)."""
    found: dict[str, list[Branch]] = {}
    for spec in registry:
        found.setdefault(spec.kind, []).append(_of_spec(spec, seen))
    for (kind, version), columns in seen.items():
        if columns and all(b.version != version for b in found.get(kind, [])):
            found.setdefault(kind, []).append(_of_columns(version, columns))
    for versions in found.values():
        versions.sort(key=lambda branch: -branch.version)
    return found


def _of_spec(spec: Spec, seen: SeenColumns) -> Branch:
    columns = [(c.name, duck_type(str(c.type))) for c in spec.columns]
    if spec.extensible:
        known = {name.lower() for name, _ in columns}
        more = _merged(seen.get((spec.kind, spec.version), []))
        columns += [(name, kind) for name, kind in more if name.lower() not in known]
    return Branch(spec.version, tuple(columns), spec.schema)


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


def views(lake: Lake, registry: Registry, seen: SeenColumns) -> list[View]:
    """Every view of schema canon; those that others read come first."""
    found: dict[str, View] = {}
    for kind, versions in branches(registry, seen).items():
        row_key = _row_key(registry, kind, versions)
        every = _free_name(f"{kind}_all" if row_key else kind, found)
        tables = [_table(lake, kind, branch, with_id=row_key is not None) for branch in versions]
        found[every.lower()] = View(every, kind, "\nUNION ALL BY NAME\n".join(tables))
        if row_key is not None:
            name = _free_name(kind, found)
            found[name.lower()] = View(name, kind, _newest(every, row_key))
    return list(found.values())


def _free_name(name: str, taken: Mapping[str, View]) -> str:
    """`name`, or `name#2` … where another kind differs from it only by case."""
    number, free = 2, name
    while free.lower() in taken:
        free = f"{name}#{number}"  # no kind's name holds a #
        number += 1
    return free


def _row_key(registry: Registry, kind: str, versions: Sequence[Branch]) -> str | None:
    """The newest contract's row key."""
    specs = (registry.find(kind, branch.version) for branch in versions)
    return next((spec.row_key for spec in specs if spec is not None and spec.row_key), None)


def _table(lake: Lake, kind: str, branch: Branch, *, with_id: bool) -> str:
    """SELECT over the files of one version; with `artifact_id` from the file's name."""
    entries = ",\n    ".join(_entry(name, duck) for name, duck in branch.columns)
    options = f"hive_partitioning = false, schema = MAP {{\n    {entries}}}"
    glob, file = literal(glob_of(lake, kind, branch.version)), quoted(_FILE)
    columns = _whole_structs(branch)
    if not with_id:
        return f"SELECT {columns} FROM read_parquet({glob}, {options})"  # noqa: S608 - all parts are quoted
    return (
        f"SELECT {columns.replace('*', f'* EXCLUDE ({file})', 1)}, "
        f"parse_filename({file}, true) AS artifact_id\n"
        f"FROM read_parquet({glob}, filename = {literal(_FILE)}, {options})"
    )


def _whole_structs(branch: Branch) -> str:
    """All columns, structs by way of an expression.

    DuckDB 2.0 dies of an internal error when it reads a single field of a struct column which one
    of the files lacks (1.5 does not): the expression keeps it from reaching into the column.
    """
    structs = [quoted(name) for name, duck in branch.columns if duck.startswith("STRUCT(")]
    whole = ", ".join(f"CASE WHEN {s} IS NOT NULL THEN {s} END AS {s}" for s in structs)
    return f"* REPLACE ({whole})" if structs else "*"


def _entry(name: str, duck: str) -> str:
    facts = f"'name': {literal(name)}, 'type': {literal(duck)}, 'default_value': NULL"
    return f"{literal(name)}: {{{facts}}}"


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
