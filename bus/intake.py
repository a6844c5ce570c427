"""Steps 3 to 6 of a job's life, on real directories: claim, judge, store, verdict.

`Intake.drain` takes jobs in groups, so that the syncs of a group are shared: all files first, then
each directory once, then all verdicts. A job is isolated from its neighbours: whatever happens to
one, the others go on. Every step may be repeated after a crash at any point.

A job that needs a child of its own (see `bus.validation`) never shares a group: it comes after the
light ones that were waiting at the same time.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import time
from collections import deque
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from pydantic import ValidationError

from bus import disk
from bus.attempt import AttemptEndedError
from bus.claims import MAX_ENDS, Claim, Record, claim_path, job_name
from bus.lake import COMMIT, MANIFEST, STALE_STAGING_S, VERDICT
from bus.model import JobState, Verdict
from bus.objects import ChangedError, Shelf, SyncError, synced
from bus.ours import move_aside
from bus.readiness import LOOK_AGAIN_S, is_committed, wait_s
from bus.submission import read_submission
from bus.validation import (
    SORT_PREFIX,
    Judgement,
    NeedsChildError,
    NotYetError,
    OurFaultError,
    crashed,
    judge,
    judge_in_child,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bus.lake import Lake
    from bus.settings import Settings
    from bus.specs import Registry

log = logging.getLogger(__name__)

GROUP_JOBS = 8
DUE_MAX = 1000
#: A job whose predecessor of the same id waits for the writer is looked at again after this.
_PREDECESSOR_S = 1.0
#: A heavy job for which no child may be started now is looked at again after this.
_SLOT_S = 0.5
#: After a fault of ours (a full disk) a job rests this long.
_FAULT_S = 5.0
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}


@dataclass(slots=True)
class IntakeResult:
    """What a drain did.

    judged  jobs that now lie in ready/
    later   jobs that are not ready yet: seconds after which it is worth looking again
    more    the budget ended first: ring again
    faults  jobs that failed because of us (a full disk …): they stay, and are in `later` too
    """

    judged: list[str] = field(default_factory=list)
    later: dict[str, float] = field(default_factory=dict)
    more: bool = False
    faults: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Due:
    """What a sweep should ring for: job ids for `ingest`, and whether the writer has work."""

    ingest: list[str]
    writer: bool


class Intake:
    """Takes jobs from inbox/ to ready/. One object a process; any number of processes."""

    def __init__(self, lake: Lake, settings: Settings, registry: Registry) -> None:
        self._lake = lake
        self._settings = settings
        self._registry = registry
        self._backlog: deque[str] = deque()

    def drain(self, first: str | None = None, budget_s: float = 5.0) -> IntakeResult:
        """Judge `first` and whatever else waits, until nothing is left or the time is used.

        Raises `SyncError` when an fsync failed: the process must end. Nothing else that happens to
        a job is raised: the job stays where it is, and `IntakeResult.faults` says why.
        """
        drain = _Drain(self._lake, self._settings, self._registry, self._backlog)
        return drain.run(first, budget_s)


class _Drain:
    """One drain: the jobs it passed over, and those that need a child.

    `backlog`: what the last listing showed and nobody has looked at yet. It outlives the drain, so
    that short drains of a deep inbox do not list it again and again; names in it may be stale.
    """

    def __init__(
        self, lake: Lake, settings: Settings, registry: Registry, backlog: deque[str]
    ) -> None:
        self._lake = lake
        self._settings = settings
        self._registry = registry
        self._backlog = backlog
        self._result = IntakeResult()
        self._passed: set[str] = set()
        self._heavy: deque[str] = deque()

    def run(self, first: str | None, budget_s: float) -> IntakeResult:
        deadline = time.monotonic() + budget_s
        names = self._names(first)
        while group := self._claim_group(names):
            self._light_group(group)
            if time.monotonic() > deadline:
                self._result.more = bool(self._backlog)
                break
        # However many light ones wait, each drain does one heavy job, so that none starves.
        while self._heavy:
            self._heavy_job(self._heavy.popleft())
            if time.monotonic() > deadline:
                self._result.more |= bool(self._heavy)
                break
        return self._result

    # ── which jobs ────────────────────────────────────────────────────────────────────────────

    def _names(self, first: str | None) -> Iterator[str]:
        """The job asked for, then what lies in work/, then the inbox, oldest first."""
        if first is not None and _is_component(first):
            yield first
        while True:
            while self._backlog:
                yield self._backlog.popleft()
            self._backlog.extend(name for name in self._listing() if name not in self._passed)
            if not self._backlog:
                return

    def _listing(self) -> Iterator[str]:
        states = (JobState.VALIDATING, JobState.STAGED)
        return (w.name for w in chain.from_iterable(map(self._lake.listing, states)))

    def _claim_group(self, names: Iterator[str]) -> list[Claim]:
        group: list[Claim] = []
        for name in names:
            if name in self._passed:
                continue
            with self._alone(name):
                claim = self._claim(name)
                if claim is None:
                    self._passed.add(name)
                elif claim.dropped:
                    self._set_apart(claim.name)
                    claim.put_down()
                else:
                    group.append(claim)
            if len(group) == GROUP_JOBS:
                break
        return group

    # ── step 3: claim ─────────────────────────────────────────────────────────────────────────

    def _claim(self, name: str) -> Claim | None:
        """The job, locked and in work/; None when it is gone, not ready, or someone else's."""
        staged = self._lake.inbox / name
        kept = job_name(name)
        work = self._lake.work / kept
        is_in_work = os.path.isdir(work)  # noqa: PTH112 - half the price, once a job
        if not is_in_work and not is_committed(staged):
            return None
        lock = disk.Lock.try_acquire(claim_path(self._lake, kept))
        if lock is None:
            return None
        disk.crash_point("claim.locked")
        claim = Claim(kept, work, self._lake.ready / kept, lock)
        try:
            # Again, now that nobody else can move it.
            is_in_work = os.path.isdir(work)  # noqa: PTH112 - as above
            taken = self._resume(claim) if is_in_work else self._take(claim, staged)
        except BaseException:
            lock.release()
            raise
        if not taken:
            claim.finish()
            return None
        return claim

    def _resume(self, claim: Claim) -> bool:
        """A job that lies in work/ already; its record tells how its last holder left it."""
        claim.record = Record.parse(claim.lock.read())
        claim.dropped = not claim.record.explained and not (claim.path / VERDICT).exists()
        return True

    def _take(self, claim: Claim, staged: Path) -> bool:
        """From inbox/ to work/, if it is ready and nothing of that id is in the way."""
        directory_fd = _open_directory(staged)
        if directory_fd is None:
            return False
        try:
            claim.submission = read_submission(directory_fd, staged.name)
            delay_s = wait_s(directory_fd, claim.submission, self._settings)
        finally:
            os.close(directory_fd)
        if os.path.lexists(claim.ready):
            delay_s = max(delay_s, _PREDECESSOR_S)
        if delay_s > 0:
            self._later(staged.name, delay_s)
            return False
        # Before the move, not after, and durably: a verdict found in work/ is taken for our own.
        if move_aside(staged):
            synced(disk.sync_dir, staged)
        try:
            disk.move(staged, claim.path)
        except FileNotFoundError:
            return False
        except PermissionError:
            disk.open_up(staged)
            disk.move(staged, claim.path)
        disk.crash_point("claim.renamed")
        return True

    # ── step 4: judge ─────────────────────────────────────────────────────────────────────────

    def _light_group(self, group: list[Claim]) -> None:
        judged: list[tuple[Claim, Judgement]] = []
        try:
            for claim in group:
                with self._alone(claim.name, claim):
                    judged.append((claim, self._judge(claim)))
            self._conclude(judged)
        finally:
            self._put_down(group)

    def _judge(self, claim: Claim) -> Judgement:
        if (judgement := self._earlier_verdict(claim)) is not None:
            return judgement
        return judge(
            claim.path, self._lake, self._settings, self._registry, submission=claim.submission
        )

    def _heavy_job(self, name: str) -> None:
        """In a child, unless as many are at work as may be: one worker is left for the light ones."""
        with self._slot() as slot, self._alone(name):
            if slot is None:
                self._later(name, _SLOT_S)
                return
            claim = self._claim(name)
            if claim is None:
                return
            try:
                with self._alone(name, claim):
                    self._conclude([(claim, self._judge_in_child(claim))])
            finally:
                self._put_down([claim])

    @contextmanager
    def _slot(self) -> Iterator[disk.Lock | None]:
        """The right to have a child; None when others have them all."""
        for number in range(max(1, self._settings.workers - 1)):
            slot = disk.Lock.try_acquire(self._lake.heavy_slot(number))
            if slot is not None:
                try:
                    yield slot
                finally:
                    slot.release()
                return
        yield None

    def _judge_in_child(self, claim: Claim) -> Judgement:
        if (judgement := self._earlier_verdict(claim)) is not None:
            return judgement
        try:
            return judge_in_child(claim.path, self._lake, self._settings, self._registry)
        except AttemptEndedError as ended:
            claim.record.ends.append(str(ended))
            claim.record.explained = False
            if len(claim.record.ends) < MAX_ENDS:
                raise
            return crashed(claim.path, claim.record.ends)

    def _earlier_verdict(self, claim: Claim) -> Judgement | None:
        """What an earlier attempt decided, if it still fits the manifest."""
        path = claim.path / VERDICT
        try:
            verdict = Verdict.from_bytes(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            verdict = None
        if verdict is not None and verdict.manifest_sha256 in {None, _sha256(claim.path)}:
            return Judgement(verdict, [])
        move_aside(claim.path)
        return None

    # ── steps 5 and 6: store, verdict ─────────────────────────────────────────────────────────

    def _conclude(self, judged: list[tuple[Claim, Judgement]]) -> None:
        """Objects of all jobs, durable; then all verdicts, durable; then on to ready/."""
        disk.crash_point("validate.done")
        with closing(Shelf(self._lake)) as shelf:
            judged = self._each(judged, lambda claim, j: shelf.take(claim.path, j.files))
            shelf.sync_files()
            judged = self._each(judged, lambda claim, j: shelf.link(claim.path, j.files))
            shelf.sync()
        disk.crash_point("store.done")
        token = secrets.token_hex(8)
        judged = self._each(judged, lambda claim, j: _write(_temporary(claim, token), j.verdict))
        synced(disk.sync_all, [_temporary(claim, token) for claim, _ in judged])
        judged = self._each(judged, lambda claim, _: _publish(claim, token))
        synced(disk.sync_all, [claim.path for claim, _ in judged])
        disk.crash_point("verdict.written")
        self._each(judged, lambda claim, _: self._hand_over(claim))

    def _hand_over(self, claim: Claim) -> None:
        try:
            disk.move(claim.path, claim.ready)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            raise NotYetError(_PREDECESSOR_S) from None
        disk.crash_point("verdict.ready")
        claim.finish()
        self._result.judged.append(claim.name)

    # ── isolation ─────────────────────────────────────────────────────────────────────────────

    def _each(
        self,
        judged: list[tuple[Claim, Judgement]],
        action: Callable[[Claim, Judgement], None],
    ) -> list[tuple[Claim, Judgement]]:
        """Do something for each job; those for which it worked."""
        done = []
        for claim, judgement in judged:
            with self._alone(claim.name, claim):
                action(claim, judgement)
                done.append((claim, judgement))
        return done

    @contextmanager
    def _alone(self, name: str, claim: Claim | None = None) -> Iterator[None]:
        """Whatever happens to one job is noted and ends here; a failed fsync alone goes on."""
        record = claim.record if claim is not None else Record()
        try:
            yield
        except SyncError:
            raise
        except NeedsChildError:
            self._set_apart(name)
        except NotYetError as error:
            record.explained = True
            self._later(name, error.delay_s)
        except ChangedError:
            record.explained = True
            self._later(name, LOOK_AGAIN_S)
        except AttemptEndedError as ended:
            log.warning("validator_ended", extra={"job_id": name, "how": str(ended)})
            self._later(name, float(len(record.ends)))
        except (OSError, OurFaultError) as error:
            record.explained = True
            self._fault(name, error)
        except MemoryError as error:
            self._fault(name, error)
        except Exception as error:
            log.exception("validator_failed", extra={"job_id": name})
            record.ends.append(f"{type(error).__name__}: {error}"[:200])
            self._fault(name, error)

    def _later(self, name: str, delay_s: float) -> None:
        self._passed.add(name)
        self._result.later[name] = delay_s

    def _fault(self, name: str, error: BaseException) -> None:
        self._result.faults[name] = f"{type(error).__name__}: {error}"
        self._later(name, _FAULT_S)

    def _set_apart(self, name: str) -> None:
        self._passed.add(name)
        self._heavy.append(name)

    @staticmethod
    def _put_down(claims: list[Claim]) -> None:
        for claim in claims:
            if not claim.finished:
                claim.put_down()


# ── files of a job directory that are ours ────────────────────────────────────────────────────


def _is_component(name: str) -> bool:
    return bool(name) and not name.startswith(".") and "/" not in name and "\0" not in name


def _open_directory(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:
        disk.open_up(path)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in disk.FOREIGN_ERRNOS | {errno.ENOENT}:
            raise
        return None


def _sha256(directory: Path) -> str | None:
    try:
        return hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return None


def _temporary(claim: Claim, token: str) -> str:
    return f"{claim.path}/.bus-verdict-{token}"


def _write(path: str, verdict: Verdict) -> None:
    disk.write_own(path, verdict.to_bytes())


def _publish(claim: Claim, token: str) -> None:
    """Give the synced verdict its name; where one exists, the first stays."""
    temporary = _temporary(claim, token)
    disk.link_new(temporary, f"{claim.path}/{VERDICT}")
    disk.remove(temporary)


# ── for the sweep ─────────────────────────────────────────────────────────────────────────────


def due(lake: Lake) -> Due:
    """What the sweep shall ring for.

    Committed jobs in inbox/ and jobs in work/ that nobody holds, oldest first, at most 1,000; and
    the writer, when something lies in ready/ or a rebuild was asked for.
    """
    waiting = [*_committed(lake), *_dropped(lake)]
    waiting.sort()
    has_ready = any(not name.startswith(".") for name in os.listdir(lake.ready))
    has_ready = has_ready or lake.rebuild_request.exists()
    return Due([name for _, name in waiting[:DUE_MAX]], has_ready)


def _committed(lake: Lake) -> Iterator[tuple[float, str]]:
    """(time of the commit, name). One stat a directory: 20,000 take about 0.1 s."""
    for name in os.listdir(lake.inbox):
        if not name.startswith("."):
            with suppress(OSError):
                yield os.lstat(f"{lake.inbox}/{name}/{COMMIT}").st_ctime, name


def _dropped(lake: Lake) -> Iterator[tuple[float, str]]:
    for waiting in lake.listing(JobState.VALIDATING):
        if _is_free(claim_path(lake, waiting.name)):
            yield waiting.changed_at_s, waiting.name


def _is_free(path: Path) -> bool:
    """Whether nobody alive holds the claim; a claim file that is missing is not created."""
    if not path.exists():
        return True
    with disk.locked(path) as lock:
        return lock is not None


def clean(lake: Lake) -> int:
    """Remove what nobody touched for a day, and claims of jobs that have moved on.

    The former are producers' staging, and the room for a sort of a validator that was killed.
    Returns how many entries were removed.
    """
    now_s = time.time()
    stale = list(lake.stale_staging(STALE_STAGING_S, now_s))
    stale += [
        path
        for path in lake.run.glob(f"{SORT_PREFIX}*")
        if now_s - disk.changed_at_s(path, now_s) > STALE_STAGING_S
    ]
    for path in stale:
        disk.remove_tree(path)
    alive = {
        claim_path(lake, job_name(name)) for name in os.listdir(lake.inbox) + os.listdir(lake.work)
    }
    leftover = [path for path in lake.claims.iterdir() if path not in alive]
    return len(stale) + sum(_remove_claim(path) for path in leftover)


def _remove_claim(path: Path) -> bool:
    lock = disk.Lock.try_acquire(path)
    if lock is None:
        return False
    lock.release(unlink=True)
    return True
