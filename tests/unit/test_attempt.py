"""Work in a forked child: its answer comes back, and every way to end badly is named."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from bus.attempt import AttemptEndedError, Limits, run_limited
from tests.waiting import is_alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable


ROOMY = Limits(memory_bytes=512 << 20, wall_s=30.0, file_bytes=1 << 20)


def how_it_ends(work: Callable[[Callable[[str], None]], bytes], limits: Limits = ROOMY) -> str:
    with pytest.raises(AttemptEndedError) as caught:
        run_limited(work, limits)
    return str(caught.value)


def _sleep(_: Callable[[str], None]) -> bytes:
    time.sleep(60)
    return b""


def test_what_the_child_returns_comes_back() -> None:
    answer = run_limited(lambda _: json.dumps({"pid": os.getpid()}).encode(), ROOMY)

    assert json.loads(answer)["pid"] != os.getpid()


def test_a_long_answer_comes_back_whole() -> None:
    assert len(run_limited(lambda _: b"x" * (5 << 20), ROOMY)) == 5 << 20


def test_nothing_of_the_childs_work_happens_to_the_parent() -> None:
    seen: list[int] = []

    def work(_: Callable[[str], None]) -> bytes:
        seen.append(1)
        os.chdir("/")
        return b""

    before = os.getcwd()  # noqa: PTH109 - the process's own
    run_limited(work, ROOMY)

    assert (seen, os.getcwd()) == ([], before)  # noqa: PTH109 - likewise


def test_a_crash_is_named_with_the_place() -> None:
    def work(note: Callable[[str], None]) -> bytes:
        note("first.parquet")
        note("second.parquet")
        os.kill(os.getpid(), signal.SIGSEGV)
        return b""

    assert how_it_ends(work) == "SIGSEGV at second.parquet"


def test_a_hang_ends_at_the_wall_limit() -> None:
    started_s = time.monotonic()
    limits = Limits(memory_bytes=512 << 20, wall_s=0.2, file_bytes=0)

    assert how_it_ends(_sleep, limits) == "the wall limit of 0 s"
    assert time.monotonic() - started_s < 10


def test_python_memory_beyond_the_limit_is_named() -> None:
    assert how_it_ends(lambda _: bytes(2 << 30)) == "the memory limit of 512 MiB"


def test_arrow_memory_beyond_the_limit_is_named() -> None:
    assert how_it_ends(lambda _: bytes(pa.nulls(1 << 28, pa.int64()).nbytes)) == (
        "the memory limit of 512 MiB"
    )


def test_memory_within_the_limit_is_granted_whatever_the_parent_has_mapped() -> None:
    held = pa.allocate_buffer(600 << 20)

    assert run_limited(lambda _: str(len(bytes(256 << 20))).encode(), ROOMY) == b"268435456"
    assert held.size == 600 << 20


def test_a_file_beyond_the_limit_is_an_error_in_the_child_only(tmp_path: object) -> None:
    def work(_: Callable[[str], None]) -> bytes:
        try:
            with open(f"{tmp_path}/big", "wb") as file:  # noqa: PTH123 - plain, in a child
                file.write(b"x" * (2 << 20))
        except OSError as error:
            return os.strerror(error.errno or 0).encode()
        return b"written"

    assert run_limited(work, ROOMY) == b"File too large"


def test_the_child_has_its_limits_before_it_works() -> None:
    def work(_: Callable[[str], None]) -> bytes:
        names = ("AS", "CPU", "FSIZE", "CORE", "NOFILE")
        found = {n: resource.getrlimit(getattr(resource, f"RLIMIT_{n}")) for n in names}
        status = Path("/proc/self/status").read_text()
        found["no new privileges"] = (int("NoNewPrivs:\t1" in status),) * 2
        mapped_pages = int(Path("/proc/self/statm").read_text().split()[0])
        return json.dumps([found, mapped_pages * resource.getpagesize()]).encode()

    found, mapped_bytes = json.loads(run_limited(work, ROOMY))

    assert {soft == hard for soft, hard in found.values()} == {True}, "the child could raise it"
    limits = {name: soft for name, (soft, _) in found.items()}
    assert limits.pop("AS") == pytest.approx(mapped_bytes + ROOMY.memory_bytes, abs=64 << 20)
    assert limits == {"CPU": 35, "FSIZE": 1 << 20, "CORE": 0, "NOFILE": 512, "no new privileges": 1}


def test_a_leak_of_descriptors_is_the_childs_own_problem() -> None:
    def work(_: Callable[[str], None]) -> bytes:
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            return os.strerror(error.errno or 0).encode()

    assert run_limited(work, ROOMY) == b"Too many open files"


def test_an_exception_is_an_exit_status() -> None:
    assert how_it_ends(lambda _: str(1 // 0).encode()).startswith("exit status")


def test_signals_to_the_whole_group_do_not_look_like_a_crash() -> None:
    def work(_: Callable[[str], None]) -> bytes:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(os.getpid(), number)
        return b"still here"

    assert run_limited(work, ROOMY) == b"still here"


def test_an_interrupted_parent_takes_the_child_with_it() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    others = _children()
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_limited(_sleep, ROOMY)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert _children() == others


def _children() -> set[str]:
    """The children of this process, zombies included; other tests may have left some."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= set((task / "children").read_text().split())
    return found


def test_the_child_dies_with_its_parent() -> None:
    code = """
import os, sys, time
from bus.attempt import Limits, run_limited
def work(note):
    print(os.getpid(), flush=True)
    time.sleep(60)
run_limited(work, Limits(512 << 20, 30.0, 0))
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()

    wait_until(lambda: not is_alive(child), 10, what="the child died with its parent")


def test_importing_the_module_starts_no_thread_that_a_fork_must_fear() -> None:
    # Arrow's allocator starts threads of its own when it is imported, and handles forks; none may
    # come on top of those, such as Arrow's pools or DuckDB's.
    code = """
import os, pyarrow
before = len(os.listdir('/proc/self/task'))
import bus.intake, sys
assert 'duckdb' not in sys.modules
print(before, len(os.listdir('/proc/self/task')))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())

    assert after <= before
