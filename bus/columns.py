"""Columns of a contract: their types, how a type is written, and which file types fit it.

Types are written as in ``"float64"``, ``"string"``, ``"timestamp[us, UTC]"``,
``"decimal(18, 6)"``, ``"list<int64>"``; a trailing ``!`` means no NULL and no NaN, ``?`` means the
column may be absent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

UTC_INSTANT = pa.timestamp("us", "UTC")

_PLAIN = (
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float32", "float64", "string", "binary", "bool"),
)
_NAMED: dict[str, pa.DataType] = {
    name: getattr(pa, name.replace("bool", "bool_"))() for name in _PLAIN
} | {"date": pa.date32()}
#: Arrow's words for what contracts call otherwise: width and layout of texts are nobody's business.
_WORDS = {
    "double": "float64",
    "float": "float32",
    "halffloat": "float16",
    "large_string": "string",
    "string_view": "string",
    "large_binary": "binary",
    "binary_view": "binary",
}
_WITH_UNIT = re.compile(r"(timestamp|duration|time)\[(s|ms|us|ns)(?:,\s*(?:tz=)?(\S+?))?\]")
_DECIMAL = re.compile(r"decimal\((\d+),\s*(\d+)\)")
_LIST = re.compile(r"list<(.+)>")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a contract.

    `nullable`: may hold NULL. `optional`: may be absent (then it is nullable too, and readers see
    NULL). `hashed`: takes part in the content hash; run ids and ingestion times usually do not.
    """

    name: str
    type: pa.DataType
    nullable: bool = True
    optional: bool = False
    hashed: bool = True

    @classmethod
    def parse(cls, name: str, text: str, *, hashed: bool = True) -> Column:
        """A column from ``"float64!"`` or ``"string?"``. Raises ValueError."""
        mark = text[-1:] if text.endswith(("!", "?")) else ""
        data_type = parse_type(text.removesuffix(mark))
        return cls(name, data_type, nullable=mark != "!", optional=mark == "?", hashed=hashed)

    def __str__(self) -> str:
        return type_text(self.type) + ("?" if self.optional else "" if self.nullable else "!")


def parse_type(text: str) -> pa.DataType:
    """The Arrow type written as `text`. Raises ValueError that lists what can be written."""
    text = text.strip()
    if text in _NAMED:
        return _NAMED[text]
    if found := _WITH_UNIT.fullmatch(text):
        return _with_unit(*found.groups())
    if found := _DECIMAL.fullmatch(text):
        return pa.decimal128(int(found[1]), int(found[2]))
    if found := _LIST.fullmatch(text):
        return pa.list_(parse_type(found[1]))
    raise ValueError(
        f"no type {text!r}: write one of {', '.join(_NAMED)}, timestamp[us, UTC], timestamp[us], "
        "time[us], duration[us], decimal(18, 6), list<TYPE>"
    )


def _with_unit(family: str, unit: str, zone: str | None) -> pa.DataType:
    if family == "timestamp":
        return pa.timestamp(unit, zone)
    if family == "duration":
        return pa.duration(unit)
    return pa.time64(unit) if unit in {"us", "ns"} else pa.time32(unit)


def type_text(data_type: pa.DataType) -> str:
    """A type as contracts write it; the inverse of `parse_type` where that is possible."""
    types = pa.types
    if types.is_timestamp(data_type):
        zone = f", {data_type.tz}" if data_type.tz else ""
        return f"timestamp[{data_type.unit}{zone}]"
    if types.is_decimal(data_type):
        return f"decimal({data_type.precision}, {data_type.scale})"
    if types.is_list(data_type):
        return f"list<{type_text(data_type.value_type)}>"
    if types.is_date32(data_type):
        return "date"
    text = str(data_type)
    return _WORDS.get(text, text)


def logical(data_type: pa.DataType) -> pa.DataType:
    """The type of the values themselves: without dictionary, run-end or extension wrapping."""
    while True:
        if isinstance(data_type, pa.DictionaryType | pa.RunEndEncodedType):
            data_type = data_type.value_type
        elif isinstance(data_type, pa.BaseExtensionType):
            data_type = data_type.storage_type
        else:
            return data_type


def fits(have: pa.DataType, want: pa.DataType) -> bool:
    """Whether a file's column of type `have` can stand for `want`, values permitting.

    Any width and flavour of one family fits; integers fit floats. Naive timestamps are not
    instants, numbers are not times, and texts are nothing but texts.
    """
    if have == want:
        return True
    have, want = logical(have), logical(want)
    if pa.types.is_null(have) or have == want:
        return True
    if pa.types.is_list(want):
        listed = isinstance(have, pa.ListType | pa.LargeListType | pa.FixedSizeListType)
        return listed and fits(have.value_type, want.value_type)
    if pa.types.is_floating(want) and pa.types.is_integer(have):
        return True
    return _family(have) is not None and _family(have) == _family(want)


def _family(data_type: pa.DataType) -> str | None:
    types = pa.types
    if types.is_timestamp(data_type):
        return "instant" if data_type.tz else "naive timestamp"
    families = {
        "integer": types.is_integer,
        "float": types.is_floating,
        "text": lambda t: types.is_string(t) or types.is_large_string(t) or types.is_string_view(t),
        "binary": lambda t: (
            types.is_binary(t)
            or types.is_large_binary(t)
            or types.is_binary_view(t)
            or types.is_fixed_size_binary(t)
        ),
        "decimal": types.is_decimal,
        "date": types.is_date,
        "time": types.is_time,
        "duration": types.is_duration,
    }
    return next((name for name, test in families.items() if test(data_type)), None)


_LOCALISE = (
    "A timestamp without a zone is not an instant: say which zone it is in, e.g. "
    "pandas .dt.tz_localize('UTC'), polars .dt.replace_time_zone('UTC')."
)
_FROM_EPOCH = "Turn epoch numbers into timestamps, e.g. pandas.to_datetime(x, unit='ms', utc=True)."
#: (family of the file's column, family of the contract's) -> what a person does about it.
_MISFIT_HINTS = {
    ("naive timestamp", "instant"): _LOCALISE,
    ("integer", "instant"): _FROM_EPOCH,
    ("float", "instant"): _FROM_EPOCH,
    ("text", "instant"): "Parse texts into timestamps, e.g. pandas.to_datetime(x, utc=True).",
    ("instant", "naive timestamp"): "The contract wants local times: remove the zone first.",
    ("float", "integer"): (
        "pandas turns integers with gaps into floats: use .astype('Int64') before writing."
    ),
    ("binary", "text"): "Write the column as UTF-8 text, not as bytes.",
}


def misfit_hint(have: pa.DataType, want: pa.DataType) -> str | None:
    """What a person does about a type that does not fit, where experience tells."""
    families = _family(logical(have)), _family(logical(want))
    return _MISFIT_HINTS.get((str(families[0]), str(families[1])))


#: Integers of so many bits are whole in a float of so many bits.
_WHOLE_BITS = {16: 11, 32: 24, 64: 53}
_UNITS = ("s", "ms", "us", "ns")


def widens(old: pa.DataType, new: pa.DataType) -> bool:
    """Whether every value of `old` is, unchanged, a value of `new`: a contract may go that way.

    Integers to wider ones (of another sign where all fit), to decimals and to floats that hold each
    of them; float32 to float64; decimals to ones with no fewer digits on either side of the point;
    seconds to milliseconds to microseconds, but not to nanoseconds, which end in 2262; a day to a
    time without a zone, never to an instant; lists as their elements.
    """
    types = pa.types
    old, new = logical(old), logical(new)
    if old == new or types.is_null(old):
        return True
    if types.is_list(old) and types.is_list(new):
        return widens(old.value_type, new.value_type)
    if types.is_integer(old):
        return _widens_integer(old, new)
    if types.is_floating(old) and types.is_floating(new):
        return bool(old.bit_width <= new.bit_width)
    if types.is_decimal(old) and types.is_decimal(new):
        whole = new.precision - new.scale >= old.precision - old.scale
        return bool(whole and new.scale >= old.scale)
    if types.is_date32(old) and types.is_timestamp(new):
        return new.tz is None and new.unit != "ns"
    return _family(old) is not None and _family(old) == _family(new) and _is_finer(old, new)


def _widens_integer(old: pa.DataType, new: pa.DataType) -> bool:
    signed = pa.types.is_signed_integer(old)
    bits = old.bit_width - signed
    if pa.types.is_integer(new):
        if signed == pa.types.is_signed_integer(new):
            return bool(old.bit_width <= new.bit_width)
        return not signed and bool(old.bit_width < new.bit_width)
    if pa.types.is_floating(new):
        return bool(bits <= _WHOLE_BITS[new.bit_width])
    if pa.types.is_decimal(new):
        return bool(new.precision - new.scale >= len(str(2**bits)))
    return False


def _is_finer(old: pa.DataType, new: pa.DataType) -> bool:
    """Whether values of one family keep what they say; texts have no unit to lose it by."""
    types = pa.types
    if types.is_date(old) or types.is_fixed_size_binary(new):
        return False
    if not types.is_temporal(old):
        return True
    finer = _UNITS.index(new.unit) - _UNITS.index(old.unit)
    ends_early = new.unit == "ns" and not types.is_time(new)
    return finer == 0 or (finer > 0 and not ends_early)


def convert(array: pa.Array, want: pa.DataType) -> tuple[pa.Array, pa.Array | None]:
    """`(values, lossy)`: the column in the contract's type, and which rows lost something.

    `lossy` is None when every value survived. The types must fit (`fits`).
    """
    if array.type == want:
        return array, None
    array = _unwrapped(array)
    narrowing = pa.types.is_floating(want) and pa.types.is_floating(array.type)
    try:
        values = array.cast(want)
        if not narrowing or array.type.bit_width <= want.bit_width:
            return values, None
    except pa.ArrowInvalid:
        values = array.cast(want, safe=False)
    lossy = _lost(array, values)
    return values, (lossy if pc.any(lossy).as_py() else None)


def _unwrapped(array: pa.Array) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if isinstance(array, pa.RunEndEncodedArray):
        array = pc.run_end_decode(array)
    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    return array if logical(array.type) == array.type else _unwrapped(array)


def _lost(array: pa.Array, values: pa.Array) -> pa.Array:
    """Rows whose value does not come back when the conversion is undone."""
    if pa.types.is_nested(array.type):
        return array.is_valid()  # nested values have no comparison: any row may be the one
    if pa.types.is_integer(array.type) and pa.types.is_integer(values.type):
        # Integers that wrap come back unchanged, but have changed their sign or their size.
        bits = values.type.bit_width
        signed = pa.types.is_signed_integer(values.type)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        wide = array.cast(pa.decimal128(20))
        outside = pc.or_(
            pc.less(wide, pa.scalar(low, pa.decimal128(20))),
            pc.greater(wide, pa.scalar(high, pa.decimal128(20))),
        )
        return pc.fill_null(outside, False)  # noqa: FBT003 - a value, not a switch
    changed = pc.not_equal(values.cast(array.type, safe=False), array)
    if pa.types.is_floating(array.type):
        changed = pc.and_not(changed, pc.is_nan(array))
    return pc.fill_null(changed, False)  # noqa: FBT003 - a value, not a switch
