"""The twelve defects of the public original, one test each, by number (CAPABILITIES 1.20)."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus import exports, lookup, validation, writer as writer_module
from bus.catalog import select
from bus.errors import JobConflict, NotFound
from bus.journal import Journal
from bus.lake import COMMIT, MANIFEST
from bus.manifest import Manifest
from bus.model import JobState
from bus.staging import Staging, new_job_id
from bus.tasks import writer as tasks
from tests.crash_kit import Job, Scene
from tests.pipeline import LightCatalog, Pipeline, sha256, table

if TYPE_CHECKING:
    from pathlib import Path

    from bus.model import CommitRecord
    from bus.settings import Settings


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


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the catalog is not the point."""
    monkeypatch.setattr(writer_module, "Catalog", LightCatalog)


def query(pipe: Pipeline, sql: str) -> list[tuple[Any, ...]]:
    return select(pipe.lake, pipe.settings, sql)[1]


@pytest.mark.usefixtures("light")
def test_r05_a_poison_job_stops_no_other_and_is_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline(tmp_path)
    tried: list[str] = []
    real = validation.judge

    def poisoned(path: Path, *rest: Any, **named: Any) -> Any:
        tried.append(path.name)
        if path.name == "0-poison":
            raise ZeroDivisionError("what nobody thought of")
        return real(path, *rest, **named)

    monkeypatch.setattr("bus.intake.judge", poisoned)
    for number, job_id in enumerate(["0-poison", "1-garbage", "good"]):
        pipe.stage(job_id, table(number))
    (pipe.lake.inbox / "1-garbage" / MANIFEST).write_bytes(b"\x00{")
    pipe.run()
    assert pipe.state("good") is JobState.COMMITTED
    assert pipe.state("1-garbage") is JobState.REJECTED
    for number in range(5):  # whoever comes next finds it again, and never only it
        pipe.stage(f"later-{number}", table(100 + number))
        pipe.run()
        assert pipe.state(f"later-{number}") is JobState.COMMITTED
    # The pool's process gave it up once; after that it was judged in a child, alone.
    assert tried.count("0-poison") == 1
    assert pipe.state("0-poison") is JobState.COMMITTED


class Bells:
    """In the place of the broker: doorbells that coalesce, and what was sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self._hangs = False

    def take_export_bell(self, _: float) -> bool:
        free, self._hangs = not self._hangs, True
        return free

    def clear_export_bell(self) -> None:
        self._hangs = False

    def send(self, task: str, *_: Any, **__: Any) -> bool:
        self.sent.append(task)
        return True


class Built:
    """In the place of an export build's process: it has ended already."""

    def poll(self) -> int:
        return 0

    def wait(self) -> int:
        return 0


@pytest.mark.usefixtures("light")
def test_r07_a_burst_of_commits_builds_no_export_until_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline(tmp_path)
    bells = Bells()
    built_after: list[int] = []

    def build(_: Settings) -> Built:
        built_after.append(len(pipe.records()))
        return Built()

    def patience(quiet_s: float) -> None:
        longer = {"export_quiet_s": quiet_s, "export_max_wait_s": 3600.0}
        monkeypatch.setattr(tasks, "settings", lambda: pipe.settings.model_copy(update=longer))

    monkeypatch.setattr(exports, "build", lambda *_: pytest.fail("built on a commit's time"))
    monkeypatch.setattr(exports, "start_child", build)
    monkeypatch.setattr(tasks, "_exports", tasks._Exports())
    monkeypatch.setattr(tasks, "hasty_broker", lambda: bells)
    monkeypatch.setattr(tasks, "send", bells.send)
    patience(3600.0)
    with pipe.writer() as writer:
        monkeypatch.setattr(tasks, "_held", [writer])
        for number in range(20):
            pipe.stage(f"j{number}", table(number))
            pipe.judge()
            tasks._commit_ready()
            tasks.refresh_exports()
    assert len(pipe.records()) == 20
    assert built_after == []
    assert list(pipe.lake.exports.glob("*.parquet")) == []
    patience(0.0)
    tasks.refresh_exports()
    assert built_after == [20], "one build, after the burst"


EVIL = [
    "'; DROP TABLE artifact_facts; --",
    '"; DROP VIEW canon.signals; --',
    "' OR '1'='1",
    "{objects} {} %s ? :high $1 \\",
    "x' UNION SELECT value FROM meta --",
    "*?[a-z] 'quo\"ted",
]


def test_r09_no_text_of_a_producer_is_ever_taken_for_sql(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path / 'it\'s; a "lake" {0} [x]*')
    for number, evil in enumerate(EVIL):
        data = pa.table({evil: [number], "x": [number], "y": [evil]})
        said = {"tags": {evil: [evil]}, "schema_hint": evil}
        pipe.stage(f"j{number}", data, keys=[evil], entries=said, meta={evil: evil})
    pipe.run()
    for number, evil in enumerate(EVIL):
        found = lookup.artifact(pipe.lake, pipe.receipt(f"j{number}").artifacts[0].artifact_id)
        assert (found["logical_key"], found["tags"]) == (evil, {evil: [evil]})
        assert evil in {column["name"] for column in found["columns"]}
        assert lookup.jobs(pipe.lake, run_id=evil, kind=evil) == []
        assert lookup.job(pipe.lake, evil) == []
        assert lookup.runs(pipe.lake, run_id=evil, producer=evil) == []
        assert lookup.uses(pipe.lake, run_id=evil) == []
        for reference in (evil, f"{evil}/{evil}", f"{evil}:{evil}", f"job:{evil}/{evil}"):
            with pytest.raises(NotFound):
                lookup.find_artifact(pipe.lake, reference)
    tags = query(pipe, "SELECT k, v FROM catalog.tags_f ORDER BY k")
    assert tags == [(evil, evil) for evil in sorted(EVIL)]
    rows = query(pipe, "SELECT y FROM canon.signals ORDER BY x")
    assert rows == [(evil,) for evil in EVIL]
    with closing(Manifest.read(pipe.lake)) as manifest:
        assert manifest.rows("SELECT count(*) FROM artifacts") == [(len(EVIL),)]


def test_r10_parquet_is_written_in_batches_and_nothing_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"  # where DuckDB keeps what it installs
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    written: list[int] = []
    real = pq.ParquetWriter.write_table

    def counted(self: Any, rows: pa.Table, *rest: Any, **named: Any) -> None:
        written.append(rows.num_rows)
        real(self, rows, *rest, **named)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", counted)
    rows = 300_000
    pipe = Pipeline(tmp_path / "lake", exports={"all": {"sql": "SELECT * FROM canon.signals"}})
    pipe.stage("j", pa.table({"x": range(rows)}))
    assert (sum(written), len(written)) == (rows, 3)
    pipe.run()
    assert query(pipe, "SELECT count(*), max(x) FROM canon.signals") == [(rows, rows - 1)]
    written.clear()
    exports.build(pipe.lake, pipe.settings, ["all"])
    exports.publish_pending(pipe.lake, pipe.settings)
    assert pq.read_metadata(pipe.lake.export_path("all")).num_rows == rows
    assert len(written) <= 10
    assert list(home.iterdir()) == []
