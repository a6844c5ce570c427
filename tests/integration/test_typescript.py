"""The TypeScript package against a real bus, in both directions.

Its own live tests (bus/producers/typescript/tests/live) run once, with vitest; what they leave in
the catalog is looked at from here.
"""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus.producers import schemas
from tests.waiting import wait_until

if TYPE_CHECKING:
    from bus.client import Bus

pytestmark = pytest.mark.xdist_group("bus")

MEASURE = Path(__file__).parents[2] / "benchmarks" / "submit.mjs"
PACKAGE = Path(schemas.__file__).parent / "typescript"
#: What a submit may add to the writing of its files, on a machine that does other things as well.
ADDED_MS = 25.0


def shared_table() -> pa.Table:
    """The rows that tests/live/bus.test.ts has as SHARED."""
    numbers = range(1000)
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    return pa.table(
        {
            "i": pa.array([n * 10_000_000_000 for n in numbers], pa.int64()),
            "price": pa.array([None if n % 7 == 0 else n / 8 for n in numbers], pa.float64()),
            "text": pa.array([None if n % 5 == 0 else f"é {n}" for n in numbers], pa.string()),
            "flag": pa.array([n % 2 == 0 for n in numbers]),
            "at": pa.array(
                [begin + timedelta(milliseconds=1001 * n) for n in numbers],
                pa.timestamp("us", "UTC"),
            ),
        }
    )


@pytest.fixture(scope="module")
def live(
    node_package: Path, live_bus: Bus, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """The results of the live tests, by name."""
    mine: dict[str, Any] = {"producer": "python", "run_id": "python"}
    small = pa.table({"n": [1, 2], "text": ["a", "b"]})
    key = 'token="SOL"/é'
    jobs = [
        live_bus.submit(
            small, kind="from_python", logical_key=key, tags={"from": "python"}, **mine
        ),
        live_bus.submit(shared_table(), kind="hashed", logical_key="shared", **mine),
    ]
    seq = max(job.wait(30).seq for job in jobs)
    query = "SELECT applied_seq AS seq FROM catalog.applied_v"
    wait_until(lambda: live_bus.query(query)[0]["seq"] >= seq, what="the catalog shows the tables")

    folder = tmp_path_factory.mktemp("typescript")
    report = folder / "report.json"
    own = {"BUS_LAKE": str(live_bus.lake.root)}
    config = ("--config", "vitest.live.config.ts", "--reporter=json", f"--outputFile={report}")
    done = subprocess.run(
        [node_package / "node_modules" / ".bin" / "vitest", "run", *config],
        cwd=node_package,
        env={k: v for k, v in os.environ.items() if not k.startswith("BUS_")} | own,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    files = json.loads(report.read_text())["testResults"]
    assert files[0]["assertionResults"], files[0]["message"]
    return {test["title"]: test for test in files[0]["assertionResults"]}


def test_what_the_package_promises_holds_on_a_running_bus(live: dict[str, dict[str, Any]]) -> None:
    failed = {n: t["failureMessages"] for n, t in live.items() if t["status"] != "passed"}
    assert not failed, json.dumps(failed, indent=1, ensure_ascii=False)
    assert len(live) >= 10


def test_what_typescript_wrote_is_found_and_read_by_python(
    live_bus: Bus, live: dict[str, dict[str, Any]]
) -> None:
    assert live
    query = """SELECT name, canonical_path AS path, rows, producer, kind FROM catalog.artifacts_f
               WHERE run_id = 'typescript' ORDER BY seq, name"""

    def found() -> dict[str, dict[str, Any]]:
        rows = {row["name"]: row for row in live_bus.query(query)}
        wanted = {"table", "fills", "positions", "silent", "twin-1", "twin-2", "again"}
        return rows if wanted <= rows.keys() else {}

    rows = wait_until(found, what="every artifact of the run is in the catalog")
    assert {key: rows["table"][key] for key in ("rows", "producer", "kind")} == {
        "rows": 2,
        "producer": "ts",
        "kind": "ts_things",
    }
    assert pq.read_table(rows["table"]["path"]).to_pylist() == [
        {"n": 1.0, "text": "a", "big": 2**60},
        {"n": 2.0, "text": "é🚀", "big": None},
    ]


def test_three_writers_of_the_same_rows_have_made_one_artifact(
    live_bus: Bus, live: dict[str, dict[str, Any]]
) -> None:
    assert live
    query = """SELECT count(*) AS uses, count(DISTINCT artifact_id) AS artifacts
               FROM catalog.artifacts_f WHERE kind = 'hashed'"""
    wait_until(lambda: live_bus.query(query) == [{"uses": 3, "artifacts": 1}])


@pytest.mark.usefixtures("node_package")
def test_submitting_from_typescript_adds_little_to_writing_the_files(live_bus: Bus) -> None:
    """`python -m benchmarks producers` takes the figure seriously; here it only must not be absurd."""
    done = subprocess.run(
        ["node", MEASURE, live_bus.lake.root, "15"], stdout=subprocess.PIPE, check=True, timeout=60
    )
    assert json.loads(done.stdout)["added_ms"] < ADDED_MS


def test_the_schemas_of_the_package_are_those_of_the_documents() -> None:
    """Else: `python -m bus.producers.schemas > schemas/documents.json`, `npm run documents`."""
    assert (PACKAGE / "schemas" / "documents.json").read_text() == schemas.text()
