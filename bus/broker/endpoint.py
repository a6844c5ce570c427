"""Where the Redis of a lake is: endpoint.json, the settings, and clients that open it."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bus import disk
from bus.lake import Lake

if TYPE_CHECKING:
    from bus.settings import Settings

log = logging.getLogger("bus.broker")

#: Three steps make the first command (connect, log in, the command): together within 0.2 s.
PRODUCER_TIMEOUT_S = 0.06
WORKER_TIMEOUT_S = 10.0


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
