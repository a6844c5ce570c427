"""The rows in which two tables differ, as multisets, found by DuckDB in bounded memory.

What remains of each table after its equal row groups were left out (`chunks`) is looked at row by
row where row groups lie side by side: only the columns whose bytes differ are decoded. Where many
rows differ, because they moved, everything from there on is joined. Rows that are equal take each
other away wherever they lie, so that the result depends on the rows alone, not on how they were
found.

NULL equals NULL, NaN equals NaN, -0.0 equals 0.0; values are compared exactly, in the type that both
tables have or in the wider of the two.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from bus.diff.chunks import layout
from bus.diff.tables import Tables, names_of, plain
from bus.snapshot import closed_database, plain_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bus.diff.chunks import Layout, Stored
    from bus.diff.tables import Shared

#: So few rows are grouped at once; for more it pays to look for columns to join by.
_FEW_ROWS = 100_000
#: A column with so many different values among its rows may be unique, and is worth a check.
_NEARLY_UNIQUE = 0.9
#: So many columns, at most, are tried as such.
_TRIED_COLUMNS = 50
_BATCH_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Change:
    """A row that both tables have by its key: ``cells[name] = (before, after)`` where it changed."""

    key: dict[str, Any]
    cells: dict[str, tuple[Any, Any]]


@dataclass(slots=True)
class RowDifference:
    """How the rows of two tables differ.

    added, removed, changed  numbers of rows; nothing is `changed` where rows have no key
    cells                    changed cells of each column that has any
    first_*                  the first few of each, in the order of the key (or of the whole rows)
    key_repeats              rows that differ share a key, so that they were compared as a whole
    row_groups_read          row groups of both files that were decoded, in some column at least
    """

    added: int = 0
    removed: int = 0
    changed: int = 0
    cells: dict[str, int] = field(default_factory=dict)
    first_added: list[dict[str, Any]] = field(default_factory=list)
    first_removed: list[dict[str, Any]] = field(default_factory=list)
    first_changed: list[Change] = field(default_factory=list)
    key_repeats: bool = False
    row_groups_read: int = 0


def row_difference(
    a: Stored,
    b: Stored,
    columns: Sequence[Shared],
    key: Sequence[str],
    *,
    limit: int,
    **database: Any,
) -> RowDifference:
    """Compare the rows of `a` and `b` in these columns; `key` names some of them, or none.

    `database` is as for `closed_database`. Raises duckdb.Error, and what reading the files raises.
    """
    parts = layout(a, b, [column.name for column in columns])
    found = RowDifference()
    if parts.pairs or parts.alone_a or parts.alone_b:
        for chosen in _choices(columns, key, parts):
            found = _compared(Tables(a, b, chosen), parts, key, limit, database)
            if not found.key_repeats:
                break
    found.row_groups_read = 2 * len(parts.pairs) + len(parts.alone_a) + len(parts.alone_b)
    return found


def _choices(
    columns: Sequence[Shared], key: Sequence[str], parts: Layout
) -> Iterator[list[Shared]]:
    """Which columns to compare: those that can differ, if that may do, and then all.

    It does where no row has moved, the key is the same everywhere, and no key repeats among the
    rows that differ: then each of these has its fellow at its side, equal in all other columns.
    """
    differing = parts.columns
    if key and differing is not None and not differing & set(key):
        yield [c for c in columns if c.name in differing or c.name in key]
    yield list(columns)


def _compared(
    tables: Tables, parts: Layout, key: Sequence[str], limit: int, database: dict[str, Any]
) -> RowDifference:
    """Once with DuckDB reading the files; if it cannot, or would lose digits, with Arrow."""
    last: duckdb.Error | None = None
    for bring in (tables.bring, tables.bring_through_arrow):
        with closed_database([], [tables.a.path, tables.b.path], **database) as db:
            try:
                rows = bring(db, parts)
                return _Comparison(db, tables.columns, key, *rows).result(limit)
            except duckdb.OutOfMemoryException:  # the other way needs no less
                raise
            except duckdb.Error as error:
                last = error
    assert last is not None  # noqa: S101 - both ways ended so
    raise last


# ── comparing them ────────────────────────────────────────────────────────────────────────────────


class _Comparison:
    """What differs between the relations `a` and `b`."""

    def __init__(
        self,
        db: duckdb.DuckDBPyConnection,
        columns: Sequence[Shared],
        key: Sequence[str],
        rows_a: int,
        rows_b: int,
    ) -> None:
        self._db = db
        self._columns = columns
        self._names = names_of(columns)
        numbers = {column.name: number for number, column in enumerate(columns)}
        self._key = [f"c{numbers[name]}" for name in key]
        self._rows_a, self._rows_b = rows_a, rows_b

    def result(self, limit: int) -> RowDifference:
        """The difference, and the first `limit` rows of each sort."""
        pairing = self._pairing()
        if pairing is None or not self._join(pairing):
            self._group()
        if self._key and not self._repeats():
            return self._by_key(limit)
        rows = "SELECT coalesce(sum(-w) FILTER (w < 0), 0), coalesce(sum(w) FILTER (w > 0), 0)"
        ((removed, added),) = self._rows(f"{rows} FROM differing")
        return RowDifference(
            added=int(added),
            removed=int(removed),
            first_removed=self._first(self._repeated("w < 0", limit), self._names, limit, removed),
            first_added=self._first(self._repeated("w > 0", limit), self._names, limit, added),
            key_repeats=bool(self._key),
        )

    # `differing`: the rows of one table that the other has not, with w = how often, negative where
    # they are the first table's. As many rows as are in both, however often, have gone.

    def _group(self) -> None:
        """Count the rows of one against those of the other: right for all, slow for many."""
        listed = ", ".join(self._names)
        self._db.execute(
            "CREATE TEMP TABLE differing AS "  # noqa: S608 - names of our own
            f"SELECT {listed}, sum(w)::BIGINT AS w FROM ("
            f"SELECT {listed}, -1 AS w FROM a UNION ALL SELECT {listed}, 1 FROM b) "
            f"GROUP BY {listed} HAVING sum(w) <> 0"
        )

    def _pairing(self) -> list[str] | None:
        """Columns that are unique in `b`: rows that are equal meet in a join by them."""
        if self._rows_b < _FEW_ROWS:
            return None
        for columns in self._promising():
            repeated = f"SELECT 1 FROM b GROUP BY {', '.join(columns)} HAVING count(*) > 1 LIMIT 1"  # noqa: S608 - names of our own
            if not self._rows(repeated):
                return columns
        return None

    def _promising(self) -> Iterator[list[str]]:
        """Columns that may be unique: the key, and the one with most different values in a sample."""
        if self._key:
            yield self._key
        flat = [
            name
            for name, column in zip(self._names, self._columns, strict=True)
            if not pa.types.is_nested(column.type) and [name] != self._key
        ][:_TRIED_COLUMNS]
        if flat:
            counts = ", ".join(f"approx_count_distinct({name})" for name in flat)
            (found,) = self._rows(f"SELECT {counts} FROM (FROM b LIMIT {_FEW_ROWS})")  # noqa: S608 - names of our own
            if max(found) > _NEARLY_UNIQUE * _FEW_ROWS:
                yield [flat[found.index(max(found))]]

    def _join(self, pairing: list[str]) -> bool:
        """Join by columns that are unique in `b`; False where they turn out not to be so in `a`."""
        meet = " AND ".join(f"a.{name} IS NOT DISTINCT FROM b.{name}" for name in pairing)
        differ = [f"a.{n} IS DISTINCT FROM b.{n}" for n in self._names if n not in pairing]
        both = ", ".join(f"a.{name} AS a_{name}, b.{name} AS b_{name}" for name in self._names)
        self._db.execute(
            "CREATE TEMP TABLE joined AS "  # noqa: S608 - names of our own
            f"SELECT a.here AS in_a, b.here AS in_b, {both} "
            "FROM (SELECT *, true AS here FROM a) a "
            f"FULL JOIN (SELECT *, true AS here FROM b) b ON {meet} "
            f"WHERE {' OR '.join(['a.here IS NULL', 'b.here IS NULL', *differ])}"
        )
        ((only_a, only_b),) = self._rows(
            "SELECT count(*) FILTER (in_b IS NULL), count(*) FILTER (in_a IS NULL) FROM joined"
        )
        # A row of b that met several of a was counted once here and more often there.
        if self._rows_a - only_a != self._rows_b - only_b:
            self._db.execute("DROP TABLE joined")
            return False
        sides = [
            f"SELECT {', '.join(f'{side}_{n} AS {n}' for n in self._names)}, {w}::BIGINT AS w "  # noqa: S608 - names of our own
            f"FROM joined WHERE in_{side}"
            for side, w in (("a", -1), ("b", 1))
        ]
        self._db.execute(f"CREATE TEMP TABLE differing AS {' UNION ALL '.join(sides)}")
        self._db.execute("DROP TABLE joined")
        return True

    def _repeats(self) -> bool:
        """Whether a key stands for several rows of one table among those that differ."""
        listed = ", ".join(self._key)
        found = self._rows(
            "SELECT EXISTS (FROM differing WHERE abs(w) > 1) OR EXISTS ("  # noqa: S608 - names of our own
            f"SELECT 1 FROM differing GROUP BY {listed}, w HAVING count(*) > 1)"
        )
        return bool(found[0][0])

    def _by_key(self, limit: int) -> RowDifference:
        same = " AND ".join(f"a.{name} IS NOT DISTINCT FROM b.{name}" for name in self._key)
        others = [name for name in self._names if name not in self._key]
        picks = [f"a.{name}" for name in self._key]
        picks += (
            f"a.{n} AS a_{n}, b.{n} AS b_{n}, a.{n} IS DISTINCT FROM b.{n} AS d_{n}" for n in others
        )
        self._db.execute(
            f"CREATE TEMP TABLE changed AS SELECT {', '.join(picks)} "  # noqa: S608 - names of our own
            f"FROM differing a JOIN differing b ON {same} WHERE a.w < 0 AND b.w > 0"
        )
        counts = "".join(f", count(*) FILTER (d_{name})" for name in others)
        ((changed, *cells),) = self._rows(f"SELECT count(*){counts} FROM changed")  # noqa: S608 - likewise
        ((gone, new),) = self._rows(
            "SELECT count(*) FILTER (w < 0), count(*) FILTER (w > 0) FROM differing"
        )
        counted = zip(others, cells, strict=True)
        return RowDifference(
            added=new - changed,
            removed=gone - changed,
            changed=changed,
            cells={self._column(name).name: count for name, count in counted if count},
            first_removed=self._first(self._alone("w < 0", same), self._key, limit, gone - changed),
            first_added=self._first(self._alone("w > 0", same), self._key, limit, new - changed),
            first_changed=self._first_changed(others, limit),
        )

    def _alone(self, side: str, same: str) -> str:
        """Rows of one side whose key the other has not."""
        return (
            f"SELECT {', '.join(self._names)} FROM (FROM differing WHERE {side}) a "  # noqa: S608 - names of our own
            f"ANTI JOIN (FROM differing WHERE NOT {side}) b ON {same}"
        )

    def _repeated(self, side: str, limit: int) -> str:
        """Rows of one side, each as often as it is there (but no more often than is asked for)."""
        listed = ", ".join(self._names)
        times = f"unnest(range(least(abs(w), {limit})))"
        return f"SELECT {listed} FROM (SELECT {listed}, {times} FROM differing WHERE {side})"  # noqa: S608 - names of our own

    # ── values ────────────────────────────────────────────────────────────────────────────────

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self._db.execute(sql).fetchall()

    def _column(self, name: str) -> Shared:
        return self._columns[int(name.removeprefix("c"))]

    def _first(self, rows: str, order: Sequence[str], limit: int, of: int) -> list[dict[str, Any]]:
        """The first rows by `order`, under the columns' own names; `of` is how many there are."""
        if not of:
            return []
        found = self._fetched(f"{rows} ORDER BY {', '.join(order)} LIMIT {limit}")
        named = {self._column(name).name: self._shown(found, name) for name in self._names}
        return [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)]

    def _first_changed(self, others: Sequence[str], limit: int) -> list[Change]:
        found = self._fetched(f"FROM changed ORDER BY {', '.join(self._key)} LIMIT {limit}")
        keys = {self._column(name).name: self._shown(found, name) for name in self._key}
        changes = [Change({n: v[row] for n, v in keys.items()}, {}) for row in range(len(found))]
        for name in others:
            before, after = (self._shown(found, f"{side}_{name}", name) for side in "ab")
            flags = found[f"d_{name}"].to_pylist()
            for change, *cell, differs in zip(changes, before, after, flags, strict=True):
                if differs:
                    change.cells[self._column(name).name] = (cell[0], cell[1])
        return changes

    def _fetched(self, sql: str) -> pa.Table:
        return self._db.sql(sql).to_arrow_reader(_BATCH_ROWS).read_all()

    def _shown(self, found: pa.Table, column: str, name: str = "") -> list[Any]:
        return _python_values(found[column].combine_chunks(), self._column(name or column).type)


def _python_values(array: pa.Array, own: pa.DataType) -> list[Any]:
    """Values as Python has them; nanoseconds and years that it lacks as texts, or as integers."""
    with suppress(pa.ArrowException):  # UUIDs are texts by now, maps may be lists
        array = array.cast(own)
    if getattr(array.type, "unit", "") == "ns":
        array = array.cast(pa.string())
    try:
        return plain_values(array)
    except (OverflowError, ValueError):
        lasting = plain(own) if pa.types.is_nested(own) else pa.string()
        return plain_values(array.cast(lasting))
