"""Nested values (lists, structs, maps) as bytes: one binary value a row, made without a row loop.

The bytes of one value, and the bytes of a run of values of one type::

    value  list, map   i32 length, then the run of its elements (of its keys, then of its values)
           struct      for each field in UTF-8 name order: the run of that one field value
           other       the fixed-width parts of its family, then its bytes if it is of text
    run    u8 for each value: 1, or 0 for NULL; then the values column by column: all first
           fixed-width parts, all second ones …; for nested values: all lengths, then one run of
           all their elements

A field of a NULL struct is NULL. What lies under NULL counts as zero, as empty, as no elements.

All rows are encoded at once: each part of the encoding is a buffer of the flattened child, cut
into rows by offsets (no bytes are copied), and one kernel joins the parts of each row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from bus.hashing.columns import (
    I32_MAX,
    Column,
    Family,
    Parts,
    UnhashableType,
    data,
    decoded,
    decoded_type,
    kernel,
    validity,
)
from bus.hashing.families import Text, offsets, scalar_family, without_null

if TYPE_CHECKING:
    from collections.abc import Iterator

_join = kernel("binary_join_element_wise")
_multiply = kernel("multiply")
_take = kernel("take")
_TO_U8 = pa.uint8()
_EMPTY = pa.scalar(b"", pa.large_binary())
#: The kernel takes its arguments one by one; beyond this many it is called again.
_JOIN_AT_ONCE = 64


def family_of(type_: pa.DataType) -> Family:
    """A new family for columns of this type. Raises `UnhashableType` for a type without one."""
    type_ = decoded_type(type_)
    found = scalar_family(type_)
    if found is not None:
        return found
    if _is_list(type_):
        return Lists(type_)
    if pa.types.is_map(type_):
        return Maps(type_)
    if pa.types.is_struct(type_):
        return Structs(type_)
    raise UnhashableType(type_, "the definition has no encoding for this type")


def _is_list(type_: pa.DataType) -> bool:
    kinds = (
        *(pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
        *(pa.types.is_list_view, pa.types.is_large_list_view),
    )
    return any(is_of(type_) for is_of in kinds)


class Nested(Family):
    """A family whose canonical array holds the bytes of each value, as large_binary."""

    scalar = False
    learns = True  # its leaves may

    def __init__(self, type_: pa.DataType) -> None:
        self.type = type_
        self._bytes = Text(pa.large_binary())

    def column(self, array: pa.Array) -> Column:
        return Column(self, self.canonical(array))

    def canonical(self, array: pa.Array) -> pa.Array:
        every_row = _positions(len(array))
        joined = _joined([*self.pieces(array, every_row)], len(array))
        return pc.if_else(validity(array), joined, None) if array.null_count else joined

    def parts(self, array: pa.Array) -> Parts:
        return self._bytes.parts(array)

    def bounds(self, column: Column) -> tuple[None, None]:  # noqa: ARG002 - has no meaning
        return None, None

    def pieces(self, array: pa.Array, runs: pa.Array) -> Iterator[pa.Array]:
        """The bytes of each run's values, piece by piece; a piece is one large_binary a run.

        `runs`: int64 positions in `array`, ascending, one more than there are runs.
        """
        raise NotImplementedError


def run_parts(family: Family, array: pa.Array, runs: pa.Array) -> Iterator[pa.Array]:
    """The bytes of each run of values: validity, then the values. See `Nested.pieces`."""
    array = decoded(array)
    yield _cut(data(validity(array).cast(_TO_U8), 1), 1, runs)
    if isinstance(family, Nested):
        yield from family.pieces(array, runs)
        return
    canonical = family.column(array).array
    if isinstance(family, Text) and canonical.null_count:
        canonical = without_null(canonical)
    fixed, text = family.parts(canonical)
    for buffer, width in zip(fixed, family.widths, strict=True):
        yield _cut(buffer, width, runs)
    if text is not None:
        yield _sliced(text, _take([_from_zero(offsets(canonical)), runs]))


class Lists(Nested):
    """`L` and the element's tag: lists of any flavour, fixed-size ones and views included."""

    def __init__(self, type_: pa.DataType) -> None:
        super().__init__(type_)
        self.element = family_of(type_.value_type)

    @property
    def tag(self) -> bytes:  # type: ignore[override]
        return b"L" + self.element.tag

    def pieces(self, array: pa.Array, runs: pa.Array) -> Iterator[pa.Array]:
        lengths = _lengths(array)
        yield _cut(data(_as_i32(lengths, self.type), 4), 4, runs)
        inner = _take([_running_sum(lengths), runs])
        yield from run_parts(self.element, pc.list_flatten(array), inner)


class Maps(Nested):
    """`M`, the key's tag, the value's tag: entries in the order in which they are stored."""

    def __init__(self, type_: pa.DataType) -> None:
        super().__init__(type_)
        self.key = family_of(type_.key_type)
        self.item = family_of(type_.item_type)

    @property
    def tag(self) -> bytes:  # type: ignore[override]
        return b"M" + self.key.tag + self.item.tag

    def pieces(self, array: pa.Array, runs: pa.Array) -> Iterator[pa.Array]:
        entries = _entries(array)
        lengths = _lengths(entries)
        yield _cut(data(_as_i32(lengths, self.type), 4), 4, runs)
        inner = _take([_running_sum(lengths), runs])
        keys, items = pc.list_flatten(entries).flatten()
        yield from run_parts(self.key, keys, inner)
        yield from run_parts(self.item, items, inner)


class Structs(Nested):
    """`S`, u32 number of fields, then for each in UTF-8 name order: u32 length, name, tag."""

    def __init__(self, type_: pa.DataType) -> None:
        super().__init__(type_)
        fields = [type_.field(i) for i in range(type_.num_fields)]
        self.names = [field.name.encode() for field in fields]
        if len(set(self.names)) < len(fields):
            raise UnhashableType(type_, "two fields of a struct have one name")
        self.order = sorted(range(len(fields)), key=self.names.__getitem__)
        self.families = [family_of(field.type) for field in fields]

    @property
    def tag(self) -> bytes:  # type: ignore[override]
        fields = (
            len(self.names[i]).to_bytes(4, "little") + self.names[i] + self.families[i].tag
            for i in self.order
        )
        return b"S" + len(self.names).to_bytes(4, "little") + b"".join(fields)

    def pieces(self, array: pa.Array, runs: pa.Array) -> Iterator[pa.Array]:
        children = array.flatten()  # a child is NULL where its struct is
        for i in self.order:
            yield from run_parts(self.families[i], children[i], runs)


def _entries(maps: pa.Array) -> pa.Array:
    """Maps as lists of structs. Arrow's cast miscounts null-typed values of a slice."""
    pairs = pa.StructArray.from_arrays([maps.keys, maps.items], ["key", "value"])
    start_anew = pc.add(maps.offsets, 0)  # a mask wants offsets that are no slice
    is_null = pc.is_null(maps) if maps.null_count else None
    return pa.ListArray.from_arrays(start_anew, pairs, mask=is_null)


def _lengths(lists: pa.Array) -> pa.Array:
    """int64 lengths of lists, 0 for NULL."""
    return pc.fill_null(pc.list_value_length(lists).cast(pa.int64()), 0)


def _as_i32(lengths: pa.Array, type_: pa.DataType) -> pa.Array:
    if (pc.max(lengths).as_py() or 0) > I32_MAX:
        raise UnhashableType(type_, "a list of 2^31 elements or more")
    return lengths.cast(pa.int32())


def _running_sum(lengths: pa.Array) -> pa.Array:
    """Offsets from lengths: 0, then the sum so far; one more than there are lengths."""
    return pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(lengths)])


def _positions(count: int) -> pa.Array:
    """0, 1, … count."""
    return pa.arange(0, count + 1)


def _from_zero(positions: pa.Array) -> pa.Array:
    return pc.subtract(positions, positions[0])


def _cut(buffer: object, width: int, runs: pa.Array) -> pa.Array:
    """The bytes of fixed-width values, one large_binary value for each run."""
    return _sliced(buffer, _multiply([runs, pa.scalar(width, pa.int64())]))


def _sliced(buffer: object, byte_offsets: pa.Array) -> pa.Array:
    """A large_binary array over a buffer, without copying a byte of it."""
    where = pa.py_buffer(data(byte_offsets, 8))
    count = len(byte_offsets) - 1
    return pa.Array.from_buffers(pa.large_binary(), count, [None, where, pa.py_buffer(buffer)])


def _joined(pieces: list[pa.Array], count: int) -> pa.Array:
    """The pieces of each row, one behind the other."""
    if not pieces:
        return pa.repeat(_EMPTY, count)
    while len(pieces) > 1:
        pieces = [_join([*pieces[:_JOIN_AT_ONCE], _EMPTY]), *pieces[_JOIN_AT_ONCE:]]
    return pieces[0]
