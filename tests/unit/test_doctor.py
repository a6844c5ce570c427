"""Whether a machine is fit: each check can fail, and then says what to do."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from bus import disk, doctor
from bus.broker import Endpoint, write_endpoint
from bus.doctor import Finding, examine, file_system_of
from bus.lake import Lake
from bus.settings import Settings
from tests.jobs import put_job

if TYPE_CHECKING:
    from collections.abc import Iterator

NETWORK = "36 35 0:50 / / rw - nfs4 server:/export rw\n"


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    before = os.umask(0o022)
    yield Lake(tmp_path / "lake")
    os.umask(before)


def examined(lake: Lake) -> dict[str, Finding]:
    return {found.check: found for found in examine(lake, Settings(lake=lake.root))}


def test_this_machine_is_fit_and_a_missing_lake_is_made(lake: Lake) -> None:
    found = examined(lake)
    assert [f for f in found.values() if f.grade == "bad"] == []
    assert set(found) == {
        *("versions", "file system", "link and rename", "locks", "fsync", "permissions", "room"),
        *("clock", "settings", "redis", "job directories", "contracts"),
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


def test_a_bus_that_is_older_than_its_settings_is_odd(lake: Lake) -> None:
    lake.create()
    config = lake.root / "bus.toml"
    config.write_text("strict_kinds = true\n")
    settings = Settings.load(lake=lake.root)
    assert settings.config_path == config

    def seen() -> Finding:
        return next(f for f in examine(lake, settings) if f.check == "settings")

    def started(moment_s: float) -> None:
        at = datetime.fromtimestamp(moment_s, UTC).isoformat()
        write_endpoint(lake, Endpoint("redis://127.0.0.1:1/0", "", os.getpid(), at))

    assert seen().grade == "ok"  # no bus runs
    written_s = config.stat().st_mtime
    started(written_s + 1)
    assert seen().grade == "ok"
    started(written_s - 1)
    assert (seen().grade, "bus.toml was changed" in seen().saw) == ("odd", True)


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
    assert (found.grade, found.saw[:27]) == ("bad", "nfs4: a network file system")


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
    link_new = disk.link_new

    def refuse(source: Path, target: Path) -> bool:
        if lake.journal in {Path(source).parent, Path(target).parent}:  # a mount of its own
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return link_new(source, target)

    monkeypatch.setattr(disk, "link_new", refuse)
    found = examined(lake)["link and rename"]
    assert found.grade == "bad"
    assert "bus/store/journal" in found.saw
    assert "Invalid cross-device link" in found.saw
    assert re.search(r"and \d\d other pairs", found.saw)
    assert [path for path in lake.root.rglob("*") if path.is_file()] == []


def test_a_disk_that_answers_before_it_wrote_is_odd(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "write_durable", lambda *_: None)
    assert "faster than disks are" in examined(lake)["fsync"].saw


def test_a_library_that_answers_fsync_in_place_of_the_system_is_bad(
    tmp_path: Path,
) -> None:
    source = tmp_path / "eatmydata.c"
    source.write_text("int fsync(int fd) { return 0; }\n")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make a library that ignores fsync")
    library = tmp_path / "libeatmydata.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    code = "import json, sys; from bus.doctor import _impostor; print(_impostor())"
    for preload in ("", str(library)):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"LD_PRELOAD": preload},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.strip() == (preload or "None")


def test_an_fsync_that_is_not_the_systems_is_told_with_the_library(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_library_of", lambda _: "/usr/lib/libeatmydata.so.1")
    found = examined(lake)["fsync"]
    assert (found.grade, "libeatmydata" in found.saw) == ("bad", True)
    assert "LD_PRELOAD" in found.hint


@pytest.mark.parametrize("options", ["rw,nobarrier", "rw,barrier=0", "rw,volatile"])
def test_a_mount_that_does_not_wait_for_the_disk_is_bad(
    options: str, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mounts").write_text(f"36 35 0:50 / / rw,relatime - ext4 /dev/a {options}\n")
    monkeypatch.setattr(doctor, "_MOUNTS", tmp_path / "mounts")
    found = examined(lake)["fsync"]
    assert (found.grade, options[3:] in found.saw) == ("bad", True)


def test_a_part_of_the_lake_on_a_network_is_refused(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = f"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:50 / {lake.exports} rw - nfs s:/e rw\n"
    (tmp_path / "mounts").write_text(lines)
    monkeypatch.setattr(doctor, "_MOUNTS", tmp_path / "mounts")
    found = examined(lake)["file system"]
    assert (found.grade, str(lake.exports) in found.saw) == ("bad", True)


def test_packages_older_than_we_ask_for_are_bad(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ["pyarrow>=24,<30", "redis<9,>=8", "celery[redis]>=5.7,<6", 'mypy>=2; extra == "dev"']
    monkeypatch.setattr("importlib.metadata.requires", lambda _: wanted)
    assert examined(lake)["versions"].grade == "ok"
    monkeypatch.setattr("importlib.metadata.requires", lambda _: [*wanted, "duckdb>=99.1"])
    found = examined(lake)["versions"]
    assert (found.grade, "(at least 99.1)" in found.saw) == ("bad", True)


def test_a_redis_with_another_time_is_odd(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def time(self) -> tuple[int, int]:
            return int(time.time()) - 100, 0

    monkeypatch.setattr(doctor, "connect", lambda *_, **__: Late())
    found = examined(lake)["clock"]
    assert found.grade == "odd"
    assert re.search("ours and Redis's differ by (99|100|101) s", found.saw)


def test_a_password_that_others_can_read_is_bad(lake: Lake) -> None:
    lake.create()
    write_endpoint(lake, Endpoint("redis://bus:x@127.0.0.1:1/0", "", 1, "now"))
    assert examined(lake)["permissions"].grade == "ok"
    lake.endpoint.chmod(0o644)
    found = examined(lake)["permissions"]
    assert (found.grade, found.saw) == ("bad", "others may read bus/endpoint.json")


def test_directories_that_others_can_write_to_are_odd_but_for_the_inbox(lake: Lake) -> None:
    lake.create()
    lake.inbox.chmod(0o1730)
    assert examined(lake)["permissions"].grade == "ok"
    lake.objects.chmod(0o777)
    found = examined(lake)["permissions"]
    assert (found.grade, found.saw) == ("odd", "others may write to bus/store/objects")


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
