"""What producers hand in, as Parquet: any table is streamed, checked on the way, and well laid out.

And a table of ours as a frame of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bus.columns import convert
from bus.errors import Code, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import polars as pl

    from bus.contract import Spec

#: Told after each row group: how many rows are written, and of how many (None: a stream).
Progress: TypeAlias = Callable[[int, int | None], None]

#: Libraries whose frames hold their rows.
_FRAMES = {"pandas", "polars"}

_ROW_GROUP_ROWS = 131_072
_ROW_GROUP_BYTES = 256 << 20
#: Pages and their headers go to the file in writes of this size.
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ParquetOptions:
    """How tables become Parquet: zstd, statistics, page checksums.

    `row_group_rows`: rows of a row group, fewer where rows are so wide that it would be larger than
    256 MiB; twice as much is held in memory. `sort`: each row group in the order that the kind's contract
    names, so that readers can skip by statistics; False keeps the order of the rows. Floats have no
    dictionary, unless a column of the table is nested.
    """

    compression: str = "zstd"
    compression_level: int | None = None
    row_group_rows: int = _ROW_GROUP_ROWS
    sort: bool = True


def write_parquet(
    data: Any,
    target: Path,
    options: ParquetOptions,
    *,
    spec: Spec | None = None,
    where: str = "data",
    progress: Progress = lambda *_: None,
) -> int:
    """Write a table to `target`; the number of its rows. Not synced.

    With a `spec` the table is held against it, as the validator will; `where` names the table in
    problems. Raises `Refused`: E601 for what is no table, E2xx with every problem.
    """
    try:
        return _write(data, target, options, spec, where, progress)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        hint = "Convert the column that the message names to a plain type."
        message = "; ".join(map(str, error.args))[:500]
        raise Refused(message, code=Code.E601, where=where, hint=hint) from error


def _write(
    data: Any,
    target: Path,
    options: ParquetOptions,
    spec: Spec | None,
    where: str,
    progress: Progress,
) -> int:
    total = _rows_of(data)
    reader = as_reader(data)
    if not reader.schema.names:
        raise Refused("no columns", code=Code.E312, where=where)
    judge = _Judge(spec, reader.schema, where) if spec is not None else None
    order = _order(spec, reader.schema) if spec is not None and options.sort else {}
    if judge is not None and judge.hopeless:
        judge.look_at(reader)
        judge.conclude()
    rows = 0
    with (
        pa.output_stream(str(target), compression=None, buffer_size=_BUFFER_BYTES) as sink,
        pq.ParquetWriter(
            sink,
            reader.schema,
            compression=options.compression,
            compression_level=options.compression_level,
            use_dictionary=_repeating(reader.schema),
            write_page_checksum=True,
            sorting_columns=_sorting(reader.schema, order),
        ) as writer,
        # While one group is compressed, the next one is computed, checked and sorted. Not the other
        # way round: the caller's stream may be bound to the caller's thread.
        ThreadPoolExecutor(1, "bus-parquet") as thread,
    ):
        writing: Future[None] | None = None
        for group in _row_groups(reader, options.row_group_rows):
            if judge is not None:
                judge.look_at(group.to_batches())
            ordered = _ordered(group, order)
            rows += group.num_rows
            if writing is not None:
                writing.result()
            if rows == total:
                writer.write_table(ordered, options.row_group_rows)  # the last one: why wait?
                writing = None
            else:
                writing = thread.submit(writer.write_table, ordered, options.row_group_rows)
            progress(rows, total)
        if writing is not None:
            writing.result()
    if judge is not None:
        judge.conclude()
    return rows


# ── against the contract ──────────────────────────────────────────────────────────────────────


class _Judge:
    """Holds a table against its contract, as the validator will: every problem, in its words."""

    def __init__(self, spec: Spec, schema: pa.Schema, where: str) -> None:
        self._problems = spec.schema_problems(schema, where)
        self._checker = spec.checker(where)
        self._rows = 0

    @property
    def hopeless(self) -> bool:
        """Whether its columns alone are wrong."""
        return bool(self._problems)

    def look_at(self, batches: Iterable[pa.RecordBatch]) -> None:
        for batch in batches:
            self._checker.update(batch)
            self._rows += batch.num_rows

    def conclude(self) -> None:
        """After the last row. Raises `Refused` with every problem, if there is one."""
        if found := [*self._problems, *self._checker.finish(self._rows)]:
            raise Refused.of(found)


def check_file(path: Path, spec: Spec, where: str) -> None:
    """Hold a Parquet file against a contract. Raises `Refused` (E2xx) with every problem.

    A file that is no Parquet, or cannot be read, passes: the validator says more than we could.
    """
    try:
        with pq.ParquetFile(path) as file:
            judge = _Judge(spec, file.schema_arrow, where)
            known = [column.name for column in spec.columns]
            judge.look_at(file.iter_batches(_ROW_GROUP_ROWS, columns=known))
    except (OSError, pa.ArrowException):
        return
    judge.conclude()


def _order(spec: Spec, schema: pa.Schema) -> dict[str, pa.DataType]:
    """The columns that rows are sorted by, and as what types; none where one of them is absent."""
    types = {name: column.type for name in spec.sort_by if (column := spec.column(name))}
    return types if types.keys() <= {*schema.names} else {}


def _ordered(group: pa.Table, order: dict[str, pa.DataType]) -> pa.Table:
    """The rows of a group in that order; those that are in order already are not copied."""
    if not order or group.num_rows == 0:
        return group
    group = group.combine_chunks()
    keys = {name: convert(group[name].chunk(0), type_)[0] for name, type_ in order.items()}
    by = [(name, "ascending") for name in order]
    found = pc.sort_indices(pa.table(keys), sort_keys=by)
    is_in_order = found.equals(pa.arange(0, len(found)).cast(found.type))
    return group if is_in_order else group.take(found)


def _repeating(schema: pa.Schema) -> bool | list[str]:
    """Columns whose values a dictionary is tried on: prices and volumes hardly ever repeat."""
    if any(pa.types.is_nested(field.type) for field in schema):
        return True  # their leaves have names of their own
    return [field.name for field in schema if not pa.types.is_floating(field.type)]


def _sorting(schema: pa.Schema, order: dict[str, pa.DataType]) -> list[pq.SortingColumn] | None:
    """What the file says of the order of its rows."""
    if not order:
        return None
    by = [(name, "ascending") for name in order]
    return list(pq.SortingColumn.from_ordering(schema, by))


# ── rows ──────────────────────────────────────────────────────────────────────────────────────


def _row_groups(reader: pa.RecordBatchReader, most: int) -> Iterator[pa.Table]:
    """Batches, gathered and cut: row groups are as large as was asked, whatever a stream is made of."""
    held: list[pa.RecordBatch] = []
    rows = size_bytes = 0
    for batch in _pieces(reader, most):
        if held and (rows + batch.num_rows > most or size_bytes > _ROW_GROUP_BYTES):
            yield pa.Table.from_batches(held)
            held, rows, size_bytes = [], 0, 0
        held.append(batch)
        rows += batch.num_rows
        size_bytes += batch.nbytes
    if held:
        yield pa.Table.from_batches(held)


def _pieces(reader: pa.RecordBatchReader, most: int) -> Iterator[pa.RecordBatch]:
    for batch in reader:
        for first in range(0, batch.num_rows, most):
            yield batch.slice(first, most)


def _rows_of(data: Any) -> int | None:
    """How many rows there are, where it is known beforehand: a DuckDB relation would run its query."""
    if isinstance(data, pa.Table | pa.RecordBatch):
        return int(data.num_rows)
    held = isinstance(data, Sequence) or type(data).__module__.split(".")[0] in _FRAMES
    return len(data) if held and hasattr(data, "__len__") else None


def as_reader(data: Any) -> pa.RecordBatchReader:
    """Anything tabular as a stream of record batches. Raises `Refused` (E601).

    Anything with ``__arrow_c_stream__`` (pandas, polars, DuckDB relations …), a list of dicts, or a
    lazy frame that narwhals knows (polars), which is computed here.
    """
    return _without_views(_reader_of(data))


def _reader_of(data: Any) -> pa.RecordBatchReader:
    if isinstance(data, pa.Table):
        return data.to_reader(max_chunksize=_ROW_GROUP_ROWS)
    if hasattr(data, "__arrow_c_stream__"):
        return pa.RecordBatchReader.from_stream(data)
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data]).to_reader()
    if isinstance(data, Sequence) and all(isinstance(row, Mapping) for row in data):
        return pa.Table.from_pylist(list(data)).to_reader()
    if hasattr(data, "collect"):
        return _collected(data).to_reader(max_chunksize=_ROW_GROUP_ROWS)
    raise _no_table(data)


def _without_views(reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """Texts as plain ones: Arrow can neither sort nor always write the views that polars gives."""
    types = [_plain(field.type) for field in reader.schema]
    if types == reader.schema.types:
        return reader
    pairs = zip(reader.schema, types, strict=True)
    schema = pa.schema([field.with_type(t) for field, t in pairs], reader.schema.metadata)
    batches = (
        pa.record_batch([_as_plain(c, t) for c, t in zip(b.columns, types, strict=True)], schema)
        for b in _pieces(reader, _ROW_GROUP_ROWS)  # a piece at a time, while others are written
    )
    return pa.RecordBatchReader.from_batches(schema, batches)


def _plain(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(type_):
        return pa.large_string()
    if pa.types.is_binary_view(type_):
        return pa.large_binary()
    if isinstance(type_, pa.DictionaryType):
        return pa.dictionary(type_.index_type, _plain(type_.value_type), type_.ordered)
    if isinstance(type_, pa.ListType | pa.LargeListType):
        field = type_.value_field
        made = pa.list_ if isinstance(type_, pa.ListType) else pa.large_list
        return made(field.with_type(_plain(field.type)))
    if isinstance(type_, pa.StructType):
        return pa.struct([field.with_type(_plain(field.type)) for field in type_])
    return type_


def _as_plain(array: pa.Array, type_: pa.DataType) -> pa.Array:
    if array.type == type_:
        return array
    if isinstance(type_, pa.DictionaryType):
        values = array.dictionary.cast(type_.value_type)
        return pa.DictionaryArray.from_arrays(array.indices, values, ordered=type_.ordered)
    return array.cast(type_)


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


def as_polars(table: pa.Table) -> pl.DataFrame:
    """A table as a polars DataFrame. Raises ModuleNotFoundError where polars is not installed."""
    import polars as pl  # noqa: PLC0415 - an extra; nothing else here needs it

    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)  # noqa: S101 - a Series comes of an array only
    return frame
