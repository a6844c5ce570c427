"""Exports of the past equal what the exports were then, and touch nothing of the present."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus import exports
from bus.errors import NotFound, Refused
from bus.past import export_as_of
from tests.pipeline import Pipeline

if TYPE_CHECKING:
    from pathlib import Path

DECLARED = {
    "signals": {"sql": "SELECT * FROM canon.signals ORDER BY n"},
    "alerts": {"sql": "SELECT alert_id, alert_text FROM canon.alerts_std ORDER BY alert_id"},
    "runs": {"sql": "SELECT * FROM catalog.runs_d ORDER BY run_id"},
    "artifacts": {"sql": "SELECT * FROM catalog.artifacts_f ORDER BY artifact_key"},
    "standing": {"sql": "SELECT artifact_id, status FROM catalog.artifacts_d ORDER BY ALL"},
    "facts": {
        "sql": "SELECT artifact_id, k, v FROM catalog.tags_f "
        "UNION ALL SELECT artifact_id, kind, alias FROM catalog.aliases_f ORDER BY ALL"
    },
}
NAMES = list(DECLARED)


class Told:
    """A lake that grows commit by commit, and what its exports were after each."""

    def __init__(self, root: Path) -> None:
        self.pipe = Pipeline(root, exports=DECLARED)
        self.then: list[dict[str, pa.Table]] = []

    def commit(self, job_id: str, *tables: pa.Table, **fields: Any) -> None:
        self.pipe.stage(job_id, *tables, **fields)
        self.pipe.run()
        exports.build(self.pipe.lake, self.pipe.settings, NAMES)
        results = exports.publish_pending(self.pipe.lake, self.pipe.settings)
        assert [result["seq"] for result in results] == [len(self.then) + 1] * len(NAMES)
        self.then.append({n: pq.read_table(self.pipe.lake.export_path(n)) for n in NAMES})

    def as_of(self, seq: int, out: Path, names: list[str] | None = None) -> list[dict[str, Any]]:
        pipe = self.pipe
        return export_as_of(pipe.lake, pipe.settings, pipe.registry, seq, out, names or NAMES)


def numbers(*values: int) -> pa.Table:
    return pa.table({"n": list(values)})


def alert(alert_id: str, text: str) -> pa.Table:
    return pa.table(
        {
            "alert_id": [alert_id],
            "alert_ts_ms": pa.array([1], pa.int64()),
            "mint": ["m"],
            "chain": ["solana"],
            "alert_text": [text],
        }
    )


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Everything that changes what an export shows; tests only look at it."""
    made = Told(tmp_path_factory.mktemp("past") / "lake")
    tagged = {"entries": {"tags": {"colour": "red"}}}
    made.commit("j1", numbers(1, 2), numbers(3), meta={"a": 1}, **tagged)
    made.commit("j2", alert("x", "old"), kind="alerts_std", run_id="run-2")
    replaced = [{"op": "supersede", "target": "job:j1/t0", "by": "job:j3/t0"}]
    made.commit("j3", numbers(10), meta={"a": 2}, mutations=replaced)
    gone = {"op": "tombstone", "target": "job:j1/t1", "reason": "wrong"}
    best = {"op": "alias", "kind": "signals", "alias": "best", "target": "job:j3/t0"}
    untag = {"op": "untag", "target": "job:j1/t0", "tags": {"colour": ["red"]}}
    made.commit("j4", mutations=[gone, best, untag])
    made.commit("j5", alert("x", "new"), kind="alerts_std")
    made.commit("j6", pa.table({"n": [7], "more": ["a new column"]}))
    return made


@pytest.mark.parametrize("seq", [1, 3, 4, 6])
def test_an_export_of_the_past_is_what_it_was_then(told: Told, tmp_path: Path, seq: int) -> None:
    lake = told.pipe.lake
    before = {path.name: path.stat().st_mtime_ns for path in lake.exports.iterdir()}
    results = told.as_of(seq, tmp_path / "then")
    assert [(r["name"], r["ok"], r["seq"]) for r in results] == [
        (name, True, seq) for name in sorted(NAMES)
    ]
    for result in results:
        assert result["path"] == str(tmp_path / "then" / f"{result['name']}.parquet")
        assert pq.read_table(result["path"]).equals(told.then[seq - 1][result["name"]])
    listed = {path.name for path in (tmp_path / "then").iterdir()}
    assert listed == {*(f"{name}.parquet" for name in NAMES), "_export_status.json"}
    assert {path.name: path.stat().st_mtime_ns for path in lake.exports.iterdir()} == before
    assert list(lake.run.glob("past-*")) == []


def test_before_the_first_commit_exports_are_empty(told: Told, tmp_path: Path) -> None:
    (result,) = told.as_of(0, tmp_path, ["alerts"])
    assert (result["rows"], result["seq"]) == (0, 0)


def test_where_bytes_are_gone_exports_that_need_them_fail_and_name_them(tmp_path: Path) -> None:
    told = Told(tmp_path / "lake")
    told.commit("j1", numbers(1))
    (first,) = told.pipe.receipt("j1").artifacts
    told.pipe.lake.object_path(first.file_hash.removeprefix("sha256:")).unlink()
    results = {r["name"]: r for r in told.as_of(1, tmp_path / "then")}
    assert [name for name, result in results.items() if not result["ok"]] == ["signals"]
    assert first.artifact_id in results["signals"]["error"]
    assert "of signals are gone" in results["signals"]["error"]
    assert not (tmp_path / "then" / "signals.parquet").exists()
    assert results["alerts"]["ok"]


def test_what_was_left_by_a_killed_export_goes_after_a_day(told: Told, tmp_path: Path) -> None:
    old, new = (told.pipe.lake.run / f"past-{name}" for name in ("old", "new"))
    for left in (old, new):
        (left / "artifacts").mkdir(parents=True)
    a_day_ago = time.time() - 90_000
    os.utime(old, (a_day_ago, a_day_ago))
    told.as_of(0, tmp_path, ["alerts"])
    assert (old.exists(), new.exists()) == (False, True)
    shutil.rmtree(new)


def test_nothing_of_the_lake_is_written_over(told: Told, tmp_path: Path) -> None:
    lake = told.pipe.lake
    (tmp_path / "link").symlink_to(lake.exports)
    for out in (lake.exports, lake.root, lake.root / "new", tmp_path / "link"):
        with pytest.raises(Refused) as caught:
            told.as_of(1, out)
        assert caught.value.code == "E103"
    assert not (lake.root / "new").exists()
    with pytest.raises(NotFound, match="no export 'nobody'"):
        told.as_of(1, tmp_path, ["nobody"])
