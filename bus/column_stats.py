"""Column statistics, gathered batch by batch: NULLs, smallest and largest value, NaNs.

One `min_max` kernel a column and batch; nested columns count NULLs only. Values are JSON-safe:
numbers and booleans as they are, instants and dates as ISO 8601, text cut to 64 characters.
"""

from __future__ import annotations

import math
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_TEXT_CHARACTERS = 64
_INT64 = range(-(2**63), 2**63)
_min_max = pc.get_function("min_max").call


class ColumnStats:
    """Statistics of all columns of a schema; `update` with every batch, then `result`."""

    def __init__(self, schema: pa.Schema) -> None:
        self._columns = [_Column(field) for field in schema]

    def update(self, batch: pa.RecordBatch | pa.Table) -> None:
        """Take one more batch of the schema's columns, in order."""
        for column, values in zip(self._columns, batch.columns, strict=True):
            column.update(values)

    def result(self) -> list[dict[str, Any]]:
        """``[{name, nulls, min?, max?, nans?, truncated?}]``, in column order."""
        return [column.result() for column in self._columns]


class _Column:
    def __init__(self, field: pa.Field) -> None:
        self._name = field.name
        self._floating = pa.types.is_floating(field.type)
        self._ordered = _is_ordered(field.type)
        self._as = _kernel_type(field.type)
        self._nulls = 0
        self._nans = 0
        self._low: Any = None
        self._high: Any = None

    def update(self, values: Any) -> None:
        self._nulls += values.null_count
        if not self._ordered or values.null_count == len(values):
            return
        if self._as is not None:
            values = values.cast(self._as)
        if self._floating:
            self._nans += pc.sum(pc.is_nan(values)).as_py() or 0
        bounds = _min_max([values])
        low, high = bounds["min"], bounds["max"]
        if not low.is_valid:
            return
        self._low = low if self._low is None or _less(low, self._low) else self._low
        self._high = high if self._high is None or _less(self._high, high) else self._high

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = {"name": self._name, "nulls": self._nulls}
        if self._nans:
            found["nans"] = self._nans
        for key, scalar in (("min", self._low), ("max", self._high)):
            if scalar is None:
                continue
            value, whole = _plain(scalar)
            found[key] = value
            if not whole:
                found["truncated"] = True
        return found


def _less(left: Any, right: Any) -> bool:
    answer: bool = pc.less(left, right).as_py()
    return answer


def _is_ordered(type_: pa.DataType) -> bool:
    """Whether `min_max` works and means something."""
    if isinstance(type_, pa.DictionaryType):
        type_ = type_.value_type
    is_text = pa.types.is_string(type_) or pa.types.is_large_string(type_)
    is_view = pa.types.is_string_view(type_)
    is_number = pa.types.is_integer(type_) or pa.types.is_floating(type_)
    is_moment = pa.types.is_timestamp(type_) or pa.types.is_date(type_) or pa.types.is_time(type_)
    others = pa.types.is_boolean(type_) or pa.types.is_decimal(type_)
    return is_text or is_view or is_number or is_moment or others


def _is_json_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or value in _INT64


def _kernel_type(type_: pa.DataType) -> pa.DataType | None:
    """The type that `min_max` has a kernel for, where it has none for `type_` itself."""
    if isinstance(type_, pa.DictionaryType):
        return _kernel_type(type_.value_type) or type_.value_type
    if pa.types.is_float16(type_):
        return pa.float32()
    return pa.large_string() if pa.types.is_string_view(type_) else None


def _plain(scalar: pa.Scalar) -> tuple[Any, bool]:
    """A JSON-safe value, and whether it is the whole of it."""
    try:
        value = scalar.as_py()
    except (ValueError, OverflowError):  # a year Python does not know
        value = str(scalar.cast(pa.int64()).as_py())
    if isinstance(value, str):
        return value[:_TEXT_CHARACTERS], len(value) <= _TEXT_CHARACTERS
    if isinstance(value, datetime | date | time):
        value = value.isoformat()
    elif isinstance(value, Decimal) or not _is_json_number(value):
        value = str(value)
    return value, True
