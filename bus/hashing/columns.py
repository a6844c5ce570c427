"""Canonical columns: what an Arrow column of each type family is reduced to, and its bytes.

A `Family` knows three things about its columns: the canonical array (one per family, whatever the
width, flavour or unit of the input), the bytes of that array (the definition's section 3), and an
array whose plain ``<`` is the canonical order. The functions here know nothing about rows; the
families themselves are in `families` and `nested`.

Canonical arrays are: bool · int64 or uint64 · double · string, large_string, binary or
large_binary · int32 (days) · int64 (timestamps, times, durations, in the input's own unit) ·
decimal128 or decimal256 · null · large_binary (nested values, see `nested`).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Callable

if sys.byteorder != "little":  # buffers are hashed as they lie in memory
    raise ImportError("bus.hashing needs a little-endian machine")

I64_MAX = (1 << 63) - 1
I32_MAX = (1 << 31) - 1


def kernel(name: str) -> Callable[..., Any]:
    """A compute function without pyarrow's Python wrapper: 1 to 2 us less for each call.

    The result of calling it is an Array, ChunkedArray or Scalar; the arguments go in one list.
    """
    call: Callable[..., Any] = pc.get_function(name).call
    return call


_coalesce = kernel("coalesce")
_if_else = kernel("if_else")
_is_valid = kernel("is_valid")
_less = kernel("less")
_min_max = kernel("min_max")
_xor = kernel("bit_wise_xor")

_I64, _F64 = pa.int64(), pa.float64()
_NOT_SIGN = pa.scalar(I64_MAX, _I64)
#: By the number of the type: to look up the type itself would format its name.
_ZERO = {
    type_.id: pa.scalar(0, type_)
    for type_ in (pa.int32(), _I64, pa.uint64(), _F64, pa.decimal128(38, 0), pa.decimal256(76, 0))
}


def type_ids(*names: str) -> frozenset[int]:
    """The numbers that `pa.DataType.id` has for these type names."""
    return frozenset(getattr(pa.lib, f"Type_{name}") for name in names)


WIDE_IDS = type_ids("LARGE_STRING", "LARGE_BINARY")
TEXT_IDS = type_ids("STRING", "LARGE_STRING", "STRING_VIEW")
BINARY_IDS = type_ids("BINARY", "LARGE_BINARY", "BINARY_VIEW", "FIXED_SIZE_BINARY")
#: Types that hold values of another type.
_WRAPPED_IDS = type_ids("DICTIONARY", "RUN_END_ENCODED")


class UnhashableType(Exception):
    """A column whose type or values the content hash does not define; hash the file instead.

    `column` is the column's name ("" while it is not known yet), `type` the Arrow type.
    """

    def __init__(self, type_: pa.DataType, detail: str, column: str = "") -> None:
        super().__init__(f"column {column!r} ({type_}) has no content hash: {detail}")
        self.column = column
        self.type = type_
        self.detail = detail

    def at(self, column: str) -> UnhashableType:
        """The same finding, with the name of the column it was made in."""
        return UnhashableType(self.type, self.detail, self.column or column)


class Column:
    """A canonical array, with what is already known about it.

    array  the canonical array (see the module's text)
    nans   how many values are NaN
    """

    __slots__ = ("_bounds", "_key", "array", "family", "nans")

    def __init__(self, family: Family, array: pa.Array, nans: int = 0, key: Any = None) -> None:
        self.family = family
        self.array = array
        self.nans = nans
        self._bounds: Any = None
        self._key = key

    @property
    def key(self) -> pa.Array:
        """An array of the same rows whose ``<`` is the canonical order, where not NULL."""
        if self._key is None:
            self._key = ordered_bits(self.array) if self.nans else self.array
        return self._key

    @property
    def bounds(self) -> tuple[Any, Any]:
        """(least, greatest) canonical value as Python values, NaN left out; None without values."""
        if self._bounds is None:
            self._bounds = self.family.bounds(self)
        return self._bounds  # type: ignore[no-any-return]


#: The bytes of some values: the fixed-width parts, each as wide as `Family.widths` says, then the
#: bytes of text values or None. All are buffers; none is copied where the array already holds it.
Parts = tuple[tuple[Any, ...], Any]


class Family:
    """One type family. One that `learns` from the values it sees serves one column of one table."""

    learns = False
    #: Whether every array of the family's type is canonical as it is.
    is_plain = False
    tag: bytes = b""
    #: Bytes of one value in each fixed-width part.
    widths: tuple[int, ...] = (8,)
    #: Whether rows are ordered by this column before the nested ones.
    scalar: ClassVar[bool] = True

    def column(self, array: pa.Array) -> Column:
        """The canonical form of an array of this family. Raises `UnhashableType` for a value."""
        return Column(self, self.canonical(array))

    def canonical(self, array: pa.Array) -> pa.Array:
        """The canonical array alone."""
        raise NotImplementedError

    def parts(self, array: pa.Array) -> Parts:
        """The bytes of a canonical array's values: fixed-width parts, zeros under NULL; text."""
        raise NotImplementedError

    def bounds(self, column: Column) -> tuple[Any, Any]:
        """(least, greatest) of a canonical column, as Python values."""
        found = _min_max([column.array])
        return found[0].as_py(), found[1].as_py()


def data(array: pa.Array, width: int) -> Any:
    """The values of a fixed-width array as a buffer of exactly ``len * width`` bytes."""
    buffer = array.buffers()[1]
    if buffer is None:
        return b""
    return buffer.slice(array.offset * width, len(array) * width)


def filled(array: pa.Array) -> pa.Array:
    """The array with zeros where it is NULL."""
    return _coalesce([array, _ZERO[array.type.id]]) if array.null_count else array


def validity(array: pa.Array) -> pa.Array:
    """A boolean array without NULL: True where the array has a value."""
    return _is_valid([array])


def bits(flags: pa.Array) -> bytes:
    """A boolean array's values packed LSB first, unused bits zero."""
    if flags.offset:  # a kernel may hand on a slice of its input's bitmap
        flags = pc.invert(pc.invert(flags))
    packed = bytearray(flags.buffers()[1].slice(0, (len(flags) + 7) // 8))
    if len(flags) % 8:
        packed[-1] &= (1 << len(flags) % 8) - 1
    return bytes(packed)


def ordered_bits(floats: pa.Array) -> pa.Array:
    """Doubles (canonical NaN, no -0.0) as int64 of the same order: NaN comes after +inf."""
    raw = floats.view(pa.int64())
    return _if_else([_less([raw, _ZERO[_I64.id]]), _xor([raw, _NOT_SIGN]), raw])


def decoded(array: pa.Array) -> pa.Array:
    """The array without dictionary, run-end encoding or extension type, at its top level."""
    type_ = array.type
    while True:
        if isinstance(type_, pa.BaseExtensionType):
            array = array.storage
        elif pa.types.is_dictionary(type_):
            array = array.dictionary_decode()
        elif pa.types.is_run_end_encoded(type_):
            array = pc.run_end_decode(array)
        else:
            return array
        type_ = array.type


def decoded_type(type_: pa.DataType) -> pa.DataType:
    """The type that `decoded` ends with."""
    while True:
        if type_.id in _WRAPPED_IDS:
            type_ = type_.value_type
        elif isinstance(type_, pa.BaseExtensionType):
            type_ = type_.storage_type
        else:
            return type_
