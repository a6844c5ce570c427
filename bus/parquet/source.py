"""Reading a foreign Parquet file: every page, in bounded memory, every failure a typed problem."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bus.errors import Code, Problem, Rejected, problem
from bus.parquet.footer import (
    MAGIC,
    Group,
    Limits,
    footer_span,
    groups,
    hide_arrow_schema,
    metadata_problems,
    printable,
    size_problems,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Rows of a batch, at most: one chunk of the content hash.
BATCH_ROWS = 65_536
#: Files up to this size are read into memory at once; page cache and a copy cost less than seeks.
_SMALL_FILE_BYTES = 16 << 20
#: Tables that cannot decode to more than this are decoded at once.
_SMALL_TABLE_BYTES = 128 << 20
#: … and their texts to no more than this, were each the longest that the pages could hold.
_SMALL_TABLE_TEXT_BYTES = 8 << 30
#: What the values of one batch may take, as far as metadata and dictionaries tell.
_BATCH_BYTES = 64 << 20
#: … and a text about which nothing can be told: encodings with shared prefixes expand too.
_UNKNOWN_TEXT_BYTES = 16 << 10
#: Pages of large files are read in pieces of this size, not a column chunk at a time.
_BUFFER_BYTES = 1 << 20
_GREEDY_BYTES = 4 * _BATCH_BYTES
_MESSAGE_CHARACTERS = 500
#: A corrupt file of more columns is not searched for every broken one.
_SEARCHED_COLUMNS = 200

_OPTIONS: dict[str, Any] = {
    "page_checksum_verification": True,
    # Spark's INT96 reaches beyond the years that nanoseconds can tell; pyarrow's default wraps.
    "coerce_int96_timestamp_unit": "us",
    "pre_buffer": False,
    "arrow_extensions_enabled": False,
}


def open_parquet(
    fd: int, size_bytes: int, limits: Limits | None = None, where: str = ""
) -> ParquetSource:
    """A source for the Parquet file open at `fd`, which the caller keeps open and closes.

    fd          a descriptor of a regular file that nobody is writing to
    size_bytes  its size
    where       how problems name the file; a column is named as ``where:column``

    Raises `Rejected` with every problem that can be seen without reading a page: E307 not Parquet,
    E308 corrupt, E309 encrypted, E310 beyond a limit, E311 and E314 names, E312 no column, E313
    nesting. Faults of ours (OSError with an errno, MemoryError) pass through.
    """
    limits = limits or Limits()
    start, length = footer_span(fd, size_bytes, limits, where)
    if size_bytes <= _SMALL_FILE_BYTES:
        opener = _in_memory(fd, size_bytes, start)
    else:
        opener = _on_disk(fd, start, length, where)
    file = _guarded(opener, where)
    schema = _guarded(lambda: file.schema_arrow, where).remove_metadata()
    found = _guarded(
        lambda: [*metadata_problems(file.metadata, schema, length, limits, where)], where
    )
    claims = groups(file.metadata, schema, limits)
    found += size_problems(claims, size_bytes, limits, where)
    if found:
        raise Rejected.of(found)
    return ParquetSource(opener, file, schema, claims, limits.decoded_bytes(size_bytes), where)


def _in_memory(fd: int, size_bytes: int, footer_start: int) -> Callable[..., pq.ParquetFile]:
    data = bytearray(size_bytes)
    count = os.preadv(fd, [data], 0)
    if count != size_bytes:
        raise OSError(f"read {count} of {size_bytes} bytes of a file that nobody may change")
    hide_arrow_schema(data, footer_start)

    def opener(**options: Any) -> pq.ParquetFile:
        return pq.ParquetFile(pa.BufferReader(data), **_OPTIONS, **options)

    return opener


def _on_disk(fd: int, start: int, length: int, where: str) -> Callable[..., pq.ParquetFile]:
    tail = bytearray(os.pread(fd, length + 8, start))
    hide_arrow_schema(tail, 0)
    footer = pa.BufferReader(MAGIC + bytes(tail))
    metadata = _guarded(lambda: pq.read_metadata(footer), where)

    def opener(**options: Any) -> pq.ParquetFile:
        # The descriptor's own name opens the very file that was checked, whatever its path says
        # by now, and Arrow then reads it without asking Python for each piece.
        stream = pa.OSFile(f"{_DESCRIPTORS}/{fd}")
        return pq.ParquetFile(
            stream, metadata=metadata, buffer_size=_BUFFER_BYTES, **_OPTIONS, **options
        )

    return opener


_DESCRIPTORS = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"  # noqa: PTH112


class ParquetSource:
    """A foreign Parquet file whose metadata is in order.

    schema             the Arrow schema of its Parquet columns
    metadata           the footer
    num_rows_declared  what the footer says
    declared_bytes     what the footer claims that the table decodes to, at least
    rows_read          rows of the last pass so far
    decoded_bytes      Arrow bytes of the last pass so far
    """

    def __init__(
        self,
        opener: Callable[..., pq.ParquetFile],
        file: pq.ParquetFile,
        schema: pa.Schema,
        claims: Sequence[Group],
        max_decoded_bytes: int,
        where: str,
    ) -> None:
        self.schema = schema
        self.metadata: pq.FileMetaData = file.metadata
        self.num_rows_declared: int = file.metadata.num_rows
        self.declared_bytes = sum(claim.bytes for claim in claims)
        self.rows_read = 0
        self.decoded_bytes = 0
        self._opener = opener
        self._file = file
        self._groups = claims
        self._max_decoded_bytes = max_decoded_bytes
        self._where = where

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, in batches of up to 65,536, each fully validated. May be called again.

        Raises `Rejected`: E308 for a page, checksum or value that is not right, naming the columns
        where they can be told, E309, E310 when more is decoded than the limit allows, and E305 in
        the end when the footer counted other rows. Faults of ours pass through.
        """
        self.rows_read = self.decoded_bytes = 0
        for batch in self._checked():
            self.rows_read += batch.num_rows
            self.decoded_bytes += batch.nbytes
            if self.decoded_bytes > self._max_decoded_bytes:
                message = (
                    f"decoded to more than {self._max_decoded_bytes:,} bytes after "
                    f"{self.rows_read:,} of {self.num_rows_declared:,} rows"
                )
                raise Rejected.of([problem(Code.E310, self._where, message)])
            yield batch
        if self.rows_read != self.num_rows_declared:
            message = (
                f"the footer says {self.num_rows_declared:,} rows, there are {self.rows_read:,}"
            )
            raise Rejected.of([problem(Code.E305, self._where, message)])

    def group_batches(self, number: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows of one row group, in these columns only; of a file that was validated before.

        Pages are checked, values are not. Raises `Rejected` as `batches` does.
        """
        rows = self._batch_rows(number, self._groups[number])
        read = self._file.iter_batches(rows, row_groups=[number], columns=list(columns))
        while (batch := _guarded(lambda: next(read, None), self._where)) is not None:
            yield batch.select(columns)

    def _checked(self) -> Iterator[pa.RecordBatch]:
        try:
            if self._is_small():
                table = self._file.read(use_threads=False)
                table.validate(full=True)
                yield from table.to_batches(max_chunksize=BATCH_ROWS)
                return
            for batch in self._streamed():
                batch.validate(full=True)
                yield batch
        except Exception as error:
            found = problem_of(error, self._where)
            if found is None:
                raise
            raise Rejected.of(self._broken_columns() or [found]) from error

    def _is_small(self) -> bool:
        """Whether the whole table may be decoded at once: the common case, and the fastest way."""
        text_bytes = sum(group.text_bytes for group in self._groups)
        return self.declared_bytes <= _SMALL_TABLE_BYTES and text_bytes <= _SMALL_TABLE_TEXT_BYTES

    def _streamed(self) -> Iterator[pa.RecordBatch]:
        for number, group in enumerate(self._groups):
            rows = self._batch_rows(number, group)
            yield from self._file.iter_batches(rows, row_groups=[number], use_threads=False)

    def _batch_rows(self, number: int, group: Group) -> int:
        """Rows that can be decoded together without surprise."""
        row_bytes = group.bytes / max(1, group.rows)
        if group.text_bytes > _BATCH_BYTES:
            row_bytes += self._longest_texts(number)
        return max(1, min(BATCH_ROWS, int(_BATCH_BYTES / max(1, row_bytes))))

    def _longest_texts(self, group: int) -> int:
        """The summed length of the longest dictionary entry of each text column.

        A dictionary of one long text, referred to a million times, takes a few bytes in the file;
        what it decodes to is seen only in the dictionary itself.
        """
        columns = self._file.metadata.schema
        leaves = (columns.column(number) for number in range(len(columns)))
        paths = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        probe = self._opener(read_dictionary=paths)
        return sum(_longest_text(probe, group, path) for path in paths)

    def _broken_columns(self) -> list[Problem]:
        """A problem for each top-level column that cannot be read by itself, when searchable."""
        if not self._is_small() or len(self.schema) > _SEARCHED_COLUMNS:
            return []
        found = []
        for name in self.schema.names:
            try:
                self._file.read([name], use_threads=False).validate(full=True)
            except Exception as error:  # noqa: BLE001 - readers raise what they like
                one = problem_of(error, f"{self._where}:{printable(name)}")
                found += [one] if one is not None else []
        return found


def _longest_text(probe: pq.ParquetFile, group: int, path: str) -> int:
    try:
        batches = probe.iter_batches(1, row_groups=[group], columns=[path], use_threads=False)
        return sum(_longest(array) for array in next(batches).columns)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - not an encoding with a dictionary, or corrupt: soon seen
        return _UNKNOWN_TEXT_BYTES


def _longest(array: pa.Array) -> int:
    """The length of the longest text in the dictionaries of an array, at any depth."""
    if pa.types.is_dictionary(array.type):
        return pc.max(pc.binary_length(array.dictionary)).as_py() or 0
    if pa.types.is_struct(array.type):
        return sum(map(_longest, array.flatten()))
    if pa.types.is_map(array.type):
        return _longest(array.keys) + _longest(array.items)
    if pa.types.is_nested(array.type):
        return _longest(array.flatten())
    return 0


def _guarded(action: Callable[[], Any], where: str) -> Any:
    """The action's result; whatever the readers raise becomes `Rejected`."""
    try:
        return action()
    except Rejected:
        raise
    except Exception as error:
        found = problem_of(error, where)
        if found is None:
            raise
        raise Rejected.of([found]) from error


def problem_of(error: Exception, where: str) -> Problem | None:
    """What an exception of the readers says about the file; None if it says something about us."""
    if isinstance(error, MemoryError):
        return _too_greedy(error, where)
    if getattr(error, "errno", None) is not None:
        return None
    text = " ".join(str(error).split())[:_MESSAGE_CHARACTERS]
    if isinstance(error, UnicodeDecodeError):
        return problem(Code.E314, where, f"a column name is not UTF-8: {text}")
    if "crypt" in text:
        return problem(Code.E309, where, text)
    return problem(Code.E308, where, text or type(error).__name__)


def _too_greedy(error: MemoryError, where: str) -> Problem | None:
    """A problem if a single column of a single batch asked for more than any honest one does."""
    asked = re.search(r"of size (\d+) failed", str(error))
    if asked is None or int(asked[1]) < _GREEDY_BYTES:
        return None
    message = f"one column of {BATCH_ROWS:,} rows or less asks for {int(asked[1]):,} bytes at once"
    return problem(Code.E310, where, message)


def is_odd(source: ParquetSource) -> bool:
    """Whether a file is of the sort that readers disagree about: nested, or of fixed-width bytes.

    The latter may be encoded in a way that DuckDB lacks. Which way is not asked here: pyarrow ends
    the process when a column's metadata contradict each other (found by the fuzzer).
    """
    if any(pa.types.is_nested(column.type) for column in source.schema):
        return True
    schema = source.metadata.schema
    return any(
        schema.column(number).physical_type == "FIXED_LEN_BYTE_ARRAY"
        for number in range(len(schema))
    )
