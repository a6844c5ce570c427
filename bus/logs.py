"""Log lines: for people on a terminal, as JSON otherwise.

What runs in a producer's program (client, broker) logs through the standard `logging` module; that
program decides what becomes of it. Processes of the bus call `configure`, which renders structlog's
lines, the standard ones and Celery's alike. Facts bound with `bound` (job_id, run_id, seq) stand in
every line until the block ends.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import structlog
from structlog.contextvars import bound_contextvars as bound

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

__all__ = ["bound", "configure"]

#: A line for each message received and each task done tells nothing here and costs 10 % (measured).
_TOO_CHATTY = ("celery.worker.strategy", "celery.app.trace", "kombu.transport.redis", "celery.beat")

_BEFORE: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]


def configure(process: str, level: int = logging.INFO) -> None:
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
