"""The Celery app: queues, routes, schedule, and what its processes do when they start and stop.

``celery -A bus.app worker -Q ingest`` finds the lake as every other command does (`BUS_LAKE`,
`bus.toml`, the last bus started). Nothing is read at import: the configuration is made when Celery
first asks for it.

No setting makes Celery on Redis loss-free (a message popped and not yet noted is lost with its
consumer). It need not be: a message says only "look", jobs are files, and the sweep rings again.
"""

from __future__ import annotations

import importlib
import logging
import mmap
import os
import signal
import time
import warnings
from functools import cache
from typing import Any

from celery import Celery, signals
from celery.beat import Scheduler
from kombu import Queue

from bus import broker as redis_side, disk, process
from bus.broker import INGEST, WORKER_TIMEOUT_S, WRITER, Address, Broker, address
from bus.errors import Unavailable
from bus.lake import Lake
from bus.settings import Settings

log = logging.getLogger("bus.app")

SUBMIT_ARTIFACT = "bus.submit_artifact"
VERIFY_SAMPLE = "bus.verify_sample"
SWEEP = "bus.sweep"
COMMIT_READY = "bus.commit_ready"
REFRESH_EXPORTS = "bus.refresh_exports"
PUBLISH_EXPORT = "bus.publish_export"

#: For tasks that may rightly take longer than Celery's limit: a table of 20 GB has a wall limit of
#: its own, a rebuild has none. Meanwhile the message may be delivered again; claims and locks make
#: that harmless.
NO_LIMIT: dict[str, Any] = {
    "max_retries": 3,
    "default_retry_delay": 1,
    "time_limit": 86_400,
    "soft_time_limit": 86_400,
}

#: What may come through each queue, and whether it takes the id of a job. Anything else that lies
#: there is laid aside by the guarded transport.
TASKS = {
    INGEST: {SUBMIT_ARTIFACT: True, SWEEP: False, VERIFY_SAMPLE: False},
    WRITER: {COMMIT_READY: False, REFRESH_EXPORTS: False, PUBLISH_EXPORT: False},
}
#: For workers only: Flower knows stock transports by their names, and reads no queue.
_GUARDED = "bus.broker.guard:Transport"

#: Extra sweeps that beat asks for; the pump's own timer (sweep_interval_s) is the one that counts.
_SWEEP_S = 60.0
#: How often a process that waits for the writer's seat says so.
_SAY_SO_S = 5.0
_SEAT_POLL_S = 0.2
#: A broker that is not there: what Celery is configured with when no bus runs.
_NOWHERE = Address("redis://127.0.0.1:1/0", "")

# Producers import this module beside an app of their own, which must stay the current one.
app = Celery("bus", include=["bus.tasks.ingest", "bus.tasks.writer"], set_as_current=False)


# ── configuration ─────────────────────────────────────────────────────────────────────────────

_chosen: list[Settings] = []


def use(chosen: Settings) -> None:
    """Have this process serve the lake of these settings; before anything else touches the app."""
    _chosen[:] = [chosen]
    for cached in (settings, lake, broker, hasty_broker):
        cached.cache_clear()


@cache
def settings() -> Settings:
    """The settings of this process."""
    return _chosen[0] if _chosen else Settings.load()


@cache
def lake() -> Lake:
    """The lake of this process."""
    return Lake(settings().lake, settings().public_lake)


@cache
def broker() -> Broker:
    """The Redis of this process, with the patience of a worker."""
    return Broker(settings(), timeout_s=WORKER_TIMEOUT_S)


@cache
def hasty_broker() -> Broker:
    """The same, for what may be skipped: a hung Redis holds up neither event loop nor writer."""
    return Broker(settings(), timeout_s=0.5)


@app.on_configure.connect
def _configure(sender: Celery, **_: Any) -> None:
    sender.config_from_object(configuration(settings(), address(settings()) or _NOWHERE))


def configuration(settings: Settings, where: Address) -> dict[str, Any]:
    """Celery's settings, each with its reason."""
    return {
        "broker_url": where.url,
        # Our own failures are bounded and retried for ever: a worker outlives its Redis.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # the default gives up after 100
        # A Redis that is full answers with an error, of which a worker would die by default.
        "broker_channel_error_retry": True,
        "broker_transport_options": {
            "global_keyprefix": where.prefix,  # two lakes on one server never share a queue
            "visibility_timeout": 900,  # above task_time_limit: a healthy task never runs twice
            "unacked_restore_interval": 5,  # redelivery within seconds of the time-out, not 100 s
            "unacked_restore_throttle": 1,
            "socket_timeout": 10,  # a server that vanished without FIN is noticed …
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 5,  # … in about 20 s; the default hangs for minutes
            "client_name": "bus",
            "guarded": TASKS,
        },
        # The outcome lives in receipts and the journal; `.get()` waits for the receipt.
        "task_ignore_result": True,
        "result_backend": None,
        "task_acks_late": True,  # the default loses what a killed worker was doing
        "task_reject_on_worker_lost": True,  # else a killed pool child acknowledges its task
        "task_retry_on_worker_lost": True,  # with max_retries: bounds the loop of a deadly message
        "task_time_limit": 600,  # below visibility_timeout
        "task_soft_time_limit": 540,
        # One retry within 0.2 s: the job is on disk already, the sweep rings for what was lost.
        "task_publish_retry_policy": {
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.1,
            "interval_max": 0.1,
        },
        "task_queues": [Queue(INGEST), Queue(WRITER)],
        "task_default_queue": INGEST,
        "task_create_missing_queues": False,  # a typo is an error, not a queue nobody reads
        "task_routes": {task: {"queue": queue} for queue, tasks in TASKS.items() for task in tasks},
        # JSON only: a pickle runs code when it is read.
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "worker_prefetch_multiplier": 1,  # fewest messages stuck after a crash, and no slower
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # never interrupt a commit
        # Flower turns task events on while it runs; without it they would cost a third of the
        # processor time of every message (measured), and nobody would read them.
        "worker_send_task_events": False,
        "task_send_sent_event": False,
        "worker_hijack_root_logger": False,  # log lines are ours, see bus/process.py
        "worker_redirect_stdouts": False,
        "worker_proc_alive_timeout": 30,  # the default of 4 s is short on a busy machine
        "worker_disable_rate_limits": True,  # there are none
        "enable_utc": True,
        "timezone": "UTC",
        "beat_scheduler": "bus.app:Ticker",
        "beat_max_loop_interval": redis_side.HEARTBEAT_S,
        "beat_schedule": schedule(settings),
    }


def schedule(settings: Settings) -> dict[str, Any]:
    """What beat asks for. A tick expires after its period: unread ones do not pile up."""
    periods = {
        "sweep": (SWEEP, _SWEEP_S),
        "refresh-exports": (REFRESH_EXPORTS, settings.export_refresh_s),
        "verify-sample": (VERIFY_SAMPLE, settings.verify_sample_s),
    }
    return {
        name: {"task": task, "schedule": period_s, "options": {"expires": period_s}}
        for name, (task, period_s) in periods.items()
    }


# ── sending ───────────────────────────────────────────────────────────────────────────────────


def send(task: str, *args: Any, countdown_s: float = 0.0) -> bool:
    """Send a message from a process of the bus; False, and a log line, when Redis is away."""
    try:
        app.send_task(task, args=args, countdown=countdown_s or None, ignore_result=True)
    except Exception as error:  # noqa: BLE001 - whatever kombu raises, the sweep rings again
        log.warning("redis is away, %s is not rung: %s", task, error)
        return False
    return True


def ring_writer(*, anyway: bool = False) -> None:
    """Tell the writer to look, unless a bell is pending (`anyway`: even then)."""
    if broker().take_doorbell() or anyway:
        send(COMMIT_READY)


# ── processes ─────────────────────────────────────────────────────────────────────────────────

#: One byte that a worker and its pool children share: 1 when the worker was told to stop.
_told_to_stop = mmap.mmap(-1, 1)
_main_pid = os.getpid()
_seat: list[disk.Lock] = []


def stopping() -> bool:
    """Whether this worker was told to stop: finish what is in hand, begin nothing."""
    return _told_to_stop[0] == 1


def process_name(role: str) -> str:
    """`ingest-4711@host`: unique among the processes of a lake."""
    return f"{role}-{_main_pid}@{os.uname().nodename}"


def show_life(role: str) -> None:
    """Note in Redis that this process is alive and at work."""
    hasty_broker().beat(process_name(role), role)


def retire(role: str) -> None:
    """Note in Redis that this process ended in good order."""
    hasty_broker().retire(process_name(role))


class Ticker(Scheduler):
    """Beat's scheduler, in memory, with a sign of life in every tick.

    Ticks are idempotent and have their safety nets, so the time of the last one is not worth a
    file that a crash can damage.
    """

    _next_sign_s = 0.0

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """One iteration; the seconds until the next."""
        if time.monotonic() >= self._next_sign_s:
            self._next_sign_s = time.monotonic() + redis_side.HEARTBEAT_S
            show_life("beat")
        return float(super().tick(*args, **kwargs))


@signals.setup_logging.connect
def _log_our_way(loglevel: int | None = None, **_: Any) -> None:
    process.configure_logging(_role[0], loglevel or logging.INFO)


_role = ["celery"]


@signals.beat_init.connect
def _beat_begins(**_: Any) -> None:
    _role[0] = "beat"
    process.configure_logging("beat")


@signals.celeryd_init.connect
def _worker_begins(conf: Any, options: dict[str, Any], **_: Any) -> None:
    """Tune the worker to the one queue it reads: they have nothing in common."""
    queues = options.get("queues") or []
    names = queues.split(",") if isinstance(queues, str) else list(queues)
    if names not in ([INGEST], [WRITER]):
        raise SystemExit("A worker reads one queue: say -Q ingest or -Q writer.")
    if address(settings()) is None:
        raise SystemExit(str(Unavailable("no bus is running", where=str(lake().root))))
    _role[0] = names[0]
    conf.broker_transport = _GUARDED
    # In a container everyone is root. What makes that dangerous is pickle, which is not accepted.
    warnings.filterwarnings("ignore", message=".*superuser privileges")
    if names == [WRITER]:
        conf.worker_concurrency = 1
    else:
        conf.worker_max_tasks_per_child = 1000  # bounds what Arrow's allocator keeps


@signals.worker_init.connect
def _worker_prepares(sender: Any, **_: Any) -> None:
    """Before the pool forks: what children share is loaded once, and the writer takes its seat."""
    global _main_pid  # noqa: PLW0603 - the process that imported us may have forked
    _main_pid = os.getpid()
    process.configure_logging(_role[0])
    if _role[0] == WRITER:
        if sender.concurrency != 1:
            raise SystemExit("One lake has one writer: say -c 1, or nothing.")
        _take_seat()
    importlib.import_module("bus.writer" if _role[0] == WRITER else "bus.intake")


def _take_seat() -> None:
    """Wait until no other process reads the writer's queue of this lake.

    A second writer that read it while waiting for the lake's lock would swallow bells.
    """
    lake().create()
    next_line_s = 0.0
    while (lock := disk.Lock.try_acquire(lake().seat_lock)) is None:
        if time.monotonic() >= next_line_s:
            next_line_s = time.monotonic() + _SAY_SO_S
            log.warning("E503: another writer serves %s; waiting for it to end", lake().root)
        time.sleep(_SEAT_POLL_S)
    lock.write(f"{os.getpid()}\n".encode())
    _seat.append(lock)


@signals.worker_process_init.connect
def _child_begins(**_: Any) -> None:
    """In a pool child: it must not outlive its worker, whoever killed that."""
    process.die_with_parent(_main_pid)
    process.limit_resources()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the group; the worker decides


@signals.worker_ready.connect
def _worker_is_ready(**_: Any) -> None:
    show_life(_role[0])
    if _role[0] == WRITER:
        ring_writer(anyway=True)  # what became ready while nobody was here


@signals.heartbeat_sent.connect
def _worker_lives(**_: Any) -> None:
    show_life(_role[0])


@signals.worker_shutting_down.connect
def _worker_is_told_to_stop(**_: Any) -> None:
    _told_to_stop[0] = 1


@signals.worker_shutdown.connect
def _worker_ends(**_: Any) -> None:
    retire(_role[0])
