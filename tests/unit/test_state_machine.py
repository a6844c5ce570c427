"""Any sequence of submissions, changes, kills and losses against a lake in plain dicts.

The order in which jobs that wait together are decided is the bus's own affair: the model takes it
from the journal. Everything else (that each acknowledged submission is there, once, what became of
it, and what the lake shows afterwards) it works out by itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from bus import writer as writer_module
from bus.catalog import Catalog, select
from bus.client import Bus
from bus.errors import JobConflict, NotFound
from bus.lake import COMMIT
from bus.manifest import Manifest
from bus.model import CommitMarker, JobState, Outcome, Receipt, RejectReason
from bus.versions import alias_history
from tests.crash_kit import PROTOCOL_POINTS, RETENTION_POINTS, Job, Scene
from tests.pipeline import KIND, LightCatalog, Pipeline, table
from tests.plain_lake import FAULTS, PlainLake

if TYPE_CHECKING:
    from bus.model import JobRecord
    from tests.campaign import Campaign
    from tests.plain_lake import Bytes, Edges, Key, State

EXAMPLES = 20
LONG_EXAMPLES = 400
STEPS = 12
#: One example in so many ends with a look at the real catalog, which takes a second.
WHOLE_EVERY = 7
ON_THEIR_WAY = (JobState.STAGED, JobState.VALIDATING, JobState.READY)

# Small pools, so that names and tables meet often.
IDS = st.sampled_from(["j0", "j1", "j2"])
OTHER_IDS = st.sampled_from([f"d{n}" for n in range(8)])
CHANGE_IDS = st.sampled_from([f"m{n}" for n in range(12)])
WHICH = st.integers(0, 11)
NUMBERS = st.integers(0, 1)
KEYS = st.sampled_from(["ka", "kb"])
CODECS = st.sampled_from(["zstd", "snappy"])
TAGS = st.sampled_from(["red", "blue"])
#: A change: what is said, of which jobs' artifacts, and a word for it.
OPS = (
    *("supersede", "supersede", "tombstone", "tag", "untag", "untag all"),
    *("alias", "alias", "alias if", "no alias", "pin", "pin", "unpin", "unpin all"),
)
SAYING = st.tuples(st.sampled_from(OPS), WHICH, WHICH, st.sampled_from(["red", "blue"]))
STAGING_POINTS = [point for point in PROTOCOL_POINTS if point.startswith("stage.")]
ELSEWHERE = ("stage.", "export.", "checkpoint.")
POINTS = [point for point in PROTOCOL_POINTS if not point.startswith(ELSEWHERE)]


def as_it_waits(job: Job) -> Job:
    """What makes two submissions the same while they wait: all but what the hash claims to be."""
    return replace(job, tables=(0,), codec="zstd") if "sha256" in job.entries else job


class BusMachine(RuleBasedStateMachine):
    """One lake, and what may happen to it."""

    examples = count(1)

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(writer_module, "Catalog", LightCatalog)
        # Nobody cuts the power here, and whoever is killed leaves the kernel what it wrote.
        self.patch.setattr(os, "fsync", lambda _: None)
        self.scene = Scene(Path(tempfile.mkdtemp(prefix="bus-machine-")), lineage_wait_s=0.0)
        self.pipe: Pipeline = self.scene.pipe()
        self.ids: dict[Key, str] = {}
        self.objects: dict[str, Bytes] = {}
        self.model = PlainLake(self.ids, self.objects)
        self.past: dict[int, State] = {}  # what held after each commit
        self.asked: list[Job] = []  # everything that was ever submitted
        self.staged: dict[str, Job] = {}  # acknowledged, by submission_id
        self.outcomes: dict[str, Outcome] = {}  # decided, by submission_id
        self.first: dict[str, int] = {}  # the commit that each committed job is in
        self.seq = 0

    # ── submitting ────────────────────────────────────────────────────────────────────────────

    @initialize()
    def begin(self) -> None:
        """Something of everything, so that what follows meets it."""
        for number, key in enumerate(["ka", "kb", "ka"]):
            self._submit(Job(f"first-{number}", (number % 2,), keys=(key,)))
        self.drain()
        self._submit(Job("first-3", (1,), keys=("ka",), codec="snappy"))
        first = [f"job:first-{number}/t0" for number in range(3)]
        alias = {"op": "alias", "kind": KIND, "alias": "best", "target": first[0]}
        self._change("alias", alias)
        self._change("pin", {"op": "pin", "pin": "set", "target": [first[1], first[2]]})
        self._change("replacement", {"op": "supersede", "target": first[0], "by": first[2]})
        self._change("withdrawal", {"op": "tombstone", "target": first[1], "reason": "wrong"})
        self.drain()

    @rule(job_id=IDS, number=NUMBERS, key=KEYS, codec=CODECS, tag=TAGS)
    def submit(self, job_id: str, number: int, key: str, codec: str, tag: str) -> None:
        entries = {"tags": {"colour": tag}}
        self._submit(Job(job_id, (number,), codec=codec, keys=(key,), entries=entries))

    @rule(job_id=IDS, number=NUMBERS, key=KEYS)
    def submit_what_was_made_from_a_pin(self, job_id: str, number: int, key: str) -> None:
        self._submit(Job(job_id, (number,), keys=(key,), entries={"inputs": ["pin:set"]}))

    @rule(which=WHICH, change=st.sampled_from(["nothing", "bytes", "rows", "key"]))
    def submit_again(self, which: int, change: str) -> None:
        self._submit(self._like(which, change))

    @rule(which=WHICH, change=st.sampled_from(["nothing", "bytes", "key"]), job_id=OTHER_IDS)
    def submit_a_duplicate(self, which: int, change: str, job_id: str) -> None:
        self._submit(replace(self._like(which, change), job_id=job_id))

    def _like(self, which: int, change: str) -> Job:
        """A job of before, changed in one way; a job without tables as it was."""
        job = self.asked[which % len(self.asked)]
        if not job.tables or change == "nothing":
            return job
        if change == "bytes":
            return replace(job, codec="snappy" if job.codec == "zstd" else "zstd")
        if change == "rows":
            return replace(job, tables=(1 - job.tables[0],))
        return replace(job, keys=("kb" if job.keys == ("ka",) else "ka",))

    @rule(job_id=IDS, number=NUMBERS, key=KEYS, fault=st.sampled_from(sorted(FAULTS)))
    def submit_what_must_be_rejected(self, job_id: str, number: int, key: str, fault: str) -> None:
        job = Job(job_id, (number,), keys=(key,), broken=fault == "a torn file")
        if fault == "a wrong hash":
            job = replace(job, entries={"sha256": "0" * 64})
        if fault == "a missing column":
            job = replace(job, fields={"kind": "alerts_std"})
        self._submit(job)

    @rule(job_id=CHANGE_IDS, asked=st.lists(SAYING, min_size=1, max_size=3))
    def say(self, job_id: str, asked: list[tuple[str, int, int, str]]) -> None:
        self._change(job_id, *(self._saying(*one) for one in asked))

    def _saying(self, op: str, which: int, other: int, word: str) -> dict[str, Any]:
        target, second = self._reference(which), self._reference(other)
        alias = {"op": "alias", "kind": KIND, "alias": "best"}
        match op:
            case "supersede":
                return {"op": op, "target": target, "by": second}
            case "tombstone":
                return {"op": op, "target": target, "reason": word}
            case "tag" | "untag":
                return {"op": op, "target": target, "tags": {"colour": [word]}}
            case "untag all":
                return {"op": "untag", "target": target, "tags": {"colour": []}}
            case "alias":
                return alias | {"target": target}
            case "alias if":
                expect = [*self.ids.values(), ""][other % (len(self.ids) + 1)]
                return alias | {"target": target, "expect": expect}
            case "no alias":
                return alias
            case "unpin all":
                return {"op": "unpin", "pin": "set"}
            case _:
                return {"op": op, "pin": "set", "target": [target, second][: 1 + other % 2]}

    def _reference(self, which: int) -> str:
        """To what a job of before delivers; the last of them may not be there yet, or never."""
        jobs = [job for job in self.asked if job.tables]
        return f"job:{jobs[which % len(jobs)].job_id}/t0"

    def _change(self, job_id: str, *changes: dict[str, Any]) -> None:
        self._submit(Job(job_id, fields={"mutations": list(changes)}))

    def _submit(self, job: Job) -> None:
        self.asked.append(job)
        waiting = self._waiting_as(job.job_id)
        if waiting is not None and as_it_waits(self.staged[waiting]) != as_it_waits(job):
            with pytest.raises(JobConflict):
                job.submit(self.pipe)
            return
        job.submit(self.pipe)
        submission_id = self._waiting_as(job.job_id)
        assert submission_id is not None, "acknowledged and not there"
        assert waiting in {None, submission_id}, "what waited was replaced"
        self.staged.setdefault(submission_id, job)

    def _waiting_as(self, job_id: str) -> str | None:
        """The submission that lies in the inbox under this id."""
        marker = self.pipe.lake.inbox / job_id / COMMIT
        if not marker.exists():
            return None
        return CommitMarker.from_bytes(marker.read_bytes()).submission_id

    # ── kills, losses, work ───────────────────────────────────────────────────────────────────

    @rule(job_id=IDS, number=NUMBERS, key=KEYS, point=st.sampled_from(STAGING_POINTS))
    def a_producer_is_killed(self, job_id: str, number: int, key: str, point: str) -> None:
        if self._waiting_as(job_id) is not None:
            return
        job = Job(job_id, (number,), keys=(key,))
        assert self.scene.run(job, crash=point)
        submission_id = self._waiting_as(job_id)
        assert (submission_id is not None) is (point in {"stage.renamed", "stage.done"})
        if submission_id is not None:
            self.staged[submission_id] = job

    @rule(point=st.sampled_from(POINTS), nth=st.sampled_from([1, 1, 2]), which=WHICH, job_id=IDS)
    def a_worker_is_killed(self, point: str, nth: int, which: int, job_id: str) -> None:
        self._submit(replace(self._like(which, "nothing"), job_id=job_id))
        self.scene.run(crash=f"{point}:{nth}")

    @rule(what=st.sampled_from(["manifest", "torn manifest", "catalog", "both"]))
    def a_view_is_lost(self, what: str) -> None:
        if what != "catalog":
            Manifest.delete(self.pipe.lake)
        if what == "torn manifest":
            self.pipe.lake.manifest_db.write_bytes(b"no database" * 1000)
        if what in {"catalog", "both"}:
            LightCatalog.delete(self.pipe.lake)

    @rule()
    def rebuild(self) -> None:
        for views in (self.pipe.lake.artifacts, self.pipe.lake.sidecars, self.pipe.lake.run_trees):
            shutil.rmtree(views)
        with self.pipe.writer() as writer:
            writer.rebuild()
        self.drain()

    @rule(point=st.sampled_from(["", *RETENTION_POINTS, "commit.decided", "index.done"]))
    def collect(self, point: str) -> None:
        """Ask for the purge of every object; what must stay, the writer has to see for itself."""
        self.drain()
        there = sorted(path.stem for path in self.pipe.lake.all_objects())
        purges = [{"op": "purge", "object": sha256, "reason": "gc"} for sha256 in there]
        if not purges:
            return
        job = Job(f"gc-{len(self.staged)}", fields={"mutations": purges})
        job.submit(self.pipe)
        submission_id = self._waiting_as(job.job_id)
        assert submission_id is not None
        self.staged[submission_id] = job
        self.scene.run(crash=point)
        self.drain()
        left = {self.objects.get(path.stem) for path in self.pipe.lake.all_objects()}
        assert left == self.model.now.needed()

    @rule(back=WHICH)
    def look_back(self, back: int) -> None:
        """As of any commit the lake shows what the model said then."""
        self.drain()
        seq = max(0, self.seq - back)
        if seq == 0:
            return
        then = self.past[seq]
        bus = Bus(self.pipe.settings)
        found = {a.artifact_id: a for a in bus.find(status=None, as_of=seq)}
        assert {id_: a.status for id_, a in found.items()} == {
            self.ids[key]: then.status(key) for key in then.codecs
        }
        tags = {(id_, k, v) for id_, a in found.items() for k, vs in a.tags.items() for v in vs}
        assert tags == {(self.ids[key], k, v) for key, k, v in then.tags}
        try:
            best = bus.get(f"{KIND}:best", as_of=seq).artifact_id
        except NotFound:
            best = ""
        assert best == (self.ids[then.aliases["best"]] if then.aliases else "")

    @rule()
    def drain(self) -> None:
        for _ in range(10):
            self.pipe.run()
            if not any(self.pipe.lake.has_any(state) for state in ON_THEIR_WAY):
                break
        self._assert_every_submission_is_decided_once()
        self._assert_the_lake_shows_what_the_model_says()

    # ── what must hold ────────────────────────────────────────────────────────────────────────

    def _assert_every_submission_is_decided_once(self) -> None:
        records = self.pipe.records()
        new, self.seq = records[self.seq :], len(records)
        for record in new:
            for job in record.jobs:
                self._assert_as_expected(job, record.seq)
            self.past[record.seq] = self.model.now
        assert self.outcomes.keys() == self.staged.keys(), "lost, or never submitted"

    def _assert_as_expected(self, found: JobRecord, seq: int) -> None:
        submission_id = str(found.submission_id)
        assert submission_id not in self.outcomes, "decided twice"
        job = self.staged[submission_id]
        self.outcomes[submission_id] = found.outcome
        expected = self.model.decide(job)
        assert (found.job_id, found.outcome) == (job.job_id, expected.outcome)
        assert expected.code is None or expected.code in {p.code for p in found.problems}
        if expected.outcome is Outcome.COMMITTED:
            self.first[found.job_id] = seq
        if expected.outcome is Outcome.REPEATED:
            assert found.first_seq == self.first[found.job_id]
        decisions = [(a.decision, a.mode) for a in found.artifacts]
        assert decisions == ([expected.decision] if expected.decision else [])
        assert [change.op for change in found.mutations] == expected.changes
        for artifact in found.artifacts:
            key = self.model.now.delivered[job.job_id]
            assert self.ids.setdefault(key, artifact.artifact_id) == artifact.artifact_id
            stands_on = self.model.now.stands_on(key)
            sha256 = artifact.file_hash.removeprefix("sha256:")
            assert self.objects.setdefault(sha256, stands_on) == stands_on

    def _assert_the_lake_shows_what_the_model_says(self) -> None:
        now, ids, rows = self.model.now, self.ids, self.pipe.rows
        shown = {artifact_id: now.status(key) for key, artifact_id in ids.items()}
        assert dict(rows("SELECT artifact_id, status FROM artifacts")) == shown
        assert len(shown) == len(ids) == len(now.codecs)
        tags = {(ids[key], k, v) for key, k, v in now.tags}
        assert sorted(rows("SELECT artifact_id, k, v FROM artifact_tags")) == sorted(tags)
        aliases = {alias: ids[key] for alias, key in now.aliases.items()}
        assert dict(rows("SELECT alias, artifact_id FROM aliases")) == aliases
        assert self._moves() == [tuple(key and ids[key] for key in move) for move in now.moves]
        pins = {(pin, ids[key]) for pin, keys in now.pins.items() for key in keys}
        assert set(rows("SELECT pin, artifact_id FROM pins")) == pins
        reasons = {ids[key]: reason for key, reason in now.tombstoned.items()}
        held = "SELECT artifact_id, reason FROM tombstone_facts WHERE ended_seq IS NULL"
        assert dict(rows(held)) == reasons
        assert set(rows("SELECT * FROM artifact_supersedes")) == self._by_id(now.supersedes)
        assert set(rows("SELECT * FROM artifact_lineage")) == self._by_id(now.made_from)
        assert self.pipe.links() == {a for a, status in shown.items() if status == "active"}
        self._assert_every_submission_has_its_answer()

    def _by_id(self, edges: Edges) -> set[tuple[str, str]]:
        return {(self.ids[start], self.ids[end]) for start, end in edges}

    def _moves(self) -> list[tuple[str | None, str | None]]:
        if not self.model.now.moves:
            return []  # an alias that never was is not found
        found = alias_history(self.pipe.lake, f"{KIND}:best")
        return [(move["from"], move["to"]) for move in reversed(found)]

    def _assert_every_submission_has_its_answer(self) -> None:
        lake = self.pipe.lake
        receipts = [Receipt.from_bytes(p.read_bytes()) for p in lake.processed.glob("*/receipt.*")]
        reasons = [RejectReason.from_bytes(p.read_bytes()) for p in lake.rejected.glob("*/REJECT*")]
        told_no = {s for s, outcome in self.outcomes.items() if outcome is Outcome.REJECTED}
        answered = sorted(str(answer.submission_id) for answer in receipts)
        assert answered == sorted(self.outcomes.keys() - told_no)
        assert sorted(str(answer.submission_id) for answer in reasons) == sorted(told_no)
        for receipt in receipts:
            assert receipt.seq == self.first[receipt.job_id]

    # ── the end ───────────────────────────────────────────────────────────────────────────────

    def teardown(self) -> None:
        try:
            self.drain()
            for key, path in self._paths().items():
                if self.model.now.status(key) != "purged":
                    assert pq.read_table(path) == table(key[1])
            assert self.scene.findings() == []
            if next(self.examples) % WHOLE_EVERY == 0:
                self._assert_the_real_catalog_agrees()
        finally:
            self.patch.undo()
            shutil.rmtree(self.scene.root)

    def _paths(self) -> dict[Key, str]:
        paths = dict(self.pipe.rows("SELECT artifact_id, path_parquet FROM artifacts"))
        return {key: paths[artifact_id] for key, artifact_id in self.ids.items()}

    def _assert_the_real_catalog_agrees(self) -> None:
        self.patch.setattr(writer_module, "Catalog", Catalog)
        self.scene.light = False
        LightCatalog.delete(self.pipe.lake)
        self.pipe.run()
        assert self.scene.findings() == []
        status = {self.ids[key]: self.model.now.status(key) for key in self.ids}
        sql = f"SELECT DISTINCT artifact_id, status FROM catalog.artifacts_asof({self.seq})"
        found = select(self.pipe.lake, self.pipe.settings, sql)[1]
        assert sorted(found) == sorted(status.items())


def test_no_sequence_of_submissions_kills_and_losses_leads_away_from_the_model(
    campaign: Campaign,
) -> None:
    examples = campaign.size(short=EXAMPLES, long=LONG_EXAMPLES)
    run_state_machine_as_test(
        BusMachine,
        settings=hypothesis.settings(max_examples=examples, stateful_step_count=STEPS),
    )
