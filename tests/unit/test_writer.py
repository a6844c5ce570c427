"""The writer: one commit for all that is ready, an answer for each, and never two at work."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from bus import disk, writer as writer_module
from bus.catalog import Catalog, published_seq
from bus.errors import Damaged, LakeBusy
from bus.journal import Journal
from bus.lake import MANIFEST, OLD, RECEIPT, REJECT_REASON, VERDICT
from bus.manifest import Manifest
from bus.model import CommitRecord, JobRecord, JobState, Outcome, Tombstone, Verdict, utc_now
from bus.writer import Writer
from tests.ledger import dump
from tests.pipeline import LightCatalog, Pipeline, facts, id_of, parquet, sha256, verdict
from tests.waiting import tick_after, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bus.lake import Waiting

A, B = facts("a", 1), facts("b", 2)
NOWHERE = "00000000-0000-5000-8000-000000000000"
#: Tests that need the real catalog.
WHOLE: set[Callable[..., None]] = set()
PROBLEM = {"code": "E307", "where": "a.parquet", "message": "m", "hint": "h"}


@pytest.fixture(autouse=True)
def light_catalog(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog has tests of its own; here it is real only where `whole` says so."""
    if request.function not in WHOLE:
        monkeypatch.setattr(writer_module, "Catalog", LightCatalog)


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path)


@pytest.fixture
def writer(pipe: Pipeline) -> Iterator[Writer]:
    with pipe.writer() as writer:
        yield writer


def whole(test: Callable[..., None]) -> Callable[..., None]:
    WHOLE.add(test)
    return test


def rejection(job_id: str, *artifacts: Any) -> Verdict:
    return verdict(job_id, *artifacts, accepted=False, problems=[PROBLEM])


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def test_a_committed_job_has_its_receipt_and_its_parquet_lives_in_the_store(
    pipe: Pipeline, writer: Writer
) -> None:
    pipe.judged(verdict("j", A))
    result = writer.drain()
    assert (result.jobs, result.seq, result.more, result.exports_dirty) == (1, 1, False, True)
    assert sorted(os.listdir(pipe.lake.processed / "j")) == [MANIFEST, RECEIPT, VERDICT]
    receipt = pipe.receipt("j")
    (artifact,) = receipt.artifacts
    assert (receipt.seq, receipt.status, artifact.artifact_id) == (1, "committed", id_of(A))
    with open(artifact.path, "rb") as file:  # noqa: PTH123 - a path as a reader gets it
        assert file.read() == parquet(1)
    assert pipe.links() == {id_of(A)}
    (answer,) = pipe.answers
    assert answer.document == receipt.to_bytes()
    assert (answer.job_id, answer.outcome, answer.seq) == ("j", Outcome.COMMITTED, 1)


def test_a_rejected_job_keeps_its_files_and_shares_none_with_the_store(
    pipe: Pipeline, writer: Writer
) -> None:
    # Its first artifact was stored before the writer found the reference of the second missing.
    bad = facts("b", 2, inputs=[NOWHERE, "name:x"])
    pipe.judged(verdict("j", A, bad))
    writer.drain()
    kept = pipe.lake.rejected / "j"
    assert (kept / "a.parquet").read_bytes() == parquet(1)
    assert (kept / "b.parquet").read_bytes() == parquet(2)
    assert not (kept / "a.parquet").samefile(pipe.lake.object_path(A.sha256))
    assert (kept / "a.parquet").stat().st_nlink == 1
    reason = pipe.reason("j")
    assert [(p.code, p.where) for p in reason.problems] == [
        ("E401", "manifest.json.artifacts[1].inputs[0]"),
        ("E401", "manifest.json.artifacts[1].inputs[1]"),
    ]
    assert (reason.code, reason.seq) == ("E401", 1)
    assert pipe.links() == set()


def test_good_and_bad_jobs_of_a_batch_are_one_commit_and_each_has_its_answer(
    pipe: Pipeline, writer: Writer
) -> None:
    for number in range(5):
        pipe.judged(verdict(f"good-{number}", facts(f"n{number}", number)))
        pipe.judged(rejection(f"bad-{number}"), files={})
    writer.drain()
    (record,) = pipe.records()
    assert len(record.jobs) == 10
    assert len(os.listdir(pipe.lake.processed)) == len(os.listdir(pipe.lake.rejected)) == 5
    assert os.listdir(pipe.lake.ready) == []
    assert sorted(a.job_id for a in pipe.answers) == sorted(j.job_id for j in record.jobs)


def test_a_batch_has_a_limit_and_the_oldest_come_first(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, batch_max_jobs=2)
    for number in range(5):
        tick_after(pipe.judged(verdict(f"j{9 - number}", facts(f"n{number}", number))))
    pipe.commit()
    batches = [[job.job_id for job in record.jobs] for record in pipe.records()]
    assert batches == [["j9", "j8"], ["j7", "j6"], ["j5"]]


def test_the_same_job_again_gets_the_first_receipt_under_its_own_submission_id(
    pipe: Pipeline, writer: Writer
) -> None:
    first = verdict("j", A)
    pipe.judged(first)
    writer.drain()
    again = verdict("j", A, job_digest=first.job_digest)
    pipe.judged(again)
    writer.drain()
    old, new = (
        json.loads((pipe.lake.processed / name / RECEIPT).read_bytes()) for name in ("j", "j~2")
    )
    assert new["submission_id"] == again.submission_id
    assert (new["seq"], new["artifacts"]) == (old["seq"], old["artifacts"]) == (1, old["artifacts"])
    assert pipe.rows("SELECT count(*) FROM artifacts") == [(1,)]


def test_another_job_under_a_committed_id_is_rejected_and_changes_nothing(
    pipe: Pipeline, writer: Writer
) -> None:
    pipe.judged(verdict("j", A))
    writer.drain()
    before = (pipe.lake.processed / "j" / RECEIPT).read_bytes()
    pipe.judged(verdict("j", B))
    writer.drain()
    assert pipe.codes("j") == ["E105"]
    assert (pipe.lake.processed / "j" / RECEIPT).read_bytes() == before
    assert pipe.links() == {id_of(A)}


def test_commit_times_only_grow_even_when_the_clock_is_set_back(
    pipe: Pipeline, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, hours in enumerate((0, -5, 3, -2)):
        moment = utc_now() + timedelta(hours=hours)
        monkeypatch.setattr(writer_module, "utc_now", lambda moment=moment: moment)
        pipe.judged(verdict(f"j{number}", facts(f"n{number}", number)))
        writer.drain()
    times = [record.committed_at_utc for record in pipe.records()]
    assert times == sorted(set(times))


# ── jobs that wait for a reference ───────────────────────────────────────────────────────────────


def waiting(job_id: str, reference: str, number: int = 2) -> Verdict:
    return verdict(job_id, facts(job_id, number, inputs=[reference]))


def test_many_jobs_that_wait_delay_nobody(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, batch_max_jobs=2, lineage_wait_s=600)
    for number in range(7):
        pipe.judged(waiting(f"w{number}", NOWHERE, number))
    for number in range(3):
        pipe.judged(verdict(f"j{number}", facts(f"n{number}", number)))
    result = pipe.commit()
    assert (result.jobs, result.more) == (3, False)
    assert {f"w{n}" for n in range(7)} == set(os.listdir(pipe.lake.ready))


def test_a_job_that_waited_follows_in_the_same_drain_what_it_waited_for(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, lineage_wait_s=600)
    with pipe.writer() as writer:
        pipe.judged(waiting("w2", "job:w1/w1", 3))
        pipe.judged(waiting("w1", id_of(A), 2))
        assert writer.drain().jobs == 0
        pipe.judged(verdict("j", A))
        assert writer.drain().jobs == 3
    assert [[j.job_id for j in r.jobs] for r in pipe.records()] == [["j"], ["w1"], ["w2"]]


def test_a_job_whose_time_is_over_is_told_although_nothing_else_happens(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, lineage_wait_s=0.2)
    with pipe.writer() as writer:
        pipe.judged(waiting("w", NOWHERE))
        assert writer.drain().jobs == 0
        wait_until(lambda: writer.drain().jobs, what="the job that waits in vain")
    assert pipe.codes("w") == ["E401"]


def test_another_submission_under_the_name_of_one_that_waits_is_looked_at(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, lineage_wait_s=600)
    with pipe.writer() as writer:
        path = pipe.judged(waiting("w", NOWHERE))
        assert writer.drain().jobs == 0
        disk.remove_tree(path)  # taken out by hand
        pipe.judged(verdict("w", A))
        assert writer.drain().jobs == 1


def test_waiting_jobs_are_not_read_again_at_every_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline(tmp_path, lineage_wait_s=600)
    pipe.judged(waiting("w", NOWHERE))
    with pipe.writer() as writer:
        writer.drain()
        read: list[str] = []
        real = writer._read

        def noted(entry: Waiting) -> Any:
            read.append(entry.name)
            return real(entry)

        monkeypatch.setattr(writer, "_read", noted)
        pipe.judged(verdict("j", A))
        writer.drain()
    assert read == ["j"]


# ── verdicts that do not hold ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("what", ["manifest changed", "torn", "missing", "another's", "silent"])
def test_a_verdict_that_cannot_be_relied_on_goes_back_and_delays_nobody(
    pipe: Pipeline, writer: Writer, what: str
) -> None:
    path = pipe.judged(verdict("bad", A))
    text = (path / VERDICT).read_text()
    if what == "manifest changed":
        (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes() + b" ")
    elif what == "torn":
        (path / VERDICT).write_text(text[:100])
    elif what == "missing":
        (path / VERDICT).unlink()
    elif what == "another's":
        (path / VERDICT).write_text(text.replace('"bad"', '"good"'))
    else:
        (path / VERDICT).write_text(text.replace('"accepted":true', '"accepted":false'))
    pipe.judged(verdict("good", B))
    assert writer.drain().jobs == 1
    assert pipe.state("good") is JobState.COMMITTED
    assert pipe.state("bad") is JobState.VALIDATING
    assert not (pipe.lake.work / "bad" / VERDICT).exists()
    assert (pipe.lake.work / "bad" / "a.parquet").exists()
    if what != "missing":
        assert len(os.listdir(pipe.lake.work / "bad" / OLD)) == 1


def test_it_stays_where_it_is_while_a_newer_submission_is_being_validated(
    pipe: Pipeline, writer: Writer
) -> None:
    path = pipe.judged(verdict("j", A))
    (path / VERDICT).unlink()
    newer = pipe.lake.work / "j"
    newer.mkdir()
    (newer / "file").write_text("newer")
    pipe.judged(verdict("good", B))
    assert writer.drain().jobs == 1
    assert (newer / "file").read_text() == "newer"
    assert path.exists()
    disk.remove_tree(newer)

    def followed() -> bool:
        writer.drain()
        return (newer / "a.parquet").exists()

    wait_until(followed)


def test_an_object_that_is_gone_is_stored_again_from_the_job(
    pipe: Pipeline, writer: Writer
) -> None:
    pipe.judged(verdict("j", A))
    disk.remove_tree(pipe.lake.object_path(A.sha256).parent)
    writer.drain()
    assert pipe.lake.object_path(A.sha256).read_bytes() == parquet(1)
    assert pipe.state("j") is JobState.COMMITTED


def test_nobody_is_committed_on_the_strength_of_a_job_that_had_to_go_back(
    pipe: Pipeline, writer: Writer
) -> None:
    path = pipe.judged(verdict("j1", A))
    (path / "a.parquet").unlink()  # now: the writer takes jobs in the order of their last change
    tick_after(path)
    tick_after(pipe.judged(verdict("j2", facts("b", 2, inputs=["job:j1/a"]))))
    pipe.judged(verdict("j3", A, run_id="run-3"))
    pipe.lake.object_path(A.sha256).unlink()
    writer.drain()
    assert pipe.state("j1") is JobState.VALIDATING
    assert pipe.codes("j2") == ["E401"]
    # j3 brought the same bytes itself: it creates what it would have shared.
    assert pipe.receipt("j3").artifacts[0].deduped is False
    assert pipe.lake.object_path(A.sha256).read_bytes() == parquet(1)


def test_a_job_taken_away_by_hand_is_passed_over(
    pipe: Pipeline, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pipe.judged(verdict("gone", A))
    pipe.judged(verdict("good", B))
    real = Journal.append

    def append(self: Journal, record: CommitRecord) -> Any:
        disk.remove_tree(path)
        return real(self, record)

    monkeypatch.setattr(Journal, "append", append)
    writer.drain()
    assert pipe.state("good") is JobState.COMMITTED
    assert [a.job_id for a in pipe.answers] == ["good"]


# ── what a predecessor left undone ───────────────────────────────────────────────────────────────


def test_a_fault_after_the_commit_is_made_good_by_the_same_writer(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path)

    def broken(_: object) -> None:
        raise OSError("no space left on device")

    with pipe.writer(announce=broken) as writer:
        pipe.judged(verdict("j1", A))
        with pytest.raises(OSError, match="no space"):
            writer.drain()
        writer._announce = pipe.answers.extend
        pipe.judged(verdict("j2", B))
        writer.drain()
        assert pipe.links() == {id_of(A), id_of(B)}
        wait_until(lambda: not writer.drain().jobs)
    assert len(list(pipe.lake.run_trees.glob("*/artifacts/*/data.parquet"))) == 2
    assert pipe.state("j1") is JobState.COMMITTED


def test_a_disk_that_is_full_between_commit_and_index_delays_and_doubles_nothing(
    pipe: Pipeline, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.judged(verdict("j1", A))

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "apply", full)
        with pytest.raises(sqlite3.OperationalError):
            writer.drain()
    assert len(pipe.records()) == 1
    pipe.judged(verdict("j2", B))
    while writer.drain().more:
        pass
    assert [[j.job_id for j in r.jobs] for r in pipe.records()] == [["j1"], ["j2"]]
    assert (pipe.receipt("j1").seq, pipe.receipt("j2").seq) == (1, 2)
    assert pipe.links() == {id_of(A), id_of(B)}


def test_a_rebuild_that_dies_before_its_end_leaves_the_old_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline(tmp_path)
    before = grown(pipe)

    def died(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pipe.writer() as writer:
        patch.setattr(Manifest, "finish", died)
        with pytest.raises(KeyboardInterrupt):
            writer.rebuild()
        assert current(pipe) == before
    pipe.judged(verdict("next", B))
    pipe.commit()
    assert pipe.rows("SELECT job_id FROM jobs ORDER BY job_no DESC LIMIT 1") == [("next",)]
    assert not pipe.lake.manifest_begun.exists()


def test_a_job_committed_and_not_answered_is_answered_and_not_committed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline(tmp_path)
    pipe.judged(verdict("good", A))
    pipe.judged(rejection("bad"), files={})

    def died(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "_answer", died)
        with pytest.raises(KeyboardInterrupt):
            pipe.commit()
    assert sorted(os.listdir(pipe.lake.ready)) == ["bad", "good"]
    pipe.commit()
    assert len(pipe.records()) == 1
    assert pipe.receipt("good").seq == pipe.reason("bad").seq == 1
    assert pipe.links() == {id_of(A)}


def test_links_and_trees_are_taken_up_where_a_predecessor_left_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline(tmp_path)
    pipe.judged(verdict("j", A))

    def died(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "_link", died)
        with pytest.raises(KeyboardInterrupt):
            pipe.commit()
    assert pipe.links() == set()
    pipe.commit()
    assert pipe.links() == {id_of(A)}
    assert (pipe.lake.run_trees / "run-1" / "artifacts" / "a" / "data.parquet").exists()
    assert pipe.lake.sidecar_path(id_of(A)).exists()


# ── views that are gone or wrong ─────────────────────────────────────────────────────────────────


def grown(pipe: Pipeline, commits: int = 3) -> dict[str, Any]:
    """Some history; how the manifest looks after it."""
    with pipe.writer() as writer:
        for number in range(commits):
            pipe.judged(verdict(f"j{number}", facts(f"n{number}", number)))
            writer.drain()
    return current(pipe)


def current(pipe: Pipeline) -> dict[str, Any]:
    with closing(Manifest.read(pipe.lake)) as manifest:
        return dump(manifest)


def remove_manifest(pipe: Pipeline) -> None:
    disk.remove_tree(pipe.lake.manifest_db.parent)


def overwrite_manifest(pipe: Pipeline) -> None:
    pipe.lake.manifest_db.write_bytes(b"no database" * 1000)


def alien_manifest(pipe: Pipeline) -> None:
    other = Pipeline(pipe.lake.root / "other")
    other.judged(verdict("other", B))
    other.commit()
    Manifest.delete(pipe.lake)
    disk.copy_file(other.lake.manifest_db, pipe.lake.manifest_db)


def old_schema(pipe: Pipeline) -> None:
    with closing(Manifest.open(pipe.lake)) as manifest:
        manifest._db.execute("UPDATE meta SET value = 0 WHERE key = 'schema_version'")


@pytest.mark.parametrize("harm", [remove_manifest, overwrite_manifest, alien_manifest, old_schema])
def test_a_manifest_that_is_gone_or_wrong_is_made_again_at_the_start(
    tmp_path: Path, harm: Any
) -> None:
    pipe = Pipeline(tmp_path)
    before = grown(pipe)
    harm(pipe)
    pipe.commit()
    assert current(pipe) == before


@pytest.mark.parametrize("harm", [remove_manifest, overwrite_manifest])
def test_and_while_the_writer_works(tmp_path: Path, harm: Any) -> None:
    pipe = Pipeline(tmp_path)
    grown(pipe)
    with pipe.writer() as writer:
        harm(pipe)
        pipe.judged(verdict("next", B))
        assert writer.drain().jobs == 1
    assert pipe.rows("SELECT count(*) FROM artifacts") == [(4,)]
    assert [r.seq for r in pipe.records()] == [1, 2, 3, 4]


def test_a_manifest_ahead_of_a_journal_restored_from_a_backup_is_made_again(
    tmp_path: Path,
) -> None:
    pipe = Pipeline(tmp_path)
    grown(pipe)
    pipe.lake.record_path(3).unlink()
    pipe.judged(verdict("next", B))
    pipe.commit()
    found = pipe.rows("SELECT job_id FROM jobs ORDER BY job_no")
    assert found == [("j0",), ("j1",), ("next",)]
    assert pipe.links() == {id_of(facts("n0", 0)), id_of(facts("n1", 1)), id_of(B)} | (
        pipe.links() & {id_of(facts("n2", 2))}  # a stray link goes with the next rebuild
    )


def test_nothing_is_committed_over_a_gap_in_the_journal(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path)
    grown(pipe)
    pipe.lake.record_path(2).unlink()
    remove_manifest(pipe)
    pipe.judged(verdict("next", B))
    for _ in range(2):
        pipe.lake.create()
        with pytest.raises(Damaged, match="record 2 is missing"):
            pipe.commit()
    assert Journal(pipe.lake).numbers() == [1, 3]
    assert pipe.state("next") is JobState.READY


def test_a_damaged_record_stops_the_writer_before_it_commits(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path)
    grown(pipe)
    path = pipe.lake.record_path(2)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"j1"', b'"jX"'))
    remove_manifest(pipe)
    pipe.lake.create()
    pipe.judged(verdict("next", B))
    with pytest.raises(Damaged, match="chain is broken"):
        pipe.commit()
    assert Journal(pipe.lake).numbers() == [1, 2, 3]


@whole
def test_a_running_writer_rebuilds_when_a_file_asks_it_to(pipe: Pipeline) -> None:
    before = grown(pipe)
    digest = Catalog.digest(pipe.lake)
    with pipe.writer() as writer:
        disk.remove_tree(pipe.lake.artifacts)
        disk.remove_tree(pipe.lake.catalog_db.parent)
        disk.write_plain(pipe.lake.rebuild_request, b"")
        writer.drain()
        assert not pipe.lake.rebuild_request.exists()
    assert current(pipe) == before
    assert Catalog.digest(pipe.lake) == digest
    assert len(pipe.links()) == 3


def test_a_rebuild_reads_each_record_once_before_it_publishes(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown(pipe, commits=5)
    read: list[int] = []
    real = Journal.read

    def noted(journal: Journal, seq: int) -> Any:
        read.append(seq)
        return real(journal, seq)

    with pipe.writer() as writer:
        monkeypatch.setattr(Journal, "read", noted)
        writer.rebuild(trees=False)
    assert read == [1, 2, 3, 4, 5, 6]  # 6: there is no more


def test_one_lost_object_does_not_keep_the_rest_from_being_rebuilt(pipe: Pipeline) -> None:
    grown(pipe)
    lost = facts("n1", 1)
    pipe.lake.object_path(lost.sha256).unlink()
    for tree in (pipe.lake.artifacts, pipe.lake.run_trees):
        disk.remove_tree(tree)
    with pipe.writer() as writer:
        writer.rebuild()
        while writer.drain().more:
            pass
    assert pipe.links() == {id_of(facts("n0", 0)), id_of(facts("n2", 2))}
    names = {p.parent.name for p in pipe.lake.run_trees.glob("*/artifacts/*/data.parquet")}
    assert names == {"n0", "n2"}


def test_a_rebuild_takes_away_links_that_nobody_owns(pipe: Pipeline) -> None:
    grown(pipe)
    kept = pipe.links()
    stray = pipe.lake.artifact_path("signals", 1, NOWHERE)
    disk.write_plain(stray, b"stray")
    with pipe.writer() as writer:
        writer.rebuild()
    assert pipe.links() == kept


# ── one writer ───────────────────────────────────────────────────────────────────────────────────


def test_a_second_writer_is_refused_at_once_or_waits_as_long_as_it_is_told(
    pipe: Pipeline,
) -> None:
    with pipe.writer():
        started_s = time.monotonic()
        with pytest.raises(LakeBusy) as caught:
            pipe.writer()
        assert time.monotonic() - started_s < 0.5
        assert caught.value.code == "E503"
        with pytest.raises(LakeBusy):
            pipe.writer(wait_s=0.3)
        assert time.monotonic() - started_s >= 0.3
    with pipe.writer(wait_s=5) as second:
        assert second.seq == 0


def test_a_writer_that_could_not_start_leaves_the_lock_to_others(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(LightCatalog, "open", broken)
        with pytest.raises(OSError, match="too many"):
            pipe.writer()
    pipe.writer().close()


OBEY = """
import sys
from pathlib import Path
from bus.errors import LakeBusy
from tests.pipeline import Pipeline
writer = Pipeline(Path(sys.argv[1])).writer()
print(writer._name, flush=True)
for _ in sys.stdin:
    try:
        print(writer.drain().jobs, flush=True)
    except LakeBusy as error:
        print(error.code, flush=True)
"""


def other_writer(pipe: Pipeline) -> tuple[subprocess.Popen[str], str]:
    """A writer in a process of its own that drains once for each line, and its name."""
    process = subprocess.Popen(
        [sys.executable, "-c", OBEY, str(pipe.lake.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def told(process: subprocess.Popen[str]) -> str:
    """Let it drain; how many jobs it answered, or the code of its error."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("drain\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_a_killed_writer_leaves_its_lock_to_the_next(pipe: Pipeline) -> None:
    process, _ = other_writer(pipe)
    with pytest.raises(LakeBusy):
        pipe.writer()
    process.kill()
    process.communicate(timeout=10)
    pipe.judged(verdict("j", A))
    pipe.commit()
    assert pipe.state("j") is JobState.COMMITTED


@whole
def test_a_writer_whose_lock_file_was_removed_is_fenced_at_its_next_commit(
    pipe: Pipeline,
) -> None:
    old, old_name = other_writer(pipe)
    pipe.judged(verdict("j1", A))
    assert told(old) == "1"
    pipe.lake.writer_lock.unlink()
    with pipe.writer() as new:
        pipe.judged(verdict("j2", B))
        assert told(old) == "E503"
        assert pipe.state("j2") is JobState.READY
        assert new.drain().jobs == 1
        pipe.judged(verdict("j3", facts("c", 3)))
        assert told(old) == "E503"
        assert new.drain().jobs == 1
        name = new._name
    old.communicate(timeout=10)
    assert [r.writer for r in pipe.records()] == [old_name, name, name]
    assert pipe.rows("SELECT seq FROM commits") == [(1,), (2,), (3,)]
    assert published_seq(pipe.lake) == 3


def test_a_number_that_was_taken_meanwhile_is_replayed_and_everything_decided_again(
    pipe: Pipeline, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.judged(verdict("j1", A))
    writer.drain()
    pipe.judged(verdict("j2", facts("b", 2, inputs=[id_of(A)])))
    wrong = Tombstone(op="tombstone", target=id_of(A), reason="wrong")
    stranger = JobRecord(
        job_id="s", verdict_id="s", outcome=Outcome.COMMITTED, run_id="r", producer="p", kind="k",
        created_at_utc="2026-01-08T05:12:33.000000Z", mutations=[wrong],
    )  # fmt: skip
    real = Journal.append

    def append(self: Journal, record: CommitRecord) -> Any:
        monkeypatch.undo()
        real(self, record.model_copy(update={"writer": "stranger", "jobs": [stranger]}))
        return real(self, record)

    monkeypatch.setattr(Journal, "append", append)
    writer.drain()
    assert [[j.job_id for j in r.jobs] for r in pipe.records()] == [["j1"], ["s"], ["j2"]]
    assert pipe.rows("SELECT status FROM artifacts ORDER BY created_at") == [
        ("tombstoned",),
        ("active",),
    ]
    assert pipe.links() == {id_of(facts("b", 2))}


# ── pace ─────────────────────────────────────────────────────────────────────────────────────────


@whole
def test_a_lone_job_is_published_without_waiting_for_company(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, commit_pace_s=5.0)
    with pipe.writer() as writer:
        pipe.judged(verdict("j", A))
        started_s = time.monotonic()
        writer.drain()
        assert time.monotonic() - started_s < 3
        assert published_seq(pipe.lake) == 1


def test_a_drain_that_runs_out_of_time_says_there_is_more(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, batch_max_jobs=1)
    for number in range(3):
        pipe.judged(verdict(f"j{number}", facts(f"n{number}", number)))
    with pipe.writer() as writer:
        results = [writer.drain(budget_s=0) for _ in range(3)]
        assert [(r.jobs, r.more) for r in results] == [(1, True)] * 3
        assert not writer.drain().more


def test_nothing_to_do_leaves_exports_alone(pipe: Pipeline) -> None:
    with pipe.writer() as writer:
        pipe.judged(verdict("j", A))
        assert writer.drain().exports_dirty
        assert not writer.drain().exports_dirty


def test_an_unlisted_file_of_a_job_is_kept(pipe: Pipeline) -> None:
    path = pipe.judged(verdict("j", A))
    (path / "notes.txt").write_text("mine")
    pipe.commit()
    assert (pipe.lake.processed / "j" / "notes.txt").read_text() == "mine"
    assert sha256(parquet(1)) == A.sha256


def test_a_rejected_job_has_no_receipt_and_an_accepted_one_no_reason(pipe: Pipeline) -> None:
    pipe.judged(verdict("good", A))
    pipe.judged(rejection("bad"), files={})
    pipe.commit()
    assert not (pipe.lake.processed / "good" / REJECT_REASON).exists()
    assert not (pipe.lake.rejected / "bad" / RECEIPT).exists()
