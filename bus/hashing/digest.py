"""From canonical columns to the hash: the order is checked, chunks are cut, digests are taken."""

from __future__ import annotations

import hashlib
import tempfile
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa

from bus.hashing.columns import Column, Family, Parts, UnhashableType, bits, validity
from bus.hashing.families import Nulls
from bus.hashing.order import follows, is_ordered, sort_permutation, taken

if TYPE_CHECKING:
    from collections.abc import Sequence
    from hashlib import _Hash as Digest
    from pathlib import Path

#: Rows in a chunk, by definition.
CHUNK_ROWS = 65_536
#: Text of an unfinished chunk beyond this goes to a temporary file: 65,536 long documents would not
#: fit in memory, and their lengths come before their bytes.
SPOOL_BYTES = 64 << 20
_COPY_BYTES = 1 << 20
_TRUE = pa.scalar(True)  # noqa: FBT003 - the value, not a flag


class RowDigest:
    """The content hash of canonical columns that arrive in canonical order, batch by batch.

    in_order   False once a row came too early; what comes later is only counted
    rows       rows seen
    families   of the columns, which are in name order
    key_order  positions of the columns that order rows, most significant first
    """

    def __init__(
        self,
        names: Sequence[str],
        families: Sequence[Family],
        key_order: Sequence[int],
        temp_dir: Path | None = None,
    ) -> None:
        self.in_order = True
        self.rows = 0
        self.families = families
        self.key_order = key_order
        self._names = names
        self._temp_dir = temp_dir
        self._digests = [hashlib.sha256() for _ in names]
        self._chunk_rows = 0
        self._only_piece: list[pa.Array] | None = None
        self._pieces: list[_Pieces] = []
        self._last: list[Column] | None = None

    def update(self, columns: Sequence[Column], rows: int) -> None:
        """Take in the next rows, if they follow the rows so far."""
        self.rows += rows
        if not self.in_order or not rows:
            return
        keys = self.keys(columns)
        if not is_ordered(keys) or not self._follows(keys):
            self.in_order = False
            self._only_piece, self._pieces = None, []
            return
        self._last = keys
        self._feed(columns, rows)

    def keys(self, columns: Sequence[Column]) -> list[Column]:
        """The columns that rows are ordered by, most significant first."""
        return [columns[index] for index in self.key_order]

    def _follows(self, keys: list[Column]) -> bool:
        if self._last is None:
            return True
        last = [_row(key, len(key.array) - 1) for key in self._last]
        return follows(last, [_row(key, 0) for key in keys])

    def update_sorted(self, columns: Sequence[Column]) -> None:
        """Take in all rows at once, in whatever order; only in place of `update`."""
        order = sort_permutation(self.keys(columns))
        self.rows = len(order)
        for start in range(0, self.rows, CHUNK_ROWS):
            part = order.slice(start, CHUNK_ROWS)
            rows = [Column(column.family, taken(column.array, part)) for column in columns]
            self._feed(rows, len(part))

    def result(self) -> str:
        """``ch1:`` + hex. Call it once, at the end."""
        if self._chunk_rows:
            self._finish_chunk()
        parts = [b"CH1\n", self.rows.to_bytes(8, "little")]
        for name, family, digest in zip(self._names, self.families, self._digests, strict=True):
            parts += (_prefix(name), family.tag, digest.digest())
        return f"ch1:{hashlib.sha256(b''.join(parts)).hexdigest()}"

    def _feed(self, columns: Sequence[Column], rows: int) -> None:
        start = 0
        while start < rows:
            count = min(rows - start, CHUNK_ROWS - self._chunk_rows)
            arrays = [column.array for column in columns]
            if count < rows:
                arrays = [array.slice(start, count) for array in arrays]
            self._add(arrays, count)
            start += count

    def _add(self, arrays: list[pa.Array], rows: int) -> None:
        """The next piece of the chunk. A chunk of one piece, the common case, takes a short way."""
        if self._chunk_rows == 0:
            self._only_piece = arrays
        else:
            self._add_to_pieces(arrays)
        self._chunk_rows += rows
        if self._chunk_rows == CHUNK_ROWS:
            self._finish_chunk()

    def _add_to_pieces(self, arrays: list[pa.Array]) -> None:
        if self._only_piece is not None:
            first, self._only_piece = self._only_piece, None
            self._pieces = [_Pieces(self._temp_dir) for _ in arrays]
            self._add_to_pieces(first)
        for number, array in enumerate(arrays):
            if self.families[number].widths:
                self._pieces[number].add(array, self._parts(number, array))

    def _finish_chunk(self) -> None:
        if self._only_piece is None:
            for pieces, digest in zip(self._pieces, self._digests, strict=True):
                pieces.hash_into(digest)
        else:
            self._hash_only_piece(self._only_piece)
        self._only_piece, self._pieces = None, []
        self._chunk_rows = 0

    def _hash_only_piece(self, arrays: list[pa.Array]) -> None:
        for number, array in enumerate(arrays):
            fixed, text = self._parts(number, array)
            if not fixed:
                continue
            update = self._digests[number].update
            update(b"\1" + bits(validity(array)) if array.null_count else b"\0")
            for buffer in fixed:
                update(buffer)
            if text is not None:
                update(text)

    def _parts(self, number: int, array: pa.Array) -> Parts:
        try:
            return self.families[number].parts(array)
        except UnhashableType as error:
            raise error.at(self._names[number]) from None


@lru_cache(maxsize=10_000)
def _prefix(name: str) -> bytes:
    """What stands before a column's tag: the length of its name, and the name."""
    encoded = name.encode()
    return len(encoded).to_bytes(4, "little") + encoded


def key_order(
    names: Sequence[str], families: Sequence[Family], sort_by: Sequence[str]
) -> list[int]:
    """Positions of the columns that order rows: `sort_by`, the other scalars, then the nested.

    Raises `ValueError` when `sort_by` names a nested column.
    """
    leading = [names.index(name) for name in sort_by]
    for index in leading:
        if not families[index].scalar:
            raise ValueError(f"sort_by: {names[index]!r} is nested, only scalar columns may lead")
    others = [index for index in range(len(names)) if index not in leading]
    nested_last = sorted(others, key=lambda index: not families[index].scalar)
    return [i for i in leading + nested_last if not isinstance(families[i], Nulls)]


def _row(column: Column, index: int) -> Column:
    return Column(column.family, column.array.slice(index, 1), column.nans)


class _Pieces:
    """One column's chunk that arrives in several pieces."""

    def __init__(self, temp_dir: Path | None) -> None:
        self._temp_dir = temp_dir
        self._valid: list[tuple[int, pa.Array | None]] = []
        self._fixed: list[tuple[Any, ...]] = []
        self._text: list[Any] = []
        self._text_bytes = 0
        self._spool: IO[bytes] | None = None

    def add(self, array: pa.Array, parts: Parts) -> None:
        """The next rows, as a canonical array and its parts."""
        self._valid.append((len(array), validity(array) if array.null_count else None))
        fixed, text = parts
        self._fixed.append(fixed)
        if text is not None:
            self._text.append(text)
            self._text_bytes += len(text)
            if self._text_bytes > SPOOL_BYTES:
                self._spool_text()

    def hash_into(self, digest: Digest) -> None:
        """Hash the whole chunk."""
        if not self._fixed:
            return
        digest.update(self._header())
        for part in zip(*self._fixed, strict=True):
            for buffer in part:
                digest.update(buffer)
        if self._spool is not None:
            with self._spool as spool:
                spool.seek(0)
                while block := spool.read(_COPY_BYTES):
                    digest.update(block)
        for text in self._text:
            digest.update(text)

    def _header(self) -> bytes:
        if all(flags is None for _, flags in self._valid):
            return b"\0"
        flags = [pa.repeat(_TRUE, rows) if flags is None else flags for rows, flags in self._valid]
        return b"\1" + bits(pa.concat_arrays(flags))

    def _spool_text(self) -> None:
        if self._spool is None:
            self._spool = tempfile.TemporaryFile(dir=self._temp_dir)  # noqa: SIM115 - kept open
        for text in self._text:
            self._spool.write(text)
        self._text, self._text_bytes = [], 0
