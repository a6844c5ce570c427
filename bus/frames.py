"""What producers hand in, as Parquet: any table is streamed, checked on the way, and well laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from bus.errors import Code, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bus.contract import Spec

_ROW_GROUP_ROWS = 131_072
_ROW_GROUP_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class ParquetOptions:
    """How tables become Parquet: zstd, statistics, page checksums unless told otherwise.

    `row_group_rows`: rows of a row group, fewer where rows are so wide that it would be larger than
    256 MiB; as much is held in memory.
    """

    compression: str = "zstd"
    compression_level: int | None = None
    row_group_rows: int = _ROW_GROUP_ROWS


def write_parquet(
    data: Any,
    target: Path,
    options: ParquetOptions,
    *,
    spec: Spec | None = None,
    where: str = "data",
    progress: Callable[[int, int | None], None] = lambda *_: None,
) -> int:
    """Write a table to `target`; the number of its rows. Not synced.

    With a `spec` the table is held against it, as the validator will; `where` names the table in
    problems. `progress(rows, of)` is called after each row group; `of` is None for a stream. Raises
    `Refused`: E601 for what is no table, E2xx with every problem.
    """
    total = _rows_of(data)
    reader = as_reader(data)
    if spec is not None:
        _refuse(spec, reader.schema, where)
    checker = spec.checker(where) if spec is not None else None
    rows = 0
    with pq.ParquetWriter(
        target,
        reader.schema,
        compression=options.compression,
        compression_level=options.compression_level,
        write_page_checksum=True,
    ) as writer:
        for group in _row_groups(reader, options.row_group_rows):
            if checker is not None:
                for batch in group.to_batches():
                    checker.update(batch)
            writer.write_table(group, row_group_size=options.row_group_rows)
            rows += group.num_rows
            progress(rows, total)
    if checker is not None and (problems := checker.finish(rows)):
        raise Refused.of(problems)
    return rows


def _refuse(spec: Spec, schema: pa.Schema, where: str) -> None:
    if problems := spec.schema_problems(schema, where):
        raise Refused.of(problems)


def check_file(path: Path, spec: Spec, where: str) -> None:
    """Hold the schema of a Parquet file against a contract. Raises `Refused` (E202, E203).

    A file that is no Parquet passes: the validator says more about it than we could.
    """
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException):
        return
    _refuse(spec, schema, where)


def _row_groups(reader: pa.RecordBatchReader, most: int) -> Iterator[pa.Table]:
    """Batches, gathered: a stream of small ones must not become a file of small row groups."""
    held: list[pa.RecordBatch] = []
    rows = size_bytes = 0
    for batch in reader:
        if held and (rows + batch.num_rows > most or size_bytes > _ROW_GROUP_BYTES):
            yield pa.Table.from_batches(held)
            held, rows, size_bytes = [], 0, 0
        held.append(batch)
        rows += batch.num_rows
        size_bytes += batch.nbytes
    if held:
        yield pa.Table.from_batches(held)


def _rows_of(data: Any) -> int | None:
    """How many rows there are, where it is known beforehand."""
    if isinstance(data, pa.Table | pa.RecordBatch):
        return int(data.num_rows)
    try:
        return len(data)
    except TypeError:
        return None


def as_reader(data: Any) -> pa.RecordBatchReader:
    """Anything tabular as a stream of record batches. Raises `Refused` (E601).

    Anything with ``__arrow_c_stream__`` (pandas, polars, DuckDB relations …), a list of dicts, or a
    lazy frame that narwhals knows (polars), which is computed here.
    """
    if isinstance(data, pa.Table):
        return data.to_reader(max_chunksize=_ROW_GROUP_ROWS)
    if hasattr(data, "__arrow_c_stream__"):
        return pa.RecordBatchReader.from_stream(data)
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data]).to_reader()
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return pa.Table.from_pylist(list(data)).to_reader()
    if hasattr(data, "collect"):
        return _collected(data).to_reader(max_chunksize=_ROW_GROUP_ROWS)
    raise _no_table(data)


def _collected(data: Any) -> pa.Table:
    try:
        import narwhals as nw  # noqa: PLC0415 - only lazy frames need it
    except ImportError:
        raise _no_table(data, "Install narwhals, or hand in `frame.collect()`.") from None
    frame = nw.from_native(data, pass_through=True)
    if not isinstance(frame, nw.LazyFrame):
        raise _no_table(data)
    return frame.collect().to_arrow()


def _no_table(data: Any, hint: str | None = None) -> Refused:
    return Refused(
        f"a {type(data).__name__} is no table",
        code=Code.E601,
        where="data",
        hint=hint
        or "Give a pyarrow, pandas or polars table, a list of dicts, or the path of a file.",
    )
