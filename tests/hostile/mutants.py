"""Broken variants of our own files and manifests, and what of a Parquet file its checksums cover."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.jobs import parquet_bytes

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

# ── whole files ───────────────────────────────────────────────────────────────────────────────

_ROWS = 300


def _flat(start: int = 0) -> pa.Table:
    """Columns of many types; two calls differ in every value and in none of the sizes."""
    numbers = range(1000 + start, 1000 + start + _ROWS)
    return pa.table(
        {
            "n": pa.array(numbers, pa.int64()),
            "small": pa.array([i % 7 for i in numbers], pa.int32()),
            "x": pa.array([i * 1.1 for i in numbers], pa.float64()),
            "text": [f"row {i}" for i in numbers],
            "again": [("solana", "evm", None)[i % 3] for i in numbers],
            "yes": pa.array([i % 5 == 0 for i in numbers]),
            "at": pa.array([i * 1_000_000 for i in numbers], pa.timestamp("us", "UTC")),
            "price": pa.array([i * 100 for i in numbers]).cast(pa.decimal128(38, 2)),
            "raw": pa.array([bytes([i % 251]) * 4 for i in numbers], pa.binary(4)),
        }
    )


def _nested() -> pa.Table:
    numbers = range(_ROWS)
    return pa.table(
        {
            "n": pa.array(numbers, pa.int64()),
            "tags": pa.array([[f"t{i}"] * (i % 3) for i in numbers]),
            "at": pa.array([{"x": i, "y": {"z": f"{i}"}} for i in numbers]),
            "of": pa.array([[(f"k{i}", i)] for i in numbers], pa.map_(pa.string(), pa.int64())),
        }
    )


_DELTAS = {
    "use_dictionary": False,
    "column_encoding": {
        "n": "DELTA_BINARY_PACKED",
        "text": "DELTA_BYTE_ARRAY",
        "x": "BYTE_STREAM_SPLIT",
        "again": "DELTA_LENGTH_BYTE_ARRAY",
    },
}


@cache
def originals() -> dict[str, bytes]:
    """Files with page checksums, as many writers' choices as pyarrow has."""
    codecs = ("none", "snappy", "gzip", "brotli", "lz4", "zstd")
    return {
        **{codec: parquet_bytes(_flat(), compression=codec) for codec in codecs},
        "other rows": parquet_bytes(_flat(5000), compression="none"),
        "pages v2": parquet_bytes(_flat(), compression="zstd", data_page_version="2.0"),
        "no dictionary": parquet_bytes(_flat(), compression="none", use_dictionary=False),
        "deltas": parquet_bytes(_flat(), compression="none", **_DELTAS),
        "many pages": parquet_bytes(
            _flat(), compression="snappy", data_page_size=256, write_page_index=True
        ),
        "row groups": parquet_bytes(_flat(), compression="zstd", row_group_size=60),
        "nested": parquet_bytes(_nested(), compression="zstd"),
        "nested, plain": parquet_bytes(_nested(), compression="none", use_dictionary=False),
    }


def _footer_start(data: bytes | bytearray) -> int:
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


# ── one mutation ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Mutant:
    """A changed file: of which original, how it was changed, and its bytes."""

    original: str
    how: str
    data: bytes


def _bit_in_data(chance: random.Random, data: bytearray) -> None:
    data[chance.randrange(4, _footer_start(data))] ^= 1 << chance.randrange(8)


def _bit_in_footer(chance: random.Random, data: bytearray) -> None:
    data[chance.randrange(_footer_start(data), len(data))] ^= 1 << chance.randrange(8)


def _bytes_in_footer(chance: random.Random, data: bytearray) -> None:
    start = _footer_start(data)  # before the length itself is changed
    for _ in range(4):
        data[chance.randrange(start, len(data))] = chance.randrange(256)


def _truncated(chance: random.Random, data: bytearray) -> None:
    del data[chance.randrange(len(data)) :]


def _zeroed(chance: random.Random, data: bytearray) -> None:
    start = chance.randrange(len(data)) & ~4095
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))


def _cut_out(chance: random.Random, data: bytearray) -> None:
    start = chance.randrange(4, len(data) - 8)
    del data[start : start + chance.choice([1, 4, 64, 1024])]


def _doubled(chance: random.Random, data: bytearray) -> None:
    start = chance.randrange(4, len(data) - 8)
    data[start:start] = data[start : start + chance.choice([1, 4, 64, 1024])]


def _spliced(chance: random.Random, data: bytearray) -> None:
    """The beginning of one file and the end of another, or both whole."""
    other = originals()[chance.choice(list(originals()))]
    match chance.randrange(3):
        case 0:
            data += other
        case 1:
            cut = chance.randrange(min(len(data), len(other)))
            data[cut:] = other[cut:]
        case _:  # the pages of one, the footer of the other
            data[_footer_start(data) :] = other[_footer_start(other) :]


_WAYS: dict[str, Callable[[random.Random, bytearray], None]] = {
    "a bit in the pages": _bit_in_data,
    "a bit in the footer": _bit_in_footer,
    "4 bytes in the footer": _bytes_in_footer,
    "truncated": _truncated,
    "4 KiB of zeros": _zeroed,
    "cut out": _cut_out,
    "doubled": _doubled,
    "spliced": _spliced,
}


def mutant(chance: random.Random, how: str | None = None) -> Mutant:
    """Any original changed in one way, `how` or any; never equal to it."""
    wanted = how
    while True:
        # Those with lists and structs are judged in a child each, which costs more than the rest.
        [name] = chance.choices(list(originals()), [1 if "nested" in n else 4 for n in originals()])
        how = wanted or chance.choice(list(_WAYS))
        data = bytearray(originals()[name])
        _WAYS[how](chance, data)
        if data != originals()[name]:
            return Mutant(name, how, bytes(data))


# ── what page checksums cover ─────────────────────────────────────────────────────────────────


def is_covered(found: Mutant) -> bool:
    """Whether every changed byte lies in the body of a page, which has a checksum."""
    data = originals()[found.original]
    if len(found.data) != len(data):
        return False
    covered = _covered(found.original)
    return all(covered[i] for i in range(len(data)) if data[i] != found.data[i])


@cache
def _covered(name: str) -> bytearray:
    data = originals()[name]
    covered = bytearray(len(data))
    for start, end in _page_bodies(data):
        covered[start:end] = b"\1" * (end - start)
    return covered


def _page_bodies(data: bytes) -> Iterator[tuple[int, int]]:
    metadata = pq.ParquetFile(pa.BufferReader(data)).metadata
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            at = chunk.dictionary_page_offset or chunk.data_page_offset
            end = at + chunk.total_compressed_size
            while at < end:
                fields, body = _thrift_struct(data, at)
                assert 4 in fields, "a page without a checksum"
                at = body + fields[3]  # compressed_page_size
                yield body, at


def _thrift_struct(data: bytes, at: int) -> tuple[dict[int, int], int]:
    """(its integers by field number, where it ends) of a struct in Thrift's compact protocol."""
    fields: dict[int, int] = {}
    number = 0
    while head := data[at]:
        at += 1
        kind, delta = head & 15, head >> 4
        if delta:
            number += delta
        else:
            number, at = _signed(data, at)
        if kind in {4, 5, 6}:
            fields[number], at = _signed(data, at)
        else:
            at = _skipped(data, at, kind)
    return fields, at + 1


def _skipped(data: bytes, at: int, kind: int) -> int:
    if kind in {1, 2}:  # true and false have no body
        return at
    if kind == 8:  # bytes
        length, at = _varint(data, at)
        return at + length
    assert kind == 12, f"a page header with a field of type {kind}"
    return _thrift_struct(data, at)[1]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def _signed(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


# ── manifests ─────────────────────────────────────────────────────────────────────────────────

_HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.0, 2**63 - 1, 2**63, 2**200, 1e308, "", " ", "\0", "null"),
    *("../x", "/etc/passwd", "a0.parquet/..", "A0.PARQUET", "verdict.json", "COMMIT", "."),
    *(
        "x" * 129,
        "x" * 1025,
        "x" * 5000,
        "e\u0301" * 10,
        "\u202e",
        "\U0001f4a5",
        "\ud800",
        "\x1b[2J",
    ),
    *("'; DROP TABLE x; --", '"', "${HOME}", "{{7*7}}", "%s%n", "job:../../x/y", "name:a0"),
    *([], {}, [[]], [None], {"": ""}, ["x"] * 3, {"op": "tombstone"}, {"$ref": "#"}, [0] * 2000),
    *("NaN!", "1e999!", "-Infinity!", "01!", "0x10!", "'x'!"),  # without quotes in the text
)
_RAW = {json.dumps(v): v[:-1] for v in _HOSTILE if isinstance(v, str) and v.endswith("!")}


def changed_manifest(chance: random.Random, document: dict[str, Any]) -> bytes:
    """The manifest with one value, key or piece of text that is not what it was."""
    changed = copy.deepcopy(document)
    for left in reversed(range(chance.choice([1, 1, 1, 2, 4]))):
        # The last alone may grow a thousandfold: two of them would take gigabytes of ours.
        _change_somewhere(chance, changed, most=1 if left else 1001)
    text = json.dumps(changed)
    for quoted, raw in _RAW.items():
        text = text.replace(quoted, raw)
    data = text.encode("utf-8", "surrogatepass")
    return _changed_text(chance, data) if chance.random() < 0.25 else data


def _change_somewhere(chance: random.Random, document: dict[str, Any], most: int) -> None:
    """Replace, remove, rename, repeat (`most` times), wrap or move one entry of a list or object."""
    places: list[Any] = [node for node in _containers(document) if node]
    node = chance.choice(places)
    key = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
    match chance.randrange(8):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[chance.choice(["", "Job_id", "rowz", f"{key} ", "x" * 5000, "\0"])] = node.pop(key)
        case 1:
            node.extend(node * chance.choice([1, most]))
        case 2:
            for _ in range(chance.choice([1, 15, 100])):
                node[key] = [node[key]] if chance.random() < 0.5 else {"x": node[key]}
        case 3:
            other = chance.choice(places)
            node[key] = copy.deepcopy(other)
        case _:
            node[key] = copy.deepcopy(chance.choice(_HOSTILE))  # the next change may be in it


def _containers(root: Any) -> Iterator[Any]:
    todo = [root]
    while todo:
        node = todo.pop()
        if isinstance(node, dict | list):
            yield node
            todo += node.values() if isinstance(node, dict) else node


def _changed_text(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    at = chance.randrange(len(changed) or 1)
    match chance.randrange(5):
        case 0:
            changed[at : at + 1] = bytes([chance.randrange(256)])
        case 1:
            del changed[at : at + chance.choice([1, 10])]
        case 2:
            changed[at:at] = chance.choice([b'"', b"{", b"[", b",", b"\\", b"\0", b"\xff", b"//"])
        case 3:
            del changed[at:]
        case _:  # a key twice
            changed[1:1] = b'"job_id": "job", ' * chance.choice([1, 2])
    return bytes(changed)
