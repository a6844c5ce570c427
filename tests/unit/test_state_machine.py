"""Any sequence of submissions, changes, kills and losses against a model in plain dicts.

The order in which jobs that wait together are decided is the bus's own affair: the model takes it
from the journal. Everything else (that each acknowledged submission is there, once, what became of
it, and what the lake shows afterwards) it works out by itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
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
from bus.disk import CRASH_POINTS
from bus.errors import JobConflict
from bus.lake import COMMIT
from bus.manifest import Manifest
from bus.model import CommitMarker, JobState, Outcome, Receipt, RejectReason
from tests.crash_kit import Job, Scene
from tests.pipeline import KIND, LightCatalog, Pipeline, table

if TYPE_CHECKING:
    from bus.model import JobRecord

EXAMPLES = 20
STEPS = 12
#: One example in so many ends with a look at the real catalog, which takes a second.
WHOLE_EVERY = 7
ON_THEIR_WAY = (JobState.STAGED, JobState.VALIDATING, JobState.READY)

#: (logical key, number of the table): what tells artifacts apart.
Key = tuple[str, int]

# Small pools, so that names and tables meet often.
IDS = st.sampled_from(["j0", "j1", "j2"])
OTHER_IDS = st.sampled_from([f"d{n}" for n in range(8)])
CHANGE_IDS = st.sampled_from([f"m{n}" for n in range(12)])
WHICH = st.integers(0, 11)
NUMBERS = st.integers(0, 1)
KEYS = st.sampled_from(["ka", "kb"])
CODECS = st.sampled_from(["zstd", "snappy"])
TAGS = st.sampled_from(["red", "blue"])
OP = st.sampled_from(["tag", "untag", "alias", "alias", "no alias"])
STAGING_POINTS = [point for point in CRASH_POINTS if point.startswith("stage.")]
POINTS = [p for p in CRASH_POINTS if p not in STAGING_POINTS and p != "export.built"]
#: What is wrong with a job, and the code that says so.
FAULTS = {"a wrong hash": "E304", "a missing column": "E202", "a torn file": "E308"}


@dataclass
class Expected:
    """What must become of a job."""

    outcome: Outcome
    code: str | None = None
    decision: tuple[str, str | None] | None = None


def rejected(code: str) -> Expected:
    return Expected(Outcome.REJECTED, code)


class Model:
    """What holds after the jobs decided so far."""

    def __init__(self) -> None:
        self.committed: dict[str, Job] = {}
        self.delivered: dict[str, Key] = {}
        self.codecs: dict[Key, str] = {}
        self.tombstoned: set[Key] = set()
        self.supersedes: set[tuple[Key, Key]] = set()
        self.tags: set[tuple[Key, str, str]] = set()
        self.aliases: dict[str, Key] = {}

    def decide(self, job: Job) -> Expected:
        if (fault := fault_of(job)) is not None:
            return rejected(FAULTS[fault])
        if job.job_id in self.committed:
            same = self.committed[job.job_id] == replace(job, codec="zstd")
            return Expected(Outcome.REPEATED) if same else rejected("E105")
        expected = self._change(job) if "mutations" in job.fields else self._add(job)
        if expected.outcome is Outcome.COMMITTED:
            self.committed[job.job_id] = replace(job, codec="zstd")
        return expected

    def _add(self, job: Job) -> Expected:
        key = (job.keys[0], job.tables[0])
        known = self.codecs.get(key)
        if known is not None and key not in self.tombstoned:
            mode = "file_hash" if known == job.codec else "content_hash"
            decision: tuple[str, str | None] = ("deduped", mode)
        else:
            decision = ("created" if known is None else "revived", None)
            self.codecs[key] = job.codec
            self.tombstoned.discard(key)
        self.delivered[job.job_id] = key
        self._tag(key, job.entries.get("tags", {}))
        return Expected(Outcome.COMMITTED, decision=decision)

    def _tag(self, key: Key, tags: dict[str, str]) -> None:
        self.tags |= {(key, k, v) for k, v in tags.items()}

    def _change(self, job: Job) -> Expected:
        (change,) = job.fields["mutations"]
        references = [change[field] for field in ("target", "by") if change.get(field)]
        meant = [self.delivered.get(text[4:].partition("/")[0]) for text in references]
        keys = [key for key in meant if key is not None]
        if len(keys) < len(references):
            return rejected("E403")
        if change["op"] == "supersede" and self._leads(*keys):
            return rejected("E402")
        self._apply(change, keys)
        return Expected(Outcome.COMMITTED)

    def _leads(self, start: Key, end: Key) -> bool:
        """Whether `end` is `start`, or superseded by it, directly or not."""
        nexts = [old for new, old in self.supersedes if new == start]
        return start == end or any(self._leads(further, end) for further in nexts)

    def _apply(self, change: dict[str, Any], keys: list[Key]) -> None:
        match change["op"]:
            case "tombstone":
                self.tombstoned.add(keys[0])
            case "supersede":
                self.supersedes.add((keys[1], keys[0]))
            case "tag":
                self._tag(keys[0], change["tags"])
            case "untag":
                self.tags -= {(keys[0], k, v) for k, v in change["tags"].items()}
            case "alias" if keys:
                self.aliases[change["alias"]] = keys[0]
            case "alias":
                self.aliases.pop(change["alias"], None)

    def status(self, key: Key) -> str:
        if key in self.tombstoned:
            return "tombstoned"
        return "superseded" if any(old == key for _, old in self.supersedes) else "active"


def fault_of(job: Job) -> str | None:
    if "sha256" in job.entries:
        return "a wrong hash"
    if job.broken:
        return "a torn file"
    return "a missing column" if "kind" in job.fields else None


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
        self.model = Model()
        self.asked: list[Job] = []  # everything that was ever submitted
        self.staged: dict[str, Job] = {}  # acknowledged, by submission_id
        self.outcomes: dict[str, Outcome] = {}  # decided, by submission_id
        self.first: dict[str, int] = {}  # the commit that each committed job is in
        self.ids: dict[Key, str] = {}
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
        self._change("alias", op="alias", kind=KIND, alias="best", target=first[0])
        self._change("withdrawal", op="tombstone", target=first[1], reason="wrong")
        self._change("replacement", op="supersede", target=first[0], by=first[1])
        self.drain()

    @rule(job_id=IDS, number=NUMBERS, key=KEYS, codec=CODECS, tag=TAGS)
    def submit(self, job_id: str, number: int, key: str, codec: str, tag: str) -> None:
        entries = {"tags": {"colour": tag}}
        self._submit(Job(job_id, (number,), codec=codec, keys=(key,), entries=entries))

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

    @rule(job_id=CHANGE_IDS, which=WHICH)
    def withdraw(self, job_id: str, which: int) -> None:
        self._change(job_id, op="tombstone", target=self._reference(which), reason="wrong")

    @rule(job_id=CHANGE_IDS, old=WHICH, new=WHICH)
    def supersede(self, job_id: str, old: int, new: int) -> None:
        references = {"target": self._reference(old), "by": self._reference(new)}
        self._change(job_id, op="supersede", **references)

    @rule(job_id=CHANGE_IDS, op=OP, which=WHICH, tag=TAGS)
    def tag_or_alias(self, job_id: str, op: str, which: int, tag: str) -> None:
        reference = self._reference(which)
        if op == "no alias":
            self._change(job_id, op="alias", kind=KIND, alias="best")
        elif op == "alias":
            self._change(job_id, op="alias", kind=KIND, alias="best", target=reference)
        else:
            self._change(job_id, op=op, target=reference, tags={"colour": tag})

    def _reference(self, which: int) -> str:
        """To what a job of before delivers; the last of them may not be there yet, or never."""
        jobs = [job for job in self.asked if job.tables]
        return f"job:{jobs[which % len(jobs)].job_id}/t0"

    def _change(self, job_id: str, **change: Any) -> None:
        self._submit(Job(job_id, fields={"mutations": [change]}))

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
        for artifact in found.artifacts:
            key = self.model.delivered[job.job_id]
            assert self.ids.setdefault(key, artifact.artifact_id) == artifact.artifact_id

    def _assert_the_lake_shows_what_the_model_says(self) -> None:
        model, ids, rows = self.model, self.ids, self.pipe.rows
        assert set(rows("SELECT artifact_id, status FROM artifacts")) == {
            (artifact_id, model.status(key)) for key, artifact_id in ids.items()
        }
        assert len(set(ids.values())) == len(ids) == len(model.codecs)
        tags = {(ids[key], k, v) for key, k, v in model.tags}
        assert sorted(rows("SELECT artifact_id, k, v FROM artifact_tags")) == sorted(tags)
        aliases = {alias: ids[key] for alias, key in model.aliases.items()}
        assert dict(rows("SELECT alias, artifact_id FROM aliases")) == aliases
        supersedes = {(ids[new], ids[old]) for new, old in model.supersedes}
        assert set(rows("SELECT * FROM artifact_supersedes")) == supersedes
        assert self.pipe.links() == {ids[key] for key in ids if model.status(key) == "active"}
        self._assert_every_submission_has_its_answer()

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
        status = {self.ids[key]: self.model.status(key) for key in self.ids}
        sql = f"SELECT DISTINCT artifact_id, status FROM catalog.artifacts_asof({self.seq})"
        found = select(self.pipe.lake, self.pipe.settings, sql)[1]
        assert sorted(found) == sorted(status.items())


def test_no_sequence_of_submissions_kills_and_losses_leads_away_from_the_model() -> None:
    run_state_machine_as_test(
        BusMachine,
        settings=hypothesis.settings(max_examples=EXAMPLES, stateful_step_count=STEPS),
    )
