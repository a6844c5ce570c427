"""The queue `writer`: commit what is ready, publish exports. One process, one at a time.

The process is crash-only: after any error it did not expect, it ends, and its successor derives
everything anew from journal and directories. So a failed fsync or a broken view is never built on.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from celery import signals

from bus.app import (
    COMMIT_READY,
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
from bus.process import end_process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bus.writer import Answer, Writer

log = logging.getLogger("bus.writer")

#: A drain keeps the queue at most this long; exports and checks have their turn between drains.
_BUDGET_S = 5.0
_SLICE_S = 1.0
#: How long a task waits for the lake's lock before it gives its message back.
_LOCK_WAIT_S = 60.0
_SAY_SO_S = 5.0

_held: list[Writer] = []


def _writer() -> Writer | None:
    """The writer of this process, opened at the first bell and kept for life.

    None when someone else (`bus rebuild`, an old writer) kept the lake's lock for a minute.
    """
    from bus.specs import Registry  # noqa: PLC0415 - Flower lists the tasks and needs no core
    from bus.writer import Writer  # noqa: PLC0415 - likewise

    deadline = time.monotonic() + _LOCK_WAIT_S
    while not _held and time.monotonic() < deadline:
        try:
            writer = Writer.open(
                lake(),
                settings(),
                Registry.load(settings()),
                announce=_announce,
                wait_s=_SAY_SO_S,
            )
            _held.append(writer)
        except LakeBusy:
            log.warning("E503: someone else writes to %s; waiting for it to end", lake().root)
    return _held[0] if _held else None


def _announce(answers: Sequence[Answer]) -> None:
    hasty_broker().announce(answers)


@signals.worker_process_shutdown.connect
def _close(**_: Any) -> None:
    while _held:
        _held.pop().close()


@app.task(name=COMMIT_READY, max_retries=3, default_retry_delay=1)
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
        result = writer.drain(_SLICE_S)
        more = result.more
        if result.jobs:
            log.info("processed %d jobs", result.jobs, extra={"seq": result.seq})
    if more:
        ring_writer(anyway=True)
