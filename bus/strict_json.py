"""JSON as the bus accepts it: UTF-8, finite numbers, unique keys, bounded size and depth.

Python's own reader takes NaN, Infinity and repeated keys, turns 1e400 into infinity and dies of
recursion on deep input; a manifest that two programs read differently is no contract.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, NoReturn

from bus.errors import Code, Problem, problem

MAX_SIZE_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_STRING_BYTES = 4096
_INT64 = range(-(2**63), 2**63)


class StrictJsonError(ValueError):
    """The text is not acceptable; `problem` says what and where."""

    def __init__(self, found: Problem) -> None:
        super().__init__(found.message)
        self.problem = found


def loads(data: bytes, *, where: str, max_size_bytes: int = MAX_SIZE_BYTES) -> Any:
    """Parse `data`, or raise `StrictJsonError` (E102 not strict JSON, E107 over a limit).

    `where` names the document in the problem, e.g. ``manifest.json``.
    """
    if len(data) > max_size_bytes:
        raise _limit(where, f"{len(data):,} bytes; at most {max_size_bytes:,} are read")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise _bad(where, "starts with a byte order mark; write plain UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(where, f"byte {error.start} is not UTF-8") from None
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_int64,
            object_pairs_hook=_unique,
        )
    except _FormError as error:
        raise _bad(where, str(error)) from None
    except json.JSONDecodeError as error:
        place = f"{where}:{error.lineno}:{error.colno}"
        raise _bad(place, error.msg) from None
    except RecursionError:
        raise _limit(where, f"nested deeper than {MAX_DEPTH} levels") from None
    _check_limits(value, where, depth=1)
    return value


class _FormError(ValueError):
    pass


def _refuse_constant(name: str) -> NoReturn:
    raise _FormError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _FormError(f"number {text[:40]} is out of range")
    return value


def _int64(text: str) -> int:
    if len(text) > 20 or int(text) not in _INT64:  # noqa: PLR2004 - sign and 19 digits
        raise _FormError(f"integer {text[:40]} does not fit 64 bits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        repeated = next(key for key, times in Counter(k for k, _ in pairs).items() if times > 1)
        raise _FormError(f"key {repeated[:80]!r} occurs twice")
    return result


def _check_limits(value: Any, where: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _limit(where, f"nested deeper than {MAX_DEPTH} levels")
    match value:
        case str():
            _check_string(value, where)
        case list():
            for index, item in enumerate(value):
                _check_limits(item, f"{where}[{index}]", depth + 1)
        case dict():
            for key, item in value.items():
                _check_string(key, where)
                _check_limits(item, f"{where}.{key[:80]}", depth + 1)


def _check_string(text: str, where: str) -> None:
    try:
        size_bytes = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise _bad(where, "text holds a lone surrogate") from None
    if size_bytes > MAX_STRING_BYTES:
        raise _limit(where, f"text of {size_bytes:,} bytes; at most {MAX_STRING_BYTES:,}")


def _bad(where: str, message: str) -> StrictJsonError:
    return StrictJsonError(problem(Code.E102, where, message))


def _limit(where: str, message: str) -> StrictJsonError:
    return StrictJsonError(problem(Code.E107, where, message))
