"""Changing what is said of artifacts, as a client does it: jobs, references, receipts, history."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING, Any

import pytest

from bus import writer as writer_module
from bus.client import Bus, Job
from bus.errors import BusError, NotFound, Refused, Rejected, Unavailable
from bus.lake import MANIFEST
from bus.manifest import Manifest
from bus.model import JobState
from tests.pipeline import KIND, LightCatalog, Pipeline, table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


NOBODY = "00000000-0000-5000-8000-000000000000"


@pytest.fixture(autouse=True)
def light_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "Catalog", LightCatalog)


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    """A lake with three artifacts: run-1/t0, run-1/t1, run-1/t2."""
    pipe = Pipeline(tmp_path)
    pipe.stage("first", table(1), table(2), table(3), keys=["a", "b", "c"])
    pipe.run()
    return pipe


@pytest.fixture
def bus(pipe: Pipeline) -> Bus:
    return Bus(pipe.settings, ring=lambda _: False)


@pytest.fixture
def ids(pipe: Pipeline) -> list[str]:
    return [artifact.artifact_id for artifact in pipe.receipt("first").artifacts]


def mutations_of(job: Job) -> list[dict[str, Any]]:
    """As they lie in the inbox."""
    document = json.loads((job.bus.lake.inbox / job.job_id / MANIFEST).read_bytes())
    found: list[dict[str, Any]] = document["mutations"]
    return found


def statuses(pipe: Pipeline) -> dict[str, str]:
    return dict(pipe.rows("SELECT artifact_id, status FROM artifacts"))


# ── jobs ─────────────────────────────────────────────────────────────────────────────────────────


def test_each_change_is_a_job_that_lies_in_the_inbox_with_the_ids_that_were_meant(
    pipe: Pipeline, bus: Bus, ids: list[str]
) -> None:
    job = bus.supersede("run-1/t0", by=ids[1][:13])
    assert job.status is JobState.STAGED
    assert mutations_of(job) == [{"op": "supersede", "target": ids[0], "by": ids[1]}]
    pipe.run()
    receipt = job.wait(0)
    assert (receipt.status, receipt.artifacts, receipt.warnings) == ("committed", [], [])
    assert statuses(pipe)[ids[0]] == "superseded"


SAID: dict[str, tuple[Callable[[Bus], Job], str, list[tuple[str, ...]]]] = {
    "tombstone": (
        lambda bus: bus.tombstone("run-1/t0", "wrong venue"),
        "SELECT reason FROM tombstone_facts",
        [("wrong venue",)],
    ),
    "tag": (
        lambda bus: bus.tag("run-1/t0", {"a b": "x"}, desk=["fx", "rates"]),
        "SELECT k, v FROM artifact_tags ORDER BY k, v",
        [("a b", "x"), ("desk", "fx"), ("desk", "rates")],
    ),
    "alias": (
        lambda bus: bus.alias("signals:best", "run-1/t0"),
        "SELECT kind, alias FROM aliases",
        [("signals", "best")],
    ),
    "pin": (
        lambda bus: bus.pin("paper", ["run-1/t0", "run-1/t1"]),
        "SELECT pin FROM pins",
        [("paper",), ("paper",)],
    ),
}


@pytest.mark.parametrize("what", SAID)
def test_what_was_said_holds_when_the_receipt_is_there(pipe: Pipeline, bus: Bus, what: str) -> None:
    change, sql, holds = SAID[what]
    job = change(bus)
    pipe.run()
    assert job.wait(0).warnings == []
    assert pipe.rows(sql) == holds


def test_what_was_said_can_be_taken_back(pipe: Pipeline, bus: Bus, ids: list[str]) -> None:
    with bus.changes() as change:
        change.tag(ids[0], desk=["fx", "rates"], note="x")
        change.alias("signals:best", ids[0])
        change.pin("paper", ids)
        change.untag(ids[0], "desk", note="x")
        change.alias("signals:best", None)
        change.unpin("paper", [ids[0], "run-1/t1"])
        change.unpin("paper")
    pipe.run()
    assert change.job.wait(0).warnings == []
    for view in ("artifact_tags", "aliases", "pins"):
        assert pipe.rows(f"SELECT * FROM {view}") == []


def test_several_changes_are_one_job_and_happen_all_or_not_at_all(
    pipe: Pipeline, bus: Bus, ids: list[str]
) -> None:
    with bus.changes(producer="deploy", meta={"why": "better"}) as change:
        change.supersede("run-1/t0", by="run-1/t1")
        change.alias("signals:prod", "run-1/t1", expect="run-1/t0")
    pipe.run()
    with pytest.raises(Rejected) as caught:
        change.job.wait(0)
    assert [p.code for p in caught.value.problems] == ["E405"]
    assert set(statuses(pipe).values()) == {"active"}

    with bus.changes(producer="deploy") as change:
        change.supersede(["run-1/t0", "run-1/t2"], by="run-1/t1")
        change.alias("signals:prod", "run-1/t1", expect="")
    pipe.run()
    assert change.job.wait(0).seq == bus.aliases()[0]["seq"]
    assert statuses(pipe) == {ids[0]: "superseded", ids[1]: "active", ids[2]: "superseded"}


def test_a_draft_may_say_something_of_what_it_delivers(pipe: Pipeline, bus: Bus) -> None:
    with bus.job(kind=KIND, producer="tests") as job:
        job.add(table(9), name="fresh")
        job.supersede("run-1/t0", by="name:fresh")
        job.alias("signals:best", "name:fresh")
    pipe.run()
    (artifact,) = job.job.wait(0).artifacts
    assert [row["artifact_id"] for row in bus.aliases("signals")] == [artifact.artifact_id]


def test_what_a_table_is_made_from_and_replaces_may_be_named_as_people_do(
    pipe: Pipeline, bus: Bus, ids: list[str]
) -> None:
    bus.alias("signals:best", ids[0])
    bus.pin("paper", ids[1])
    pipe.run()
    inputs = ["signals:best", "pin:paper", ids[2][:13]]
    job = bus.submit(table(7), kind=KIND, producer="x", inputs=inputs, supersedes="run-1/t0")
    document = json.loads((bus.lake.inbox / job.job_id / MANIFEST).read_bytes())
    (entry,) = document["artifacts"]
    assert (entry["inputs"], entry["supersedes"]) == ([ids[0], "pin:paper", ids[2]], [ids[0]])
    with pytest.raises(NotFound):
        bus.submit(table(8), kind=KIND, producer="x", inputs="run-1/nobody")
    pipe.run()
    (artifact,) = job.wait(0).artifacts
    lineage = "SELECT input_artifact_id FROM artifact_lineage WHERE artifact_id = ?"
    assert sorted(pipe.rows(lineage, artifact.artifact_id)) == sorted((i,) for i in ids)


def test_an_exception_in_the_block_changes_nothing(bus: Bus) -> None:
    with pytest.raises(NotFound), bus.changes() as change:
        change.alias("signals:best", "run-1/t0")
        change.alias("signals:worst", "run-1/nobody")
    assert list(bus.lake.inbox.iterdir()) == []
    with pytest.raises(Refused) as caught, bus.changes():
        pass
    assert caught.value.code == "E111"


def test_a_change_that_cannot_be_written_raises(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("bus.staging.disk.write_plain", full)
    with pytest.raises(Unavailable) as caught:
        bus.alias("signals:best", "run-1/t0")
    assert caught.value.code == "E504"
    assert list(bus.lake.inbox.iterdir()) == []


def test_the_same_change_under_one_id_is_made_once(pipe: Pipeline, bus: Bus) -> None:
    receipts = []
    for _ in range(2):
        with bus.changes(job_id="nightly", run_id="r") as change:
            change.alias("signals:best", "run-1/t0")
        pipe.run()
        receipts.append(change.job.wait(0))
    assert receipts[0].seq == receipts[1].seq
    assert len(bus.alias_history("signals:best")) == 1


# ── references ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ref", ["job:later/t0", "name:sibling", NOBODY])
def test_what_may_yet_come_is_left_to_the_writer(bus: Bus, ref: str) -> None:
    assert mutations_of(bus.tag(ref, k="v"))[0]["target"] == ref


def test_an_alias_names_what_it_means_at_the_call(pipe: Pipeline, bus: Bus, ids: list[str]) -> None:
    bus.alias("signals:best", ids[0])
    pipe.run()
    pinned = bus.pin("paper", "signals:best")
    bus.alias("signals:best", ids[1], expect="signals:best")
    pipe.run()
    assert pinned.wait(0).warnings == []
    assert bus.pinned("paper") == [ids[0]]


CANNOT_BE: dict[str, tuple[str, Callable[[Bus], Any]]] = {
    "a name of no run": ("E511", lambda bus: bus.tag("run-1/nobody", k="v")),
    "no such alias": ("E511", lambda bus: bus.supersede("run-1/t0", by="signals:nobody")),
    "no kind": ("E104", lambda bus: bus.alias("signals", "run-1/t0")),
    "a kind with a space": ("E104", lambda bus: bus.alias("sig nals:best", "run-1/t0")),
    "a pin like a path": ("E104", lambda bus: bus.pin("../paper", "run-1/t0")),
    "a long key": ("E407", lambda bus: bus.tag("run-1/t0", {"k" * 129: "v"})),
    "an empty key": ("E407", lambda bus: bus.tag("run-1/t0", {"": "v"})),
    "many tags": ("E407", lambda bus: bus.tag("run-1/t0", k=[str(n) for n in range(201)])),
    "a long value": ("E103", lambda bus: bus.tag("run-1/t0", k="v" * 1025)),
    "an unknown change": ("E103", lambda bus: bus.mutate({"op": "rename", "target": "x"})),
    "a long key of a table": (
        "E407",
        lambda bus: bus.submit(table(5), kind=KIND, producer="x", tags={"k" * 129: "v"}),
    ),
    "history of nothing": ("E511", lambda bus: bus.alias_history("signals:nobody")),
    "members of nothing": ("E511", lambda bus: bus.pinned("nobody")),
}


@pytest.mark.parametrize("what", CANNOT_BE)
def test_what_cannot_be_meant_is_refused_at_once_and_nothing_is_staged(bus: Bus, what: str) -> None:
    code, change = CANNOT_BE[what]
    with pytest.raises(BusError) as caught:
        change(bus)
    assert (caught.value.code, bool(caught.value.hint)) == (code, True)
    assert list(bus.lake.inbox.iterdir()) == []


def test_a_manifest_written_by_hand_meets_the_same_limits(pipe: Pipeline) -> None:
    long = [{"op": "tag", "target": "job:first/t0", "tags": {"k" * 129: ["v"]}}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bus.staging.tag_problems", lambda _: ())
        pipe.stage("by-hand", mutations=long)
    pipe.run()
    assert pipe.codes("by-hand") == ["E407"]
    assert [p.where for p in pipe.reason("by-hand").problems] == ["manifest.json.mutations[0].tags"]


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def test_the_history_of_an_alias_tells_each_move_the_newest_first(
    pipe: Pipeline, bus: Bus, ids: list[str]
) -> None:
    for producer, target in (("ada", ids[0]), ("bob", ids[1]), ("bob", ids[1]), ("eve", None)):
        with bus.changes(producer=producer, run_id=f"run-of-{producer}") as change:
            change.alias("signals:prod", target)
        pipe.run()
    bus.alias("signals:other", ids[2])
    pipe.run()
    history = bus.alias_history("signals:prod")
    assert [(m["from"], m["to"], m["producer"], m["run_id"]) for m in history] == [
        (ids[1], None, "eve", "run-of-eve"),
        (ids[0], ids[1], "bob", "run-of-bob"),
        (None, ids[0], "ada", "run-of-ada"),
    ]
    assert [m["seq"] for m in history] == [5, 3, 2]
    times = [m["at_utc"] for m in history]
    assert times == sorted(times, reverse=True)
    with pytest.raises(NotFound) as caught:
        bus.alias_history("signals:othr")
    assert "Did you mean signals:other?" in caught.value.hint


def test_pins_are_listed_and_keep_what_they_hold(pipe: Pipeline, bus: Bus, ids: list[str]) -> None:
    assert bus.pins() == []
    bus.pin("paper", ids[:2])
    pipe.run()
    bus.pin("paper", ids[2])
    pipe.run()
    (paper,) = bus.pins()
    assert (paper["pin"], paper["artifacts"], paper["first_seq"], paper["last_seq"]) == (
        *("paper", 3, 2, 3),
    )
    assert sorted(bus.pinned("paper")) == sorted(ids)


def test_a_job_that_waits_for_a_pin_follows_as_soon_as_it_is_there(
    tmp_path: Path, pipe: Pipeline, bus: Bus, ids: list[str]
) -> None:
    patient = Pipeline(tmp_path, lineage_wait_s=600)
    patient.stage("derived", table(7), entries={"inputs": ["pin:paper"]})
    patient.judge()
    with patient.writer() as writer:
        assert writer.drain().jobs == 0
        bus.pin("paper", ids[:2])
        patient.judge()
        assert writer.drain().jobs == 2
    assert sorted(pipe.rows("SELECT input_artifact_id FROM artifact_lineage")) == sorted(
        (artifact_id,) for artifact_id in ids[:2]
    )


@pytest.mark.parametrize(("layout", "code"), [(10_000, "E512"), (1, "E508")])
def test_a_manifest_of_another_release_is_told_as_such(
    pipe: Pipeline, bus: Bus, layout: int, code: str
) -> None:
    manifest = Manifest.open(pipe.lake)
    manifest._db.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (layout,))
    manifest.close()
    with pytest.raises(Unavailable) as caught:
        bus.pins()
    assert (caught.value.code, bool(caught.value.hint)) == (code, True)
    pipe.run()  # the writer makes its own again
    assert bus.pins() == []
