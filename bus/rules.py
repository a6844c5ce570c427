"""A small language for rules over the columns of a table, evaluated in Arrow.

    high >= low and volume >= 0
    chain in ('solana', 'evm')
    price between 0 and 1e9 or price is null
    not (stop_out and exit_reason = 'target')

Operands are columns (bare or in double quotes), numbers, 'texts', true and false; comparisons are
= == != <> < <= > >=, `in`, `between`, `is null`, `is not null`; they are joined by and, or, not.
A text compared with a timestamp column is read as an ISO 8601 instant.

As in SQL, a comparison with NULL is unknown, and a rule is broken only where it is *false*: gaps
in market data break no rule. NaN counts as NULL. There is no eval and no SQL engine behind this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

MAX_RULE_CHARACTERS = 1000
MAX_NESTING = 30

Columns = Mapping[str, pa.Array]
_Node = Callable[[Columns], Any]

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<text>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")+")
    | (?P<word>[^\W\d]\w*)
    | (?P<sign><=|>=|<>|!=|==|=|<|>|\(|\)|,)
    )""",
    re.VERBOSE,
)
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_KEYWORDS = {"and", "or", "not", "in", "between", "is", "null", "true", "false"}


class RuleError(ValueError):
    """The rule's text is not of the language, or does not fit the columns."""


@dataclass(frozen=True)
class Rule:
    """A compiled rule: `columns` it reads; `broken(columns)` is true where a row breaks it."""

    text: str
    columns: tuple[str, ...]
    _node: _Node = field(repr=False, compare=False)

    def broken(self, columns: Columns) -> pa.Array:
        """Which rows break the rule. `columns` holds one Arrow array for each column it reads."""
        holds = self._node(columns)
        if isinstance(holds, pa.Scalar):  # a rule of constants only
            raise RuleError("names no column")
        return pc.invert(pc.fill_null(holds, True))  # noqa: FBT003 - a value, not a switch

    def check_types(self, types: Mapping[str, pa.DataType]) -> None:
        """Raise `RuleError` unless the rule can be evaluated over columns of these types."""
        unknown = [name for name in self.columns if name not in types]
        if unknown:
            raise RuleError(f"no column {unknown[0]!r}")
        try:
            self.broken({name: pa.nulls(0, types[name]) for name in self.columns})
        except (pa.ArrowException, TypeError) as error:
            raise RuleError(str(error)) from None


def compile_rule(text: str) -> Rule:
    """Parse a rule. Raises `RuleError` that says at which character it stops making sense."""
    parser = _Parser(text)
    node = parser.parse()
    return Rule(text, tuple(dict.fromkeys(parser.columns)), node)


class _Parser:
    """Recursive descent: either ← both ← negated ← predicate ← operand."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_RULE_CHARACTERS:
            raise RuleError(f"longer than {MAX_RULE_CHARACTERS} characters")
        self.columns: list[str] = []
        self._text = text
        self._tokens = _tokens(text)
        self._next = 0
        self._depth = 0

    def parse(self) -> _Node:
        node = self._either()
        if self._peek() is not None:
            raise self._unexpected("and, or, or the end")
        return node

    # ── tokens ────────────────────────────────────────────────────────────────────────────────

    def _peek(self) -> str | None:
        """The next sign or keyword in lower case; "" for another token, None at the end."""
        if self._next == len(self._tokens):
            return None
        kind, value, _ = self._tokens[self._next]
        if kind == "sign" or (kind == "word" and value.lower() in _KEYWORDS):
            return value.lower()
        return ""

    def _take(self, *wanted: str) -> str | None:
        """Consume the next token if it is one of these signs or keywords."""
        found = self._peek()
        if found and found in wanted:
            self._next += 1
            return found
        return None

    def _expect(self, wanted: str) -> None:
        if self._take(wanted) is None:
            raise self._unexpected(repr(wanted))

    def _unexpected(self, wanted: str) -> RuleError:
        if self._next == len(self._tokens):
            return RuleError(f"{wanted} expected at the end of {self._text!r}")
        _, value, at = self._tokens[self._next]
        return RuleError(f"{wanted} expected at character {at + 1}, found {value!r}")

    # ── grammar ───────────────────────────────────────────────────────────────────────────────

    def _either(self) -> _Node:
        node = self._both()
        while self._take("or"):
            node = partial(_join, pc.or_kleene, node, self._both())
        return node

    def _both(self) -> _Node:
        node = self._negated()
        while self._take("and"):
            node = partial(_join, pc.and_kleene, node, self._negated())
        return node

    def _negated(self) -> _Node:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise RuleError(f"nested deeper than {MAX_NESTING}")
        try:
            if self._take("not"):
                return partial(_invert, self._negated())
            return self._predicate()
        finally:
            self._depth -= 1

    def _predicate(self) -> _Node:
        if self._take("("):
            node = self._either()
            self._expect(")")
            return node
        return self._comparison(self._operand())

    def _comparison(self, left: _Node) -> _Node:
        if sign := self._take(*_COMPARISONS):
            return partial(_compare, _COMPARISONS[sign], left, self._operand())
        if self._take("is"):
            return self._is_null(left)
        if self._take("not"):
            return partial(_invert, self._null_or_range(left))
        if self._peek() in {"in", "between"}:
            return self._range(left)
        return left  # a boolean column by itself

    def _null_or_range(self, left: _Node) -> _Node:
        """What follows "price not": null (as people write it in DDL), in or between."""
        return partial(_null, left) if self._take("null") else self._range(left)

    def _is_null(self, left: _Node) -> _Node:
        negated = self._take("not")
        self._expect("null")
        node = partial(_null, left)
        return partial(_invert, node) if negated else node

    def _range(self, left: _Node) -> _Node:
        if self._take("between"):
            low = self._operand()
            self._expect("and")
            return partial(_between, left, low, self._operand())
        self._expect("in")
        self._expect("(")
        choices = [self._operand()]
        while self._take(","):
            choices.append(self._operand())
        self._expect(")")
        return partial(_among, left, choices)

    def _operand(self) -> _Node:
        if self._next == len(self._tokens) or (
            self._peek() and self._peek() not in {"true", "false"}
        ):
            raise self._unexpected("a column or a value")
        kind, value, _ = self._tokens[self._next]
        self._next += 1
        if kind in {"number", "text"} or value.lower() in {"true", "false"}:
            return partial(_literal, _value(kind, value))
        name = value[1:-1].replace('""', '"') if kind == "quoted" else value
        self.columns.append(name)
        return partial(_column, name)


def _tokens(text: str) -> list[tuple[str, str, int]]:
    found, at, end = [], 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            raise RuleError(f"cannot read {text[at : at + 20].strip()!r} at character {at + 1}")
        kind = str(match.lastgroup)
        found.append((kind, match.group(kind), match.start(kind)))
        at = match.end()
    if not found:
        raise RuleError("the rule is empty")
    return found


def _value(kind: str, text: str) -> pa.Scalar:
    if kind == "text":
        return pa.scalar(text[1:-1].replace("''", "'"))
    if kind == "number":
        return pa.scalar(int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text))
    return pa.scalar(text.lower() == "true")


# ── evaluation: each function is a node once its operands are bound ──────────────────────────────


def _literal(value: pa.Scalar, _: Columns) -> pa.Scalar:
    return value


def _column(name: str, columns: Columns) -> pa.Array:
    array = columns[name]
    if pa.types.is_floating(array.type):
        return pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    return array


def _join(function: Callable[[Any, Any], Any], left: _Node, right: _Node, columns: Columns) -> Any:
    return function(left(columns), right(columns))


def _invert(node: _Node, columns: Columns) -> Any:
    return pc.invert(node(columns))


def _null(node: _Node, columns: Columns) -> Any:
    return pc.is_null(node(columns))


def _compare(sign: Callable[[Any, Any], Any], left: _Node, right: _Node, columns: Columns) -> Any:
    return sign(*_alike(left(columns), right(columns)))


def _between(value: _Node, low: _Node, high: _Node, columns: Columns) -> Any:
    return pc.and_kleene(
        _compare(pc.greater_equal, value, low, columns),
        _compare(pc.less_equal, value, high, columns),
    )


def _among(value: _Node, choices: list[_Node], columns: Columns) -> Any:
    found = _compare(pc.equal, value, choices[0], columns)
    for choice in choices[1:]:
        found = pc.or_kleene(found, _compare(pc.equal, value, choice, columns))
    return found


def _alike(left: Any, right: Any) -> tuple[Any, Any]:
    """Read a text literal as the type of the column it is compared with (instants, dates)."""
    if isinstance(left, pa.Scalar) and not isinstance(right, pa.Scalar):
        return _as(left, right.type), right
    if isinstance(right, pa.Scalar) and not isinstance(left, pa.Scalar):
        return left, _as(right, left.type)
    return left, right


def _as(literal: pa.Scalar, wanted: pa.DataType) -> pa.Scalar:
    return literal.cast(wanted) if pa.types.is_temporal(wanted) else literal
