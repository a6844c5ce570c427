"""Durable file operations: each keeps the one promise that its docstring names."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bus import disk
from tests.forks import exit_code_of

HOLD = """
import sys
from pathlib import Path
from bus.disk import Lock
lock = Lock.try_acquire(Path(sys.argv[1]))
print("held" if lock else "refused", flush=True)
sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Another process that takes the lock and keeps it until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str], how: int = signal.SIGTERM) -> None:
    process.send_signal(how)
    process.communicate(timeout=10)


# ── names that are taken once ────────────────────────────────────────────────────────────────────


def test_of_many_who_link_one_name_exactly_one_wins(tmp_path: Path) -> None:
    target = tmp_path / "taken"
    results: list[bool] = []
    gate = threading.Barrier(8)

    def race(number: int) -> None:
        source = tmp_path / f"s{number}"
        disk.write_plain(source, b"%d" % number)
        gate.wait()
        won = disk.link_new(source, target)
        results.append(won)
        if won:
            assert target.samefile(source)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]


def test_linking_never_follows_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "link").symlink_to("secret")
    assert disk.link_new(tmp_path / "link", tmp_path / "object")
    assert (tmp_path / "object").is_symlink()  # and so is refused as an object, not adopted


def test_a_directory_is_never_moved_onto_one_that_holds_something(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(name.encode())
    with pytest.raises(OSError) as caught:
        disk.move(tmp_path / "a", tmp_path / "b")
    assert caught.value.errno in {errno.ENOTEMPTY, errno.EEXIST}
    assert (tmp_path / "b" / "file").read_bytes() == b"b"


def test_where_links_run_out_a_view_gets_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "object"
    source.write_bytes(b"rows")
    assert disk.link_or_copy(source, tmp_path / "one")
    assert (tmp_path / "one").samefile(source)
    assert not disk.link_or_copy(source, tmp_path / "one")

    def too_many(*_: object, **__: object) -> None:
        raise OSError(errno.EMLINK, "too many links")

    monkeypatch.setattr(os, "link", too_many)
    assert disk.link_or_copy(source, tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == b"rows"
    assert not (tmp_path / "two").samefile(source)
    assert sorted(os.listdir(tmp_path)) == ["object", "one", "two"]


def test_a_fault_that_is_no_lack_of_links_is_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        disk.link_or_copy(tmp_path / "nothing", tmp_path / "target")


# ── whole files ──────────────────────────────────────────────────────────────────────────────────


def test_a_short_write_is_continued_until_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    disk.write_durable(tmp_path / "f", b"0123456789", mode=0o444)
    assert (tmp_path / "f").read_bytes() == b"0123456789"
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o444


def test_a_view_is_replaced_whole_while_someone_reads_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "view.json"
    disk.replace_view(path, b"old")
    with path.open("rb") as reader:
        disk.replace_view(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["view.json"]


def test_publishing_syncs_the_file_before_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def fsync(fd: int) -> None:
        did.append(
            f"sync {str(Path(f'/proc/self/fd/{fd}').readlink()).removeprefix(str(tmp_path))}"
        )
        real_sync(fd)

    def replace(source: Path, target: Path) -> None:
        did.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    disk.write_plain(tmp_path / "temporary", b"rows")
    disk.publish_file(tmp_path / "temporary", tmp_path / "final")
    assert did == ["sync /temporary", "rename", "sync "]


def test_many_files_are_each_synced_once_and_a_failure_of_one_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{number:02d}" for number in range(40)]
    for path in paths:
        disk.write_plain(path, b"x")
    real, told = os.fsync, []

    def fsync(fd: int) -> None:
        name = Path(f"/proc/self/fd/{fd}").readlink().name
        told.append(name)  # from several threads
        if name == failing:
            raise OSError(errno.EIO, "failed")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    opened, failing = len(os.listdir("/proc/self/fd")), ""
    disk.sync_all(paths)
    assert sorted(told) == [path.name for path in paths]
    told.clear()
    failing = "03"
    with pytest.raises(OSError, match="failed"):
        disk.sync_all(paths)
    assert told.count("03") == 1
    assert len(os.listdir("/proc/self/fd")) == opened


def test_a_forked_child_syncs_many_files_too_and_so_does_its_parent_afterwards(
    tmp_path: Path,
) -> None:
    paths = [tmp_path / f"{number}" for number in range(3)]
    for path in paths:
        disk.write_plain(path, b"x")
    disk.sync_all(paths)
    assert "bus-sync" in " ".join(thread.name for thread in threading.enumerate())
    for _ in range(2):
        assert exit_code_of(lambda: disk.sync_all(paths)) == 0
        assert "bus-sync" not in " ".join(thread.name for thread in threading.enumerate())
        disk.sync_all(paths)


@pytest.mark.parametrize("name", ["write_durable", "sync_file", "sync_dir"])
def test_a_failed_sync_is_raised_and_never_tried_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def failing(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.EIO, "input/output error")

    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setattr(os, "fsync", failing)
    arguments = {
        "write_durable": (tmp_path / "f", b"x"),
        "sync_file": (tmp_path / "file",),
        "sync_dir": (tmp_path,),
    }
    with pytest.raises(OSError, match="input/output"):
        getattr(disk, name)(*arguments[name])
    assert len(calls) == 1


def test_a_copy_has_the_bytes_and_is_another_file(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "a").write_bytes(data)
    disk.copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == data
    assert not (tmp_path / "b").samefile(tmp_path / "a")


def test_removing_what_is_not_there_is_fine(tmp_path: Path) -> None:
    disk.remove(tmp_path / "nothing")
    disk.remove_tree(tmp_path / "nothing")


# ── files of strangers ───────────────────────────────────────────────────────────────────────────


def opened(directory: Path, relpath: str) -> bytes:
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fd = disk.open_foreign(directory_fd, relpath)
        try:
            return os.read(fd, 100)
        finally:
            os.close(fd)
    finally:
        os.close(directory_fd)


def test_a_strangers_file_is_opened_below_its_directory_only(tmp_path: Path) -> None:
    job = tmp_path / "job"
    (job / "deep").mkdir(parents=True)
    (job / "deep" / "file").write_bytes(b"rows")
    (tmp_path / "secret").write_bytes(b"secret")
    (job / "link").symlink_to(tmp_path / "secret")
    (job / "folder").symlink_to(tmp_path)
    assert opened(job, "deep/file") == b"rows"
    for relpath in ("link", "folder/secret", "missing", "deep/missing", "deep/file/x"):
        with pytest.raises(OSError) as caught:
            opened(job, relpath)
        foreign = caught.value.errno in disk.FOREIGN_ERRNOS
        assert foreign or isinstance(caught.value, FileNotFoundError)


def test_a_fifo_a_socket_a_device_and_a_directory_neither_hang_nor_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(tmp_path, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
        for name in ("fifo", "directory", "socket"):
            with pytest.raises(OSError) as caught:
                opened(tmp_path, name)
            is_ours = isinstance(caught.value, disk.NotRegularError)
            assert is_ours or caught.value.errno in disk.FOREIGN_ERRNOS
    with pytest.raises(disk.NotRegularError):
        opened(Path("/dev"), "null")


def test_a_fault_of_ours_is_not_taken_for_the_strangers(tmp_path: Path) -> None:
    assert not disk.FOREIGN_ERRNOS & {errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOSPC}
    assert errno.ENOENT not in disk.FOREIGN_ERRNOS
    assert tmp_path.exists()


def test_opening_leaks_no_descriptors(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    for relpath in ("a/file", "a", "a/nothing", "nothing/file"):
        try:
            opened(tmp_path, relpath)
        except OSError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("how", ["open", "other name", "mapped"])
def test_the_lease_notices_everyone_who_can_still_write(how: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 4096)
    reader = os.open(path, os.O_RDONLY)
    assert disk.try_read_lease(reader)
    name = path
    if how == "other name":
        name = tmp_path / "other"
        os.link(path, name)
    writer = os.open(name, os.O_RDWR)
    mapped = mmap.mmap(writer, 4096) if how == "mapped" else None
    if mapped is not None:
        os.close(writer)
    assert not disk.try_read_lease(reader)
    if mapped is not None:
        mapped.close()
    else:
        os.close(writer)
    assert disk.try_read_lease(reader)
    os.close(reader)


def test_a_lease_that_is_broken_in_its_moment_does_not_end_us(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    reader = os.open(path, os.O_RDONLY)
    fcntl.fcntl(reader, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(reader, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    with pytest.raises(BlockingIOError):
        os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # the kernel signals the holder: SIGURG
    os.close(reader)


def test_a_file_made_read_only_stays_so(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDONLY)
    assert disk.make_read_only(fd)
    os.close(fd)
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_a_closed_directory_is_opened_up_but_never_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir(mode=0o000)
    disk.open_up(tmp_path / "job")
    assert stat.S_IMODE((tmp_path / "job").stat().st_mode) & 0o700 == 0o700
    (tmp_path / "victim").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("victim")
    with pytest.raises(OSError):
        disk.open_up(tmp_path / "link")
    assert stat.S_IMODE((tmp_path / "victim").stat().st_mode) == 0o700


# ── locks ────────────────────────────────────────────────────────────────────────────────────────


def test_a_lock_is_held_by_one_and_freed_by_the_kernel_when_the_holder_is_killed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lock"
    process = holder(path)
    assert disk.Lock.try_acquire(path) is None
    end(process, signal.SIGKILL)
    lock = disk.Lock.try_acquire(path)
    assert lock is not None
    assert disk.Lock.try_acquire(path) is None
    lock.release()


def test_a_lock_whose_file_was_deleted_or_replaced_is_no_longer_ours(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = disk.Lock.try_acquire(path)
    assert first is not None
    assert first.is_ours()
    path.unlink()
    assert not first.is_ours()
    second = disk.Lock.try_acquire(path)
    assert second is not None
    assert second.is_ours()
    assert not first.is_ours()
    first.release(unlink=True)  # must not remove the file of the other
    assert second.is_ours()
    second.release(unlink=True)
    assert not path.exists()


def test_the_lock_file_holds_what_its_holder_wrote_last(tmp_path: Path) -> None:
    with disk.locked(tmp_path / "lock") as lock:
        assert lock is not None
        lock.write(b"a long text")
        lock.write(b"short")
        assert lock.read() == b"short"
        with disk.locked(tmp_path / "lock") as second:
            assert second is None


# ── crash points ─────────────────────────────────────────────────────────────────────────────────

CRASH = """
from bus.disk import crash_point
for _ in range(2):
    crash_point("claim.locked")
    print("passed", flush=True)
"""


@pytest.mark.parametrize(
    ("armed", "passed", "code"),
    [
        ("claim.locked", 0, -signal.SIGKILL),
        ("claim.locked:2", 1, -signal.SIGKILL),
        ("claim.locked:3", 2, 0),
        ("store.done", 2, 0),
        ("", 2, 0),
    ],
)
def test_a_crash_point_kills_at_the_nth_passing_when_armed(
    armed: str, passed: int, code: int
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", CRASH],
        env=os.environ | {"BUS_CRASH_AT": armed},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (run.stdout.count("passed"), run.returncode) == (passed, code)
