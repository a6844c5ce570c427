"""Running a bus: up, down, demo, and its processes one by one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from bus.cli.options import HERE, Everywhere, Switch
from bus.cli.output import Facts, Line, Part, Reply, Table, show

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bus.broker import Endpoint
    from bus.lake import Lake

Count = Annotated[int, Parameter(validator=Number(gte=1, lte=256))]


def up(
    *,
    workers: Count | None = None,
    flower: Switch = False,
    verbose: Switch = False,
    everywhere: Everywhere = HERE,
) -> int:
    """Start a whole bus on this machine and keep it running.

    The bundled Valkey (unless BUS_REDIS_URL is set), ingest workers, the writer, the notify pump
    and beat; whoever dies is started again. Prints what runs and where once all show life. Ctrl-C
    or TERM drains and stops it, exit code 0; `kill -9` is safe as well.

    For example:

        bus up
        bus up --lake /data/lake --workers 4 --flower
        bus up --verbose

    Parameters
    ----------
    workers
        Processes that validate and hash. Default: the number of cores, at most 8.
    flower
        Run Flower too, on loopback and behind a password.
    verbose
        Repeat what the processes log.
    """
    import logging

    from bus.lake import Lake
    from bus.process import configure_logging
    from bus.settings import Settings
    from bus.supervisor import Supervisor

    settings = Settings.load(everywhere.lake, find=False)  # not the lake of a bus that runs already
    configure_logging("up", logging.INFO if verbose else logging.WARNING)
    lake = Lake(settings.lake, settings.public_lake)

    def ready(running: Endpoint) -> None:
        show(_running(lake, running), as_json=everywhere.json)

    return Supervisor(settings, workers=workers, flower=flower, verbose=verbose, ready=ready).run()


def _running(lake: Lake, running: Endpoint) -> Reply:
    """What runs and where; without the password of Redis, which endpoint.json holds."""
    processes = [(name, pid, str(lake.log_path(name))) for name, pid in running.processes.items()]
    data = {
        "lake": str(lake.root),
        "endpoint": str(lake.endpoint),
        "pid": running.pid,
        "processes": running.processes,
        "flower": running.flower,
    }

    def text() -> Iterable[Part]:
        yield Line(f"A bus runs on {lake.root}", "good")
        yield Table(("process", "pid", "log"), processes)
        if running.flower:
            yield Facts("flower", running.flower)
        yield Line(f"Clients find it by {lake.endpoint}. Stop it with Ctrl-C or bus down.", "dim")

    return Reply(data, text)


def down(*, timeout: float = 30.0, everywhere: Everywhere = HERE) -> Reply:
    """Stop the bus that `bus up` started.

    It drains and ends within seconds; jobs that wait stay where they are. No bus is no error.

    For example:

        bus down
        bus down --lake /data/lake

    Parameters
    ----------
    timeout
        Wait this many seconds for its end.
    """
    from bus.supervisor import down as stop

    lake, _ = everywhere.open()
    stopped = stop(lake, timeout)
    says = "Stopped." if stopped else "No bus runs on this lake."
    return Reply({"stopped": stopped}, lambda: [Line(says)])


def demo(*, seed: int = 7, everywhere: Everywhere = HERE) -> int:
    """Take the tour: a bus of its own, real jobs, every claim checked.

    Makes a lake in ./demo-lake (or --lake, or BUS_LAKE; it must be new or an earlier demo's), starts
    a bus, submits hundreds of tables, shows a duplicate, a corrupted file, kill -9 of the writer and
    a rebuild. Exit code 0 only if every claim held. Less than a minute.

    For example:

        bus demo
        bus demo --lake /tmp/demo

    Parameters
    ----------
    seed
        The made-up data is the same for the same seed.
    """
    from bus.demo.tour import run

    root = everywhere.lake or Path(os.environ.get("BUS_LAKE") or "demo-lake")
    return run(root, seed=seed, as_json=everywhere.json)


# ── one process, in the foreground ────────────────────────────────────────────────────────────


def worker(*, concurrency: Count | None = None, everywhere: Everywhere = HERE) -> None:
    """Run an ingest worker: validate and hash.

    Needs a Redis: BUS_REDIS_URL, or a bus that runs on this lake. Any number of workers may run.

    For example:

        bus worker
        bus worker --concurrency 4 --lake /data/lake

    Parameters
    ----------
    concurrency
        Processes of this worker. Default: the setting `workers`.
    """
    from bus.supervisor.processes import run_worker

    run_worker(everywhere.settings(), concurrency)


def writer(*, everywhere: Everywhere = HERE) -> None:
    """Run the writer: the only mutator.

    One a lake; a second one waits, says so, and takes over when the first ends.

    For example:

        bus writer
        bus writer --lake /data/lake
    """
    from bus.supervisor.processes import run_writer

    run_writer(everywhere.settings())


def pump(*, everywhere: Everywhere = HERE) -> None:
    """Run the notify pump and the sweep.

    Moves `LPUSH bus:notify` into the queue and rings for jobs whose bell was lost.

    For example:

        bus pump
        bus pump --lake /data/lake
    """
    from bus.supervisor.processes import run_pump

    run_pump(everywhere.settings())


def beat(*, everywhere: Everywhere = HERE) -> None:
    """Run beat: periodic exports and checks.

    For example:

        bus beat
        bus beat --lake /data/lake
    """
    from bus.supervisor.processes import run_beat

    run_beat(everywhere.settings())


def flower(*, everywhere: Everywhere = HERE) -> None:
    """Run Flower on the bus's queues.

    On loopback, read-only and behind a password, unless FLOWER_* variables say otherwise. `bus
    status` shows what Flower cannot: unacknowledged messages, ages, a dead writer.

    For example:

        bus flower
        bus flower --lake /data/lake
    """
    from bus.supervisor.processes import run_flower

    run_flower(everywhere.settings())
