"""What differs between two artifacts: columns, rows, cells.

`diff` compares any two tables of a lake: two versions of one thing, or the same thing by two programs.
Rows are multisets. With a key, the rows that differ are told as added, removed and changed; without
one, as added and removed.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from bus.columns import type_text, widens
from bus.diff.chunks import Stored
from bus.diff.rows import Change, RowDifference, row_difference
from bus.diff.tables import Shared
from bus.errors import Code, Damaged, Refused, Rejected
from bus.lookup import artifact, find_artifact
from bus.parquet import Limits, open_parquet
from bus.shown import facts_html

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bus.lake import Lake
    from bus.specs import Registry, Spec

__all__ = ["Change", "Compared", "Diff", "Retyped", "RowDifference", "diff"]

_UNREADABLE_HINT = "`bus verify` tells whether the object is damaged."
_COLUMNS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Compared:
    """One of the two artifacts."""

    artifact_id: str
    kind: str
    schema_version: int
    logical_key: str
    rows: int
    file_hash: str
    content_hash: str


@dataclass(frozen=True, slots=True)
class Retyped:
    """A column that has another type in each; `compared`: every value of one fits the other."""

    name: str
    a: str
    b: str
    compared: bool


@dataclass(frozen=True, slots=True)
class Diff:
    """How artifact `b` differs from artifact `a`.

    added_columns, removed_columns  name -> type, of columns that only `b` or only `a` has
    retyped_columns                 columns of two types
    key                             the columns by which rows were told apart; empty: whole rows
    rows                            None where the tables have no column in common
    """

    a: Compared
    b: Compared
    added_columns: dict[str, str] = field(default_factory=dict)
    removed_columns: dict[str, str] = field(default_factory=dict)
    retyped_columns: list[Retyped] = field(default_factory=list)
    key: tuple[str, ...] = ()
    rows: RowDifference | None = field(default_factory=RowDifference)

    @property
    def equal(self) -> bool:
        """Whether both are one table: the same columns, of the same types, and the same rows."""
        same_columns = not (self.added_columns or self.removed_columns or self.retyped_columns)
        return same_columns and self.same_rows

    @property
    def same_rows(self) -> bool:
        """Whether the rows are the same in the columns that could be compared."""
        rows = self.rows
        return rows is not None and not (rows.added or rows.removed or rows.changed)

    @property
    def unchanged(self) -> int:
        """Rows that both have."""
        return 0 if self.rows is None else self.a.rows - self.rows.removed - self.rows.changed

    def as_dict(self) -> dict[str, Any]:
        """The JSON form; NaN and infinity, which JSON lacks, as texts."""
        columns = {
            "added": self.added_columns,
            "removed": self.removed_columns,
            "retyped": [asdict(column) for column in self.retyped_columns],
        }
        rows = None if self.rows is None else {"unchanged": self.unchanged} | asdict(self.rows)
        found = {"equal": self.equal, "a": asdict(self.a), "b": asdict(self.b)}
        document: dict[str, Any] = found | {"columns": columns, "key": self.key, "rows": rows}
        return {name: _json(value) for name, value in document.items()}

    def _repr_html_(self) -> str:
        rows = self.rows or RowDifference()
        facts = {
            "columns": [*self.added_columns, *self.removed_columns, *self.retyped_columns],
            "rows": f"{rows.added:,} added, {rows.removed:,} removed, {rows.changed:,} changed",
            "cells": rows.cells,
        }
        return facts_html("equal" if self.equal else "different", facts)


def diff(
    lake: Lake,
    registry: Registry,
    a: str,
    b: str,
    *,
    key: Sequence[str] | None = None,
    limit: int = 10,
) -> Diff:
    """Compare two artifacts, named by references as `find_artifact` takes them.

    `key`: columns that tell rows apart; default: the key of the kind's contract, where both have the
    same, else whole rows are compared. `limit`: how many rows of each sort are told. Memory is
    bounded; what does not fit goes to a temporary directory.

    Raises what `find_artifact` raises; `Refused`: E103 for a key that is no column of both, E510 for
    tables that cannot be compared; `Damaged` (E315) where bytes are gone or are no Parquet file.
    """
    facts = [artifact(lake, find_artifact(lake, reference)) for reference in (a, b)]
    one, other = (_compared(found) for found in facts)
    with ExitStack() as stack:
        files = [stack.enter_context(_opened(lake, side)) for side in (one, other)]
        schemas = [file.source.schema for file in files]
        shared, retyped = _shared(schemas[0], schemas[1])
        chosen = _key(registry, one, other, shared, key)
        if _is_proven_equal(registry, [one, other], schemas):
            rows: RowDifference | None = RowDifference()
        elif shared:
            rows = _rows(files[0], files[1], shared, chosen, limit)
        else:
            rows = None
    added, removed = _only_in(schemas[1], schemas[0]), _only_in(schemas[0], schemas[1])
    return Diff(one, other, added, removed, retyped, tuple(chosen), rows)


def _compared(facts: dict[str, Any]) -> Compared:
    return Compared(**{slot.name: facts[slot.name] for slot in fields(Compared)})


@contextmanager
def _opened(lake: Lake, side: Compared) -> Iterator[Stored]:
    path = lake.object_path(side.file_hash.removeprefix("sha256:"))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        message = f"the bytes of artifact {side.artifact_id} are gone"
        raise Damaged(message, where=str(path)) from None
    try:
        # What is in the store was held against the limits when it came.
        limits = Limits(max_decoded_bytes=sys.maxsize)
        yield Stored(str(path), fd, open_parquet(fd, os.fstat(fd).st_size, limits, str(path)))
    except Rejected as error:
        raise Damaged(error.message, where=error.where) from error
    finally:
        os.close(fd)


def _shared(a: pa.Schema, b: pa.Schema) -> tuple[list[Shared], list[Retyped]]:
    """Columns that both have and that can be compared; those of two types."""
    shared, retyped = [], []
    for name in (name for name in a.names if name in set(b.names)):
        one, other = a.field(name).type, b.field(name).type
        wide = other if widens(one, other) else one if widens(other, one) else None
        if wide is not None:
            shared.append(Shared(name, wide))
        if one != other:
            retyped.append(Retyped(name, type_text(one), type_text(other), wide is not None))
    return shared, retyped


def _only_in(schema: pa.Schema, other: pa.Schema) -> dict[str, str]:
    names = set(other.names)
    return {column.name: type_text(column.type) for column in schema if column.name not in names}


def _key(
    registry: Registry,
    a: Compared,
    b: Compared,
    shared: Sequence[Shared],
    asked: Sequence[str] | None,
) -> Sequence[str]:
    """The key that is asked for, or that both contracts have; empty without one."""
    names = [column.name for column in shared]
    if asked is not None:
        if missing := [name for name in asked if name not in names]:
            hint = f"Columns of both: {', '.join(names[:_COLUMNS_SHOWN])}."
            message = f"{missing[0]!r} is no column of both that can be compared"
            raise Refused(message, code=Code.E103, where="key", hint=hint)
        return list(dict.fromkeys(asked))
    first, second = (_key_of(registry.find(side.kind, side.schema_version)) for side in (a, b))
    return first if first == second and set(first) <= set(names) else ()


def _key_of(spec: Spec | None) -> tuple[str, ...]:
    if spec is None:
        return ()
    return spec.key or ((spec.row_key,) if spec.row_key else ())


def _is_proven_equal(
    registry: Registry, sides: Sequence[Compared], schemas: Sequence[pa.Schema]
) -> bool:
    """Whether the hashes say it: that of the content counts where it covers every column."""
    a, b = sides
    if a.file_hash == b.file_hash:
        return True
    return a.content_hash == b.content_hash and all(
        _covers(registry.find(side.kind, side.schema_version), schema)
        for side, schema in zip(sides, schemas, strict=True)
    )


def _covers(spec: Spec | None, schema: pa.Schema) -> bool:
    """Whether a table's content hash is one of all its columns."""
    if spec is None:
        return True
    return not spec.schema_problems(schema, "") and {*spec.hash_plan(schema).columns} == {
        *schema.names
    }


def _rows(
    a: Stored, b: Stored, shared: Sequence[Shared], key: Sequence[str], limit: int
) -> RowDifference:
    try:
        with tempfile.TemporaryDirectory(prefix="bus-diff-") as spill:
            return row_difference(a, b, shared, key, limit=limit, spill=Path(spill))
    except (duckdb.Error, pa.ArrowException) as error:
        message = f"the rows cannot be compared: {str(error).strip().splitlines()[0][:500]}"
        raise Refused(message, where=b.path, hint=_UNREADABLE_HINT) from error


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
