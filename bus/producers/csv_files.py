"""CSV as a stream of typed batches: by the kind's contract where it has one, else by inference.

A cell that does not fit its column is an error with its line and column (E601); nothing is guessed,
and nothing is dropped.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv as pc

from bus.errors import Code, Refused
from bus.staging import SourceFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bus.contract import Spec

_BLOCK_BYTES = 8 << 20
#: pyarrow's words: `In CSV column #2: Row #4: CSV conversion error to int64: invalid value 'zz'`.
_CELL = re.compile(r"In CSV column #(\d+): Row #(\d+): (.*)", re.DOTALL)
_ROW = re.compile(r"Row #(\d+): (.*)", re.DOTALL)


def read_csv(path: Path, spec: Spec | None = None) -> pa.RecordBatchReader:
    """The rows of a CSV file with a header line, in bounded memory.

    Columns that `spec` knows have its types (empty cells are NULL; timestamps are ISO 8601), others
    the type of their first 8 MiB. Raises `Refused` (E601), here or while it is read, that names the
    line, counted from 1 and with the header (cells over several lines count as one), and the column;
    E301, E302 where there is no file.
    """
    SourceFile(path)
    if _is_parquet(path):
        hint = "Hand it in as it is: `bus submit FILE.parquet --kind KIND`."
        raise Refused("a Parquet file, not CSV", code=Code.E601, where=str(path), hint=hint)
    types = {column.name: column.type for column in spec.columns} if spec else {}
    options = {
        # One thread: pyarrow tells the row of a bad cell only then.
        "read_options": pc.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
        "parse_options": pc.ParseOptions(newlines_in_values=True),
        "convert_options": pc.ConvertOptions(
            column_types=types, strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    }
    try:
        reader = pc.open_csv(path, **options)
    except (pa.ArrowInvalid, OSError) as error:
        raise _refused(path, error, _header(path)) from None
    names = reader.schema.names
    return pa.RecordBatchReader.from_batches(reader.schema, _told(reader, path, names))


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _told(reader: pc.CSVStreamingReader, path: Path, names: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from reader
    except pa.ArrowInvalid as error:
        raise _refused(path, error, names) from None


def _header(path: Path) -> list[str]:
    """Names of the columns, as far as they can be read."""
    try:
        with path.open(encoding="utf-8") as file:
            return [name.strip('"') for name in file.readline().rstrip("\r\n").split(",")]
    except (OSError, UnicodeDecodeError):
        return []


def _refused(path: Path, error: Exception, names: list[str]) -> Refused:
    text = str(error)
    where = str(path)
    if cell := _CELL.match(text):
        index, line, text = int(cell[1]), cell[2], cell[3]
        column = names[index] if index < len(names) else f"column {index + 1}"
        where = f"{path}:{line}:{column}"
    elif row := _ROW.search(text):
        where, text = f"{path}:{row[1]}", row[2]
    hint = "Correct that cell, or the contract if it is wrong; nothing was submitted."
    return Refused(text.strip()[:500], code=Code.E601, where=where, hint=hint)
