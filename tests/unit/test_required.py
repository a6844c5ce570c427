"""Where not even the inbox can be written: research goes on, unless the bus is required."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus import disk
from bus.client import Bus, NotSubmitted
from bus.errors import Code, Refused, Unavailable
from bus.model import JobState
from bus.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

FIELDS: dict[str, Any] = {"kind": "signals", "producer": "tests"}


@pytest.fixture
def bus(tmp_path: Path) -> Bus:
    """Its inbox cannot be written, not even by root: a file lies in its place."""
    bus = Bus(Settings.load(tmp_path / "lake"))
    bus.lake.create()
    bus.lake.inbox.rmdir()
    bus.lake.inbox.write_text("in the way")
    return bus


def test_a_producer_goes_on_with_a_warning(bus: Bus, tmp_path: Path) -> None:
    mine = tmp_path / "mine.parquet"
    pq.write_table(pa.table({"x": [1]}), mine)
    before = mine.read_bytes()
    with pytest.warns(NotSubmitted, match="E50"):
        job = bus.submit(mine, move=True, job_id="mine", **FIELDS)
    assert job.job_id == "mine"
    assert mine.read_bytes() == before
    assert job.status is JobState.UNKNOWN
    assert job.answer() is None
    with pytest.raises(Unavailable):
        job.wait(1)


def test_a_job_of_several_tables_runs_to_its_end_and_warns_once_where_it_was_written(
    bus: Bus, recwarn: pytest.WarningsRecorder
) -> None:
    added = []
    with bus.job(producer="tests", kind="signals") as job:
        for name in ("one", "two"):
            job.add(pa.table({"x": [1]}), name=name)
            added.append(name)
    assert added == ["one", "two"]
    assert [warning.filename for warning in recwarn] == [__file__]
    assert job.job.status is JobState.UNKNOWN
    with pytest.raises(Unavailable), bus.job(producer="tests", kind="signals", required=True):
        pass


def test_a_disk_that_fails_in_the_middle_of_a_job_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    bus = Bus(Settings.load(tmp_path / "lake"))
    mine, other = tmp_path / "mine.parquet", tmp_path / "other.parquet"
    for path in (mine, other):
        pq.write_table(pa.table({"x": [1]}), path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with bus.job(producer="tests", kind="signals") as job:
        job.add(mine, name="one", move=True)
        with monkeypatch.context() as patch:
            patch.setattr(disk, "copy_file", full)
            job.add(other, name="two")
        job.add(pa.table({"x": [3]}), name="three")
    assert [warning.category for warning in recwarn] == [NotSubmitted]
    assert job.job.status is JobState.UNKNOWN
    assert not any(bus.lake.inbox.iterdir())
    assert pq.read_table(mine).to_pydict() == {"x": [1]}


def test_required_by_the_call_or_by_the_environment_it_raises(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"x": [1]})
    with pytest.raises(Unavailable) as raised:
        bus.submit(table, required=True, **FIELDS)
    assert raised.value.hint
    monkeypatch.setenv("BUS_REQUIRED", "1")
    with pytest.raises(Unavailable):
        bus.submit(table, **FIELDS)
    with pytest.warns(NotSubmitted):
        bus.submit(table, required=False, **FIELDS)


def test_bad_input_is_refused_however_little_is_required(tmp_path: Path) -> None:
    good = Bus(Settings.load(tmp_path / "other"))
    with pytest.raises(Refused) as refused:
        good.submit(pa.table({"x": [1]}), kind="ohlcv_slice", producer="tests")
    assert {found.code for found in refused.value.problems} <= {Code.E202, Code.E203}
    assert not any(good.lake.inbox.iterdir())
