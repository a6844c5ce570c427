"""Commands that change something: retry, rebuild, verify after damage, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from bus.lake import COMMIT, OUR_NAMES
from bus.model import CommitMarker, JobState

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.pipeline import Pipeline
    from tests.said import Said


def test_retry_sends_a_rejected_job_back_clean_under_a_new_submission(
    own: Pipeline, bus: Callable[..., Said]
) -> None:
    said = bus("retry", "broken", "--lake", own.lake.root, "--json")
    assert said.status == 0
    there = own.lake.inbox / "broken"
    assert own.lake.state_of("broken") is JobState.STAGED
    assert [name for name in OUR_NAMES if (there / name).exists()] == []
    assert (there / "x.parquet").read_bytes() == b"no"
    marker = CommitMarker.from_bytes((there / COMMIT).read_bytes())
    assert marker.submission_id == said.json["submission_id"]
    assert bus("rejected", "--lake", own.lake.root, "--json").json == []
    again = bus("retry", "broken", "--lake", own.lake.root)
    assert again.status == 1
    assert "E511" in again.err


def test_rebuild_with_no_bus_makes_deleted_views_again(
    own: Pipeline, bus: Callable[..., Said]
) -> None:
    at = ["--lake", own.lake.root, "--json"]
    before = bus("jobs", *at, "--state", "committed").json
    for path in (own.lake.manifest_db, own.lake.catalog_db, *own.lake.run_trees.rglob("*.parquet")):
        path.unlink()
    said = bus("rebuild", *at)
    assert said.status == 0
    assert said.json["seq"] == 3
    assert bus("jobs", *at, "--state", "committed").json == before
    rows = bus("query", "SELECT count(*) AS n FROM catalog.artifacts_f", *at).json["rows"]
    assert rows == [{"n": 2}]
    assert own.lake.run_data_path("run-1", "alerts").exists()


def test_rebuild_does_not_touch_what_another_writer_holds(
    own: Pipeline, bus: Callable[..., Said]
) -> None:
    with own.writer():
        said = bus("rebuild", "--lake", own.lake.root, "--timeout", "0.1")
    assert said.status == 2
    assert "E503" in said.err


def test_verify_finds_a_damaged_object_and_says_where(
    own: Pipeline, bus: Callable[..., Said]
) -> None:
    assert bus("verify", "--lake", own.lake.root).status == 0
    path = Path(bus("path", "run-1/alerts", "--lake", own.lake.root).out.strip())
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    said = bus("verify", "--lake", own.lake.root, "--json")
    assert said.status == 1
    assert said.json["ok"] is False
    assert any(path.stem in json.dumps(finding) for finding in said.json["findings"])


def test_an_export_by_hand_writes_the_file(own: Pipeline, bus: Callable[..., Said]) -> None:
    at = ["--lake", own.lake.root, "--json"]
    said = bus("export", "schema_columns", *at)
    assert said.status == 0, said
    assert own.lake.export_path("schema_columns").exists()
    states = {e["name"]: e["state"] for e in bus("export", "--list", *at).json}
    assert states["schema_columns"] == "ok"
    assert states["alerts_std"] == "never"
