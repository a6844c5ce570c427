"""Step 7 for mutations: what may be said of artifacts, what is left to do of it, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from bus import decisions, mutations
from bus.model import MAX_TAGS, Alias, JobRecord, Pin, Supersede, Tag, Tombstone, Unpin, Untag
from tests.ledger import Ledger, dump
from tests.pipeline import facts, id_of, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bus.model import Mutation

A, B, C, D = (facts(name, number) for number, name in enumerate("abcd"))
NOWHERE = "00000000-0000-5000-8000-000000000000"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A, B, C and D are there."""
    ledger = Ledger(tmp_path, in_memory=True)
    ledger.committed(verdict("j", A, B, C, D))
    yield ledger
    ledger.assert_equals_a_rebuild()
    ledger.manifest.close()


def supersede(old: Any, new: Any) -> Supersede:
    return Supersede(op="supersede", target=id_of(old), by=id_of(new))


def tombstone(target: Any, reason: str = "wrong") -> Tombstone:
    return Tombstone(op="tombstone", target=id_of(target), reason=reason)


def tag(target: Any, **tags: list[str]) -> Tag:
    return Tag(op="tag", target=id_of(target), tags=tags)


def untag(target: Any, **tags: list[str]) -> Untag:
    return Untag(op="untag", target=id_of(target), tags=tags)


def alias(target: Any, expect: str | None = None) -> Alias:
    meant = None if target is None else id_of(target)
    return Alias(op="alias", kind="signals", alias="best", target=meant, expect=expect)


def pin(*targets: Any) -> Pin:
    return Pin(op="pin", pin="paper", target=[id_of(target) for target in targets])


def unpin(*targets: Any) -> Unpin:
    return Unpin(op="unpin", pin="paper", target=[id_of(target) for target in targets])


EMPTY = Unpin(op="unpin", pin="paper")


def change(ledger: Ledger, *asked: Mutation, job_id: str | None = None) -> JobRecord:
    """The record of a job with these mutations."""
    (record,) = ledger.commit(verdict(job_id or f"m{len(ledger.commits)}", mutations=list(asked)))
    return record


def refusal(ledger: Ledger, *asked: Mutation) -> tuple[list[str], str]:
    """The codes with which such a job is refused, and its first message; nothing else changed."""
    before = dump(ledger.manifest)
    record = change(ledger, *asked)
    after = dump(ledger.manifest)
    assert {name for name in after if after[name] != before[name]} == {"jobs", "commits", "meta"}
    assert all(p.where.startswith("manifest.json.mutations[") and p.hint for p in record.problems)
    return [p.code for p in record.problems], record.problems[0].message


def rows(ledger: Ledger, sql: str) -> list[tuple[Any, ...]]:
    return ledger.manifest.rows(sql)


# ── what holds already is no error, and leaves nothing to do ─────────────────────────────────────


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (supersede(A, B), supersede(A, B)),
        (tombstone(A), tombstone(A)),
        (tag(A, k=["v", "w"]), tag(A, k=["w"])),
        (alias(A), alias(A)),
        (alias(A), alias(A, expect=id_of(A))),
        (pin(A, B), pin(B)),
    ],
    ids=["supersede", "tombstone", "tag", "alias", "expected alias", "pin"],
)
@pytest.mark.parametrize("together", [True, False], ids=["one job", "two jobs"])
def test_what_holds_already_changes_nothing_and_is_a_warning(
    ledger: Ledger, first: Mutation, again: Mutation, together: bool
) -> None:
    if together:
        record = change(ledger, first, again)
        assert record.mutations == [first]
    else:
        assert change(ledger, first).mutations == [first]
        before = dump(ledger.manifest)
        record = change(ledger, again)
        assert record.mutations == []
        after = dump(ledger.manifest)
        changed = {name for name in after if after[name] != before[name]}
        assert changed <= {"jobs", "commits", "meta", "runs"}
    (warning,) = record.warnings
    assert warning.startswith(f"{again.op}: ")
    assert "already" in warning


@pytest.mark.parametrize(
    ("asked", "warning"),
    [
        (untag(A, k=["v"]), "does not carry k=v"),
        (untag(A, k=[]), "does not carry k"),
        (alias(None), "means nothing already"),
        (unpin(A), "there is no pin paper"),
        (EMPTY, "there is no pin paper"),
    ],
    ids=["tag", "key", "alias", "member", "pin"],
)
def test_taking_away_what_is_not_there_changes_nothing_and_is_a_warning(
    ledger: Ledger, asked: Mutation, warning: str
) -> None:
    record = change(ledger, asked)
    assert (record.mutations, record.problems) == ([], [])
    assert warning in record.warnings[0]


def test_only_what_is_new_or_leaves_is_recorded(ledger: Ledger) -> None:
    change(ledger, tag(A, k=["v"], m=["1", "2"]), pin(A, B))
    record = change(
        ledger,
        tag(A, k=["v", "w"]),
        untag(A, k=["v", "x"], m=[]),
        pin(B, C),
        unpin(A, D),
    )
    assert record.mutations == [
        tag(A, k=["w"]),
        untag(A, k=["v"], m=["1", "2"]),
        pin(C),
        unpin(A),
    ]
    assert record.warnings == [
        f"untag: {id_of(A)} does not carry k=x",
        f"unpin: paper does not hold {id_of(D)}",
    ]
    assert rows(ledger, "SELECT k, v FROM artifact_tags") == [("k", "w")]
    assert {member for (member,) in rows(ledger, "SELECT artifact_id FROM pins")} == {
        id_of(B),
        id_of(C),
    }


def test_an_emptied_pin_is_written_out_in_the_record(ledger: Ledger) -> None:
    change(ledger, pin(A, B))
    record = change(ledger, EMPTY)
    (emptied,) = record.mutations
    assert isinstance(emptied, Unpin)
    assert emptied.target == sorted([id_of(A), id_of(B)])
    assert rows(ledger, "SELECT * FROM pins") == []


def test_each_sees_the_ones_before_it_in_its_job_and_in_its_batch(ledger: Ledger) -> None:
    first = verdict("m1", mutations=[tag(A, k=["v"]), untag(A, k=["v"]), pin(A), alias(A)])
    second = verdict("m2", mutations=[tag(A, k=["v"]), pin(A), unpin(A), alias(B, expect=id_of(A))])
    records = ledger.committed(first, second)
    assert records[1].mutations == [tag(A, k=["v"]), unpin(A), alias(B, expect=id_of(A))]
    assert rows(ledger, "SELECT k, v FROM artifact_tags") == [("k", "v")]
    assert rows(ledger, "SELECT * FROM pins") == []


def test_a_refused_job_leaves_no_trace_of_its_changes_in_its_batch(ledger: Ledger) -> None:
    nothing = Pin(op="pin", pin="paper", target=[NOWHERE])
    everything = [tag(A, k=["v"]), pin(A), alias(A), supersede(A, B), tombstone(C), nothing]
    after = [untag(A, k=["v"]), unpin(A), alias(None), supersede(B, A), supersede(C, D)]
    record, refused = ledger.commit(  # what lacks something is decided last
        verdict("m1", mutations=everything), verdict("m2", mutations=after)
    )
    assert [p.code for p in refused.problems] == ["E403"]
    assert record.problems == []
    assert record.mutations == [supersede(B, A), supersede(C, D)]
    assert len(record.warnings) == 3


# ── supersession ─────────────────────────────────────────────────────────────────────────────────


def test_several_are_replaced_by_one_and_one_by_several(ledger: Ledger) -> None:
    change(ledger, supersede(A, C), supersede(B, C), supersede(A, D))
    assert ledger.status() == {
        id_of(A): "superseded",
        id_of(B): "superseded",
        id_of(C): "active",
        id_of(D): "active",
    }


@pytest.mark.parametrize(
    ("before", "closing", "way"),
    [
        ([], supersede(A, A), [A, A]),
        ([supersede(A, B)], supersede(B, A), [A, B, A]),
        ([supersede(A, B), supersede(B, C)], supersede(C, A), [A, C, B, A]),
        ([supersede(A, B), supersede(B, C), supersede(A, C)], supersede(C, A), [A, C, A]),
    ],
    ids=["itself", "two", "three", "the short way"],
)
def test_a_circle_is_refused_with_the_way_round_it(
    ledger: Ledger, before: list[Mutation], closing: Mutation, way: list[Any]
) -> None:
    if before:
        change(ledger, *before[:1])
        change(ledger, *before[1:])
    codes, message = refusal(ledger, closing)
    assert codes == ["E402"]
    assert message.endswith(" → ".join(id_of(found) for found in way))


def test_a_long_circle_shows_both_its_ends() -> None:
    names = [f"v{number}" for number in range(100)]
    assert mutations.cycle(names) == (
        "v0 → v1 → v2 → v3 → v4 → … 90 more … → v95 → v96 → v97 → v98 → v99"
    )


@pytest.mark.parametrize(
    "asked", [supersede(A, B), supersede(B, A), alias(A)], ids=["replaced", "replaces", "alias"]
)
@pytest.mark.parametrize("together", [True, False], ids=["one job", "two jobs"])
def test_what_is_tombstoned_replaces_nothing_is_not_replaced_and_gets_no_alias(
    ledger: Ledger, asked: Mutation, together: bool
) -> None:
    if together:
        record = change(ledger, tombstone(A, "look-ahead"), asked)
        assert [p.code for p in record.problems] == ["E406"]
        return
    change(ledger, tombstone(A, "look-ahead"))
    codes, message = refusal(ledger, asked)
    assert codes == ["E406"]
    assert message == f"{id_of(A)} is tombstoned: look-ahead"


def test_a_submission_cannot_replace_a_tombstoned_artifact_either(ledger: Ledger) -> None:
    change(ledger, tombstone(A))
    fresh = facts("e", 9, supersedes=[id_of(A)])
    (record,) = ledger.commit(verdict("j2", fresh))
    assert [(p.code, p.where) for p in record.problems] == [
        ("E406", "manifest.json.artifacts[0].supersedes")
    ]


def test_what_is_revived_may_be_replaced_again(ledger: Ledger) -> None:
    change(ledger, tombstone(A))
    again = verdict("j2", A, mutations=[supersede(A, B), alias(A)])
    (record,) = ledger.committed(again)
    assert record.artifacts[0].decision == "revived"
    assert ledger.status()[id_of(A)] == "superseded"


def test_tags_and_pins_may_be_put_on_a_tombstoned_artifact(ledger: Ledger) -> None:
    change(ledger, tombstone(A))
    assert change(ledger, tag(A, evidence=["yes"]), pin(A)).problems == []


def test_the_newest_reason_of_a_tombstone_counts(ledger: Ledger) -> None:
    change(ledger, tombstone(A, "wrong venue"))
    change(ledger, tombstone(A, "look-ahead"), tombstone(A, "look-ahead, and the wrong venue"))
    held = "SELECT reason FROM tombstone_facts WHERE ended_seq IS NULL"
    assert rows(ledger, held) == [("look-ahead, and the wrong venue",)]
    assert rows(ledger, "SELECT count(*) FROM tombstone_facts") == [(2,)]


def test_a_tombstone_says_why(ledger: Ledger) -> None:
    assert refusal(ledger, tombstone(A, "  "))[0] == ["E103"]


# ── tags ─────────────────────────────────────────────────────────────────────────────────────────


def test_an_artifact_carries_so_many_tags_whoever_puts_them_on(ledger: Ledger) -> None:
    change(ledger, tag(A, k=[str(n) for n in range(MAX_TAGS - 1)]))
    codes, message = refusal(ledger, tag(A, k=["x", "y"]))
    assert codes == ["E407"]
    assert f"carries {MAX_TAGS - 1} tags and would carry {MAX_TAGS + 1}" in message
    again = facts("a", 0, tags={"k": ["0", "x"], "m": ["y"]})
    assert ledger.codes(verdict("j2", again)) == [["E407"]]
    ledger.committed(verdict("j3", facts("a", 0, tags={"k": ["0", "x"]})))
    assert rows(ledger, "SELECT count(*) FROM artifact_tags") == [(MAX_TAGS,)]


def test_tags_of_a_use_are_the_artifacts_own_and_can_be_taken_off(ledger: Ledger) -> None:
    use = verdict("j2", facts("a", 0, tags={"desk": ["fx", "rates"]}))
    ledger.committed(use, verdict("m", mutations=[untag(A, desk=["fx"])]))
    assert rows(ledger, "SELECT k, v FROM artifact_tags") == [("desk", "rates")]


# ── aliases ──────────────────────────────────────────────────────────────────────────────────────


def test_every_move_of_an_alias_is_kept_with_whose_it_was(ledger: Ledger) -> None:
    first = verdict("m1", mutations=[alias(A), alias(B)], producer="ada")
    second = verdict("m2", mutations=[alias(B), alias(None)], producer="bob")
    ledger.committed(first, second)
    change(ledger, alias(C), job_id="m3")
    moves = rows(
        ledger,
        "SELECT m.seq, m.artifact_id, j.job_id, j.producer "
        "FROM alias_moves m JOIN jobs j USING (verdict_id) ORDER BY move_no",
    )
    assert moves == [
        (2, id_of(A), "m1", "ada"),
        (2, id_of(B), "m1", "ada"),
        (2, None, "m2", "bob"),
        (3, id_of(C), "m3", "tests"),
    ]


@pytest.mark.parametrize("expect", ["", id_of(B)])
def test_an_alias_that_means_something_else_says_what(ledger: Ledger, expect: str) -> None:
    change(ledger, alias(A))
    codes, message = refusal(ledger, alias(C, expect=expect))
    assert codes == ["E405"]
    assert message == f"signals:best means {id_of(A)}, not {expect or 'nothing'}"


# ── pins ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_pin_of_nothing_is_refused(ledger: Ledger) -> None:
    assert refusal(ledger, pin())[0] == ["E403"]
    nowhere = Pin(op="pin", pin="paper", target=[id_of(A), NOWHERE])
    assert refusal(ledger, nowhere)[0] == ["E403"]


def test_a_pin_holds_so_many(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutations, "MAX_PINNED", 2)
    change(ledger, pin(A, B))
    codes, message = refusal(ledger, pin(B, C))
    assert codes == ["E407"]
    assert "would hold 3 artifacts" in message


def test_a_pin_as_an_input_stands_for_its_members_of_that_moment(ledger: Ledger) -> None:
    change(ledger, pin(B, A))
    early = facts("e", 7, inputs=["pin:paper", id_of(A), id_of(C)])
    (record,) = ledger.committed(verdict("j2", early))
    assert record.artifacts[0].inputs == [*sorted([id_of(A), id_of(B)]), id_of(C)]
    late = facts("f", 8, inputs=["pin:paper"])
    _, moved = ledger.committed(verdict("m2", mutations=[unpin(A)]), verdict("j3", late))
    assert moved.artifacts[0].inputs == [id_of(B)]


def test_a_job_waits_for_a_pin_that_may_come_and_only_so_long(ledger: Ledger) -> None:
    needs = verdict("j2", facts("e", 7, inputs=["pin:paper"]))
    assert ledger.decide(needs, wait_s=600).waiting == {"j2": ["pin:paper"]}
    assert [p.code for p in ledger.decide(needs).records[0].problems] == ["E401"]
    nameless = verdict("j3", facts("e", 7, inputs=["pin:"]))
    assert [p.code for p in ledger.decide(nameless, wait_s=600).records[0].problems] == ["E401"]


def test_what_the_pins_of_a_job_come_to_has_a_limit(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "MAX_FROM_PINS", 3)
    change(ledger, pin(A, B))
    twice = (facts("e", 7, inputs=["pin:paper"]), facts("f", 8, inputs=["pin:paper"]))
    assert ledger.codes(verdict("j2", *twice)) == [["E407"]]
    ledger.committed(verdict("j3", twice[0]))


# ── jobs that wait ───────────────────────────────────────────────────────────────────────────────


def test_what_is_expected_counts_when_a_job_is_decided_not_while_it_waits(ledger: Ledger) -> None:
    later = Alias(op="alias", kind="signals", alias="best", target="job:later/e", expect=id_of(A))
    waits = verdict("m1", mutations=[alias(A, expect=""), later])
    assert ledger.decide(waits, wait_s=600).waiting == {"m1": ["job:later/e"]}
    ledger.committed(verdict("later", facts("e", 7)))
    ledger.committed(waits)
    assert ledger.alias("signals", "best") == id_of(facts("e", 7))
