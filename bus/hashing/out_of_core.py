"""The content hash of rows that are neither in order nor small: DuckDB sorts them on disk.

The canonical columns go to DuckDB in forms that its ORDER BY puts into exactly our order; what
comes back is hashed by the same code as rows that arrive in order, which checks that they are.
Not imported by `bus.hashing` itself: DuckDB takes 100 ms to import, and starts threads.
"""

from __future__ import annotations

import errno
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from bus.hashing import ContentHasher, HashPlan
from bus.hashing.columns import Column, Family, data, validity
from bus.hashing.digest import CHUNK_ROWS
from bus.hashing.families import Bools, Dates, Decimals, Floats, Integers, Nulls, Text
from bus.hashing.nested import Nested

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "preserve_insertion_order": False,
    "arrow_large_buffer_size": True,  # a batch of long texts may exceed 2 GiB
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
_I256_BYTES = 32
#: A sort that fails with less room than this on its disk failed for want of room.
_LOW_DISK_BYTES = 1 << 30


class DifferentOrder(Exception):
    """DuckDB's order is not the canonical one: a defect, here or there, never of the data."""


def content_hash(
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    plan: HashPlan | None,
    *,
    temp_dir: Path,
    memory_limit_bytes: int,
    threads: int = 1,
) -> str:
    """``ch1:`` + hex of the rows in `batches`, in whatever order they come.

    temp_dir            an existing directory; needs about the decoded size of the rows
    memory_limit_bytes  DuckDB's share; the process needs some 200 MB beside it
    threads             DuckDB's; it starts some of its own even for one

    Raises as `ContentHasher`, and `duckdb.Error` when memory or disk do not suffice.
    """
    hasher = ContentHasher(schema, plan, temp_dir=temp_dir)
    digest = hasher.empty_digest(temp_dir)
    if not digest.key_order:  # only null-typed columns: any order is the order
        for batch in batches:
            hasher.update(batch)
        return hasher.result()
    carriers = [_carrier(number, family) for number, family in enumerate(digest.families)]
    settings = {
        **_SETTINGS,
        "temp_directory": str(temp_dir),
        "memory_limit": f"{memory_limit_bytes}B",
        "threads": threads,
    }
    with _room_for_sorting(temp_dir), duckdb.connect(":memory:", config=settings) as connection:
        connection.register("source_rows", _reader(batches, hasher, carriers))
        names = [field.name for carrier in carriers for field in carrier.fields]
        order = [field.name for i in digest.key_order for field in carriers[i].fields]
        for batch in connection.sql(_statement(names, order)).to_arrow_reader(CHUNK_ROWS):
            digest.update([carrier.column(batch) for carrier in carriers], batch.num_rows)
            if not digest.in_order:
                raise DifferentOrder(f"DuckDB {duckdb.__version__}: {digest.rows} rows, {order}")
    return digest.result()


@contextmanager
def _room_for_sorting(temp_dir: Path) -> Iterator[None]:
    """DuckDB calls a full disk out of memory; the caller must know it for a fault of ours."""
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        if shutil.disk_usage(temp_dir).free > _LOW_DISK_BYTES:
            raise
        raise OSError(errno.ENOSPC, f"no room for sorting: {error}", str(temp_dir)) from error


def _statement(names: Sequence[str], order: Sequence[str]) -> str:
    by = ", ".join(f"{name} ASC NULLS FIRST" for name in order)
    return f"SELECT {', '.join(names)} FROM source_rows ORDER BY {by}"  # noqa: S608 - our names


def _reader(
    batches: Iterable[pa.RecordBatch], hasher: ContentHasher, carriers: Sequence[_Carrier]
) -> pa.RecordBatchReader:
    schema = pa.schema([field for carrier in carriers for field in carrier.fields])

    def carried() -> Iterator[pa.RecordBatch]:
        for batch in batches:
            pairs = zip(carriers, hasher.canonical(batch), strict=True)
            arrays = [array for carrier, column in pairs for array in carrier.arrays(column.array)]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, carried())


class _Carrier:
    """How one canonical column travels: as one field of a type DuckDB gives back unchanged."""

    def __init__(self, number: int, family: Family, type_: pa.DataType) -> None:
        self.family = family
        self.name = f"c{number}"
        self.fields = [pa.field(self.name, type_)]

    def arrays(self, array: pa.Array) -> list[pa.Array]:
        """The fields' values for a canonical array."""
        return [array.cast(self.fields[0].type)]

    def column(self, batch: pa.RecordBatch) -> Column:
        """The canonical column again, its rows in another order."""
        array = batch.column(self.name)
        return (
            self.family.column(array)
            if isinstance(self.family, Floats)
            else Column(self.family, array)
        )


class _NoCarrier(_Carrier):
    """A null-typed column: nothing travels."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.fields = []

    def arrays(self, array: pa.Array) -> list[pa.Array]:  # noqa: ARG002 - nothing of it
        return []

    def column(self, batch: pa.RecordBatch) -> Column:
        return Column(self.family, pa.nulls(batch.num_rows))


class _DecimalCarrier(_Carrier):
    """A decimal beyond DuckDB's 38 digits: its sign, then its 32 bytes, most significant first.

    Among numbers of one sign two's complement orders as unsigned bytes do.
    """

    def __init__(self, number: int, family: Decimals) -> None:
        self.family = family
        self.target = family.target
        self.sign, self.bytes = f"c{number}_sign", f"c{number}"
        self.fields = [pa.field(self.sign, pa.bool_()), pa.field(self.bytes, pa.large_binary())]

    def arrays(self, array: pa.Array) -> list[pa.Array]:
        is_positive = pc.greater_equal(array, pa.scalar(0, array.type))
        raw = array.view(pa.binary(_I256_BYTES)).cast(pa.large_binary())
        return [is_positive, pc.binary_reverse(raw)]

    def column(self, batch: pa.RecordBatch) -> Column:
        carried = pc.binary_reverse(batch.column(self.bytes))
        values = pc.coalesce(carried, pa.scalar(bytes(_I256_BYTES), carried.type))
        fixed = values.cast(pa.binary(_I256_BYTES))
        flags = validity(carried)
        buffers = [flags.buffers()[1], pa.py_buffer(data(fixed, _I256_BYTES))]
        return Column(self.family, pa.Array.from_buffers(self.target, len(fixed), buffers))


def _carrier(number: int, family: Family) -> _Carrier:
    if isinstance(family, Nulls):
        return _NoCarrier(family)
    if isinstance(family, Decimals) and pa.types.is_decimal256(family.target):
        return _DecimalCarrier(number, family)
    return _Carrier(number, family, _carried_type(family))


def _carried_type(family: Family) -> pa.DataType:
    match family:
        case Bools():
            return pa.bool_()
        case Floats():
            return pa.float64()
        case Text() | Nested():
            return pa.large_binary()
        case Dates():
            return pa.int32()
        case Integers(is_u64=True):
            return pa.uint64()
        case Decimals():
            return family.target
    return pa.int64()
