"""The content hash CH1 once more: from Python values, slowly, without pyarrow or bus.hashing.

Written from the definition (the docstring of `bus.hashing`) alone, so that two programs agree on
it. A table is described in JSON, as in `content_hash_vectors.json`::

    {"columns": {"<name>": {"type": <type>, "values": [<value>, …] | {"range": [from, to]}}},
     "sort_by": ["<name>", …]}

    type     "null" "bool" "int8" … "uint64" "float16" "float32" "float64"
             "string" "large_string" "string_view" "binary" "large_binary" "binary_view"
             "fixed_binary:<bytes>" "date32" "date64" "timestamp:<unit>" "timestamp:<unit>:<zone>"
             "time:<unit>" "duration:<unit>" "decimal:<digits>:<places>"
             {"list": type} {"struct": {"<field>": type}} {"map": [key type, value type]}
    value    null · true · integers, as text beyond 2^53 · floats, or "NaN" "inf" "-inf" "-0.0" ·
             text · binary as hex · days, or milliseconds for date64 · timestamps, times and
             durations as integers of their unit · decimals as text · [elements] ·
             {"<field>": value} · [[key, value], …]

``python -m tests.contract.content_hash_reference`` prints the vectors with their hashes computed
anew by this program.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from decimal import Decimal
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).with_name("content_hash_vectors.json")

Type = Any
Value = Any
CHUNK_ROWS = 65_536
NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
NESTED = {"list", "struct", "map"}


def reference_hash(table: dict[str, Any]) -> str:
    """The content hash of a described table."""
    columns = {
        name: (column["type"], expanded(column["values"]))
        for name, column in table["columns"].items()
    }
    names = sorted(columns, key=lambda name: name.encode())
    rows = len(columns[names[0]][1])
    order = sorted(range(rows), key=lambda row: _row_key(columns, table.get("sort_by", []), row))
    whole = b"CH1\n" + struct.pack("<Q", rows)
    for name in names:
        type_, values = columns[name]
        digest = hashlib.sha256()
        for start in range(0, rows, CHUNK_ROWS):
            digest.update(chunk(type_, [values[row] for row in order[start : start + CHUNK_ROWS]]))
        whole += _name(name) + tag(type_, values) + digest.digest()
    return "ch1:" + hashlib.sha256(whole).hexdigest()


def expanded(values: list[Value] | dict[str, list[int]]) -> list[Value]:
    """The values of a column, a range written out."""
    return values if isinstance(values, list) else [*range(*values["range"])]


def _row_key(columns: dict[str, tuple[Type, list[Value]]], sort_by: list[str], row: int) -> Any:
    others = sorted(columns.keys() - set(sort_by), key=lambda name: name.encode())
    scalars = [name for name in others if not is_nested(columns[name][0])]
    nested = [name for name in others if is_nested(columns[name][0])]
    key: list[Any] = []
    for name in [*sort_by, *scalars, *nested]:
        type_, values = columns[name]
        value = values[row]
        key.append((0,) if value is None else (1, order_key(type_, value)))
    return key


def order_key(type_: Type, value: Value) -> Any:
    """What a value that is not NULL is ordered by among values of its type."""
    if is_nested(type_):
        return parts(type_, [value])
    match family(type_):
        case "f":
            number = float(value)
            return (1, 0.0) if math.isnan(number) else (0, number)
        case "s":
            return value.encode()
        case "x":
            return bytes.fromhex(value)
        case "d":
            return Decimal(value)
        case "n":
            return 0
    return int(value)


def is_nested(type_: Type) -> bool:
    return isinstance(type_, dict)


def family(type_: str) -> str:
    """One letter for a scalar type."""
    word = type_.split(":", maxsplit=1)[0]
    if "int" in word:
        return "i"
    for start, letter in (("float", "f"), ("date", "D"), ("time:", "m"), ("timestamp", "t")):
        if type_.startswith(start):
            return letter
    if "string" in word:
        return "s"
    if "binary" in word:
        return "x"
    return {"null": "n", "bool": "b", "decimal": "d", "duration": "e"}[word]


def tag(type_: Type, values: list[Value]) -> bytes:
    """The tag of a column with these values."""
    present = [value for value in values if value is not None]
    match type_:
        case {"list": element}:
            return b"L" + tag(element, [item for value in present for item in value])
        case {"map": [key, item]}:
            keys = [pair[0] for value in present for pair in value]
            items = [pair[1] for value in present for pair in value]
            return b"M" + tag(key, keys) + tag(item, items)
        case {"struct": fields}:
            names = sorted(fields, key=lambda name: name.encode())
            inner = (
                _name(name) + tag(fields[name], [value[name] for value in present])
                for name in names
            )
            return b"S" + struct.pack("<I", len(names)) + b"".join(inner)
    letter = family(type_)
    if letter == "i" and any(int(value) > 2**63 - 1 for value in present):
        return b"u"
    if letter == "t" and type_.count(":") == 2:
        return b"T"
    return b"\xd8" if letter == "e" else letter.encode()


def chunk(type_: Type, values: list[Value]) -> bytes:
    """One chunk of a column."""
    if type_ == "null":
        return b""
    head = b"\0"
    if None in values:
        packed = bytearray((len(values) + 7) // 8)
        for row, value in enumerate(values):
            packed[row // 8] |= (value is not None) << row % 8
        head = b"\1" + bytes(packed)
    if is_nested(type_):
        encoded = [b"" if value is None else parts(type_, [value]) for value in values]
        return head + _lengths(encoded) + b"".join(encoded)
    return head + parts(type_, values)


def run(type_: Type, values: list[Value]) -> bytes:
    """A run of values inside a nested value."""
    return bytes(value is not None for value in values) + parts(type_, values)


def parts(type_: Type, values: list[Value]) -> bytes:
    """The values part after part; zero or empty under NULL."""
    match type_:
        case {"list": element}:
            lists = [value or [] for value in values]
            return _lengths(lists) + run(element, [item for value in lists for item in value])
        case {"map": [key, item]}:
            maps = [value or [] for value in values]
            keys = [pair[0] for value in maps for pair in value]
            items = [pair[1] for value in maps for pair in value]
            return _lengths(maps) + run(key, keys) + run(item, items)
        case {"struct": fields}:
            return b"".join(
                run(fields[name], [None if value is None else value[name] for value in values])
                for name in sorted(fields, key=lambda name: name.encode())
            )
    return _scalar_parts(type_, values)


def _scalar_parts(type_: str, values: list[Value]) -> bytes:
    match family(type_):
        case "n":
            return b""
        case "b":
            return bytes(bool(value) for value in values)
        case "i":
            return b"".join((int(value or 0) % 2**64).to_bytes(8, "little") for value in values)
        case "f":
            return b"".join(_float(value) for value in values)
        case "s":
            texts = [(value or "").encode() for value in values]
            return _lengths(texts) + b"".join(texts)
        case "x":
            blobs = [bytes.fromhex(value or "") for value in values]
            return _lengths(blobs) + b"".join(blobs)
        case "D":
            per_day = 86_400_000 if type_ == "date64" else 1
            return b"".join(struct.pack("<i", (value or 0) // per_day) for value in values)
        case "t":
            unit = NS[type_.split(":")[1]]
            moments = [divmod(int(value or 0) * unit, 10**9) for value in values]
            seconds = b"".join(struct.pack("<q", second) for second, _ in moments)
            return seconds + b"".join(struct.pack("<I", ns) for _, ns in moments)
        case "m" | "e":
            unit = NS[type_.split(":")[1]]
            return b"".join(struct.pack("<q", int(value or 0) * unit) for value in values)
    decimals = [_decimal(value) for value in values]
    unscaled = b"".join(number.to_bytes(32, "little", signed=True) for _, number in decimals)
    return bytes(scale for scale, _ in decimals) + unscaled


def _float(value: Value) -> bytes:
    number = float(value or 0)
    return (
        bytes.fromhex("000000000000f87f") if math.isnan(number) else struct.pack("<d", number + 0)
    )


def _decimal(value: str | None) -> tuple[int, int]:
    sign, digits, exponent = Decimal(value or 0).as_tuple()
    assert isinstance(exponent, int)
    number, scale = int("".join(map(str, digits))), -exponent
    if scale < 0:
        number, scale = number * 10**-scale, 0
    while scale and number % 10 == 0:
        number, scale = number // 10, scale - 1
    return scale, -number if sign else number


def _lengths(values: list[Any]) -> bytes:
    return b"".join(struct.pack("<i", len(value)) for value in values)


def _name(name: str) -> bytes:
    encoded = name.encode()
    return struct.pack("<I", len(encoded)) + encoded


def written(vectors: list[dict[str, Any]]) -> str:
    """The vectors as the file holds them: one column a line."""
    blocks = []
    for vector in vectors:
        columns = ",\n".join(
            f"      {json.dumps(name, ensure_ascii=False)}: {json.dumps(column, ensure_ascii=False)}"
            for name, column in vector["columns"].items()
        )
        head = "".join(
            f"    {json.dumps(key)}: {json.dumps(vector[key], ensure_ascii=False)},\n"
            for key in ("name", "sort_by", "hash")
            if key in vector
        )
        blocks.append(f'  {{\n{head}    "columns": {{\n{columns}\n    }}\n  }}')
    return "[\n" + ",\n".join(blocks) + "\n]\n"


if __name__ == "__main__":
    tables = json.loads(VECTORS.read_text(encoding="utf-8"))
    print(written([table | {"hash": reference_hash(table)} for table in tables]), end="")  # noqa: T201
