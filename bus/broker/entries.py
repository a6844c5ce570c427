"""What may stand in Celery's queues: the messages of our own tasks, and nothing else.

Celery trusts its broker. One entry that is not JSON, or JSON of another shape, ends the worker that
pops it or has it reconnect for ever; a well-formed one may carry callbacks that run other tasks, or
lie unacknowledged until the year 9999. So every entry is held against the few forms that our own
clients send before Celery sees it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from bus import strict_json
from bus.model import ID_PATTERN

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The tasks that may come through one queue: name -> whether it takes the id of a job.
Tasks: TypeAlias = "Mapping[str, bool]"

ENTRY_MAX_BYTES = 64 << 10
ETA_MAX = timedelta(days=7)
#: Celery reckons with times in several zones; at the ends of the calendar that overflows.
_YEARS = range(2000, 9001)
_NAME_MAX = 255
_RETRIES_MAX = 100
#: Shorter limits than any task of ours has would kill healthy ones.
_LIMIT_S = (60, 86_400)
_ID = re.compile(ID_PATTERN)
_ARGS_MAX = 1
_BODY_PARTS = 3
_PRIORITIES = range(10)


class BadMessageError(ValueError):
    """An entry of a queue that no worker shall see; the text says why."""


def check(entry: bytes, queue: str, tasks: Tasks) -> None:
    """Raise `BadMessageError` unless `entry` is a message of one of these tasks for that queue."""
    if len(entry) > ENTRY_MAX_BYTES:
        raise BadMessageError(f"{len(entry)} bytes; at most {ENTRY_MAX_BYTES} are read")
    document = _loads(entry, "entry")
    _check_envelope(document)
    _check_properties(document["properties"], queue)
    name = _check_headers(document["headers"], tasks)
    _check_body(document["body"], takes_job_id=tasks[name])


def check_unacked(kept: bytes, tasks: Mapping[str, Tasks]) -> None:
    """The same for what kombu noted of a message it delivered: [message, exchange, routing key].

    Given the tasks of every queue that is guarded; those of others are not looked at.
    """
    if len(kept) > 2 * ENTRY_MAX_BYTES:
        raise BadMessageError(f"{len(kept)} bytes; at most {2 * ENTRY_MAX_BYTES} are read")
    match _loads(kept, "unacked"):
        case [dict() as message, str(), str(routing_key)]:
            if routing_key in tasks:
                check(json.dumps(message).encode(), routing_key, tasks[routing_key])
        case _:
            raise BadMessageError("not [message, exchange, routing key]")


def check_broadcast(message: object) -> None:
    """Raise `BadMessageError` unless kombu can read a message that it took from a fan-out."""
    if not isinstance(message, dict):
        raise BadMessageError("not a JSON object")
    _check_envelope(message)
    _check_delivery(message["properties"])
    _decoded(message["body"])


def _loads(data: bytes, what: str) -> Any:
    try:
        found = strict_json.loads(data, where=what, max_size_bytes=2 * ENTRY_MAX_BYTES)
    except strict_json.StrictJsonError as error:
        raise BadMessageError(f"{what} is not strict JSON: {error}") from None
    # Kombu makes dates, bytes and more of such objects, and fails on what is none of them.
    if '"__type__"' in json.dumps(found):
        raise BadMessageError(f"{what} holds a typed value")
    return found


def _require(fine: object, what: str, found: object) -> None:
    if not fine:
        raise BadMessageError(f"{what} is {found!r:.160}")


def _name(value: object, what: str) -> None:
    fine = isinstance(value, str) and 0 < len(value) <= _NAME_MAX
    _require(fine, what, value)


def _name_or_none(value: object, what: str) -> None:
    if value is not None:
        _name(value, what)


def _check_envelope(document: object) -> None:
    if not isinstance(document, dict):
        raise BadMessageError("not a JSON object")
    for key, kind in (("headers", dict), ("properties", dict), ("body", str)):
        _require(isinstance(document.get(key), kind), key, document.get(key))
    for key, only in (("content-type", "application/json"), ("content-encoding", "utf-8")):
        _require(document.get(key) == only, key, document.get(key))
    compression = document["headers"].get("compression")
    _require(compression is None, "compression", compression)


def _check_delivery(properties: dict[str, Any]) -> None:
    _name(properties.get("delivery_tag"), "delivery_tag")
    _require(properties.get("body_encoding") == "base64", "body_encoding", properties)
    delivery = properties.get("delivery_info")
    fine = isinstance(delivery, dict) and all(
        isinstance(delivery.get(key), str) for key in ("exchange", "routing_key")
    )
    _require(fine, "delivery_info", delivery)


def _check_properties(properties: dict[str, Any], queue: str) -> None:
    _check_delivery(properties)
    delivery = properties["delivery_info"]
    # Where it goes when it is delivered again: back to where it was found, nowhere else.
    _require(delivery["exchange"] in {"", queue}, "exchange", delivery)
    _require(delivery["routing_key"] == queue, "routing_key", delivery)
    for key in ("correlation_id", "reply_to"):
        _name_or_none(properties.get(key), key)
    priority = properties.get("priority", 0)
    fine = isinstance(priority, int) and priority in _PRIORITIES
    _require(fine, "priority", priority)


def _check_headers(headers: dict[str, Any], tasks: Tasks) -> str:
    """The name of the task."""
    task = headers.get("task")
    _require(isinstance(task, str) and task in tasks, "task", task)
    _name(headers.get("id"), "id")
    for key in ("root_id", "parent_id", "shadow"):
        _name_or_none(headers.get(key), key)
    for key in ("group", "chord", "stamped_headers", "stamps"):
        _require(not headers.get(key), key, headers.get(key))
    for key in ("argsrepr", "kwargsrepr", "origin", "lang"):
        _require(isinstance(headers.get(key, ""), str | None), key, headers.get(key))
    retries = headers.get("retries", 0)
    fine = isinstance(retries, int) and 0 <= retries <= _RETRIES_MAX
    _require(fine, "retries", retries)
    _check_limits(headers.get("timelimit"))
    eta = _time(headers.get("eta"), "eta")
    if eta is not None and eta > datetime.now(UTC) + ETA_MAX:
        raise BadMessageError(f"eta is {eta}; at most {ETA_MAX.days} days ahead")
    _time(headers.get("expires"), "expires")
    return str(task)


def _check_limits(limits: object) -> None:
    low_s, high_s = _LIMIT_S
    fine = limits is None or (
        isinstance(limits, list)
        and len(limits) == 2  # noqa: PLR2004 - the hard and the soft one
        and all(n is None or (isinstance(n, int | float) and low_s <= n <= high_s) for n in limits)
    )
    _require(fine, "timelimit", limits)


def _time(text: object, what: str) -> datetime | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)  # type: ignore[arg-type]  # another type is an error too
    except (ValueError, TypeError):
        raise BadMessageError(f"{what} is {text!r:.160}") from None
    _require(found.year in _YEARS, what, text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _decoded(body: str) -> Any:
    try:
        return _loads(base64.b64decode(body, validate=True), "body")
    except (binascii.Error, ValueError) as error:
        if isinstance(error, BadMessageError):
            raise
        raise BadMessageError(f"body is not base64: {error}") from None


def _check_body(body: str, *, takes_job_id: bool) -> None:
    parts = _decoded(body)
    fine = isinstance(parts, list) and len(parts) == _BODY_PARTS
    _require(fine, "body", parts)
    args, kwargs, embed = parts
    _require(isinstance(args, list) and len(args) <= _ARGS_MAX, "args", args)
    if takes_job_id:
        named = len(args) == 1 and isinstance(args[0], str) and _ID.fullmatch(args[0])
        _require(named, "args", args)
    else:
        _require(not args, "args", args)
    _require(kwargs == {}, "kwargs", kwargs)
    # Callbacks, chains and chords are other tasks, run when this one is done.
    _require(isinstance(embed, dict) and not any(embed.values()), "embed", embed)
