"""Real files from elsewhere through a running bus: 190 Parquet files, candles, hostile JSON.

Every file goes through the real queue, the real workers and the real writer. What a verdict names
acceptable is found in the catalog and read back with the rows it names; every other file ends in
rejected/ with a reason that a person can act on.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from bus.errors import Rejected
from tests.jobs import put_job

if TYPE_CHECKING:
    from bus.client import Bus, Job
    from bus.errors import Problem
    from bus.model import Receipt

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = [pytest.mark.needs_data, pytest.mark.xdist_group("bus")]


def rows_of(table: str) -> list[dict[str, str]]:
    with (REAL_DATA / table).open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def outcome(job: Job) -> Receipt | tuple[Problem, ...]:
    try:
        return job.wait(60)
    except Rejected as rejected:
        return rejected.problems


def assert_a_person_can_act_on(problems: tuple[Problem, ...]) -> None:
    assert problems
    for found in problems:
        assert found.code, found
        assert found.where, found
        assert found.message, found
        assert found.hint, found


def catalogued(bus: Bus, run_id: str) -> dict[str, tuple[str, int]]:
    """What the published catalog says of a run: name -> (path, rows)."""
    sql = f"SELECT name, canonical_path, rows FROM catalog.artifacts_f WHERE run_id = '{run_id}'"
    return {row["name"]: (row["canonical_path"], row["rows"]) for row in bus.query(sql)}


def test_each_of_the_190_parquet_files_meets_its_verdict(live_bus: Bus) -> None:
    verdicts = rows_of("verdicts.tsv")
    assert len(verdicts) == 190
    jobs = {
        f"f{number}": live_bus.submit(
            REAL_DATA / row["path"],
            kind="foreign_file",
            producer="verdicts",
            run_id="real-parquet",
            name=f"f{number}",
        )
        for number, row in enumerate(verdicts)
    }
    outcomes = {name: outcome(job) for name, job in jobs.items()}
    accepted = {name: found for name, found in outcomes.items() if not isinstance(found, tuple)}
    for name, row in zip(jobs, verdicts, strict=True):
        found = outcomes[name]
        if isinstance(found, tuple):
            assert row["expected"] in {"reject", "either"}, (row["path"], found)
            assert_a_person_can_act_on(found)
            kept = list((live_bus.lake.rejected / jobs[name].job_id).glob("*.parquet"))
            assert [path.stat().st_size for path in kept] == [int(row["bytes"])]
        else:
            assert row["expected"] in {"accept", "either"}, row["path"]
    published = wait_for_catalog(live_bus, "real-parquet", set(accepted))
    for name, row in zip(jobs, verdicts, strict=True):
        if name in accepted and row["expected"] == "accept":
            path, rows = published[name]
            assert rows == int(row["rows"]), row["path"]
            assert pq.read_metadata(path).num_rows == rows
            assert Path(path).read_bytes() == (REAL_DATA / row["path"]).read_bytes()


def wait_for_catalog(bus: Bus, run_id: str, names: set[str]) -> dict[str, tuple[str, int]]:
    from tests.waiting import wait_until  # noqa: PLC0415 - kept beside its use

    wait_until(lambda: catalogued(bus, run_id).keys() >= names, 30, what=f"{run_id} published")
    return catalogued(bus, run_id)


def test_candles_of_other_programs_become_queryable(live_bus: Bus) -> None:
    """Each non-empty feather file of candles, under the contract of `ohlcv_slice`."""
    files = [p for p in sorted(REAL_DATA.glob("ohlcv/**/*.feather")) if p.stat().st_size]
    expected = {}
    for number, path in enumerate(files):
        table = candles_of(path)
        if table is None:
            continue
        name = f"c{number}"
        job = live_bus.submit(
            table, kind="ohlcv_slice", producer="candles", run_id="real-candles", name=name
        )
        receipt = outcome(job)
        assert not isinstance(receipt, tuple), (path, receipt)
        expected[name] = table.num_rows
    assert len(expected) >= 3
    published = wait_for_catalog(live_bus, "real-candles", set(expected))
    assert {name: rows for name, (_, rows) in published.items()} == expected
    ids = "SELECT artifact_id FROM catalog.artifacts_f WHERE run_id = 'real-candles'"
    total = (
        f"SELECT sum(rows)::BIGINT AS rows FROM catalog.artifacts_f WHERE artifact_id IN ({ids})"
    )
    assert live_bus.query(total)[0]["rows"] == sum(expected.values())


def candles_of(path: Path) -> pa.Table | None:
    """A feather file in the contract's words, or None when it is no candles."""
    table = feather.read_table(path)
    wanted = ["open", "high", "low", "close", "volume"]
    if not {"date", *wanted} <= set(table.column_names) or table.num_rows == 0:
        return None
    ts = table["date"].cast(pa.timestamp("us", tz="UTC"))
    doubles = [table[name].cast(pa.float64()) for name in wanted]
    return pa.table([ts, *doubles], ["ts", *wanted])


def test_hostile_json_as_a_manifest_is_rejected_and_delays_nobody(live_bus: Bus) -> None:
    corpus = rows_of("json_verdicts.tsv")
    job_ids = [f"json-{number}" for number in range(len(corpus))]
    for job_id, row in zip(job_ids, corpus, strict=True):
        put_job(live_bus.lake, job_id, manifest=(REAL_DATA / row["path"]).read_bytes())
    good = live_bus.submit(
        pa.table({"n": [1]}), kind="things", producer="tester", run_id="beside-json"
    )
    assert good.wait(60).status == "committed"
    for job_id, row in zip(job_ids, corpus, strict=True):
        problems = outcome(live_bus.find_job(job_id))
        assert isinstance(problems, tuple), row["path"]
        assert_a_person_can_act_on(problems)
        assert {str(found.code)[:2] for found in problems} == {"E1"}, (row["path"], problems)
