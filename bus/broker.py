"""Redis: every key, where the server is, doorbells, receipts, events, heartbeats.

Nothing here is the truth. Jobs are files; Redis holds bells that say "look", answers for those who
wait, and signs of life. `FLUSHALL` costs latency, never a job; a server that is down or hung costs
a producer at most a fifth of a second, and never an exception from `ring`.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import weakref
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Protocol, Self
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bus import disk
from bus.errors import Code, Unavailable
from bus.lake import Lake
from bus.model import iso, utc_now

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from bus.settings import Settings

log = logging.getLogger("bus.broker")

#: Celery's queues; kombu keeps each in a list of this name, behind the prefix.
INGEST = "ingest"
WRITER = "writer"

NOTIFY_MAX_BYTES = 4096
BAD_MAX = 1000
DOORBELL_TTL_S = 10
EXPORT_BELL_TTL_S = 60
HEARTBEAT_S = 2.0
#: A process without a sign for this long is taken for dead.
SILENT_AFTER_S = 15.0
_FORGET_AFTER_S = 3600.0

#: Three steps make the first command (connect, log in, the command): together within 0.2 s.
PRODUCER_TIMEOUT_S = 0.06
WORKER_TIMEOUT_S = 10.0
#: After a failure producers do not ask again for this long: a hung server costs them once a second.
PAUSE_AFTER_FAILURE_S = 1.0
_BLOCK_S = 1.0
_ANSWERS_AT_ONCE = 100
_TAKE_MAX = 500
_TAKE_BLOCK_S = 0.5
_SHOWN_BYTES = 512


class Keys:
    """Every key of the bus in Redis. Kombu's own (queues, unacked …) carry the same prefix."""

    def __init__(self, prefix: str = "") -> None:
        #: What stands before every key: empty on the bundled server, the lake's on a shared one.
        self.prefix = prefix
        #: List. Producers LPUSH ``{"job_id": "…"}`` or a bare id; the pump takes from the right.
        self.notify = f"{prefix}bus:notify"
        #: List. Notifications the pump is working on; put back when a pump starts.
        self.processing = f"{prefix}bus:notify:processing"
        #: List, newest first, at most BAD_MAX. Notifications nobody understood, with the reason.
        self.bad = f"{prefix}bus:notify:bad"
        #: String, SET NX EX. There is a bell for the writer that it has not answered yet.
        self.doorbell = f"{prefix}bus:doorbell"
        #: String, SET NX EX. A look at the exports is due and scheduled.
        self.export_bell = f"{prefix}bus:exports:due"
        #: Stream, MAXLEN ~ events_max. What happened: one entry a job, for whoever listens.
        self.events = f"{prefix}bus:events"
        #: Hash process -> JSON. When each process last showed a sign of life.
        self.heartbeats = f"{prefix}bus:heartbeats"
        #: Hash name -> number. What the pump moved, refused and rang, since the server is empty.
        self.counters = f"{prefix}bus:counters"
        #: List. Celery's queue of `submit_artifact` and `verify_sample`.
        self.ingest = f"{prefix}{INGEST}"
        #: List. Celery's queue of `commit_ready`, `refresh_exports` and `publish_export`.
        self.writer = f"{prefix}{WRITER}"
        #: Hash. Celery's messages that were delivered and not yet acknowledged.
        self.unacked = f"{prefix}unacked"

    def receipt(self, job_id: str) -> str:
        """List of one entry, EXPIRE receipt_ttl_s: the answer; waiters BLMOVE it onto itself."""
        return f"{self.prefix}bus:receipt:{job_id}"

    def later(self, job_id: str) -> str:
        """String, SET NX PX: a look at this unfinished job is scheduled already."""
        return f"{self.prefix}bus:later:{job_id}"


_BARE = Keys()
#: The plain list, which producers of any language know, on a server that lakes share.
PLAIN_NOTIFY = _BARE.notify


# ── where the server is ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Address:
    """A Redis and the prefix of this lake's keys on it."""

    url: str
    prefix: str

    @property
    def shared(self) -> bool:
        """Whether other lakes may use the same server."""
        return bool(self.prefix)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """endpoint.json: how to reach a running bus, and its processes {name: pid}."""

    url: str
    prefix: str
    pid: int
    started_at_utc: str
    processes: dict[str, int] = field(default_factory=dict)
    flower: dict[str, str] | None = None

    def to_bytes(self) -> bytes:
        """The document, with the parts of the url beside it for clients without a parser."""
        parts = urlsplit(self.url)
        found = {
            "host": parts.hostname or "127.0.0.1",
            "port": parts.port or 6379,
            "username": parts.username or "default",
            "password": parts.password or "",
        }
        return json.dumps(found | asdict(self), indent=2).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The inverse of `to_bytes`; ValueError or KeyError when it is not that document."""
        found = json.loads(data)
        return cls(**{name: found[name] for name in cls.__dataclass_fields__})


def endpoint(lake: Lake) -> Endpoint | None:
    """What the running bus says of itself, or None when none runs (or its file is damaged)."""
    try:
        return Endpoint.from_bytes(lake.endpoint.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("endpoint file not readable: %s", error)
        return None


def write_endpoint(lake: Lake, value: Endpoint) -> None:
    """Publish `value` for clients of this user (mode 0600, by rename)."""
    disk.replace_view(lake.endpoint, value.to_bytes(), mode=0o600)


def address(settings: Settings, lake: Lake | None = None) -> Address | None:
    """The Redis of these settings: `redis_url`, else that of the running bus, else None."""
    lake = lake or Lake(settings.lake, settings.public_lake)
    running = endpoint(lake)
    if settings.redis_url:
        same = running is not None and running.url == settings.redis_url
        known = running.prefix if running is not None and same else default_prefix(lake)
        chosen = settings.redis_prefix
        return Address(settings.redis_url, known if chosen is None else chosen)
    if running is None:
        return None
    return Address(running.url, running.prefix)


def default_prefix(lake: Lake) -> str:
    """The prefix on a server that is not this lake's own."""
    return f"bus-{lake.identity}:"


def open_redis(
    url: str, *, timeout_s: float, block_s: float = 0.0, name: str | None = None
) -> redis.Redis:
    """A client of `url` that never retries by itself; `block_s` is its longest blocking command."""
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=min(timeout_s, 5.0),
        socket_timeout=timeout_s + block_s,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
        client_name=name,
        protocol=2,  # with no greeting and no driver's name the first command comes at once
        driver_info=None,
    )


def connect(settings: Settings, *, timeout_s: float = PRODUCER_TIMEOUT_S) -> redis.Redis | None:
    """A client of the lake's Redis that answers now, or None."""
    where = address(settings)
    if where is None:
        return None
    client = open_redis(where.url, timeout_s=timeout_s)
    try:
        client.ping()
    except redis.RedisError:
        client.close()
        return None
    return client


# ── the connection ────────────────────────────────────────────────────────────────────────────


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

    def count(self, what: str, number: int = 1) -> bool:
        """Add to a counter that `bus status` shows."""
        command = ("HINCRBY", self.keys.counters, what, number)
        return self._connected() and self._try("counter", command) is not None

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
            if self._try("answers", *commands, whole=True) is None:
                return False
        return True

    def _announcement(self, answer: Answered) -> Iterator[tuple[Any, ...]]:
        receipt = self.keys.receipt(answer.job_id)
        yield ("DEL", receipt)
        yield ("LPUSH", receipt, answer.document)
        yield ("EXPIRE", receipt, self.settings.receipt_ttl_s)
        yield self._event(answer.event)

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


class Notifications:
    """One notify list, as the pump reads it. Every method raises `Unavailable` (E501).

    An entry moves to the processing list before anyone looks at it, and leaves that when it is
    dealt with: a pump that dies in between finds it again.
    """

    def __init__(self, where: Address, source: str) -> None:
        self._keys = Keys(where.prefix)
        self._source = source
        self._client = open_redis(where.url, timeout_s=WORKER_TIMEOUT_S, block_s=_TAKE_BLOCK_S)

    def recover(self) -> None:
        """Put back what a predecessor was working on."""
        command = ("LMOVE", self._keys.processing, self._source, "LEFT", "RIGHT")
        while self._run([command])[0] is not None:
            pass

    def take(self) -> list[bytes]:
        """The oldest entries, at most 500; waits half a second for one, then returns none."""
        lists = (self._source, self._keys.processing, "RIGHT", "LEFT")
        first = self._run([("BLMOVE", *lists, _TAKE_BLOCK_S)])[0]
        if first is None:
            return []
        waiting = min(self._run([("LLEN", self._source)])[0], _TAKE_MAX - 1)
        more = self._run([("LMOVE", *lists)] * waiting) if waiting else []
        return [first, *(entry for entry in more if entry is not None)]

    def settle(self, entries: Iterable[bytes], bad: Iterable[tuple[bytes, str]] = ()) -> None:
        """The entries are dealt with; `bad` ones (with the reason) are kept for a look."""
        keys = self._keys
        commands: list[tuple[Any, ...]] = [
            ("LREM", keys.processing, -1, entry) for entry in entries
        ]
        for entry, reason in bad:
            shown = entry[:_SHOWN_BYTES].decode(errors="backslashreplace")
            kept = {"reason": reason, "entry": shown, "size_bytes": len(entry)}
            commands.append(("LPUSH", keys.bad, json.dumps(kept | {"at_utc": iso(utc_now())})))
            commands.append(("LTRIM", keys.bad, 0, BAD_MAX - 1))
            commands.append(("HINCRBY", keys.counters, "notify_bad", 1))
        self._run(commands)

    def close(self) -> None:
        """Drop the connection."""
        self._client.close()

    def _run(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        try:
            pipe = self._client.pipeline(transaction=False)
            for command in commands:
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            return pipe.execute()
        except (redis.RedisError, OSError) as error:
            raise Unavailable(str(error), where=self._source) from None


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
