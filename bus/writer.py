"""The writer: the only mutator (steps 7–11). One process, one lock, numbered commits.

`Writer.drain` takes everything that lies in ready/, decides it, appends one commit record, writes
the manifest, answers every producer, and then brings the views up to date, the more eagerly the
less there is to do. Whatever it had in memory may be lost at any moment: opening it again finishes
from the journal.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

import structlog
from pydantic import ValidationError

from bus import disk, views
from bus.catalog import Catalog
from bus.decisions import decide
from bus.errors import Code, LakeBusy
from bus.hashing import file_hash
from bus.journal import GENESIS, Journal, NumberTakenError
from bus.lake import MANIFEST, OLD, RECEIPT, REJECT_REASON, VERDICT
from bus.manifest import SCHEMA_VERSION, Manifest, StaleManifestError
from bus.model import (
    CommitRecord,
    JobState,
    Outcome,
    Receipt,
    ReceiptArtifact,
    RejectReason,
    Verdict,
    iso,
    utc_now,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bus.journal import Commit
    from bus.lake import Lake
    from bus.model import JobRecord
    from bus.settings import Settings
    from bus.specs import Registry

log = structlog.get_logger("bus.writer")

_BATCH_MAX_ARTIFACTS = 5_000
_REPLAY_CHUNK = 200
_TREE_STEPS = 50
_LOCK_POLL_S = 0.2
_READY_POLL_S = 0.004


@dataclass(frozen=True, slots=True)
class Answer:
    """What a producer is told: the document that lies in its job's directory, and an event."""

    job_id: str
    submission_id: str | None
    outcome: Outcome
    seq: int
    document: bytes
    event: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DrainResult:
    """What a drain did. `more`: the budget ended first, ring again."""

    jobs: int
    seq: int
    more: bool
    exports_dirty: bool


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A judged job in ready/: its directory, and the verdict found there."""

    path: Path
    verdict: Verdict

    @property
    def job_id(self) -> str:
        return self.path.name


class Writer:
    """Holds the lake's writer lock from `open` to `close`; everything else is a method of it."""

    def __init__(
        self,
        lake: Lake,
        settings: Settings,
        registry: Registry,
        lock: disk.Lock,
        announce: Callable[[Sequence[Answer]], None],
    ) -> None:
        self._lake = lake
        self._settings = settings
        self._registry = registry
        self._lock = lock
        self._announce = announce
        self._journal = Journal(lake)
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._waiting: set[str] = set()
        self._look_at_waiting = True
        self._trees: deque[int] = deque()
        self._tree: Iterator[None] | None = None
        self._last_commit_s = 0.0
        self._next_publish_s = 0.0
        self._exports_dirty = False
        self._manifest = self._open_manifest()
        self._catalog = Catalog.open(lake, settings, registry, self._manifest)
        self._resume_views()

    @classmethod
    def open(
        cls,
        lake: Lake,
        settings: Settings,
        registry: Registry,
        *,
        announce: Callable[[Sequence[Answer]], None] = lambda _: None,
        wait_s: float = 0.0,
    ) -> Self:
        """Take the lock, replay what the manifest lacks, open the catalog.

        Waits up to `wait_s` for another writer to end, then raises `LakeBusy` (E503).
        """
        lake.create()
        deadline = time.monotonic() + wait_s
        while (lock := disk.Lock.try_acquire(lake.writer_lock)) is None:
            if time.monotonic() >= deadline:
                raise LakeBusy(
                    "another writer holds this lake", code=Code.E503, where=str(lake.writer_lock)
                )
            time.sleep(_LOCK_POLL_S)
        try:
            lock.write(f"{os.getpid()}\n".encode())
            return cls(lake, settings, registry, lock, announce)
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        """Close the views and give the lock up."""
        self._manifest.note_progress(self._progress())
        self._catalog.close()
        self._manifest.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def seq(self) -> int:
        """The newest commit."""
        return self._manifest.applied[0]

    # ── start-up: the journal is the truth, the manifest catches up ───────────────────────────

    def _open_manifest(self) -> Manifest:
        manifest = Manifest.open(self._lake)
        if not self._continues_journal(manifest):
            log.warning("manifest_rebuilt", reason="it does not continue the journal")
            manifest.close()
            Manifest.delete(self._lake)
            manifest = Manifest.open(self._lake)
        self._replay(manifest)
        return manifest

    def _continues_journal(self, manifest: Manifest) -> bool:
        meta = manifest.meta()
        if meta.get("schema_version") != SCHEMA_VERSION:
            return False
        if meta["objects_root"] != self._lake.public(self._lake.objects):
            return False
        seq, sha256 = manifest.applied
        if seq == 0:
            return bool(sha256 == GENESIS)
        commit = self._journal.read(seq)
        return commit is not None and commit.sha256 == sha256

    def _replay(self, manifest: Manifest) -> None:
        """Apply every commit the manifest lacks; the newest is synced before we rely on it."""
        chunk: list[Commit] = []
        for commit in self._journal.after(*manifest.applied):
            chunk.append(commit)
            if len(chunk) >= _REPLAY_CHUNK:
                manifest.apply(chunk)
                chunk.clear()
        manifest.apply(chunk)
        seq, _ = manifest.applied
        if seq:
            self._journal.sync(seq)

    def _resume_views(self) -> None:
        """Queue the link work that a predecessor did not note as done."""
        seq = self.seq
        for number in range(self._manifest.progress("links") + 1, seq + 1):
            self._link(self._commit_of(number).record)
        self._trees.extend(range(self._manifest.progress("trees") + 1, seq + 1))
        self._exports_dirty = self._manifest.progress("exports") < seq

    def _commit_of(self, seq: int) -> Commit:
        commit = self._journal.read(seq)
        if commit is None:
            raise StaleManifestError(seq)
        return commit

    # ── the loop ──────────────────────────────────────────────────────────────────────────────

    def drain(self, budget_s: float = 5.0) -> DrainResult:
        """Commit and answer all that is ready, then publish; ends when idle or out of time."""
        self._mend_views()
        deadline = time.monotonic() + budget_s
        jobs = 0
        while True:
            done = self._commit_ready()
            jobs += done
            busy = done > 0 or not self._bring_views_forward()
            if not busy:
                break
            if time.monotonic() >= deadline:
                break
        exports_dirty, self._exports_dirty = self._exports_dirty, False
        self._manifest.note_progress(self._progress())
        return DrainResult(jobs, self.seq, busy, exports_dirty)

    def _commit_ready(self) -> int:
        """Steps 7–10 for one batch; how many jobs were answered."""
        self._keep_pace()
        candidates = self._select()
        if not candidates:
            return 0
        answered = self._finish_decided(candidates)
        fresh = [c for c in candidates if c.verdict.verdict_id not in answered]
        return len(answered) + self._commit(fresh)

    def _keep_pace(self) -> None:
        """Under load, let a batch gather; at once when the last commit is long ago."""
        early_s = self._last_commit_s + self._settings.commit_pace_s - time.monotonic()
        if early_s > 0:
            time.sleep(early_s)

    # ── step 7: select and decide ─────────────────────────────────────────────────────────────

    def _select(self) -> list[_Candidate]:
        found: list[_Candidate] = []
        artifacts = 0
        look_at_waiting, self._look_at_waiting = self._look_at_waiting, False
        for entry in self._lake.listing(JobState.READY):
            if entry.name in self._waiting and not look_at_waiting:
                continue
            candidate = self._read(self._lake.ready / entry.name)
            if candidate is None:
                continue
            found.append(candidate)
            artifacts += len(candidate.verdict.artifacts)
            full = len(found) >= self._settings.batch_max_jobs
            if full or artifacts >= _BATCH_MAX_ARTIFACTS:
                break
        return found

    def _read(self, path: Path) -> _Candidate | None:
        """The job's verdict, if it judged the manifest that lies beside it; else back to work/."""
        try:
            verdict = Verdict.from_bytes((path / VERDICT).read_bytes())
            if verdict.manifest_sha256 is not None:
                judged = file_hash(path / MANIFEST).removeprefix("sha256:")
                if judged != verdict.manifest_sha256:
                    raise ValueError("the manifest changed after it was judged")  # noqa: TRY301 - one road back
        except (FileNotFoundError, ValidationError, ValueError) as error:
            self._send_back(path, str(error))
            return None
        return _Candidate(path, verdict)

    def _send_back(self, path: Path, reason: str) -> None:
        if not path.is_dir():
            return  # removed by hand: nothing was committed, nothing is left to answer
        log.warning("verdict_refused", job_id=path.name, reason=reason)
        old = path / OLD
        old.mkdir(exist_ok=True)
        if (path / VERDICT).exists():
            disk.replace(path / VERDICT, old / f"{VERDICT}.{time.time_ns()}")
        disk.move(path, self._lake.work / path.name)

    def _finish_decided(self, candidates: list[_Candidate]) -> set[str]:
        """Answer what a predecessor committed and did not answer; their verdict ids."""
        by_id = {c.verdict.verdict_id: c for c in candidates}
        known = dict(self._manifest.among("known_verdicts", by_id))
        for seq in sorted(set(known.values())):
            commit = self._commit_of(seq)
            ours = {j.verdict_id for j in commit.record.jobs} & by_id.keys()
            self._answer([by_id[v] for v in sorted(ours)], commit.record)
        return set(known)

    # ── steps 8 and 9: commit and index ───────────────────────────────────────────────────────

    def _commit(self, candidates: list[_Candidate]) -> int:
        if not candidates:
            return 0
        seq, prev = self._manifest.applied
        now = self._next_moment()
        decisions = decide(
            [c.verdict for c in candidates],
            self._manifest,
            now=now,
            lineage_wait_s=self._settings.lineage_wait_s,
        )
        disk.crash_point("commit.decided")
        self._waiting = (self._waiting - {c.job_id for c in candidates}) | decisions.waiting.keys()
        by_id = {c.verdict.verdict_id: c for c in candidates}
        records = [r for r in decisions.records if self._has_objects(r, by_id[r.verdict_id])]
        if not records:
            return 0
        record = CommitRecord(
            seq=seq + 1, prev=prev, committed_at_utc=iso(now), writer=self._name, jobs=records
        )
        try:
            commit = self._journal.append(record)
        except NumberTakenError:
            log.warning("fenced", seq=seq + 1)
            self._replay(self._manifest)
            return 0
        self._manifest.apply([commit], self._progress())
        disk.crash_point("index.done")
        self._last_commit_s = time.monotonic()
        self._look_at_waiting = True
        self._answer([by_id[r.verdict_id] for r in records], record)
        self._follow(record)
        return len(records)

    def _next_moment(self) -> datetime:
        """Now, but always later than the newest commit: clocks may jump back."""
        now = utc_now()
        newest = self._manifest.rows("SELECT max(committed_at_utc) FROM commits")[0][0]
        if newest is None:
            return now
        return max(now, datetime.fromisoformat(newest) + timedelta(microseconds=1))

    def _has_objects(self, record: JobRecord, candidate: _Candidate) -> bool:
        """Whether every object the record relies on is there; a missing one is linked again."""
        relpaths = {facts.name: facts.relpath for facts in candidate.verdict.artifacts}
        for artifact in record.artifacts:
            target = self._lake.object_path(artifact.sha256)
            if target.exists() or artifact.mode == "content_hash":
                continue
            source = candidate.path / relpaths[artifact.name]
            if not source.exists() or file_hash(source) != artifact.file_hash:
                self._send_back(candidate.path, f"object {artifact.sha256} is missing")
                return False
            target.parent.mkdir(exist_ok=True)
            disk.sync_file(source)
            disk.link_new(source, target)
            disk.sync_dir(target.parent)
        return True

    # ── step 10: answer ───────────────────────────────────────────────────────────────────────

    def _answer(self, candidates: list[_Candidate], record: CommitRecord) -> None:
        """Write receipts and reasons, sync them together, move the jobs, tell the producers."""
        jobs = {job.verdict_id: job for job in record.jobs}
        answers: list[tuple[_Candidate, JobRecord, Answer]] = []
        for candidate in candidates:
            job = jobs[candidate.verdict.verdict_id]
            answer = self._answer_to(candidate, job, record)
            if self._write_answer(candidate, job, answer):
                answers.append((candidate, job, answer))
        for candidate, job, _ in answers:
            disk.sync_file(candidate.path / _answer_name(job))
        for candidate, job, _ in answers:
            self._clear(candidate, job)
            disk.sync_dir(candidate.path)
            disk.crash_point("answer.written")
            disk.move(candidate.path, self._lake.free_name(_final_state(job), candidate.job_id))
            disk.crash_point("answer.moved")
        for state in {_final_state(job) for _, job, _ in answers}:
            disk.sync_dir(self._lake.state_dir(state))
        self._announce([answer for *_, answer in answers])
        disk.crash_point("answer.done")

    def _answer_to(self, candidate: _Candidate, job: JobRecord, record: CommitRecord) -> Answer:
        if job.outcome is Outcome.REJECTED:
            document = self._reason(candidate, job, record).to_bytes()
        else:
            document = self._receipt(candidate, job, record).to_bytes()
        event = {
            "job_id": candidate.job_id,
            "outcome": str(job.outcome),
            "seq": record.seq,
            "run_id": job.run_id,
            "producer": job.producer,
            "kind": job.kind,
            "at": record.committed_at_utc,
            "artifacts": [
                {"artifact_id": a.artifact_id, "name": a.name, "kind": a.kind}
                for a in job.artifacts
            ],
            "problems": [p.code for p in job.problems],
        }
        return Answer(
            candidate.job_id, job.submission_id, job.outcome, record.seq, document, event
        )

    def _receipt(self, candidate: _Candidate, job: JobRecord, record: CommitRecord) -> Receipt:
        warnings = list(job.warnings)
        if job.outcome is Outcome.REPEATED and job.first_seq is not None:
            record = self._commit_of(job.first_seq).record
            done = (Outcome.COMMITTED, candidate.job_id)
            job = next(j for j in record.jobs if (j.outcome, j.job_id) == done)
            warnings.append("repeated: this job was committed before; nothing was added")
        return Receipt(
            job_id=candidate.job_id,
            submission_id=candidate.verdict.submission_id,
            job_digest=job.job_digest,
            seq=record.seq,
            status=str(Outcome.COMMITTED),
            committed_at_utc=record.committed_at_utc,
            warnings=warnings,
            artifacts=[
                ReceiptArtifact(
                    name=a.name,
                    artifact_id=a.artifact_id,
                    deduped=a.decision == "deduped",
                    mode=a.mode,
                    file_hash=a.file_hash,
                    content_hash=a.content_hash,
                    rows=a.rows,
                    path=self._lake.public(self._lake.object_path(a.sha256)),
                    warnings=a.warnings,
                )
                for a in job.artifacts
            ],
        )

    def _reason(
        self, candidate: _Candidate, job: JobRecord, record: CommitRecord
    ) -> RejectReason:
        first = job.problems[0]
        return RejectReason(
            code=first.code,
            message=first.message,
            hint=first.hint,
            problems=job.problems,
            job_id=candidate.job_id,
            submission_id=job.submission_id,
            rejected_at_utc=record.committed_at_utc,
            seq=record.seq,
        )

    def _write_answer(self, candidate: _Candidate, job: JobRecord, answer: Answer) -> bool:
        try:
            disk.write_plain(candidate.path / _answer_name(job), answer.document)
        except FileNotFoundError:
            log.warning("job_vanished", job_id=candidate.job_id)
            return False
        return True

    def _clear(self, candidate: _Candidate, job: JobRecord) -> None:
        """Accepted: the Parquet lives in objects/ now. Rejected: share no inode with the store."""
        for facts in candidate.verdict.artifacts:
            path = candidate.path / facts.relpath
            if job.outcome is not Outcome.REJECTED:
                disk.remove(path)
            elif path.exists() and path.stat().st_nlink > 1:
                private = path.with_name(f".{path.name}.own")
                disk.copy_file(path, private)
                disk.publish_file(private, path)

    # ── step 11: views ────────────────────────────────────────────────────────────────────────

    def _follow(self, record: CommitRecord) -> None:
        self._link(record)
        disk.crash_point("views.linked")
        self._trees.append(record.seq)
        self._exports_dirty = True

    def _link(self, record: CommitRecord) -> None:
        views.link_artifacts(self._lake, record)
        views.unlink_inactive(self._lake, record, self._manifest)

    def _bring_views_forward(self) -> bool:
        """One slice of view work while nothing is ready; True when nothing is left to do."""
        if self._catalog.applied_seq < self.seq or not self._lake.catalog_db.exists():
            if self._in_flight() and time.monotonic() < self._next_publish_s:
                time.sleep(_READY_POLL_S)
            else:
                self._publish()
            return False
        return not self._build_some_trees()

    def _in_flight(self) -> bool:
        """Whether validators have work: then more commits come soon, and snapshots can wait."""
        states = (JobState.VALIDATING, JobState.STAGED)
        return any(self._lake.count(state) for state in states)

    def _publish(self) -> None:
        started_s = time.monotonic()
        self._catalog.catch_up(self._manifest)
        self._catalog.publish(self._lock.is_ours)
        disk.crash_point("views.published")
        cost_s = time.monotonic() - started_s
        self._next_publish_s = started_s + cost_s / self._settings.publish_share

    def _build_some_trees(self) -> bool:
        """Some link-tree work; False when there is none."""
        if self._tree is None:
            if not self._trees:
                return False
            self._tree = views.build_trees(self._lake, self._commit_of(self._trees[0]).record)
        if not views.take(self._tree, _TREE_STEPS):
            self._tree = None
            self._trees.popleft()
        return True

    def _progress(self) -> dict[str, int]:
        """How far the file views are; written beside the next commit, so it may lag, never lead."""
        seq = self._manifest.applied[0]
        trees = self._trees[0] - 1 if self._trees else seq
        return {"links": seq, "trees": trees}

    # ── mending and rebuilding ────────────────────────────────────────────────────────────────

    def _mend_views(self) -> None:
        """Somebody deleted the manifest under us, or asked for a rebuild: make it again."""
        if self._lake.rebuild_request.exists():
            self.rebuild()
            disk.remove(self._lake.rebuild_request)
        elif not self._lake.manifest_db.exists():
            log.warning("manifest_rebuilt", reason="the file was deleted")
            self.rebuild()

    def rebuild(self, *, trees: bool = True) -> None:
        """Recreate every view from objects and journal; run trees follow in the background."""
        self._catalog.close()
        self._manifest.close()
        Manifest.delete(self._lake)
        Catalog.delete(self._lake)
        self._trees.clear()
        self._tree = None
        self._manifest = self._open_manifest()
        self._resume_views()
        views.prune_artifacts(self._lake, self._manifest)
        self._catalog = Catalog.open(self._lake, self._settings, self._registry, self._manifest)
        self._publish()
        if not trees:
            self._trees.clear()


def _answer_name(job: JobRecord) -> str:
    return REJECT_REASON if job.outcome is Outcome.REJECTED else RECEIPT


def _final_state(job: JobRecord) -> JobState:
    return JobState.REJECTED if job.outcome is Outcome.REJECTED else JobState.COMMITTED
