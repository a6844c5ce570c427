"""The contract of one (kind, schema_version): what a table of that kind must look like.

A `Spec` says which columns there are and which rules hold; its `Checker` reads a table batch by
batch and tells every problem: missing columns (E202), wrong types (E203), broken rules (E204),
NULLs (E205), repeated keys (E206), values that do not fit (E208), number of rows (E209).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from bus import rules
from bus.columns import Column, convert, fits, logical, misfit_hint, type_text
from bus.errors import Code, Problem, Refused, problem
from bus.hashing import HashPlan
from bus.model import ID_PATTERN, canonical_json, iso

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SAMPLES = 3
#: Keys held in memory to find repetitions among rows that are not in key order.
MAX_KEY_BYTES = 64 << 20  # grouping takes about six times that
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_UNITS = {"_ms": 1_000, "_us": 1, "_s": 1_000_000}
_compiled = cache(rules.compile_rule)


@dataclass(frozen=True, slots=True)
class Check:
    """A named rule that every row must keep, written in the language of `bus.rules`."""

    name: str
    rule: str


@dataclass(frozen=True)
class Spec:
    """A contract. Changing one is making a new `version`, never an edit.

    columns     what a table must have; others are kept in the file but outside the contract
    sort_by     the order of rows in the content hash (they may arrive in any order)
    key         columns that together are unique within one table
    row_key     `canon.<kind>` shows one row for each value of it, from the newest commit
    time_column bounds of it become the artifact's min_ts and max_ts: a timestamp, or epoch
                integers whose unit ends the column's name (`_ms`, `_us`, `_s`)
    checks      rules that every row keeps
    rows        the exact number of rows, where there is one
    derived     the job must say which inputs it was made from (an empty list is an answer)
    extensible  columns beyond `columns` belong to the table too: hashed, and shown to readers
    open        no contract at all: any columns, no checks
    migrations  how tables of older versions are read as this one: version -> SELECT over `old`; only
                needed where `bus.evolution` calls the change incompatible, and no part of what
                tables are held to, so it may be corrected at any time
    """

    kind: str
    version: int = 1
    columns: tuple[Column, ...] = ()
    sort_by: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    row_key: str | None = None
    time_column: str | None = None
    checks: tuple[Check, ...] = ()
    rows: int | None = None
    derived: bool = False
    extensible: bool = False
    open: bool = False
    description: str = field(default="", compare=False)
    migrations: Mapping[int, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        found = [problem(Code.E103, self.where, text, "") for text in self._contradictions()]
        if found:
            raise Refused.of(found)

    @property
    def where(self) -> str:
        """How messages name this spec: ``kinds.alerts_std v1``."""
        return f"kinds.{self.kind} v{self.version}"

    def column(self, name: str) -> Column | None:
        """The column of that name."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    @cached_property
    def schema(self) -> pa.Schema:
        """An empty table of this kind: every column, in order."""
        return pa.schema([pa.field(c.name, c.type, c.nullable) for c in self.columns])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything a table is held to: equal contracts have equal fingerprints.

        Lakes remember it: what is said here, and how, must stay the same for ever.
        """
        facts = {
            "kind": self.kind,
            "version": self.version,
            "columns": [[c.name, str(c), c.hashed] for c in self.columns],
            "sort_by": self.sort_by,
            "key": self.key,
            "row_key": self.row_key,
            "time_column": self.time_column,
            "checks": [[c.name, c.rule] for c in self.checks],
            "rows": self.rows,
            "derived": self.derived,
            "extensible": self.extensible,
            "open": self.open,
        }
        return hashlib.sha256(canonical_json(facts)).hexdigest()

    def undeclared(self, inputs: Sequence[str] | None, where: str) -> list[Problem]:
        """What is wrong with `inputs`, those that a job says an artifact was made from."""
        if not self.derived or inputs is not None:
            return []
        message = f"{self.kind} is made from other artifacts: say which, or [] for none"
        return [problem(Code.E103, f"{where}.inputs", message)]

    # ── a file against the contract ───────────────────────────────────────────────────────────

    def extra_columns(self, schema: pa.Schema) -> list[str]:
        """Columns of a file that the contract does not know; they are kept, but not hashed."""
        if self.open or self.extensible:
            return []
        return [name for name in schema.names if name not in self._by_name]

    def schema_problems(self, schema: pa.Schema, where: str) -> list[Problem]:
        """Missing columns (E202) and columns of the wrong type (E203)."""
        found = []
        for column in self.columns:
            index = schema.get_field_index(column.name)
            if index < 0 and column.name not in schema.names and not column.optional:
                near = _nearest(column.name, schema.names)
                found.append(
                    problem(Code.E202, f"{where}:{column.name}", self._missing(column, near))
                )
            elif index >= 0 and not fits(schema.field(index).type, column.type):
                found.append(self._misfit(column, schema.field(index).type, where))
        return found

    def _missing(self, column: Column, near: str | None) -> str:
        asked = f"; is it {near!r}?" if near else ""
        return f"{self.kind} v{self.version} needs {column.name} ({type_text(column.type)}){asked}"

    def _misfit(self, column: Column, have: pa.DataType, where: str) -> Problem:
        return problem(
            Code.E203,
            f"{where}:{column.name}",
            f"{type_text(logical(have))} where {self.kind} v{self.version} says "
            f"{type_text(column.type)}",
            misfit_hint(have, column.type),
        )

    def checker(self, where: str) -> Checker:
        """Reads the rows of one file; `where` names the file in problems."""
        return Checker(self, where)

    def hash_plan(self, schema: pa.Schema) -> HashPlan:
        """Which columns of a file are hashed, as what types, in which order (CONTENT_HASH.md).

        Ask only when `schema_problems` found nothing: ValueError when no hashed column is there.
        """
        if self.open:
            return HashPlan.for_schema(schema)
        hashed: dict[str, pa.DataType | None] = {
            c.name: c.type for c in self.columns if c.hashed and c.name in schema.names
        }
        if self.extensible:
            hashed |= {name: None for name in schema.names if name not in self._by_name}
        return HashPlan(hashed, tuple(name for name in self.sort_by if name in hashed))

    def time_text(self, value: datetime | int | None) -> str | None:
        """A smallest or largest value of the time column as ISO 8601 UTC; None out of range."""
        if value is None or self.time_column is None:
            return None
        if isinstance(value, datetime):
            return iso(value if value.tzinfo else value.replace(tzinfo=UTC))
        try:
            return iso(_EPOCH + timedelta(microseconds=value * self._epoch_unit_us))
        except OverflowError:
            return None

    @property
    def _epoch_unit_us(self) -> int:
        name = self.time_column or ""
        return next((us for end, us in _EPOCH_UNITS.items() if name.endswith(end)), 0)

    # ── the contract against itself ───────────────────────────────────────────────────────────

    def _contradictions(self) -> Iterable[str]:
        if not re.match(ID_PATTERN, self.kind):
            yield f"{self.kind[:160]!r} is not a kind's name"
        if self.version < 1:
            yield "versions begin at 1"
        names = [c.name for c in self.columns]
        if len({n.casefold() for n in names}) != len(names):
            yield "two columns of one name"
        if bool(self.columns) == self.open:
            yield "a contract has columns, an open one has none"
        named = (*self.sort_by, *self.key, self.row_key, self.time_column)
        yield from (f"no column {n!r}" for n in named if n is not None and n not in names)
        if self.columns and not any(c.hashed for c in self.columns):
            yield "no column is hashed"
        for version, sql in self.migrations.items():
            if version >= self.version:
                yield f"a migration from v{version} leads to no later version"
            if not isinstance(sql, str):
                yield f"the migration from v{version} is no SELECT"
        yield from self._weak_columns()
        yield from self._unusable_checks()

    def _weak_columns(self) -> Iterable[str]:
        for name in self.sort_by:
            column = self.column(name)
            if column is not None and (not column.hashed or pa.types.is_nested(column.type)):
                yield f"sort_by column {name!r} is nested or not hashed"
        for name in (*self.key, *([self.row_key] if self.row_key else [])):
            column = self.column(name)
            if column is not None and (column.nullable or column.optional):
                yield f"key column {name!r} must not be NULL: write its type with a !"
            if column is not None and pa.types.is_nested(column.type):
                yield f"key column {name!r} is nested"
        time = self.column(self.time_column) if self.time_column else None
        if time is None or pa.types.is_timestamp(time.type):
            return
        if not (pa.types.is_integer(time.type) and self._epoch_unit_us):
            yield f"time column {time.name!r} is neither a timestamp nor epoch integers ending in _ms"

    def _unusable_checks(self) -> Iterable[str]:
        types = {c.name: c.type for c in self.columns}
        for check in self.checks:
            try:
                _compiled(check.rule).check_types(types)
            except rules.RuleError as error:
                yield f"check {check.name!r}: {error}"


def _nearest(name: str, names: list[str]) -> str | None:
    plain = name.replace("_", "").casefold()
    return next((n for n in names if n.replace("_", "").casefold() == plain), None)


# ── rows ──────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Finding:
    """How many rows have one problem, and the first few of them."""

    rows: int = 0
    samples: list[str] = field(default_factory=list)

    def add(self, broken: pa.Array, first_row: int, columns: dict[str, pa.Array]) -> None:
        """Count the true rows of `broken`; show the values of `columns` in the first ones."""
        self.rows += pc.sum(broken).as_py() or 0
        if len(self.samples) >= SAMPLES:
            return
        for row in pc.indices_nonzero(broken)[: SAMPLES - len(self.samples)].to_pylist():
            values = ", ".join(f"{n}={_shown(a[row])}" for n, a in columns.items())
            self.samples.append(f"row {first_row + row}" + (f" ({values})" if values else ""))

    def __str__(self) -> str:
        rows = "1 row" if self.rows == 1 else f"{self.rows:,} rows"
        more = ", …" if self.rows > len(self.samples) else ""
        return f"{rows}, counted from 0: {', '.join(self.samples)}{more}"


def _shown(value: pa.Scalar) -> str:
    """A value as a message shows it. Times go through Arrow: Python has no nanoseconds."""
    temporal = pa.types.is_temporal(value.type)
    text = str(value.cast(pa.string())) if temporal else repr(value.as_py())
    return text if len(text) <= 40 else text[:37] + "…"  # noqa: PLR2004 - a message, not a dump


class Checker:
    """Holds the rows of one file against a contract, a batch at a time, in bounded memory."""

    def __init__(self, spec: Spec, where: str) -> None:
        self._spec = spec
        self._where = where
        self._row = 0
        self._findings: dict[tuple[Code, str], _Finding] = {}
        self._key = _UniqueKey() if spec.key else None

    def update(self, batch: pa.RecordBatch) -> None:
        """Look at the next rows. Columns that are missing or of a wrong type are passed over."""
        columns = self._columns(batch)
        for check in self._spec.checks:
            self._hold(check, columns, batch.num_rows)
        if self._key is not None and all(name in columns for name in self._spec.key):
            self._key.update([columns[name] for name in self._spec.key])
        self._row += batch.num_rows

    def _columns(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        found = {}
        for column in self._spec.columns:
            index = batch.schema.get_field_index(column.name)
            if index < 0 or not fits(batch.schema.field(index).type, column.type):
                continue
            raw = batch.column(index)
            values, lossy = convert(raw, column.type)
            if lossy is not None:
                self._note(Code.E208, column.name, lossy, {column.name: raw})
            if not column.nullable:
                self._hold_full(column, values)
            found[column.name] = values
        return found

    def _hold_full(self, column: Column, values: pa.Array) -> None:
        """NULLs, and NaN, which pandas writes for a value that is missing."""
        if pa.types.is_floating(values.type):
            missing = values.is_null(nan_is_null=True)
            if missing.true_count:
                self._note(Code.E205, column.name, missing, {column.name: values})
        elif values.null_count:
            self._note(Code.E205, column.name, values.is_null(), {})

    def _hold(self, check: Check, columns: dict[str, pa.Array], rows: int) -> None:
        rule = _compiled(check.rule)
        read = {}
        for name in rule.columns:
            column = self._spec.column(name)
            if name in columns:
                read[name] = columns[name]
            elif column is not None and column.optional:
                read[name] = pa.nulls(rows, column.type)
            else:
                return  # missing or misfit: said already, and nothing can be computed
        broken = rule.broken(read)
        if pc.any(broken).as_py():
            self._note(Code.E204, check.name, broken, read)

    def _note(self, code: Code, name: str, broken: pa.Array, columns: dict[str, pa.Array]) -> None:
        self._findings.setdefault((code, name), _Finding()).add(broken, self._row, columns)

    def finish(self, rows: int) -> list[Problem]:
        """Every problem found, after the last batch. `rows`: how many the file really has."""
        found = [self._problem(code, name, f) for (code, name), f in sorted(self._findings.items())]
        if self._key is not None and (repeated := self._key.finish(self._spec.key)):
            found.append(problem(Code.E206, f"{self._where}:{','.join(self._spec.key)}", *repeated))
        if self._spec.rows is not None and rows != self._spec.rows:
            message = f"{rows:,} rows; {self._spec.kind} has exactly {self._spec.rows:,}"
            found.append(problem(Code.E209, self._where, message))
        return found

    def _problem(self, code: Code, name: str, finding: _Finding) -> Problem:
        message = str(finding)
        if code is Code.E204:
            rule = next(c.rule for c in self._spec.checks if c.name == name)
            message = f"not {rule}: {message}"
        column = self._spec.column(name)
        if code is Code.E208 and column is not None:
            message = f"not without loss as {type_text(column.type)}: {message}"
        return problem(code, f"{self._where}:{name}", message)


class _UniqueKey:
    """Finds repeated keys.

    Rows in strictly ascending key order are proven unique by comparing neighbours, whatever their
    number. Otherwise all keys are held and grouped at the end, up to `MAX_KEY_BYTES`; a larger
    table must be in key order to be accepted, so that no key is ever left unproven.
    """

    def __init__(self) -> None:
        self._ascending = True
        self._held: list[list[pa.Array]] | None = []
        self._held_bytes = 0
        self._last: list[pa.Array] | None = None

    def update(self, key: list[pa.Array]) -> None:
        if len(key[0]) == 0:
            return
        if self._ascending:
            joined = key
            if self._last is not None:
                pairs = zip(self._last, key, strict=True)
                joined = [pa.concat_arrays([last, column]) for last, column in pairs]
            self._ascending = _strictly_ascending(joined)
            self._last = [column[-1:] for column in key]
        if self._held is not None:
            self._held.append(key)
            self._held_bytes += sum(column.nbytes for column in key)
            if self._held_bytes > MAX_KEY_BYTES:
                self._held = None

    def finish(self, names: tuple[str, ...]) -> tuple[str, str | None] | None:
        """`(message, hint)` of the problem, or None."""
        if self._ascending:
            return None
        if self._held is None:
            columns = ", ".join(names)
            return (
                f"more than {MAX_KEY_BYTES >> 20} MiB of keys, and not in the order of {columns}",
                f"Sort the rows by {columns}: a table of this size is only checked in key order.",
            )
        table = pa.table([pa.chunked_array(list(c)) for c in zip(*self._held, strict=True)], names)
        counts = table.group_by(list(names)).aggregate([([], "count_all")])
        repeated = counts.filter(pc.greater(counts["count_all"], 1))
        if repeated.num_rows == 0:
            return None
        surplus = pc.sum(repeated["count_all"]).as_py() - repeated.num_rows
        first = "; ".join(
            ", ".join(f"{n}={_shown(repeated[n][row])}" for n in names)
            + f" ({repeated['count_all'][row]} times)"
            for row in range(min(SAMPLES, repeated.num_rows))
        )
        more = "; …" if repeated.num_rows > SAMPLES else ""
        rows = "1 row" if surplus == 1 else f"{surplus:,} rows"
        return f"{rows} too many: {first}{more}", None


def _strictly_ascending(columns: list[pa.Array]) -> bool:
    """Whether each row is greater than the one before, compared column by column."""
    greater: Any = pa.scalar(value=False)
    for column in reversed(columns):
        before, after = column[:-1], column[1:]
        above = pc.greater(after, before)
        greater = pc.or_(above, pc.and_(pc.equal(after, before), greater))
    return bool(pc.all(pc.fill_null(greater, False)).as_py())  # noqa: FBT003 - a value
