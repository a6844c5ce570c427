"""Tables described in JSON (see `content_hash_reference`) as Arrow tables."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa

from tests.contract.content_hash_reference import Type, Value, expanded

_PLAIN = {
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{name: name for name in ("null", "float16", "float32", "float64", "date32", "date64")},
    **{name: name for name in ("string", "large_string", "string_view")},
    **{name: name for name in ("binary", "large_binary", "binary_view")},
    "bool": "bool_",
}


def arrow_table(table: dict[str, Any]) -> pa.Table:
    """The described table, columns in the order of the description."""
    arrays = {
        name: arrow_array(column["type"], expanded(column["values"]))
        for name, column in table["columns"].items()
    }
    return pa.table(arrays)


def arrow_array(type_: Type, values: list[Value]) -> pa.Array:
    """Described values as an array of `arrow_type(type_)`."""
    arrow = arrow_type(type_)
    if isinstance(type_, str) and type_.split(":")[0] in {
        "timestamp",
        "time",
        "duration",
        "date64",
    }:
        width = pa.int32() if pa.types.is_time32(arrow) else pa.int64()
        numbers = [None if value is None else int(value) for value in values]
        return pa.array(numbers, width).view(arrow)
    return pa.array([python_value(type_, value) for value in values], arrow)


def arrow_type(type_: Type) -> pa.DataType:
    """The Arrow type of a described one."""
    match type_:
        case {"list": element}:
            return pa.list_(arrow_type(element))
        case {"map": [key, item]}:
            return pa.map_(arrow_type(key), arrow_type(item))
        case {"struct": fields}:
            return pa.struct([(name, arrow_type(field)) for name, field in fields.items()])
    word, *arguments = type_.split(":")
    if word in _PLAIN:
        return getattr(pa, _PLAIN[word])()
    match word, arguments:
        case "fixed_binary", [size]:
            return pa.binary(int(size))
        case "timestamp", [unit, *zone]:
            return pa.timestamp(unit, *zone)
        case "time", [unit]:
            return pa.time32(unit) if unit in {"s", "ms"} else pa.time64(unit)
        case "duration", [unit]:
            return pa.duration(unit)
    digits, places = map(int, arguments)
    return (pa.decimal128 if digits <= 38 else pa.decimal256)(digits, places)


def python_value(type_: Type, value: Value) -> Any:
    """What `pyarrow.array` takes for a described value."""
    if value is None:
        return None
    match type_:
        case {"list": element}:
            return [python_value(element, item) for item in value]
        case {"map": [key, item]}:
            return [(python_value(key, pair[0]), python_value(item, pair[1])) for pair in value]
        case {"struct": fields}:
            return {name: python_value(field, value[name]) for name, field in fields.items()}
    if "binary" in type_:
        return bytes.fromhex(value)
    if type_.startswith("decimal"):
        return Decimal(value)
    if type_.startswith("float"):
        return float(value)
    return int(value) if "int" in type_ else value
