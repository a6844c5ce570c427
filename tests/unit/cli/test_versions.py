"""Changing what is said of artifacts from the shell, with no bus running: jobs that wait, and reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from bus.lake import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.pipeline import Pipeline
    from tests.said import Said

IT = "run-1/alerts"


def staged(own: Pipeline, job_id: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((own.lake.inbox / job_id / MANIFEST).read_bytes())
    return document


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (
            ["supersede", IT, "--by", "job:later/x", "--expect", "sha256:0"],
            {"op": "supersede", "target": "?", "by": "job:later/x", "expect": "sha256:0"},
        ),
        (
            ["tombstone", IT, "--reason", "wrong venue"],
            {"op": "tombstone", "target": "?", "reason": "wrong venue"},
        ),
        (
            ["tag", IT, "desk=fx", "desk=rates", "a=b=c"],
            {"op": "tag", "target": "?", "tags": {"desk": ["fx", "rates"], "a": ["b=c"]}},
        ),
        (
            ["untag", IT, "desk=fx", "note"],
            {"op": "untag", "target": "?", "tags": {"note": [], "desk": ["fx"]}},
        ),
        (
            ["alias", "signals:best", IT, "--expect", ""],
            {"op": "alias", "kind": "signals", "alias": "best", "target": "?", "expect": ""},
        ),
        (
            ["alias", "signals:best", "--remove"],
            {"op": "alias", "kind": "signals", "alias": "best"},
        ),
        (["pin", "paper", IT], {"op": "pin", "pin": "paper", "target": ["?"]}),
        (["unpin", "paper", IT], {"op": "unpin", "pin": "paper", "target": ["?"]}),
        (["unpin", "paper", "--all"], {"op": "unpin", "pin": "paper"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_with_no_bus_a_change_waits_in_the_inbox_and_says_so(
    own: Pipeline, bus: Callable[..., Said], words: list[str], change: dict[str, Any]
) -> None:
    said = bus(*words, "--lake", own.lake.root, "--producer", "ada", "--json")
    assert (said.status, said.json["state"], said.json["rung"]) == (0, "staged", False)
    assert "No bus answers" in said.err
    found = staged(own, said.json["job_id"])
    (artifact_id,) = own.rows("SELECT artifact_id FROM artifacts WHERE logical_key = 'name=alerts'")
    whole = json.dumps(found["mutations"]).replace(artifact_id[0], "?")
    assert json.loads(whole) == [change]
    assert (found["producer"], found["artifacts"]) == ("ada", [])


def test_aliases_and_pins_are_shown_with_their_history(
    own: Pipeline, bus: Callable[..., Said]
) -> None:
    words = ("--lake", own.lake.root)
    bus("alias", "signals:best", IT, "--producer", "ada", *words)
    bus("pin", "paper", "signals:best", *words)  # not there yet: refused, nothing is staged
    own.run()
    bus("pin", "paper", "signals:best", *words)
    bus("alias", "signals:best", "--remove", "--producer", "bob", *words)
    shown = bus("alias", "signals:best", *words, "--json").json
    assert (shown["alias"], shown["status"]) == ("signals:best", "active")
    assert "signals:best means " in bus("alias", "signals:best", *words).out
    assert [row["alias"] for row in bus("alias", "--list", *words, "--json").json] == [
        "signals:best"
    ]
    assert bus("alias", "others", "--list", *words, "--json").json == []
    own.run()
    history = bus("alias", "signals:best", "--history", *words, "--json").json
    assert [(move["producer"], move["from"], move["to"]) for move in history] == [
        ("bob", shown["artifact_id"], None),
        ("ada", None, shown["artifact_id"]),
    ]
    assert bus("alias", "signals:best", *words).status == 1
    (paper,) = bus("pins", *words, "--json").json
    assert (paper["pin"], paper["artifacts"]) == ("paper", 1)
    (member,) = bus("pins", "paper", *words, "--json").json
    assert member["artifact_id"] == shown["artifact_id"]
    assert shown["artifact_id"] in bus("pins", "paper", *words).out
