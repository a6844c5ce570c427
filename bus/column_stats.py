"""Column statistics, gathered batch by batch: NULLs, smallest and largest value, NaNs.

They share their work with the content hash: what a `bus.hashing.Column` already knows (NaNs,
bounds) is not computed again. Nested columns count NULLs only.

Values are JSON-safe: booleans, integers of 64 bits and finite floats as they are; instants as
``2026-01-08T05:12:33.123Z`` with the digits of their unit, naive ones without the Z, dates and
times of day likewise, years beyond 9999 with a sign; durations as nanoseconds; decimals, infinities
and larger integers as text; binary as hex; text and binary cut to 64 bytes (``truncated``).
"""

from __future__ import annotations

import math
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from bus.hashing.columns import Column, UnhashableType, decoded
from bus.hashing.families import Dates, Decimals, Floats, Integers, Spans, Text, Timestamps
from bus.hashing.nested import family_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from bus.hashing.columns import Family

MAX_TEXT_BYTES = 64
_INT64 = range(-(2**63), 2**63)
_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_EPOCH = date(1970, 1, 1)
_DAY_S = 86_400
#: The Gregorian calendar repeats after so many years and days.
_CYCLE_YEARS, _CYCLE_DAYS = 400, 146_097


class ColumnStats:
    """Statistics of all columns of a schema; `update` with every batch, then `result`."""

    def __init__(self, schema: pa.Schema) -> None:
        self._columns = [_Column(field) for field in schema]

    def update(self, batch: pa.RecordBatch, known: Mapping[str, Column] | None = None) -> None:
        """Take one more batch of the schema's columns, in order.

        known: what `ContentHasher.update` returned for the same batch, if it was hashed.
        """
        known = known or {}
        for column, values in zip(self._columns, batch.columns, strict=True):
            column.update(values, known.get(column.name))

    def result(self) -> list[dict[str, Any]]:
        """``[{name, nulls, min?, max?, nans?, truncated?}]``, in column order."""
        return [column.result() for column in self._columns]


class _Column:
    def __init__(self, field: pa.Field) -> None:
        self.name: str = field.name
        self._type = field.type
        self._family: Family | None = None
        self._has_values = True
        self._nulls = 0
        self._nans = 0
        self._least: Any = None
        self._greatest: Any = None

    def update(self, values: pa.Array, known: Column | None) -> None:
        column = known or (self._reduced(values) if self._has_values else None)
        # A dictionary or run-end encoding counts its NULLs only when decoded.
        self._nulls += values.null_count if column is None else column.array.null_count
        if column is None:
            self._has_values = False
            return
        self._family = column.family
        self._nans += column.nans
        least, greatest = column.bounds
        if least is not None:
            self._least = least if self._least is None else min(self._least, least)
            self._greatest = greatest if self._greatest is None else max(self._greatest, greatest)

    def _reduced(self, values: pa.Array) -> Column | None:
        """The canonical column of one that was not hashed; None for what has no order."""
        try:
            family = family_of(self._type)
            return family.column(decoded(values)) if family.scalar else None
        except UnhashableType:
            return None

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = {"name": self.name, "nulls": self._nulls}
        if self._nans:
            found["nans"] = self._nans
        if self._family is None or self._least is None:
            return found
        for key, value in (("min", self._least), ("max", self._greatest)):
            found[key], is_whole = shown(self._family, value)
            if not is_whole:
                found["truncated"] = True
        return found


def shown(family: Family, value: Any) -> tuple[Any, bool]:
    """A canonical value of a family as JSON, and whether it is the whole of it."""
    match family:
        case Text():
            return _cut(value)
        case Timestamps():
            return _moment(value, family.unit) + ("Z" if family.tag == b"T" else ""), True
        case Dates():
            return _day(value), True
        case Spans(is_duration=False):
            return _clock(value, family.unit), True
        case Spans():
            return _number(value * 10 ** (9 - _DIGITS[family.unit])), True
        case Decimals():
            return f"{value:f}", True
        case Integers() | Floats():
            return _number(value), True
    return value, True


def _cut(value: str | bytes) -> tuple[str, bool]:
    if isinstance(value, bytes):
        return value[:MAX_TEXT_BYTES].hex(), len(value) <= MAX_TEXT_BYTES
    encoded = value.encode()
    if len(encoded) <= MAX_TEXT_BYTES:
        return value, True
    return encoded[:MAX_TEXT_BYTES].decode(errors="ignore"), False


def _number(value: int | float) -> int | float | str:  # noqa: PYI041 - the two differ here
    if isinstance(value, int):
        return value if value in _INT64 else str(value)
    return value if math.isfinite(value) else str(value)


def _moment(value: int, unit: str) -> str:
    seconds, fraction = divmod(value, 10 ** _DIGITS[unit])
    days, second = divmod(seconds, _DAY_S)
    return f"{_day(days)}T{_clock(second * 10 ** _DIGITS[unit] + fraction, unit)}"


def _day(days: int) -> str:
    """ISO 8601 of a day counted from 1970-01-01, in any year."""
    cycles = 0
    if not -719_162 <= days <= 2_932_896:  # noqa: PLR2004 - years 1 to 9999, what Python knows
        cycles, days = divmod(days, _CYCLE_DAYS)
    day = _EPOCH + timedelta(days=days)
    year = day.year + cycles * _CYCLE_YEARS
    return f"{year:04d}-{day:%m-%d}" if cycles == 0 else f"{year:+05d}-{day:%m-%d}"


def _clock(value: int, unit: str) -> str:
    seconds, fraction = divmod(value, 10 ** _DIGITS[unit])
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    digits = _DIGITS[unit]
    return f"{hour:02d}:{minute:02d}:{second:02d}" + (f".{fraction:0{digits}d}" if digits else "")
