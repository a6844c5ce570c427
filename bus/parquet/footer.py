"""The footer of a foreign file: its bytes, and what they claim.

Nothing here reads a page. What the metadata claims is checked against `Limits` before any of it
is believed; what is really decoded is counted while reading (`source`).
"""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bus.errors import BusError, Code, Problem, Rejected, problem
from bus.hashing.columns import BINARY_IDS, TEXT_IDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pyarrow.parquet as pq

MAGIC = b"PAR1"
_MAGIC_ENCRYPTED = b"PARE"
_TAIL_BYTES = 8  # u32 length of the footer, then the magic
_LEAST_BYTES = len(MAGIC) + _TAIL_BYTES

#: The key of the metadata that Arrow would believe, as the footer holds it: a Thrift field of text
#: (0x18), its length (12), the key, and the next field of text (0x18), its value.
_ARROW_SCHEMA = b"\x18\x0cARROW:schema\x18"
#: A key that means nothing to Arrow, of the same length: no other byte of the footer moves.
_NOT_ARROW_SCHEMA = b"\x18\x0carrow:schema\x18"

#: What encryption with a readable footer appends to it: a nonce and a tag.
_SIGNATURE_BYTES = 28
_OFFSET_BYTES = 4
_TEXT_IDS = TEXT_IDS | BINARY_IDS - {pa.lib.Type_FIXED_SIZE_BINARY}
#: Types whose rows take an offset, and then as much as they like.
_OPEN_ENDED_IDS = _TEXT_IDS | {pa.lib.Type_LIST, pa.lib.Type_LARGE_LIST, pa.lib.Type_MAP}
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a foreign file may ask of us.

    The decoded size may be `max_expansion` times the size of the file, but `free_decoded_bytes`
    in any case and `max_decoded_bytes` in no case more.
    """

    max_footer_bytes: int = 16 << 20
    max_row_groups: int = 10_000
    max_columns: int = 5_000
    max_nesting_levels: int = 16
    max_name_bytes: int = 1024
    max_expansion: int = 500
    free_decoded_bytes: int = 1 << 30
    max_decoded_bytes: int = 64 << 30

    def decoded_bytes(self, size_bytes: int) -> int:
        """How large a file of `size_bytes` may become when decoded."""
        allowed = max(self.free_decoded_bytes, self.max_expansion * size_bytes)
        return min(self.max_decoded_bytes, allowed)


def footer_span(fd: int, size_bytes: int, limits: Limits, where: str) -> tuple[int, int]:
    """(start, length) of the footer of an open file. Raises `Rejected`: E307, E308, E309, E310."""
    head = os.pread(fd, len(MAGIC), 0)
    tail = os.pread(fd, _TAIL_BYTES, max(0, size_bytes - _TAIL_BYTES))
    if head == _MAGIC_ENCRYPTED or (head == MAGIC and tail[4:] == _MAGIC_ENCRYPTED):
        raise _rejected(Code.E309, where, "the footer is encrypted")
    if tail[4:] != MAGIC or size_bytes < _LEAST_BYTES:
        raise _not_parquet(head, size_bytes, where)
    length = int.from_bytes(tail[:4], "little")
    if length > size_bytes - _LEAST_BYTES or length == 0:
        message = f"the footer claims {length:,} bytes of a file of {size_bytes:,} bytes"
        raise _rejected(Code.E308, where, message)
    if length > limits.max_footer_bytes:
        message = f"the footer has {length:,} bytes; the limit is {limits.max_footer_bytes:,}"
        raise _rejected(Code.E310, where, message)
    return size_bytes - _TAIL_BYTES - length, length


def _not_parquet(head: bytes, size_bytes: int, where: str) -> BusError:
    if size_bytes == 0:
        return _rejected(Code.E307, where, "the file is empty (0 bytes)")
    if head == MAGIC and size_bytes > len(MAGIC):
        message = f"{size_bytes:,} bytes begin as Parquet but do not end so: the file was cut off"
        hint = "Close the writer before submitting: the footer is written last. Then copy it again."
        return Rejected.of([problem(Code.E308, where, message, hint)])
    return _rejected(
        Code.E307, where, f"{size_bytes:,} bytes that begin with {head!r}, not b'PAR1'"
    )


def _rejected(code: Code, where: str, message: str) -> BusError:
    return Rejected.of([problem(code, where, message)])


def hide_arrow_schema(data: bytearray, start: int) -> None:
    """Rename the key ``ARROW:schema`` in a footer that lies in `data` from `start` on.

    pyarrow has no option to ignore it. The key is part of no page, no offset and no checksum, and
    the new one is as long; only a column statistic could hold the same bytes, and none is used.
    """
    position = data.find(_ARROW_SCHEMA, start)
    while position >= 0:
        data[position : position + len(_ARROW_SCHEMA)] = _NOT_ARROW_SCHEMA
        position = data.find(_ARROW_SCHEMA, position + len(_ARROW_SCHEMA))


def metadata_problems(
    metadata: pq.FileMetaData,
    schema: pa.Schema,
    footer_bytes: int,
    limits: Limits,
    where: str,
) -> Iterator[Problem]:
    """Every problem that the metadata of a file shows, but its sizes.

    No column chunk is looked at: pyarrow's accessor ends the process for an encrypted one.
    """
    if footer_bytes - metadata.serialized_size == _SIGNATURE_BYTES:
        yield problem(Code.E309, where, "the footer is signed, so some columns are encrypted")
    if metadata.metadata and b"ARROW:schema" in metadata.metadata:
        yield problem(Code.E308, where, "the footer writes ARROW:schema as no known writer does")
    counts = (
        ("row groups", metadata.num_row_groups, limits.max_row_groups),
        ("columns", metadata.num_columns, limits.max_columns),
    )
    for word, count, most in counts:
        if count > most:
            yield problem(Code.E310, where, f"{count:,} {word}; the limit is {most:,}")
    if not len(schema):
        yield problem(Code.E312, where, f"{metadata.num_rows:,} rows without a column")
    yield from _name_problems(list(schema), limits, where)
    for field in schema:
        levels = nesting_levels(field.type)
        if levels > limits.max_nesting_levels:
            message = f"{levels} levels of nesting; the limit is {limits.max_nesting_levels}"
            yield problem(Code.E313, f"{where}:{printable(field.name)}", message)


@dataclass(frozen=True, slots=True)
class Group:
    """What the footer claims of one row group.

    rows        its rows
    bytes       what they decode to, at least: by the sizes of the pages, or by the number of rows
    text_bytes  what they could decode to if every text were one dictionary entry as long as all
                pages together
    """

    rows: int
    bytes: int
    text_bytes: int


def groups(metadata: pq.FileMetaData, schema: pa.Schema, limits: Limits) -> list[Group]:
    """The row groups' claims, as far as the limit on their number lets us look."""
    width = sum(_width_bytes(field.type) for field in schema)
    has_text = any(_has_text(field.type) for field in schema)
    found = []
    for number in range(min(metadata.num_row_groups, limits.max_row_groups)):
        group = metadata.row_group(number)
        rows, page_bytes = max(0, group.num_rows), max(0, group.total_byte_size)
        text_bytes = rows * page_bytes if has_text else 0
        found.append(Group(rows, max(page_bytes, int(rows * width)), text_bytes))
    return found


def _width_bytes(type_: pa.DataType) -> float:
    """Bytes that a row takes at least."""
    if type_.id in _OPEN_ENDED_IDS:
        return _OFFSET_BYTES
    if type_.num_fields:
        return sum(_width_bytes(child) for child in _children(type_))
    return 0 if type_.id == pa.lib.Type_NA else float(type_.bit_width) / 8


def _has_text(type_: pa.DataType) -> bool:
    return type_.id in _TEXT_IDS or any(_has_text(child) for child in _children(type_))


def _children(type_: pa.DataType) -> list[pa.DataType]:
    return [type_.field(number).type for number in range(type_.num_fields)]


def size_problems(
    claims: Sequence[Group], size_bytes: int, limits: Limits, where: str
) -> Iterator[Problem]:
    """E310 if the row groups claim to decode to more than a file of this size may."""
    allowed = limits.decoded_bytes(size_bytes)
    claimed = sum(group.bytes for group in claims)
    if claimed > allowed:
        message = (
            f"{size_bytes:,} bytes that claim to decode to {claimed:,}; "
            f"the limit for this file is {allowed:,}"
        )
        yield problem(Code.E310, where, message)


def nesting_levels(type_: pa.DataType) -> int:
    """How many lists, structs and maps lie around the deepest value; 0 for a scalar."""
    if not type_.num_fields:
        return 0
    inner = max(map(nesting_levels, _children(type_)))
    # The struct of key and value is part of what a map is, not a level that somebody chose.
    return inner if type_.id == pa.lib.Type_MAP else inner + 1


def _name_problems(fields: list[pa.Field], limits: Limits, where: str) -> Iterator[Problem]:
    """Names that collide (E311) or should not be written anywhere (E314), also inside structs."""
    names = [field.name for field in fields]
    yield from _colliding(names, where)
    for field in fields:
        place = f"{where}:{printable(field.name)}"
        if not field.name.isprintable() and _has_control(field.name):
            message = f"the name holds a control character: {field.name!r}"
            yield problem(Code.E314, place, message)
        if len(field.name.encode()) > limits.max_name_bytes:
            message = f"the name has {len(field.name.encode()):,} bytes"
            hint = f"Use names of up to {limits.max_name_bytes:,} bytes."
            yield problem(Code.E314, place[:200], message, hint)
        if field.type.num_fields:
            inner = [field.type.field(number) for number in range(field.type.num_fields)]
            yield from _name_problems(inner, limits, place)


def _colliding(names: list[str], where: str) -> Iterator[Problem]:
    plain = [folded(name) for name in names]
    if len(set(plain)) == len(plain):
        return
    groups: dict[str, list[str]] = {}
    for name, key in zip(names, plain, strict=True):
        groups.setdefault(key, []).append(name)
    for same in groups.values():
        if len(same) > 1:
            yield problem(
                Code.E311, f"{where}:{printable(same[0])}", f"{_listed(same)} count as one name"
            )


def folded(name: str) -> str:
    """What two names must differ in: engines ignore case, and Unicode has several forms."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _has_control(name: str) -> bool:
    return any(unicodedata.category(character) == "Cc" for character in name)


def printable(text: str) -> str:
    """Text for a message: control characters escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _listed(names: Iterable[Any]) -> str:
    shown = [repr(name) for name in names]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more
