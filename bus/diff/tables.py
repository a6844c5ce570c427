"""The rows of two files that may differ, as relations of DuckDB.

DuckDB reads the files itself, five times as fast as Arrow hands rows over, and leaves out what
cannot differ. It has no exact type for some columns though (nanoseconds in UTC before 2.0, decimals
of more than 38 digits, maps with repeated keys), and some files it cannot read: their rows come by
way of Arrow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from bus.diff.chunks import Span
from bus.sqltypes import duck_type, literal, quoted, unglobbed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bus.diff.chunks import Layout, Pair, Stored

#: Of a pair of row groups in which more than this share of the rows differ, rows have moved.
_MOVED_SHARE = 0.25
_TRIED_ROWS = 16_384
_MAX_DECIMAL_DIGITS = 38
#: Columns that DuckDB adds to a file under these names, or cannot name.
_TAKEN_NAMES = {"file_row_number", "filename", ""}


@dataclass(frozen=True, slots=True)
class Shared:
    """A column that both tables have, and the type in which its values are compared."""

    name: str
    type: pa.DataType


@dataclass(frozen=True, slots=True)
class Tables:
    """Two files, and their columns under names that need no quotes: c0, c1 and so on.

    Both ways of bringing them make relations `a` and `b` of what may differ, and say how many rows
    each has.
    """

    a: Stored
    b: Stored
    columns: Sequence[Shared]

    def bring(self, db: duckdb.DuckDBPyConnection, parts: Layout) -> tuple[int, int]:
        """Views over the files. Raises duckdb.Error where DuckDB would not tell values apart."""
        for file in (self.a, self.b):
            self._check_exact(db, file)
        db.execute("CREATE TEMP TABLE beside (a BIGINT, b BIGINT)")
        looked = 0
        if not any(self._have_moved(db, pair) for pair in parts.pairs[:1]):
            while looked < len(parts.pairs) and self._look_beside(db, parts.pairs[looked]):
                looked += 1
        near, far = parts.pairs[:looked], parts.pairs[looked:]
        whole_a = [pair.a for pair in far] + parts.alone_a
        whole_b = [pair.b for pair in far] + parts.alone_b
        self._view(db, "a", self.a, [pair.a for pair in near], whole_a)
        self._view(db, "b", self.b, [pair.b for pair in near], whole_b)
        ((beside,),) = db.execute("SELECT count(*) FROM beside").fetchall()
        return beside + _count(whole_a), beside + _count(whole_b)

    def _have_moved(self, db: duckdb.DuckDBPyConnection, pair: Pair) -> bool:
        """Whether the first rows that may differ lie elsewhere: then the others mostly do, too.

        Rows that moved differ in most columns: where few do, there is no need to look.
        """
        differing = [column for column in self.columns if column.name in pair.columns]
        if 2 * len(differing) <= len(self.columns):
            return False
        rows = min(_TRIED_ROWS, pair.a.rows)
        first = replace(pair, a=replace(pair.a, rows=rows), b=replace(pair.b, rows=rows))
        moved = not self._look_beside(db, first)
        db.execute("DELETE FROM beside")
        return moved

    def _look_beside(self, db: duckdb.DuckDBPyConnection, pair: Pair) -> bool:
        """Note the rows that differ from the one at their side; False where too many do.

        What is not noted is equal to the row at its side, and takes that away: this holds even if
        DuckDB brought the rows in another order, because then the numbers differ.
        """
        numbers = [i for i, column in enumerate(self.columns) if column.name in pair.columns]
        differs = [f"a.c{i} IS DISTINCT FROM b.c{i}" for i in numbers]
        differs.append(f"a.p - {pair.a.start} IS DISTINCT FROM b.p - {pair.b.start}")
        ((noted,),) = db.execute(
            "INSERT INTO beside SELECT a.p, b.p "  # noqa: S608 - names of our own
            f"FROM ({self._rows(self.a, [pair.a], numbers)}) a "
            f"POSITIONAL JOIN ({self._rows(self.b, [pair.b], numbers)}) b "
            f"WHERE {' OR '.join(differs)}"
        ).fetchall()
        if noted <= _MOVED_SHARE * pair.a.rows:
            return True
        db.execute("DELETE FROM beside WHERE a BETWEEN ? AND ?", [pair.a.start, pair.a.last])
        return False

    def _view(
        self,
        db: duckdb.DuckDBPyConnection,
        name: str,
        file: Stored,
        near: Sequence[Span],
        whole: Sequence[Span],
    ) -> None:
        """Of `near` row groups the rows that were noted; `whole` ones in whole."""
        rows = f"({self._rows(file, near)}) r SEMI JOIN beside ON r.p = beside.{name}"
        branches = [rows] if near else []
        branches += [f"({self._rows(file, whole)}) r"] if whole else []
        listed = ", ".join(names_of(self.columns))
        union = " UNION ALL ".join(f"SELECT {listed} FROM {branch}" for branch in branches)  # noqa: S608 - names of our own
        empty = f"SELECT {listed} FROM ({self._rows(file, [])})"  # noqa: S608 - likewise
        db.execute(f"CREATE TEMP VIEW {name} AS {union or empty}")

    def _rows(
        self, file: Stored, spans: Sequence[Span], numbers: Iterable[int] | None = None
    ) -> str:
        """SELECT of row groups' rows: columns c0, c1 … (or those of `numbers`) and the number p."""
        chosen = range(len(self.columns)) if numbers is None else numbers
        picks = [f"{_cast(file, self.columns[i])} AS c{i}" for i in chosen]
        ranges = (f"file_row_number BETWEEN {s.start} AND {s.last}" for s in _joined(spans))
        return (
            f"SELECT {', '.join(picks)}{', ' * bool(picks)}file_row_number AS p FROM read_parquet("  # noqa: S608 - all parts are quoted
            f"{literal(unglobbed(file.path))}, hive_partitioning = false, file_row_number = true) "
            f"WHERE {' OR '.join(ranges) or 'false'}"
        )

    def _check_exact(self, db: duckdb.DuckDBPyConnection, file: Stored) -> None:
        """Raise duckdb.Error unless DuckDB keeps every digit of every column that it reads."""
        schema = file.source.schema
        inexact = {name.lower() for name in schema.names} & _TAKEN_NAMES
        for column in self.columns:
            type_ = schema.field(column.name).type
            if _has_long_decimals(type_) or (
                _has_nanoseconds(type_)
                and (pa.types.is_nested(type_) or not _keeps_nanoseconds(db, file, column))
            ):
                inexact.add(column.name)
        if inexact:
            raise duckdb.NotSupportedError(f"not exactly: {sorted(inexact)}")

    def bring_through_arrow(self, db: duckdb.DuckDBPyConnection, parts: Layout) -> tuple[int, int]:
        """Copies of the rows, in types without surprises: slower, and right for every type."""
        whole_a = [pair.a for pair in parts.pairs] + parts.alone_a
        whole_b = [pair.b for pair in parts.pairs] + parts.alone_b
        schema = pa.schema([(f"c{i}", plain(c.type)) for i, c in enumerate(self.columns)])
        for name, file, spans in (("a", self.a, whole_a), ("b", self.b, whole_b)):
            reader = pa.RecordBatchReader.from_batches(schema, self._batches(file, spans, schema))
            db.register("incoming", reader)
            db.execute(f"CREATE TEMP TABLE {name} AS FROM incoming")
            db.unregister("incoming")
        return _count(whole_a), _count(whole_b)

    def _batches(
        self, file: Stored, spans: Iterable[Span], schema: pa.Schema
    ) -> Iterator[pa.RecordBatch]:
        names = [column.name for column in self.columns]
        for span in spans:
            for batch in file.source.group_batches(span.group, names):
                arrays = [
                    array.cast(column.type).cast(target)
                    for array, column, target in zip(
                        batch.columns, self.columns, schema.types, strict=True
                    )
                ]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _cast(file: Stored, column: Shared) -> str:
    """A column in the type in which it is compared."""
    name = quoted(column.name)
    if file.source.schema.field(column.name).type == column.type:
        return name
    return f"CAST({name} AS {duck_type(str(column.type))})"


def _joined(spans: Iterable[Span]) -> list[Span]:
    """Spans that follow each other as one: DuckDB leaves row groups out for a range, not for many."""
    joined: list[Span] = []
    for span in sorted(spans, key=lambda one: one.start):
        if joined and joined[-1].last + 1 == span.start:
            before = joined.pop()
            joined.append(Span(before.group, before.start, before.rows + span.rows))
        else:
            joined.append(span)
    return joined


def _count(spans: Iterable[Span]) -> int:
    return sum(span.rows for span in spans)


def names_of(columns: Sequence[Shared]) -> list[str]:
    """What the columns are called in both relations."""
    return [f"c{number}" for number in range(len(columns))]


def _leaves(type_: pa.DataType) -> list[pa.DataType]:
    fields = [type_.field(number).type for number in range(type_.num_fields)]
    return [leaf for field_ in fields for leaf in _leaves(field_)] if fields else [type_]


def _has_long_decimals(type_: pa.DataType) -> bool:
    decimals = filter(pa.types.is_decimal, _leaves(type_))
    return any(decimal.precision > _MAX_DECIMAL_DIGITS for decimal in decimals)


def _has_nanoseconds(type_: pa.DataType) -> bool:
    return any(getattr(leaf, "unit", "") == "ns" for leaf in _leaves(type_))


def _keeps_nanoseconds(db: duckdb.DuckDBPyConnection, file: Stored, column: Shared) -> bool:
    """DuckDB has times with and without them; which it takes depends on its version."""
    ((_, duck, *_),) = db.execute(
        f"DESCRIBE SELECT {quoted(column.name)} FROM read_parquet(?, hive_partitioning = false)",  # noqa: S608 - quoted
        [unglobbed(file.path)],
    ).fetchall()
    return bool(duck.endswith("_NS"))


def plain(type_: pa.DataType) -> pa.DataType:
    """The type in which values of `type_` are compared where DuckDB has no exact one.

    Times become integers in their unit, long decimals texts (of one scale), maps lists of entries.
    """
    types = pa.types
    if types.is_map(type_):
        entry = pa.struct([("key", plain(type_.key_type)), ("value", plain(type_.item_type))])
        return pa.list_(entry)
    if types.is_struct(type_):
        fields = (type_.field(number) for number in range(type_.num_fields))
        return pa.struct([(field_.name, plain(field_.type)) for field_ in fields])
    if types.is_list(type_):
        return pa.list_(plain(type_.value_type))
    if types.is_temporal(type_):
        return pa.int32() if type_.bit_width == pa.int32().bit_width else pa.int64()
    if types.is_decimal(type_) and type_.precision > _MAX_DECIMAL_DIGITS:
        return pa.string()
    return {pa.null(): pa.int8(), pa.float16(): pa.float32()}.get(type_, type_)
