"""The processes of a bus, each with the exact command line that runs it.

`bus up` starts them together; ``bus worker``, ``bus writer`` … run one each, as docker-compose and
systemd do. Their settings travel in the environment, passwords only there or in endpoint.json:
a command line can be read by everyone on the machine.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from bus.broker import INGEST, WRITER, address
from bus.errors import Unavailable
from bus.process import keep_others_out

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bus.settings import Settings

FLOWER_USER = "bus"
_NOT_IN_ENVIRONMENT = {"exports", "kinds", "config_path", "lake", "redis_url", "redis_prefix"}
_CELERY = (sys.executable, "-m", "celery", "--quiet", "--app", "bus.app")
#: What workers tell each other at start and later; ours do not need to know of each other.
_ALONE = ("--without-mingle", "--without-gossip")


def worker_command(concurrency: int, name: str = "ingest") -> list[str]:
    """An ingest worker with a pool of `concurrency` processes."""
    return [
        *(*_CELERY, "worker", "--queues", INGEST, "--pool", "prefork"),
        *("--concurrency", str(concurrency), "--hostname", f"{name}@%h", *_ALONE),
        *("--loglevel", "INFO"),
    ]


def writer_command(name: str = "writer") -> list[str]:
    """The writer. Not a solo pool: that answers no ping while busy and knows no time limits."""
    return [
        *(*_CELERY, "worker", "--queues", WRITER, "--pool", "prefork"),
        *("--concurrency", "1", "--hostname", f"{name}@%h", *_ALONE),
        *("--loglevel", "INFO"),
    ]


def pump_command() -> list[str]:
    """The notify pump and the sweep."""
    return [sys.executable, "-m", "bus.supervisor", "pump"]


def beat_command() -> list[str]:
    """The timer of exports and sampled verification."""
    return [*_CELERY, "beat", "--loglevel", "INFO"]


def flower_command() -> list[str]:
    """Flower; its options are in `flower_environment`."""
    return [*_CELERY, "flower"]


def flower_environment(settings: Settings, port: int | None = None) -> dict[str, str]:
    """Flower's options where the caller's environment has none: loopback, read-only, a password.

    Flower alone would listen on every interface, let anyone in, and run a `flowerconfig.py` that
    lies in the working directory.
    """
    defaults = {
        "FLOWER_CONF": os.devnull,
        "FLOWER_ADDRESS": "127.0.0.1",
        "FLOWER_PORT": str(settings.flower_port if port is None else port),
        "FLOWER_READ_ONLY": "true",
        "FLOWER_INSPECT_TIMEOUT": "3000",
        "FLOWER_MAX_TASKS": "5000",
        "FLOWER_PURGE_OFFLINE_WORKERS": "3600",
    }
    found = {name: os.environ.get(name, value) for name, value in defaults.items()}
    given = os.environ.get("FLOWER_BASIC_AUTH")
    found["FLOWER_BASIC_AUTH"] = given or f"{FLOWER_USER}:{secrets.token_urlsafe(18)}"
    return found


def environment(settings: Settings, prefix: str | None = None) -> dict[str, str]:
    """The environment of a child that serves the same lake with the same settings."""
    found = {k: v for k, v in os.environ.items() if k not in {"BUS_REDIS_URL", "BUS_REDIS_PREFIX"}}
    for name in sorted(settings.model_fields_set - _NOT_IN_ENVIRONMENT):
        value = getattr(settings, name)
        if value is not None:
            found[f"BUS_{name.upper()}"] = str(value)
    if settings.redis_url:
        found["BUS_REDIS_URL"] = settings.redis_url
        chosen = settings.redis_prefix if prefix is None else prefix
        if chosen is not None:
            found["BUS_REDIS_PREFIX"] = chosen
    return found | settings.environment()


# ── one process, run in place of the caller ───────────────────────────────────────────────────


def run_worker(settings: Settings, concurrency: int | None = None) -> NoReturn:
    """Become an ingest worker. Raises `Unavailable` (E501) when there is no Redis to serve."""
    command = worker_command(concurrency or settings.workers, f"ingest-{os.getpid()}")
    _become(settings, command)


def run_writer(settings: Settings) -> NoReturn:
    """Become the writer; it waits, and says so, while another one serves this lake."""
    _become(settings, writer_command(f"writer-{os.getpid()}"))


def run_beat(settings: Settings) -> NoReturn:
    """Become beat."""
    _become(settings, beat_command())


def run_flower(settings: Settings) -> NoReturn:
    """Become Flower; without FLOWER_BASIC_AUTH it says which password it made up."""
    options = flower_environment(settings)
    if "FLOWER_BASIC_AUTH" not in os.environ:
        where = f"http://{options['FLOWER_ADDRESS']}:{options['FLOWER_PORT']}"
        sys.stderr.write(f"Flower: {where}, user:password {options['FLOWER_BASIC_AUTH']}\n")
    _become(settings, flower_command(), options)


def run_pump(settings: Settings) -> None:
    """Pump and sweep in this process until TERM or INT."""
    from bus.process import configure_logging  # noqa: PLC0415 - `bus up` itself needs no celery
    from bus.tasks import notify  # noqa: PLC0415 - likewise

    keep_others_out()
    configure_logging("pump")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    notify.run_pump(settings, stop)


def _become(
    settings: Settings, command: list[str], more: Mapping[str, str] | None = None
) -> NoReturn:
    if address(settings) is None:
        raise Unavailable("no bus is running on this lake", where=str(settings.lake))
    keep_others_out()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, environment(settings) | dict(more or {}))  # noqa: S606 - no shell
