"""One table, read once: rows, content hash, statistics, time bounds, and the contract's rules.

Every batch that comes out of the file goes through all of them before the next one is read, so a
table of any size is judged in bounded memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from bus.column_stats import ColumnStats
from bus.errors import Code, Problem, problem
from bus.hashing import ContentHasher, LossyCast, UnhashableType

if TYPE_CHECKING:
    from pathlib import Path

    from bus.contract import Spec
    from bus.hashing import Column, HashPlan
    from bus.parquet import ParquetSource

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_min_max = pc.get_function("min_max").call


@dataclass(slots=True)
class TableFacts:
    """What one pass over a table found. `content_hash` is None where it is not defined.

    `columns` and `column_stats` are as in `bus.model.ArtifactFacts`; with `problems` the rest may
    be incomplete.
    """

    rows: int = 0
    content_hash: str | None = None
    columns: list[dict[str, Any]] = field(default_factory=list)
    column_stats: list[dict[str, Any]] = field(default_factory=list)
    min_ts: str | None = None
    max_ts: str | None = None
    problems: list[Problem] = field(default_factory=list)


class TablePass:
    """One pass: `run` reads the source to its end."""

    def __init__(
        self, source: ParquetSource, where: str, spec: Spec | None, temp_dir: Path | None = None
    ) -> None:
        self._source = source
        self._where = where
        self._spec = spec
        self._problems = spec.schema_problems(source.schema, where) if spec else []
        self._checker = spec.checker(where) if spec else None
        self._stats = ColumnStats(source.schema)
        self._time = _TimeBounds(source.schema, spec)
        self._lossy: LossyCast | None = None
        self.plan: HashPlan | None = None
        self._hasher = None if self._problems else self._new_hasher(temp_dir)

    def run(self) -> TableFacts:
        """Read every page. Raises `Rejected`, OSError, MemoryError."""
        for batch in self._source.batches():
            known = self._hash(self._hasher, batch) if self._hasher is not None else None
            self._stats.update(batch, known)
            self._time.update(batch)
            if self._checker is not None:
                self._checker.update(batch)
        rows = self._source.rows_read
        if self._checker is not None:
            self._problems += self._checker.finish(rows)
        if self._lossy is not None and not any(p.code is Code.E208 for p in self._problems):
            place = f"{self._where}:{self._lossy.column}"
            self._problems.append(problem(Code.E208, place, str(self._lossy)))
        low, high = self._time.texts()
        return TableFacts(
            rows=rows,
            columns=[{"name": f.name, "type": str(f.type)} for f in self._source.schema],
            column_stats=self._stats.result(),
            min_ts=low,
            max_ts=high,
            problems=self._problems,
        )

    def content_hash(self) -> str | None:
        """After `run`: the hash of the rows, None where it is not defined. Raises `OutOfOrder`."""
        return self._hasher.result() if self._hasher is not None else None

    def _new_hasher(self, temp_dir: Path | None) -> ContentHasher | None:
        try:
            if self._spec is not None:
                self.plan = self._spec.hash_plan(self._source.schema)
            return ContentHasher(self._source.schema, self.plan, temp_dir=temp_dir)
        except (UnhashableType, ValueError):  # ValueError: no hashed column is there
            return None

    def _hash(self, hasher: ContentHasher, batch: pa.RecordBatch) -> dict[str, Column] | None:
        """What the hasher reduced the columns to: the statistics go on from there."""
        try:
            return hasher.update(batch)
        except UnhashableType:
            self._hasher = None
        except LossyCast as error:
            self._hasher = None
            self._lossy = error
        return None


class _TimeBounds:
    """The first and the last moment in the contract's time column."""

    def __init__(self, schema: pa.Schema, spec: Spec | None) -> None:
        name = spec.time_column if spec is not None else None
        self._spec = spec
        self._index = schema.get_field_index(name) if name else -1
        if self._index >= 0 and not _is_time(schema.field(self._index).type):
            self._index = -1
        self._low: Any = None
        self._high: Any = None

    def update(self, batch: pa.RecordBatch) -> None:
        if self._index < 0:
            return
        found = _min_max([batch.column(self._index)])
        low, high = _plain(found["min"]), _plain(found["max"])
        if low is not None:
            self._low = low if self._low is None else min(low, self._low)
            self._high = high if self._high is None else max(high, self._high)

    def texts(self) -> tuple[str | None, str | None]:
        if self._spec is None or self._index < 0:
            return None, None
        return self._spec.time_text(self._low), self._spec.time_text(self._high)


def _is_time(type_: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(type_) or pa.types.is_integer(type_))


def _plain(scalar: pa.Scalar) -> datetime | int | None:
    """Epoch integers as they are; timestamps as aware datetimes, None outside Python's years."""
    if not scalar.is_valid:
        return None
    if not pa.types.is_timestamp(scalar.type):
        return int(scalar.as_py())
    try:
        micros = scalar.cast(pa.timestamp("us", scalar.type.tz), safe=False).value
        return _EPOCH + timedelta(microseconds=micros)
    except (OverflowError, pa.ArrowInvalid):
        return None
