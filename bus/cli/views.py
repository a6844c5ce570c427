"""Keeping the lake: export, rebuild, verify."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from bus.cli.options import HERE, Everywhere, Switch
from bus.cli.output import Block, Facts, Line, Part, Reply, Table, say
from bus.errors import BusError, Code, NotFound, Refused, WaitTimeout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bus.lake import Lake
    from bus.settings import Settings

_POLL_S = 0.05


def rebuild(*, timeout: float = 3600.0, everywhere: Everywhere = HERE) -> Reply:
    """Recreate every view from objects and journal.

    Manifest, catalog, artifact links and run trees; golden exports follow by themselves, or with
    `bus export`. With a bus running, its writer does the work between two commits; else this
    process takes the writer's lock.

    For example:

        bus rebuild
        bus rebuild --lake /data/lake --json

    Parameters
    ----------
    timeout
        Wait this many seconds for the running writer, or for its lock.
    """
    from bus import disk

    lake, settings = everywhere.open()
    started_s = time.monotonic()
    if disk.is_locked(lake.seat_lock):
        say("The running writer rebuilds; waiting for it.")
        _ask_the_writer(lake, settings, timeout)
    else:
        _rebuild_here(lake, settings, timeout)
    facts = _counts(lake) | {"seconds": round(time.monotonic() - started_s, 2)}
    return Reply(facts, lambda: [Facts("rebuilt", facts)])


def _ask_the_writer(lake: Lake, settings: Settings, timeout_s: float) -> None:
    """Leave the request, ring, and wait until the writer has taken it away again."""
    from bus import app, disk

    app.use(settings)
    disk.write_plain(lake.rebuild_request, b"")
    deadline = time.monotonic() + timeout_s
    app.ring_writer(anyway=True)
    while lake.rebuild_request.exists():
        if time.monotonic() > deadline:
            hint = "The request stays: the writer rebuilds when it comes to it. See: bus status"
            raise WaitTimeout(f"no rebuild within {timeout_s:g} s", where="rebuild", hint=hint)
        time.sleep(_POLL_S)


def _rebuild_here(lake: Lake, settings: Settings, timeout_s: float) -> None:
    import logging

    from bus import disk
    from bus.process import configure_logging
    from bus.specs import Registry
    from bus.writer import Writer

    configure_logging("rebuild", logging.WARNING)
    registry = Registry.load(settings)
    with Writer.open(lake, settings, registry, wait_s=timeout_s) as writer:
        writer.rebuild()
        disk.remove(lake.rebuild_request)
        while writer.drain().more:  # run trees, in slices
            pass


def _counts(lake: Lake) -> dict[str, Any]:
    from contextlib import closing

    from bus.manifest import Manifest

    with closing(Manifest.read(lake)) as manifest:
        seq, _ = manifest.applied
        ((artifacts,),) = manifest.rows("SELECT count(*) FROM artifacts")
    return {"seq": seq, "artifacts": artifacts}
