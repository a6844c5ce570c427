"""Reading a foreign Parquet file: nothing in it is believed before it was checked.

`open_parquet` looks at magic bytes, footer and declared sizes before any page is read, and reports
everything it finds at once. `ParquetSource.batches` then reads every page, with page checksums and
full validation, in bounded memory. Whatever the reader raises becomes a problem that a person can
act on; a footer proves nothing (88 of 169 broken files have a readable one).

The schema stored by Arrow in the file's metadata (`ARROW:schema`) may change a column's flavour or
the label of its time zone, which the content hash does not see, and nothing else: Arrow itself
refuses one that does not fit the Parquet schema. Extension types are read as what they store.
"""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from bus.errors import Code, Problem, problem

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC = b"PAR1"
_MAGIC_ENCRYPTED = b"PARE"
_TAIL_BYTES = 8
_SMALLEST_BYTES = 12
_BATCH_ROWS = 65_536
_SMALLEST_BATCH_ROWS = 256
_BATCH_BYTES = 32 << 20
_PAGE_BUFFER_BYTES = 1 << 20
#: Files up to this size are read in one go.
_SMALL_BYTES = 64 << 20
#: What a column of an ordinary file may decode to in the worst case (one long value, repeated).
_ORDINARY_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class ParquetLimits:
    """What is refused before it is read (E310, E313). The decoded size is checked while reading."""

    footer_bytes: int = 16 << 20
    row_groups: int = 10_000
    columns: int = 5_000
    depth: int = 16
    decoded_floor_bytes: int = 1 << 30
    decoded_max_bytes: int = 64 << 30
    expansion: int = 500

    def decoded_bytes(self, size_bytes: int) -> int:
        """The most that a file of `size_bytes` may decode to."""
        roomy = min(self.decoded_max_bytes, self.expansion * size_bytes)
        return max(min(self.decoded_floor_bytes, self.decoded_max_bytes), roomy)


class ParquetError(Exception):
    """The file is refused; `problems` says why, in full."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(p.message for p in problems))
        self.problems = problems


class ParquetSource:
    """An opened file whose footer is acceptable. `rows_declared` is only what the footer says."""

    def __init__(
        self, file: pq.ParquetFile, where: str, size_bytes: int, limits: ParquetLimits
    ) -> None:
        self._file = file
        self._where = where
        self._limit_bytes = limits.decoded_bytes(size_bytes)
        self.schema: pa.Schema = file.schema_arrow
        self.rows_declared: int = file.metadata.num_rows
        self.declared_bytes = _declared_bytes(file.metadata)
        self.rows_read = 0
        self.decoded_bytes = 0

    @property
    def is_ordinary(self) -> bool:
        """Whether it is small and flat enough to be read without a process of its own."""
        flat = not any(pa.types.is_nested(field.type) for field in self.schema)
        worst = self.rows_declared * max(1, self.declared_bytes // max(1, len(self.schema)))
        return flat and self.declared_bytes <= _SMALL_BYTES and worst <= _ORDINARY_BYTES

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Every row, in order, in batches of at most 65,536. Raises `ParquetError`."""
        reader = self._reader()
        while True:
            try:
                batch = next(reader, None)
                if batch is not None:
                    batch.validate(full=True)
            except MemoryError:
                raise  # the limits of this process, not the file, as far as we know
            except Exception as error:  # noqa: BLE001 - readers surprise: any error is a finding
                raise ParquetError([_unreadable(error, self._where)]) from None
            if batch is None:
                break
            self.rows_read += batch.num_rows
            self.decoded_bytes += batch.nbytes
            if self.decoded_bytes > self._limit_bytes:
                raise ParquetError([_too_large(self._where, "decodes to", self._limit_bytes)])
            yield batch
        if self.rows_read != self.rows_declared:
            message = f"the footer says {self.rows_declared:,} rows, the data {self.rows_read:,}"
            raise ParquetError([problem(Code.E305, self._where, message)])

    def _reader(self) -> Iterator[pa.RecordBatch]:
        if self.is_ordinary:
            return self._at_once()
        row_bytes = max(1, self.declared_bytes // max(1, self.rows_declared))
        rows = max(_SMALLEST_BATCH_ROWS, min(_BATCH_ROWS, _BATCH_BYTES // row_bytes))
        batches: Iterator[pa.RecordBatch] = self._file.iter_batches(rows, use_threads=False)
        return batches

    def _at_once(self) -> Iterator[pa.RecordBatch]:
        table = self._file.read(use_threads=False)
        yield from table.to_batches(max_chunksize=_BATCH_ROWS)


def open_parquet(
    fd: int, size_bytes: int, where: str, limits: ParquetLimits | None = None
) -> ParquetSource:
    """Open the regular file behind `fd`, which stays the caller's to close.

    Raises `ParquetError` with every problem of its footer (E307 to E314).
    """
    limits = limits or ParquetLimits()
    if found := _form_problems(fd, size_bytes, where, limits):
        raise ParquetError(found)
    try:
        file = pq.ParquetFile(
            _source(fd, size_bytes),
            pre_buffer=False,
            buffer_size=0 if size_bytes <= _SMALL_BYTES else _PAGE_BUFFER_BYTES,
            coerce_int96_timestamp_unit="us",
            page_checksum_verification=True,
            arrow_extensions_enabled=False,
        )
        found = _footer_problems(file, size_bytes, where, limits)
        if not found:
            return ParquetSource(file, where, size_bytes, limits)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - likewise
        found = [_unreadable(error, where)]
    raise ParquetError(found)


def _source(fd: int, size_bytes: int) -> Any:
    """The bytes for Arrow: a small file is read once, a large one through a descriptor of ours."""
    if size_bytes <= _SMALL_BYTES:
        return pa.BufferReader(pa.py_buffer(_read_all(fd, size_bytes)))
    return pa.OSFile(f"/proc/self/fd/{fd}", "rb")


def _read_all(fd: int, size_bytes: int) -> bytes:
    data = os.pread(fd, size_bytes, 0)
    while len(data) < size_bytes and (more := os.pread(fd, size_bytes - len(data), len(data))):
        data += more
    return data


# ── before Arrow sees it ──────────────────────────────────────────────────────────────────────


def _form_problems(fd: int, size_bytes: int, where: str, limits: ParquetLimits) -> list[Problem]:
    """What head and tail tell: is it Parquet, is it whole, is its footer of a sane size."""
    head = os.pread(fd, len(_MAGIC), 0)
    tail = os.pread(fd, _TAIL_BYTES, max(0, size_bytes - _TAIL_BYTES))
    footer_bytes = int.from_bytes(tail[:4], "little")
    code, message = Code.E308, ""
    if _MAGIC_ENCRYPTED in (head, tail[4:]):
        code, message = Code.E309, "the footer is encrypted"
    elif head != _MAGIC:
        code = Code.E307
        message = f"begins with {head!r}, not with PAR1" if head else "the file is empty"
    elif size_bytes < _SMALLEST_BYTES:
        message = f"ends after {size_bytes} bytes"
    elif tail[4:] != _MAGIC:
        message = "ends without a footer: truncated, or something was appended"
    elif not 0 < footer_bytes <= size_bytes - _SMALLEST_BYTES:
        message = f"the footer claims {footer_bytes:,} bytes of a file of {size_bytes:,}"
    elif footer_bytes > limits.footer_bytes:
        code = Code.E310
        message = f"footer of {footer_bytes:,} bytes; at most {limits.footer_bytes:,} are read"
    return [problem(code, where, message)] if message else []


# ── what the footer declares ──────────────────────────────────────────────────────────────────


def _footer_problems(
    file: pq.ParquetFile, size_bytes: int, where: str, limits: ParquetLimits
) -> list[Problem]:
    metadata = file.metadata
    found = []
    for name, count, most in (
        ("row groups", metadata.num_row_groups, limits.row_groups),
        ("columns", metadata.num_columns, limits.columns),
    ):
        if count > most:
            found.append(problem(Code.E310, where, f"{count:,} {name}; at most {most:,}"))
    if found:
        return found  # looking at each of them is what the limit protects from
    if metadata.num_columns == 0:
        found.append(problem(Code.E312, where, "the schema is empty"))
    declared = _declared_bytes(metadata)
    if declared < 0:
        found.append(problem(Code.E308, where, f"the footer declares {declared:,} bytes"))
    elif declared > (most := limits.decoded_bytes(size_bytes)):
        found.append(_too_large(where, f"declares {declared:,} bytes", most))
    return found + _name_problems(file.schema_arrow, where, limits)


def _declared_bytes(metadata: Any) -> int:
    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    return -1 if any(size < 0 for size in sizes) else sum(sizes)


def _name_problems(schema: pa.Schema, where: str, limits: ParquetLimits) -> list[Problem]:
    found = []
    seen: dict[str, str] = {}
    for field in schema:
        folded = unicodedata.normalize("NFC", field.name).casefold()
        if folded in seen:
            message = f"columns {seen[folded]!r} and {field.name!r} are one name to many readers"
            found.append(problem(Code.E311, where, message))
        seen[folded] = field.name
        if any(unicodedata.category(c) == "Cc" for c in field.name):
            found.append(
                problem(Code.E314, where, f"column {field.name!r} holds a control character")
            )
        if (depth := _depth(field.type)) > limits.depth:
            message = f"column {field.name!r} is nested {depth} deep; at most {limits.depth}"
            found.append(problem(Code.E313, where, message))
    return found


def _depth(type_: pa.DataType) -> int:
    """Levels of lists, structs and maps; 0 for a scalar."""
    deepest, level = 0, [(type_, 0)]
    while level:
        current, depth = level.pop()
        deepest = max(deepest, depth)
        level += [
            (current.field(i).type, depth + 1)
            for i in range(current.num_fields if pa.types.is_nested(current) else 0)
        ]
    return deepest


def _too_large(where: str, what: str, most: int) -> Problem:
    return problem(Code.E310, where, f"{what}; at most {most:,} bytes are read of such a file")


def _unreadable(error: Exception, where: str) -> Problem:
    """Any exception of the reader, as a problem (never a list of classes: they surprise)."""
    text = " ".join(str(error).split())[:400] or type(error).__name__
    encrypted = "crypt" in text.lower()
    return problem(Code.E309 if encrypted else Code.E308, where, text)
