"""The queue `writer`: commit what is ready, publish exports. One process, one at a time.

The process is crash-only: after any error it did not expect, it ends, and its successor derives
everything anew from journal and directories. So a failed fsync or a broken view is never built on.

Exports are built by a child process while commits go on; its end rings `publish_export`.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from celery import signals

from bus.app import (
    COMMIT_READY,
    NO_LIMIT,
    PUBLISH_EXPORT,
    REFRESH_EXPORTS,
    app,
    broker,
    hasty_broker,
    lake,
    ring_writer,
    send,
    settings,
    stopping,
)
from bus.errors import LakeBusy
from bus.process import end_process, settle_heap

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from bus.writer import Answer, Writer

log = logging.getLogger("bus.writer")

#: A drain keeps the queue at most this long; exports and checks have their turn between drains.
_BUDGET_S = 5.0
_SLICE_S = 1.0
#: The pump rings for a job that nobody has judged yet: most take less than this.
_LINGER_S = 0.05
#: How long a task waits for the lake's lock before it gives its message back.
_LOCK_WAIT_S = 60.0
_SAY_SO_S = 5.0
#: How soon to look again while another build is at work.
_BUILD_LOOK_S = 1.0

_held: list[Writer] = []


def _writer() -> Writer | None:
    """The writer of this process, opened at the first bell and kept for life.

    None when someone else (`bus rebuild`, an old writer) kept the lake's lock for a minute.
    """
    from bus.migrations import contract_problems  # noqa: PLC0415 - Flower needs no core
    from bus.specs import Registry  # noqa: PLC0415 - it lists the tasks
    from bus.writer import Writer  # noqa: PLC0415 - likewise

    deadline = time.monotonic() + _LOCK_WAIT_S
    while not _held and time.monotonic() < deadline:
        try:
            registry = Registry.load(settings())
            writer = Writer.open(lake(), settings(), registry, announce=_announce, wait_s=_SAY_SO_S)
            _held.append(writer)
            settle_heap()
            for found in contract_problems(lake(), registry):
                log.warning("%s at %s: %s", found.code, found.where, found.message)
        except LakeBusy:
            log.warning("E503: someone else writes to %s; waiting for it to end", lake().root)
    return _held[0] if _held else None


def _announce(answers: Sequence[Answer]) -> None:
    hasty_broker().announce(answers)


@signals.worker_process_shutdown.connect
def _close(**_: Any) -> None:
    while _held:
        _held.pop().close()


@app.task(name=COMMIT_READY, **NO_LIMIT)
def commit_ready() -> None:
    """Commit, answer and publish all that is ready (steps 7 to 11)."""
    broker().clear_doorbell()  # before the look: whoever comes from now on rings again
    try:
        _commit_ready()
    except Exception as error:  # noqa: BLE001 - see the module: crash-only
        end_process(error)


def _commit_ready() -> None:
    writer = _writer()
    if writer is None:
        send(COMMIT_READY, countdown_s=1.0)
        return
    deadline = time.monotonic() + _BUDGET_S
    more = True
    while more and time.monotonic() < deadline and not stopping():
        result = writer.drain(_SLICE_S, _LINGER_S)
        more = result.more
        if result.jobs:
            log.info("processed %d jobs", result.jobs, extra={"seq": result.seq})
        if result.exports_dirty:
            _exports.note_commit(result.jobs)
    if more:
        ring_writer(anyway=True)


# ── exports ───────────────────────────────────────────────────────────────────────────────────


class _Exports:
    """What this process knows of the golden exports: since when they are stale, and who builds."""

    def __init__(self) -> None:
        self.jobs = 0
        self.stale_since_s: float | None = None
        self.last_commit_s = 0.0
        self._child: subprocess.Popen[bytes] | None = None

    def note_commit(self, jobs: int) -> None:
        """They are stale; look at them when the burst is over."""
        self.jobs += jobs
        self.last_commit_s = time.monotonic()
        self.stale_since_s = self.stale_since_s or self.last_commit_s
        self.look_after(settings().export_quiet_s)

    def look_after(self, delay_s: float) -> None:
        """Have `refresh_exports` come, unless it is on its way."""
        if hasty_broker().take_export_bell(delay_s + 1.0):
            send(REFRESH_EXPORTS, countdown_s=delay_s)

    def wait_s(self) -> float:
        """How long to go on waiting for the end of a burst; 0 when a build should begin."""
        if self.stale_since_s is None:
            return 0.0
        now_s = time.monotonic()
        quiet_s = self.last_commit_s + settings().export_quiet_s - now_s
        at_last_s = self.stale_since_s + settings().export_max_wait_s - now_s
        return max(0.0, min(quiet_s, at_last_s))

    @property
    def building(self) -> bool:
        """Whether a build of ours is at work."""
        return self._child is not None and self._child.poll() is None

    def build(self) -> None:
        """Start a build; its end rings `publish_export`."""
        from bus import exports  # noqa: PLC0415 - Flower lists the tasks and needs no core

        self.stale_since_s = None
        self._child = exports.start_child(settings())
        threading.Thread(target=_tell_of_the_end, args=[self._child], daemon=True).start()


def _tell_of_the_end(child: subprocess.Popen[bytes]) -> None:
    child.wait()
    send(PUBLISH_EXPORT)


_exports = _Exports()


@app.task(name=REFRESH_EXPORTS, max_retries=3, default_retry_delay=1)
def refresh_exports() -> None:
    """Begin a build when the burst of commits is over; what did not change is not written."""
    hasty_broker().clear_export_bell()
    if stopping():
        return
    if _exports.building:
        _exports.look_after(_BUILD_LOOK_S)
    elif (wait_s := _exports.wait_s()) > 0:
        _exports.look_after(wait_s)
    else:
        _exports.build()


@app.task(name=PUBLISH_EXPORT, max_retries=3, default_retry_delay=1)
def publish_export() -> None:
    """Move what a build has finished into place, unless something newer is there."""
    from bus import exports  # noqa: PLC0415 - Flower lists the tasks and needs no core

    try:
        results = exports.publish_pending(lake(), settings())
    except LakeBusy:
        send(PUBLISH_EXPORT, countdown_s=1.0)
        return
    for failed in (result for result in results if not result["ok"]):
        log.error("E509: export %s failed: %s", failed["name"], failed["error"])
    log.info("[bus_daemon] processed %d jobs + exports refreshed", _exports.jobs)
    _exports.jobs = 0
