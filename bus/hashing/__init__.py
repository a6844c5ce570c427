r"""The file hash, and the content hash CH1: the same for the same rows, whoever wrote them.

The content hash is SHA-256 over typed, columnar bytes of the rows in a total order. What follows
is all that another program needs to compute it; integers are little-endian.

1. Columns, in the order of their UTF-8 names. With a plan: its columns, cast to its types without
   loss. Dictionaries, run-end encoding and extension types are decoded to what they store.
2. Rows, ascending by the plan's `sort_by`, then by the remaining scalar columns in name order,
   then by the nested columns in name order. NULL comes first; false before true; numbers, dates
   and times by value, NaN after +inf, -0.0 equal to 0.0; text and binary byte by byte, unsigned; a
   nested value as the bytes it is hashed as. Null-typed columns order nothing. Equal rows all stay.
3. Chunks. A column is cut into chunks of 65,536 rows; only the last may be shorter; without rows
   there is none. A chunk is::

       u8       1 if the chunk has a NULL, else 0
       bits     only if 1: for each row 1 = value, 0 = NULL; LSB first, unused bits 0, whole bytes
       values   of every row, in the parts of its family, part after part; 0 or empty under NULL

4. Families: tag and parts. ::

       b     booleans          u8, 0 or 1
       i     integers          i64. A column (or nested leaf) that holds at least one value above
       u                       2^63 - 1 anywhere is of tag `u`, and all of it is u64
       f     floats            f64; NaN is 7ff8000000000000, -0.0 is 0.0
       s     text              i32 byte lengths of all rows; then all their UTF-8 bytes
       x     binary            likewise; fixed-size binary and UUID too
       D     dates             i32 days since 1970-01-01
       t     naive timestamps  i64 seconds since 1970-01-01 00:00, rounded down, of all rows; then
       T     instants (UTC)    u32 nanoseconds of all rows
       m     times of day      i64 nanoseconds
       0xd8  durations         i64 nanoseconds (the tag is this one byte)
       d     decimals          u8 scales of all rows, then i256 unscaled values of all rows; each
                               value by itself with the fewest places, 0 with none: 1.50 is (1, 15)
       n     null-typed        nothing; such a column has no chunks at all
       L e   lists, any kind   e is the tag of the element
       M k v maps              tags of key and value; entries keep their order
       S ..  structs           u32 fields; for each, in UTF-8 name order: u32 length, name, tag

   A nested column is hashed like binary: i32 byte lengths, then the bytes of each row's value.
   These are: of a list its i32 length, then the run of its elements; of a map its i32 length, then
   the run of its keys, then the run of its values; of a struct for each field in name order the
   run of that one field value. A *run* of values of one type is: for each a u8, 1 = value, 0 =
   NULL; then their parts as above, part after part, zero or empty under NULL; or, where they are
   nested: of lists all i32 lengths, then one run of all their elements; of maps all i32 lengths,
   one run of all keys, one run of all values; of structs for each field in name order one run. A
   field of a NULL struct is NULL.
5. column digest = SHA-256(chunks); content hash = "ch1:" + hex of SHA-256(the bytes "CH1\n", u64
   rows, then for each column: u32 length of its name, name, tag, column digest).

What it does not cover, and `UnhashableType` names: unions, intervals, a value of 2 GiB, spans
beyond 64 bits of nanoseconds. The caller hashes the file instead, as ``file:`` + `file_hash`.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from bus.hashing.casting import LossyCast, cast, needs_cast
from bus.hashing.columns import Column, Family, UnhashableType, decoded, decoded_type
from bus.hashing.digest import CHUNK_ROWS, RowDigest, key_order
from bus.hashing.families import columns_together
from bus.hashing.nested import family_of
from bus.hashing.order import joined

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "CHUNK_ROWS",
    "Column",
    "ContentHasher",
    "HashPlan",
    "LossyCast",
    "OutOfOrder",
    "UnhashableType",
    "content_hash",
    "file_hash",
]

#: Tables of up to this many bytes, decoded, are kept until it is known whether they need a sort.
SORT_LIMIT_BYTES = 256 << 20


def file_hash(file: int | str | os.PathLike[str]) -> str:
    """``sha256:`` + hex of a file's bytes, read once from its start, in constant memory.

    An open descriptor is read without being closed or moved; a path is opened and closed.
    """
    if not isinstance(file, int):
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return file_hash(fd)
        finally:
            os.close(fd)
    digest = hashlib.sha256()
    # Most files are small, and clearing a large block costs more than reading them.
    block = bytearray(min(os.fstat(file).st_size + 1, _BLOCK_BYTES))
    view = memoryview(block)
    position = 0
    while count := os.preadv(file, [block], position):
        digest.update(view[:count])
        position += count
    return f"sha256:{digest.hexdigest()}"


_BLOCK_BYTES = 1 << 18


class OutOfOrder(Exception):
    """The rows are not in canonical order and too many to sort in memory: see `out_of_core`."""


@dataclass(frozen=True, slots=True)
class HashPlan:
    """Which columns are hashed, as what, and what rows are ordered by first.

    columns  name -> Arrow type to cast to without loss, or None for the type the data has
    sort_by  names of scalar columns among them, most significant first

    Raises `ValueError` for an empty plan, and for `sort_by` outside the columns.
    """

    columns: Mapping[str, pa.DataType | None]
    sort_by: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", MappingProxyType(dict(self.columns)))
        if not self.columns:
            raise ValueError("a content hash needs at least one column")
        strangers = [name for name in self.sort_by if name not in self.columns]
        if strangers or len(set(self.sort_by)) < len(self.sort_by):
            raise ValueError(f"sort_by {self.sort_by} must name hashed columns, each once")

    @classmethod
    def for_schema(cls, schema: pa.Schema) -> Self:
        """The plan for data without a contract: every column as it is, no leading sort key.

        Raises `ValueError` if two columns have one name.
        """
        if len(set(schema.names)) < len(schema.names):
            raise ValueError("two columns have one name")
        return cls(dict.fromkeys(schema.names))


class ContentHasher:
    """The content hash of rows that arrive as record batches of one schema, of any sizes.

    Rows that arrive in canonical order are hashed as they come, in bounded memory. Otherwise all
    rows are kept, up to `sort_limit_bytes`, and `result` sorts them; beyond that it raises
    `OutOfOrder` and the caller reads the rows again through `out_of_core.content_hash`.
    `temp_dir` takes the text of a chunk whose rows are very long (default: the system's).

    Raises `ValueError` if the schema lacks a column of the plan, `UnhashableType` (already here,
    as far as types tell) and, from `update`, `LossyCast`.
    """

    def __init__(
        self,
        schema: pa.Schema,
        plan: HashPlan | None = None,
        *,
        sort_limit_bytes: int = SORT_LIMIT_BYTES,
        temp_dir: Path | None = None,
    ) -> None:
        self._layout = _layout_of(schema, plan)
        self._families = self._layout.new_families()
        self._temp_dir = temp_dir
        self._digest = self.empty_digest(temp_dir)
        self._kept: list[list[Column]] = []
        self._kept_bytes = 0
        self._sort_limit_bytes = sort_limit_bytes

    @property
    def in_order(self) -> bool:
        """Whether all rows so far came in canonical order."""
        return self._digest.in_order

    @property
    def rows(self) -> int:
        """Rows seen so far."""
        return self._digest.rows

    def empty_digest(self, temp_dir: Path | None) -> RowDigest:
        """A digest of these columns that has seen no row yet."""
        layout = self._layout
        return RowDigest(layout.names, self._families, layout.key_order, temp_dir)

    def update(self, batch: pa.RecordBatch) -> dict[str, Column]:
        """Take in the next rows.

        Returns what the columns that needed no cast were reduced to, by name, for whoever can use
        it: `bus.column_stats` does.
        """
        columns = self.canonical(batch)
        if self._kept_bytes <= self._sort_limit_bytes:
            self._keep(columns)
        self._digest.update(columns, batch.num_rows)
        return {name: columns[number] for name, number in self._layout.as_stored}

    def _keep(self, columns: list[Column]) -> None:
        if self._kept:  # a single batch, the common case, is not worth weighing
            self._kept_bytes += sum(column.array.nbytes for column in self._kept[-1])
        self._kept.append(columns)
        if self._kept_bytes > self._sort_limit_bytes:
            self._kept = []

    def canonical(self, batch: pa.RecordBatch) -> list[Column]:
        """The hashed columns of a batch in name order, cast and reduced; takes nothing in."""
        layout, arrays = self._layout, batch.columns
        columns: list[Any] = []
        for planned, family in zip(layout.columns, self._families, strict=True):
            array = arrays[planned.index]
            if planned.is_plain:
                columns.append(Column(family, array))
            elif planned.is_shared:  # all of them together, below
                columns.append(None)
            else:
                columns.append(planned.column(array, family))
        if layout.shared:
            families = [self._families[number] for number in layout.shared]
            together = [arrays[layout.columns[number].index] for number in layout.shared]
            reduced = columns_together(families, together)
            for number, column in zip(layout.shared, reduced, strict=True):
                columns[number] = column
        return columns

    def result(self) -> str:
        """``ch1:`` + hex. Raises `OutOfOrder`. Call it once, at the end."""
        if self._digest.in_order:
            return self._digest.result()
        if self._kept_bytes > self._sort_limit_bytes:
            raise OutOfOrder(f"more than {self._sort_limit_bytes} bytes out of order")
        kept, self._kept = self._kept, []
        digest = self.empty_digest(self._temp_dir)
        digest.update_sorted(_concatenated(kept))
        return digest.result()


class _Planned:
    """One hashed column: where it stands in a batch, and what it is cast to."""

    def __init__(self, schema: pa.Schema, name: str, target: pa.DataType | None) -> None:
        self.name = name
        self.index = schema.get_field_index(name)
        if self.index < 0:
            raise ValueError(f"not exactly one column is named {name!r}")
        source = schema.field(self.index).type
        self.target = target if target is not None and needs_cast(source, target) else None
        self.needs_decoding = decoded_type(source) is not source
        self.type = source if self.target is None else self.target
        is_as_stored = self.target is None and not self.needs_decoding
        self.is_shared = is_as_stored and (source == pa.float64() or pa.types.is_timestamp(source))
        try:
            self._family = family_of(self.type)
        except UnhashableType as error:
            raise error.at(name) from None
        self.is_plain = is_as_stored and self._family.is_plain

    def new_family(self) -> Family:
        """A family for the column of one table."""
        return family_of(self.type) if self._family.learns else self._family

    def column(self, array: pa.Array, family: Family) -> Column:
        """The canonical column. Raises `UnhashableType` and `LossyCast`."""
        try:
            if self.needs_decoding:
                array = decoded(array)
            if self.target is not None:
                array = cast(array, self.target, self.name)
            return family.column(array)
        except UnhashableType as error:
            raise error.at(self.name) from None


class _Layout:
    """All that schema and plan say: columns in name order, and what orders rows.

    columns    the hashed columns
    as_stored  (name, position) of those that are hashed without a cast
    shared     positions of those that are reduced together
    key_order  positions of the columns that order rows, most significant first
    """

    def __init__(self, schema: pa.Schema, plan: HashPlan) -> None:
        names = sorted(plan.columns, key=str.encode)
        self.names = names
        self.columns = [_Planned(schema, name, plan.columns[name]) for name in names]
        self.as_stored = [
            (planned.name, number)
            for number, planned in enumerate(self.columns)
            if planned.target is None
        ]
        self.shared = [n for n, planned in enumerate(self.columns) if planned.is_shared]
        self.key_order = key_order(names, self.new_families(), plan.sort_by)

    def new_families(self) -> list[Family]:
        """A family for each column, for the rows of one table."""
        return [planned.new_family() for planned in self.columns]


#: The last layout, with what it was made of: artifacts of one kind follow each other.
_last_layout: tuple[pa.Schema, HashPlan | None, _Layout] | None = None


def _layout_of(schema: pa.Schema, plan: HashPlan | None) -> _Layout:
    global _last_layout  # noqa: PLW0603 - a cache of one entry, replaced as a whole
    last = _last_layout
    if last is not None and last[1] == plan and last[0].equals(schema):
        return last[2]
    layout = _Layout(schema, plan or HashPlan.for_schema(schema))
    _last_layout = (schema, plan, layout)
    return layout


def _concatenated(batches: list[list[Column]]) -> list[Column]:
    """The batches as one, freeing each column's parts before the next column is copied."""
    result = []
    for number in range(len(batches[0])):
        result.append(joined(*[batch[number] for batch in batches]))
        for batch in batches:
            batch[number] = result[-1]
    return result


def content_hash(table: pa.Table | pa.RecordBatch, plan: HashPlan | None = None) -> str:
    """The content hash of rows in memory: ``ch1:`` + 64 hex digits. Raises as `ContentHasher`."""
    hasher = ContentHasher(table.schema, plan, sort_limit_bytes=1 << 62)
    batches = [table] if isinstance(table, pa.RecordBatch) else table.to_batches()
    for batch in batches:
        hasher.update(batch)
    return hasher.result()
