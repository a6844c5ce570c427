"""JSON as the bus takes it: what every program reads the same way, and nothing else."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, strategies as st

from bus.strict_json import MAX_DEPTH, MAX_SIZE_BYTES, MAX_STRING_BYTES, StrictJsonError, loads


def refusal(data: bytes, **options: Any) -> tuple[str, str, str]:
    """(code, place, message) of the one problem."""
    with pytest.raises(StrictJsonError) as caught:
        loads(data, where="manifest.json", **options)
    found = caught.value.problem
    return str(found.code), found.where, found.message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"NaN", "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b"[1e400]", "number 1e400 is out of range"),
        (b"[-1e999]", "number -1e999 is out of range"),
        (b"9223372036854775808", "integer 9223372036854775808 does not fit 64 bits"),
        (b"-9223372036854775809", "integer -9223372036854775809 does not fit 64 bits"),
        (b"1" * 5000, f"integer {'1' * 40} does not fit 64 bits"),
        (b'{"a": 1, "a": 1}', "key 'a' occurs twice"),
        (b'{"b": {"a": 1, "c": 2, "a": 3}}', "key 'a' occurs twice"),
        (b'{"a": 1, "\\u0061": 2}', "key 'a' occurs twice"),
        (b"\xef\xbb\xbf{}", "starts with a byte order mark; write plain UTF-8"),
        (b"\xff\xfe{\x00}\x00", "starts with a byte order mark; write plain UTF-8"),
        (b'{"a": "\xe4"}', "byte 7 is not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "byte 7 is not UTF-8"),
        (b'["\\ud800"]', "text holds a lone surrogate"),
        (b'{"\\udfff": 1}', "text holds a lone surrogate"),
    ],
)
def test_what_two_programs_would_read_differently_is_refused(data: bytes, message: str) -> None:
    code, _, found = refusal(data)
    assert (code, found) == ("E102", message)


@pytest.mark.parametrize(
    "data", [b"", b" ", b"{", b'{"a"}', b"[1,]", b"{'a': 1}", b"[1] 2", b"01", b'"\t"', b"nul"]
)
def test_a_syntax_error_names_line_and_column(data: bytes) -> None:
    code, where, _ = refusal(b"\n\n" + data)
    assert code == "E102"
    assert where.startswith("manifest.json:3:")


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "manifest.json" + "[0]" * MAX_DEPTH),
        (b"[" * 200_000, "manifest.json"),
        (b'{"a":' * 200_000, "manifest.json"),
        (b'{"meta": {"a": "' + b"x" * (MAX_STRING_BYTES + 1) + b'"}}', "manifest.json.meta.a"),
        (b'{"' + b"k" * (MAX_STRING_BYTES + 1) + b'": 1}', "manifest.json"),
        (b" " * (MAX_SIZE_BYTES + 1), "manifest.json"),
    ],
    ids=["one too deep", "very deep list", "very deep object", "long text", "long key", "large"],
)
def test_a_document_over_a_limit_is_e107_and_says_where(data: bytes, where: str) -> None:
    code, place, _ = refusal(data)
    assert (code, place) == ("E107", where)


def test_the_text_limit_counts_bytes_as_its_name_says() -> None:
    fits = json.dumps("ä" * (MAX_STRING_BYTES // 2), ensure_ascii=False).encode()
    assert loads(fits, where="x") == "ä" * (MAX_STRING_BYTES // 2)
    code, _, _ = refusal(json.dumps("ä" * (MAX_STRING_BYTES // 2 + 1)).encode())
    assert code == "E107"


def test_what_lies_just_within_the_limits_is_read() -> None:
    deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert loads(deep, where="x") == json.loads(deep)
    long = json.dumps("x" * MAX_STRING_BYTES).encode()
    assert loads(long, where="x") == "x" * MAX_STRING_BYTES
    ends = b"[9223372036854775807, -9223372036854775808, 1.7976931348623157e308, 5e-324, -0.0]"
    assert loads(ends, where="x") == json.loads(ends)


def test_the_size_limit_may_be_set_by_the_caller() -> None:
    assert loads(b"[1]", where="x", max_size_bytes=3) == [1]
    code, _, message = refusal(b"[1]", max_size_bytes=2)
    assert (code, message) == ("E107", "3 bytes; at most 2 are read")


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
).filter(lambda value: "\\ud" not in json.dumps(value))


@given(_VALUES)
def test_honest_json_is_read_as_python_reads_it(value: Any) -> None:
    data = json.dumps(value).encode()
    assert loads(data, where="x") == json.loads(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_either_read_or_refused_with_one_problem(data: bytes) -> None:
    try:
        value = loads(data, where="x")
    except StrictJsonError as error:
        assert str(error.problem.code) in {"E102", "E107"}
    else:
        assert value == json.loads(data)


def test_refusing_a_large_document_takes_no_longer_than_reading_it() -> None:
    keys = ",".join(f'"{n}":0' for n in range(90_000))
    started_s = time.monotonic()
    code, _, message = refusal(f'{{{keys},"89999":1}}'.encode())
    assert (code, message) == ("E102", "key '89999' occurs twice")
    assert time.monotonic() - started_s < 5
