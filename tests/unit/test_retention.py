"""What may go and what stays: the plan, the writer's second look, policies, and answered jobs."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any, get_args

import pytest

from bus import retention, writer as writer_module
from bus.client import Bus
from bus.errors import NotFound, Refused
from bus.manifest import Manifest
from bus.model import JobState, Mutation, Receipt, RejectReason, iso, utc_now
from bus.statements import statement
from bus.verify import verify
from tests.pipeline import KIND, LightCatalog, Pipeline, table
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from bus.retention import Piece, Plan

LATER = timedelta(days=1000)
OPS = get_args(get_args(Mutation)[0])


@pytest.fixture
def pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setattr(writer_module, "Catalog", LightCatalog)
    return Pipeline(tmp_path / "lake", keep_processed_days=9999, keep_rejected_days=9999)


def settle(pipe: Pipeline) -> None:
    """All that waits, the trees, and what goes to the trash."""
    pipe.judge()
    with pipe.writer() as writer:
        while writer.drain().more:
            pass


def let_time_pass() -> None:
    """So much that the file system's clock, which ticks some hundred times a second, shows it."""
    now = utc_now()
    wait_until(lambda: utc_now() > now + timedelta(milliseconds=30))


def publish(pipe: Pipeline, number: int, key: str, **fields: Any) -> str:
    """An artifact of `table(number)`, by a job called after it; its id."""
    job_id = fields.pop("job_id", f"{key}-{number}")
    pipe.stage(job_id, table(number), keys=[key], run_id=f"run-{job_id}", **fields)
    settle(pipe)
    return pipe.receipt(job_id).artifacts[0].artifact_id


def change(pipe: Pipeline, job_id: str, *mutations: dict[str, Any]) -> Receipt:
    pipe.stage(job_id, mutations=list(mutations))
    settle(pipe)
    return pipe.receipt(job_id)


def tombstone(pipe: Pipeline, artifact_id: str) -> None:
    job_id = f"tombstone-{artifact_id}"
    change(pipe, job_id, {"op": "tombstone", "target": artifact_id, "reason": "wrong"})


def versions(pipe: Pipeline, count: int, key: str = "k") -> list[str]:
    """Artifacts of one key, each superseding the one before it."""
    ids: list[str] = []
    for number in range(count):
        ids.append(publish(pipe, 10 * number, key, entries={"supersedes": ids[-1:]}))
    return ids


def plan(pipe: Pipeline, **options: Any) -> Plan:
    """As of long from now, so that nothing is there only lately."""
    return retention.plan(pipe.lake, pipe.settings, now=utc_now() + LATER, **options)


def objects(found: Plan) -> dict[str, Piece]:
    """What is said of objects, by the artifact on each."""
    return {p.artifacts[0]: p for p in found.pieces if p.what == "object" and p.artifacts}


def going(pipe: Pipeline) -> set[str]:
    return {artifact_id for artifact_id, piece in objects(plan(pipe)).items() if piece.goes}


def collect(pipe: Pipeline) -> list[str]:
    """`bus gc --apply` long from now; the warnings of its receipts."""
    staged = retention.apply(pipe.lake, plan(pipe))
    settle(pipe)
    return [warning for job in staged for warning in pipe.receipt(job.job_id).warnings]


def sha256_of(pipe: Pipeline, artifact_id: str) -> str:
    sql = "SELECT file_hash FROM artifacts WHERE artifact_id = ?"
    return str(pipe.rows(sql, artifact_id)[0][0]).removeprefix("sha256:")


def status_of(pipe: Pipeline, artifact_id: str) -> str:
    return str(pipe.rows("SELECT status FROM artifacts WHERE artifact_id = ?", artifact_id)[0][0])


def is_there(pipe: Pipeline, artifact_id: str) -> bool:
    return pipe.lake.object_path(sha256_of(pipe, artifact_id)).exists()


def assert_sound(pipe: Pipeline) -> None:
    found = verify(pipe.lake, pipe.settings, pipe.registry).findings
    assert [f for f in found if "bus.duckdb" not in f.where] == []  # a light one is none


# ── what a plan says ──────────────────────────────────────────────────────────────────────────


def test_without_a_policy_only_what_was_tombstoned_may_go(pipe: Pipeline) -> None:
    old, new = versions(pipe, 2)
    wrong = publish(pipe, 77, "other")
    tombstone(pipe, wrong)
    found = objects(plan(pipe))
    assert {a: p.goes for a, p in found.items()} == {old: False, wrong: True}
    assert found[old].why == "superseded, and its kind has no policy"
    lately = objects(retention.plan(pipe.lake, pipe.settings))
    assert lately[old].why == found[old].why, "time alone would not make it go"
    assert found[wrong].why == "tombstoned"
    assert found[wrong].because == "tombstoned: wrong"
    assert found[wrong].name == f"{KIND} other"
    assert new not in found


def test_every_byte_of_the_store_is_counted_once(pipe: Pipeline) -> None:
    versions(pipe, 3)
    tombstone(pipe, publish(pipe, 77, "other"))
    stray = pipe.lake.object_path("0" * 64)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"stray")
    sizes = [path.stat().st_size for path in pipe.lake.all_objects()]
    totals = [t for t in plan(pipe).totals if t.what == "object"]
    assert sum(t.size_bytes for t in totals) == sum(sizes)
    assert sum(t.count for t in totals) == len(sizes)


def test_an_alias_a_pin_and_what_something_kept_was_made_from_stay(pipe: Pipeline) -> None:
    top = publish(pipe, 1, "top")
    middle = publish(pipe, 2, "middle", entries={"inputs": [top]})
    made = publish(pipe, 3, "made", entries={"inputs": [middle]})
    aliased, pinned = publish(pipe, 4, "aliased"), publish(pipe, 5, "pinned")
    marks = [
        {"op": "alias", "kind": KIND, "alias": "best", "target": aliased},
        {"op": "pin", "pin": "paper", "target": pinned},
    ]
    change(pipe, "marks", *marks)
    for artifact_id in (top, middle, aliased, pinned):
        tombstone(pipe, artifact_id)
    found = objects(plan(pipe))
    told = {a: (p.goes, p.why, p.whom) for a, p in found.items()}
    made_from = "something that is kept was made from it"
    assert told == {
        top: (False, made_from, f"{KIND} middle"),
        middle: (False, made_from, f"{KIND} made"),
        aliased: (False, "it has an alias", f"{KIND}:best"),
        pinned: (False, "it is pinned", "paper"),
    }
    tombstone(pipe, made)
    assert going(pipe) == {top, middle, made}
    change(pipe, "unmark", {**marks[0], "target": None}, {**marks[1], "op": "unpin"})
    assert going(pipe) == {top, middle, made, aliased, pinned}


def test_bytes_that_two_artifacts_share_go_with_the_last_of_them(pipe: Pipeline) -> None:
    first = publish(pipe, 1, "first")
    second = publish(pipe, 1, "second")
    assert sha256_of(pipe, first) == sha256_of(pipe, second)
    tombstone(pipe, first)
    assert objects(plan(pipe))[first].whom == f"{KIND} second"
    assert going(pipe) == set()
    tombstone(pipe, second)
    (piece,) = plan(pipe).going
    assert set(piece.artifacts) == {first, second}


def test_what_became_unneeded_only_lately_stays(pipe: Pipeline) -> None:
    wrong = publish(pipe, 1, "k")
    tombstone(pipe, wrong)
    now = retention.plan(pipe.lake, pipe.settings)
    assert objects(now)[wrong].why == "it was withdrawn only lately"
    at_once = retention.plan(pipe.lake, pipe.settings, grace_days=0)
    assert objects(at_once)[wrong].goes


@pytest.mark.parametrize(
    ("policy", "days", "stay"),
    [
        ({"keep_last": 1}, 1000, {3}),
        ({"keep_last": 3}, 1000, {1, 2, 3}),
        ({"keep_days": 1001}, 1000, {0, 1, 2, 3}),
        ({"keep_days": 999}, 1000, {3}),
        ({"keep_last": 2, "keep_days": 999}, 1000, {2, 3}),
        ({"keep_last": 2, "keep_days": 1001}, 1000, {0, 1, 2, 3}),
        ({}, 1000, {0, 1, 2, 3}),
    ],
)
def test_a_policy_keeps_so_many_versions_and_so_many_days(
    pipe: Pipeline, policy: dict[str, int], days: int, stay: set[int]
) -> None:
    ids = versions(pipe, 4)
    change(pipe, "policy", {"op": "set_policy", "kind": KIND, **policy})
    now = utc_now() + timedelta(days=days)
    found = objects(retention.plan(pipe.lake, pipe.settings, now=now))
    gone = {artifact_id for artifact_id, piece in found.items() if piece.goes}
    assert {n for n, artifact_id in enumerate(ids) if artifact_id not in gone} == stay


def test_a_tombstoned_version_takes_no_place_of_a_good_one(pipe: Pipeline) -> None:
    ids = versions(pipe, 3)
    tombstone(pipe, ids[2])
    change(pipe, "policy", {"op": "set_policy", "kind": KIND, "keep_last": 2})
    assert going(pipe) == {ids[2]}


def test_a_policy_holds_until_the_next_one(pipe: Pipeline) -> None:
    versions(pipe, 1)
    for number, policy in enumerate([{"keep_last": 2}, {"keep_days": 9}, {}]):
        change(pipe, f"policy-{number}", {"op": "set_policy", "kind": KIND, **policy})
        found = retention.policies(pipe.lake, KIND)
        known = [{k: v for k, v in p.items() if k in policy} for p in found]
        assert known == ([policy] if policy else [])


def test_a_plan_is_a_json_document(pipe: Pipeline) -> None:
    tombstone(pipe, publish(pipe, 1, "k"))
    found = json.loads(json.dumps(plan(pipe).as_dict()))
    assert found["size_bytes"] > 0
    assert {"what", "name", "size_bytes", "since_utc", "why", "goes"} <= found["pieces"][0].keys()


# ── letting go ────────────────────────────────────────────────────────────────────────────────


def test_what_goes_lies_in_the_trash_and_keeps_its_facts(pipe: Pipeline) -> None:
    source = publish(pipe, 1, "source")
    wrong = publish(pipe, 2, "wrong", entries={"inputs": [source]})
    tombstone(pipe, wrong)
    sha256 = sha256_of(pipe, wrong)
    data = pipe.lake.object_path(sha256).read_bytes()
    assert collect(pipe) == []
    assert not is_there(pipe, wrong)
    trashed = pipe.lake.in_trash(sha256)
    assert trashed is not None
    assert trashed.read_bytes() == data
    assert trashed.stat().st_nlink == 1, "a run's tree holds the bytes"
    assert status_of(pipe, wrong) == "purged"
    assert pipe.lake.sidecar_path(wrong).exists()
    assert pipe.rows("SELECT * FROM artifact_lineage") == [(wrong, source)]
    assert_sound(pipe)
    assert collect(pipe) == []
    assert status_of(pipe, source) == "active"
    assert is_there(pipe, source)


def test_the_trash_is_emptied_when_its_time_has_come(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = publish(pipe, 1, "k")
    tombstone(pipe, wrong)
    collect(pipe)
    sha256 = sha256_of(pipe, wrong)
    with monkeypatch.context() as patch:
        patch.setattr("bus.trash.utc_now", lambda: utc_now() + timedelta(days=6))
        settle(pipe)
        assert pipe.lake.in_trash(sha256)
        patch.setattr("bus.trash.utc_now", lambda: utc_now() + timedelta(days=8))
        settle(pipe)
    assert pipe.lake.in_trash(sha256) is None
    assert list(pipe.lake.trash.iterdir()) == []
    assert_sound(pipe)


def test_the_same_rows_submitted_again_revive_what_was_purged(pipe: Pipeline) -> None:
    wrong = publish(pipe, 1, "k")
    tombstone(pipe, wrong)
    collect(pipe)
    assert publish(pipe, 1, "k", job_id="again") == wrong
    assert pipe.records()[-1].jobs[0].artifacts[0].decision == "revived"
    assert status_of(pipe, wrong) == "active"
    assert is_there(pipe, wrong)
    assert_sound(pipe)


def test_other_bytes_of_the_same_rows_revive_it_too(pipe: Pipeline) -> None:
    wrong = publish(pipe, 1, "k")
    tombstone(pipe, wrong)
    collect(pipe)
    assert publish(pipe, 1, "k", job_id="again", codec="snappy") == wrong
    assert status_of(pipe, wrong) == "active"
    assert is_there(pipe, wrong)
    assert_sound(pipe)


def test_bytes_that_came_back_for_another_artifact_are_there_for_the_first_one(
    pipe: Pipeline,
) -> None:
    wrong = publish(pipe, 1, "k")
    tombstone(pipe, wrong)
    collect(pipe)
    publish(pipe, 1, "another")
    assert status_of(pipe, wrong) == "tombstoned"
    assert is_there(pipe, wrong)
    assert_sound(pipe)


def test_what_was_purged_can_be_taken_back_from_the_trash(pipe: Pipeline) -> None:
    old, new = versions(pipe, 2)
    change(pipe, "policy", {"op": "set_policy", "kind": KIND, "keep_last": 1})
    collect(pipe)
    assert status_of(pipe, old) == "purged"
    bus = Bus(pipe.settings)
    job = bus.take_back(old[:8])
    settle(pipe)
    assert pipe.receipt(job.job_id).warnings == []
    assert status_of(pipe, old) == "superseded"
    assert is_there(pipe, old)
    assert pipe.lake.run_data_path("run-k-0", "t0").exists()
    assert_sound(pipe)
    with pytest.raises(NotFound, match="not in the trash"):
        bus.take_back(new)
    assert collect(pipe) == []
    assert (status_of(pipe, old), is_there(pipe, old)) == ("purged", False)
    assert_sound(pipe)


def test_objects_that_nothing_stands_on_go(pipe: Pipeline) -> None:
    publish(pipe, 1, "k")
    pipe.stage("refused", table(2), table(3), entries={"inputs": ["job:nobody/t0"]})
    settle(pipe)
    assert pipe.codes("refused") == ["E401", "E401"]
    assert len(list(pipe.lake.all_objects())) == 3
    assert [p.why for p in plan(pipe).going if p.what == "object"] == ["nothing stands on it"] * 2
    collect(pipe)
    assert len(list(pipe.lake.all_objects())) == 1
    assert_sound(pipe)


def test_bytes_that_an_artifact_stood_on_before_are_named_after_it(pipe: Pipeline) -> None:
    wrong = publish(pipe, 1, "k")
    first = sha256_of(pipe, wrong)
    tombstone(pipe, wrong)
    publish(pipe, 1, "k", job_id="again", codec="snappy")
    (piece,) = (p for p in plan(pipe).going if p.what == "object")
    assert (piece.object, piece.name) == (first, f"earlier bytes of {KIND} k")
    collect(pipe)
    assert not pipe.lake.object_path(first).exists()
    trashed = pipe.lake.in_trash(first)
    assert trashed is not None
    assert trashed.stat().st_nlink == 1, "the first run's tree holds the bytes"
    # The same bytes come again, and stand under nothing: they may go again.
    publish(pipe, 1, "k", job_id="third")
    assert pipe.lake.object_path(first).exists()
    collect(pipe)
    assert not pipe.lake.object_path(first).exists()
    assert is_there(pipe, wrong)
    assert_sound(pipe)


# ── the writer's second look ──────────────────────────────────────────────────────────────────


def purge(sha256: str) -> dict[str, Any]:
    return {"op": "purge", "object": sha256, "reason": "so I say"}


@pytest.mark.parametrize("state", ["active", "aliased", "pinned", "input", "no policy"])
def test_what_must_stay_is_not_purged_and_the_receipt_says_why(pipe: Pipeline, state: str) -> None:
    target = publish(pipe, 1, "k")
    if state == "input":
        publish(pipe, 2, "made", entries={"inputs": [target]})
    if state == "aliased":
        alias = {"op": "alias", "kind": KIND, "alias": "best", "target": target}
        change(pipe, "mark", alias)
    if state == "pinned":
        change(pipe, "mark", {"op": "pin", "pin": "paper", "target": target})
    if state == "no policy":
        publish(pipe, 2, "k", entries={"supersedes": [target]})
    elif state != "active":
        tombstone(pipe, target)
    receipt = change(pipe, "purge", purge(sha256_of(pipe, target)))
    (warning,) = receipt.warnings
    assert f"{KIND} k" in warning
    assert pipe.records()[-1].jobs[0].mutations == []
    assert is_there(pipe, target)
    assert status_of(pipe, target) != "purged"


def test_what_a_job_on_its_way_speaks_of_is_not_purged(pipe: Pipeline) -> None:
    wrong, other = publish(pipe, 1, "k"), publish(pipe, 2, "other")
    for artifact_id in (wrong, other):
        tombstone(pipe, artifact_id)
    patient = Pipeline(pipe.lake.root, lineage_wait_s=600.0)
    patient.stage("waits", table(3), entries={"inputs": [wrong, "job:to-come/t0"]})
    patient.stage("waits-too", table(2), keys=["other"], after=["to-come"])
    settle(patient)
    assert patient.state("waits") is JobState.READY
    assert {p.why for p in objects(plan(pipe)).values()} == {"a job on its way speaks of it"}
    hashes = [sha256_of(pipe, artifact_id) for artifact_id in (wrong, other)]
    patient.stage("purge", mutations=[purge(sha256) for sha256 in hashes])
    settle(patient)
    assert len(patient.receipt("purge").warnings) == 2
    assert is_there(pipe, wrong)


@pytest.mark.parametrize("first", ["purge", "duplicate"])
def test_a_purge_and_a_duplicate_that_wait_together_lose_nothing(
    pipe: Pipeline, first: str
) -> None:
    wrong = publish(pipe, 1, "k")
    tombstone(pipe, wrong)
    names = ["a-purge", "b-duplicate"] if first == "purge" else ["b-purge", "a-duplicate"]
    for name in sorted(names):
        if name.endswith("purge"):
            pipe.stage(name, mutations=[purge(sha256_of(pipe, wrong))])
        else:
            pipe.stage(name, table(1), keys=["k"])
        pipe.judge()
    settle(pipe)
    assert len({record.seq for record in pipe.records()[-2:]}) == 2, "each in a commit of its own"
    assert status_of(pipe, wrong) == "active"
    assert is_there(pipe, wrong)
    assert_sound(pipe)


MUTATIONS: list[dict[str, Any]] = [
    {"op": "supersede", "target": "job:later/t0", "by": "job:later/t1"},
    {"op": "tombstone", "target": "job:later/t0", "reason": "wrong"},
    {"op": "tag", "target": "job:later/t0", "tags": {"k": "v"}},
    {"op": "untag", "target": "job:later/t0", "tags": {"k": "v"}},
    {"op": "alias", "kind": KIND, "alias": "a", "target": "job:later/t0"},
    {"op": "alias", "kind": KIND, "alias": "a"},
    {"op": "pin", "pin": "p", "target": ["job:later/t0", "job:later/t1"]},
    {"op": "unpin", "pin": "p", "target": ["job:later/t0"]},
    {"op": "unpin", "pin": "p"},
    {"op": "mark_damaged", "object": "1" * 64, "found": "gone"},
    {"op": "restore", "object": "1" * 64},
    {"op": "set_policy", "kind": KIND, "keep_days": 1},
    {"op": "discard", "jobs": "committed", "before": "2026-01-01T00:00:00Z"},
    purge("2" * 64),
]


def patient(pipe: Pipeline) -> None:
    """Jobs wait for what they name."""
    pipe.settings = pipe.settings.model_copy(update={"lineage_wait_s": 600.0})


def test_every_mutation_may_lie_beside_a_purge(pipe: Pipeline) -> None:
    patient(pipe)
    wrong = publish(pipe, 1, "k")
    tombstone(pipe, wrong)
    for number, mutation in enumerate(MUTATIONS):
        pipe.stage(f"beside-{number}", mutations=[mutation], after=["never"])
    pipe.judge()
    assert {m["op"] for m in MUTATIONS} == {
        get_args(m.model_fields["op"].annotation)[0] for m in OPS
    }
    (piece,) = [piece for piece in plan(pipe).pieces if piece.object == sha256_of(pipe, wrong)]
    assert piece.goes
    change(pipe, "purge", purge(sha256_of(pipe, wrong)))
    assert status_of(pipe, wrong) == "purged"


def test_what_a_waiting_job_names_by_its_job_is_not_purged(pipe: Pipeline) -> None:
    patient(pipe)
    wrong = publish(pipe, 1, "k", job_id="made")
    tombstone(pipe, wrong)
    pipe.stage("waits", table(2), entries={"inputs": ["job:made/t0"]}, after=["never"])
    pipe.judge()
    (piece,) = [p for p in plan(pipe).pieces if p.object == sha256_of(pipe, wrong)]
    assert not piece.goes
    (warning,) = change(pipe, "purge", purge(sha256_of(pipe, wrong))).warnings
    assert "stays" in warning
    assert is_there(pipe, wrong)


def test_a_purge_of_what_is_gone_already_is_no_trouble(pipe: Pipeline) -> None:
    wrong = publish(pipe, 1, "k")
    tombstone(pipe, wrong)
    sha256 = sha256_of(pipe, wrong)
    pipe.lake.object_path(sha256).unlink()
    assert change(pipe, "purge", purge(sha256)).warnings == []
    assert change(pipe, "nothing", purge("0" * 64)).warnings == []
    assert status_of(pipe, wrong) == "purged"
    assert_sound(pipe)


def test_a_purge_comes_with_nothing_else(pipe: Pipeline) -> None:
    both = [purge("0" * 64), {"op": "untag", "target": "x", "tags": {"k": "v"}}]
    with pytest.raises(Refused, match="nothing else"):
        pipe.stage("both", mutations=both)
    with pytest.raises(Refused, match="nothing else"):
        pipe.stage("both", table(1), mutations=both[:1])


# ── answered jobs ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def forgetful(pipe: Pipeline) -> Pipeline:
    """A committed and a rejected job, answered long ago, are discarded."""
    publish(pipe, 1, "k", job_id="good")
    pipe.stage("bad", table(2), entries={"inputs": ["job:nobody/t0"]})
    settle(pipe)
    let_time_pass()
    before = iso(utc_now())
    discards = [{"op": "discard", "jobs": j, "before": before} for j in ("committed", "rejected")]
    change(pipe, "discard", *discards)
    return pipe


def test_a_plan_tells_how_long_directories_of_answered_jobs_stay(pipe: Pipeline) -> None:
    publish(pipe, 1, "k", job_id="good")
    pipe.stage("bad", table(2), entries={"inputs": ["job:nobody/t0"]})
    settle(pipe)
    settings = pipe.settings.model_copy(
        update={"keep_processed_days": 30, "keep_rejected_days": 90}
    )
    now = utc_now() + timedelta(days=60)
    found = retention.plan(pipe.lake, settings, now=now, grace_days=9999)
    told = {p.name: (p.what, p.goes) for p in found.pieces if p.what != "object"}
    assert told == {"good": ("committed job", True), "bad": ("rejected job", False)}
    assert found.discards == {"committed": now - timedelta(days=30)}
    (staged,) = retention.apply(pipe.lake, found)
    settle(pipe)
    assert pipe.receipt(staged.job_id).warnings == []


def test_directories_of_jobs_answered_long_ago_go_to_the_trash(forgetful: Pipeline) -> None:
    lake = forgetful.lake
    assert [lake.state_of(job_id) for job_id in ("good", "bad")] == [JobState.UNKNOWN] * 2
    (day,) = lake.trash_days()
    names = sorted(path.name.split(".")[:2] for path in day.iterdir())
    assert names == [["processed", "good"], ["rejected", "bad"]]
    assert_sound(forgetful)


def test_a_job_answered_since_keeps_its_directory(pipe: Pipeline) -> None:
    publish(pipe, 1, "k", job_id="early")
    let_time_pass()
    before = utc_now()
    let_time_pass()
    publish(pipe, 2, "k", job_id="late")
    change(pipe, "discard", {"op": "discard", "jobs": "committed", "before": iso(before)})
    assert [pipe.state(job) for job in ("early", "late")] == [JobState.UNKNOWN, JobState.COMMITTED]
    assert_sound(pipe)


def test_a_receipt_that_is_gone_is_told_by_the_journal(forgetful: Pipeline) -> None:
    bus = Bus(forgetful.settings)
    good, bad = bus.find_job("good"), bus.find_job("bad")
    assert (good.status, bad.status) == (JobState.COMMITTED, JobState.REJECTED)
    receipt = bus.wait("good", timeout_s=0)
    assert receipt.seq == 1
    assert receipt.artifacts[0].rows == 3
    refused = bad.answer()
    assert isinstance(refused, RejectReason)
    assert refused.code == "E401"
    with pytest.raises(NotFound):
        bus.find_job("nobody")


def test_a_repeated_job_gets_its_first_receipt_after_that_was_discarded(
    forgetful: Pipeline,
) -> None:
    forgetful.stage("good", table(1), keys=["k"], run_id="run-good")
    settle(forgetful)
    assert forgetful.receipt("good").seq == 1
    assert "repeated" in forgetful.receipt("good").warnings[0]
    assert_sound(forgetful)


def test_a_rejection_does_not_hide_a_receipt_that_was_discarded_before_it(pipe: Pipeline) -> None:
    pipe.stage("job", table(2), entries={"inputs": ["job:nobody/t0"]})
    settle(pipe)
    publish(pipe, 2, "k", job_id="job")
    let_time_pass()
    change(pipe, "discard", {"op": "discard", "jobs": "committed", "before": iso(utc_now())})
    assert pipe.state("job") is JobState.REJECTED
    assert isinstance(Bus(pipe.settings).find_job("job").answer(), Receipt)


def test_a_clock_that_is_ahead_discards_nothing_that_comes_later(pipe: Pipeline) -> None:
    ahead = iso(utc_now() + LATER)
    change(pipe, "early", {"op": "untag", "target": publish(pipe, 1, "k"), "tags": {"a": "b"}})
    let_time_pass()
    change(pipe, "discard", {"op": "discard", "jobs": "committed", "before": ahead})
    publish(pipe, 2, "k", job_id="late")
    assert [pipe.state(job) for job in ("early", "late")] == [JobState.UNKNOWN, JobState.COMMITTED]
    assert_sound(pipe)


@pytest.mark.parametrize("scope", ["on_objects", "all_withdrawn"])
def test_what_something_kept_was_made_from_is_found_without_walking_all_edges(
    pipe: Pipeline, scope: str
) -> None:
    publish(pipe, 1, "k")
    known = dict.fromkeys(("objects", "young", "now"))
    sql = statement("fates", "retention.sql").format(scope=statement(scope, "retention.sql"))
    with closing(Manifest.read(pipe.lake)) as manifest:
        plan = [line for *_, line in manifest.rows(f"EXPLAIN QUERY PLAN {sql}", known)]
    assert [line for line in plan if line.startswith("SCAN e")] == []
    assert [line for line in plan if line.startswith("SEARCH e ")]
