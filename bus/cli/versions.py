"""Changing what is said of artifacts: supersede, tombstone, tag, untag, alias, pin, unpin, pins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from bus.cli.options import HERE, Everywhere, Switch
from bus.cli.output import Facts, Line, Part, Reply, Table
from bus.cli.receipts import bus_that_listens, handed_in, is_looked_at, receipt
from bus.cli.submit import pairs_of
from bus.errors import Code, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bus.client import Draft


@Parameter(name="*", group=Group("With every change", sort_key=98))
@dataclass(frozen=True)
class Sending:
    """How a change is handed in."""

    wait: bool = True
    """Wait for the answer, if a bus is running."""

    timeout: float = 60.0
    """Wait this many seconds at most; the job is safe all the same."""

    producer: str = "manual"
    """Who makes the change; `bus alias --history` tells."""

    job_id: Annotated[str | None, Parameter(show_default=False)] = None
    """Idempotency key: the same change again gets the same receipt. Default: made up."""


_AS_USUAL = Sending()


def supersede(
    *old: str,
    by: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)],
    expect: str | None = None,
    sending: Sending = _AS_USUAL,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Let artifacts replace others; all stay readable.

    What is superseded leaves canon.KIND and the exports. Several may be replaced by one, and one by
    several. A circle is refused with the way round it, and so is a tombstoned artifact on either
    side.

    For example:

        bus supersede run-41/alerts_std --by run-42/alerts_std
        bus supersede 6f1f1a0e 0d1c5a57 --by signals:prod --json

    Parameters
    ----------
    old
        What is replaced: an id or its beginning, RUN/NAME, job:JOB/NAME, KIND:ALIAS.
    by
        What replaces it; repeatable.
    expect
        The file hash that it must still have (sha256:...), else E405.
    """
    return _send(everywhere, sending, lambda change: change.supersede(_named(old), by, expect))


def tombstone(
    ref: str,
    /,
    *,
    reason: str,
    expect: str | None = None,
    sending: Sending = _AS_USUAL,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Say that an artifact must not be used any more, and why.

    It leaves canon.KIND, the exports and `latest`; its bytes stay until gc. Submitting the same
    rows again revives it.

    For example:

        bus tombstone run-41/alerts_std --reason "computed with look-ahead"
        bus tombstone 6f1f1a0e --reason "wrong venue" --no-wait

    Parameters
    ----------
    ref
        Which: an id or its beginning, RUN/NAME, job:JOB/NAME, KIND:ALIAS.
    reason
        Why, in words; whoever meets the artifact reads it.
    expect
        The file hash that it must still have (sha256:...), else E405.
    """
    return _send(everywhere, sending, lambda change: change.tombstone(ref, reason, expect))


def tag(
    ref: str,
    /,
    *pairs: str,
    sending: Sending = _AS_USUAL,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Let an artifact carry tags as well.

    A key may have several values. An artifact carries 200 tags at most.

    For example:

        bus tag run-42/alerts_std reviewed=yes desk=rates desk=fx
        bus tag signals:prod quality=gold --json

    Parameters
    ----------
    ref
        Which artifact.
    pairs
        k=v, one or more.
    """
    tags = pairs_of(_some(pairs, "K=V"), "K=V")
    return _send(everywhere, sending, lambda change: change.tag(ref, tags))


def untag(
    ref: str,
    /,
    *pairs: str,
    sending: Sending = _AS_USUAL,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Take tags off an artifact.

    What it does not carry is no error, but a warning in the receipt.

    For example:

        bus untag run-42/alerts_std desk=fx
        bus untag run-42/alerts_std desk

    Parameters
    ----------
    ref
        Which artifact.
    pairs
        k=v for one value, k for all values of that key.
    """
    whole = [word for word in _some(pairs, "K") if "=" not in word]
    values = pairs_of([word for word in pairs if "=" in word], "K=V")
    return _send(everywhere, sending, lambda change: change.untag(ref, *whole, **values))


# ── aliases ───────────────────────────────────────────────────────────────────────────────────


def alias(
    name: str | None = None,
    ref: str | None = None,
    /,
    *,
    remove: Switch = False,
    history: Switch = False,
    list: Switch = False,  # noqa: A002 - the flag is --list
    expect: str | None = None,
    sending: Sending = _AS_USUAL,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Let KIND:NAME mean an artifact, or show what it means and meant.

    An alias moves at once and leaves its history. With --expect it moves only from where you think
    it is: of several who try, one gets it and the others are told (E405). Without REF it is shown.

    For example:

        bus alias signals:prod run-42/signals
        bus alias signals:prod run-43/signals --expect run-42/signals
        bus alias signals:prod --history
        bus alias --list

    Parameters
    ----------
    name
        KIND:NAME, such as signals:prod. With --list: a kind, or nothing for all.
    ref
        What it shall mean: an id or its beginning, RUN/NAME, job:JOB/NAME, KIND:ALIAS.
    remove
        Take the alias away.
    history
        Every move of it, the newest first: when, from, to, and whose it was.
    list
        All aliases (of one kind).
    expect
        What it must mean now; '' for nothing.
    """
    asked = [flag for flag, on in (("--remove", remove), ("--history", history)) if on]
    asked += ["--list"] if list else []
    if len(asked) + (ref is not None) > 1:
        raise _usage(
            "REF", f"give one of REF, --remove, --history, --list, not {len(asked)} of them"
        )
    if list:
        return _aliases(everywhere, name)
    if name is None:
        raise _usage("KIND:NAME", "no alias was named")
    if history:
        return _history(everywhere, name)
    if ref is None and not remove:
        return _alias(everywhere, name)
    return _send(everywhere, sending, lambda change: change.alias(name, ref, expect))


def _alias(everywhere: Everywhere, name: str) -> Reply:
    from bus.lookup import find_artifact
    from bus.versions import aliases, split_alias

    lake, _ = everywhere.open()
    kind, _ = split_alias(name)
    artifact_id = find_artifact(lake, name)
    (found,) = (row for row in aliases(lake, kind) if row["alias"] == name)
    facts = {key: value for key, value in found.items() if key != "alias"}
    return Reply(found, lambda: [Facts(f"{name} means {artifact_id}", facts)])


def _aliases(everywhere: Everywhere, kind: str | None) -> Reply:
    from bus.versions import aliases

    lake, _ = everywhere.open()
    columns = ("alias", "artifact_id", "status", "seq", "since_utc")
    return _listing(aliases(lake, kind), columns, "No aliases.")


def _history(everywhere: Everywhere, name: str) -> Reply:
    from bus.versions import alias_history

    lake, _ = everywhere.open()
    columns = ("seq", "at_utc", "from", "to", "producer", "run_id")
    return _listing(alias_history(lake, name), columns, "")


# ── pins ──────────────────────────────────────────────────────────────────────────────────────


def pin(
    name: str,
    /,
    *refs: str,
    sending: Sending = _AS_USUAL,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Put artifacts into a named set that gc keeps and jobs take as input.

    A pin holds artifacts, not aliases: what an alias means now stays in it when the alias moves.
    `bus submit --input pin:NAME` takes all its members as inputs.

    For example:

        bus pin paper-2026 run-42/alerts_std signals:prod
        bus pin paper-2026 6f1f1a0e 0d1c5a57 --producer ada

    Parameters
    ----------
    name
        The pin's name.
    refs
        Artifacts, one or more: ids or their beginnings, RUN/NAME, job:JOB/NAME, KIND:ALIAS.
    """
    return _send(everywhere, sending, lambda change: change.pin(name, _named(refs)))


def unpin(
    name: str,
    /,
    *refs: str,
    all: Switch = False,  # noqa: A002 - the flag is --all
    sending: Sending = _AS_USUAL,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Take artifacts out of a pin.

    What it does not hold is no error, but a warning in the receipt.

    For example:

        bus unpin paper-2026 run-42/alerts_std
        bus unpin paper-2026 --all

    Parameters
    ----------
    name
        The pin's name.
    refs
        Artifacts, one or more.
    all
        All of them: then there is no such pin any more.
    """
    if all and refs:
        raise _usage("--all", "artifacts were named as well")
    leaving = None if all else _named(refs)
    return _send(everywhere, sending, lambda change: change.unpin(name, leaving))


def pins(name: str | None = None, /, *, everywhere: Everywhere = HERE) -> Reply:
    """List pins, or the artifacts of one.

    For example:

        bus pins
        bus pins paper-2026 --json

    Parameters
    ----------
    name
        A pin's name.
    """
    from bus.versions import pin_members, pins as all_pins

    lake, _ = everywhere.open()
    if name is None:
        columns = ("pin", "artifacts", "first_seq", "last_seq", "last_at_utc")
        return _listing(all_pins(lake), columns, "No pins.")
    of_members = ("artifact_id", "kind", "schema_version", "logical_key", "status", "rows")
    return _listing(pin_members(lake, name), of_members, "")


# ── for all of them ───────────────────────────────────────────────────────────────────────────


def _send(everywhere: Everywhere, sending: Sending, change: Callable[[Draft], None]) -> Reply:
    _, settings = everywhere.open()
    bus, heard = bus_that_listens(settings)
    with bus.changes(producer=sending.producer, job_id=sending.job_id) as draft:
        change(draft)
    rung = heard == [True]
    if is_looked_at(bus, rung=rung) and sending.wait:
        return receipt(draft.job.wait(sending.timeout))
    return handed_in(draft.job, rung=rung)


def _named(refs: Sequence[str]) -> list[str]:
    return [*_some(refs, "REF")]


def _some(words: Sequence[str], what: str) -> Sequence[str]:
    if not words:
        raise _usage(what, f"no {what} was given")
    return words


def _usage(where: str, message: str) -> Refused:
    return Refused(message, code=Code.E103, where=where, hint="See the command's --help.")


def _listing(rows: list[dict[str, Any]], columns: Sequence[str], none: str) -> Reply:
    def text() -> Iterable[Part]:
        if rows:
            yield Table(columns, [[row[column] for column in columns] for row in rows])
        else:
            yield Line(none, "dim")

    return Reply(rows, text)
