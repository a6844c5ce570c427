"""`bus verify --repair`: what can lose nothing is done, the writer does the rest."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from bus import checkpoints, disk, repair
from bus.cli import run
from bus.lake import Remake
from bus.model import JobState
from bus.rebuilt import Twin
from bus.verify import Finding, Report, verify
from tests.pipeline import Pipeline, facts, id_of, table, verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

A, B = facts("a", 1), facts("b", 2)


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    """Two commits, all views made, a checkpoint of the second."""
    pipe = Pipeline(tmp_path / "lake")
    with pipe.writer() as writer:
        for found in (verdict("j1", A), verdict("j2", B, run_id="run-2")):
            pipe.judged(found)
            while writer.drain().more:
                pass
    checkpoints.make(pipe.lake)
    return pipe


@pytest.fixture(autouse=True)
def no_second_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the catalog's rows say is tested elsewhere, and making a second one takes most time."""
    monkeypatch.setattr(Twin, "catalog_differences", lambda *_: iter(()))


def check(pipe: Pipeline) -> Report:
    return verify(pipe.lake, pipe.settings, pipe.registry)


def repaired(pipe: Pipeline) -> list[str]:
    """What `bus verify --repair` does where no bus runs; all is well afterwards."""
    done = repair.mend(pipe.lake, check(pipe))
    done += repair.finish(pipe.lake, pipe.settings, pipe.registry)
    assert repair.is_at_rest(pipe.lake)
    assert check(pipe).findings == []
    return done


def change(pipe: Pipeline, sql: str) -> None:
    with closing(sqlite3.connect(pipe.lake.manifest_db)) as db:
        db.execute(sql)
        db.commit()


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)
    os.utime(path, (1, 1))


def test_a_sound_lake_is_left_in_peace(pipe: Pipeline) -> None:
    assert repair.mend(pipe.lake, check(pipe)) == []
    assert repair.is_at_rest(pipe.lake)


# ── one wrong thing, and what is done about it ───────────────────────────────────────────────────


def open_object(pipe: Pipeline) -> None:
    pipe.lake.object_path(A.sha256).chmod(0o644)


def open_record(pipe: Pipeline) -> None:
    pipe.lake.record_path(1).chmod(0o644)


def lose_link(pipe: Pipeline) -> None:
    pipe.lake.artifact_path("signals", 1, id_of(A)).unlink()


def swap_link(pipe: Pipeline) -> None:
    path = pipe.lake.artifact_path("signals", 1, id_of(A))
    path.unlink()
    os.link(pipe.lake.object_path(B.sha256), path)


def link_nothing(pipe: Pipeline) -> None:
    nowhere = "00000000-0000-5000-8000-000000000000"
    os.link(pipe.lake.object_path(B.sha256), pipe.lake.artifact_path("signals", 1, nowhere))


def swap_in_run(pipe: Pipeline) -> None:
    path = pipe.lake.run_data_path("run-2", "b")
    path.unlink()
    os.link(pipe.lake.object_path(A.sha256), path)


def lose_run(pipe: Pipeline) -> None:
    disk.remove_tree(pipe.lake.run_tree("run-2"))


def lose_sidecars(pipe: Pipeline) -> None:
    disk.remove_tree(pipe.lake.sidecars)
    pipe.lake.sidecars.mkdir()


def change_sidecar(pipe: Pipeline) -> None:
    overwrite(pipe.lake.sidecar_path(id_of(A)), b"{}")


def lose_catalog(pipe: Pipeline) -> None:
    pipe.lake.catalog_db.unlink()


def lose_manifest(pipe: Pipeline) -> None:
    pipe.lake.manifest_db.unlink()


def change_manifest(pipe: Pipeline) -> None:
    change(pipe, "UPDATE artifact_facts SET row_count = 7 WHERE artifact_no = 1")


def change_manifest_and_make_a_checkpoint_of_it(pipe: Pipeline) -> None:
    change_manifest(pipe)
    checkpoints.make(pipe.lake)


def break_checkpoint(pipe: Pipeline) -> None:
    overwrite(pipe.lake.checkpoint_path(2) / pipe.lake.manifest_db.name, b"rotten")


HARMS: dict[Callable[[Pipeline], None], list[str]] = {
    open_object: ["made {object} read-only"],
    open_record: ["made {record} read-only"],
    lose_link: ["asked the writer to make links and trees again"],
    swap_link: ["asked the writer to make links and trees again"],
    link_nothing: ["asked the writer to make links and trees again"],
    swap_in_run: ["asked the writer to make links and trees again"],
    lose_run: ["asked the writer to make links and trees again"],
    lose_sidecars: ["asked the writer to make links and trees again"],
    change_sidecar: ["asked the writer to make links and trees again"],
    lose_catalog: ["asked the writer to rebuild every view"],
    lose_manifest: ["asked the writer to rebuild every view"],
    change_manifest: ["asked the writer to rebuild every view from record 1 of the journal"],
    change_manifest_and_make_a_checkpoint_of_it: [
        "removed the checkpoint {checkpoint}",
        "asked the writer to rebuild every view from record 1 of the journal",
    ],
    break_checkpoint: ["removed the checkpoint {checkpoint}"],
}


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_harm_is_mended(pipe: Pipeline, harm: Callable[[Pipeline], None]) -> None:
    harm(pipe)
    done = repaired(pipe)
    expected = [
        text.format(
            object=pipe.lake.object_path(A.sha256),
            record=pipe.lake.record_path(1),
            checkpoint=pipe.lake.checkpoint_path(2),
        )
        for text in HARMS[harm]
    ]
    asked = [text.removeprefix("asked the writer to ") for text in expected if "asked" in text]
    assert done == expected + [f"did it: {what}" for what in asked]


def test_damaged_objects_are_set_aside_and_nothing_else_is_lost(pipe: Pipeline) -> None:
    damaged = pipe.lake.object_path(B.sha256)
    overwrite(damaged, damaged.read_bytes()[:-1] + b"x")
    done = repaired(pipe)
    assert [text.partition(":")[0] for text in done] == [
        "told the writer which objects are damaged, or back",
        "committed and answered 1 jobs that waited",
    ]
    assert not damaged.exists()
    assert pipe.rows("SELECT count(*) FROM damaged") == [(1,)]
    assert pipe.lake.object_path(A.sha256).exists()


def test_an_object_with_wrong_bytes_is_not_made_read_only_as_if_it_were_right(
    pipe: Pipeline,
) -> None:
    path = pipe.lake.object_path(A.sha256)
    overwrite(path, path.read_bytes()[:-1] + b"x")
    path.chmod(0o644)
    repair.mend(pipe.lake, check(pipe))
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_record_that_was_changed_is_not_touched(pipe: Pipeline) -> None:
    path = pipe.lake.record_path(1)
    data = path.read_bytes().replace(b'"tests"', b'"testS"', 1)
    overwrite(path, data)
    path.chmod(0o644)
    assert repair.mend(pipe.lake, check(pipe)) == []
    assert path.read_bytes() == data


# ── what others left half done ───────────────────────────────────────────────────────────────────


def test_jobs_that_were_left_half_done_are_finished(pipe: Pipeline) -> None:
    pipe.stage("validating", table(7))
    disk.move(pipe.lake.inbox / "validating", pipe.lake.work / "validating")
    pipe.judged(verdict("judged", facts("c", 3)))
    disk.move(pipe.lake.processed / "j2", pipe.lake.ready / "j2")  # committed, not answered
    assert not repair.is_at_rest(pipe.lake)
    assert repaired(pipe) == ["committed and answered 3 jobs that waited"]
    states = [pipe.state(job_id) for job_id in ("validating", "judged", "j2")]
    assert states == [JobState.COMMITTED] * 3


def test_leftovers_go_when_nobody_has_touched_them_for_a_day(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pipe.lake.inbox / ".staging-dead").mkdir()
    assert repair.mend(pipe.lake, check(pipe)) == []
    monkeypatch.setattr("bus.intake.STALE_STAGING_S", -1.0)
    assert repair.mend(pipe.lake, check(pipe)) == [
        "removed 1 leftovers that nobody had touched for a day"
    ]
    assert list(pipe.lake.inbox.iterdir()) == []


def test_what_was_asked_for_before_is_not_made_less(pipe: Pipeline) -> None:
    pipe.lake.ask_for(Remake.FROM_JOURNAL)
    lose_link(pipe)
    repair.mend(pipe.lake, check(pipe))
    assert pipe.lake.asked_for() is Remake.FROM_JOURNAL
    pipe.lake.rebuild_request.write_bytes(b"")  # by hand
    assert pipe.lake.asked_for() is Remake.VIEWS


def test_every_fix_that_the_writer_can_make_is_asked_for() -> None:
    report = Report("full", findings=[Finding(4, "x", "m", fix) for fix in repair._ASKED])
    assert max(repair._ASKED[f.fix] for f in report.findings) is max(Remake)


# ── the command ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def bus(
    pipe: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, Any, str]]:
    """`bus COMMAND … --json`: exit code, what it answered, and its talk."""
    monkeypatch.setattr("bus.process.configure_logging", lambda *_: None)  # of the whole process

    def call(*tokens: str) -> tuple[int, Any, str]:
        with capture_logs():
            code = run([*tokens, "--json", "--lake", str(pipe.lake.root)])
        said = capsys.readouterr()
        return code, json.loads(said.out), said.err

    return call


def test_the_command_finds_mends_and_finds_nothing_more(pipe: Pipeline, bus: Any) -> None:
    swap_link(pipe)
    code, told, _ = bus("verify", "--repair")
    assert (code, told["ok"]) == (1, False)
    assert [finding["invariant"] for finding in told["findings"]] == [4]
    assert told["done"] == [
        "asked the writer to make links and trees again",
        "did it: make links and trees again",
    ]
    code, told, talk = bus("verify")
    assert (code, told["ok"], told["findings"], told["checkpoints"], talk) == (0, True, [], 1, "")


def test_progress_is_told_as_json_to_whoever_asks_for_it(bus: Any) -> None:
    _, _, talk = bus("verify", "--progress")
    told = [json.loads(line) for line in talk.splitlines()]
    assert {"what": "hashing", "done": 2, "total": 2} in told
    assert {line["what"] for line in told} >= {"journal", "hashing"}
    assert all(set(line) == {"what", "done", "total"} for line in told)


def test_a_rebuild_from_record_1_relies_on_no_checkpoint(pipe: Pipeline, bus: Any) -> None:
    change_manifest_and_make_a_checkpoint_of_it(pipe)
    assert bus("rebuild")[0] == 0
    assert [f.where for f in check(pipe).findings] == [
        str(pipe.lake.checkpoint_path(2)),
        str(pipe.lake.manifest_db),
    ]
    code, told, _ = bus("rebuild", "--from-journal")
    assert (code, told["seq"], told["artifacts"]) == (0, 2, 2)
    assert [f.where for f in check(pipe).findings] == [str(pipe.lake.checkpoint_path(2))]
