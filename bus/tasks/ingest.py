"""The queue `ingest`: validate what lies in the inbox. Any number of workers."""

from __future__ import annotations

import logging
import os
import re
import time
from functools import cache
from threading import local
from typing import TYPE_CHECKING, Any

from celery import Task
from kombu import Connection

from bus.app import (
    NO_LIMIT,
    SUBMIT_ARTIFACT,
    SWEEP,
    VERIFY_SAMPLE,
    app,
    broker,
    lake,
    ring_writer,
    send,
    settings,
    stopping,
)
from bus.broker import PAUSE_AFTER_FAILURE_S, PRODUCER_TIMEOUT_S, address
from bus.client import Bus, Job, submission_of
from bus.errors import Code, Refused, Unavailable
from bus.model import ID_PATTERN, JobState
from bus.process import bound, end_process

if TYPE_CHECKING:
    from bus.intake import Intake, IntakeResult

log = logging.getLogger("bus.ingest")

#: One message keeps a worker at most this long; then it rings for itself and lets others in.
_BUDGET_S = 5.0
#: The writer hears of what became ready after the first slice, and after every later one.
_FIRST_SLICE_S = 0.05
_SLICE_S = 0.25
#: Looks at unfinished jobs that one drain schedules, and how far ahead; the sweep does the rest.
_LATER_MAX = 32
_LATER_MAX_S = 30.0

_ID = re.compile(ID_PATTERN)


class SubmitArtifact(Task):  # type: ignore[type-arg]
    """The task, with a `delay` for producers: it takes tables, and never fails for a broker."""

    def delay(self, data: Any, **fields: Any) -> Job:  # type: ignore[override]
        """Ring for a job that lies in the inbox, or stage a new one and ring for it.

        `data`: a job_id with no further fields; or a table or path with those of `Bus.submit`
        (`kind=` and `producer=` at least), which is staged here, in the caller's process. Returns
        the job: `.get(timeout=…)` gives the receipt or raises `Rejected` with every problem. Raises
        as `Bus.submit` does; a broker that is away is only logged, the sweep takes the job.
        """
        bus = _bus()
        if fields:
            return bus.submit(data, **fields)
        if not isinstance(data, str) or not _ID.match(data):
            hint = "Give a job_id, or a table or path with the job's fields (kind=, producer= ...)."
            raise Refused(f"{data!r:.160} is not a job id", code=Code.E104, hint=hint)
        _ring(data)
        return Job(bus, data, submission_of(bus.lake, data))


_buses: list[Bus] = []


def _bus() -> Bus:
    if not _buses or _buses[0].settings is not settings():
        _buses[:] = [Bus(settings(), ring=_ring)]
    return _buses[0]


# ── a producer's own connection ───────────────────────────────────────────────────────────────

_mine = local()


def _ring(job_id: str) -> bool:
    """Send the message from a producer's program: at most 0.2 s, never an exception."""
    if time.monotonic() < getattr(_mine, "pause_until_s", 0.0):
        return False
    used = getattr(_mine, "connection", None) is not None
    try:
        _send(job_id)
    except Exception as error:  # noqa: BLE001 - whatever kombu raises, the sweep rings again
        _mine.connection = None
        if used:
            return _ring(job_id)  # the server was restarted since we last used the connection
        log.warning("the bus is away, job %s waits in the inbox: %s", job_id, error)
        _mine.pause_until_s = time.monotonic() + PAUSE_AFTER_FAILURE_S
        return False
    return True


def _send(job_id: str) -> None:
    app.send_task(SUBMIT_ARTIFACT, args=[job_id], connection=_connection(), retry=False)


def _connection() -> Connection:
    """This thread's connection, short of patience. Raises `Unavailable` when no bus runs."""
    where = address(settings())
    if where is None:
        raise Unavailable("no bus is running on this lake", where=str(lake().root))
    key = (os.getpid(), where)
    if getattr(_mine, "connection", None) is None or _mine.key != key:
        options = dict(app.conf.broker_transport_options)
        options |= {
            "global_keyprefix": where.prefix,
            "socket_timeout": PRODUCER_TIMEOUT_S,
            "socket_connect_timeout": PRODUCER_TIMEOUT_S,
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0,
            "connect_retries_timeout": PRODUCER_TIMEOUT_S,
        }
        _mine.connection = Connection(where.url, transport_options=options)
        _mine.key = key
    connection: Connection = _mine.connection
    return connection


# ── the tasks ─────────────────────────────────────────────────────────────────────────────────


@cache
def _intake() -> Intake:
    from bus.intake import Intake  # noqa: PLC0415 - producers need it not
    from bus.specs import Registry  # noqa: PLC0415 - likewise

    return Intake(lake(), settings(), Registry.load(settings()))


@app.task(base=SubmitArtifact, name=SUBMIT_ARTIFACT, **NO_LIMIT)
def submit_artifact(job_id: str) -> None:
    """Judge the job, and whatever else waits (steps 3 to 6); then the writer is rung."""
    if not _ID.match(str(job_id)):
        log.warning("E104: a message without a job id: %.160r", job_id)
        _drain(None)  # a directory may be named so: it is found, and rejected, by looking
        return
    with bound(job_id=job_id):
        _drain(job_id)


def _drain(job_id: str | None) -> None:
    """Take all that waits, for at most `_BUDGET_S`; the writer hears of it slice by slice."""
    deadline = time.monotonic() + _BUDGET_S
    slice_s, first = _FIRST_SLICE_S, job_id
    more = True
    while more and time.monotonic() < deadline and not stopping():
        result = _take(first, slice_s)
        if result.judged:
            ring_writer()
        _look_again(result.later)
        slice_s, first, more = _SLICE_S, None, result.more
    if more:
        send(SUBMIT_ARTIFACT, job_id or "next")


def _take(first: str | None, budget_s: float) -> IntakeResult:
    from bus.objects import SyncError  # noqa: PLC0415 - producers need it not

    try:
        result = _intake().drain(first, budget_s)
    except SyncError as error:
        end_process(error)
    for name, why in result.faults.items():
        log.error("job %s stays, the fault is ours: %s", name, why, extra={"job_id": name})
    return result


def _look_again(later: dict[str, float]) -> None:
    """Schedule one more look at each unfinished job, unless one is scheduled already."""
    soon = sorted((delay_s, name) for name, delay_s in later.items() if delay_s <= _LATER_MAX_S)
    for delay_s, name in soon[:_LATER_MAX]:
        if broker().take_later(name, delay_s):
            send(SUBMIT_ARTIFACT, name, countdown_s=delay_s + 0.01)


@app.task(name=SWEEP, **NO_LIMIT)
def sweep() -> None:
    """Look for what no bell told of; beat's extra one beside the pump's own."""
    _drain(None)
    if lake().count(JobState.READY):
        ring_writer(anyway=True)


@app.task(name=VERIFY_SAMPLE, max_retries=3, default_retry_delay=1)
def verify_sample() -> None:
    """Re-hash a few objects, the longest unchecked first; the writer is told of what is damaged."""
    from bus import repair, verify  # noqa: PLC0415 - producers need it not

    report = verify.sample(lake(), settings())
    if job_id := repair.tell_of_damage(lake(), report):
        send(SUBMIT_ARTIFACT, job_id)
