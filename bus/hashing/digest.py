"""From canonical columns to the hash: the order is checked, chunks are cut, digests are taken."""

from __future__ import annotations

import hashlib
import tempfile
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa

from bus.hashing.columns import Column, Family, Nulls, bits, validity
from bus.hashing.order import follows, is_ordered, sort_permutation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Rows in a chunk, by definition.
CHUNK_ROWS = 65_536
#: Text of an unfinished chunk beyond this goes to a temporary file: 65,536 long documents would not
#: fit in memory, and their lengths come before their bytes.
SPOOL_BYTES = 64 << 20
_COPY_BYTES = 1 << 20


class RowDigest:
    """The content hash of canonical columns that arrive in canonical order, batch by batch.

    in_order  False once a row came too early; what comes later is only counted
    rows      rows seen
    """

    def __init__(
        self,
        names: Sequence[str],
        families: Sequence[Family],
        sort_by: Sequence[str],
        temp_dir: Path | None = None,
    ) -> None:
        self.in_order = True
        self.rows = 0
        self._names = names
        self._families = families
        self._sort_by = sort_by
        self._temp_dir = temp_dir
        self._key_order = _key_order(names, families, sort_by)
        self._chunks = [_ColumnChunk(temp_dir) for _ in names]
        self._chunk_rows = 0
        self._last: list[Column] | None = None

    def update(self, columns: Sequence[Column], rows: int) -> None:
        """Take in the next rows, if they follow the rows so far."""
        self.rows += rows
        if not self.in_order or not rows:
            return
        keys = self.keys(columns)
        first = [] if self._last is None else [_row(key, 0) for key in keys]
        if not is_ordered(keys) or (self._last is not None and not follows(self._last, first)):
            self.in_order = False
            self._chunks = []
            return
        self._last = [_row(key, rows - 1) for key in keys]
        self._feed(columns, rows)

    def keys(self, columns: Sequence[Column]) -> list[Column]:
        """The columns that rows are ordered by, most significant first."""
        return [columns[index] for index in self._key_order]

    def sorted_again(self, columns: Sequence[Column]) -> RowDigest:
        """A new digest of the same kind that has taken in all these rows, sorted."""
        fresh = RowDigest(self._names, self._families, self._sort_by, self._temp_dir)
        fresh.rows = self.rows
        keys = fresh.keys(columns)
        if not keys or not self.rows:
            fresh._feed(columns, self.rows)  # noqa: SLF001 - its own kind
            return fresh
        order = sort_permutation(keys)
        for start in range(0, self.rows, CHUNK_ROWS):
            part = order.slice(start, CHUNK_ROWS)
            taken = [Column(column.family, column.array.take(part)) for column in columns]
            fresh._feed(taken, len(part))  # noqa: SLF001 - its own kind
        return fresh

    def result(self) -> str:
        """``ch1:`` + hex. Call it once, at the end."""
        if self._chunk_rows:
            self._finish_chunk()
        whole = hashlib.sha256(b"CH1\n" + self.rows.to_bytes(8, "little"))
        for name, family, chunk in zip(self._names, self._families, self._chunks, strict=True):
            encoded = name.encode()
            whole.update(len(encoded).to_bytes(4, "little") + encoded + family.tag)
            whole.update(chunk.digest.digest())
        return f"ch1:{whole.hexdigest()}"

    def _feed(self, columns: Sequence[Column], rows: int) -> None:
        start = 0
        while start < rows:
            count = min(rows - start, CHUNK_ROWS - self._chunk_rows)
            for column, chunk in zip(columns, self._chunks, strict=True):
                whole = count == rows
                chunk.add(column.family, column.array if whole else column.array.slice(start, count))
            start += count
            self._chunk_rows += count
            if self._chunk_rows == CHUNK_ROWS:
                self._finish_chunk()

    def _finish_chunk(self) -> None:
        for chunk in self._chunks:
            chunk.finish()
        self._chunk_rows = 0


def _key_order(
    names: Sequence[str], families: Sequence[Family], sort_by: Sequence[str]
) -> list[int]:
    """Positions of the columns that order rows: `sort_by`, the other scalars, then the nested."""
    leading = [names.index(name) for name in sort_by]
    for index in leading:
        if not families[index].scalar:
            raise ValueError(f"sort_by: {names[index]!r} is nested, only scalar columns may lead")
    others = [index for index in range(len(names)) if index not in leading]
    nested_last = sorted(others, key=lambda index: not families[index].scalar)
    return [i for i in leading + nested_last if not isinstance(families[i], Nulls)]


def _row(column: Column, index: int) -> Column:
    return Column(column.family, column.array.slice(index, 1), column.nans)


class _ColumnChunk:
    """One column's digest, and the parts of its unfinished chunk."""

    def __init__(self, temp_dir: Path | None) -> None:
        self.digest = hashlib.sha256()
        self._temp_dir = temp_dir
        self._has_nulls = False
        self._valid: list[pa.Array] = []
        self._fixed: list[tuple[tuple[Any, int], ...]] = []
        self._tails: list[Any] = []
        self._tail_bytes = 0
        self._spool: IO[bytes] | None = None

    def add(self, family: Family, array: pa.Array) -> None:
        """The next rows of the chunk."""
        if isinstance(family, Nulls):
            return
        self._has_nulls = self._has_nulls or array.null_count > 0
        self._valid.append(array)
        self._fixed.append(family.fixed(array))
        tail = family.tail(array)
        if tail is not None:
            self._tails.append(tail)
            self._tail_bytes += len(tail)
            if self._tail_bytes > SPOOL_BYTES:
                self._spool_tails()

    def finish(self) -> None:
        """Hash the chunk, and begin the next one."""
        if not self._fixed:
            return
        update = self.digest.update
        update(b"\1" + self._bits() if self._has_nulls else b"\0")
        for part in zip(*self._fixed, strict=True):
            for buffer, _ in part:
                update(buffer)
        if self._spool is not None:
            self._update_from_spool()
        for tail in self._tails:
            update(tail)
        self._has_nulls = False
        self._valid, self._fixed, self._tails, self._tail_bytes = [], [], [], 0

    def _bits(self) -> bytes:
        flags = [validity(array) for array in self._valid]
        return bits(flags[0] if len(flags) == 1 else pa.concat_arrays(flags))

    def _spool_tails(self) -> None:
        if self._spool is None:
            self._spool = tempfile.TemporaryFile(dir=self._temp_dir)  # noqa: SIM115 - kept open
        for tail in self._tails:
            self._spool.write(tail)
        self._valid = [validity(array) for array in self._valid]  # lets the text itself go
        self._tails, self._tail_bytes = [], 0

    def _update_from_spool(self) -> None:
        assert self._spool is not None
        self._spool.seek(0)
        while block := self._spool.read(_COPY_BYTES):
            self.digest.update(block)
        self._spool.close()
        self._spool = None
