"""The pump: from the list that everybody may push to, into Celery; and the sweep.

Foreign producers LPUSH ``{"job_id": "…"}`` or a bare id to `bus:notify`. They never touch Celery's
own lists, where stock workers end at a malformed entry (ours lay it aside: `broker/guard.py`). Here
one is counted, logged and kept for a look.

The same process sweeps: every few seconds it looks for jobs whose bell was lost, wherever it was
lost, and rings for them. Nothing else needs to be reliable.
"""

from __future__ import annotations

import re
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from bus import app as here, strict_json
from bus.broker import (
    HEARTBEAT_S,
    INGEST,
    NOTIFY_MAX_BYTES,
    PLAIN_NOTIFY,
    WRITER,
    Address,
    Keys,
    Notifications,
    address,
)
from bus.errors import BusError, Unavailable
from bus.model import ID_PATTERN, utc_now

if TYPE_CHECKING:
    from bus.settings import Settings

log = structlog.get_logger("bus.pump")

_ID = re.compile(ID_PATTERN)
#: Bare words that would pass for ids, and are what a program sends that has no id.
_JSON_WORDS = {"null", "true", "false"}
_FIRST_PAUSE_S = 0.1
_LAST_PAUSE_S = 5.0
#: Messages that wait for a worker: more would not make it look sooner, each look takes all there is.
_BELLS_PER_WORKER = 2
_WRITER_BELLS = 2
_CLEAN_S = 60.0


class BadEntryError(ValueError):
    """A notification nobody can act on; the text says why."""


def job_id_of(entry: bytes) -> str:
    """The job a notification speaks of: ``{"job_id": "…", …}`` or the bare id.

    Raises `BadEntryError`.
    """
    if len(entry) > NOTIFY_MAX_BYTES:
        raise BadEntryError(f"{len(entry)} bytes; at most {NOTIFY_MAX_BYTES} are read")
    try:
        text = entry.decode().strip()
    except UnicodeDecodeError:
        raise BadEntryError("not UTF-8") from None
    if text.startswith("{"):
        try:
            document = strict_json.loads(text.encode(), where="notification")
        except strict_json.StrictJsonError as error:
            raise BadEntryError(f"not strict JSON: {error}") from None
        return _checked(document.get("job_id"))
    if text in _JSON_WORDS:
        raise BadEntryError(f"{text} is JSON and names no job")
    return _checked(text)


def _checked(job_id: object) -> str:
    if not isinstance(job_id, str) or not _ID.fullmatch(job_id):
        raise BadEntryError(f"{job_id!r:.160} is not a job id")
    return job_id


def run_pump(settings: Settings, stop: threading.Event) -> None:
    """Pump and sweep until `stop` is set. Raises `Unavailable` (E501) when no bus runs."""
    here.use(settings)
    where = address(settings)
    if where is None:
        raise Unavailable("no bus is running on this lake", where=str(settings.lake))
    Pump(settings, where, stop).run()


class Pump:
    """The threads of one pump: one for each notify list, and the caller's for sweep and signs."""

    def __init__(self, settings: Settings, where: Address, stop: threading.Event) -> None:
        self._settings = settings
        self._where = where
        self._stop = stop
        self._next_sweep_s = self._next_clean_s = 0.0

    def run(self) -> None:
        """Until the stop event; or until a listener ends, which is a bug and worth a restart."""
        sources = dict.fromkeys([Keys(self._where.prefix).notify, PLAIN_NOTIFY])
        listeners = [
            threading.Thread(target=self._listen, args=[source], name=source, daemon=True)
            for source in sources
        ]
        for listener in listeners:
            listener.start()
        while not self._stop.is_set() and all(listener.is_alive() for listener in listeners):
            here.show_life("pump")
            self._sweep_if_due()
            left_s = self._next_sweep_s - time.monotonic()
            self._stop.wait(max(0.0, min(HEARTBEAT_S, left_s)))
        self._stop.set()
        for listener in listeners:
            listener.join(timeout=2.0)
        here.retire("pump")

    # ── the notify list ───────────────────────────────────────────────────────────────────────

    def _listen(self, source: str) -> None:
        """Move entries until told to stop; a Redis that is away is asked again with patience."""
        pause_s = _FIRST_PAUSE_S
        while not self._stop.is_set():
            notifications = Notifications(self._where, source)
            try:
                notifications.recover()
                while not self._stop.is_set():
                    self._move(notifications)
                    pause_s = _FIRST_PAUSE_S
            except Unavailable as error:
                log.warning("redis_away", source=source, again_in_s=pause_s, error=error.message)
                self._stop.wait(pause_s)
                pause_s = min(2 * pause_s, _LAST_PAUSE_S)
            finally:
                notifications.close()

    def _move(self, notifications: Notifications) -> None:
        entries, queued = notifications.take()
        if not entries:
            return
        jobs: dict[str, None] = {}
        bad: list[tuple[bytes, str]] = []
        for entry in entries:
            try:
                jobs[job_id_of(entry)] = None
            except BadEntryError as error:
                bad.append((entry, str(error)))
                log.warning("notification_refused", reason=str(error))
        self._ring_ingest(list(jobs), queued)
        if jobs:  # the writer wakes while they are judged, instead of after that
            here.ring_writer()
        notifications.settle(entries, bad)

    def _ring_ingest(self, jobs: list[str], queued: int) -> None:
        """A message for each job, but no more than workers will need to take all that waits."""
        room = _BELLS_PER_WORKER * self._settings.workers - queued
        for job_id in jobs[: max(0, room)]:
            here.send(here.SUBMIT_ARTIFACT, job_id)

    # ── the sweep ─────────────────────────────────────────────────────────────────────────────

    def _sweep_if_due(self) -> None:
        if time.monotonic() < self._next_sweep_s:
            return
        try:
            self.sweep()
        except (BusError, OSError):
            log.exception("sweep_failed")
        self._next_sweep_s = time.monotonic() + self._settings.sweep_interval_s

    def sweep(self) -> None:
        """Ring for every job that waits without anyone at it, wherever its bell was lost."""
        from bus.intake import clean, due  # noqa: PLC0415 - the pump moves bells before that loads

        found = due(here.lake())
        if found.ingest:
            log.info("swept", jobs=len(found.ingest), first=found.ingest[0])
            self._ring_ingest(found.ingest, here.broker().queued(INGEST))
        if found.writer and here.broker().queued(WRITER) < _WRITER_BELLS:
            here.ring_writer(anyway=True)
        if time.monotonic() >= self._next_clean_s:
            clean(here.lake())
            if here.lake().trash_before(utc_now().date() - timedelta(self._settings.trash_days)):
                here.ring_writer(anyway=True)
            self._next_clean_s = time.monotonic() + _CLEAN_S
