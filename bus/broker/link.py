"""The connection: bells, answers, events, signs of life; nothing fails because Redis is away."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import weakref
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Protocol

import redis

from bus.broker.endpoint import PRODUCER_TIMEOUT_S, Address, address, open_redis
from bus.broker.keys import DOORBELL_TTL_S, INGEST, RECEIPT_MAX_BYTES, RECEIPTS_MAX, Keys
from bus.errors import Code, Unavailable
from bus.lake import Lake
from bus.model import iso, utc_now

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from bus.settings import Settings

log = logging.getLogger("bus.broker")

HEARTBEAT_S = 2.0
#: A process without a sign for this long is taken for dead.
SILENT_AFTER_S = 15.0
_FORGET_AFTER_S = 3600.0
#: After a failure nobody asks again for this long: a hung server costs a producer once a second.
PAUSE_AFTER_FAILURE_S = 1.0
_BLOCK_S = 1.0
_ANSWERS_AT_ONCE = 100
_BARE = Keys()
#: What stands for an answer too large for Redis: the waiter reads the file.
_SEE_FILE = b"{}"


class Answered(Protocol):
    """What the writer says about one job (`bus.writer.Answer`)."""

    @property
    def job_id(self) -> str:
        """Whose answer it is."""

    @property
    def document(self) -> bytes:
        """receipt.json or REJECT_REASON.json."""

    @property
    def event(self) -> dict[str, Any]:
        """The entry for the event stream."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A process's last sign of life; `at_s` is seconds since 1970, `facts` what it chose to say."""

    process: str
    role: str
    pid: int
    at_s: float
    facts: dict[str, Any]

    @property
    def alive(self) -> bool:
        """Whether the sign is recent."""
        return time.time() - self.at_s < SILENT_AFTER_S


_brokers: weakref.WeakSet[Broker] = weakref.WeakSet()


def _after_fork() -> None:
    for broker in _brokers:
        broker.after_fork()


os.register_at_fork(after_in_child=_after_fork)


class Broker:
    """The lake's Redis, found anew when it has moved. Threads and forked children may share it.

    `timeout_s` bounds each step of a command: short for producers, long for workers. Methods that
    return a bool never raise: False means that Redis is away.
    """

    def __init__(self, settings: Settings, *, timeout_s: float = PRODUCER_TIMEOUT_S) -> None:
        self.settings = settings
        self.lake = Lake(settings.lake, settings.public_lake)
        self._timeout_s = timeout_s
        self._address: Address | None = None
        self._client: redis.Redis | None = None
        self._waiter: redis.Redis | None = None
        self._lock = threading.Lock()
        self._pause_until_s = 0.0
        _brokers.add(self)

    def after_fork(self) -> None:
        """Called in a forked child: the parent's lock may have been held by another thread."""
        self._lock = threading.Lock()

    @property
    def keys(self) -> Keys:
        """The keys on the server in use."""
        return Keys(self._address.prefix if self._address else "")

    @property
    def address(self) -> Address:
        """Where the server is. Raises `Unavailable` (E501) when no bus runs."""
        self.client()
        assert self._address is not None  # noqa: S101 - client() found it or raised
        return self._address

    def client(self) -> redis.Redis:
        """The client for ordinary commands. Raises `Unavailable` (E501) when no bus runs."""
        with self._lock:
            if self._client is None:
                found = address(self.settings, self.lake)
                if found is None:
                    raise Unavailable("no bus is running on this lake", where=str(self.lake.root))
                self._address = found
                self._client = open_redis(found.url, timeout_s=self._timeout_s)
            return self._client

    def waiter(self, block_s: float) -> redis.Redis:
        """A client for commands that block up to `block_s`. Raises `Unavailable` (E501)."""
        self.client()
        with self._lock:
            if self._waiter is None:
                assert self._address is not None  # noqa: S101 - client() found it or raised
                timeout_s = max(self._timeout_s, 1.0)
                self._waiter = open_redis(self._address.url, timeout_s=timeout_s, block_s=block_s)
            return self._waiter

    def forget(self) -> None:
        """Drop the connections; the next command looks the address up again."""
        with self._lock:
            for client in (self._client, self._waiter):
                if client is not None:
                    client.close()
            self._client = self._waiter = self._address = None

    def _failed(self, what: str, error: Exception) -> None:
        """Note a failure: where the server is gets looked up again, but not within a second."""
        log.warning("redis is away, %s skipped: %s", what, error)
        self._pause_until_s = time.monotonic() + PAUSE_AFTER_FAILURE_S
        self.forget()

    def _try(self, what: str, *commands: tuple[Any, ...], whole: bool = False) -> list[Any] | None:
        """Run commands in one round trip; None, after at most 0.2 s, when Redis is away.

        `whole`: as one transaction.
        """
        if time.monotonic() < self._pause_until_s:
            return None
        fresh = self._client is None
        try:
            return self._run(commands, whole=whole)
        except Unavailable:
            return None
        except redis.ConnectionError as error:
            if fresh:
                self._failed(what, error)
                return None
        except (redis.RedisError, OSError, ValueError) as error:
            self._failed(what, error)
            return None
        self.forget()  # the server was restarted under an idle connection: it may be back, or moved
        return self._try(what, *commands, whole=whole)

    def _run(self, commands: Iterable[tuple[Any, ...]], *, whole: bool) -> list[Any]:
        pipe = self.client().pipeline(transaction=whole)
        for command in commands:
            pipe.execute_command(*command)  # type: ignore[no-untyped-call]
        return pipe.execute()

    def _set_once(self, what: str, key: str, ttl_s: float) -> bool:
        """Whether the caller made the key: nobody else did within its life."""
        if not self._connected():
            return False
        ttl_ms = max(1, round(ttl_s * 1000))
        made = self._try(what, ("SET", self.keys.prefix + key, "1", "NX", "PX", ttl_ms))
        return made is not None and bool(made[0])

    def _connected(self) -> bool:
        """Whether there is an address to build keys for, and no failure a moment ago."""
        if time.monotonic() < self._pause_until_s:
            return False
        try:
            self.client()
        except Unavailable:
            return False
        return True

    # ── bells ─────────────────────────────────────────────────────────────────────────────────

    def ring(self, job_id: str) -> bool:
        """Tell the bus to look at a job (step 2). At most 0.2 s, never an exception."""
        if not self._connected():
            return False
        entry = json.dumps({"job_id": job_id})
        return self._try("bell", ("LPUSH", self.keys.notify, entry)) is not None

    def take_doorbell(self) -> bool:
        """Whether the caller is the one to ring the writer: no bell is pending."""
        return self._set_once("doorbell", _BARE.doorbell, DOORBELL_TTL_S)

    def clear_doorbell(self) -> bool:
        """The writer is about to look: whoever comes from now on must ring again."""
        return self._connected() and self._try("doorbell", ("DEL", self.keys.doorbell)) is not None

    def take_export_bell(self, ttl_s: float) -> bool:
        """Whether the caller is the one to schedule a look at the exports."""
        return self._set_once("export bell", _BARE.export_bell, ttl_s)

    def clear_export_bell(self) -> bool:
        """A look at the exports begins."""
        return self._connected() and self._try("bell", ("DEL", self.keys.export_bell)) is not None

    def take_later(self, job_id: str, delay_s: float) -> bool:
        """Whether the caller is the one to schedule the next look at an unfinished job."""
        return self._set_once("later", _BARE.later(job_id), delay_s)

    def queued(self, queue: str = INGEST) -> int:
        """How many messages wait in a Celery queue; 0 when Redis is away."""
        found = self._connected() and self._try("look", ("LLEN", f"{self.keys.prefix}{queue}"))
        return int(found[0]) if found else 0

    # ── answers ───────────────────────────────────────────────────────────────────────────────

    def announce(self, answers: Iterable[Answered]) -> bool:
        """Publish answers that are already on disk: a receipt for waiters, an event for listeners.

        In transactions, so that no waiter ever finds two answers for one job; a hundred at a time,
        so that none of them holds up the server.
        """
        waiting = iter(answers)
        while some := list(islice(waiting, _ANSWERS_AT_ONCE)):
            if not self._connected():
                return False
            commands = chain.from_iterable(map(self._announcement, some))
            done = self._try("answers", *commands, ("LLEN", self.keys.receipts), whole=True)
            if done is None:
                return False
            self._forget_receipts(done[-1] - RECEIPTS_MAX)
        return True

    def _announcement(self, answer: Answered) -> Iterator[tuple[Any, ...]]:
        receipt = self.keys.receipt(answer.job_id)
        small = len(answer.document) <= RECEIPT_MAX_BYTES
        yield ("DEL", receipt)
        yield ("LPUSH", receipt, answer.document if small else _SEE_FILE)
        yield ("EXPIRE", receipt, self.settings.receipt_ttl_s)
        yield ("RPUSH", self.keys.receipts, answer.job_id)
        yield self._event(answer.event)

    def _forget_receipts(self, too_many: int) -> None:
        if too_many <= 0:
            return
        oldest = self._try("answers", ("LPOP", self.keys.receipts, too_many))
        if oldest and oldest[0]:
            names = [self.keys.receipt(_text(job_id)) for job_id in oldest[0]]
            self._try("answers", ("DEL", *names))

    def event(self, event: Mapping[str, Any]) -> bool:
        """Append one entry to the event stream."""
        return self._connected() and self._try("event", self._event(event)) is not None

    def _event(self, event: Mapping[str, Any]) -> tuple[Any, ...]:
        fields: list[str] = []
        for name, value in event.items():
            fields += [name, value if isinstance(value, str) else json.dumps(value, default=str)]
        return ("XADD", self.keys.events, "MAXLEN", "~", self.settings.events_max, "*", *fields)

    def await_answer(self, job_id: str, timeout_s: float) -> bytes | None:
        """Block until an answer for the job is announced: its document, or None in time.

        Blocks for a second at most: the caller looks at the files now and then. Any number of waiters get it: each moves the list's one entry onto itself. Raises
        `Unavailable` when Redis is away: then poll the files.
        """
        if time.monotonic() < self._pause_until_s:
            raise Unavailable("redis was away a moment ago")
        try:
            client = self.waiter(_BLOCK_S)
            key = self.keys.receipt(job_id)
            wait_s = max(0.01, min(timeout_s, _BLOCK_S))
            command = ("BLMOVE", key, key, "LEFT", "LEFT", wait_s)
            found = client.execute_command(*command)  # type: ignore[no-untyped-call]
        except (redis.RedisError, OSError, ValueError) as error:
            self._failed("wait", error)
            raise Unavailable(str(error), code=Code.E501) from None
        return None if found is None else bytes(found)

    # ── signs of life ─────────────────────────────────────────────────────────────────────────

    def beat(self, process: str, role: str, **facts: Any) -> bool:
        """This process is alive."""
        if not self._connected():
            return False
        sign = {"role": role, "pid": os.getpid(), "at_s": time.time(), "at_utc": iso(utc_now())}
        value = json.dumps(sign | facts)
        return self._try("heartbeat", ("HSET", self.keys.heartbeats, process, value)) is not None

    def heartbeats(self) -> list[Heartbeat]:
        """The last sign of each process, silent ones included; forgets those gone for an hour."""
        client = self.client()
        found = []
        for name, text in client.hgetall(self.keys.heartbeats).items():
            process, sign = _text(name), json.loads(text)
            role, pid, at_s = sign.pop("role"), sign.pop("pid"), sign.pop("at_s")
            if time.time() - at_s > _FORGET_AFTER_S:
                client.hdel(self.keys.heartbeats, process)
                continue
            found.append(Heartbeat(process, role, pid, at_s, sign))
        return sorted(found, key=lambda heartbeat: heartbeat.process)

    def retire(self, process: str) -> bool:
        """This process ends in good order: it shall not be missed."""
        if not self._connected():
            return False
        return self._try("heartbeat", ("HDEL", self.keys.heartbeats, process)) is not None


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
