"""Commands that follow lineage, on a lake with a little history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from bus.client import Bus
from bus.model import Alias, Supersede, Tombstone
from tests.pipeline import Pipeline, facts, id_of, verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.said import Said

RAW = facts("raw", 1, kind="alerts_std", logical_key="run=run-1/name=raw")
TRADES = facts("trades", 2, inputs=["name:raw"], kind="bt_trades", logical_key="token=SOL")
REPORT = facts("report", 3, inputs=["name:trades"], kind="reports")
NEWER = facts("newer", 4, kind="alerts_std")
WRONG = facts("wrong", 5, kind="reports")
ORPHAN = facts("orphan", 6, inputs=["name:wrong"], kind="reports")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    made = Pipeline(tmp_path_factory.mktemp("lineage") / "lake")
    prod = Alias(op="alias", kind="reports", alias="prod", target="name:report")
    with made.writer() as writer:
        made.judged(verdict("first", RAW, TRADES, REPORT, mutations=[prod]))
        writer.drain()
        old = Supersede(op="supersede", target=id_of(RAW), by="name:newer")
        gone = Tombstone(op="tombstone", target="name:wrong", reason="wrong")
        made.judged(verdict("then", NEWER, WRONG, ORPHAN, mutations=[old, gone]))
        writer.drain()
    return made


@pytest.fixture
def ask(lake: Pipeline, bus: Callable[..., Said]) -> Callable[..., Said]:
    return lambda *words: bus(*words, "--lake", lake.lake.root)


def short(found: Any) -> str:
    return id_of(found)[:8]


def test_lineage_is_a_tree_of_words_and_short_ids(ask: Callable[..., Said]) -> None:
    assert ask("lineage", "run-1/trades").out.splitlines() == [
        f"bt_trades token=SOL ({short(TRADES)})",
        "made from:",
        f"└─ alerts_std run-1/raw ({short(RAW)}) superseded",
        "used for:",
        f"└─ reports name=report ({short(REPORT)})",
    ]
    up = ask("lineage", "reports:prod", "--up", "--depth", 1).out.splitlines()
    assert up[1:] == [
        "made from:",
        f"└─ bt_trades token=SOL ({short(TRADES)})",
        "… and more beyond",
        "More with a larger --depth.",
    ]
    assert "used for" not in ask("lineage", "reports:prod", "--up").out


def test_lineage_is_json_or_a_flowchart_and_as_it_was(ask: Callable[..., Said]) -> None:
    found = ask("lineage", "run-1/trades", "--down", "--as-of", 1, "--json").json
    assert (found["direction"], found["as_of"]) == ("down", 1)
    assert [node["artifact_id"] for node in found["nodes"]] == [id_of(TRADES), id_of(REPORT)]
    then = ask("lineage", "run-1/trades", "--as-of", 1).out
    assert "superseded" not in then
    assert ask("lineage", "run-1/trades", "--mermaid").out.startswith("flowchart LR\n  n0[")


def test_impact_tells_what_is_hit_and_by_which_way(ask: Callable[..., Said]) -> None:
    found = ask("impact", id_of(RAW), "--json").json
    assert (found["artifacts"], found["kinds"]) == (2, {"bt_trades": 1, "reports": 1})
    ways = {(hit["what"], hit["name"]): hit["path"] for hit in found["hits"]}
    assert ways == {
        ("artifact", "bt_trades token=SOL"): [id_of(RAW), id_of(TRADES)],
        ("artifact", "reports name=report"): [id_of(RAW), id_of(TRADES), id_of(REPORT)],
        ("export", "alerts_std"): [id_of(RAW)],
        ("export", "alerts_std_tradable"): [id_of(RAW)],
        ("alias", "reports:prod"): [id_of(RAW), id_of(TRADES), id_of(REPORT)],
    }
    text = ask("impact", id_of(RAW), "--limit", 1).out
    assert f"{short(RAW)} → {short(TRADES)} → {short(REPORT)}" in text
    assert "The nearest 1 artifacts; 1 more with --limit." in text
    assert "reports name=report" not in text
    assert "Nothing else shows it" in ask("impact", id_of(ORPHAN)).out


def test_stale_tells_what_to_make_again_and_from_what(ask: Callable[..., Said]) -> None:
    first, second = ask("stale", "--json").json
    assert first["artifact"]["artifact_id"] == id_of(TRADES)
    assert second["path"] == [id_of(RAW), id_of(TRADES), id_of(REPORT)]
    assert [node["artifact_id"] for node in second["newest"]] == [id_of(NEWER)]
    text = ask("stale", "--limit", 1).out
    assert f"alerts_std name=newer ({short(NEWER)})" in text
    assert "1 of 2; more with --limit." in text


def test_orphans_tells_what_stands_on_nothing(ask: Callable[..., Said]) -> None:
    (found,) = ask("orphans", "--json").json
    assert found["artifact"]["artifact_id"] == id_of(ORPHAN)
    assert [(i["artifact_id"], i["status"]) for i in found["inputs"]] == [
        (id_of(WRONG), "tombstoned")
    ]
    assert f"reports name=wrong ({short(WRONG)}) tombstoned" in ask("orphans").out


def test_python_has_the_same_answers(lake: Pipeline) -> None:
    client = Bus(lake.settings)
    assert "made from:" in str(client.lineage("run-1/trades"))
    assert client.lineage("run-1/trades", "up", depth=1, as_of=1).as_of == 1
    assert client.lineage("run-1/trades")._repr_markdown_().startswith("```mermaid\n")
    assert {hit.what for hit in client.impact(id_of(RAW)).hits} == {"artifact", "export", "alias"}
    assert [found.artifact.artifact_id for found in client.stale()] == [
        id_of(TRADES),
        id_of(REPORT),
    ]
    assert [found.artifact.artifact_id for found in client.orphans()] == [id_of(ORPHAN)]
    lake.lake.catalog_db.unlink()  # nothing can be said of exports then, and all else can
    assert {hit.what for hit in client.impact(id_of(RAW)).hits} == {"artifact", "alias"}
