"""`bus diff` of two versions of 1,000,000 x 10, against one anti-join of DuckDB over the same files.

The limit is the rows of one version that are not in the other, by all columns (one direction only;
a difference needs both), with as many threads and as much memory. Ten rows are changed. Measured
are versions whose rows lie side by side, in one row group or in all of them, and versions in which
no row lies where it was.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from benchmarks import inputs, lakes
from bus import lookup
from bus.diff import diff
from bus.snapshot import closed_database
from bus.specs import Registry
from bus.sqltypes import literal, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.rounds import Lap
    from benchmarks.workshop import Workshop
    from bus.lake import Lake

_ROWS = 1_000_000
_CHANGED = 10
_FIRST = "first"
_KEY = ("at",)
#: By key: where row groups can be left out, and where everything has to be joined.
_GOALS = {"in_one_row_group": 0.3, "in_each_row_group": None, "moved": 1.5}


def measure(shop: Workshop) -> None:
    """Each version against the first, by key and as whole rows."""
    rows = shop.size(_ROWS, 100_000)
    lake, artifacts = lakes.published_lake(shop.room("diff") / "lake", _versions(rows))
    sides = {}
    for name, artifact_id in artifacts.items():
        if name != _FIRST:
            pair = (artifacts[_FIRST], artifact_id)
            sides[f"key {name}"] = partial(_diff, lake, pair, _KEY)
            sides[f"whole {name}"] = partial(_diff, lake, pair, None)
            sides[f"limit {name}"] = partial(_anti_join, lake, pair)
    rounds = shop.plan().run(sides)
    for name, goal in _GOALS.items():
        limit = f"limit {name}"
        for how in ("key", "whole"):
            side = f"{how} {name}"
            shop.show(
                f"diff.{how}.{name}",
                rounds.ratio(side, limit),
                "x anti-join",
                at_most=goal if how == "key" else None,
                rounds=rounds,
                remark=f"{rounds.wall_s(side):.3f} s against {rounds.wall_s(limit):.3f} s; "
                f"{rounds.cpu_s(side) / rounds.cpu_s(limit):.2f} x its CPU time",
            )


def _versions(rows: int) -> Mapping[str, pa.Table]:
    table = inputs.mixed(1, rows)
    step = rows // _CHANGED
    near = _changed(table, range(rows // 2, rows // 2 + _CHANGED))
    return {
        _FIRST: table,
        "in_one_row_group": near,
        "in_each_row_group": _changed(table, range(step // 2, rows, step)),
        "moved": pa.concat_tables([near[-1:], near[:-1]]).combine_chunks(),
    }


def _changed(table: pa.Table, places: Sequence[int]) -> pa.Table:
    """Another close in these rows."""
    here = pc.is_in(pa.array(range(table.num_rows)), pa.array(places))
    close = pc.if_else(here, pc.add(table["close"], 1.0), table["close"])
    return table.set_column(table.schema.get_field_index("close"), "close", close)


def _diff(lake: Lake, pair: tuple[str, str], key: Sequence[str] | None, lap: Lap) -> None:
    registry = Registry.built_in()
    with lap.measured():
        found = diff(lake, registry, *pair, key=key)
    counts = (found.rows.changed, found.rows.added, found.rows.removed) if found.rows else ()
    assert counts == ((_CHANGED, 0, 0) if key else (0, _CHANGED, _CHANGED)), counts


def _anti_join(lake: Lake, pair: tuple[str, str], lap: Lap) -> None:
    """Rows of the first that the second has not, counted: nothing is fetched or shown."""
    paths = [str(_path(lake, artifact_id)) for artifact_id in pair]
    with lap.measured(), closed_database([], paths, spill=lake.run / "spill") as db:
        names = [row[0] for row in db.execute(f"DESCRIBE FROM {literal(paths[0])}").fetchall()]
        same = " AND ".join(f"a.{quoted(n)} IS NOT DISTINCT FROM b.{quoted(n)}" for n in names)
        a, b = (f"read_parquet({literal(path)})" for path in paths)
        found = db.execute(f"SELECT count(*) FROM {a} a ANTI JOIN {b} b ON {same}").fetchall()
    assert found == [(_CHANGED,)], found


def _path(lake: Lake, artifact_id: str) -> Path:
    return lake.object_path(lookup.artifact(lake, artifact_id)["file_hash"].removeprefix("sha256:"))
