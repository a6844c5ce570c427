"""The lake: paths, and moves of jobs between their states."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from bus import disk
from bus.errors import JobConflict, Refused, Unavailable
from bus.lake import COMMIT, Lake
from bus.model import JobState
from tests.waiting import tick_after


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path / "lake")
    lake.create()
    return lake


def staged(lake: Lake, job_id: str, content: str = "") -> None:
    staging = lake.new_staging(job_id)
    (staging / COMMIT).write_text(content)
    lake.publish_staged(staging, job_id)


def test_naming_a_lake_touches_nothing_and_creating_it_twice_changes_nothing(
    tmp_path: Path,
) -> None:
    lake = Lake(tmp_path / "a" / "b")
    assert not lake.root.exists()
    lake.create()
    made = sorted(tmp_path.rglob("*"))
    lake.create()
    assert sorted(tmp_path.rglob("*")) == made
    assert all(path.is_dir() for path in lake.directories())


def test_a_lake_that_cannot_be_made_is_e507_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable) as caught:
        Lake(tmp_path / "file" / "lake").create()
    assert (caught.value.code, caught.value.where) == ("E507", str(tmp_path / "file" / "lake"))


def test_everything_lies_below_the_lake(lake: Lake) -> None:
    paths = [
        *lake.directories(),
        lake.object_path("ab" * 32),
        lake.record_path(7),
        lake.artifact_path("trades", 1, "id"),
        lake.sidecar_path("id"),
        lake.run_tree("run"),
        lake.export_path("alerts"),
        lake.claim_path("job"),
        lake.writer_lock,
        lake.rebuild_request,
    ]
    assert all(path.is_relative_to(lake.root) for path in paths)
    assert lake.record_path(42).name == "000000000042.json"
    assert lake.object_path("ab" * 32) == lake.objects / "ab" / f"{'ab' * 32}.parquet"


def test_readers_see_paths_under_the_public_root(tmp_path: Path) -> None:
    lake = Lake(tmp_path, Path("/mnt/lake"))
    assert lake.public(lake.catalog_db) == "/mnt/lake/catalog/bus.duckdb"
    assert lake.relative(lake.catalog_db) == "catalog/bus.duckdb"


def test_two_lakes_on_one_redis_are_told_apart(tmp_path: Path) -> None:
    assert Lake(tmp_path / "a").identity != Lake(tmp_path / "b").identity
    assert Lake(tmp_path / "a").identity == Lake(tmp_path / "." / "a").identity


# ── staging ──────────────────────────────────────────────────────────────────────────────────────


def test_a_staged_job_appears_whole_under_its_name(lake: Lake) -> None:
    staging = lake.new_staging("job")
    assert lake.state_of("job") is JobState.UNKNOWN
    assert lake.listing(JobState.STAGED) == []
    (staging / COMMIT).write_text("")
    lake.publish_staged(staging, "job")
    assert lake.state_of("job") is JobState.STAGED
    assert [w.name for w in lake.listing(JobState.STAGED)] == ["job"]
    assert not staging.exists()


def test_a_waiting_job_is_never_overwritten_by_another_of_its_id(lake: Lake) -> None:
    staged(lake, "job", "first")
    with pytest.raises(JobConflict):
        staged(lake, "job", "second")
    assert (lake.inbox / "job" / COMMIT).read_text() == "first"


def test_a_file_in_the_place_of_a_job_is_a_conflict_too(lake: Lake) -> None:
    (lake.inbox / "job").write_text("a file")
    with pytest.raises(JobConflict):
        staged(lake, "job")


@pytest.mark.parametrize("job_id", ["", "../x", "a/b", ".hidden", "x" * 129, "a\n", "a\0b"])
def test_a_job_id_that_is_a_path_gets_no_staging_directory(lake: Lake, job_id: str) -> None:
    with pytest.raises(Refused) as caught:
        lake.new_staging(job_id)
    assert caught.value.code == "E104"
    assert lake.state_of(job_id) is JobState.UNKNOWN
    assert os.listdir(lake.inbox) == []


def test_a_long_job_id_can_be_staged(lake: Lake) -> None:
    staged(lake, "x" * 128)
    assert lake.state_of("x" * 128) is JobState.STAGED


def test_only_staging_that_nobody_has_touched_for_long_is_stale(lake: Lake) -> None:
    old, busy = lake.new_staging("old"), lake.new_staging("busy")
    now_s = time.time() + 100
    (lake.inbox / "job").mkdir()
    assert set(lake.stale_staging(50, now_s)) == {old, busy}
    assert list(lake.stale_staging(200, now_s)) == []


# ── states ───────────────────────────────────────────────────────────────────────────────────────


def test_the_directory_a_job_lies_in_is_its_state(lake: Lake) -> None:
    staged(lake, "job")
    path = lake.inbox / "job"
    for state in (JobState.VALIDATING, JobState.READY, JobState.REJECTED):
        disk.move(path, lake.state_dir(state) / "job")
        path = lake.state_dir(state) / "job"
        assert lake.state_of("job") is state
        assert lake.has_any(state)
        assert lake.count(state) == 1
    staged(lake, "job")  # a rejected id may come again: the youngest submission speaks
    assert lake.state_of("job") is JobState.STAGED


def test_listings_are_oldest_first_and_show_jobs_only(lake: Lake) -> None:
    for name in ("b", "a", "c"):
        (lake.ready / name).mkdir()
        tick_after(lake.ready / name)
    (lake.ready / "file").write_text("no job")
    (lake.ready / ".hidden").mkdir()
    (lake.ready / "link").symlink_to(lake.inbox)
    assert [w.name for w in lake.listing(JobState.READY)] == ["b", "a", "c"]
    assert not lake.has_any(JobState.VALIDATING)


def test_each_submission_of_an_id_keeps_a_directory_of_its_own(lake: Lake) -> None:
    names = []
    for _ in range(3):
        path = Path(lake.free_place(JobState.REJECTED, "job"))
        path.mkdir()
        names.append(path.name)
    assert names == ["job", "job~2", "job~3"]
    assert [p.name for p in lake.submissions(JobState.REJECTED, "job")] == names
    assert lake.submissions(JobState.COMMITTED, "job") == []


# ── the store ────────────────────────────────────────────────────────────────────────────────────


def test_only_files_named_by_a_hash_are_objects(lake: Lake) -> None:
    path = lake.object_path("ab" * 32)
    path.parent.mkdir()
    path.write_bytes(b"")
    (path.parent / ".half").write_bytes(b"")
    (path.parent / "README.parquet").write_bytes(b"")
    assert list(lake.all_objects()) == [path]


def test_the_probe_leaves_nothing_behind(lake: Lake) -> None:
    before = sorted(lake.root.rglob("*"))
    lake.probe()
    assert sorted(lake.root.rglob("*")) == before


def test_a_lake_across_file_systems_is_refused_by_trying(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def link(source: Path, target: Path, **options: bool) -> None:
        if Path(target).is_relative_to(lake.objects):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, target, **options)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(Unavailable, match=r"no link or rename from .*inbox to .*objects") as caught:
        lake.probe()
    assert caught.value.code == "E507"
    assert os.listdir(lake.inbox) == []
