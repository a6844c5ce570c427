"""Readers under fire: whoever polls the views while jobs are ingested sees only whole commits."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import duckdb
import pytest

from bus import exports, snapshot
from bus.intake import Intake
from tests.faults.readers import KIND, ROWS, SEQ, looked, read, reports
from tests.pipeline import Pipeline, table
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

    from tests.campaign import Campaign
    from tests.faults.readers import Report

WAYS = ("Snapshots", "duckdb", "sqlite3", "pyarrow", "Snapshots", "sqlite3")
#: The writer is closed and opened again after so many jobs, as a restart would.
_RESTART_EVERY = 50
_EXPORT_EVERY = 30
_PATIENCE_S = 60.0


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    """A lake with one artifact, so that every view is there, and an export of its kind."""
    sql = f"SELECT * FROM canon.{KIND}"
    pipe = Pipeline(tmp_path / "lake", exports={KIND: {"sql": sql}})
    ingest(pipe, 0, 1)
    pipe.commit()
    export(pipe)
    return pipe


def ingest(pipe: Pipeline, first: int, count: int) -> None:
    """Jobs with a table each, judged; `y` tells the tables apart."""
    for number in range(first, first + count):
        pipe.stage(f"j{number}", table(number, ROWS), keys=[f"n={number}"], kind=KIND)
    Intake(pipe.lake, pipe.settings, pipe.registry).drain()


def export(pipe: Pipeline) -> None:
    exports.publish(pipe.lake, exports.build(pipe.lake, pipe.settings, [KIND, "schema_columns"]))


@contextmanager
def watched(pipe: Pipeline, count: int) -> Iterator[None]:
    """So many readers for the length of a block; they report afterwards."""
    over = pipe.lake.root.parent / "over"
    readers: list[ForkServerProcess] = []
    try:
        readers += [
            read(WAYS[number % len(WAYS)], pipe.lake.root, over, number) for number in range(count)
        ]
        yield
        over.touch()
        for reader in readers:
            reader.join(_PATIENCE_S)
    finally:
        for reader in readers:
            reader.kill()


def seen_by_readers(pipe: Pipeline) -> list[Report]:
    return reports(pipe.lake.root.parent / "over")


def ingest_many(pipe: Pipeline, jobs: int, campaign: Campaign) -> None:
    done, writer = 1, pipe.writer()
    restart, exported = _RESTART_EVERY, _EXPORT_EVERY * campaign.size(short=1, long=10)
    next_restart, next_export = restart, exported
    try:
        while done <= jobs:
            count = campaign.chance.randint(1, 8)
            ingest(pipe, done, count)
            done += count
            while writer.drain().more:
                pass
            if done > next_restart:
                writer.close()
                writer, next_restart = pipe.writer(), done + restart
            if done > next_export:
                export(pipe)
                next_export = done + exported
    finally:
        writer.close()
    export(pipe)


def test_readers_meet_no_error_no_torn_read_and_no_step_back(
    pipe: Pipeline, campaign: Campaign
) -> None:
    jobs, readers = campaign.size(short=60, long=10_000), campaign.size(short=6, long=50)
    with watched(pipe, readers):
        ingest_many(pipe, jobs, campaign)

    found = seen_by_readers(pipe)
    assert [wrong for report in found for wrong in report.wrong] == []
    assert len(found) == readers
    newest, artifacts = len(pipe.records()), pipe.rows("SELECT count(*) FROM artifacts")[0][0]
    for report in found:
        assert report.looks > 0, report
        assert report.newest == (artifacts if report.way == "pyarrow" else newest), report
    looks: Counter[str] = Counter()
    for report in found:
        looks[report.way] += report.looks
    campaign.record(
        ingested=artifacts,
        readers=readers,
        looks=dict(looks),
        files_read=sum(report.files for report in found),
        errors=0,
    )


class Replacing:
    """A DuckDB connection; while it attaches a file for the first time, another takes its place."""

    def __init__(self, db: duckdb.DuckDBPyConnection, replace: Callable[[], object]) -> None:
        self._db, self._replace = db, [replace]

    def execute(self, sql: str) -> object:
        done = self._db.execute(sql)
        if sql.startswith("ATTACH") and self._replace:
            self._replace.pop()()
        return done


def test_a_snapshot_that_is_replaced_while_it_is_opened_is_opened_anew(pipe: Pipeline) -> None:
    """DuckDB opens it three times by name: the header must not be one's, the blocks another's."""
    ingest(pipe, 1, 1)
    with duckdb.connect() as db:
        snapshot._attach(Replacing(db, pipe.commit), pipe.lake)  # type: ignore[arg-type]  # as one
        assert db.execute(SEQ).fetchall() == [(2,)]


# ── would they notice? ──────────────────────────────────────────────────────────────────────────


def break_the_catalog_in_place(pipe: Pipeline) -> None:
    """What a program does that writes a file where readers look."""
    data = pipe.lake.catalog_db.read_bytes()
    with pipe.lake.catalog_db.open("r+b") as file:
        file.truncate(len(data) // 2)


def show_an_older_snapshot(pipe: Pipeline) -> None:
    """Of two writers the slower one publishes last."""
    older = pipe.lake.catalog_db.read_bytes()
    ingest(pipe, 1, 1)
    pipe.commit()
    over = pipe.lake.root.parent / "over"
    newest = len(pipe.records())
    wait_until(lambda: looked(over) == [newest] * 2, 30, what="both have seen the new one")
    temporary = pipe.lake.catalog_db.with_name("older")
    temporary.write_bytes(older)
    os.replace(temporary, pipe.lake.catalog_db)  # noqa: PTH105 - as the rename that publishes


def lose_an_object(pipe: Pipeline) -> None:
    for path in pipe.lake.all_objects():
        path.unlink()


@pytest.mark.parametrize(
    "harm", [break_the_catalog_in_place, show_an_older_snapshot, lose_an_object]
)
def test_readers_would_notice(pipe: Pipeline, harm: object) -> None:
    with watched(pipe, 2):
        harm(pipe)  # type: ignore[operator]  # one of those above
    found = seen_by_readers(pipe)
    assert all(report.wrong for report in found), found
