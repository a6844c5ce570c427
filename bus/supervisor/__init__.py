"""`bus up`: the bundled Valkey and the processes of one lake, started, watched, stopped together.

One thread, no pipes: children write to log files, signals are waited for, and the kernel kills
every child when this process ends, however it ends. So nothing survives `kill -9` of the
supervisor but files, and files are all that matters.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bus import disk
from bus.broker import Broker, Endpoint, address, default_prefix, endpoint, write_endpoint
from bus.errors import Code, LakeBusy, Unavailable
from bus.lake import Lake
from bus.model import JobState, iso, utc_now
from bus.process import die_with_parent, keep_others_out
from bus.settings import last_lake_file
from bus.supervisor import processes, valkey
from bus.supervisor.logs import Logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bus.settings import Settings

__all__ = ["Child", "Supervisor", "down", "running", "wait_ready"]

log = logging.getLogger("bus.supervisor")

REDIS = "redis"
#: Who must have shown life before the bus is called ready.
ROLES = ("ingest", "writer", "pump", "beat")
#: Those who bring work are told to stop first; then the writer, who commits what they finished.
_FEEDERS = ("pump", "beat", "flower", "ingest")
_FEEDERS_STOP_S = 8.0
_WRITER_STOP_S = 8.0
_REDIS_STOP_S = 4.0
_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_WATCHED = _STOP_SIGNALS | {signal.SIGCHLD}
_FIRST_PAUSE_S = 0.1
_LAST_PAUSE_S = 10.0
_SETTLED_AFTER_S = 30.0
_TICK_S = 0.5
_TICK_BEFORE_READY_S = 0.05
_REDIS_START_S = 10.0


@dataclass(slots=True)
class Child:
    """A process to be kept alive: its command, and how it fares."""

    name: str
    command: list[str]
    environment: dict[str, str]
    folder: str | None = None
    inherited: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    pause_s: float = _FIRST_PAUSE_S
    again_at_s: float = 0.0

    @property
    def pid(self) -> int | None:
        """Its process id while it lives."""
        return None if self.process is None else self.process.pid


class Supervisor:
    """One `bus up`. `run` blocks until TERM or INT; call it from the main thread.

    `ready` is called once, when every process has shown life.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        workers: int | None = None,
        flower: bool = False,
        verbose: bool = False,
        ready: Callable[[Endpoint], None] | None = None,
    ) -> None:
        self._settings = settings.model_copy(update={"workers": workers}) if workers else settings
        self._lake = Lake(settings.lake, settings.public_lake)
        self._flower = flower
        self._ready = ready
        self._logs = Logs(self._lake, verbose=verbose)
        self._children: dict[str, Child] = {}
        self._changed = False  # endpoint.json does not say what runs
        self._endpoint: Endpoint | None = None

    def run(self) -> int:
        """Start everything, keep it alive, and on a signal drain and stop it; exit code 0.

        Raises `LakeBusy` (E502) when a bus runs on this lake, `Unavailable` when the lake (E507)
        or Redis (E501) is not usable.
        """
        keep_others_out()
        self._lake.create()
        self._lake.probe()
        self._lake.logs.mkdir(exist_ok=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        try:
            with _only_one(self._lake):
                try:
                    self._start()
                    self._watch()
                finally:
                    self._stop()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return 0

    # ── start ─────────────────────────────────────────────────────────────────────────────────

    def _start(self) -> None:
        started = iso(utc_now())
        url, prefix = self._find_redis()
        self._endpoint = Endpoint(url, prefix, os.getpid(), started)
        self._publish()
        environment = processes.environment(self._settings, prefix)
        commands = {
            "writer": processes.writer_command(),
            "ingest": processes.worker_command(self._settings.workers),
            "pump": processes.pump_command(),
            "beat": processes.beat_command(),
        }
        for name, command in commands.items():
            self._spawn(Child(name, command, environment))
        if self._flower:
            self._start_flower(environment)
        self._publish()
        _remember(self._lake)

    def _find_redis(self) -> tuple[str, str]:
        """The url and key prefix to use: the settings' Redis, or our own, started here."""
        if self._settings.redis_url:
            if not valkey.answers(self._settings.redis_url, timeout_s=5.0):
                raise Unavailable("Redis does not answer", where="BUS_REDIS_URL")
            where = address(self._settings, self._lake)
            prefix = where.prefix if where else default_prefix(self._lake)
            return self._settings.redis_url, prefix
        lock = valkey.lock_data(self._lake)
        server = valkey.prepare(self._lake)
        child = Child(
            REDIS,
            list(server.command),
            dict(os.environ),
            folder=str(self._lake.redis_data),
            inherited=(lock.fileno(),),  # held while the server lives, not while we do
        )
        self._spawn(child)
        self._await_redis(child, server.url)
        lock.release()
        return server.url, self._settings.redis_prefix or ""

    def _await_redis(self, child: Child, url: str) -> None:
        deadline = time.monotonic() + _REDIS_START_S
        aside = False
        while not valkey.answers(url):
            assert child.process is not None  # noqa: S101 - spawned by the caller
            if child.process.poll() is not None and not aside:
                log.warning("valkey did not start; its files are set aside, it begins anew")
                valkey.set_data_aside(self._lake)
                aside = True
                self._spawn(child)
            elif time.monotonic() > deadline or child.process.poll() is not None:
                where = str(self._lake.log_path(REDIS))
                raise Unavailable("the bundled Valkey does not start", where=where)
            time.sleep(0.005)

    def _start_flower(self, environment: dict[str, str]) -> None:
        wanted = int(os.environ.get("FLOWER_PORT", self._settings.flower_port))
        port = wanted if wanted and valkey.is_free(wanted) else valkey.free_port()
        options = processes.flower_environment(self._settings, port) | {"FLOWER_PORT": str(port)}
        self._spawn(Child("flower", processes.flower_command(), environment | options))
        prefix = os.environ.get("FLOWER_URL_PREFIX", "").strip("/")
        user, _, password = options["FLOWER_BASIC_AUTH"].partition(":")
        url = f"http://{options['FLOWER_ADDRESS']}:{port}/{prefix + '/' if prefix else ''}"
        assert self._endpoint is not None  # noqa: S101 - made at the start
        flower = {"url": url, "username": user, "password": password}
        self._endpoint = replace(self._endpoint, flower=flower)

    def _spawn(self, child: Child) -> None:
        us = os.getpid()

        def prepare() -> None:
            die_with_parent(us)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)

        with self._logs.open(child.name) as output:
            child.process = subprocess.Popen(  # noqa: S603 - our own command lines
                child.command,
                env=child.environment,
                cwd=child.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=child.inherited,
                start_new_session=True,  # Ctrl-C is for us; children stop in their order
                preexec_fn=prepare,  # noqa: PLW1509 - this process has one thread
            )
        child.started_s = time.monotonic()
        self._children[child.name] = child

    def _publish(self) -> None:
        """Write endpoint.json: what runs now."""
        assert self._endpoint is not None  # noqa: S101 - made at the start
        alive = {name: c.pid for name, c in self._children.items() if c.pid is not None}
        self._endpoint = replace(self._endpoint, processes=alive)
        write_endpoint(self._lake, self._endpoint)

    # ── watch ─────────────────────────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        told = False
        while True:
            tick_s = _TICK_S if told else _TICK_BEFORE_READY_S
            received = signal.sigtimedwait(_WATCHED, tick_s)
            if received is not None and received.si_signo in _STOP_SIGNALS:
                log.info("stopping on %s", signal.Signals(received.si_signo).name)
                return
            try:
                self._mend()
                self._logs.look()
            except OSError as error:  # a full disk, no memory to fork: the bus must outlive it
                log.warning("could not look after the processes, again soon: %s", error)
            if not told and self._endpoint is not None:
                told = not _missing(self._settings, self._endpoint)
                if told and self._ready is not None:
                    self._ready(self._endpoint)

    def _mend(self) -> None:
        """Notice who died, and start again whose pause is over."""
        now = time.monotonic()
        for child in self._children.values():
            if child.process is not None and (code := child.process.poll()) is not None:
                self._note_death(child, code)
                self._changed = True
            if child.process is None and now >= child.again_at_s:
                child.again_at_s = now + child.pause_s  # should it not even start
                self._spawn(child)
                self._changed = True
        if self._changed:
            self._publish()
            self._changed = False

    def _note_death(self, child: Child, code: int) -> None:
        now = time.monotonic()
        if now - child.started_s > _SETTLED_AFTER_S:
            child.pause_s = _FIRST_PAUSE_S
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        log.warning("%s ended (%s); again in %g s", child.name, how, child.pause_s)
        _kill_group(child)  # what it left behind must not work beside its successor
        child.process = None
        child.again_at_s = now + child.pause_s
        child.pause_s = min(2 * child.pause_s, _LAST_PAUSE_S)

    # ── stop ──────────────────────────────────────────────────────────────────────────────────

    def _stop(self) -> None:
        """Drain: those who bring work first, the writer when nothing is left to commit, Redis last."""
        feeders = self._terminate(*_FEEDERS)
        deadline = time.monotonic() + _FEEDERS_STOP_S
        while self._lives("ingest") and self._has_work() and time.monotonic() < deadline:
            time.sleep(0.02)
        writer = self._terminate("writer")
        for child in feeders:
            _await_end(child, deadline)
        for child in writer:
            _await_end(child, time.monotonic() + _WRITER_STOP_S)
        for child in self._terminate(REDIS):
            _await_end(child, time.monotonic() + _REDIS_STOP_S)
        self._logs.look()
        if self._endpoint is not None:
            disk.remove(self._lake.endpoint)

    def _terminate(self, *names: str) -> list[Child]:
        children = [c for name in names if (c := self._children.get(name)) and c.process]
        for child in children:
            assert child.process is not None  # noqa: S101 - selected above
            child.process.terminate()
        return children

    def _lives(self, name: str) -> bool:
        process = self._children[name].process if name in self._children else None
        return process is not None and process.poll() is None

    def _has_work(self) -> bool:
        """Whether a validator is at a job, or one waits for the writer."""
        states = (JobState.VALIDATING, JobState.READY)
        return any(self._lake.count(state) for state in states)


def _await_end(child: Child, deadline: float) -> None:
    assert child.process is not None  # noqa: S101 - the caller has one
    try:
        child.process.wait(max(0.01, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        log.warning("%s did not end in time and is killed; its work is taken up later", child.name)
    _kill_group(child)
    child.process.wait()


def _kill_group(child: Child) -> None:
    """SIGKILL to the child's whole session; each child leads one."""
    assert child.process is not None  # noqa: S101 - the caller has one
    with suppress(ProcessLookupError):
        os.killpg(child.process.pid, signal.SIGKILL)


@contextmanager
def _only_one(lake: Lake) -> Iterator[None]:
    """Hold the lake's `bus up` lock; its file names our pid."""
    lock = disk.Lock.try_acquire(lake.up_lock)
    if lock is None:
        raise LakeBusy(
            f"`bus up` runs on this lake already, as process {_pid_in(lake)}",
            code=Code.E502,
            where=str(lake.root),
        )
    lock.write(f"{os.getpid()}\n".encode())
    try:
        yield
    finally:
        lock.release()


def _pid_in(lake: Lake) -> int | None:
    try:
        return int(lake.up_lock.read_text())
    except (OSError, ValueError):
        return None


def _remember(lake: Lake) -> None:
    """Note this lake as the user's, unless another of theirs runs; a convenience, and may fail."""
    file = last_lake_file()
    try:
        if _runs_elsewhere(file, lake):
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        disk.replace_view(file, f"{lake.root}\n".encode())
    except OSError as error:
        log.warning("cannot note the lake in %s: %s", file, error)


def _runs_elsewhere(noted: Path, lake: Lake) -> bool:
    try:
        other = Lake(Path(noted.read_text().strip()))
    except FileNotFoundError:
        return False
    return other.root != lake.root and other.up_lock.exists() and not _is_free(other)


# ── from outside ──────────────────────────────────────────────────────────────────────────────


def _missing(settings: Settings, running: Endpoint) -> list[str]:
    """The roles that have not shown life since the bus was started."""
    since_s = datetime.fromisoformat(running.started_at_utc).timestamp()
    try:
        signs = Broker(settings, timeout_s=1.0).heartbeats()
    except Exception as error:  # noqa: BLE001 - Redis is about to come up
        log.debug("no heartbeats: %s", error)
        return list(ROLES)
    alive = {sign.role for sign in signs if sign.at_s >= since_s and sign.alive}
    return [role for role in ROLES if role not in alive]


def wait_ready(settings: Settings, timeout_s: float = 30.0) -> Endpoint:
    """Block until every process of the lake's bus has shown life. Raises `Unavailable` (E501)."""
    lake = Lake(settings.lake, settings.public_lake)
    deadline = time.monotonic() + timeout_s
    while True:
        found = endpoint(lake)
        missing = list(ROLES) if found is None else _missing(settings, found)
        if found is not None and not missing:
            return found
        if time.monotonic() > deadline:
            raise Unavailable(f"not ready after {timeout_s:g} s: {', '.join(missing)}")
        time.sleep(0.02)


def down(lake: Lake, timeout_s: float = 30.0) -> bool:
    """Stop the `bus up` of a lake and wait for its end; False when none runs.

    Raises `Unavailable` (E502) when it does not end in time.
    """
    deadline = time.monotonic() + timeout_s
    told: int | None = None
    while lake.up_lock.exists() and not _is_free(lake):
        pid = _pid_in(lake)
        if pid is not None and pid != told:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            told = pid
        if time.monotonic() > deadline:
            raise Unavailable(f"process {pid} does not end", code=Code.E502, where=str(lake.root))
        time.sleep(0.02)
    return told is not None


def _is_free(lake: Lake) -> bool:
    with disk.locked(lake.up_lock) as lock:
        return lock is not None


def _come_up(
    process: subprocess.Popen[bytes], lake: Lake, settings: Settings, timeout_s: float
) -> Endpoint:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(Unavailable):
            found = wait_ready(settings, 0.1)
            if found.pid == process.pid:
                return found
    said = lake.log_path("up").read_text(errors="replace").strip()
    hint = f"What each process said lies in {lake.logs}."
    raise Unavailable(f"the bus did not come up: {said[-2000:]}", where=str(lake.root), hint=hint)


@contextmanager
def running(
    settings: Settings, *, flower: bool = False, timeout_s: float = 30.0
) -> Iterator[Endpoint]:
    """A whole bus for the length of a block: demo, benchmarks and tests live in one.

    Raises `Unavailable` with what it said when it does not come up. It dies with this process.
    """
    us = os.getpid()
    command = [sys.executable, "-m", "bus.supervisor", "up", *(["--flower"] if flower else [])]
    lake = Lake(settings.lake, settings.public_lake)
    lake.create()
    lake.logs.mkdir(exist_ok=True)
    with lake.log_path("up").open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command line
            command,
            env=processes.environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=lambda: die_with_parent(us),  # noqa: PLW1509 - nothing but a system call
        )
    try:
        yield _come_up(process, lake, settings, timeout_s)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
