"""Seeing what is going on: status, health, doctor, explain, redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from bus.cli.options import HERE, Everywhere, Switch
from bus.cli.output import Block, Facts, Line, Mood, Part, Reply, Table, say, seconds, size
from bus.errors import Code, NotFound, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bus.doctor import Finding as Examined
    from bus.health import Status

_MOODS: dict[str, Mood] = {"ok": "good", "odd": "heading", "bad": "bad"}


def status(*, everywhere: Everywhere = HERE) -> Reply:
    """Show queues, ages, consumers, writer lag, exports and disk.

    Works with no bus running and without Redis. What needs a hand stands first; a dead writer is
    the first line.

    For example:

        bus status
        bus status --json | jq .writer.state
        bus status --lake /data/lake
    """
    from bus import health

    lake, settings = everywhere.open()
    found = health.status(lake, settings)
    return Reply(found.as_dict(), lambda: _status(found))


def metrics(*, everywhere: Everywhere = HERE) -> Reply:
    """Print the status as metrics, in Prometheus' text format.

    For example:

        bus metrics
        bus metrics --lake /data/lake
    """
    from bus import health

    lake, settings = everywhere.open()
    found = health.status(lake, settings)
    lines = health.prometheus(found).splitlines()
    return Reply(found.as_dict(), lambda: [Line(line) for line in lines])


def _status(found: Status) -> Iterable[Part]:
    since = f" since {found.started_at_utc}" if found.running and found.started_at_utc else ""
    yield Line(f"{found.lake}: {f'running{since}' if found.running else 'no bus runs'}", "heading")
    for finding in found.findings:
        yield Block(finding.text, [finding.hint], "bad" if finding.bad else "heading")
    writer = found.writer
    mood: Mood = "good" if writer.state == "alive" else "bad" if writer.state == "dead" else "plain"
    yield Line(f"writer: {writer.state} ({writer.says})", mood)
    yield Facts(
        "",
        {
            "lag": seconds(writer.lag_s),
            "last commit": _last_commit(found),
            "catalog": f"at commit {found.catalog.seq}" if found.catalog.seq else "none yet",
            "disk": f"{size(found.disk.free_bytes)} free of {size(found.disk.total_bytes)}",
        },
    )
    yield Table(
        ("jobs", "count", "oldest"),
        [(state, b.count, seconds(b.oldest_age_s)) for state, b in found.jobs.items()],
    )
    yield from _queues(found)
    if found.processes:
        yield Table(
            ("process", "role", "pid", "alive", "last sign"),
            [(p.name, p.role, p.pid, p.alive, seconds(p.silent_s)) for p in found.processes],
        )
    if found.exports:
        yield Table(
            ("export", "state", "rows", "commit", "built"),
            [(e.name, e.state, e.rows, e.seq, e.at_utc) for e in found.exports],
        )


def _last_commit(found: Status) -> str:
    age_s = found.writer.last_commit_age_s
    return "none yet" if age_s is None else f"{found.catalog.manifest_seq}, {seconds(age_s)} ago"


def _queues(found: Status) -> Iterable[Part]:
    queues = found.queues
    if not queues.answers:
        yield Line(f"redis: {'away' if queues.where else 'none'}")
        return
    names = ("ingest", "writer", "unacked", "notify", "notify_bad", "dead")
    yield Table(
        (f"redis {queues.where}", "waiting"), [(name, getattr(queues, name)) for name in names]
    )


def health(
    process: Literal["worker", "writer", "pump", "beat"] | None = None,
    /,
    *,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Check one process of this host, or the whole bus; for containers.

    Exit code 0 when it has shown life within seconds, 1 when not. Without a name: 0 when a bus runs
    and nothing needs a hand.

    For example:

        bus health writer
        bus health --json

    Parameters
    ----------
    process
        Which one; it must run on this host.
    """
    from bus import health as fitness

    lake, settings = everywhere.open()
    if process is not None:
        found = fitness.check(process, lake, settings)
        return Reply(found.as_dict(), lambda: [Line(found.says)], 0 if found.ok else 1)
    whole = fitness.status(lake, settings)
    fine = whole.ok and whole.running

    def text() -> Iterable[Part]:
        if not whole.running:
            yield Line("no bus runs", "bad")
        for finding in whole.findings:
            yield Block(finding.text, [finding.hint], "bad" if finding.bad else "heading")
        if fine:
            yield Line("ok", "good")

    return Reply({"ok": fine, "status": whole.as_dict()}, text, 0 if fine else 1)


def doctor(
    *,
    settings: Switch = False,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Check that this machine and this lake are fit for a bus.

    File system, links, renames, locks, fsync, permissions, room, clock, versions, Redis, strangers
    in the inbox. Makes the lake's directories when they are missing. Exit code 1 when something is
    bad.

    For example:

        bus doctor
        bus doctor --lake /data/lake --json
        bus doctor --settings

    Parameters
    ----------
    settings
        Show every setting with its value and meaning instead.
    """
    from bus.lake import Lake

    chosen = everywhere.settings()
    if settings:
        return _settings(chosen)
    from bus.doctor import examine

    found = list(examine(Lake(chosen.lake, chosen.public_lake), chosen))
    bad = any(finding.grade == "bad" for finding in found)
    data = {"lake": str(chosen.lake), "ok": not bad, "checks": [f.as_dict() for f in found]}
    return Reply(data, lambda: _examined(found), 1 if bad else 0)


def _examined(found: list[Examined]) -> Iterable[Part]:
    width = max(len(finding.check) for finding in found)
    for finding in found:
        hint = [f"{'':<{width}}  hint: {finding.hint}"] if finding.hint else []
        title = f"{finding.grade:<3}  {finding.check:<{width}}  {finding.saw}"
        yield Block(title, hint, _MOODS[finding.grade])


def _settings(chosen: Any) -> Reply:
    secret = {"redis_url"}
    fields = type(chosen).model_fields
    rows = [
        (name, "set" if name in secret and value else value, fields[name].description)
        for name, value in chosen.model_dump(mode="json").items()
    ]
    data = {name: value for name, value, _ in rows}
    wide = {"exports", "kinds"}
    shown = [(n, ", ".join(v) if n in wide else v, text) for n, v, text in rows]
    return Reply(data, lambda: [Table(("setting", "value", "meaning"), shown)])


def explain(code: str | None = None, /, *, everywhere: Everywhere = HERE) -> Reply:
    """Explain an error code, or a warning of a receipt, as the runbook does.

    Without either it lists all codes.

    For example:

        bus explain E202
        bus explain generic_kind
        bus explain --json

    Parameters
    ----------
    code
        Such as E202, or a warning's name.
    """
    from bus.runbook import on_warning, paragraph

    del everywhere  # the same in every lake
    if code is None:
        listed = [{"code": str(c), "title": c.label, "hint": c.hint} for c in Code]
        rows = [(c["code"], c["title"], c["hint"]) for c in listed]
        return Reply(listed, lambda: [Table(("code", "title", "what to do"), rows)])
    if warned := on_warning(code):
        told = {"warning": code, "text": warned}
        return Reply(told, lambda: [Block(code, warned.splitlines(), "heading")])
    known = _code(code)
    text = paragraph(known)
    data = {"code": str(known), "title": known.label, "hint": known.hint, "text": text}
    return Reply(data, lambda: [Block(f"{known} {known.label}", text.splitlines(), "heading")])


def _code(text: str) -> Code:
    try:
        return Code(text.upper())
    except ValueError:
        from difflib import get_close_matches

        near = ", ".join(get_close_matches(text.upper(), list(Code), n=3))
        hint = f"Did you mean {near}?" if near else "See: bus explain"
        raise NotFound(f"no error code {text[:40]!r}", where="CODE", hint=hint) from None


def redis(
    *args: Annotated[str, Parameter(allow_leading_hyphen=True)],
    everywhere: Everywhere = HERE,
) -> Reply:
    """Send a raw command to the bus's Redis.

    For machines without redis-cli; it knows where the server is and its password. Anyone may ring
    with `LPUSH bus:notify`; nobody but the bus writes to the queues `ingest` and `writer`.

    For example:

        bus redis PING
        bus redis LPUSH bus:notify '{"job_id": "2026-01-08T05-12-33Z__baseline__alerts"}'
        bus redis LRANGE bus:notify:bad 0 9 --json

    Parameters
    ----------
    args
        The command and its arguments.
    """
    from bus.health import command, prefix

    if not args:
        hint = "For example: bus redis PING"
        raise Refused("no command", code=Code.E103, where="ARGS", hint=hint)
    settings = everywhere.settings()
    if ahead := prefix(settings):
        say(f"Keys of this lake begin with {ahead}")
    answer = command(settings, args)
    return Reply(answer, lambda: map(Line, _lines(answer)))


def _lines(answer: Any) -> Iterable[str]:
    if isinstance(answer, list):
        for item in answer:
            yield from _lines(item)
    elif isinstance(answer, dict):
        yield from (f"{key} {value}" for key, value in answer.items())
    else:
        yield "(nil)" if answer is None else str(answer)
