"""What two tables differ in, computed the slow and obvious way: multisets of Python tuples."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from bus.diff import RowDifference


def canonical(value: Any) -> Any:
    """A value as it compares: NaN is NaN, -0.0 is 0.0, true is not 1, lists are tuples."""
    if isinstance(value, float):
        return ("float", "NaN" if math.isnan(value) else value + 0.0)
    if isinstance(value, list | tuple):
        return tuple(map(canonical, value))
    if isinstance(value, dict):
        return tuple((name, canonical(inner)) for name, inner in value.items())
    return (type(value).__name__, value)


@dataclass
class PlainDifference:
    """The same facts as `RowDifference`; rows are in any order."""

    added: Counter[Any] = field(default_factory=Counter)
    removed: Counter[Any] = field(default_factory=Counter)
    changed: dict[Any, dict[str, tuple[Any, Any]]] = field(default_factory=dict)
    key_repeats: bool = False


def plain_difference(a: pa.Table, b: pa.Table, key: Sequence[str]) -> PlainDifference:
    names = a.column_names
    before, after = (Counter(map(canonical, _tuples(table, names))) for table in (a, b))
    removed, added = before - after, after - before
    if not key:
        return PlainDifference(added, removed)
    places = [names.index(name) for name in key]
    old, new = (
        [(tuple(row[i] for i in places), row) for row in side.elements()]
        for side in (removed, added)
    )
    if any(len(dict(side)) < len(side) for side in (old, new)):
        return PlainDifference(added, removed, key_repeats=True)
    by_key = dict(old)
    found = PlainDifference()
    for place, row in new:
        if place not in by_key:
            found.added[row] += 1
            continue
        pairs = zip(names, by_key.pop(place), row, strict=True)
        found.changed[place] = {name: (x, y) for name, x, y in pairs if x != y}
    found.removed.update(by_key.values())
    return found


def assert_same(found: RowDifference, expected: PlainDifference, key: Sequence[str]) -> None:
    """Counts, and every row: `found` was asked for more rows than there are."""
    assert found.key_repeats == expected.key_repeats
    assert found.added == expected.added.total()
    assert found.removed == expected.removed.total()
    assert found.changed == len(expected.changed)
    assert Counter(map(_row, found.first_added)) == expected.added
    assert Counter(map(_row, found.first_removed)) == expected.removed
    cells = Counter(name for changes in expected.changed.values() for name in changes)
    assert found.cells == dict(cells)
    shown = {
        tuple(canonical(change.key[name]) for name in key): {
            name: (canonical(x), canonical(y)) for name, (x, y) in change.cells.items()
        }
        for change in found.first_changed
    }
    assert shown == expected.changed


def _tuples(table: pa.Table, names: Sequence[str]) -> list[tuple[Any, ...]]:
    columns = [table[name].to_pylist() for name in names]
    return list(zip(*columns, strict=True))


def _row(row: dict[str, Any]) -> Any:
    return canonical(tuple(row.values()))
