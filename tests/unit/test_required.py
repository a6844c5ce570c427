"""Where not even the inbox can be written: research goes on, unless the bus is required."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
        job = bus.submit(mine, move=True, **FIELDS)
    assert mine.read_bytes() == before
    assert job.status is JobState.UNKNOWN
    assert job.answer() is None
    with pytest.raises(Unavailable):
        job.wait(1)


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
