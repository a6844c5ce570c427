"""A whole bus whose Redis, and the network to it, are in the hands of the test.

The fixtures are in `tests/faults/fixtures.py`.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from bus import broker, supervisor
from bus.client import Bus, Job
from bus.journal import Journal
from bus.lake import Lake
from bus.model import JobState
from bus.process import die_with_parent
from bus.specs import Registry
from bus.supervisor import processes, valkey
from bus.verify import Level, verify
from tests.integration.conftest import processes_of
from tests.jobs import small_table
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

    from bus.settings import Settings
    from tests.faults.proxy import Proxy

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 40.0
MINE: dict[str, Any] = {"kind": "things", "producer": "tester"}


def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """A silent child that does not outlive this process."""
    us = os.getpid()
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: die_with_parent(us),  # noqa: PLW1509 - nothing but a system call
        **options,
    )


@contextmanager
def up(settings: Settings, state: Path) -> Iterator[Bus]:
    """`bus up` for the length of a block. It is killed at the end: a drain would cost seconds."""
    command = [sys.executable, "-m", "bus.supervisor", "up"]
    environment = processes.environment(settings) | {"XDG_STATE_HOME": str(state)}
    process = start(command, env=environment)
    try:
        supervisor.wait_ready(settings, 60)
        yield Bus(settings)
    finally:
        process.kill()
        process.wait()
        lake = Lake(settings.lake)
        wait_until(lambda: processes_of(lake) == {}, what="everybody died with the supervisor")


def encoded(value: object) -> str:
    """The body of a message."""
    return base64.b64encode(json.dumps(value).encode()).decode()


def celery_message(queue: str, task: str, *args: str) -> dict[str, Any]:
    """What our own clients send, as kombu writes it."""
    task_id = str(uuid4())
    embed = dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))
    return {
        "body": encoded([args, {}, embed]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": task, "id": task_id, "root_id": task_id, "retries": 0},
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid4()),
        },
    }


class Server:
    """A Valkey of the test's own, without a disk: what it forgets is forgotten."""

    def __init__(self, folder: Path) -> None:
        self.port = valkey.free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no"}
        command = [valkey._find_binary(), "--dir", str(self._folder)]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        self._process = start(command)
        wait_until(lambda: valkey.answers(self.url), what="Valkey answers")

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Stopped: it takes connections, for the kernel does, and says nothing."""
        self.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)

    def client(self) -> redis.Redis:
        """Past the proxy, with patience."""
        return broker.open_redis(self.url, timeout_s=20.0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Field:
    """A running bus behind a bad network, and what must be true of it in the end."""

    def __init__(self, bus: Bus, server: Server, proxy: Proxy) -> None:
        self.bus = bus
        self.lake = bus.lake
        self.server = server
        self.proxy = proxy
        self.prefix = broker.default_prefix(bus.lake)
        self._number = 0

    def keys(self) -> broker.Keys:
        return broker.Keys(self.prefix)

    def submit(self, *, told: bool = True) -> Job:
        """A job of its own; not `told`: nobody hears of it."""
        self._number += 1
        bus = self.bus if told else Bus(self.bus.settings, ring=lambda _: False)
        return bus.submit(small_table(start=self._number), **MINE)

    def workers(self) -> dict[str, int]:
        """The processes of the bus."""
        there = broker.endpoint(self.lake)
        assert there is not None
        return there.processes

    @contextmanager
    def producing(self, threads: int = 1) -> Iterator[list[Job]]:
        """Producers that submit one job after the other for the length of the block."""
        jobs: list[Job] = []
        stop = threading.Event()

        def produce() -> None:
            while not stop.wait(0.01):
                jobs.append(self.submit())

        running = [threading.Thread(target=produce) for _ in range(threads)]
        for thread in running:
            thread.start()
        try:
            yield jobs
        finally:
            stop.set()
            for thread in running:
                thread.join(PATIENCE_S)
        assert jobs

    @contextmanager
    def worker(self, fault: str) -> Iterator[subprocess.Popen[bytes]]:
        """One more ingest worker, with a fault (`tests/faults/worker.py`)."""
        command = processes.worker_command(1, fault)
        command[command.index("bus.app")] = "tests.faults.worker"
        environment = processes.environment(self.bus.settings) | {"FAULT": fault}
        process = start(command, cwd=REPOSITORY, env=environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def pool(self) -> list[int]:
        """The children of the ingest worker, who do the work."""
        parent = self.workers()["ingest"]
        found = Path(f"/proc/{parent}/task/{parent}/children").read_text()
        return [int(pid) for pid in found.split()]

    @contextmanager
    def standing_still(self, pids: list[int]) -> Iterator[None]:
        """Stop processes for the length of the block."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def assert_sound(self, level: Level = "full") -> None:
        """A verification finds nothing."""
        registry = Registry.load(self.bus.settings)
        wait_until(self.lake.catalog_db.exists, what="the first commit is published")
        found = verify(self.lake, self.bus.settings, registry, level).findings
        assert found == [], found

    def assert_each_done_once(self, jobs: list[Job]) -> None:
        """Every acknowledged job is committed, once."""
        for job in jobs:
            assert job.wait(PATIENCE_S).status == "committed"
        times = Counter(name for name in self.decided())
        for job in jobs:
            where = [s for s in JobState if s is not JobState.UNKNOWN for _ in self.places(s, job)]
            assert where == [JobState.COMMITTED], (job.job_id, where)
            assert times[job.job_id] == 1, (job.job_id, times[job.job_id])

    def places(self, state: JobState, job: Job) -> list[Path]:
        if state in {JobState.COMMITTED, JobState.REJECTED}:
            return self.lake.submissions(state, job.job_id)
        path = self.lake.state_dir(state) / job.job_id
        return [path] if path.exists() else []

    def decided(self) -> Iterator[str]:
        """The job of each decision in the journal."""
        journal = Journal(self.lake)
        for number in journal.numbers():
            commit = journal.read(number)
            assert commit is not None
            yield from (job.job_id for job in commit.record.jobs)


def timed(call: Callable[[], object]) -> float:
    """How many seconds a call takes."""
    started_s = time.monotonic()
    call()
    return time.monotonic() - started_s
