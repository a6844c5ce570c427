"""The canonical row order: recognise it, and produce it in memory.

Rows are lists of key columns (`Column.key` arrays: no NaN, ``<`` is the order), most significant
first, NULL before everything. Nested columns come last; their keys are their bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from bus.hashing.columns import I32_MAX, Column, kernel, ordered_bits, validity

if TYPE_CHECKING:
    from collections.abc import Sequence

_and = kernel("and")
_array_sort = kernel("array_sort_indices")
_bit_and = kernel("bit_wise_and")
_bit_or = kernel("bit_wise_or")
_cast = kernel("cast")
_equal = kernel("equal")
_greater = kernel("greater")
_invert = kernel("invert")
_less = kernel("less")
_nonzero = kernel("indices_nonzero")
_or = kernel("or")
_shift_left = kernel("shift_left")
_shift_right = kernel("shift_right")
_coalesce = kernel("coalesce")
_add = kernel("add")
_index_in = kernel("index_in")
_min_max = kernel("min_max")
_subtract = kernel("subtract")
_take = kernel("take")

_TO_I64 = pc.CastOptions.unsafe(pa.int64())
_LARGE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
_UNCHECKED = pc.TakeOptions(boundscheck=False)
_FALSE = pa.array([False])
_ZERO, _ONE = pa.scalar(0, pa.int64()), pa.scalar(1, pa.int64())
#: Below this many rows Arrow's own sort of all keys is as fast as anything.
_FEW_ROWS = 1024
#: Arrow sorts integers of a range up to 2^12 by counting, ten times faster than by comparing.
_DIGIT_BITS = 12
#: Codes are kept below 2^62, so that arithmetic on them cannot overflow.
_CODE_BITS = 62
#: More distinct texts than this share of a sample: ranking them costs more than it saves.
_SAMPLE, _SAMPLE_DISTINCT = 256, 128


def is_ordered(keys: Sequence[Column]) -> bool:
    """Whether the rows are in the canonical order, equal rows being in order."""
    rows = len(keys[0].array) if keys else 0
    if rows < 2:  # noqa: PLR2004 - one row is in order
        return True
    tied: Any = None  # positions of the rows that equal the next one so far; None: all of them
    for column in keys:
        key = column.key
        if tied is None:
            above, below = key.slice(0, rows - 1), key.slice(1)
        else:
            above, below = taken(key, tied), taken(key, _next(tied))
        disorder, ties = _compared(above, below)
        if disorder:
            return False
        if ties is None:
            return True
        tied = _nonzero([ties]) if tied is None else tied.filter(ties)
    return True


def follows(last: Sequence[Column], first: Sequence[Column]) -> bool:
    """Whether a batch may come after another: `last` and `first` are one row each."""
    pairs = (joined(before, after) for before, after in zip(last, first, strict=True))
    return is_ordered([*pairs])


def joined(*columns: Column) -> Column:
    """The rows of one column's batches as one column."""
    if len(columns) == 1:
        return columns[0]
    arrays = [column.array for column in columns]
    large = _LARGE.get(arrays[0].type)
    if large is not None and sum(array.nbytes for array in arrays) > I32_MAX:
        arrays = [array.cast(large) for array in arrays]  # offsets of 32 bits would not reach
    array = pa.concat_arrays(arrays)
    return Column(columns[0].family, array, sum(column.nans for column in columns))


def taken(array: pa.Array, positions: pa.Array) -> pa.Array:
    """The rows at positions known to be inside the array; 5 us less than `Array.take`."""
    return _take([array, positions], _UNCHECKED)


def _next(positions: pa.Array) -> pa.Array:
    return pc.add(positions, pa.scalar(1, positions.type))


def _compared(above: pa.Array, below: pa.Array) -> tuple[bool, pa.Array | None]:
    """(whether a row is greater than the next, flags of the rows equal to the next or None)."""
    less = _less([above, below])
    if not above.null_count and not below.null_count:
        if less.false_count == 0:
            return False, None
        if _greater([above, below]).true_count:
            return True, None
        return False, _invert([less])
    above_valid, below_valid = validity(above), validity(below)
    falls_to_null = _and([above_valid, _invert([below_valid])])
    if falls_to_null.true_count or _greater([above, below]).true_count:
        return True, None
    both_null = _invert([_or([above_valid, below_valid])])
    ties = _or([both_null, pc.fill_null(_equal([above, below]), fill_value=False)])
    return False, ties if ties.true_count else None


def sort_permutation(keys: Sequence[Column]) -> pa.Array:
    """Positions of the rows in the canonical order, as uint64.

    The leading keys are packed into a short integer that is sorted by counting; only rows that
    tie there are compared in full. (Arrow's sort of all keys is correct too, and takes twice as
    long when the first key is a text of few values.)
    """
    rows = len(keys[0].array)
    prefix = _Prefix(keys, rows) if rows >= _FEW_ROWS else None
    if prefix is None or prefix.bits == 0:
        return _sorted_by_all(keys)
    order = _sorted_by_digits(prefix.codes, prefix.bits)
    if prefix.is_complete:
        return order
    ties = _neighbours_tied(taken(prefix.codes, order))
    if ties is None:
        return order
    tied_rows = order.filter(ties)
    subset = [Column(key.family, taken(key.array, tied_rows), key.nans) for key in keys]
    refined = _sorted_by_all(subset, first=taken(prefix.codes, tied_rows))
    return pc.replace_with_mask(order, ties, taken(tied_rows, refined))


def _sorted_by_all(keys: Sequence[Column], first: pa.Array | None = None) -> pa.Array:
    arrays = [] if first is None else [first]
    for key in keys:
        # Whether there is a value is a key of its own: then no option for NULL is needed, whose
        # spelling differs between versions of pyarrow.
        if key.array.null_count:
            arrays.append(validity(key.array))
        arrays.append(key.key)
    names = [str(number) for number in range(len(arrays))]
    batch = pa.RecordBatch.from_arrays(arrays, names)
    return pc.sort_indices(batch, sort_keys=[(name, "ascending") for name in names])


def _sorted_by_digits(codes: pa.Array, bits: int) -> pa.Array:
    """A stable sort of integers of that many bits, digit by digit from the least significant."""
    passes = -(-bits // _DIGIT_BITS)
    width = -(-bits // passes)
    mask = pa.scalar((1 << width) - 1, pa.int64())
    order: Any = None
    for number in range(passes):
        digits = codes if order is None else taken(codes, order)
        if passes > 1:
            shift = pa.scalar(number * width, pa.int64())
            digits = _bit_and([_shift_right([digits, shift]), mask])
        step = _array_sort([digits])
        order = step if order is None else taken(order, step)
    return order


def _neighbours_tied(codes: pa.Array) -> pa.Array | None:
    """Flags of the rows that equal a neighbour, in sorted codes; None if there are none."""
    same = _equal([codes.slice(0, len(codes) - 1), codes.slice(1)])
    if not same.true_count:
        return None
    return _or([pa.concat_arrays([same, _FALSE]), pa.concat_arrays([_FALSE, same])])


class _Prefix:
    """The most significant bits of each row's keys as one non-negative int64.

    codes        int64; a smaller code means an earlier row, an equal one says nothing
    bits         how many bits of the codes are in use
    is_complete  whether equal codes mean equal rows
    """

    def __init__(self, keys: Sequence[Column], rows: int) -> None:
        self.codes: Any = None
        self.bits = 0
        # With twice as many bits as number the rows, few rows tie by chance. One pass more is
        # cheaper than ties; a first key of many bits gets along without it.
        self._least = 2 * rows.bit_length() // _DIGIT_BITS * _DIGIT_BITS
        self.is_complete = self._add_all(keys)

    def _add_all(self, keys: Sequence[Column]) -> bool:
        for key in keys:
            found = None if self.bits > self._least * 3 // 4 else _codes(key)
            if found is None:
                return False
            wanted = self._least if self.codes is None else self._least + _DIGIT_BITS
            if not self._add(*found, wanted - self.bits):
                return False
        return True

    def _add(self, codes: pa.Array, bits: int, is_exact: bool, room: int) -> bool:  # noqa: FBT001 - private
        if bits > room:
            codes = _shift_right([codes, pa.scalar(bits - room, pa.int64())])
            bits, is_exact = room, False
        if self.codes is None:
            self.codes = codes
        elif bits:
            above = _shift_left([self.codes, pa.scalar(bits, pa.int64())])
            self.codes = _bit_or([above, codes])
        self.bits += bits
        return is_exact


def _codes(column: Column) -> tuple[pa.Array, int, bool] | None:
    """(int64 codes from 0 in the column's order, bits used, whether equal codes are equal values).

    None where making codes would cost more than it saves.
    """
    type_ = column.array.type
    if pa.types.is_decimal(type_):
        return None
    ranked = _ranks(column) if _is_text(type_) else _integers(column)
    if ranked is None:
        return None
    codes, span, is_exact = ranked
    if column.array.null_count:
        codes = _coalesce([_add([codes, _ONE]), _ZERO])
        span += 1
    return codes, span.bit_length(), is_exact


def _is_text(type_: pa.DataType) -> bool:
    return type_ in {pa.string(), pa.large_string(), pa.binary(), pa.large_binary()}


def _integers(column: Column) -> tuple[pa.Array, int, bool]:
    """(codes, greatest code, exact) of a column of numbers, by their distance from the least."""
    values = column.key
    if pa.types.is_floating(values.type):
        values = ordered_bits(values)
    if values.type == pa.uint64():
        values = _shift_right([values, pa.scalar(1, pa.uint64())])
        values, is_exact = _cast([values], _TO_I64), False
    else:
        values, is_exact = _cast([values], _TO_I64), True
    found = _min_max([values])
    least, greatest = found[0].as_py() or 0, found[1].as_py() or 0
    excess = max(0, (greatest - least).bit_length() - _CODE_BITS)
    if excess:
        values = _shift_right([values, pa.scalar(excess, pa.int64())])
        least, greatest, is_exact = least >> excess, greatest >> excess, False
    codes = _subtract([values, pa.scalar(least, pa.int64())])
    return codes, greatest - least, is_exact


def _ranks(column: Column) -> tuple[pa.Array, int, bool] | None:
    """(codes, greatest code, exact) of texts of few distinct values, by rank."""
    array = column.array
    distinct = array.slice(0, _SAMPLE).unique().drop_null()
    if len(distinct) > _SAMPLE_DISTINCT:
        return None
    distinct = taken(distinct, _array_sort([distinct]))
    ranks = _index_in([array], pc.SetLookupOptions(value_set=distinct))
    if ranks.null_count > array.null_count:  # the sample did not show every value
        encoded = array.dictionary_encode()
        distinct = encoded.dictionary
        ranks = taken(_array_sort([_array_sort([distinct])]), encoded.indices)
    return _cast([ranks], _TO_I64), max(0, len(distinct) - 1), True
