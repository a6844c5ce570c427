"""Keeping the lake: export, rebuild, verify."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from bus.cli.options import HERE, AsOf, Everywhere, Switch
from bus.cli.output import Block, Facts, Line, Part, Reply, Table, fancy, say
from bus.errors import Code, LakeBusy, Refused, WaitTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bus.health import ExportHealth
    from bus.lake import Lake
    from bus.settings import Settings
    from bus.specs import Registry
    from bus.verify import Finding, Level, Report

_POLL_S = 0.05
#: Somebody else's lock is waited for this long; the running writer is asked instead of waited for.
_LOCK_WAIT_S = 10.0
_SAY_EVERY_S = 1.0


def export(
    *names: str,
    list_: Annotated[Switch, Parameter(name="--list")] = False,
    force: Switch = False,
    as_of: AsOf = None,
    out: Annotated[Path | None, Parameter(show_default=False)] = None,
    timeout: float = 60.0,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Build golden exports now, or list them.

    They follow commits by themselves; this is the hand. Reads the published catalog, works with no
    bus running. An export whose inputs did not change is not written again. One that fails keeps
    its old file and makes exit code 1.

    With --as-of and --out they are built as things stood then, into a directory of your own; the
    lake's exports stay as they are. That reads the journal, so it takes about as long as a rebuild.

    For example:

        bus export
        bus export alerts_std alerts_std_tradable --json
        bus export --as-of 2026-01-08T12:00:00Z --out /tmp/then
        bus export --list

    Parameters
    ----------
    names
        Only these; default: every enabled one.
    list_
        Only show how each stands.
    force
        Write also what did not change.
    as_of
        As things stood after this commit, or at this moment (with a zone).
    out
        Where exports of the past go.
    timeout
        Wait this many seconds while the bus itself builds exports.
    """
    from bus import exports, health

    lake, settings = everywhere.open()
    if as_of is not None or out is not None:
        return _export_past(lake, settings, names, as_of, out)
    chosen = exports.chosen(settings, names or None)
    if not list_:
        _export_here(lake, settings, chosen, force=force, timeout_s=timeout)
    wanted = [e for e in health.exports(lake, settings) if not names or e.name in names]
    failed = not list_ and any(e.state == "error" for e in wanted)
    return Reply([e.as_dict() for e in wanted], lambda: _export_table(wanted), int(failed))


def _export_past(
    lake: Lake, settings: Settings, names: tuple[str, ...], as_of: str | None, out: Path | None
) -> Reply:
    from bus import lookup, past
    from bus.specs import Registry

    if as_of is None or out is None:
        hint = "For example: bus export --as-of 1200 --out /tmp/then"
        raise Refused("--as-of and --out go together", code=Code.E103, where="--as-of", hint=hint)
    seq = lookup.commit(lake, as_of)
    registry = Registry.load(settings)
    done = past.export_as_of(lake, settings, registry, seq, out, names or None)

    def text() -> Iterable[Part]:
        columns = ("name", "ok", "rows", "seq", "path")
        yield Table(columns, [[result.get(c) for c in columns] for result in done])
        yield from (_export_error(r["name"], r["error"]) for r in done if not r["ok"])

    return Reply(done, text, int(not all(result["ok"] for result in done)))


def _export_error(name: str, error: str) -> Block:
    return Block(f"{Code.E509} {name}", [error, f"hint: {Code.E509.hint}"], "bad")


def _export_here(
    lake: Lake, settings: Settings, names: list[str], *, force: bool, timeout_s: float
) -> None:
    from bus import exports

    deadline = time.monotonic() + timeout_s
    while True:
        try:
            exports.build(lake, settings, names, force=force)
            break
        except LakeBusy:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
    exports.publish_pending(lake, settings)


def _export_table(found: list[ExportHealth]) -> Iterable[Part]:
    columns = ("name", "state", "rows", "seq", "at_utc", "path")
    yield Table(columns, [[getattr(e, c) for c in columns] for e in found])
    yield from (_export_error(one.name, one.error) for one in found if one.error)


def rebuild(
    *, from_journal: Switch = False, timeout: float = 3600.0, everywhere: Everywhere = HERE
) -> Reply:
    """Recreate every view from objects and journal.

    Manifest, catalog, artifact links and run trees; golden exports follow by themselves, or with
    `bus export`. It begins with the newest checkpoint whose bytes and whose commit are right, and
    reads only what the journal has beyond it. With a bus running, its writer does the work between
    two commits; else this process takes the writer's lock.

    For example:

        bus rebuild
        bus rebuild --from-journal
        bus rebuild --lake /data/lake --json

    Parameters
    ----------
    from_journal
        Rely on no checkpoint: read every record of the journal.
    timeout
        Wait this many seconds for the running writer, or for its lock.
    """
    from bus import disk

    lake, settings = everywhere.open()
    started_s = time.monotonic()
    if disk.is_locked(lake.seat_lock):
        say("The running writer rebuilds; waiting for it.")
        _ask_the_writer(lake, settings, timeout, from_journal=from_journal)
    else:
        _rebuild_here(lake, settings, timeout, from_journal=from_journal)
    facts = _counts(lake) | {"seconds": round(time.monotonic() - started_s, 2)}
    return Reply(facts, lambda: [Facts("rebuilt", facts)])


def _ask_the_writer(
    lake: Lake, settings: Settings, timeout_s: float, *, from_journal: bool
) -> None:
    """Leave the request, ring, and wait until the writer has taken it away again."""
    from bus import app
    from bus.lake import Remake

    app.use(settings)
    lake.ask_for(Remake.FROM_JOURNAL if from_journal else Remake.VIEWS)
    deadline = time.monotonic() + timeout_s
    app.ring_writer(anyway=True)
    while lake.rebuild_request.exists():
        if time.monotonic() > deadline:
            hint = "The request stays: the writer rebuilds when it comes to it. See: bus status"
            raise WaitTimeout(f"no rebuild within {timeout_s:g} s", where="rebuild", hint=hint)
        time.sleep(_POLL_S)


def _rebuild_here(lake: Lake, settings: Settings, timeout_s: float, *, from_journal: bool) -> None:
    import logging

    from bus import disk
    from bus.process import configure_logging
    from bus.specs import Registry
    from bus.writer import Writer

    configure_logging("rebuild", logging.WARNING)
    registry = Registry.load(settings)
    with Writer.open(lake, settings, registry, wait_s=min(timeout_s, _LOCK_WAIT_S)) as writer:
        writer.rebuild(from_journal=from_journal)
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


# ── verify ────────────────────────────────────────────────────────────────────────────────────


def verify(
    *,
    quick: Switch = False,
    sample: int | None = None,
    repair: Switch = False,
    from_: Annotated[Path | None, Parameter(name="--from", show_default=False)] = None,
    progress: Switch = False,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Check every invariant of the lake.

    The journal's chain, identities, lineage, answers, every object's bytes, exports, checkpoints, and
    that the views equal a rebuild from record 1. Changes nothing, and may run beside a working bus.
    Exit code 1 when something is wrong; each finding says what to do, and of damage also which
    artifacts are on it and which were made from those. What is known as damaged already is counted,
    and is no finding.

    For example:

        bus verify
        bus verify --quick
        bus verify --sample 1000 --json
        bus verify --json --progress
        bus verify --repair
        bus verify --quick --repair --from /backup/lake

    Parameters
    ----------
    quick
        Hash no object and rebuild no view: what exists, and the journal's chain.
    sample
        Hash only so many objects, chosen at random.
    repair
        Then do what cannot lose anything: have wrong views made again, links and trees made right,
        wrong checkpoints and old leftovers removed, objects made read-only again, and the writer told
        which objects are damaged, so that nobody starts from them, or are back. Where no bus runs,
        this process does the writer's part, and finishes jobs that were left half done.
    from_
        With --repair: bring back what is known as damaged from this backup, or this other lake.
    progress
        Tell on stderr how far it is, once a second; with --json as JSON, one object a line.
    """
    from bus.specs import Registry
    from bus.verify import verify as check

    if quick and sample is not None:
        raise Refused("--quick hashes nothing, --sample does: give one", code=Code.E103)
    if sample is not None and sample < 1:
        raise Refused("a sample holds at least one object", code=Code.E103, where="--sample")
    if from_ is not None and not repair:
        raise Refused("--from is where --repair takes objects from", code=Code.E103, where="--from")
    lake, settings = everywhere.open()
    level: Level = "quick" if quick else "full" if sample is None else "sample"
    registry = Registry.load(settings)
    report = check(
        lake,
        settings,
        registry,
        level,
        sample_size=sample,
        progress=talk_of_progress(everywhere, wanted=progress),
    )
    deeds = _repaired(lake, settings, registry, report, from_) if repair else []
    data = report.as_dict() | {"ok": not report.findings, "lake": str(lake.root), "done": deeds}
    return Reply(data, lambda: _verified(report, deeds), int(bool(report.findings)))


def _repaired(
    lake: Lake, settings: Settings, registry: Registry, report: Report, source: Path | None
) -> list[str]:
    import logging

    from bus import disk, repair
    from bus.lake import Lake as LakeAt
    from bus.process import configure_logging

    deeds = repair.mend(lake, report, None if source is None else LakeAt(source))
    if disk.is_locked(lake.seat_lock) or repair.is_at_rest(lake):
        return deeds  # a running writer finds what it was asked for
    configure_logging("repair", logging.WARNING)
    return deeds + repair.finish(lake, settings, registry)


def talk_of_progress(everywhere: Everywhere, *, wanted: bool) -> Callable[[str, int, int], None]:
    """Talk about long work once a second, when somebody watches or has asked for it."""
    if not wanted and not fancy(sys.stderr):
        return lambda *_: None
    next_s = time.monotonic() + _SAY_EVERY_S

    def talk(what: str, done: int, total: int) -> None:
        nonlocal next_s
        if time.monotonic() < next_s and not (wanted and done == total):
            return
        next_s = time.monotonic() + _SAY_EVERY_S
        if everywhere.json:
            print(json.dumps({"what": what, "done": done, "total": total}), file=sys.stderr)
        else:
            say(f"{what}: {done:,} of {total:,}")

    return talk


def _verified(report: Report, deeds: list[str]) -> Iterable[Part]:
    yield from map(_finding, report.findings)
    yield Facts("verified", {k: v for k, v in report.as_dict().items() if k != "findings"})
    yield from (Line(deed) for deed in deeds)
    if report.findings:
        yield Line(f"{len(report.findings)} findings", "bad")
    else:
        yield Line("Nothing is wrong.", "good")


def _finding(found: Finding) -> Block:
    title = f"invariant {found.invariant}: {found.where}"
    return Block(title, [found.message, f"hint: {found.fix}"], "bad")
