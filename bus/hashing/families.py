"""The families of scalar types: their canonical arrays, and the bytes of these."""

from __future__ import annotations

from itertools import accumulate
from struct import pack, unpack
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from bus.hashing.columns import (
    BINARY_IDS,
    I64_MAX,
    TEXT_IDS,
    WIDE_IDS,
    Column,
    Family,
    Parts,
    UnhashableType,
    data,
    filled,
    kernel,
    type_ids,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_add = kernel("add")
_binary_length = kernel("binary_length")
_cast = kernel("cast")
_coalesce = kernel("coalesce")
_divide = kernel("divide")
_equal = kernel("equal")
_if_else = kernel("if_else")
_is_nan = kernel("is_nan")
_less = kernel("less")
_min_max = kernel("min_max")
_multiply = kernel("multiply")
_multiply_checked = kernel("multiply_checked")
_subtract = kernel("subtract")
_sum = kernel("sum")

_I64, _F64, _I32 = pa.int64(), pa.float64(), pa.int32()
_TO_I64 = pc.CastOptions.unsafe(pa.int64())
_TO_U32 = pc.CastOptions.unsafe(pa.uint32())
_TO_U8 = pc.CastOptions.unsafe(pa.uint8())
_TO_I32 = pc.CastOptions.safe(pa.int32())
_TO_DOUBLE = pc.CastOptions.unsafe(pa.float64())
_NAN = pa.scalar(float("nan"), pa.float64())
_ZERO = {t: pa.scalar(0, t) for t in (_I32, _I64, _F64)}
_NONE_REMOVED = pa.scalar(0, pa.uint8())
_FALSE = pa.scalar(False)  # noqa: FBT003 - the value, not a flag
_DIGITS_I64, _DIGITS_128, _DIGITS_256 = 18, 38, 76
INFINITY_BITS = unpack("<q", pack("<d", float("inf")))[0]
_ONE = pa.scalar(1, pa.int64())
_PER_SECOND = {
    "s": _ONE,
    "ms": pa.scalar(10**3, pa.int64()),
    "us": pa.scalar(10**6, pa.int64()),
    "ns": pa.scalar(10**9, pa.int64()),
}
_NS = dict(zip(_PER_SECOND, reversed(_PER_SECOND.values()), strict=True))
_NS_U32 = {unit: pa.scalar(number.as_py(), pa.uint32()) for unit, number in _NS.items()}


def _whole(chunked: pa.ChunkedArray) -> pa.Array:
    """A kernel's result as one array, which it usually is already."""
    return chunked.chunk(0) if chunked.num_chunks == 1 else pa.concat_arrays(chunked.chunks)


class Bools(Family):
    """`b`: u8, 0 or 1."""

    tag = b"b"
    widths = (1,)
    is_plain = True

    def canonical(self, array: pa.Array) -> pa.Array:
        return array

    def parts(self, array: pa.Array) -> Parts:
        if array.null_count:
            array = _coalesce([array, _FALSE])
        return (data(_cast([array], _TO_U8), 1),), None

    def bounds(self, column: Column) -> tuple[Any, Any]:
        least, greatest = column.array.false_count == 0, column.array.true_count > 0
        return (None, None) if least and not greatest else (least, greatest)


class Integers(Family):
    """`i`: i64. A column that holds a value above the greatest i64 is `u`: u64 throughout."""

    def __init__(self, type_: pa.DataType) -> None:
        self.learns = self.is_u64 = type_ == pa.uint64()
        self.is_plain = type_ == pa.int64()
        self.is_wide = self.is_u64 or self.is_plain
        self.exceeds_i64 = False

    @property
    def tag(self) -> bytes:  # type: ignore[override]
        return b"u" if self.exceeds_i64 else b"i"

    def column(self, array: pa.Array) -> Column:
        column = Column(self, self.canonical(array))
        if self.is_u64 and not self.exceeds_i64:
            self.exceeds_i64 = (column.bounds[1] or 0) > I64_MAX
        return column

    def canonical(self, array: pa.Array) -> pa.Array:
        return array if self.is_wide else _cast([array], _TO_I64)

    def parts(self, array: pa.Array) -> Parts:
        return (data(filled(array), 8),), None


class Floats(Family):
    """`f`: f64; every NaN is 7ff8000000000000, and -0.0 is 0.0."""

    tag = b"f"

    def column(self, array: pa.Array) -> Column:
        return self.columns([array])[0]

    def columns(self, arrays: list[pa.Array]) -> list[Column]:
        """The canonical forms of several arrays, for little more than the price of one."""
        arrays = [a if a.type == _F64 else _cast([a], _TO_DOUBLE) for a in arrays]
        raw = [array.view(_I64) for array in arrays]
        least, greatest = bounds_of_all(raw)
        if least >= 0 and greatest <= INFINITY_BITS:
            return [Column(self, a, key=key) for a, key in zip(arrays, raw, strict=True)]
        if len(arrays) > 1 and least >= 0:  # NaN somewhere: perhaps not in all of them
            return [self.column(array) for array in arrays]
        return self._normalised(arrays)

    def _normalised(self, arrays: list[pa.Array]) -> list[Column]:
        positive = _whole(_add([pa.chunked_array(arrays), _ZERO[_F64]]))  # -0.0 + 0.0 = 0.0
        is_nan = _is_nan([positive])
        starts = accumulate(map(len, arrays), initial=0)
        return [
            self._without_nan(positive.slice(start, len(array)), is_nan.slice(start, len(array)))
            for start, array in zip(starts, arrays, strict=False)
        ]

    def _without_nan(self, array: pa.Array, is_nan: pa.Array) -> Column:
        nans = is_nan.true_count
        return Column(self, _if_else([is_nan, _NAN, array]) if nans else array, nans)

    def canonical(self, array: pa.Array) -> pa.Array:
        return self.column(array).array

    def parts(self, array: pa.Array) -> Parts:
        return (data(filled(array), 8),), None

    def bounds(self, column: Column) -> tuple[Any, Any]:
        if column.key.type == _I64 and not column.nans:  # four times as fast as on floats
            found = _min_max([column.key])
            if found[0].is_valid:
                return unpack("<dd", pack("<qq", found[0].as_py(), found[1].as_py()))
            return None, None
        least, greatest = super().bounds(column)
        only_nan = least is not None and least != least  # noqa: PLR0124 - this is what NaN is
        return (None, None) if only_nan else (least, greatest)


def bounds_of_all(integers: list[pa.Array]) -> tuple[int, int]:
    """(least, greatest) of several int64 arrays in one pass, (0, 0) without values.

    Floats may be read as such integers: then -0.0 and every negative number (NaN too) are below
    zero, and a positive NaN is above `INFINITY_BITS`. So one cheap pass proves for several columns
    that there is nothing to normalise.
    """
    found = _min_max([integers[0] if len(integers) == 1 else pa.chunked_array(integers)])
    return found[0].as_py() or 0, found[1].as_py() or 0


class Text(Family):
    """`s` (UTF-8) and `x` (binary, fixed-size binary, UUID): i32 byte lengths, then the bytes."""

    widths = (4,)

    def __init__(self, type_: pa.DataType) -> None:
        self.type = type_
        self.tag = b"s" if type_.id in TEXT_IDS else b"x"
        self.target: pa.DataType | None = None
        if type_.id in {pa.lib.Type_STRING_VIEW, pa.lib.Type_BINARY_VIEW}:
            self.target = pa.large_string() if self.tag == b"s" else pa.large_binary()
        elif type_.id == pa.lib.Type_FIXED_SIZE_BINARY:
            self.target = pa.large_binary()
        self.is_plain = self.target is None

    def canonical(self, array: pa.Array) -> pa.Array:
        return array if self.target is None else array.cast(self.target)

    def parts(self, array: pa.Array) -> Parts:
        buffers = array.buffers()
        wide = array.type.id in WIDE_IDS
        start, stop = _ends(array, buffers[1], wide=wide)
        if array.null_count:
            lengths = _lengths(array, buffers, wide=wide)
            # Arrow allows bytes under NULL; they are not part of any value.
            if (_sum([lengths]).as_py() or 0) != stop - start:
                return self.parts(without_null(array))
        else:
            lengths = _binary_length([array])
        if wide:
            lengths = self._narrow(lengths)
        return (data(lengths, 4),), buffers[2].slice(start, stop - start) if stop > start else b""

    def _narrow(self, lengths: pa.Array) -> pa.Array:
        try:
            return _cast([lengths], _TO_I32)
        except pa.ArrowInvalid:
            raise UnhashableType(self.type, "a value of 2 GiB or more") from None


def without_null(text: pa.Array) -> pa.Array:
    """Text with empty values in place of NULL, and no bytes but those of its values."""
    return pc.coalesce(text, pa.scalar(b"").cast(text.type))


def offsets(array: pa.Array) -> pa.Array:
    """The ``len + 1`` offsets of a string or binary array, as int64."""
    wide = array.type.id in WIDE_IDS
    buffer = array.buffers()[1]
    if buffer is None or len(buffer) == 0:  # an empty array may come without
        return pa.array([0] * (len(array) + 1), _I64)
    type_ = _I64 if wide else _I32
    found = pa.Array.from_buffers(type_, len(array) + 1, [None, buffer], offset=array.offset)
    return found if wide else _cast([found], _TO_I64)


def _lengths(array: pa.Array, buffers: list[Any], *, wide: bool) -> pa.Array:
    """The distances between the offsets, as an array that is NULL where `array` is.

    Unlike those of a kernel, the numbers under NULL are defined: what the offsets span there.
    """
    if array.offset:
        return filled(_binary_length([array]))
    type_, rows = _I64 if wide else _I32, len(array)
    edges = pa.Array.from_buffers(type_, rows + 1, [None, buffers[1]])
    spans = _subtract([edges.slice(1), edges.slice(0, rows)])
    return pa.Array.from_buffers(type_, rows, [buffers[0], spans.buffers()[1]])


def _ends(array: pa.Array, buffer: Any, *, wide: bool) -> tuple[int, int]:
    """The first and the last offset of a string or binary array."""
    if buffer is None or len(buffer) == 0 or len(array) == 0:
        return 0, 0
    edges = memoryview(buffer).cast("q" if wide else "i")
    return edges[array.offset], edges[array.offset + len(array)]


class Dates(Family):
    """`D`: i32 days."""

    tag = b"D"
    widths = (4,)

    def __init__(self, type_: pa.DataType) -> None:
        self.type = type_

    def canonical(self, array: pa.Array) -> pa.Array:
        if self.type == pa.date64():
            try:
                array = array.cast(pa.date32())
            except pa.ArrowInvalid:
                raise UnhashableType(self.type, "a date64 that is not a whole day") from None
        return array.view(pa.int32())

    def parts(self, array: pa.Array) -> Parts:
        return (data(filled(array), 4),), None


class Timestamps(Family):
    """`t` (naive) and `T` (instants): all i64 seconds, rounded down, then all u32 nanoseconds."""

    widths = (8, 4)
    learns = True

    def __init__(self, type_: pa.DataType) -> None:
        self.tag = b"t" if type_.tz is None else b"T"
        self.unit: str = type_.unit
        self._per_second = _PER_SECOND[type_.unit]
        self._ns = _NS_U32[type_.unit]
        self._has_negative = False

    def column(self, array: pa.Array) -> Column:
        column = Column(self, array.view(_I64))
        self._has_negative = self._has_negative or (column.bounds[0] or 0) < 0
        return column

    def canonical(self, array: pa.Array) -> pa.Array:
        return self.column(array).array

    def parts(self, array: pa.Array) -> Parts:
        array = filled(array)
        if self._per_second is _ONE:
            return (data(array, 8), bytes(4 * len(array))), None
        seconds = _divide([array, self._per_second])
        whole = _multiply([seconds, self._per_second])
        if whole.equals(array):
            return (data(seconds, 8), bytes(4 * len(array))), None
        rest = _subtract([array, whole])
        if self._has_negative:  # division rounds towards zero, the definition down
            borrow = _cast([_less([rest, _ZERO[_I64]])], _TO_I64)
            seconds = _subtract([seconds, borrow])
            rest = _add([rest, _multiply([borrow, self._per_second])])
        nanoseconds = _multiply([_cast([rest], _TO_U32), self._ns])
        return (data(seconds, 8), data(nanoseconds, 4)), None


class Spans(Family):
    """`m` (times of day) and 0xd8 (durations): i64 nanoseconds."""

    def __init__(self, type_: pa.DataType) -> None:
        self.type = type_
        self.is_duration = bool(pa.types.is_duration(type_))
        self.tag = b"\xd8" if self.is_duration else b"m"
        self.unit: str = type_.unit
        self._ns = _NS[type_.unit]

    def canonical(self, array: pa.Array) -> pa.Array:
        if pa.types.is_time32(self.type):
            return _cast([array.view(pa.int32())], _TO_I64)
        return array.view(_I64)

    def parts(self, array: pa.Array) -> Parts:
        try:
            return (data(_multiply_checked([filled(array), self._ns]), 8),), None
        except pa.ArrowInvalid:
            raise UnhashableType(self.type, "a span beyond 64 bits of nanoseconds") from None


class Decimals(Family):
    """`d`: all u8 scales, then all i256; each value on its own with the fewest decimal places."""

    tag = b"d"
    widths = (1, 32)

    def __init__(self, type_: pa.DataType) -> None:
        self.type = type_
        self.scale = max(0, type_.scale)
        is_narrow = type_.precision <= _DIGITS_128 and 0 <= type_.scale <= _DIGITS_128
        self.target = (
            pa.decimal128(_DIGITS_128, self.scale)
            if is_narrow
            else pa.decimal256(_DIGITS_256, self.scale)
        )

    def canonical(self, array: pa.Array) -> pa.Array:
        if array.type.id == self.target.id and array.type.scale == self.scale:
            return array.view(self.target)
        try:
            return array.cast(self.target)
        except pa.ArrowInvalid:
            raise UnhashableType(self.type, "a decimal beyond 76 digits") from None

    def parts(self, array: pa.Array) -> Parts:
        digits = filled(array.view(_whole_numbers(array.type)))
        try:
            digits, most = digits.cast(_I64), min(self.scale, _DIGITS_I64)  # ten times as fast
        except pa.ArrowInvalid:
            most = self.scale
        removed = pa.repeat(_NONE_REMOVED, len(array))
        for step in _halving_steps(most):
            shorter, is_exact = _divided(digits, step)
            if is_exact.true_count:
                digits = _if_else([is_exact, shorter, digits])
                more = _multiply([_cast([is_exact], _TO_U8), pa.scalar(step, pa.uint8())])
                removed = _add([removed, more])
        scales = _subtract([pa.scalar(self.scale, pa.uint8()), removed])
        is_zero = _equal([digits, pa.scalar(0, digits.type)])
        scales = _if_else([is_zero, _NONE_REMOVED, scales])
        unscaled = digits.cast(pa.decimal256(_DIGITS_256, 0))
        return (data(scales, 1), data(unscaled, 32)), None


def _whole_numbers(type_: pa.DataType) -> pa.DataType:
    """The type that shows a decimal's unscaled value."""
    is_narrow = type_.bit_width == 128  # noqa: PLR2004 - bits
    return pa.decimal128(_DIGITS_128, 0) if is_narrow else pa.decimal256(_DIGITS_256, 0)


def _halving_steps(scale: int) -> list[int]:
    """Powers of ten to try, so that every count of trailing zeros from 0 to `scale` is a sum.

    Trying them in this order finds the count: when the first half of the places does not divide,
    the count lies below it, and the other steps add up to as much.
    """
    steps = []
    while scale:
        half = (scale + 1) // 2
        steps.append(half)
        scale -= half
    return steps


def _divided(digits: pa.Array, power: int) -> tuple[pa.Array, pa.Array]:
    """(whole numbers divided by 10^power and cut off, whether that was exact)."""
    if digits.type == _I64:
        divisor = pa.scalar(10**power, _I64)
        whole = _divide([digits, divisor])
        return whole, _equal([_multiply([whole, divisor]), digits])
    make = pa.decimal128 if digits.type.bit_width == 128 else pa.decimal256  # noqa: PLR2004 - bits
    scaled_type = make(digits.type.precision, power)
    scaled = digits.view(scaled_type)
    whole = scaled.cast(digits.type, safe=False)
    return whole, _equal([whole.cast(scaled_type), scaled])


class Nulls(Family):
    """`n`: a column without a type; no values, no bytes."""

    tag = b"n"
    widths = ()

    def canonical(self, array: pa.Array) -> pa.Array:
        return array

    def parts(self, array: pa.Array) -> Parts:  # noqa: ARG002 - see Family
        return (), None

    def bounds(self, column: Column) -> tuple[Any, Any]:  # noqa: ARG002 - see Family
        return None, None


def scalar_family(type_: pa.DataType) -> Family | None:
    """A new family for a decoded scalar type; None for types this module does not know."""
    make = _SCALARS.get(type_.id)
    return None if make is None else make(type_)


_BOOLS, FLOATS, _NULLS = Bools(), Floats(), Nulls()  # they learn nothing: one does for all
_SCALARS: dict[int, Callable[[pa.DataType], Family]] = {
    pa.lib.Type_BOOL: lambda _: _BOOLS,
    pa.lib.Type_NA: lambda _: _NULLS,
    **dict.fromkeys(type_ids("INT8", "INT16", "INT32", "INT64"), Integers),
    **dict.fromkeys(type_ids("UINT8", "UINT16", "UINT32", "UINT64"), Integers),
    **dict.fromkeys(type_ids("HALF_FLOAT", "FLOAT", "DOUBLE"), lambda _: FLOATS),
    **dict.fromkeys(TEXT_IDS | BINARY_IDS, Text),
    **dict.fromkeys(type_ids("DATE32", "DATE64"), Dates),
    pa.lib.Type_TIMESTAMP: Timestamps,
    **dict.fromkeys(type_ids("TIME32", "TIME64", "DURATION"), Spans),
    **dict.fromkeys(type_ids("DECIMAL32", "DECIMAL64", "DECIMAL128", "DECIMAL256"), Decimals),
}


def columns_together(families: list[Family], arrays: list[pa.Array]) -> list[Column]:
    """The canonical forms of doubles and timestamps, whose checks are one and the same pass."""
    raw = [array.view(_I64) for array in arrays]
    least, greatest = bounds_of_all(raw)
    if least >= 0 and greatest <= INFINITY_BITS:  # no time before 1970, no NaN, no -0.0
        return [
            Column(family, array, key=key) if family is FLOATS else Column(family, key)
            for family, array, key in zip(families, arrays, raw, strict=True)
        ]
    floats = [array for family, array in zip(families, arrays, strict=True) if family is FLOATS]
    reduced = iter(FLOATS.columns(floats) if floats else [])
    return [
        next(reduced) if family is FLOATS else family.column(array)
        for family, array in zip(families, arrays, strict=True)
    ]
