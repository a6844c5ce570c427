"""`status` of a whole bus, and `check` of one process."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import closing, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import redis

from bus import damage, disk, lookup
from bus.broker import INGEST, WRITER, Broker, address, endpoint
from bus.errors import BusError, Code, Refused, Unavailable
from bus.health.facts import (
    Backlog,
    CatalogHealth,
    Check,
    DiskHealth,
    ExportHealth,
    ExportState,
    Process,
    Queues,
    Status,
    WriterHealth,
    WriterState,
)
from bus.health.findings import findings
from bus.manifest import BrokenManifestError, Manifest
from bus.model import JobState, iso, utc_now

if TYPE_CHECKING:
    from bus.broker import Endpoint, Heartbeat
    from bus.lake import Lake
    from bus.settings import Settings

#: `bus health` names processes as the commands do; heartbeats name them by what they read.
ROLES = {"worker": INGEST, "writer": WRITER, "pump": "pump", "beat": "beat"}

_REDIS_TIMEOUT_S = 1.0
_READY_LOOKS = 50
_FRESH_S = 2.0


# ── the whole ─────────────────────────────────────────────────────────────────────────────────


def status(lake: Lake, settings: Settings) -> Status:
    """Look at everything. Raises `Unavailable` (E507) where there is no lake."""
    if not lake.inbox.is_dir():
        raise Unavailable("there is no lake here", code=Code.E507, where=str(lake.root))
    running = endpoint(lake)
    runs = running is not None and disk.is_locked(lake.up_lock)
    queues, signs = _queues(settings, lake)
    jobs = _jobs(lake)
    catalog = _catalog(lake)
    writer = _writer(lake, signs, jobs, catalog, expected=runs or _shown(signs, WRITER))
    found = Status(
        lake=str(lake.root),
        at_utc=iso(utc_now()),
        running=runs or any(map(_lives, signs)),
        started_at_utc=running.started_at_utc if running else None,
        jobs=jobs,
        writer=writer,
        processes=_processes(signs, running if runs else None),
        queues=queues,
        catalog=catalog,
        exports=exports(lake, settings),
        disk=_disk(lake),
        findings=[],
    )
    found.findings.extend(findings(found))
    return found


def _jobs(lake: Lake) -> dict[str, Backlog]:
    states = (JobState.STAGED, JobState.VALIDATING, JobState.READY, JobState.REJECTED)
    now_s = time.time()
    found = {}
    for state in states:
        listed = lake.listing(state)
        age_s = max(0.0, now_s - listed[0].changed_at_s) if listed else None
        found[str(state)] = Backlog(len(listed), age_s)
    return found


def _disk(lake: Lake) -> DiskHealth:
    usage = shutil.disk_usage(lake.root)
    return DiskHealth(usage.free, usage.total)


# ── Redis ─────────────────────────────────────────────────────────────────────────────────────


def _queues(settings: Settings, lake: Lake) -> tuple[Queues, list[Heartbeat]]:
    where = address(settings, lake)
    if where is None:
        return Queues(answers=False), []
    shown = _without_password(where.url)
    broker = Broker(settings, timeout_s=_REDIS_TIMEOUT_S)
    try:
        return _depths(broker, shown), broker.heartbeats()
    except (redis.RedisError, BusError, OSError):
        return Queues(answers=False, where=shown), []
    finally:
        broker.forget()


def _depths(broker: Broker, where: str) -> Queues:
    client, keys = broker.client(), broker.keys
    pipe = client.pipeline(transaction=False)
    for key in (keys.ingest, keys.writer, keys.notify, keys.bad, keys.dead):
        pipe.llen(key)
    pipe.hlen(keys.unacked)
    pipe.hgetall(keys.counters)
    ingest, writer, notify, bad, dead, unacked, counters = pipe.execute()
    return Queues(
        answers=True,
        where=where,
        prefix=keys.prefix,
        ingest=ingest,
        writer=writer,
        unacked=unacked,
        notify=notify,
        notify_bad=bad,
        dead=dead,
        counters={k.decode(): int(v) for k, v in counters.items()},
    )


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or "localhost"
    return f"{parts.scheme}://{host}:{parts.port or 6379}{parts.path}"


# ── processes ─────────────────────────────────────────────────────────────────────────────────


def _processes(signs: list[Heartbeat], running: Endpoint | None) -> list[Process]:
    """Everybody who gave a sign; and the children of `bus up` that give none (redis, flower)."""
    now_s = time.time()
    served = {(sign.role, _host(sign)) for sign in signs if _lives(sign)}
    found = [
        Process(sign.process, sign.role, sign.pid, _lives(sign), max(0.0, now_s - sign.at_s))
        for sign in signs
        if _lives(sign) or (sign.role, _host(sign)) not in served  # its successor works
    ]
    known = {process.pid for process in found}
    for name, pid in (running.processes if running else {}).items():
        if pid not in known:
            found.append(Process(name, name, pid, _pid_lives(pid)))
    return found


def _host(sign: Heartbeat) -> str:
    return sign.process.rpartition("@")[2]


def _lives(sign: Heartbeat) -> bool:
    """Whether its last sign is recent and, on this host, its process is still there."""
    return sign.alive and (_host(sign) != os.uname().nodename or _pid_lives(sign.pid))


def _pid_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _shown(signs: list[Heartbeat], role: str) -> bool:
    """Whether a process of that role ever showed life and did not retire."""
    return any(sign.role == role for sign in signs)


# ── the writer ────────────────────────────────────────────────────────────────────────────────


def _writer(
    lake: Lake,
    signs: list[Heartbeat],
    jobs: dict[str, Backlog],
    catalog: CatalogHealth,
    *,
    expected: bool,
) -> WriterHealth:
    state, says = _writer_state(lake, signs, expected=expected)
    age_s = None
    if catalog.committed_at_utc:
        age_s = (utc_now() - datetime.fromisoformat(catalog.committed_at_utc)).total_seconds()
    return WriterHealth(state, says, _lag_s(lake, jobs[str(JobState.READY)]), age_s)


def _writer_state(lake: Lake, signs: list[Heartbeat], *, expected: bool) -> tuple[WriterState, str]:
    """From locks, which the kernel frees when their holder dies, and signs of life."""
    if disk.is_locked(lake.seat_lock):
        holder = _holder(lake)
        for sign in signs:
            if sign.role == WRITER and str(sign.pid) == holder and not sign.alive:
                silent_s = time.time() - sign.at_s
                return "silent", f"holds its seat and has shown no life for {silent_s:.0f} s"
        return "alive", f"process {holder}"
    if disk.is_locked(lake.writer_lock):
        return "busy elsewhere", "another process holds the writer's lock, such as bus rebuild"
    if expected:
        return "dead", "nobody holds the writer's seat; judged jobs wait and nothing is committed"
    return "not started", "no bus runs on this lake"


def _holder(lake: Lake) -> str:
    try:
        return lake.seat_lock.read_text().strip() or "?"
    except OSError:
        return "?"


def _lag_s(lake: Lake, ready: Backlog) -> float:
    """Age of the oldest job in ready/ that waits for no reference."""
    if ready.oldest_age_s is None or ready.oldest_age_s < _FRESH_S:
        return ready.oldest_age_s or 0.0
    now_s = time.time()
    for entry in lake.listing(JobState.READY)[:_READY_LOOKS]:
        if not lookup.waiting_for(lake, entry.name):
            return max(0.0, now_s - entry.changed_at_s)
    return 0.0


# ── views ─────────────────────────────────────────────────────────────────────────────────────


def _catalog(lake: Lake) -> CatalogHealth:
    from bus.catalog import published_seq  # noqa: PLC0415 - who asks for one process needs no duckdb

    seq, committed_at, damaged = _manifest(lake)
    ahead = lake.record_path(seq + 1).exists()
    return CatalogHealth(published_seq(lake), seq, committed_at, ahead, damaged)


def _manifest(lake: Lake) -> tuple[int, str | None, list[str]]:
    """The newest commit, when it was made, and what is known as damaged."""
    seq, committed_at_utc, damaged = 0, None, []
    try:
        manifest = Manifest.read(lake)
    except Unavailable:
        return 0, None, []
    newest = "SELECT seq, committed_at_utc FROM commits ORDER BY seq DESC LIMIT 1"
    with closing(manifest), suppress(BrokenManifestError):
        for row in manifest.rows(newest):
            seq, committed_at_utc = row
        damaged = [str(artifact) for artifact in damage.known(manifest).artifacts]
    return seq, committed_at_utc, damaged


def exports(lake: Lake, settings: Settings) -> list[ExportHealth]:
    """How each enabled export stands, and each that was ever built, by name."""
    seq, *_ = _manifest(lake)
    known = {result["name"]: result for result in _export_results(lake)}
    enabled = {name for name, export in settings.exports.items() if export.enabled}
    return [_export(lake, name, known.get(name), seq) for name in sorted(enabled | known.keys())]


def _export_results(lake: Lake) -> list[dict[str, Any]]:
    from bus.exports import status as exports_status  # noqa: PLC0415 - brings duckdb

    found: list[dict[str, Any]] = exports_status(lake)["results"]
    return found


def _export(lake: Lake, name: str, result: dict[str, Any] | None, newest_seq: int) -> ExportHealth:
    if result is None or (result["ok"] and not lake.export_path(name).exists()):
        return ExportHealth(name, "never")
    state: ExportState = "ok"
    if not result["ok"]:
        state = "error"
    elif result.get("seq", 0) < newest_seq:
        state = "stale"
    facts = {key: result.get(key) for key in ("rows", "seq", "path", "error")}
    return ExportHealth(name, state, at_utc=result.get("written_at_utc"), **facts)


# ── one process ───────────────────────────────────────────────────────────────────────────────


def alive(process: str, lake: Lake, settings: Settings) -> bool:
    """Whether a process of that name shows life anywhere."""
    _, signs = _queues(settings, lake)
    return any(_lives(sign) and sign.role == ROLES[process] for sign in signs)


def check(process: str, lake: Lake, settings: Settings) -> Check:
    """Whether `worker`, `writer`, `pump` or `beat` shows life on this host.

    Raises `Refused` (E103) for any other name.
    """
    if process not in ROLES:
        hint = f"Processes: {', '.join(ROLES)}."
        raise Refused(f"no process {process!r}", code=Code.E103, where="PROCESS", hint=hint)
    queues, signs = _queues(settings, lake)
    if not queues.answers:
        return Check(process, ok=False, says="Redis does not answer, so nobody can tell")
    host = os.uname().nodename
    mine = [s for s in signs if s.role == ROLES[process] and s.process.endswith(f"@{host}")]
    if not mine:
        return Check(process, ok=False, says=f"no {process} has shown life on {host}")
    newest = max(mine, key=lambda sign: (_lives(sign), sign.at_s))
    says = f"{newest.process} showed life {time.time() - newest.at_s:.0f} s ago"
    if newest.alive and not _lives(newest):
        says += ", and has died since"
    return Check(process, ok=_lives(newest), says=says)
