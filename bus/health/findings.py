"""What a person should look at first, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bus.broker import INGEST
from bus.errors import Code
from bus.health.facts import Finding
from bus.model import JobState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bus.health.facts import Status, WriterHealth

#: A job that has waited for longer than this while nothing was committed is worth a word.
_LAG_S = 30.0
_LOW_DISK_SHARE = 0.05
_LOW_DISK_BYTES = 1 << 30
_FULL_DISK_BYTES = 256 << 20


def _bad(text: str, hint: str) -> Finding:
    return Finding(bad=True, text=text, hint=hint)


def _odd(text: str, hint: str) -> Finding:
    return Finding(bad=False, text=text, hint=hint)


def findings(found: Status) -> Iterator[Finding]:
    """Everything worth a word, the writer first."""
    yield from _about_writer(found)
    yield from _about_intake(found)
    yield from _about_redis(found)
    yield from _about_views(found)
    yield from _about_disk(found)


def _about_writer(found: Status) -> Iterator[Finding]:
    writer = found.writer
    ready = found.jobs[str(JobState.READY)].count
    if writer.state == "dead":
        hint = "bus up starts it again by itself; else start it: bus writer. Nothing is lost."
        yield _bad(f"the writer is dead, {ready} judged jobs wait for it", hint)
    elif writer.state == "silent":
        hint = "Look at its log (bus/run/logs/writer.log); kill -9 is safe, it is started anew."
        yield _bad(f"the writer {writer.says}", hint)
    elif writer.state == "busy elsewhere":
        yield _odd(f"the writer waits: {writer.says}", "It goes on when that has ended.")
    elif writer.state == "alive" and _is_stuck(writer):
        hint = "Look at its log (bus/run/logs/writer.log); `bus doctor` checks disk and Redis."
        text = f"the writer lives and has committed nothing for {writer.lag_s:.0f} s of work"
        yield _bad(text, hint)


def _is_stuck(writer: WriterHealth) -> bool:
    idle_s = writer.last_commit_age_s
    return writer.lag_s > _LAG_S and (idle_s is None or idle_s > _LAG_S)


def _about_intake(found: Status) -> Iterator[Finding]:
    waiting = found.jobs[str(JobState.STAGED)].count + found.jobs[str(JobState.VALIDATING)].count
    if not found.running:
        if waiting:
            yield _odd(f"no bus runs, {waiting} jobs wait", "Start one: bus up.")
        return
    alive = {process.role for process in found.processes if process.alive}
    if not found.queues.answers:
        return
    if INGEST not in alive:
        hint = "bus up starts them again by itself; else start one: bus worker."
        yield _bad(f"no ingest worker is alive, {waiting} jobs wait", hint)
    if "pump" not in alive:
        hint = "Start it: bus pump. Without it no sweep finds jobs whose bell was lost."
        yield _bad("the pump is dead", hint)
    if "beat" not in alive:
        hint = "Start it: bus beat. Exports still follow commits; sampled checks do not happen."
        yield _odd("beat is dead", hint)


def _about_redis(found: Status) -> Iterator[Finding]:
    queues = found.queues
    if found.running and not queues.answers:
        hint = "bus up starts the bundled one again by itself. Nothing is lost meanwhile."
        yield _bad("Redis does not answer", hint)
    if queues.notify_bad:
        hint = f"Look at them: bus redis LRANGE {queues.prefix}bus:notify:bad 0 9."
        yield _odd(f"{queues.notify_bad} notifications were not understood", hint)
    if queues.dead:
        hint = (
            f"Look at them: bus redis LRANGE {queues.prefix}bus:dead 0 9. "
            f"Programs push to bus:notify, never into Celery's queues."
        )
        yield _odd(f"{queues.dead} entries of the queues were no messages of ours", hint)


def _about_views(found: Status) -> Iterator[Finding]:
    catalog = found.catalog
    quiet = (found.writer.last_commit_age_s or 0.0) > _LAG_S
    if catalog.journal_ahead and found.writer.state != "alive":
        hint = "A writer replays it when it starts; or run: bus rebuild."
        yield _odd("the journal is ahead of the manifest", hint)
    if quiet and catalog.manifest_seq and catalog.seq != catalog.manifest_seq:
        shown = "missing" if catalog.seq is None else f"at commit {catalog.seq}"
        text = f"the catalog is {shown}, the manifest at {catalog.manifest_seq}"
        yield Finding(bad=found.writer.state == "alive", text=text, hint=Code.E508.hint)
    if catalog.damaged:
        text = f"{len(catalog.damaged)} artifacts are damaged: {', '.join(catalog.damaged[:3])}"
        yield _bad(text, Code.E315.hint)
    for export in found.exports:
        if export.state == "error":
            yield _bad(f"export {export.name} failed: {export.error}", Code.E509.hint)
        elif export.state == "stale" and quiet:
            hint = "Run: bus export. Beat does it within its period."
            yield _odd(f"export {export.name} is stale", hint)


def _about_disk(found: Status) -> Iterator[Finding]:
    free_bytes, total_bytes = found.disk.free_bytes, found.disk.total_bytes
    text = f"the disk is nearly full: {free_bytes / 1e9:.1f} GB are free"
    if free_bytes < _FULL_DISK_BYTES:
        yield _bad(text, Code.E504.hint)
    elif free_bytes < min(_LOW_DISK_BYTES, _LOW_DISK_SHARE * total_bytes):
        yield _odd(text, Code.E504.hint)
