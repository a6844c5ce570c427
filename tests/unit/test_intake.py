"""The intake: who takes what when, what it leaves behind, and that nobody holds up anybody."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from bus import disk, validation
from bus.claims import Record, claim_path
from bus.hashing import file_hash
from bus.intake import GROUP_JOBS, Intake, clean, due
from bus.lake import COMMIT, MANIFEST, OLD, RECEIPT, REJECT_REASON, VERDICT
from bus.objects import SyncError
from bus.settings import Settings
from bus.specs import Registry
from bus.staging import Staging
from tests.forks import exit_code_of
from tests.jobs import codes, commit, manifest_of, new_lake, put_job, small_table, verdict_of
from tests.pipeline import Pipeline, table
from tests.waiting import tick_after, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from bus.lake import Lake


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return new_lake(tmp_path)


def new_intake(lake: Lake, **settings: Any) -> Intake:
    return Intake(lake, Settings(lake=lake.root, **settings), Registry.built_in())


@pytest.fixture
def intake(lake: Lake) -> Intake:
    return new_intake(lake)


# ── the straight way ──────────────────────────────────────────────────────────────────────────


def test_a_job_of_our_own_client_is_taken_at_once(lake: Lake, intake: Intake) -> None:
    with Staging(lake, run_id="r", producer="p", kind="things") as job:
        job.add(small_table(), name="first")
        staged = job.submit(meta={"note": "x"})

    result = intake.drain(staged.job_id)

    assert result.judged == [staged.job_id]
    assert (result.later, result.more, result.faults) == ({}, False, {})
    verdict = verdict_of(lake, staged.job_id)
    assert codes(verdict) == []
    assert verdict.submission_id == staged.submission_id
    assert (verdict.run_id, verdict.producer, verdict.kind) == ("r", "p", "things")
    assert verdict.meta == {"note": "x"}
    [stored] = lake.all_objects()
    assert file_hash(stored) == verdict.artifacts[0].file_hash


def test_nothing_is_left_of_the_work(lake: Lake, intake: Intake) -> None:
    put_job(lake, "job")

    intake.drain()

    for directory in (lake.inbox, lake.work, lake.claims):
        assert list(directory.iterdir()) == []
    names = {path.name for path in (lake.ready / "job").iterdir()}
    assert names == {MANIFEST, COMMIT, VERDICT, "a0.parquet"}


def test_a_drain_takes_whatever_waits(lake: Lake, intake: Intake) -> None:
    names = [f"job-{i:02}" for i in range(2 * GROUP_JOBS + 3)]
    for i, name in enumerate(names):
        put_job(lake, name, {"a.parquet": small_table(start=i)})

    result = intake.drain(names[5])

    assert result.judged[0] == names[5]
    assert sorted(result.judged) == names


def test_the_oldest_come_first(lake: Lake, intake: Intake) -> None:
    for name in ("c", "a", "b"):
        tick_after(put_job(lake, name))

    assert intake.drain().judged == ["c", "a", "b"]


def test_a_drain_that_used_its_time_says_that_there_is_more(lake: Lake, intake: Intake) -> None:
    for i in range(2 * GROUP_JOBS):
        put_job(lake, f"job-{i}")

    first = intake.drain(budget_s=0)
    second = intake.drain(budget_s=0)

    assert (len(first.judged), first.more) == (GROUP_JOBS, True)
    assert (len(second.judged), second.more) == (GROUP_JOBS, False)


def test_a_job_with_only_mutations_is_judged_too(lake: Lake, intake: Intake) -> None:
    mutations = [{"op": "tag", "target": "x", "tags": {"k": "v"}}]
    put_job(lake, "job", {}, manifest=manifest_of("job", [], artifacts=[], mutations=mutations))

    intake.drain()

    verdict = verdict_of(lake, "job")
    assert codes(verdict) == []
    assert len(verdict.mutations) == 1
    assert verdict.job_digest is not None


# ── readiness ─────────────────────────────────────────────────────────────────────────────────


def test_an_empty_commit_counts_after_a_quiet_time(lake: Lake) -> None:
    patient = new_intake(lake, quiet_s=0.3)
    put_job(lake, "job", marker=False)

    result = patient.drain("job")
    assert result.judged == []
    assert 0 < result.later["job"] <= 0.3
    assert list(lake.claims.iterdir()) == []

    wait_until(lambda: patient.drain("job").judged)


def test_a_change_in_a_folder_below_starts_the_quiet_time_again(lake: Lake) -> None:
    patient = new_intake(lake, quiet_s=60)
    path = put_job(lake, "job", {"deep/a.parquet": small_table()}, marker=False)
    before = patient.drain("job").later["job"]
    time.sleep(0.05)
    assert patient.drain("job").later["job"] < before - 0.02
    (path / "deep" / "a.parquet").chmod(0o600)

    assert patient.drain("job").later["job"] > before - 0.02


# ── names that are ours ───────────────────────────────────────────────────────────────────────


def test_our_names_are_moved_aside_unread(lake: Lake, intake: Intake) -> None:
    path = put_job(lake, "job")
    for name in (VERDICT, RECEIPT, REJECT_REASON):
        (path / name).write_bytes(b"\xff not ours")

    intake.drain("job")

    assert codes(verdict_of(lake, "job")) == []
    kept = sorted((lake.ready / "job" / OLD).iterdir())
    assert [p.read_bytes() for p in kept] == [b"\xff not ours"] * 3


def test_a_link_in_the_place_of_the_old_folder_leads_nothing_out(
    lake: Lake, intake: Intake, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    path = put_job(lake, "job")
    (path / VERDICT).write_text("x")
    (path / OLD).symlink_to(tmp_path / "outside")

    intake.drain("job")

    assert list((tmp_path / "outside").iterdir()) == []
    assert codes(verdict_of(lake, "job")) == []


# ── one job at a time, each id for itself ─────────────────────────────────────────────────────


def test_a_second_job_of_an_id_waits_until_the_first_is_answered(
    lake: Lake, intake: Intake
) -> None:
    put_job(lake, "job")
    intake.drain("job")
    put_job(lake, "job", {"a.parquet": small_table(9)})

    result = intake.drain("job")
    assert result.judged == []
    assert result.later["job"] > 0
    assert verdict_of(lake, "job").artifacts[0].rows == 3

    (lake.ready / "job").rename(lake.processed / "job")
    assert intake.drain("job").judged == ["job"]
    assert verdict_of(lake, "job").artifacts[0].rows == 9


def test_a_job_in_work_goes_before_its_successor_in_the_inbox(lake: Lake, intake: Intake) -> None:
    put_job(lake, "job").rename(lake.work / "job")
    put_job(lake, "job", {"a.parquet": small_table(9)})

    result = intake.drain("job")

    assert result.judged == ["job"]
    assert verdict_of(lake, "job").artifacts[0].rows == 3
    assert (lake.inbox / "job").exists()


def test_a_job_that_someone_alive_holds_is_left_to_them(lake: Lake, intake: Intake) -> None:
    put_job(lake, "held")
    put_job(lake, "free")

    with disk.locked(claim_path(lake, "held")) as lock:
        assert lock is not None
        result = intake.drain("held")

    assert result.judged == ["free"]
    assert result.later == {}


def test_a_verdict_that_no_longer_fits_its_manifest_is_made_anew(
    lake: Lake, intake: Intake
) -> None:
    put_job(lake, "job")
    intake.drain("job")
    path = (lake.ready / "job").rename(lake.work / "job")
    (path / MANIFEST).write_text((path / MANIFEST).read_text().replace("run-1", "run-2"))
    commit(path)

    intake.drain("job")

    assert verdict_of(lake, "job").run_id == "run-2"


def test_a_torn_verdict_is_made_anew(lake: Lake, intake: Intake) -> None:
    path = put_job(lake, "job").rename(lake.work / "job")
    (path / VERDICT).write_text('{"version": 1')

    intake.drain("job")

    assert codes(verdict_of(lake, "job")) == []


# ── the store ─────────────────────────────────────────────────────────────────────────────────


def test_the_same_bytes_twice_are_one_object(lake: Lake, intake: Intake) -> None:
    put_job(lake, "one")
    put_job(lake, "two")

    intake.drain()

    assert len(list(lake.all_objects())) == 1
    assert (
        verdict_of(lake, "one").artifacts[0].sha256 == verdict_of(lake, "two").artifacts[0].sha256
    )


def test_a_damaged_object_is_replaced_and_kept(lake: Lake, intake: Intake) -> None:
    put_job(lake, "one")
    intake.drain()
    [stored] = lake.all_objects()
    stored.chmod(0o644)
    stored.write_bytes(b"rot")
    put_job(lake, "two")

    intake.drain()

    assert file_hash(stored) == verdict_of(lake, "two").artifacts[0].file_hash
    assert [path.read_bytes() for path in lake.quarantine.iterdir()] == [b"rot"]


def test_a_file_that_changes_between_judgement_and_store_is_judged_again(
    lake: Lake, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_job(lake, "job")
    judge = validation.judge

    def judge_then_change(path: Path, *rest: Any, **named: Any) -> Any:
        judgement = judge(path, *rest, **named)
        (path / "a0.parquet").chmod(0o644)
        (path / "a0.parquet").write_bytes(b"changed")
        return judgement

    with monkeypatch.context() as patched:
        patched.setattr("bus.intake.judge", judge_then_change)
        result = intake.drain("job")
    assert result.judged == []
    assert result.later["job"] > 0
    assert list(lake.all_objects()) == []

    intake.drain("job")
    assert codes(verdict_of(lake, "job")) == ["E307"]


def test_syncs_are_shared_by_a_group(lake: Lake, intake: Intake) -> None:
    files = {f"{i}.parquet": small_table(start=i) for i in range(40)}
    put_job(lake, "many", files)
    synced: list[str] = []

    class Noting(disk.Device):
        def fsync(self, fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                synced.append(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115 - no file, a descriptor
            super().fsync(fd)

    with disk.using(Noting()):
        intake.drain()

    assert len(synced) == len(set(synced)), "each directory once"
    prefixes = {path.parent for path in lake.all_objects()}
    assert set(synced) == {str(p) for p in prefixes} | {str(lake.objects), str(lake.work / "many")}


def test_whoever_opens_a_file_while_we_hold_its_lease_does_not_end_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernel tells the holder of a lease by SIGIO that somebody wants to write: unasked, that
    # signal ends a process.
    (tmp_path / "file").write_bytes(b"x")
    call, broken = fcntl.fcntl, tmp_path / "broken"

    def meet_a_writer(fd: int, command: int, argument: int) -> Any:
        result = call(fd, command, argument)
        if (command, argument) == (fcntl.F_SETLEASE, fcntl.F_RDLCK):
            with suppress(BlockingIOError):
                os.open(tmp_path / "file", os.O_WRONLY | os.O_NONBLOCK)
            broken.touch()
        return result

    monkeypatch.setattr(fcntl, "fcntl", meet_a_writer)

    assert exit_code_of(lambda: disk.try_read_lease(os.open(tmp_path / "file", os.O_RDONLY))) == 0
    assert broken.exists()


# ── faults of ours ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE])
def test_a_fault_of_ours_rejects_nothing_and_stops_nobody_else(
    number: int, lake: Lake, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_job(lake, "unlucky")
    put_job(lake, "lucky")
    judge = validation.judge

    def fail_once(path: Path, *rest: Any, **named: Any) -> Any:
        if path.name == "unlucky":
            raise OSError(number, os.strerror(number))
        return judge(path, *rest, **named)

    with monkeypatch.context() as patched:
        patched.setattr("bus.intake.judge", fail_once)
        result = intake.drain("unlucky")
    assert result.judged == ["lucky"]
    assert os.strerror(number) in result.faults["unlucky"]
    assert result.later["unlucky"] > 0

    assert intake.drain().judged == ["unlucky"]
    assert codes(verdict_of(lake, "unlucky")) == []


def test_a_full_disk_at_the_verdict_leaves_the_job_in_work(
    lake: Lake, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_job(lake, "job")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(disk, "write_own", full)
        result = intake.drain()
    assert result.judged == []
    assert "No space" in result.faults["job"]

    assert intake.drain().judged == ["job"]


def test_a_failed_fsync_is_for_the_process_to_die_of(
    lake: Lake, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_job(lake, "job")

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(SyncError):
            intake.drain()

    assert intake.drain().judged == ["job"], "whoever comes next repeats the work"


def test_a_defect_of_ours_is_tried_again_elsewhere_and_named_in_the_end(
    lake: Lake, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_job(lake, "odd")
    put_job(lake, "good")

    def defect(path: Path, *_: Any, **__: Any) -> Any:
        if path.name == "odd":
            raise KeyError("a defect")
        return real(path, *_, **__)

    real = validation.judge
    monkeypatch.setattr("bus.intake.judge", defect)
    monkeypatch.setattr("bus.intake.judge_in_child", defect)

    first = intake.drain("odd")
    assert first.judged == ["good"]
    assert "a defect" in first.faults["odd"]
    assert Record.parse(claim_path(lake, "odd").read_bytes()).ends == ["KeyError: 'a defect'"]


# ── the sweep ─────────────────────────────────────────────────────────────────────────────────


def test_due_names_what_nobody_works_on(lake: Lake) -> None:
    put_job(lake, "staged")
    uncommitted = put_job(lake, "uncommitted")
    (uncommitted / COMMIT).unlink()
    put_job(lake, "dropped").rename(lake.work / "dropped")
    put_job(lake, "held").rename(lake.work / "held")
    put_job(lake, "hidden", directory=".staging-x")
    (lake.inbox / "a file").write_text("x")

    with disk.locked(claim_path(lake, "held")):
        found = due(lake)

    assert sorted(found.ingest) == ["dropped", "staged"]
    assert found.writer is False
    assert {p.name for p in lake.claims.iterdir()} == {"held"}, "looking leaves nothing behind"


def test_due_says_that_the_writer_has_work(lake: Lake, intake: Intake) -> None:
    put_job(lake, "job")
    intake.drain()

    found = due(lake)

    assert (found.ingest, found.writer) == ([], True)


def test_due_names_the_thousand_oldest_of_many_in_no_time(lake: Lake) -> None:
    for i in range(2000):
        path = lake.inbox / f"job-{i:05}"
        path.mkdir()
        (path / COMMIT).touch()

    started_s = time.perf_counter()
    found = due(lake)
    took_s = time.perf_counter() - started_s

    assert len(found.ingest) == 1000
    assert found.ingest[0] < "job-00100"
    assert took_s < 1.0


def test_clean_removes_leftovers_and_nothing_else(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_job(lake, "staged")
    (lake.inbox / ".staging-old").mkdir()
    (lake.run / "sort-old").mkdir()
    for name in ("gone", "staged", "held"):
        claim_path(lake, name).touch()

    with disk.locked(claim_path(lake, "held")):
        assert clean(lake) == 1
    assert {p.name for p in lake.claims.iterdir()} == {"staged", "held"}
    assert (lake.inbox / ".staging-old").exists(), "a producer may still be at work"

    tomorrow_s = time.time() + 25 * 3600
    monkeypatch.setattr(time, "time", lambda: tomorrow_s)
    clean(lake)
    assert not (lake.inbox / ".staging-old").exists()
    assert not (lake.run / "sort-old").exists()
    assert (lake.inbox / "staged").exists()


# ── several processes ─────────────────────────────────────────────────────────────────────────


def test_a_claim_of_a_dead_process_is_free(lake: Lake, intake: Intake) -> None:
    path = put_job(lake, "job")
    code = f"""
import os
from bus.disk import Lock
from pathlib import Path
lock = Lock.try_acquire(Path({str(claim_path(lake, "job"))!r}))
Path({str(path)!r}).rename({str(lake.work / "job")!r})
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert due(lake).ingest == ["job"]

    assert intake.drain().judged == ["job"]


def test_heavy_jobs_leave_a_worker_to_the_light_ones(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path / "lake", workers=3)
    nested = pa.table({"x": [[1], [2, 3]]})
    taken = [disk.Lock.try_acquire(pipe.lake.heavy_slot(number)) for number in range(2)]
    pipe.stage("heavy", nested)
    pipe.stage("light", table(1))
    result = Intake(pipe.lake, pipe.settings, pipe.registry).drain()
    assert result.judged == ["light"]
    assert result.later.keys() == {"heavy"}
    (first, _) = taken
    assert first is not None
    first.release()
    assert Intake(pipe.lake, pipe.settings, pipe.registry).drain().judged == ["heavy"]
