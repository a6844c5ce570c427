"""What a process of the bus does about itself: its log lines, its limits, whom it dies with.

Log lines are for people on a terminal and JSON otherwise. What runs in a producer's program
(client, broker) logs through the standard `logging` module; that program decides what becomes of
it. Our own processes call `configure_logging`, which renders structlog's lines, the standard ones
and Celery's alike. Facts bound with `bound` (job_id, run_id, seq) stand in every line of a block.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import structlog
from structlog.contextvars import bound_contextvars as bound

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

__all__ = [
    "bound",
    "configure_logging",
    "die_with_parent",
    "end_process",
    "keep_others_out",
    "limit_resources",
    "settle_heap",
]

#: A line for each message received and each task done tells nothing here and costs 10 % (measured).
_TOO_CHATTY = (
    "celery.worker.strategy",
    "celery.app.trace",
    "celery.beat",
    "kombu.transport.redis",
)
_BEFORE: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]
_MAX_OPEN_FILES = 4096
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def configure_logging(process: str, level: int = logging.INFO) -> None:
    """Render every log record of this process to stderr; `process` is named in each JSON line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(process, terminal=sys.stderr.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    structlog.configure(
        processors=[*_BEFORE, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    for name in _TOO_CHATTY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def _formatter(process: str, *, terminal: bool) -> logging.Formatter:
    def named(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    render: list[Any] = (
        [structlog.dev.ConsoleRenderer()]
        if terminal
        else [named, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_BEFORE, structlog.stdlib.ExtraAdder()],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
    )


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when the thread that started it ends, however it ends.

    Survives exec. `parent` is the pid that must still be the parent: it may have died before the
    call, and then nobody would ever send the signal.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def keep_others_out() -> None:
    """Create nothing from now on that group or others could write, whatever the caller's umask."""
    os.umask(os.umask(0o077) | 0o022)


def limit_resources() -> None:
    """No core dumps of other people's data; a leak of descriptors ends here, not in the kernel."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(_MAX_OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def settle_heap() -> None:
    """What is in memory now (modules, models, compiled queries) stays as long as the process.

    The collector passes over it from now on: each full look at it takes tens of milliseconds, in
    the middle of whatever is being done.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # a process that ends leaves nothing behind


def end_process(error: BaseException) -> NoReturn:
    """Leave at once, for a fault after which nothing in memory can be trusted (a failed fsync).

    Whoever comes next derives the state anew from the disk.
    """
    logging.getLogger("bus").critical("this process ends: %s", error, exc_info=error)
    logging.shutdown()
    os._exit(os.EX_IOERR)
