"""The twelve defects of the public original, one test each, by number (CAPABILITIES 1.20)."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus import intake as intake_module, validation
from bus.catalog import select
from bus.errors import JobConflict
from bus.intake import Intake
from bus.journal import Journal
from bus.lake import COMMIT, MANIFEST
from bus.model import JobState
from bus.staging import Staging, new_job_id
from tests.crash_kit import Job, Scene
from tests.pipeline import Pipeline, facts, sha256, table, verdict

if TYPE_CHECKING:
    from pathlib import Path

    from bus.model import CommitRecord


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path / "lake")


def put(pipe: Pipeline, name: str, **changes: Any) -> Path:
    """A job written by hand, as a program that uses none of our code would; an empty COMMIT."""
    path = pipe.lake.inbox / name
    path.mkdir()
    pq.write_table(table(1), path / "t.parquet")
    entry = {"artifact_id": "t", "format": "parquet", "relpath": "t.parquet"}
    manifest = {
        "job_id": name,
        "run_id": "run-1",
        "producer": "tests",
        "kind": "signals",
        "created_at_utc": "2026-01-08T05:12:33Z",
        "artifacts": [entry | changes.pop("entry", {})],
    } | changes
    (path / MANIFEST).write_text(json.dumps(manifest))
    (path / COMMIT).touch()
    return path


def test_r01_stored_bytes_are_never_replaced_and_rows_agree_with_them(pipe: Pipeline) -> None:
    pipe.stage("first", table(1), keys=["k"])
    pipe.run()
    (artifact,) = pipe.receipt("first").artifacts
    before = os.stat(artifact.path)  # noqa: PTH116 - a path as a reader gets it
    pipe.stage("same-rows", table(1), keys=["k"], codec="snappy")
    pipe.stage("other-rows", table(2), keys=["k"])
    pipe.run()
    pipe.stage("first", table(3), keys=["k"])
    pipe.run()
    after = os.stat(artifact.path)  # noqa: PTH116 - likewise
    assert (after.st_ino, after.st_mtime_ns, after.st_mode & 0o777) == (
        before.st_ino,
        before.st_mtime_ns,
        0o444,
    )
    assert pipe.codes("first") == ["E105"]
    rows = pipe.rows("SELECT path_parquet, row_count FROM artifacts")
    assert all(pq.read_metadata(path).num_rows == count for path, count in rows)
    assert len(rows) == 2


@pytest.mark.parametrize("point", ["store.done", "commit.decided", "commit.done", "answer.written"])
def test_r02_a_crash_in_the_middle_never_turns_into_a_missing_file(
    tmp_path: Path, point: str
) -> None:
    scene = Scene(tmp_path)
    assert scene.run(Job("job", (1, 2)), crash=point)
    scene.run()
    receipt = scene.pipe().receipt("job")
    assert [pq.read_table(a.path) for a in receipt.artifacts] == [table(1), table(2)]


def test_r03_declared_rows_and_hash_are_checked(pipe: Pipeline) -> None:
    put(pipe, "rows", entry={"rows": 4})
    put(pipe, "sha256", entry={"sha256": "ab" * 32})
    put(pipe, "both", entry={"rows": 4, "sha256": "ab" * 32})
    path = put(pipe, "right")
    data = (path / "t.parquet").read_bytes()
    manifest = json.loads((path / MANIFEST).read_text())
    digest = sha256(data)
    manifest["artifacts"][0] |= {"rows": 3, "sha256": digest}
    (path / MANIFEST).write_text(json.dumps(manifest))
    pipe.run()
    assert (pipe.codes("rows"), pipe.codes("sha256")) == (["E305"], ["E304"])
    assert sorted(pipe.codes("both")) == ["E304", "E305"]
    assert pipe.receipt("right").artifacts[0].rows == 3


def test_r04_no_name_in_a_manifest_leads_out_of_its_directory(
    pipe: Pipeline, tmp_path: Path
) -> None:
    pq.write_table(table(9), tmp_path / "secret.parquet")
    bad = ["../secret.parquet", str(tmp_path / "secret.parquet"), "a/../../x", "..", "", "a\\b"]
    for number, relpath in enumerate(bad):
        put(pipe, f"relpath-{number}", entry={"relpath": relpath})
    put(pipe, "run", run_id="../../evil")
    put(pipe, "name", entry={"artifact_id": "../../evil"})
    put(pipe, "kind", kind="../../evil")
    put(pipe, "dir", job_id="../../evil")
    before = set(tmp_path.rglob("*evil*"))
    pipe.run()
    assert [pipe.codes(f"relpath-{n}") for n in range(len(bad))] == [["E108"]] * len(bad)
    assert pipe.codes("run") == pipe.codes("name") == pipe.codes("kind") == ["E104"]
    assert pipe.codes("dir")[0] == "E104"
    assert set(tmp_path.rglob("*evil*")) == before == set()
    assert os.listdir(pipe.lake.processed) == []


def test_r05_one_poison_job_stops_nobody(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    real = validation.judge

    def judge(directory: Path, *rest: Any, **named: Any) -> Any:
        if directory.name.startswith("aaa"):
            raise ZeroDivisionError("a bug of ours")
        return real(directory, *rest, **named)

    monkeypatch.setattr(intake_module, "judge", judge)
    pipe.stage("aaa-poison", table(1))
    for number in range(3):
        pipe.stage(f"good-{number}", table(number))
    # One whose verdict somebody broke lies before the writer, too.
    (pipe.judged(verdict("aaa-broken", facts("a", 1))) / "verdict.json").write_bytes(b"{")
    result = Intake(pipe.lake, pipe.settings, pipe.registry).drain()
    pipe.commit()
    assert {pipe.state(f"good-{n}") for n in range(3)} == {JobState.COMMITTED}
    assert "aaa-poison" in result.later  # not again at once, and not for ever in a row
    assert result.later["aaa-poison"] >= 1


def test_r06_a_waiting_job_is_never_deleted_and_ids_of_one_moment_differ(pipe: Pipeline) -> None:
    pipe.stage("job", table(1))
    with pytest.raises(JobConflict):
        pipe.stage("job", table(2))
    pipe.run()
    assert pq.read_table(pipe.receipt("job").artifacts[0].path) == table(1)
    assert len({new_job_id("p", "k") for _ in range(500)}) == 500
    for number in range(2):  # two artifacts of one moment, no id given
        with Staging(pipe.lake, "run-2", "p", "k") as staging:
            staging.add(table(number))
            staging.submit()
    assert pipe.lake.count(JobState.STAGED) == 2


def test_r07_no_export_is_built_for_a_job(pipe: Pipeline) -> None:
    for number in range(20):
        pipe.judged(verdict(f"j{number}", facts(f"n{number}", number)))
    with pipe.writer() as writer:
        results = [writer.drain(), writer.drain()]
    assert os.listdir(pipe.lake.exports) == []
    assert [r.exports_dirty for r in results] == [True, False]  # one mark for all of them


def test_r08_the_latest_is_the_last_committed_whatever_producers_clocks_say(
    pipe: Pipeline,
) -> None:
    put(pipe, "first", run_id="r1", created_at_utc="2099-01-01T00:00:00Z")
    pipe.run()
    put(pipe, "second", run_id="r2", created_at_utc="1999-01-01T00:00:00Z")
    pipe.run()
    sql = "SELECT run_id FROM catalog.latest_artifacts_v"
    assert select(pipe.lake, pipe.settings, sql) == (["run_id"], [("r2",)])


HOSTILE = [
    "'; DROP TABLE jobs; --",
    'a"b',
    "%s %(x)s {} ${x}",
    "]]> <script>alert(1)</script>",
    "ünïcode \u202e \U0001f4a9",
    "NULL",
]


def test_r09_values_are_never_pasted_into_sql(pipe: Pipeline) -> None:
    for number, text in enumerate(HOSTILE):
        put(
            pipe,
            f"j{number}",
            entry={"logical_key": text, "tags": {text: text}, "schema_hint": text},
            meta={text: text},
        )
    pipe.run()
    assert pipe.lake.count(JobState.COMMITTED) == len(HOSTILE)
    found = pipe.rows("SELECT logical_key FROM artifacts ORDER BY created_at, logical_key")
    assert sorted(key for (key,) in found) == sorted(HOSTILE)
    sql = "SELECT k, v FROM catalog.tags_f ORDER BY k"
    _, tags = select(pipe.lake, pipe.settings, sql)
    assert tags == sorted((text, text) for text in HOSTILE)
    sql = "SELECT schema_hint FROM catalog.artifacts_f ORDER BY schema_hint"
    _, hints = select(pipe.lake, pipe.settings, sql)
    assert hints == sorted((text,) for text in HOSTILE)


def test_r10_a_table_is_written_in_batches_not_row_by_row(pipe: Pipeline) -> None:
    rows = 500_000
    big = pa.table({"x": pa.array(range(rows)), "y": pa.array([1.5] * rows)})
    started_s = time.monotonic()
    pipe.stage("big", big)
    assert time.monotonic() - started_s < 5
    (path,) = (pipe.lake.inbox / "big").glob("*.parquet")
    metadata = pq.read_metadata(path)
    assert (metadata.num_rows, metadata.num_row_groups) == (rows, 4)


def test_r11_the_same_artifact_from_many_at_once_is_created_once_and_never_shown_unready(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Journal.append
    unready: list[str] = []

    def append(self: Journal, record: CommitRecord) -> Any:
        paths = [pipe.lake.object_path(a.sha256) for j in record.jobs for a in j.artifacts]
        unready.extend(str(path) for path in paths if not path.exists())
        return real(self, record)

    monkeypatch.setattr(Journal, "append", append)
    for number in range(12):
        pipe.stage(f"j{number:02d}", table(1), keys=["k"], run_id=f"run-{number}")
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(pipe.judge) for _ in range(4)]:
            future.result()
    pipe.commit()
    decisions = [a.decision for r in pipe.records() for j in r.jobs for a in j.artifacts]
    assert sorted(decisions) == ["created"] + ["deduped"] * 11
    assert unready == []
    assert len(list(pipe.lake.all_objects())) == 1


def test_r12_every_receipt_has_the_same_shape(pipe: Pipeline) -> None:
    pipe.stage("created", table(1), keys=["k"])
    pipe.run()
    pipe.stage("same-bytes", table(1), keys=["k"], run_id="run-2")
    pipe.stage("same-rows", table(1), keys=["k"], codec="snappy", run_id="run-3")
    pipe.stage("created", table(1), keys=["k"])  # the same job again
    pipe.run()
    wrong = [{"op": "tombstone", "target": "job:created/t0", "reason": "wrong"}]
    pipe.stage("tombstone", mutations=wrong)
    pipe.run()
    pipe.stage("revived", table(1), keys=["k"], run_id="run-4")
    pipe.run()
    paths = [pipe.lake.processed / name / "receipt.json" for name in ("created~2", "revived")]
    paths += [
        pipe.lake.processed / n / "receipt.json" for n in ("created", "same-bytes", "same-rows")
    ]
    receipts = [json.loads(path.read_bytes()) for path in paths]
    assert len({tuple(sorted(receipt)) for receipt in receipts}) == 1
    artifacts = [artifact for receipt in receipts for artifact in receipt["artifacts"]]
    assert len({tuple(sorted(set(artifact) - {"mode"})) for artifact in artifacts}) == 1
    assert len({artifact["artifact_id"] for artifact in artifacts}) == 1
    modes = [(artifact["deduped"], artifact.get("mode")) for artifact in artifacts]
    assert modes == [
        (False, None),
        (False, None),
        (False, None),
        (True, "file_hash"),
        (True, "content_hash"),
    ]
