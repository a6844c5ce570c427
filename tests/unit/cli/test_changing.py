"""Commands that change something: retry, rebuild, verify after damage, export, gc, backup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from bus.lake import COMMIT, OUR_NAMES
from bus.model import CommitMarker, JobState
from tests.pipeline import table

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


# ── room, and copies ──────────────────────────────────────────────────────────────────────────


def work(own: Pipeline) -> None:
    own.judge()
    with own.writer() as writer:
        while writer.drain().more:
            pass


def test_a_plan_names_what_may_go_and_applied_it_goes_and_can_be_taken_back(
    own: Pipeline, bus: Callable[..., Said]
) -> None:
    at = ["--lake", own.lake.root]
    own.stage("wrong", table(8), keys=["token=SOL"], run_id="run-8")
    work(own)
    target = own.receipt("wrong").artifacts[0].artifact_id
    withdrawn = [{"op": "tombstone", "target": target, "reason": "wrong tick size"}]
    own.stage("withdraw", mutations=withdrawn)
    work(own)
    assert "signals token=SOL" not in bus("gc", *at).out
    plan = bus("gc", *at, "--grace-days", "0")
    assert "signals token=SOL" in plan.out
    assert "bus gc --grace-days 0 --apply" in plan.out
    kept = bus("gc", *at, "--kept").out
    assert "withdrawn only lately" in kept
    applied = bus("gc", *at, "--grace-days", "0", "--apply", "--json")
    assert applied.status == 0
    (job_id,) = applied.json["jobs"]
    assert own.lake.state_of(job_id) is JobState.STAGED
    work(own)
    assert bus("wait", job_id, *at, "--timeout", "0").status == 0
    shown = bus("show", target, *at).out
    assert "purged" in shown
    assert "wrong tick size" in shown
    taken_back = bus("gc", "--undo", target[:8], *at, "--json")
    assert taken_back.status == 0
    work(own)
    assert "tombstoned" in bus("show", target, *at).out
    assert Path(bus("path", target, *at).out.strip()).exists()


def test_a_policy_is_set_shown_and_removed(own: Pipeline, bus: Callable[..., Said]) -> None:
    at = ["--lake", own.lake.root]
    assert bus("policy", "signals", "--keep-last", "3", "--keep-days", "30", *at).status == 0
    work(own)
    (policy,) = bus("policy", "--json", *at).json
    seq = policy.pop("seq")
    assert policy == {"kind": "signals", "keep_last": 3, "keep_days": 30}
    assert "bus.policy" in {job.producer for job in own.records()[seq - 1].jobs}
    assert bus("policy", "signals", "--remove", *at).status == 0
    work(own)
    assert bus("policy", "signals", "--show", "--json", *at).json == []


def test_a_backup_is_made_checked_and_restored(
    own: Pipeline, bus: Callable[..., Said], tmp_path: Path
) -> None:
    at = ["--lake", own.lake.root]
    made = bus("backup", tmp_path / "backup", *at, "--json")
    assert (made.status, made.json["seq"], made.json["copied_objects"]) == (0, 3, 1)
    assert bus("backup", tmp_path / "backup", *at).out.startswith("backed up, up to commit 3")
    assert bus("backup", tmp_path / "backup", "--verify").status == 0
    assert bus("restore", tmp_path / "backup", tmp_path / "new").status == 0
    there = ["--lake", tmp_path / "new"]
    assert Path(bus("path", "run-1/alerts", *there).out.strip()).is_relative_to(tmp_path / "new")
    assert bus("verify", *there).status == 0
    again = bus("restore", tmp_path / "backup", tmp_path / "new")
    assert again.status == 2
    assert "E513" in again.err
    (object_,) = (tmp_path / "backup").rglob("*.parquet")
    object_.unlink()
    said = bus("backup", tmp_path / "backup", "--verify", "--json")
    assert said.status == 1
    assert object_.stem in said.json["findings"][0]["where"]
