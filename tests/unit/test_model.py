"""The documents: what a manifest may say, what makes two jobs the same, what an id is made of."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from bus.diagnosis import manifest_problems
from bus.model import (
    ARTIFACT_NAMESPACE,
    TRANSITIONS,
    CommitMarker,
    CommitRecord,
    JobManifest,
    JobRecord,
    JobState,
    Outcome,
    ProblemDoc,
    Verdict,
    artifact_id_of,
    canonical_json,
    iso,
)

#: The example of the source documents, word for word.
DOCUMENTED: dict[str, Any] = {
    "run_id": "f33593ab-67ff-4ad7-a6a9-57200b4c800a",
    "job_id": "2026-01-08T05-12-33Z__baseline__alerts",
    "producer": "baseline",
    "kind": "alerts_std",
    "created_at_utc": "2026-01-08T05:12:33Z",
    "artifacts": [
        {
            "artifact_id": "alerts_std",
            "format": "parquet",
            "relpath": "alerts_std.parquet",
            "schema_hint": "canon.alerts_std",
            "rows": 7317,
            "sha256": None,
        }
    ],
    "meta": {"git_sha": "optional", "params": {"interval": "1m"}},
}


def manifest(**changes: Any) -> JobManifest:
    return JobManifest.model_validate(DOCUMENTED | changes)


def entry(**changes: Any) -> dict[str, Any]:
    first: dict[str, Any] = DOCUMENTED["artifacts"][0]
    return first | changes


def findings(**changes: Any) -> list[tuple[str, str, str]]:
    """(code, place, hint) of every problem of a manifest with these changes."""
    with pytest.raises(ValidationError) as caught:
        manifest(**changes)
    return [(str(p.code), p.where, p.hint) for p in manifest_problems(caught.value)]


# ── what a producer may write ────────────────────────────────────────────────────────────────────


def test_the_documented_manifest_is_accepted_unchanged() -> None:
    found = manifest()
    assert found.version == 1
    assert found.kind_of(found.artifacts[0]) == "alerts_std"
    run = "run=f33593ab-67ff-4ad7-a6a9-57200b4c800a"
    assert found.key_of(found.artifacts[0]) == f"{run}/name=alerts_std"


def test_every_problem_is_reported_with_its_place() -> None:
    found = findings(
        job_id="../evil",
        produce="x",
        artifacts=[entry(rows=-1), entry(schemaversion=2)],
        created_at_utc="yesterday",
    )
    assert [(code, where) for code, where, _ in found] == [
        ("E104", "manifest.json.job_id"),
        ("E103", "manifest.json.created_at_utc"),
        ("E103", "manifest.json.artifacts[0].rows"),
        ("E103", "manifest.json.artifacts[1].schemaversion"),
        ("E103", "manifest.json.produce"),
    ]


@pytest.mark.parametrize(
    ("field", "known"),
    [("produce", "producer"), ("artifact", "artifacts"), ("create_at_utc", "created_at_utc")],
)
def test_an_unknown_field_names_its_nearest_neighbour(field: str, known: str) -> None:
    ((code, where, hint),) = findings(**{field: 1})
    assert (code, where) == ("E103", f"manifest.json.{field}")
    assert hint.startswith(f"did you mean {known!r}?")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        ".x",
        "-x",
        "a/b",
        "a\\b",
        "a b",
        "a\n",
        "ä",
        "x" * 129,
        "a\0b",
        "~a",
        "😀",
        "..",
        "a\r\n",
    ],
)
@pytest.mark.parametrize("field", ["job_id", "run_id", "producer", "kind"])
def test_an_identifier_that_could_be_a_path_or_a_trick_is_e104(field: str, bad: str) -> None:
    ((code, where, _),) = findings(**{field: bad})
    assert (code, where) == ("E104", f"manifest.json.{field}")


@pytest.mark.parametrize("good", ["a", "0", "A.b_c:d+e=f@g~h-i", "x" * 128])
def test_identifiers_keep_the_characters_that_ids_are_made_of(good: str) -> None:
    assert manifest(job_id=good).job_id == good


@pytest.mark.parametrize(
    ("field", "value"),
    [("rows", "1"), ("rows", 1.0), ("rows", True), ("schema_version", 0), ("sha256", "abc")],
)
def test_a_value_of_another_type_is_not_converted(field: str, value: Any) -> None:
    ((code, where, _),) = findings(artifacts=[entry(**{field: value})])
    assert (code, where) == ("E103", f"manifest.json.artifacts[0].{field}")


def test_a_hash_may_be_spelled_in_capitals_and_with_its_prefix() -> None:
    found = manifest(artifacts=[entry(sha256="sha256:" + "AB" * 32)])
    assert found.artifacts[0].sha256 == "ab" * 32


def test_tags_take_one_value_or_many() -> None:
    found = manifest(artifacts=[entry(tags={"a": "1", "b": ["2", "3"]})])
    assert found.artifacts[0].tags == {"a": ["1"], "b": ["2", "3"]}


def test_free_text_is_compared_in_one_unicode_form_and_holds_no_control_characters() -> None:
    found = manifest(artifacts=[entry(logical_key="cafe\u0301")])
    assert found.artifacts[0].logical_key == "caf\u00e9"
    for bad in ("a\nb", "a\x1b[31m", "a\x7f", "x" * 1025, "ä" * 513):
        ((code, _, _),) = findings(artifacts=[entry(logical_key=bad)])
        assert code == "E103"


def test_a_job_with_nothing_to_do_is_e111_and_one_with_too_much_e107() -> None:
    assert [code for code, _, _ in findings(artifacts=[])] == ["E111"]
    many = [entry(artifact_id=f"a{n}") for n in range(1001)]
    assert [code for code, _, _ in findings(artifacts=many)] == ["E107"]


def test_a_time_without_a_zone_is_refused_and_another_zone_becomes_utc() -> None:
    assert findings(created_at_utc="2026-01-08T05:12:33")[0][0] == "E103"
    found = manifest(created_at_utc="2026-01-08T06:12:33+01:00")
    assert found.created_at_utc == datetime(2026, 1, 8, 5, 12, 33, tzinfo=UTC)
    assert json.loads(found.to_bytes())["created_at_utc"] == "2026-01-08T05:12:33.000000Z"


def test_a_mutation_is_one_of_a_closed_list() -> None:
    found = manifest(artifacts=[], mutations=[{"op": "tag", "target": "x", "tags": {"a": "b"}}])
    assert found.mutations[0].op == "tag"
    ((code, where, _),) = findings(artifacts=[], mutations=[{"op": "delete", "target": "x"}])
    assert (code, where) == ("E103", "manifest.json.mutations[0]")
    ((_, where, _),) = findings(artifacts=[], mutations=[{"op": "tombstone", "target": "x"}])
    assert where == "manifest.json.mutations[0].reason"
    pin = {"op": "pin", "pin": "../x", "target": "x"}  # a field of the same name as its op
    ((code, where, _),) = findings(artifacts=[], mutations=[pin])
    assert (code, where) == ("E104", "manifest.json.mutations[0].pin")


def test_a_pin_takes_one_target_or_many_and_an_unpin_also_none() -> None:
    pin = {"op": "pin", "pin": "paper", "target": "x"}
    unpin = {"op": "unpin", "pin": "paper"}
    found = manifest(artifacts=[], mutations=[pin, pin | {"target": ["x", "y"]}, unpin])
    assert [m.model_dump()["target"] for m in found.mutations] == [["x"], ["x", "y"], None]


def test_only_version_1_is_spoken() -> None:
    assert findings(version=2)[0][1] == "manifest.json.version"


# ── sameness ─────────────────────────────────────────────────────────────────────────────────────

HASHES = {"alerts_std": "ch1:aa"}


@pytest.mark.parametrize(
    "changes",
    [
        {"created_at_utc": "2027-01-01T00:00:00Z"},
        {"provenance": {"git_commit": "abc"}},
        {"artifacts": [entry(rows=7318)]},
        {"artifacts": [entry(sha256="ab" * 32, size_bytes=5)]},
        {"version": 1},
    ],
    ids=["time", "provenance", "rows", "bytes", "default"],
)
def test_what_a_restarted_program_writes_anew_leaves_the_digest_alone(
    changes: dict[str, Any],
) -> None:
    assert manifest(**changes).digest(HASHES) == manifest().digest(HASHES)


@pytest.mark.parametrize(
    "changes",
    [
        {"run_id": "other"},
        {"producer": "other"},
        {"kind": "other"},
        {"job_id": "other"},
        {"meta": {}},
        {"after": ["other"]},
        {"artifacts": [entry(relpath="other.parquet")]},
        {"artifacts": [entry(inputs=[])]},
        {"artifacts": [entry(tags={"a": "b"})]},
        {"artifacts": [entry(logical_key="other")]},
        {"artifacts": [entry(schema_version=2)]},
        {"mutations": [{"op": "untag", "target": "x", "tags": {"a": "b"}}]},
    ],
)
def test_everything_else_makes_another_job(changes: dict[str, Any]) -> None:
    assert manifest(**changes).digest(HASHES) != manifest().digest(HASHES)


def test_other_rows_make_another_job() -> None:
    assert manifest().digest({"alerts_std": "ch1:bb"}) != manifest().digest(HASHES)


# ── identity ─────────────────────────────────────────────────────────────────────────────────────


def test_an_artifact_id_is_the_same_on_every_machine() -> None:
    found = artifact_id_of("trades", 1, "token=So1/res=1m", "ch1:" + "0" * 64)
    assert found == "da09a43e-60ec-56b8-9677-50f2c0b1537f"
    text = '["trades",1,"token=So1/res=1m","ch1:' + "0" * 64 + '"]'
    assert found == str(uuid.uuid5(ARTIFACT_NAMESPACE, text))


_PART = st.text(st.sampled_from('ab",[]\\1 ä'), max_size=4)


@given(
    st.tuples(_PART, st.integers(1, 3), _PART, _PART),
    st.tuples(_PART, st.integers(1, 3), _PART, _PART),
)
def test_two_identities_share_an_id_only_if_they_are_one(
    first: tuple[str, int, str, str], second: tuple[str, int, str, str]
) -> None:
    assert (artifact_id_of(*first) == artifact_id_of(*second)) == (first == second)


def test_canonical_json_does_not_depend_on_order() -> None:
    assert (
        canonical_json({"b": 1, "a": {"d": "ä", "c": None}})
        == b'{"a":{"c":null,"d":"\xc3\xa4"},"b":1}'
    )


# ── what the bus itself writes ───────────────────────────────────────────────────────────────────


def test_the_documents_of_the_bus_read_back_as_written() -> None:
    marker = CommitMarker(manifest_sha256="ab" * 32, submission_id="s1")
    assert CommitMarker.from_bytes(marker.to_bytes()) == marker
    job = JobRecord(
        job_id="j",
        verdict_id="v",
        outcome=Outcome.REJECTED,
        problems=[ProblemDoc(code="E101", where="w", message="m", hint="h")],
        meta={"n": 2**62, "f": 1.5, "t": "ä\u2028", "list": [None, True]},
    )
    record = CommitRecord(seq=1, prev="0" * 64, committed_at_utc="t", writer="w", jobs=[job])
    assert CommitRecord.from_bytes(record.to_bytes()) == record


def test_a_rejection_without_a_reason_and_an_acceptance_with_one_are_no_verdicts() -> None:
    # The writer answers with the first problem; a verdict without one would stop it for good.
    facts = {"verdict_id": "v", "job_id": "j", "judged_at_utc": "t"}
    with pytest.raises(ValidationError):
        Verdict.model_validate(facts | {"accepted": False})
    problem = {"code": "E101", "where": "w", "message": "m", "hint": "h"}
    with pytest.raises(ValidationError):
        Verdict.model_validate(facts | {"accepted": True, "problems": [problem]})


def test_an_acceptance_says_whose_job_it_is() -> None:
    facts = {"verdict_id": "v", "job_id": "j", "judged_at_utc": "t", "accepted": True}
    whose = {"run_id": "r", "producer": "p", "kind": "k", "created_at_utc": "t", "job_digest": "d"}
    assert Verdict.model_validate(facts | whose).accepted
    for name in whose:
        with pytest.raises(ValidationError):
            Verdict.model_validate(facts | whose | {name: None})


def test_times_are_written_in_utc_with_microseconds() -> None:
    moment = datetime(2026, 1, 8, 5, 0, tzinfo=timezone(timedelta(hours=-5)))
    assert iso(moment) == "2026-01-08T10:00:00.000000Z"


def test_a_job_moves_between_states_only_as_the_table_says() -> None:
    assert {move[0] for move in TRANSITIONS} == set(JobState) - {
        JobState.COMMITTED,
        JobState.UNKNOWN,
    }
    assert all(JobState.UNKNOWN not in move for move in TRANSITIONS)
