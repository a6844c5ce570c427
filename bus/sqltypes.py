"""Arrow's types in DuckDB's words, and one type for columns that differ from file to file.

`duck_type` reads the text of an Arrow type, as the journal holds it, so that views can be made
without opening a single artifact.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What every value can be shown as: the type of what DuckDB has no word for.
ANYTHING = "VARCHAR"
_NOTHING = "NULL"

_SIMPLE = {
    "null": _NOTHING,
    "bool": "BOOLEAN",
    "int8": "TINYINT",
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "uint8": "UTINYINT",
    "uint16": "USMALLINT",
    "uint32": "UINTEGER",
    "uint64": "UBIGINT",
    "halffloat": "FLOAT",
    "float16": "FLOAT",
    "float": "FLOAT",
    "float32": "FLOAT",
    "double": "DOUBLE",
    "float64": "DOUBLE",
    "string": "VARCHAR",
    "large_string": "VARCHAR",
    "string_view": "VARCHAR",
    "binary": "BLOB",
    "large_binary": "BLOB",
    "binary_view": "BLOB",
    "date": "DATE",
}
#: Types with parameters that do not matter here, by the beginning of their text.
_BY_PREFIX = {
    "fixed_size_binary[": "BLOB",
    "date32[": "DATE",
    "date64[": "DATE",
    "time32[": "TIME",
    "time64[": "TIME",
    "time[": "TIME",
    "duration[": "BIGINT",
    "extension<arrow.uuid>": "UUID",
    "extension<arrow.json>": "VARCHAR",
}
_DECIMAL = re.compile(r"decimal\d*\((\d+), ?(\d+)\)")
_TIMESTAMP = re.compile(r"timestamp\[(s|ms|us|ns)(,.*)?\]", re.DOTALL)
_LIST = re.compile(r"(?:large_|fixed_size_)?list(?:_view)?<(.*)>(?:\[\d+\])?", re.DOTALL)
_WRAPPED = re.compile(
    r"(?:dictionary<values=(?P<d>.*), indices=\w+, ordered=\d>"
    r"|run_end_encoded<run_ends: \w+, values: (?P<r>.*)>)",
    re.DOTALL,
)
_MAX_DECIMAL_DIGITS = 38
_MAX_DEPTH = 20

_SIGNED = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT")
_UNSIGNED = ("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
_FRACTIONS = ("FLOAT", "DOUBLE")


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def unglobbed(path: str) -> str:
    """A path in which brackets, stars and question marks are no pattern to DuckDB."""
    return re.sub(r"([\[*?])", r"[\1]", path)


def duck_type(text: str) -> str:
    """DuckDB's type for an Arrow type's text, e.g. ``BIGINT`` for ``int64``.

    ``NULL`` for columns that never had a value; `ANYTHING` for what cannot be told.
    """
    return _parse(text.strip(), 0) or ANYTHING


def _parse(text: str, depth: int) -> str | None:
    if depth > _MAX_DEPTH:
        return None
    known = _SIMPLE.get(text) or next(
        (name for prefix, name in _BY_PREFIX.items() if text.startswith(prefix)), None
    )
    return known or _parametric(text) or _nested(text, depth)


def _parametric(text: str) -> str | None:
    if found := _DECIMAL.fullmatch(text):
        digits, places = int(found[1]), int(found[2])
        return f"DECIMAL({digits},{places})" if digits <= _MAX_DECIMAL_DIGITS else "DOUBLE"
    if found := _TIMESTAMP.fullmatch(text):
        if found[2]:
            return "TIMESTAMPTZ"
        return "TIMESTAMP_NS" if found[1] == "ns" else "TIMESTAMP"
    return None


def _nested(text: str, depth: int) -> str | None:
    if found := _WRAPPED.fullmatch(text):
        return _parse(found["d"] or found["r"], depth + 1)
    if found := _LIST.fullmatch(text):
        fields = _fields(found[1])
        element = fields[0][1] if fields and len(fields) == 1 else found[1]
        inner = _value(element, depth)
        return f"{inner}[]" if inner else None
    if text.startswith("struct<") and text.endswith(">"):
        return _struct(text[7:-1], depth)
    if text.startswith("map<") and text.endswith(">"):
        return _map(text[4:-1], depth)
    return None


def _value(text: str, depth: int) -> str | None:
    """A type below another; DuckDB has no nested columns of nothing."""
    inner = _parse(text.removesuffix(" not null"), depth + 1)
    return ANYTHING if inner == _NOTHING else inner


def _struct(text: str, depth: int) -> str | None:
    fields = _fields(text)
    if not fields:
        return None
    types = [(name, _value(field, depth)) for name, field in fields]
    if any(inner is None for _, inner in types) or len({n.lower() for n, _ in types}) < len(types):
        return None
    return "STRUCT(" + ", ".join(f"{quoted(name)} {inner}" for name, inner in types) + ")"


def _map(text: str, depth: int) -> str | None:
    parts = _split(text)
    if len(parts) < 2:  # noqa: PLR2004 - key and value
        return None
    key = _value(parts[0], depth)
    value = _value(re.sub(r" \('.*'\)$", "", ", ".join(parts[1:])), depth)
    return f"MAP({key}, {value})" if key and value else None


def _fields(text: str) -> list[tuple[str, str]] | None:
    """`name: type` pairs; None where a name makes them ambiguous."""
    pairs = [part.partition(": ") for part in _split(text)]
    if not all(colon and name for name, colon, _ in pairs):
        return None
    return [(name, field) for name, _, field in pairs]


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside all brackets."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        if character in "<[(":
            depth += 1
        elif character in ">])":
            depth -= 1
        elif depth == 0 and text.startswith(", ", at):
            parts.append(text[start:at])
            start = at + 2
    return [*parts, text[start:]]


def common_type(types: Iterable[str]) -> str:
    """One DuckDB type that holds values of all these; `ANYTHING` where they have no other."""
    found = set(types) - {_NOTHING}
    if len(found) == 1:
        return found.pop()
    if found and found <= {*_SIGNED, *_UNSIGNED}:
        return _common_integer(found)
    if found and all(_is_number(t) for t in found):
        return "DOUBLE"
    if found and found <= {"DATE", "TIMESTAMP", "TIMESTAMP_NS"}:
        return "TIMESTAMP_NS" if "TIMESTAMP_NS" in found else "TIMESTAMP"
    return ANYTHING


def _is_number(name: str) -> bool:
    is_decimal = name.startswith("DECIMAL(") and name.endswith(")")
    return is_decimal or name in (*_SIGNED, *_UNSIGNED, *_FRACTIONS)


def _common_integer(found: set[str]) -> str:
    for ladder in (_SIGNED, _UNSIGNED):
        if found <= set(ladder):
            return max(found, key=ladder.index)
    return "HUGEINT" if "UBIGINT" in found else "BIGINT"
