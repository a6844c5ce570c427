"""What the catalog takes in from the manifest: rows of SQLite as Arrow tables, or as JSON.

Everything is read by commit numbers: `low` is what the catalog knows, `high` what it shall know.
The SQL of both sides is in catalog.sql.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic_core import to_json

from bus.columns import UTC_INSTANT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bus.manifest import Manifest

#: Uses read at a time; bounds memory.
WINDOW_ROWS = 50_000


@cache
def catalog_sql() -> str:
    """The text of catalog.sql."""
    return resources.files("bus").joinpath("catalog.sql").read_text(encoding="utf-8")


@cache
def statement(name: str) -> str:
    """One named statement (or script) of catalog.sql, without the comment above it."""
    parts = re.split(r"^-- name: (\w+)\n", catalog_sql(), flags=re.MULTILINE)
    return re.sub(
        r"^--.*\n?", "", dict(zip(parts[1::2], parts[2::2], strict=True))[name], flags=re.MULTILINE
    )


_INTEGERS = {
    *("use_no", "job_no", "artifact_no", "seq", "first_seq", "last_seq", "added_seq", "ended_seq"),
    *("schema_version", "rows", "artifacts", "again", "ordinal", "keep_last", "keep_days"),
}
_MOMENTS = {
    *("created_at_utc", "first_seen_at", "last_seen_at", "ingested_at", "committed_at_utc"),
    *("min_ts", "max_ts"),
}


@dataclass(frozen=True, slots=True)
class Table:
    """One table that grows with commits: its name here, and the columns read from the manifest.

    `facts`: rows begin and end; `columns` begins with what identifies one.
    """

    name: str
    columns: tuple[str, ...]
    facts: bool = False

    def read(self, manifest: Manifest, low: int, high: int) -> list[tuple[Any, ...]]:
        """Rows that commits low+1 … high added."""
        sql = self._facts_sql("read_facts") if self.facts else statement(f"read_{self.name}")
        rows = manifest.rows(sql, {"low": low, "high": high})
        return _numbered(rows, self.columns) if self.name == "uses" else rows

    def read_ended(self, manifest: Manifest, low: int) -> list[tuple[Any, ...]]:
        """Facts from before `low` that ended after it."""
        return manifest.rows(self._facts_sql("read_ended"), {"low": low})

    def _facts_sql(self, name: str) -> str:
        return statement(name).format(columns=", ".join(self.identity), table=self.name)

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns of a fact that, with added_seq, make it this fact."""
        return self.columns[:-2]

    @property
    def pick(self) -> str:
        """The SELECT that turns rows of `incoming` into rows of the table."""
        return statement(f"pick_{self.name}").format(incoming="incoming")

    @property
    def pick_fresh(self) -> str:
        """The SELECT over the fresh rows of this table."""
        types = {n: "BIGINT" if n in _INTEGERS else "VARCHAR" for n in self.columns}
        structure = ", ".join(f'"{name}": "{kind}"' for name, kind in types.items())
        fresh = statement("fresh").format(table=self.name, structure=structure)
        return statement(f"pick_{self.name}").format(incoming=fresh)


def _facts(name: str, *columns: str) -> Table:
    return Table(name, (*columns, "added_seq", "ended_seq"), facts=True)


TABLES = (
    Table(
        "runs",
        (
            *("run_id", "producer", "created_at_utc", "first_seen_at", "last_seen_at"),
            *("first_seq", "last_seq", "meta_json"),
        ),
    ),
    Table(
        "uses",
        (
            *("use_no", "run_id", "name", "artifact_id", "producer", "kind", "schema_version"),
            *("rows", "schema_hint", "file_hash", "content_hash", "created_at_utc"),
            *("ingested_at", "seq", "meta_json", "logical_key", "min_ts", "max_ts", "again"),
        ),
    ),
    Table(
        "jobs",
        (
            *("job_no", "job_id", "seq", "outcome", "first_seq", "run_id", "producer", "kind"),
            *("created_at_utc", "committed_at_utc", "artifacts", "problems_json"),
        ),
    ),
    _facts("lineage_facts", "artifact_id", "input_artifact_id"),
    _facts("tag_facts", "artifact_id", "k", "v"),
    _facts("supersede_facts", "artifact_id", "supersedes_artifact_id"),
    _facts("tombstone_facts", "artifact_id", "reason"),
    _facts("damage_facts", "file_hash", "found"),
    _facts("purge_facts", "file_hash", "reason"),
    _facts("policy_facts", "kind", "keep_last", "keep_days"),
    _facts("alias_facts", "kind", "alias", "artifact_id"),
    _facts("pin_facts", "pin", "artifact_id"),
)
FACTS = tuple(table for table in TABLES if table.facts)
REVIVED = ("artifact_id", "file_hash")
IDENTITIES = ("artifact_no", "artifact_id", "file_hash", "added_seq", "ended_seq")
COLUMNS = ("kind", "schema_version", "ordinal", "name", "type", "first_seq")


def windows(manifest: Manifest, low: int, high: int) -> Iterator[tuple[int, int]]:
    """Spans of whole commits, each with about `WINDOW_ROWS` uses."""
    while low < high:
        span = {"low": low, "high": high, "size": WINDOW_ROWS}
        found = manifest.rows(statement("read_window"), span)
        end = int(found[0][0]) if found else high
        yield low, end
        low = end


def last_artifact_no(manifest: Manifest) -> int:
    """The newest identity's number."""
    return int(manifest.rows(statement("read_last"))[0][0])


def fresh_json(manifest: Manifest, low: int, high: int) -> str:
    """What commits low+1 … high added, to be kept as one fresh row: ``{table: [{column: value}]}``."""
    found = {}
    for table in TABLES:
        if rows := table.read(manifest, low, high):
            found[table.name] = [dict(zip(table.columns, row, strict=True)) for row in rows]
    return to_json(found).decode()


def arrow(names: Sequence[str], rows: list[tuple[Any, ...]]) -> pa.Table:
    """Rows as an Arrow table: 64-bit integers, UTC instants, texts."""
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    arrays = [_array(name, column) for name, column in zip(names, columns, strict=True)]
    return pa.table(arrays, names=list(names))


def _array(name: str, values: Sequence[Any]) -> pa.Array:
    if name in _INTEGERS:
        return pa.array(values, pa.int64())
    texts = pa.array(values, pa.string())
    return texts.cast(UTC_INSTANT) if name in _MOMENTS else texts


def _numbered(uses: list[tuple[Any, ...]], columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """With `again`: how often the same name came before, in the same run and commit."""
    run_id, name, seq = (columns.index(c) for c in ("run_id", "name", "seq"))
    seen: Counter[str] = Counter()
    numbered = []
    for use in uses:
        key = f"{use[run_id]}:{use[name]}:{use[seq]}"
        numbered.append((*use, seen[key]))
        seen[key] += 1
    return numbered
