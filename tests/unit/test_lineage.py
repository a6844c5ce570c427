"""Lineage against what was committed: graphs, what a change hits, what is stale, what is orphaned."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from hypothesis import strategies as st

from bus import lineage as module
from bus.errors import NotFound, Refused
from bus.lineage import impact, lineage, orphans, stale
from bus.model import Alias, MarkDamaged, Pin, Supersede, Tombstone
from tests.ledger import Ledger
from tests.pipeline import facts, id_of, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bus.lineage import Impact
    from bus.model import ArtifactFacts, Mutation
    from bus.pedigree import Direction


class Family(Ledger):
    """A ledger in which artifacts are made by name, each by a job and in a commit of its own."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.made: dict[str, ArtifactFacts] = {}

    def make(self, name: str, *inputs: str, **fields: Any) -> str:
        """An artifact made from others that have been made; the job's run is named after it."""
        number = len(self.made)
        known: dict[str, Any] = {"inputs": [self.id(i) for i in inputs] or None}
        self.made[name] = facts(name, number, **(known | fields))
        self.committed(verdict(f"job-{name}", self.made[name], run_id=f"run-{name}"))
        return self.id(name)

    def change(self, *mutations: Mutation) -> None:
        self.committed(verdict(f"change-{len(self.commits)}", mutations=list(mutations)))

    def replace(self, old: str, new: str) -> None:
        self.change(Supersede(op="supersede", target=self.id(old), by=self.id(new)))

    def withdraw(self, name: str) -> None:
        self.change(Tombstone(op="tombstone", target=self.id(name), reason="wrong"))

    def damage(self, name: str) -> None:
        found = MarkDamaged(op="mark_damaged", object=self.made[name].sha256, found="gone")
        self.change(found)

    def id(self, name: str) -> str:
        return id_of(self.made[name])

    def name(self, artifact_id: str) -> str:
        return next(name for name in self.made if self.id(name) == artifact_id)

    def around(
        self, name: str, direction: Direction = "both", **asked: Any
    ) -> tuple[set[str], set[tuple[str, str]]]:
        """The names of the nodes around one, and the edges (made, source)."""
        found = lineage(self.lake, self.id(name), direction, **asked)
        assert next(iter(found.nodes)) == found.root.artifact_id == self.id(name)
        assert len(found.edges) == len(set(found.edges))
        edges = {(self.name(made), self.name(source)) for made, source in found.edges}
        return {self.name(node) for node in found.nodes}, edges

    def hits(self, name: str, shown_by: dict[str, set[str]] | None = None) -> dict[str, str]:
        """What is hit when something befalls one, each with the way there as names."""
        found = impact(self.lake, self.id(name), shown_by or {})
        return {
            self.name(hit.path[-1].artifact_id) if hit.what == "artifact" else hit.name: " ".join(
                self.name(node.artifact_id) for node in hit.path
            )
            for hit in found.hits
        }

    def stale(self) -> dict[str, tuple[str, list[str]]]:
        """What is stale: the way there, and what to make it from."""
        return {
            self.name(found.artifact.artifact_id): (
                " ".join(self.name(node.artifact_id) for node in found.path),
                [self.name(node.artifact_id) for node in found.newest],
            )
            for found in stale(self.lake)
        }

    def orphans(self) -> dict[str, list[str]]:
        return {
            self.name(found.artifact.artifact_id): [self.name(i.artifact_id) for i in found.inputs]
            for found in orphans(self.lake)
        }


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    family = Family(tmp_path)
    yield family
    family.assert_equals_a_rebuild()
    family.manifest.close()


@pytest.fixture
def diamond(family: Family) -> Family:
    """d from b and c, both from a; e from d. Commits 1 to 5."""
    family.make("a")
    family.make("b", "a")
    family.make("c", "a")
    family.make("d", "b", "c")
    family.make("e", "d")
    return family


# ── the graph around an artifact ─────────────────────────────────────────────────────────────────

ABOVE_D = {("d", "b"), ("d", "c"), ("b", "a"), ("c", "a")}


@pytest.mark.parametrize(
    ("direction", "nodes", "edges"),
    [
        ("up", "abcd", ABOVE_D),
        ("down", "de", {("e", "d")}),
        ("both", "abcde", ABOVE_D | {("e", "d")}),
    ],
)
def test_a_graph_has_each_artifact_once_and_every_step(
    diamond: Family, direction: Direction, nodes: str, edges: set[tuple[str, str]]
) -> None:
    assert diamond.around("d", direction) == (set(nodes), edges)


@pytest.mark.parametrize(
    ("depth", "nodes", "cut"),
    [(0, "d", True), (1, "bcd", True), (2, "abcd", False), (9, "abcd", False)],
)
def test_a_graph_ends_where_asked_and_says_whether_there_is_more(
    diamond: Family, depth: int, nodes: str, cut: bool
) -> None:
    assert diamond.around("d", "up", depth=depth)[0] == set(nodes)
    assert lineage(diamond.lake, diamond.id("d"), "up", depth).cut is cut


def test_a_step_between_two_of_the_farthest_is_shown_too(family: Family) -> None:
    family.make("a")
    family.make("b", "a")
    family.make("c", "a", "b")
    assert family.around("c", "up", depth=1) == (set("abc"), {("c", "a"), ("c", "b"), ("b", "a")})


def test_an_artifact_without_relations_is_a_graph_of_one(family: Family) -> None:
    family.make("a")
    assert family.around("a") == ({"a"}, set())
    assert not lineage(family.lake, family.id("a")).cut


def test_a_graph_is_as_it_was_after_a_commit(diamond: Family) -> None:
    diamond.withdraw("a")  # commit 6
    then = lineage(diamond.lake, diamond.id("a"), "down", as_of=3)
    assert {diamond.name(node) for node in then.nodes} == set("abc")
    assert (then.as_of, then.root.status) == (3, "active")
    assert lineage(diamond.lake, diamond.id("a")).root.status == "tombstoned"
    with pytest.raises(NotFound, match="no artifact"):
        lineage(diamond.lake, diamond.id("d"), as_of=3)
    with pytest.raises(NotFound, match="no commit 7"):
        lineage(diamond.lake, diamond.id("d"), as_of=7)


def test_a_node_tells_what_it_is_who_brought_it_first_and_how_it_stands(family: Family) -> None:
    family.make("a")
    family.make("b", "a", logical_key="token=SOL")
    family.committed(verdict("again", family.made["b"], run_id="run-9"))
    family.damage("a")
    found = lineage(family.lake, family.id("b"))
    assert found.root.as_dict() == {
        "artifact_id": family.id("b"),
        "kind": "signals",
        "logical_key": "token=SOL",
        "run_id": "run-b",
        "name": "b",
        "seq": 2,
        "status": "active",
    }
    assert [node.status for node in found.nodes.values()] == ["active", "damaged"]
    own = family.make("c", logical_key="run=run-c/name=c")
    assert str(lineage(family.lake, own).root) == f"signals run-c/c ({own[:8]})"


@pytest.mark.parametrize(
    ("asked", "code"),
    [({"direction": "left"}, "E103"), ({"depth": -1}, "E103")],
)
def test_what_is_no_direction_or_depth_is_refused(
    diamond: Family, asked: dict[str, Any], code: str
) -> None:
    with pytest.raises(Refused) as caught:
        lineage(diamond.lake, diamond.id("d"), **asked)
    assert caught.value.code == code


def test_a_ladder_of_diamonds_costs_its_edges_not_its_paths(family: Family) -> None:
    family.make("0l")
    family.make("0r")
    for rung in range(1, 30):  # 2^30 ways from the top to the bottom
        for side in "lr":
            family.make(f"{rung}{side}", f"{rung - 1}l", f"{rung - 1}r")
    nodes, edges = family.around("29l", "up")
    assert (len(nodes), len(edges)) == (59, 2 + 28 * 4)
    assert len(family.hits("0l")) == 58


def test_a_graph_of_too_many_is_cut_and_says_so(
    diamond: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_NODES", 3)
    found = lineage(diamond.lake, diamond.id("d"), "up")
    assert (len(found.nodes), found.cut) == (3, True)


def test_a_walk_ends_in_a_manifest_where_someone_has_made_a_cycle(tmp_path: Path) -> None:
    # The writer refuses such; a file that was tampered with must not hang its readers.
    family = Family(tmp_path)
    family.make("a")
    family.make("b", "a")
    family.make("c", "b")
    family.make("B")
    family.replace("b", "B")
    number = "(SELECT node FROM nodes WHERE artifact_id = ?)"
    insert = f"INSERT INTO lineage_edges VALUES ({number}, {number}, 5)"
    family.manifest._db.execute(insert, (family.id("a"), family.id("c")))
    assert family.around("b", "up") == (set("abc"), {("b", "a"), ("a", "c"), ("c", "b")})
    assert "(above)" in str(lineage(family.lake, family.id("b")))
    assert set(family.hits("a")) == set("bc")
    assert set(family.stale()) == set("ac")
    family.manifest.close()


@pytest.mark.parametrize("has_manifest", [True, False])
def test_nothing_is_known_of_a_lake_without_commits(tmp_path: Path, has_manifest: bool) -> None:
    family = Family(tmp_path)
    if not has_manifest:
        family.manifest.delete(family.lake)
    assert (family.stale(), family.orphans()) == ({}, {})
    with pytest.raises(NotFound):
        lineage(family.lake, "run/x")
    with pytest.raises(NotFound):
        impact(family.lake, "run/x", {})
    family.manifest.close()


# ── what people look at ──────────────────────────────────────────────────────────────────────────


def test_a_tree_names_each_artifact_in_words_and_repeats_nothing_below_it(diamond: Family) -> None:
    diamond.make("f", "a", "e")
    diamond.withdraw("a")
    short = {name: diamond.id(name)[:8] for name in diamond.made}
    assert str(lineage(diamond.lake, diamond.id("d"))).splitlines() == [
        f"signals name=d ({short['d']})",
        "made from:",
        f"├─ signals name=b ({short['b']})",
        f"│  └─ signals name=a ({short['a']}) tombstoned",
        f"└─ signals name=c ({short['c']})",
        f"   └─ signals name=a ({short['a']}) tombstoned",
        "used for:",
        f"└─ signals name=e ({short['e']})",
        f"   └─ signals name=f ({short['f']})",
    ]
    assert str(lineage(diamond.lake, diamond.id("a"), "down")).splitlines() == [
        f"signals name=a ({short['a']}) tombstoned",
        "used for:",
        f"├─ signals name=b ({short['b']})",
        f"│  └─ signals name=d ({short['d']})",
        f"│     └─ signals name=e ({short['e']})",
        f"│        └─ signals name=f ({short['f']})",
        f"├─ signals name=c ({short['c']})",
        f"│  └─ signals name=d ({short['d']}) (above)",
        f"└─ signals name=f ({short['f']})",
    ]


def test_a_tree_says_when_there_is_nothing_and_when_there_is_more(diamond: Family) -> None:
    lines = str(lineage(diamond.lake, diamond.id("a"), depth=1)).splitlines()
    assert lines[1] == "made from nothing in this lake"
    assert lines[-1] == "… and more beyond"


def test_a_tree_of_a_very_long_history_stays_a_picture(family: Family) -> None:
    days: list[ArtifactFacts] = []
    for number in range(200):
        before = [id_of(days[-1])] if days else None
        days.append(facts(f"day{number}", number, inputs=before))
    family.committed(verdict("days", *days))
    lines = str(lineage(family.lake, id_of(days[-1]), "up")).splitlines()
    assert 100 < len(lines) < 110
    assert lines[-1].strip() == "…"
    assert max(map(len, lines)) < 400


def test_a_flowchart_has_an_arrow_a_step_and_no_name_can_break_it(family: Family) -> None:
    short = family.make("a", logical_key='say "hi"]; <b> `x` #1 |ä')[:8]
    family.make("b", "a")
    family.withdraw("a")
    text = lineage(family.lake, family.id("b")).mermaid()
    assert text.splitlines() == [
        "flowchart LR",
        f'  n0["signals name=b<br/>{family.id("b")[:8]}"]',
        f'  n1["signals say #34;hi#34;#93;#59; #60;b#62; #96;x#96; #35;1 #124;ä<br/>{short}"]',
        "  n1 --> n0",
        "  classDef tombstoned fill:#fdd,stroke:#a00",
        "  class n1 tombstoned",
        "  style n0 stroke-width:3px",
    ]


def test_the_json_form_is_json_and_complete(diamond: Family) -> None:
    found = lineage(diamond.lake, diamond.id("d"), "up")
    document = json.loads(json.dumps(found.as_dict()))
    assert document["root"] == diamond.id("d")
    assert [node["artifact_id"] for node in document["nodes"]] == list(found.nodes)
    edges = {(edge["artifact_id"], edge["input_artifact_id"]) for edge in document["edges"]}
    assert edges == set(found.edges)


# ── what is hit ──────────────────────────────────────────────────────────────────────────────────


def test_what_was_made_from_it_is_hit_by_a_shortest_way(diamond: Family) -> None:
    diamond.make("f", "a", "e")
    hits = diamond.hits("a")
    assert hits == {"b": "a b", "c": "a c", "f": "a f", "d": "a c d", "e": "a c d e"}
    assert list(hits) == ["b", "c", "f", "d", "e"]
    assert diamond.hits("f") == {}


def test_all_that_is_hit_is_counted_and_the_nearest_are_listed(diamond: Family) -> None:
    diamond.make("o", "a", kind="other")

    def found(limit: int | None) -> Impact:
        return impact(diamond.lake, diamond.id("a"), {}, limit)

    assert (found(2).artifacts, dict(found(2).kinds)) == (5, {"signals": 4, "other": 1})
    assert [len(found(limit).hits) for limit in (0, 2, None)] == [0, 2, 5]


def test_an_export_is_hit_when_it_shows_the_artifact_or_an_active_one_below(
    family: Family,
) -> None:
    family.make("raw", kind="raws")
    family.make("old", "raw", kind="features")
    family.make("new", kind="features")
    family.make("trades", "old", kind="trades")
    family.replace("old", "new")
    shown_by = {
        "of_raws": {"raws"},
        "of_features": {"features"},
        "of_trades": {"trades", "features"},
        "of_others": {"others"},
        "of_nothing": set[str](),
    }
    hits = family.hits("raw", shown_by)
    assert hits == {
        "old": "raw old",
        "trades": "raw old trades",
        "of_raws": "raw",
        "of_trades": "raw old trades",
    }
    assert family.hits("new", shown_by) == {"of_features": "new", "of_trades": "new"}


def test_a_node_has_its_kind_also_beside_a_revived_one(family: Family) -> None:
    family.make("z")
    family.make("c")
    family.withdraw("c")
    made = {"a": ["name:b"], "b": [family.id("z")]}
    first, last = (facts(n, 10 + i, inputs=sources) for i, (n, sources) in enumerate(made.items()))
    family.committed(verdict("job", first, family.made["c"], last))
    assert impact(family.lake, family.id("z"), {}).kinds == {first.kind: 2}


def test_an_alias_and_a_pin_are_hit_when_they_name_something_hit(diamond: Family) -> None:
    elsewhere = diamond.make("x")
    diamond.change(
        Alias(op="alias", kind="signals", alias="prod", target=diamond.id("e")),
        Alias(op="alias", kind="signals", alias="other", target=elsewhere),
        Pin(op="pin", pin="paper", target=[diamond.id(name) for name in ("e", "c", "x")]),
    )
    found = diamond.hits("a")
    assert (found["signals:prod"], found["paper"]) == ("a c d e", "a c")
    assert "signals:other" not in found
    assert diamond.hits("x") == {"signals:other": "x", "paper": "x"}
    diamond.change(Alias(op="alias", kind="signals", alias="prod", target=None))
    assert "signals:prod" not in diamond.hits("a")


def test_the_json_form_of_an_impact_has_the_ids_of_the_way(diamond: Family) -> None:
    document = json.loads(json.dumps(impact(diamond.lake, diamond.id("d"), {}).as_dict()))
    assert document["cause"]["artifact_id"] == diamond.id("d")
    assert document["hits"] == [
        {
            "what": "artifact",
            "name": "signals name=e",
            "status": "active",
            "path": [diamond.id("d"), diamond.id("e")],
        }
    ]


# ── what is stale ────────────────────────────────────────────────────────────────────────────────


def test_what_was_made_from_something_superseded_is_stale_until_it_is_made_again(
    diamond: Family,
) -> None:
    assert diamond.stale() == {}
    diamond.make("B")
    diamond.replace("b", "B")
    assert diamond.stale() == {"d": ("b d", ["B"]), "e": ("b d e", ["B"])}
    diamond.make("D", "B", "c")
    diamond.replace("d", "D")
    assert diamond.stale() == {"e": ("d e", ["D"])}
    diamond.make("E", "D")
    diamond.replace("e", "E")
    assert diamond.stale() == {}


def test_it_is_to_be_made_from_the_newest_version(family: Family) -> None:
    for number in range(5):
        family.make(f"v{number}")
        if number:
            family.replace(f"v{number - 1}", f"v{number}")
    family.make("user", "v1")
    assert family.stale() == {"user": ("v1 user", ["v4"])}
    family.make("split")
    family.replace("v3", "split")  # two versions took the place of one
    way, newest = family.stale()["user"]
    assert (way, sorted(newest)) == ("v1 user", ["split", "v4"])


def test_what_was_made_from_what_it_replaces_is_not_stale_for_it(family: Family) -> None:
    # The state of each day is made from the day's before, and replaces it.
    family.make("day0")
    for number in range(1, 4):
        family.make(f"day{number}", f"day{number - 1}")
        family.replace(f"day{number - 1}", f"day{number}")
    family.make("report", "day3")
    assert family.stale() == {}
    family.make("old-report", "day1")
    assert family.stale() == {"old-report": ("day1 old-report", ["day3"])}


def test_nor_where_it_replaces_only_the_last_of_those_it_was_made_from(family: Family) -> None:
    family.make("v0")
    family.make("v1")
    family.replace("v0", "v1")
    family.make("both", "v0", "v1")
    family.replace("v1", "both")
    family.make("user", "both")
    assert family.stale() == {}


def test_what_was_withdrawn_is_not_asked_to_be_made_again(diamond: Family) -> None:
    diamond.make("A")
    diamond.replace("a", "A")
    diamond.withdraw("b")
    diamond.damage("c")
    assert diamond.stale() == {"d": ("a c d", ["A"]), "e": ("a c d e", ["A"])}


def test_what_must_be_made_first_stands_first_also_where_that_is_farther_away(
    family: Family,
) -> None:
    for name, inputs in (("a", ""), ("x", ""), ("b", "a"), ("c", "b"), ("d", "cx")):
        family.make(name, *inputs)
    for old, new in ("aA", "xX"):
        family.make(new)
        family.replace(old, new)
    assert family.stale() == {
        "b": ("a b", ["A"]),
        "c": ("a b c", ["A"]),
        "d": ("x d", ["X"]),
    }
    assert list(family.stale()) == ["b", "c", "d"]


def test_of_a_very_long_way_the_end_is_told(
    diamond: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_STEPS", 2)
    assert diamond.hits("a")["e"] == "d e"
    diamond.make("A")
    diamond.replace("a", "A")
    assert diamond.stale()["e"] == ("d e", ["A"])
    assert {found.because_of.artifact_id for found in stale(diamond.lake)} == {diamond.id("a")}


def test_what_must_be_made_first_stands_first(diamond: Family) -> None:
    diamond.make("A")
    diamond.replace("a", "A")
    order = list(diamond.stale())
    assert sorted(order) == list("bcde")
    assert all(order.index(first) < order.index(then) for first, then in ("bd", "cd", "de"))
    (first, *_) = stale(diamond.lake)
    document = json.loads(json.dumps(first.as_dict()))
    assert document["because_of"]["artifact_id"] == diamond.id("a")
    assert [node["artifact_id"] for node in document["newest"]] == [diamond.id("A")]


# ── orphans ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["withdraw", "damage"])
def test_an_active_artifact_made_from_what_is_no_longer_good_is_an_orphan(
    diamond: Family, how: str
) -> None:
    assert diamond.orphans() == {}
    befall: Callable[[str], None] = getattr(diamond, how)
    befall("b")
    assert diamond.orphans() == {"d": ["b"]}
    befall("c")
    befall("a")  # b and c are not active any more
    assert {made: set(inputs) for made, inputs in diamond.orphans().items()} == {"d": {"b", "c"}}
    again = diamond.made["b"]
    diamond.committed(verdict("again", again))  # the bytes are back
    assert diamond.orphans() == {"d": ["c"], "b": ["a"]}


def test_a_superseded_input_makes_no_orphan_and_saying_nothing_was_used_neither(
    diamond: Family,
) -> None:
    diamond.make("A", inputs=[])
    diamond.replace("a", "A")
    assert diamond.orphans() == {}


# ── against the plain definition ─────────────────────────────────────────────────────────────────

NAMES = "abcdefgh"
#: For each artifact, which of the earlier ones it is made from; then who replaces whom, what goes.
HISTORIES = st.tuples(
    st.lists(st.sets(st.sampled_from(NAMES[:-1]), max_size=3), min_size=8, max_size=8),
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=4),
    st.sets(st.sampled_from(NAMES), max_size=2),
)


@hypothesis.settings(max_examples=25)
@hypothesis.given(HISTORIES)
def test_any_history_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    history: tuple[list[set[str]], list[tuple[str, str]], set[str]],
) -> None:
    given, replacements, withdrawn = history
    family = Family(tmp_path_factory.mktemp("family"))
    inputs = {
        name: {source for source in chosen if source < name}
        for name, chosen in zip(NAMES, given, strict=True)
    }
    for name in NAMES:
        family.make(name, *sorted(inputs[name]))
    replaced = {(old, new) for old, new in replacements if old < new}  # no cycles
    for old, new in sorted(replaced):
        family.replace(old, new)
    for name in withdrawn:
        family.withdraw(name)
    status = {
        name: "tombstoned"
        if name in withdrawn
        else "superseded"
        if any(old == name for old, _ in replaced)
        else "active"
        for name in NAMES
    }

    def ancestors(name: str) -> set[str]:
        return {a for source in inputs[name] for a in {source} | ancestors(source)}

    def newest(name: str) -> set[str]:
        found = {new for old, new in replaced if old == name}
        return {head for new in found for head in (newest(new) or {new})}

    def is_stale(name: str) -> bool:
        others = {source for source in inputs[name] if name not in newest(source)}
        return any(newest(source) or is_stale(source) for source in others)

    for name in NAMES:
        below = {other for other in NAMES if name in ancestors(other)}
        assert family.around(name, "up")[0] == {name} | ancestors(name)
        assert family.around(name, "down")[0] == {name} | below
        hits = family.hits(name)
        assert hits.keys() == below
        for path in hits.values():
            assert all(source in inputs[made] for source, made in pairwise(path.split()))
    found = family.stale()
    assert found.keys() == {n for n in NAMES if status[n] == "active" and is_stale(n)}
    assert all(set(instead) == newest(path[0]) for path, instead in found.values())
    assert {name: set(sources) for name, sources in family.orphans().items()} == {
        name: bad
        for name in NAMES
        if status[name] == "active" and (bad := inputs[name] & withdrawn)
    }
    family.manifest.close()
