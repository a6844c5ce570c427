"""Whether a machine is fit: each check can fail, and then says what to do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from bus import disk, doctor
from bus.doctor import Finding, examine, file_system_of
from bus.errors import Code, Unavailable
from bus.lake import Lake
from bus.settings import Settings
from tests.jobs import put_job

if TYPE_CHECKING:
    from pathlib import Path

NETWORK = "36 35 0:50 / / rw - nfs4 server:/export rw\n"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def examined(lake: Lake) -> dict[str, Finding]:
    return {found.check: found for found in examine(lake, Settings(lake=lake.root))}


def test_this_machine_is_fit_and_a_missing_lake_is_made(lake: Lake) -> None:
    found = examined(lake)
    assert [f for f in found.values() if f.grade == "bad"] == []
    assert set(found) == {
        *("versions", "file system", "link and rename", "locks", "fsync", "permissions", "room"),
        *("clock", "redis", "job directories"),
    }
    assert lake.inbox.is_dir()


def test_a_check_leaves_nothing_behind(lake: Lake) -> None:
    examined(lake)
    assert [path for path in lake.root.rglob("*") if path.is_file()] == []


def test_every_finding_that_is_not_ok_says_what_to_do(lake: Lake) -> None:
    put_job_without_commit(lake)
    for found in examined(lake).values():
        assert found.saw
        assert (found.hint == "") is (found.grade == "ok")


def put_job_without_commit(lake: Lake) -> None:
    lake.create()
    (lake.inbox / "half").mkdir()


def test_strangers_in_the_inbox_are_named(lake: Lake) -> None:
    lake.create()
    put_job(lake, "fine")
    assert examined(lake)["job directories"].grade == "ok"
    put_job_without_commit(lake)
    assert "1 directories without COMMIT" in examined(lake)["job directories"].saw
    (lake.inbox / "notes.txt").touch()
    assert "1 entries are no jobs: notes.txt" in examined(lake)["job directories"].saw


def test_a_network_file_system_is_refused(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mounts").write_text(NETWORK)
    monkeypatch.setattr(doctor, "_MOUNTS", tmp_path / "mounts")
    found = examined(lake)["file system"]
    assert (found.grade, found.saw) == ("bad", "nfs4: a network file system")


def test_the_nearest_mount_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "1 0 8:1 / / rw - ext4 /dev/a rw",
        f"2 1 8:2 / {tmp_path} rw shared:1 - xfs /dev/b rw",
        f"3 2 8:3 / {tmp_path}-other rw - btrfs /dev/c rw",
        f"4 2 8:4 / {tmp_path}/with\\040space rw - tmpfs none rw",
    ]
    (tmp_path / "mounts").write_text("\n".join(lines))
    (tmp_path / "with space").mkdir()
    monkeypatch.setattr(doctor, "_MOUNTS", tmp_path / "mounts")
    assert file_system_of(tmp_path) == "xfs"
    assert file_system_of(tmp_path / "with space") == "tmpfs"


def test_directories_that_refuse_a_link_are_refused(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Lake) -> None:
        raise Unavailable("no link from a to b", code=Code.E507, where=str(lake.root))

    monkeypatch.setattr(Lake, "probe", refuse)
    found = examined(lake)["link and rename"]
    assert found.grade == "bad"
    assert "no link from a to b" in found.saw


def test_a_disk_that_answers_before_it_wrote_is_odd(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "write_durable", lambda *_: None)
    assert "faster than disks are" in examined(lake)["fsync"].saw


def test_a_clock_behind_the_journal_is_odd(lake: Lake) -> None:
    lake.create()
    ahead = lake.record_path(1)
    ahead.touch()
    os.utime(ahead, (4e9, 4e9))
    assert examined(lake)["clock"].grade == "odd"


def test_a_full_disk_is_bad(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1 << 20, "total": 1 << 40})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert examined(lake)["room"].grade == "bad"


def test_a_lake_that_cannot_be_made_ends_the_examination(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (found,) = examine(Lake(tmp_path / "file" / "lake"), Settings(lake=tmp_path))
    assert (found.check, found.grade) == ("lake", "bad")
