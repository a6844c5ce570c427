"""Step 7: duplicates, references, conflicts; each job of a batch sees the ones before it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from bus.model import Alias, Outcome, Supersede, Tag, Tombstone
from tests.ledger import Ledger
from tests.pipeline import KIND, facts, id_of, verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from bus.model import ArtifactFacts, JobRecord, Verdict

A, B, C = facts("a", 1), facts("b", 2), facts("c", 3)
NOWHERE = "00000000-0000-5000-8000-000000000000"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path, in_memory=True)
    yield ledger
    ledger.assert_equals_a_rebuild()
    ledger.manifest.close()


def together_or_apart(ledger: Ledger, together: bool, *verdicts: Verdict) -> list[JobRecord]:
    """The records of jobs in one batch, or each in a commit of its own."""
    if together:
        return ledger.commit(*verdicts)
    return [record for found in verdicts for record in ledger.commit(found)]


either_way = pytest.mark.parametrize("together", [True, False], ids=["one batch", "two batches"])


# ── duplicates ───────────────────────────────────────────────────────────────────────────────────


@either_way
@pytest.mark.parametrize(
    ("second", "decision", "mode", "bytes_of_first"),
    [
        (facts("a", 1), "deduped", "file_hash", True),
        (facts("a", 1, codec="zstd"), "deduped", "content_hash", True),
        (facts("a", 1, logical_key="other"), "created", None, True),
        (facts("a", 1, kind="other"), "created", None, True),
        (facts("a", 1, schema_version=2), "created", None, True),
        (facts("a", 2), "created", None, False),
    ],
    ids=["same bytes", "same rows", "other key", "other kind", "other version", "other rows"],
)
def test_an_artifact_is_its_kind_version_key_and_rows(
    ledger: Ledger,
    together: bool,
    second: ArtifactFacts,
    decision: str,
    mode: str | None,
    bytes_of_first: bool,
) -> None:
    first, again = together_or_apart(ledger, together, verdict("j1", A), verdict("j2", second))
    assert first.artifacts[0].decision == "created"
    found = again.artifacts[0]
    assert (found.decision, found.mode) == (decision, mode)
    assert (found.file_hash == A.file_hash) == bytes_of_first
    assert (found.artifact_id == id_of(A)) == (decision == "deduped")
    uses = ledger.manifest.rows("SELECT job_id, artifact_id FROM run_artifacts ORDER BY job_id")
    assert uses == [("j1", id_of(A)), ("j2", found.artifact_id)]


def test_one_job_may_hold_the_same_rows_twice(ledger: Ledger) -> None:
    twin = facts("a", 1, codec="zstd", relpath="twin.parquet").model_copy(update={"name": "twin"})
    (record,) = ledger.committed(verdict("j", A, twin))
    assert [(a.decision, a.mode) for a in record.artifacts] == [
        ("created", None),
        ("deduped", "content_hash"),
    ]


@either_way
def test_a_duplicate_of_a_superseded_artifact_is_a_use_and_its_status_stays(
    ledger: Ledger, together: bool
) -> None:
    ledger.committed(verdict("j", A, B))
    old = [Supersede(op="supersede", target=id_of(A), by=id_of(B))]
    _, again = together_or_apart(
        ledger, together, verdict("s", mutations=old), verdict("j2", A, run_id="run-2")
    )
    assert again.artifacts[0].decision == "deduped"
    assert ledger.status() == {id_of(A): "superseded", id_of(B): "active"}


@either_way
def test_a_duplicate_of_a_tombstoned_artifact_revives_it_with_the_new_bytes(
    ledger: Ledger, together: bool
) -> None:
    ledger.committed(verdict("j", A))
    wrong = [Tombstone(op="tombstone", target=id_of(A), reason="wrong")]
    fresh = facts("a", 1, codec="zstd")
    _, again = together_or_apart(
        ledger, together, verdict("t", mutations=wrong), verdict("j2", fresh)
    )
    assert again.artifacts[0].decision == "revived"
    assert again.artifacts[0].artifact_id == id_of(A)
    assert ledger.status() == {id_of(A): "active"}
    assert ledger.manifest.rows("SELECT file_hash FROM artifacts") == [(fresh.file_hash,)]


# ── the same job id again ────────────────────────────────────────────────────────────────────────


def test_the_same_job_again_is_repeated_and_another_under_its_id_is_e105(ledger: Ledger) -> None:
    first = verdict("j", A)
    ledger.committed(first)
    same = verdict("j", A, job_digest=first.job_digest)
    (record,) = ledger.commit(same)
    assert (record.outcome, record.first_seq, record.artifacts) == (Outcome.REPEATED, 1, [])
    assert ledger.codes(verdict("j", B)) == [["E105"]]
    assert ledger.manifest.rows("SELECT count(*) FROM artifact_facts") == [(1,)]


def test_a_rejected_id_may_come_again_and_is_judged_afresh(ledger: Ledger) -> None:
    missing = facts("a", 1, inputs=[NOWHERE])
    assert ledger.codes(verdict("j", missing)) == [["E401"]]
    (record,) = ledger.commit(verdict("j", A))
    assert record.outcome is Outcome.COMMITTED


# ── references ───────────────────────────────────────────────────────────────────────────────────


@either_way
@pytest.mark.parametrize("reference", [id_of(A), "job:j1/a"])
def test_a_job_may_build_on_one_before_it(ledger: Ledger, together: bool, reference: str) -> None:
    derived = facts("b", 2, inputs=[reference])
    _, record = together_or_apart(ledger, together, verdict("j1", A), verdict("j2", derived))
    assert record.artifacts[0].inputs == [id_of(A)]


@pytest.mark.parametrize("first", ["name:a", "job:j/a"], ids=["by name", "by its own job"])
@pytest.mark.parametrize("order", list(itertools.permutations(["a", "b", "c"])))
def test_siblings_may_be_named_in_any_order(
    ledger: Ledger, order: tuple[str, ...], first: str
) -> None:
    made = {
        "a": A,
        "b": facts("b", 2, inputs=[first]),
        "c": facts("c", 3, inputs=["name:b", "name:a"]),
    }
    (record,) = ledger.committed(verdict("j", *(made[name] for name in order)))
    inputs = {a.name: a.inputs for a in record.artifacts}
    assert inputs == {"a": None, "b": [id_of(A)], "c": [id_of(made["b"]), id_of(A)]}


@pytest.mark.parametrize(
    ("reference", "code"),
    [(name, "E401") for name in ("name:nobody", "job:j/nobody", "not-an-id", "", "job:")],
)
def test_a_reference_that_can_never_be_found_is_refused_at_once(
    ledger: Ledger, reference: str, code: str
) -> None:
    (record,) = ledger.commit(verdict("j", facts("a", 1, inputs=[reference])), wait_s=600)
    assert [(p.code, p.where) for p in record.problems] == [
        (code, "manifest.json.artifacts[0].inputs[0]")
    ]


@pytest.mark.parametrize("reference", [NOWHERE, "job:later/a"])
def test_a_reference_that_may_yet_come_is_waited_for_and_only_so_long(
    ledger: Ledger, reference: str
) -> None:
    job = verdict("j", facts("b", 2, inputs=[reference]))
    found = ledger.decide(job, wait_s=600)
    assert (found.records, found.waiting) == ([], {"j": [reference]})
    (record,) = ledger.decide(job, wait_s=600, later_s=601).records
    assert [p.code for p in record.problems] == ["E401"]


def test_a_name_that_a_committed_job_does_not_have_will_never_come(ledger: Ledger) -> None:
    ledger.committed(verdict("j1", A))
    found = ledger.decide(verdict("j2", facts("b", 2, inputs=["job:j1/other"])), wait_s=600)
    assert found.waiting == {}
    assert [p.code for p in found.records[0].problems] == ["E401"]


def test_one_that_waits_holds_up_nobody_in_its_batch(ledger: Ledger) -> None:
    waits = verdict("w", facts("b", 2, inputs=[NOWHERE]))
    found = ledger.decide(waits, verdict("j", A), wait_s=600)
    assert [r.job_id for r in found.records] == ["j"]
    assert found.waiting == {"w": [NOWHERE]}


@pytest.mark.parametrize("wait_s", [0, 600])
def test_what_comes_later_in_the_batch_is_decided_first(ledger: Ledger, wait_s: float) -> None:
    early = verdict("j2", facts("b", 2, inputs=["job:j1/a"]))
    earlier = verdict("j3", facts("c", 3, inputs=[id_of(A), "job:j2/b"]), after=["j1", "j2"])
    records = ledger.commit(earlier, early, verdict("j1", A), wait_s=wait_s)
    assert [(r.job_id, r.outcome) for r in records] == [
        (job_id, Outcome.COMMITTED) for job_id in ("j1", "j2", "j3")
    ]


def test_one_whose_time_is_over_is_refused_when_nothing_of_the_batch_brings_its_reference(
    ledger: Ledger,
) -> None:
    lacks = verdict("w", facts("b", 2, inputs=[NOWHERE]))
    needs_it = verdict("v", facts("c", 3, inputs=["job:w/b"]))
    found = ledger.decide(needs_it, lacks, verdict("j", A), wait_s=600, later_s=601)
    assert [(r.job_id, r.outcome) for r in found.records] == [
        ("j", Outcome.COMMITTED),
        ("v", Outcome.REJECTED),
        ("w", Outcome.REJECTED),
    ]
    assert found.waiting == {}


def test_after_orders_jobs(ledger: Ledger) -> None:
    second = verdict("j2", B, after=["j1"])
    assert ledger.decide(second, wait_s=600).waiting == {"j2": ["j1"]}
    assert [r.job_id for r in ledger.commit(verdict("j1", A), second)] == ["j1", "j2"]
    assert ledger.codes(verdict("j3", C, after=["nobody"])) == [["E401"]]


def test_every_problem_of_a_job_is_told_at_once(ledger: Ledger) -> None:
    job = verdict(
        "j",
        facts("a", 1, inputs=["name:x"], supersedes=["name:y"]),
        facts("b", 2, inputs=["name:b"]),
        mutations=[Tag(op="tag", target="name:z", tags={"k": ["v"]})],
    )
    (record,) = ledger.commit(job)
    assert [(p.code, p.where.removeprefix("manifest.json.")) for p in record.problems] == [
        ("E401", "artifacts[0].inputs[0]"),
        ("E401", "artifacts[0].supersedes[0]"),
        ("E402", "artifacts[1].inputs"),
        ("E403", "mutations[0].target"),
    ]


# ── cycles ───────────────────────────────────────────────────────────────────────────────────────


def on(found: ArtifactFacts, *inputs: str) -> ArtifactFacts:
    return found.model_copy(update={"inputs": list(inputs)})


@pytest.mark.parametrize(
    "artifacts",
    [
        (on(A, "name:a"),),
        (on(A, id_of(A)),),
        (on(A, "name:b"), on(B, "name:a")),
        (on(A, "name:b"), on(B, "name:c"), on(C, "name:a")),
    ],
    ids=["self by name", "self by id", "two", "three"],
)
def test_nothing_descends_from_itself_within_a_job(
    ledger: Ledger, artifacts: tuple[ArtifactFacts, ...]
) -> None:
    ((*codes,),) = ledger.codes(verdict("j", *artifacts))
    assert codes == ["E402"]


def test_nor_over_several_commits(ledger: Ledger) -> None:
    ledger.committed(verdict("j1", A), verdict("j2", on(B, "job:j1/a")))
    ledger.committed(verdict("j3", on(C, "job:j2/b")))
    assert ledger.codes(verdict("j4", on(A, id_of(C)))) == [["E402"]]
    ledger.committed(verdict("j5", on(C, id_of(A))))  # a shorter way to an ancestor is no cycle


def test_nor_where_the_way_leads_through_the_batch_and_back_into_the_past(
    ledger: Ledger,
) -> None:
    ledger.committed(verdict("j1", A, B), verdict("j2", on(C, "job:j1/b")))  # c from b
    first = verdict("j3", on(B, id_of(A)))  # b from a: only in this batch
    second = verdict("j4", on(A, id_of(C)))  # a from c: c, b (before), a (in this batch)
    assert ledger.codes(first, second) == [[], ["E402"]]


def test_nor_where_the_way_leads_through_a_sibling_and_the_past(ledger: Ledger) -> None:
    ledger.committed(verdict("j1", A), verdict("j2", on(C, "job:j1/a")))  # c from a
    both = verdict("j3", on(A, "name:b"), on(B, "job:j2/c"))  # a from b, b from c
    assert ledger.codes(both) == [["E402"]]


def test_the_way_of_a_cycle_is_told_siblings_by_name_and_others_as_people_call_them(
    ledger: Ledger,
) -> None:
    ledger.committed(verdict("j1", A), verdict("j2", on(B, "job:j1/a")))
    (record,) = ledger.commit(verdict("j3", on(A, "name:c"), on(C, id_of(B))))
    ((message, where),) = ((p.message, p.where) for p in record.problems)
    assert message == (
        f"name:c would descend from itself: name:c → signals name=b ({id_of(B)}) → name:a → name:c"
    )
    assert where == "manifest.json.artifacts[1].inputs"


def chain(length: int) -> list[ArtifactFacts]:
    """Artifacts each made from the one before."""
    made = [facts("n0", 0)]
    for number in range(1, length):
        made.append(facts(f"n{number}", number, inputs=[id_of(made[-1])]))
    return made


def test_of_a_long_way_the_ends_are_told(ledger: Ledger) -> None:
    made = chain(40)
    ledger.committed(verdict("j", *made))
    (record,) = ledger.commit(verdict("k", on(made[0], id_of(made[-1]))))
    (problem,) = record.problems
    steps = problem.message.partition(": ")[2].split(" → ")
    assert len(steps) == 11
    assert steps[0] == steps[-1] == "name:n0"
    assert steps[5] == "… 31 more …"


@pytest.fixture
def asked(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The statements that were asked about sets of artifacts, and how many artifacts each."""
    asked: list[tuple[str, int]] = []
    real = ledger.manifest.among

    def noted(name: str, values: Iterable[str]) -> Any:
        asked.append((name, len(wanted := list(values))))
        return real(name, wanted)

    monkeypatch.setattr(ledger.manifest, "among", noted)
    return asked


def test_a_deep_history_costs_a_new_artifact_nothing_and_the_same_one_again_a_look(
    ledger: Ledger, asked: list[tuple[str, int]]
) -> None:
    made = chain(30)
    ledger.committed(verdict("j1", *made))
    asked.clear()
    ledger.committed(verdict("j2", on(B, id_of(made[-1]))))
    assert {name for name, _ in asked} == {"committed_jobs", "known_artifacts"}
    asked.clear()
    ledger.committed(verdict("j3", made[-1]))
    assert [name for name, _ in asked].count("inputs_of") == 1
    # With an input that is new to it, whatever lies above that: nothing was made from it.
    asked.clear()
    ledger.committed(verdict("j4", on(B, id_of(made[-1]), id_of(made[10]))))
    assert [name for name, _ in asked if name == "users_of"] == ["users_of"]
    assert [name for name, _ in asked].count("inputs_of") == 1


def test_the_newest_of_many_versions_is_superseded_at_the_cost_of_one(
    ledger: Ledger, asked: list[tuple[str, int]]
) -> None:
    versions = [facts("v0", 0)]
    for number in range(1, 30):
        versions.append(facts(f"v{number}", number, supersedes=[id_of(versions[-1])]))
    ledger.committed(verdict("j1", *versions))
    asked.clear()
    ledger.committed(verdict("j2", facts("w", 99, supersedes=[id_of(versions[-1])])))
    assert [name for name, _ in asked].count("superseders") <= 2


def test_a_thousand_inputs_are_looked_up_together(
    ledger: Ledger, asked: list[tuple[str, int]]
) -> None:
    sources = [facts(f"s{number}", number) for number in range(1000)]
    ledger.committed(verdict("j1", *sources))
    asked.clear()
    ledger.committed(verdict("j2", facts("all", 5000, inputs=[id_of(s) for s in sources])))
    assert [count for _, count in asked if count > 1] == [1001]
    assert sum(count for _, count in asked) < 1010


def test_a_chain_that_came_in_reverse_is_decided_link_by_link(ledger: Ledger) -> None:
    made = [facts(f"n{n}", n, inputs=[f"job:j{n - 1}/n{n - 1}"] if n else []) for n in range(300)]
    jobs = [verdict(f"j{number}", found) for number, found in enumerate(made)]
    records = ledger.commit(*reversed(jobs), wait_s=600)
    assert [r.job_id for r in records] == [v.job_id for v in jobs]


def test_one_that_lacks_many_is_decided_again_when_the_last_has_come(ledger: Ledger) -> None:
    sources = [facts(f"s{number}", number) for number in range(200)]
    wide = facts("all", 5000, inputs=[f"job:{s.name}/{s.name}" for s in sources])
    jobs = [verdict("wide", wide), *(verdict(s.name, s) for s in sources)]
    *_, last = ledger.commit(*jobs, wait_s=600)
    assert (last.job_id, len(last.artifacts[0].inputs or [])) == ("wide", 200)


@either_way
def test_two_artifacts_do_not_supersede_each_other(ledger: Ledger, together: bool) -> None:
    ledger.committed(verdict("j", A, B))
    first = verdict("s1", mutations=[Supersede(op="supersede", target=id_of(A), by=id_of(B))])
    second = verdict("s2", mutations=[Supersede(op="supersede", target=id_of(B), by=id_of(A))])
    records = together_or_apart(ledger, together, first, second)
    assert [[p.code for p in r.problems] for r in records] == [[], ["E402"]]
    assert ledger.status() == {id_of(A): "superseded", id_of(B): "active"}


def test_nor_in_a_ring_of_three_within_one_job(ledger: Ledger) -> None:
    ring = [
        Supersede(op="supersede", target=f"name:{old}", by=f"name:{new}")
        for old, new in (("a", "b"), ("b", "c"), ("c", "a"))
    ]
    assert ledger.codes(verdict("j", A, B, C, mutations=ring)) == [["E402"]]
    itself = facts("a", 1, supersedes=["name:a"])
    assert ledger.codes(verdict("j2", itself)) == [["E402"]]


# ── expectations ─────────────────────────────────────────────────────────────────────────────────


def alias(target: str | None, expect: str | None = None) -> Alias:
    return Alias(op="alias", kind="signals", alias="best", target=target, expect=expect)


@either_way
def test_of_two_who_expect_the_same_alias_one_gets_it(ledger: Ledger, together: bool) -> None:
    ledger.committed(verdict("j", A, B))
    records = together_or_apart(
        ledger,
        together,
        verdict("m1", mutations=[alias(id_of(A), expect="")]),
        verdict("m2", mutations=[alias(id_of(B), expect="")]),
        verdict("m3", mutations=[alias(id_of(B), expect=id_of(A))]),
    )
    assert [[p.code for p in r.problems] for r in records] == [[], ["E405"], []]
    assert ledger.alias("signals", "best") == id_of(B)


def test_a_job_sees_its_own_aliases(ledger: Ledger) -> None:
    ledger.committed(verdict("j", A, B))
    ledger.committed(verdict("m", mutations=[alias("job:j/a"), alias("job:j/b", expect=id_of(A))]))
    assert ledger.alias("signals", "best") == id_of(B)


def test_a_refused_job_leaves_no_trace_in_its_batch(ledger: Ledger) -> None:
    ledger.committed(verdict("j", A))
    refused = verdict("m1", B, mutations=[alias("name:b"), alias("name:nobody")])
    after = verdict("m2", mutations=[alias(id_of(A), expect="")])
    builds_on_it = verdict("m3", on(C, id_of(B)))
    assert ledger.codes(refused, after, builds_on_it) == [["E403"], [], ["E401"]]


@pytest.mark.parametrize(
    "mutation",
    [
        Supersede(op="supersede", target=id_of(A), by=id_of(B), expect="sha256:other"),
        Tombstone(op="tombstone", target=id_of(A), reason="r", expect="sha256:other"),
    ],
)
def test_bytes_that_changed_meanwhile_are_noticed(ledger: Ledger, mutation: Any) -> None:
    ledger.committed(verdict("j", A, B))
    assert ledger.codes(verdict("m1", mutations=[mutation])) == [["E405"]]
    fits = mutation.model_copy(update={"expect": A.file_hash})
    assert ledger.codes(verdict("m2", mutations=[fits])) == [[]]


def test_a_mutation_of_nothing_is_e403(ledger: Ledger) -> None:
    tag = Tag(op="tag", target=NOWHERE, tags={"k": ["v"]})
    assert ledger.codes(verdict("m", mutations=[tag])) == [["E403"]]


# ── contracts ────────────────────────────────────────────────────────────────────────────────────


def held(name: str, contract: str | None, **fields: Any) -> ArtifactFacts:
    """An artifact that was held to a contract ("" is none, None not said)."""
    return facts(name, 1, contract=contract, **fields)


@either_way
@pytest.mark.parametrize(
    ("contract", "accepted"),
    [("one", True), ("other", False), ("", False), (None, True)],
    ids=["the same", "another", "none", "not said"],
)
def test_a_table_is_held_to_the_contract_that_others_of_its_version_were_held_to(
    ledger: Ledger, together: bool, contract: str | None, accepted: bool
) -> None:
    first, again = together_or_apart(
        ledger, together, verdict("j1", held("a", "one")), verdict("j2", held("b", contract))
    )
    assert first.outcome is Outcome.COMMITTED
    assert again.outcome is (Outcome.COMMITTED if accepted else Outcome.REJECTED)
    assert [p.code for p in again.problems] == ([] if accepted else ["E210"])
    rows = ledger.manifest.rows("SELECT artifact_type, schema_version, fingerprint FROM contracts")
    assert rows == [(KIND, 1, "one")]


def test_each_version_and_kind_has_a_contract_of_its_own(ledger: Ledger) -> None:
    ledger.committed(
        verdict("j1", held("a", "one")),
        verdict("j2", held("b", "two", schema_version=2)),
        verdict("j3", held("c", "three", kind="other")),
        verdict("j4", held("d", "", kind="free")),
        verdict("j5", held("e", "late", kind="free")),
    )
    (refused,) = ledger.commit(verdict("j6", held("f", "two")))
    assert "begins two" in refused.problems[0].message
    assert ledger.manifest.rows("SELECT count(*) FROM contracts") == [(4,)]
