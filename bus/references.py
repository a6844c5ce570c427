"""What a reference means.

A reference is an artifact_id or the beginning of one (four characters or more), `<kind>:<alias>`,
`<kind>@<version>/<beginning of an id>`, `<run_id>/<name>`, or `job:<job_id>/<name>`. `<kind>:latest`
is the active artifact of the kind that was delivered last, unless somebody made an alias of that
name. Names may hold colons and @ signs: where a text can be read in several ways all are tried, and
only one may mean something.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING

from bus.errors import Code, NotFound, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bus.finding import Then

#: Two names of 128 characters and what stands between and before them; longer ones mean nothing.
_LONGEST = 300
_BEGINS = re.compile(r"[0-9a-f][0-9a-f-]{3,35}")
_OF_VERSION = re.compile(r"(.+)@0*([1-9][0-9]{0,6})/([0-9a-f][0-9a-f-]{0,35})", re.IGNORECASE)
_LATEST = "latest"
_SHOWN = 10
_HINT = "See `bus find` and `bus runs`; or give an artifact_id, RUN/NAME or KIND:ALIAS."


def artifact_id(then: Then, reference: str) -> str:
    """The id of the artifact that a reference meant.

    Raises `NotFound` (E511), naming what is near, and `Refused` (E404), listing what it may be.
    """
    text = reference.removeprefix("artifact:")
    found = _meant(then, text) if len(text) <= _LONGEST else []
    if not found:
        near = _near(then, text) if len(text) <= _LONGEST else []
        hint = f"Did you mean {' or '.join(near)}? {_HINT}" if near else _HINT
        raise NotFound(f"no artifact {reference[:160]!r} in this lake", where="REF", hint=hint)
    if len(found) > 1:
        raise _ambiguous(then, reference, found)
    return found[0]


def _meant(then: Then, text: str) -> list[str]:
    found: dict[str, None] = {}
    for form, first, second in _readings(text):
        found |= dict.fromkeys(_texts(then, f"meant_by_{form}", first=first, second=second))
    kind, colon, alias = text.rpartition(":")
    if not found and colon and alias == _LATEST:
        newest = then.latest(kind)
        return [newest.artifact_id] if newest else []
    return list(found)


def _readings(text: str) -> Iterator[tuple[str, str, str]]:
    """Every way to read a text: the form, and its two parts."""
    if "/" in text:
        first, _, second = text.rpartition("/")
        yield "run", first, second
        if first.startswith("job:"):
            yield "job", first.removeprefix("job:"), second
        if parts := _OF_VERSION.fullmatch(text):
            yield "version", f"{parts[1]}@{parts[2]}", parts[3].lower()
        return
    for at, character in enumerate(text):
        if character == ":":
            yield "alias", text[:at], text[at + 1 :]
    if _BEGINS.fullmatch(text.lower()):
        yield "prefix", "", text.lower()


def _ambiguous(then: Then, reference: str, found: list[str]) -> Refused:
    listed = "; ".join(
        f"{a.artifact_id} ({a.kind} {a.logical_key}, created {a.created_at:%Y-%m-%dT%H:%M:%SZ})"
        for a in then.by_id(found[:_SHOWN])
    )
    more = f"; and {len(found) - _SHOWN} or more others" if len(found) > _SHOWN else ""
    return Refused(f"{reference!r} may be {listed}{more}", code=Code.E404, where="REF")


# ── what is near ──────────────────────────────────────────────────────────────────────────────


def _near(then: Then, text: str) -> list[str]:
    """References that mean something and look like this one."""
    known: list[str] = []
    for form, first, second in _readings(text):
        match form:
            case "run" | "job" | "alias":
                known += _texts(then, f"names_like_{form}", first=first)
            case "prefix":
                beside = _texts(then, "ids_beside", second=second)
                return [found for found in beside if found[:4] == text[:4].lower()]
    if "/" not in text:
        known += [f"{kind}:{_LATEST}" for kind in _texts(then, "kinds")]
    return get_close_matches(text, dict.fromkeys(known), n=3)


def _texts(then: Then, statement: str, **params: str) -> list[str]:
    return [text for (text,) in then.named(statement, **params)]
