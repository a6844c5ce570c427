"""Casts that lose nothing: from what a file holds to what a contract says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from bus.hashing.columns import BINARY_IDS, TEXT_IDS, UnhashableType, decoded, decoded_type
from bus.hashing.nested import family_of

if TYPE_CHECKING:
    from collections.abc import Callable


class LossyCast(Exception):
    """Values of a column that the contract's type cannot hold.

    `column` is its name, `source` and `target` the Arrow types, `detail` says what was lost.
    """

    def __init__(self, column: str, source: pa.DataType, target: pa.DataType, detail: str) -> None:
        super().__init__(f"column {column!r}: {source} does not fit {target}: {detail}")
        self.column = column
        self.source = source
        self.target = target
        self.detail = detail


def needs_cast(source: pa.DataType, target: pa.DataType) -> bool:
    """Whether the cast could change a canonical column; the others are left out, being free."""
    source, target = decoded_type(source), decoded_type(target)
    if source == target or (_is_text(source) and _is_text(target)):
        return False
    if _is_bytes(source) and _is_bytes(target):
        return bool(pa.types.is_fixed_size_binary(target))
    if pa.types.is_float64(target) and pa.types.is_floating(source):
        return False
    is_wider = _same(pa.types.is_signed_integer, source, target) and (
        source.bit_width <= target.bit_width
    )
    return not is_wider


def cast(array: pa.Array, target: pa.DataType, column: str) -> pa.Array:
    """The array as `target`. Raises `LossyCast` if one value would change or become NULL."""
    array = decoded(array)
    try:
        result = array.cast(decoded_type(target), safe=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise LossyCast(column, array.type, target, str(error)) from None
    if result.null_count != array.null_count or not (
        _is_checked_by_arrow(array.type, result.type) or _survives(array, result)
    ):
        raise LossyCast(column, array.type, target, "some values would change")
    return result


def _is_checked_by_arrow(source: pa.DataType, target: pa.DataType) -> bool:
    """Whether Arrow itself refuses every lossy cast between the two (all pairs were tried)."""
    source, target = decoded_type(source), decoded_type(target)
    if source == target:
        return True
    if pa.types.is_list(source) and (pa.types.is_list(target) or pa.types.is_large_list(target)):
        return _is_checked_by_arrow(source.value_type, target.value_type)
    kinds: tuple[Callable[[pa.DataType], bool], ...] = (
        *(pa.types.is_integer, pa.types.is_timestamp, pa.types.is_time, pa.types.is_duration),
        *(pa.types.is_decimal, pa.types.is_date, _is_text, _is_bytes),
    )
    return any(_same(is_of, source, target) for is_of in kinds) or pa.types.is_null(source)


def _survives(array: pa.Array, result: pa.Array) -> bool:
    """Whether casting back gives the same values, NaN being equal to NaN."""
    try:
        family = family_of(array.type)
        before = family.column(array).key
        after = family.column(result.cast(array.type)).key
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnhashableType):
        return False
    return bool(before.equals(after))


def _same(is_of: Callable[[pa.DataType], bool], source: pa.DataType, target: pa.DataType) -> bool:
    return bool(is_of(source) and is_of(target))


def _is_text(type_: pa.DataType) -> bool:
    return type_.id in TEXT_IDS


def _is_bytes(type_: pa.DataType) -> bool:
    return type_.id in BINARY_IDS
