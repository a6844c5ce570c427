"""Readers in processes of their own, as foreign programs are: they poll until they are told to end.

Each looks with the plain library that a user would take, and notes everything that nobody should
ever see: an error, half a file, a commit number that goes back, a row whose file is not there.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import time
import traceback
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow.parquet as pq

from bus.lake import Lake
from bus.snapshot import Snapshots
from tests.crash_kit import _fork_server

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

KIND = "fired"
ROWS = 3
#: Reading `canon` opens every file: of many, only now and then.
_MANY = 200
_NEWEST = 5
#: How long a reader rests between two looks, at most.
_REST_S = 0.05

SEQ = "SELECT applied_seq FROM catalog.applied_v"
ARTIFACTS = f"""
SELECT canonical_path, rows FROM catalog.artifacts_f WHERE kind = '{KIND}'
ORDER BY seq DESC, name LIMIT {_NEWEST}"""
COUNT = f"SELECT count(*), sum(rows), max(seq) FROM catalog.artifacts_f WHERE kind = '{KIND}'"
CANON = f"SELECT count(*), count(DISTINCT y) FROM canon.{KIND}"


@dataclass
class Report:
    """What one reader saw."""

    way: str
    looks: int = 0
    files: int = 0
    newest: int = 0
    wrong: list[str] = field(default_factory=list)


def read(way: str, root: Path, over: Path, number: int) -> ForkServerProcess:
    """Start a reader; it reports beside `over`, after that is there."""
    child = _fork_server.Process(target=_read, args=(way, root, over, number))
    child.start()
    return child


def reports(over: Path) -> list[Report]:
    return [Report(**json.loads(p.read_bytes())) for p in sorted(over.parent.glob("reader-*.json"))]


def looked(over: Path) -> list[int]:
    """The newest thing that each reader has seen so far."""
    return [int(path.read_bytes() or b"-1") for path in over.parent.glob("looked-*")]


# ── in the child ────────────────────────────────────────────────────────────────────────────────


class _Reader:
    def __init__(self, way: str, root: Path, number: int) -> None:
        self.lake = Lake(root)
        self.report = Report(way)
        self._chance = random.Random(number)
        self._snapshots = Snapshots(self.lake)
        self.look: Callable[[], None] = {
            "Snapshots": self._snapshot,
            "duckdb": self._duckdb,
            "sqlite3": self._sqlite,
            "pyarrow": self._export,
        }[way]

    def expect(self, right: bool, what: str) -> None:
        if not right:
            self.report.wrong.append(what)

    def _at(self, seq: int) -> None:
        self.expect(seq >= self.report.newest, f"{seq} after {self.report.newest}")
        self.report.newest = max(self.report.newest, seq)

    def _files(self, found: list[tuple[Any, ...]]) -> None:
        """Every artifact that is visible can be read, whole, where its row says."""
        for path, rows in found:
            seen = pq.read_table(path, page_checksum_verification=True).num_rows
            self.expect(seen == rows == ROWS, f"{path}: {seen} rows for {rows}")
            self.report.files += 1

    def _snapshot(self) -> None:
        with self._snapshots.newest() as db:
            self._catalog(db)

    def _duckdb(self) -> None:
        """As any DuckDB client: it opens the file three times by name, so look whether it changed."""
        path = self.lake.catalog_db
        while True:
            before = path.stat().st_ino
            try:
                db = duckdb.connect(path, read_only=True)
            except duckdb.Error:
                if path.stat().st_ino == before:
                    raise
                continue
            with db:
                if path.stat().st_ino == before:
                    self._catalog(db)
                    return

    def _catalog(self, db: duckdb.DuckDBPyConnection) -> None:
        ((seq,),) = db.execute(SEQ).fetchall()
        self._at(seq)
        ((count, rows, newest),) = db.execute(COUNT).fetchall()
        self.expect(rows in {None, ROWS * count}, f"{rows} rows of {count} artifacts")
        self.expect(newest is None or newest <= seq, f"a row of {newest} in a snapshot of {seq}")
        self._files(db.execute(ARTIFACTS).fetchall())
        if count and (count < _MANY or self._chance.random() < 0.02):
            ((lines, tables),) = db.execute(CANON).fetchall()
            self.expect(lines == ROWS * tables, f"{lines} lines of {tables} tables in canon")
            self.expect(lines >= rows, f"{lines} lines in canon, {rows} in the catalog")

    def _sqlite(self) -> None:
        with closing(sqlite3.connect(f"file:{self.lake.manifest_db}?mode=ro", uri=True)) as db:
            db.execute("BEGIN")
            ((seq,),) = db.execute("SELECT value FROM meta WHERE key = 'applied_seq'").fetchall()
            ((newest,),) = db.execute("SELECT coalesce(max(seq), 0) FROM commits").fetchall()
            found = db.execute(
                "SELECT path_parquet, row_count FROM artifacts WHERE artifact_type = ? "
                "ORDER BY created_at DESC LIMIT ?",
                (KIND, _NEWEST),
            ).fetchall()
        self._at(seq)
        self.expect(newest == seq, f"commit {newest} in a manifest of {seq}")
        self._files(found)

    def _export(self) -> None:
        path = self.lake.export_path(KIND)
        if not path.exists():
            return
        with path.open("rb") as file:  # pyarrow opens a path twice: footer and pages may differ
            table = pq.read_table(file, page_checksum_verification=True)
        tables = len(set(table["y"].to_pylist()))
        self.expect(table.num_rows == ROWS * tables, f"{table.num_rows} rows of {tables} tables")
        self._at(tables)  # nothing is taken away, so an export only grows
        status = json.loads(self.lake.export_status.read_bytes())
        self.expect(all(result["ok"] for result in status["results"]), f"{status}")


def _read(way: str, root: Path, over: Path, number: int) -> None:
    os.nice(15)  # fifty on two cores: what they look at would hardly go on
    reader = _Reader(way, root, number)
    try:
        while not over.exists() and not reader.report.wrong:
            reader.look()
            reader.report.looks += 1
            (over.parent / f"looked-{number}").write_bytes(b"%d" % reader.report.newest)
            time.sleep(random.uniform(0, _REST_S))  # out of step with the others
        reader.look()  # once more, when all is done
    except Exception:  # noqa: BLE001 - any error is what no reader should see
        reader.report.wrong.append(traceback.format_exc())
    (over.parent / f"reader-{os.getpid()}.json").write_text(json.dumps(asdict(reader.report)))
