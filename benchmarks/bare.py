"""The writer's limit: the same file operations and one SQLite transaction a batch, none of our code.

`Pattern` is taken from a batch that the real writer committed: how long its record and its receipts
are, and every row that it put into the manifest. `commit` then does to a directory of judged jobs
what steps 7 to 10 must do, in the same order, with the same syncs, and as many bytes.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bus.lake import Lake


@dataclass(frozen=True, slots=True)
class Pattern:
    """What one commit writes: bytes of the record and of a receipt; SQL of the tables, rows."""

    record_bytes: int
    receipt_bytes: int
    schema: list[str]
    rows: dict[str, list[tuple[Any, ...]]]

    @classmethod
    def of(cls, lake: Lake, seq: int, receipt: Path) -> Pattern:
        """The pattern of commit `seq` of a lake."""
        with closing(sqlite3.connect(f"file:{lake.manifest_db}?mode=ro", uri=True)) as db:
            made = db.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
            objects = [row for row in made.fetchall() if row[0] in {"table", "index"}]
            tables = [name for kind, name, _ in objects if kind == "table"]
            rows = {table: _rows_of(db, table, seq) for table in tables}
        return cls(
            lake.record_path(seq).stat().st_size,
            receipt.stat().st_size,
            [sql for *_, sql in objects],
            {table: found for table, found in rows.items() if found},
        )


def _rows_of(db: sqlite3.Connection, table: str, seq: int) -> list[tuple[Any, ...]]:
    """The rows of a table that came with a commit."""
    columns = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
    column = next((name for name in ("added_seq", "seq", "first_seq") if name in columns), None)
    condition = f"{column} = ?"
    number = next((name for name in ("artifact_no", "node") if name in columns), None)
    if column is None and number is not None:
        ours = "SELECT artifact_no FROM artifact_facts WHERE added_seq = ?"
        condition = f"{number} IN ({ours})"
    elif column is None or table == "progress":
        return []
    return db.execute(f"SELECT * FROM {table} WHERE {condition}", (seq,)).fetchall()


class BareWriter:
    """Does a batch by hand, in a lake where nothing else happens."""

    def __init__(self, lake: Lake, pattern: Pattern, database: Path) -> None:
        self._lake = lake
        self._pattern = pattern
        self._record = bytes(pattern.record_bytes)
        self._receipt = bytes(pattern.receipt_bytes)
        self._links = lake.artifacts / "bare"
        self._links.mkdir(exist_ok=True)
        self._seq = 0
        self._db = sqlite3.connect(database, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        for sql in pattern.schema:
            self._db.execute(sql)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def commit(self) -> int:
        """Everything that lies in ready/, as one batch; how many jobs."""
        jobs = self._listed()
        for job in jobs:
            (job / "verdict.json").read_bytes()
            (job / "manifest.json").read_bytes()
            (job / "000.parquet").stat()
        self._append()
        self._insert()
        self._answer(jobs)
        return len(jobs)

    def _listed(self) -> list[Path]:
        with os.scandir(self._lake.ready) as entries:
            aged = sorted((entry.stat().st_ctime, entry.path) for entry in entries)
        return [Path(path) for _, path in aged]

    def _append(self) -> None:
        self._seq += 1
        temporary = self._lake.journal / ".tmp"
        _write_synced(temporary, self._record)
        os.link(temporary, self._lake.journal / f"{self._seq}.json")
        temporary.unlink()
        _sync(self._lake.journal)

    def _insert(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        for table, rows in self._pattern.rows.items():
            marks = ", ".join("?" * len(rows[0]))
            self._db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        self._db.execute("COMMIT")

    def _answer(self, jobs: Sequence[Path]) -> None:
        for job in jobs:
            (job / "receipt.json").write_bytes(self._receipt)
        for job in jobs:
            _sync(job / "receipt.json")
        for job in jobs:
            os.link(job / "000.parquet", self._links / f"{job.name}.parquet")
            (job / "000.parquet").unlink()
            _sync(job)
            job.rename(self._lake.processed / job.name)
        _sync(self._lake.processed)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
