"""The writer: the only mutator (steps 7–11). One process, one lock, numbered commits.

`Writer.drain` takes everything that lies in ready/, decides it, appends one commit record, writes
the manifest, answers every producer, and then brings the views up to date, the more eagerly the
less there is to do. Whatever it had in memory may be lost at any moment: opening it again finishes
from the journal.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import structlog

from bus import answers, checkpoints, disk, ours, retention, standing, views
from bus.catalog import Catalog
from bus.checkpoints import Checkpointer
from bus.decisions import brought, decide
from bus.errors import Code, LakeBusy
from bus.journal import Journal, NumberTakenError, in_chunks, reading_much
from bus.lake import MANIFEST, RECEIPT, REJECT_REASON, VERDICT, Remake
from bus.manifest import BrokenManifestError, StaleManifestError
from bus.model import (
    CommitRecord,
    JobState,
    Outcome,
    Verdict,
    iso,
    utc_now,
)
from bus.trash import Trash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bus.decisions import Decisions
    from bus.journal import Commit
    from bus.lake import Lake, Waiting
    from bus.model import JobRecord
    from bus.settings import Settings
    from bus.specs import Registry

log = structlog.get_logger("bus.writer")

#: A job that cannot go back to work/ yet is looked at again after this.
_SEND_BACK_AGAIN_S = 1.0
#: What a producer has done to its judged job, and not a fault of ours.
_THEIRS = disk.FOREIGN_ERRNOS | {errno.ENOENT}
_BATCH_MAX_ARTIFACTS = 5_000
_TREE_STEPS = 50
_LOCK_POLL_S = 0.2
_READY_POLL_S = 0.004
_LINGER_POLL_S = 0.002


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
    """A judged job in ready/: where it lies (a text: making paths is slow), since when, its verdict."""

    job_id: str
    place: str
    changed_at_s: float
    verdict: Verdict

    @property
    def path(self) -> Path:
        return Path(self.place)


@dataclass(frozen=True, slots=True)
class _Wait:
    """Why a job stays in ready/, and when to look at it again.

    When all of the references are committed, when its time is over, or when another submission lies
    under its name.
    """

    changed_at_s: float
    references: set[str]
    until: datetime


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
        # The token tells this writer from others whose container gave them the same pid.
        self._name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._waiting: dict[str, _Wait] = {}
        self._linked = 0  # artifact links are right up to this commit
        self._treed = 0  # sidecars and run trees are there up to this commit
        self._tree: Iterator[None] | None = None
        self._trash = Trash(lake, settings.trash_days)
        self._shown = -1  # the commit up to which this writer has seen to the published catalog
        self._last_commit_s = 0.0
        self._next_publish_s = 0.0
        self._journal.sweep()
        self._manifest = checkpoints.open_manifest(lake, self._journal)
        self._catch_up()
        after_a_boot = lake.boot_of_views() != disk.boot_id()
        if after_a_boot:
            self._mend_files(whole=False)
        self._exports_dirty = self._manifest.progress("exports") < self.seq
        checkpoints.seed_catalog(lake, self._journal)
        self._catalog = Catalog.open(lake, settings, registry, self._manifest)
        self._checkpointer = Checkpointer(
            lake, self._journal, settings.checkpoint_every, after_a_boot=after_a_boot
        )

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
        try:
            if self._lock.is_ours():
                self._manifest.note_progress(self._progress())
        finally:  # a full disk takes no note
            self._checkpointer.close()
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

    def _catch_up(self) -> None:
        """Apply what the manifest lacks and link what that added; each record is read once."""
        seq, sha256 = self._manifest.applied
        if self._manifest.is_begun:
            self._journal.check_gapless()
        self._linked = self._manifest.progress("links")
        self._treed = self._manifest.progress("trees")
        if not self._manifest.is_begun:  # else all links are made at once, when it is finished
            self._link_until(seq)
        with reading_much():
            for chunk in in_chunks(self._journal.after(seq, sha256)):
                self._manifest.apply(chunk, self._progress())
                if not self._manifest.is_begun:
                    for commit in chunk:
                        self._link(commit.record)
        self._check_fence()
        self._manifest = self._manifest.finish(self._lake)
        if self.seq:  # whoever wrote the newest record may have died before it was durable
            self._journal.sync(self.seq)

    def _mend_files(self, *, whole: bool) -> None:
        """Links, trees and the catalog's working copy are never synced: a power cut takes of them.

        Nor does anybody know of them who begins another manifest. `whole`: look also whether each
        link shows the right bytes.
        """
        Catalog.delete(self._lake)
        self._match_links(whole=whole)
        disk.replace_view(self._lake.boot_mark, disk.boot_id().encode())

    def _match_links(self, *, whole: bool) -> None:
        """All links at once, by what holds now; the trees follow again."""
        standing.set_aside_damaged(self._lake, self._manifest)
        views.match_artifacts(self._lake, self._manifest, whole=whole)
        self._linked = self.seq
        self._tree = None
        self._treed = 0
        self._trash.begin_again(self._manifest)
        self._manifest.note_progress(self._progress())

    def _commit_of(self, seq: int) -> Commit:
        commit = self._journal.read(seq)
        if commit is None:
            raise StaleManifestError(seq)
        return commit

    # ── the loop ──────────────────────────────────────────────────────────────────────────────

    def drain(self, budget_s: float = 5.0, linger_s: float = 0.0) -> DrainResult:
        """Commit and answer all that is ready, then publish; ends when idle or out of time.

        For `linger_s` it is not idle yet while validators have work. Raises `LakeBusy` (E503) when
        the lock is no longer ours: another writer is at work.
        """
        try:
            return self._drain(budget_s, linger_s)
        except BrokenManifestError as error:
            log.warning("manifest_rebuilt", reason=str(error))
            self.rebuild()
            return self._drain(budget_s, linger_s)

    def _drain(self, budget_s: float, linger_s: float) -> DrainResult:
        self._check_fence()
        self._mend_views()
        begin_s = time.monotonic()
        deadline_s, linger_until_s = begin_s + budget_s, begin_s + linger_s
        jobs = 0
        while True:
            coming = time.monotonic() < linger_until_s and self._in_flight()
            looked, answered = self._commit_ready()
            jobs += answered
            busy = looked > 0 or not self._bring_views_forward()
            if not (busy or coming) or time.monotonic() >= deadline_s:
                break
            if not busy:
                time.sleep(_LINGER_POLL_S)
        exports_dirty, self._exports_dirty = self._exports_dirty, False
        self._manifest.note_progress(self._progress())
        if not busy:
            self._checkpointer.look(self._manifest)
        return DrainResult(jobs, self.seq, busy, exports_dirty)

    def _commit_ready(self) -> tuple[int, int]:
        """Steps 7–10 for one batch; how many jobs were looked at, and how many answered."""
        self._keep_pace()
        candidates = self._select()
        if not candidates:
            return 0, 0
        self._check_fence()
        decided = self._finish_decided(candidates)
        fresh = [c for c in candidates if c.verdict.verdict_id not in decided]
        return len(candidates), len(decided) + self._commit(fresh)

    def _keep_pace(self) -> None:
        """Under load, let a batch gather; at once when the last commit is long ago."""
        early_s = self._last_commit_s + self._settings.commit_pace_s - time.monotonic()
        if early_s > 0 and self._lake.has_any(JobState.READY):
            time.sleep(early_s)

    def _check_fence(self) -> None:
        """Somebody deleted the lock file: another writer may hold a new one, so we must end."""
        if not self._lock.is_ours():
            raise LakeBusy(
                "the lock file was replaced; another writer may be at work",
                code=Code.E503,
                where=str(self._lake.writer_lock),
            )

    # ── step 7: select and decide ─────────────────────────────────────────────────────────────

    def _select(self) -> list[_Candidate]:
        found: list[_Candidate] = []
        artifacts = 0
        now = utc_now()
        for entry in self._lake.listing(JobState.READY):
            wait = self._waiting.get(entry.name)
            if wait and wait.changed_at_s == entry.changed_at_s and now < wait.until:
                continue
            candidate = self._read(entry)
            if candidate is None:
                continue
            found.append(candidate)
            artifacts += len(candidate.verdict.artifacts)
            full = len(found) >= self._settings.batch_max_jobs
            if full or artifacts >= _BATCH_MAX_ARTIFACTS:
                break
        return found

    def _read(self, entry: Waiting) -> _Candidate | None:
        """The job's verdict, if it judged the manifest that lies beside it; else back to work/."""
        place = f"{self._lake.ready}/{entry.name}"
        try:
            verdict = Verdict.from_bytes(disk.read(f"{place}/{VERDICT}"))
            if verdict.job_id != entry.name:
                raise ValueError("the verdict is another job's")  # noqa: TRY301 - one road back
            if verdict.manifest_sha256 is not None:
                judged = disk.sha256_of(disk.read(f"{place}/{MANIFEST}"))
                if judged != verdict.manifest_sha256:
                    raise ValueError("the manifest changed after it was judged")  # noqa: TRY301 - one road back
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in _THEIRS:
                raise
            self._send_back(entry.name, entry.changed_at_s, str(error))
            return None
        return _Candidate(entry.name, place, entry.changed_at_s, verdict)

    def _send_back(self, name: str, changed_at_s: float, reason: str) -> None:
        """To be judged once more; one that cannot go keeps nobody waiting."""
        path = self._lake.ready / name
        ours.send_back(path, self._lake.work, reason)
        if path.exists():
            until = utc_now() + timedelta(seconds=_SEND_BACK_AGAIN_S)
            self._waiting[name] = _Wait(changed_at_s, set(), until)

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
            spoken_of=lambda: retention.spoken_of(self._lake),
        )
        disk.crash_point("commit.decided")
        self._note_waiting(candidates, decisions)
        by_id = {c.verdict.verdict_id: c for c in candidates}
        whole = [self._on_objects(r, by_id[r.verdict_id]) for r in decisions.records]
        records = [record for record in whole if record is not None]
        if not records or len(records) < len(whole):
            return 0  # others of the batch may build on what is missing: decide again without it
        record = CommitRecord(
            seq=seq + 1, prev=prev, committed_at_utc=iso(now), writer=self._name, jobs=records
        )
        # Of a job that came back in another place than ready/, a second verdict would be asked for.
        disk.sync_dir(self._lake.ready)
        try:
            commit = self._journal.append(record)
        except NumberTakenError:
            log.warning("number_taken", seq=seq + 1)
            self._check_fence()
            self._catch_up()
            self._waiting.clear()
            return 0
        self._manifest.apply([commit], self._progress())
        disk.crash_point("index.done")
        self._last_commit_s = time.monotonic()
        self._exports_dirty = True
        self._wake(record)
        self._answer([by_id[r.verdict_id] for r in records], record)
        self._link_until(record.seq - 1)
        self._link(record)
        disk.crash_point("views.linked")
        return len(records)

    def _note_waiting(self, candidates: list[_Candidate], decisions: Decisions) -> None:
        patience = timedelta(seconds=self._settings.lineage_wait_s)
        for candidate in candidates:
            self._waiting.pop(candidate.job_id, None)
            if references := decisions.waiting.get(candidate.job_id):
                until = datetime.fromisoformat(candidate.verdict.judged_at_utc) + patience
                self._waiting[candidate.job_id] = _Wait(
                    candidate.changed_at_s, set(references), until
                )

    def _wake(self, record: CommitRecord) -> None:
        """Look again at jobs for which this commit brought the last of what they waited for."""
        there = set().union(*map(brought, record.jobs))
        for job_id, wait in list(self._waiting.items()):
            if wait.references and wait.references <= there:
                del self._waiting[job_id]
            else:
                wait.references.difference_update(there)

    def _next_moment(self) -> datetime:
        """Now, but always later than the newest commit: clocks may jump back."""
        now = utc_now()
        newest = self._manifest.named("newest_moment", ())
        if not newest:
            return now
        return max(now, datetime.fromisoformat(newest[0][0]) + timedelta(microseconds=1))

    def _on_objects(self, record: JobRecord, candidate: _Candidate) -> JobRecord | None:
        """The record on objects that are there; None when the job must be judged again for them."""
        try:
            return standing.on_objects(self._lake, record, candidate.verdict, candidate.place)
        except standing.MissingObjectError as missing:
            reason = f"object {missing} is missing"
            self._send_back(candidate.job_id, candidate.changed_at_s, reason)
            return None

    # ── step 10: answer ───────────────────────────────────────────────────────────────────────

    def _answer(self, candidates: list[_Candidate], record: CommitRecord) -> None:
        """Write receipts and reasons, sync them together, move the jobs, tell the producers."""
        self._check_fence()
        jobs = {job.verdict_id: job for job in record.jobs}
        written: list[tuple[_Candidate, JobRecord, Answer]] = []
        for candidate in candidates:
            job = jobs[candidate.verdict.verdict_id]
            answer = self._answer_to(job, record)
            if self._write_answer(candidate, job, answer):
                written.append((candidate, job, answer))
        disk.sync_all([f"{candidate.place}/{_answer_name(job)}" for candidate, job, _ in written])
        for candidate, job, _ in written:
            self._clear(candidate, job)
        disk.sync_all([candidate.place for candidate, *_ in written])
        for candidate, job, _ in written:
            disk.crash_point("answer.written")
            self._check_fence()  # if we slept here, another submission may lie under this name
            disk.move(candidate.place, self._lake.free_place(_final_state(job), candidate.job_id))
            disk.crash_point("answer.moved")
        for state in {_final_state(job) for _, job, _ in written}:
            disk.sync_dir(self._lake.state_dir(state))
        self._announce([answer for *_, answer in written])
        disk.crash_point("answer.done")
        self._check_fence()

    def _answer_to(self, job: JobRecord, record: CommitRecord) -> Answer:
        if job.outcome is Outcome.REJECTED:
            document = answers.reason(job, record).to_bytes()
        else:
            first = record if job.first_seq is None else self._commit_of(job.first_seq).record
            document = answers.receipt(self._lake, job, first).to_bytes()
        event = answers.event(job, record)
        return Answer(job.job_id, job.submission_id, job.outcome, record.seq, document, event)

    def _write_answer(self, candidate: _Candidate, job: JobRecord, answer: Answer) -> bool:
        try:
            disk.write_own(f"{candidate.place}/{_answer_name(job)}", answer.document)
        except FileNotFoundError:
            log.warning("job_vanished", job_id=candidate.job_id)
            return False
        return True

    def _clear(self, candidate: _Candidate, job: JobRecord) -> None:
        """Accepted: the Parquet lives in objects/ now. Rejected: share no inode with the store."""
        for facts in candidate.verdict.artifacts:
            place = f"{candidate.place}/{facts.relpath}"
            answers.clear_file(place, rejected=job.outcome is Outcome.REJECTED)

    # ── step 11: views ────────────────────────────────────────────────────────────────────────

    def _link(self, record: CommitRecord) -> None:
        views.link_artifacts(self._lake, record)
        views.unlink_inactive(self._lake, record, self._manifest)
        standing.follow(self._lake, record, self._manifest)
        self._linked = record.seq

    def _link_until(self, seq: int) -> None:
        """Do what an earlier drain or writer committed and did not link."""
        for number in range(self._linked + 1, seq + 1):
            self._link(self._commit_of(number).record)

    def _bring_views_forward(self) -> bool:
        """One slice of view work while nothing is ready; True when nothing is left to do."""
        # A predecessor may have died between bringing the catalog forward and publishing it.
        if self._shown < self.seq or not self._lake.catalog_db.exists():
            if self._in_flight() and time.monotonic() < self._next_publish_s:
                time.sleep(_READY_POLL_S)
            else:
                self._publish()
            return False
        if self._build_some_trees():
            return False
        return not self._trash.take_out_some(self._manifest, self._check_fence)

    def _in_flight(self) -> bool:
        """Whether validators have work: then more commits come soon, and snapshots can wait."""
        states = (JobState.STAGED, JobState.VALIDATING)  # as jobs go
        return any(self._lake.has_any(state) for state in states)

    def _publish(self) -> None:
        started_s = time.monotonic()
        self._catalog.catch_up(self._manifest)
        self._catalog.publish(self._lock.is_ours)
        self._shown = self._catalog.applied_seq
        disk.crash_point("views.published")
        cost_s = time.monotonic() - started_s
        self._next_publish_s = started_s + cost_s / self._settings.publish_share

    def _build_some_trees(self) -> bool:
        """Some link-tree work; False when there is none."""
        if self._tree is None:
            if self._treed >= self.seq:
                return False
            self._check_fence()
            record = self._commit_of(self._treed + 1).record
            self._tree = views.build_trees(self._lake, record, self._manifest)
        if not views.take(self._tree, _TREE_STEPS):
            self._tree = None
            self._treed += 1
        return True

    def _progress(self) -> dict[str, int]:
        """How far the file views are; written beside the next commit, so it may lag, never lead."""
        return {"links": self._linked, "trees": self._treed}

    # ── mending and rebuilding ────────────────────────────────────────────────────────────────

    def _mend_views(self) -> None:
        """Somebody deleted the manifest under us, or asked for a rebuild: make it again."""
        if asked := self._lake.asked_for():
            if asked is Remake.LINKS:
                self._match_links(whole=True)
            else:
                self.rebuild(from_journal=asked is Remake.FROM_JOURNAL)
            disk.remove(self._lake.rebuild_request)
        elif not self._lake.manifest_db.exists():
            log.warning("manifest_rebuilt", reason="the file was deleted")
            self.rebuild()

    def rebuild(self, *, trees: bool = True, from_journal: bool = False) -> None:
        """Recreate every view from objects and journal; run trees follow in the background.

        It begins with the newest checkpoint that is sound, or, `from_journal`, with record 1.
        """
        self._check_fence()
        self._lake.create()
        self._catalog.close()
        self._manifest.close()
        self._manifest = checkpoints.begin_manifest(
            self._lake, self._journal, from_journal=from_journal
        )
        with reading_much():
            self._catch_up()
            self._mend_files(whole=True)
            if not from_journal:
                checkpoints.seed_catalog(self._lake, self._journal)
            self._catalog = Catalog.open(self._lake, self._settings, self._registry, self._manifest)
            self._publish()
        self._treed = 0 if trees else self.seq


def _answer_name(job: JobRecord) -> str:
    return REJECT_REASON if job.outcome is Outcome.REJECTED else RECEIPT


def _final_state(job: JobRecord) -> JobState:
    return JobState.REJECTED if job.outcome is Outcome.REJECTED else JobState.COMMITTED
