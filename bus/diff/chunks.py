"""Which parts of two Parquet files hold the same bytes, and so the same values.

Versions of one table that were written with the same settings have the same column chunks, byte for
byte, wherever nothing changed. Comparing compressed bytes costs no decoding and proves equality:
the bytes of a chunk hold everything that its values are decoded from (page headers with encodings
and levels, dictionary, data), but the codec, the column's type and the writer, which are compared
too. Statistics prove nothing, and are not looked at.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from bus.parquet import ParquetSource

#: Pieces that stay in the processor's cache; larger ones take twice as long (measured).
_PIECE_BYTES = 64 << 10
#: Old releases of parquet-mr left the dictionary's header out of a chunk's size; readers then take
#: so many bytes more than the footer says, and so do we.
_HEADER_BYTES = 100


@dataclass(frozen=True, slots=True)
class Stored:
    """A Parquet file in the store, open: `path` is its name, `fd` stays the caller's."""

    path: str
    fd: int
    source: ParquetSource


@dataclass(frozen=True, slots=True)
class Span:
    """The rows of one row group: its number, that of its first row, and how many there are."""

    group: int
    start: int
    rows: int

    @property
    def last(self) -> int:
        """The number of the last row."""
        return self.start + self.rows - 1


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Where a column chunk lies in its file, and what tells how it is decoded."""

    codec: str
    values: int
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Pair:
    """A row group of each file, of one length; all but `columns` hold the same bytes in both."""

    a: Span
    b: Span
    columns: frozenset[str]


@dataclass(frozen=True, slots=True)
class Layout:
    """What is left to compare once equal row groups are taken from both ends.

    pairs    row groups side by side, one length each, which differ in some columns
    alone_a  row groups of the first file that have none at their side; `alone_b` of the second
    equal    pairs of row groups whose bytes are the same in every column
    """

    pairs: list[Pair]
    alone_a: list[Span]
    alone_b: list[Span]
    equal: int

    @property
    def columns(self) -> frozenset[str] | None:
        """The columns in which anything can differ row by row; None where rows may have moved."""
        if self.alone_a or self.alone_b:
            return None
        return frozenset().union(*(pair.columns for pair in self.pairs))


def layout(a: Stored, b: Stored, columns: Sequence[str]) -> Layout:
    """Compare two files, column chunk by column chunk, over columns that both have.

    Each row group is compared with the one at the same place, counted from the beginning and then
    from the end: rows added at either end leave the others where they are.
    """
    spans_a, spans_b = _spans(a), _spans(b)
    comparing = _Comparing(a, b, columns)
    shorter = min(len(spans_a), len(spans_b))
    head = _length(comparing.equal(i, i) for i in range(shorter))
    ends = range(1, shorter - head + 1)
    tail = _length(comparing.equal(len(spans_a) - i, len(spans_b) - i) for i in ends)
    spans_a = spans_a[head : len(spans_a) - tail]
    spans_b = spans_b[head : len(spans_b) - tail]
    pairs: list[Pair] = []
    for number, (one, other) in enumerate(zip(spans_a, spans_b, strict=False), start=head):
        if one.rows != other.rows:
            break
        pairs.append(Pair(one, other, frozenset(comparing.differing(number, number))))
    unequal = [pair for pair in pairs if pair.columns]
    equal = head + tail + len(pairs) - len(unequal)
    return Layout(unequal, spans_a[len(pairs) :], spans_b[len(pairs) :], equal)


def _spans(file: Stored) -> list[Span]:
    """The rows of each row group."""
    metadata = file.source.metadata
    rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    starts = accumulate(rows, initial=0)  # one more than there are row groups
    return [Span(i, start, count) for i, (start, count) in enumerate(zip(starts, rows))]  # noqa: B905 - see above


def _length(equal: Iterator[bool]) -> int:
    """How many are true before the first that is not."""
    return sum(1 for _ in takewhile(bool, equal))


class _Comparing:
    """Compares the column chunks of two files, row group with row group."""

    def __init__(self, a: Stored, b: Stored, columns: Sequence[str]) -> None:
        self._a, self._b = a, b
        self._leaves = {name: _leaves(a, b, name) for name in columns}
        created_by = a.source.metadata.created_by
        self._same_writer = created_by == b.source.metadata.created_by
        self._more = _HEADER_BYTES if (created_by or "").startswith("parquet-mr") else 0

    def equal(self, group_a: int, group_b: int) -> bool:
        """Whether two row groups have the same rows in every column."""
        rows = self._a.source.metadata.row_group(group_a).num_rows
        same = rows == self._b.source.metadata.row_group(group_b).num_rows
        return same and next(self.differing(group_a, group_b), None) is None

    def differing(self, group_a: int, group_b: int) -> Iterator[str]:
        """The columns that are not known to hold the same values in two row groups of one length."""
        for name, leaves in self._leaves.items():
            comparable = leaves is not None and self._same_writer
            pairs = leaves or []
            if not comparable or not all(
                self._same_bytes(group_a, i, group_b, j) for i, j in pairs
            ):
                yield name

    def _same_bytes(self, group_a: int, leaf_a: int, group_b: int, leaf_b: int) -> bool:
        one, other = self._chunk(self._a, group_a, leaf_a), self._chunk(self._b, group_b, leaf_b)
        if (one.codec, one.values, one.size) != (other.codec, other.values, other.size):
            return False
        if one.size <= 0:
            return False  # what lies outside of a file proves nothing
        size = one.size + self._more
        return all(
            os.pread(self._a.fd, min(_PIECE_BYTES, size - at), one.start + at)
            == os.pread(self._b.fd, min(_PIECE_BYTES, size - at), other.start + at)
            for at in range(0, size, _PIECE_BYTES)
        )

    @staticmethod
    def _chunk(file: Stored, group: int, leaf: int) -> _Chunk:
        # Its list of encodings is not asked for: contradictory ones end the process.
        chunk = file.source.metadata.row_group(group).column(leaf)
        start = chunk.data_page_offset
        if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
            start = chunk.dictionary_page_offset
        return _Chunk(chunk.compression, chunk.num_values, start, chunk.total_compressed_size)


def _leaves(a: Stored, b: Stored, name: str) -> list[tuple[int, int]] | None:
    """The Parquet columns that a column consists of, in each file; None unless they are alike."""
    pairs = [*zip(_places(a, name), _places(b, name), strict=True)]
    schema_a, schema_b = a.source.metadata.schema, b.source.metadata.schema
    alike = all(schema_a.column(i).equals(schema_b.column(j)) for i, j in pairs)
    return pairs if alike else None


def _places(file: Stored, name: str) -> range:
    """Where a column's Parquet columns stand: schemas are compared before, so both have as many."""
    schema = file.source.schema
    index = schema.get_field_index(name)
    start = sum(_width(schema.field(i).type) for i in range(index))
    return range(start, start + _width(schema.field(index).type))


def _width(type_: pa.DataType) -> int:
    """How many Parquet columns hold a type."""
    fields = range(type_.num_fields)
    return sum(_width(type_.field(number).type) for number in fields) if fields else 1
