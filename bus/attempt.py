"""Work that may bring its process down, done in a forked child with limits.

`run_limited` forks, lets the child work under limits of memory, CPU, file size and wall time, and
returns the bytes that it answered. Any other end that the living parent observes (a signal, a
limit, silence) is an `AttemptEndedError` that names it.

Forking is safe here although Arrow's libraries start two threads of their own when imported: the
allocator's handlers make those safe, Arrow rebuilds its pools in the child, the child works
single-threaded and asks the system's allocator, and it never returns into the parent's stack. A child
may fork once more when its DuckDB, if it started one, is closed: what threads that leaves are idle.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import gc
import json
import os
import resource
import select
import signal
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_ANSWER_BYTES = 64 << 20
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CPU_GRACE_S = 5
#: What the parent had open, a file, its copy, and what a sort spills into.
_MAX_OPEN_FILES = 512
_OUT_OF_MEMORY = 86
_BROKEN = 87
_OUR_FAULT = 88
#: A note of what comes before the job is touched: DuckDB ends its process when it cannot open a file.
STARTS_DUCKDB = "the start of DuckDB"
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may use: memory beyond what its parent has mapped, wall time, file size."""

    memory_bytes: int
    wall_s: float
    file_bytes: int


class AttemptEndedError(Exception):
    """The child did not answer. `how`: ``SIGSEGV``, ``wall limit of 60 s`` …; `at`: its last note."""

    def __init__(self, how: str, at: str) -> None:
        super().__init__(f"{how} at {at}" if at else how)
        self.how = how
        self.at = at

    @property
    def is_ours(self) -> bool:
        """Whether DuckDB died before it had seen the job."""
        return self.at == STARTS_DUCKDB and self.how.startswith("SIG")


def run_limited(work: Callable[[Callable[[str], None]], bytes], limits: Limits) -> bytes:
    """`work(note)` in a child: what it returned, in one line. Raises `AttemptEndedError`.

    An OSError that `work` lets out, or that kept the child from working, is raised as an OSError:
    it says nothing about the job.

    `work` may call `note` with what it is about to touch; the last note is in the error. The child
    dies with its parent. Signals that people and init systems send to a whole group (INT, TERM,
    HUP) do not end it, so that a shutdown is never taken for a crash of the validator.
    """
    reader, writer = os.pipe()
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of others: see the module
        try:
            child = os.fork()
        except OSError:  # no room for another process: ours stays as it was
            os.close(reader)
            os.close(writer)
            raise
    if child == 0:
        os.close(reader)
        _be_the_child(work, limits, parent, writer)
    os.close(writer)
    try:
        received, on_time = _receive(reader, limits.wall_s)
        if not on_time:
            os.kill(child, signal.SIGKILL)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(reader)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == _OUR_FAULT:
        raise OSError(errno.EIO, "the system failed the validator's child")
    *notes, answer = received.split(b"\n")
    ended = _how_it_ended(status, limits, on_time=on_time, size_bytes=len(received))
    if ended is not None:
        raise AttemptEndedError(ended, json.loads(notes[-1]) if notes else "")
    return answer


def _receive(reader: int, wall_s: float) -> tuple[bytes, bool]:
    """Everything the child wrote, and whether it ended within its time and size."""
    deadline = time.monotonic() + wall_s
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    received = bytearray()
    while (left_s := deadline - time.monotonic()) > 0 and len(received) <= MAX_ANSWER_BYTES:
        if poll.poll(left_s * 1000):
            chunk = os.read(reader, 1 << 20)
            if not chunk:
                return bytes(received), True
            received += chunk
    return bytes(received), False


def _how_it_ended(status: int, limits: Limits, *, on_time: bool, size_bytes: int) -> str | None:
    """None for a good end."""
    if size_bytes > MAX_ANSWER_BYTES:
        return f"an answer of more than {MAX_ANSWER_BYTES >> 20} MiB"
    if not on_time:
        return f"the wall limit of {limits.wall_s:.0f} s"
    code = os.waitstatus_to_exitcode(status)
    if code == _OUT_OF_MEMORY:
        return f"the memory limit of {limits.memory_bytes >> 20} MiB"
    if code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
        return f"signal {-code}"
    return f"exit status {code}" if code else None


# ── in the child ──────────────────────────────────────────────────────────────────────────────


def _be_the_child(
    work: Callable[[Callable[[str], None]], bytes], limits: Limits, parent: int, writer: int
) -> NoReturn:
    """Work, answer, and leave without touching anything that belongs to the parent."""
    code = _BROKEN
    try:
        _confine(limits, parent)
        answer = work(lambda at: _send(writer, json.dumps(at).encode() + b"\n"))
        _send(writer, answer)
        code = 0
    except MemoryError:
        code = _OUT_OF_MEMORY
    except OSError:
        code = _OUR_FAULT
    finally:
        os._exit(code)


def _confine(limits: Limits, parent: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(_BROKEN)  # the parent died before it could take us with it
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(name, signal.SIG_IGN)
    faulthandler.disable()
    gc.freeze()
    pa.set_memory_pool(pa.system_memory_pool())  # counts every byte against RLIMIT_AS at once
    cpu_s = int(limits.wall_s) + _CPU_GRACE_S
    _limit(resource.RLIMIT_AS, _mapped_bytes() + limits.memory_bytes)
    _limit(resource.RLIMIT_CPU, cpu_s)
    _limit(resource.RLIMIT_FSIZE, limits.file_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, _MAX_OPEN_FILES)


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def _mapped_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - after a fork, as plain as can be
        return int(file.read().split()[0]) * resource.getpagesize()


def _send(writer: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(writer, view) :]
        except OSError as error:
            if error.errno != errno.EPIPE:
                raise
            os._exit(_BROKEN)  # nobody listens any more
