"""Bus: what producers and readers use. Submit tables, wait for receipts, query the catalog.

A producer needs no broker: `submit` returns when the job lies in the inbox, durably. The bell that
follows costs at most a fifth of a second and may fail; the sweep rings again. What became of a job
is read from its directory; Redis only makes waiting fast.
"""

from __future__ import annotations

import inspect
import json
import os
import time
import uuid
import warnings
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pydantic import ValidationError

from bus import provenance as code, shown, versions
from bus.broker import Broker
from bus.errors import Code, JobConflict, NotFound, Problem, Rejected, Unavailable, WaitTimeout
from bus.keeping import Keeping
from bus.lake import COMMIT, RECEIPT, REJECT_REASON, VERDICT
from bus.lineage import Genealogy
from bus.model import CommitMarker, JobState, Provenance, Receipt, RejectReason
from bus.progress import Bar
from bus.reader import Reader
from bus.settings import Settings
from bus.versions import Changes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from bus.diff import Diff
    from bus.frames import ParquetOptions, Progress
    from bus.lake import Lake
    from bus.specs import Registry
    from bus.staging import StagedJob, Staging

T = TypeVar("T")

#: Who made a table: what Git says of the running program, what the caller says, or nothing.
Said = Provenance | dict[str, Any] | Literal["auto"] | None
#: Run ids made up for a job_id: the same job, submitted again, belongs to the same run.
_RUN_OF_JOB = uuid.UUID("5d6b6f0e-5d1c-4a57-9c0a-6f1f3f6b8f11")
#: Of a job that only changes what is said of artifacts: its kind, and its producer by default.
MUTATIONS = "mutations"
BY_HAND = "manual"
#: Looking at files for an answer: how soon again at first, and at the latest.
_FIRST_LOOK_S = 0.01
_LAST_LOOK_S = 0.5
_FOREVER_S = 3600.0
_PENDING = (JobState.STAGED, JobState.VALIDATING, JobState.READY)
_DONE = (JobState.COMMITTED, JobState.REJECTED)
_ANSWERS = {JobState.COMMITTED: RECEIPT, JobState.REJECTED: REJECT_REASON}


def connect(root: str | Path | None = None) -> Bus:
    """The bus of the lake at `root`; default: `BUS_LAKE`, bus.toml, or the bus that runs."""
    return Bus(Settings.load(root))


class Bus(Reader, Changes["Job"], Genealogy, Keeping["Job"]):
    """One lake, seen by a program outside. Threads and forked children may share it.

    How it reads is said in `bus.reader`, what changes it makes in `bus.versions`. `ring` tells the
    bus to look at a job, when not by the notify list; it must never raise.
    """

    def __init__(self, settings: Settings, ring: Callable[[str], object] | None = None) -> None:
        super().__init__(settings)
        self.broker = Broker(settings)
        self._ring = ring or self.broker.ring

    @cached_property
    def run_id(self) -> str:
        """The run that jobs belong to when none is named: this object's."""
        return str(uuid.uuid4())

    @cached_property
    def _registry(self) -> Registry:
        from bus.specs import Registry  # noqa: PLC0415 - brings pyarrow, which waiting needs not

        return Registry.load(self.settings)

    # ── submitting ────────────────────────────────────────────────────────────────────────────

    def submit(  # noqa: PLR0913 - the fields of a job, by name
        self,
        data: Any,
        *,
        kind: str,
        producer: str,
        run_id: str | None = None,
        name: str | None = None,
        logical_key: str | None = None,
        schema_version: int = 1,
        schema_hint: str | None = None,
        rows: int | None = None,
        inputs: Sequence[str] | str | None = None,
        tags: Mapping[str, str | Sequence[str]] | None = None,
        supersedes: Sequence[str] | str = (),
        meta: dict[str, Any] | None = None,
        provenance: Said = "auto",
        job_id: str | None = None,
        move: bool = False,
        options: ParquetOptions | None = None,
        required: bool | None = None,
    ) -> Job:
        """Hand in one table as a job of its own; durable on return.

        `data` is a pyarrow, pandas or polars table, anything else with ``__arrow_c_stream__``
        (streamed), a polars LazyFrame, a list of dicts, or the path of a Parquet file, which is
        copied (`move` takes it away). `name` is the artifact's name in its run (default: the kind);
        `logical_key` says what it is about; `inputs` are the artifacts it was made from (``[]`` must
        be said for derived kinds), `supersedes` those that it replaces: references as `bus show`
        takes them, and ``pin:NAME`` among the inputs. `provenance`: which program made it; "auto" asks Git about the
        running one. `options`: how the Parquet is written. The same `job_id` with the same content
        again is the same job.

        Raises `Refused` (bad field, no table, or what the kind's contract refuses) and `JobConflict`
        (that job_id waits with other content). A bus that is not running is no error: the job waits
        in the inbox. Where not even that can be written (a full disk, E504; a failing one, E505),
        `required` says what happens: True raises `Unavailable`; False warns and returns a job whose
        `wait` raises it, so that research goes on; default: what `BUS_REQUIRED` says, else False.
        The caller's own file is untouched in any case.
        """
        with self.job(
            kind=kind,
            producer=producer,
            run_id=run_id,
            job_id=job_id,
            meta=meta,
            provenance=provenance,
            options=options,
            required=required,
        ) as draft:
            draft.add(
                data,
                name=name,
                move=move,
                logical_key=logical_key,
                schema_version=schema_version,
                schema_hint=schema_hint,
                rows=rows,
                inputs=_listed(inputs),
                tags=_values(tags),
                supersedes=_listed(supersedes) or None,
            )
        return draft.job

    def job(  # noqa: PLR0913 - the fields of a job, by name
        self,
        *,
        producer: str,
        kind: str | None = None,
        run_id: str | None = None,
        job_id: str | None = None,
        meta: dict[str, Any] | None = None,
        provenance: Said = "auto",
        options: ParquetOptions | None = None,
        required: bool | None = None,
        **fields: Any,
    ) -> Draft:
        """A job of several artifacts: ``with bus.job(…) as job: job.add(table, name="trades")``.

        Leaving the block submits it, an exception discards it. `kind` is that of every artifact
        which is given none of its own (default: that of the first). `fields` are those of
        `bus.model.JobManifest` (``after=``, ``mutations=`` …). Raises as `submit` does; where
        nothing can be written and nothing is `required`, the block runs to its end all the same.
        """
        from bus.frames import ParquetOptions  # noqa: PLC0415 - brings pyarrow; waiting needs it not
        from bus.staging import Staging  # noqa: PLC0415 - as above

        watch = code.of_program() if provenance == "auto" else None
        if watch is not None:
            watch.look()
        run = run_id or (str(uuid.uuid5(_RUN_OF_JOB, job_id)) if job_id else self.run_id)

        def begin(progress: Progress) -> Staging:
            return Staging(
                self.lake,
                run,
                producer,
                kind or "",
                job_id or "",
                options or ParquetOptions(),
                self._registry,
                progress,
            )

        def finish(staging: Staging, mutations: Sequence[Mapping[str, Any]]) -> StagedJob:
            found = watch.newest() if watch is not None else provenance
            return staging.submit(meta=meta, provenance=found, mutations=mutations, **fields)

        mutations = fields.pop("mutations", None) or ()
        bar = Bar(f"{producer}: {kind or 'tables'}")
        draft = Draft(self, job_id or "", begin, finish, bar, required=_is_required(required))
        draft.mutate(*mutations)
        return draft

    def _submitted(self, staged: StagedJob) -> Job:
        self._ring(staged.job_id)
        return Job(self, staged.job_id, staged.submission_id)

    # ── changing what is said of artifacts ────────────────────────────────────────────────────

    def changes(self, *, producer: str = BY_HAND, required: bool = True, **job: Any) -> Draft:
        """Several changes as one job, all or nothing.

        ``with bus.changes(producer="deploy") as change: change.supersede(old, by=new);
        change.alias("signals:prod", new)``. `job` as for `Bus.job`. Where nothing can be written it
        raises `Unavailable`: nobody goes on as if an alias had moved.
        """
        return self.job(kind=MUTATIONS, producer=producer, required=required, **job)

    def mutate(self, *mutations: Mapping[str, Any]) -> Job:
        """Submit changes given as they stand in manifest.json, as one job."""
        with self.changes() as change:
            change.mutate(*mutations)
        return change.job

    def aliases(self, kind: str | None = None) -> list[dict[str, Any]]:
        """As `bus.versions.aliases`."""
        return versions.aliases(self.lake, kind)

    def alias_history(self, alias: str) -> list[dict[str, Any]]:
        """Every move of ``KIND:NAME``, the newest first: seq, at_utc, from, to, producer, run_id.

        Raises `NotFound` (E511) of one that never was.
        """
        return versions.alias_history(self.lake, alias)

    def pins(self) -> list[dict[str, Any]]:
        """Every pin, how many artifacts it holds, and the commits that first and last added some."""
        return versions.pins(self.lake)

    def pinned(self, pin: str) -> list[str]:
        """The artifact ids of one pin. Raises `NotFound` (E511)."""
        return [row["artifact_id"] for row in versions.pin_members(self.lake, pin)]

    # ── answers ───────────────────────────────────────────────────────────────────────────────

    def find_job(self, job_id: str) -> Job:
        """The newest submission of that id. Raises `NotFound` (E511)."""
        if Job(self, job_id).status is JobState.UNKNOWN:
            raise NotFound(f"no job {job_id[:160]!r} in this lake", where="job_id")
        return Job(self, job_id, submission_of(self.lake, job_id))

    def wait(self, job_id: str, timeout_s: float | None = None) -> Receipt:
        """The receipt of the newest submission of `job_id`; raises as `Job.wait` does."""
        return self.find_job(job_id).wait(timeout_s)

    # ── reading ───────────────────────────────────────────────────────────────────────────────

    def diff(self, a: str, b: str, key: Sequence[str] | str | None = None, limit: int = 10) -> Diff:
        """What differs between two artifacts: columns, rows, and cells of rows with the same key.

        `a` and `b` are references; "added" is what only `b` has. `key`: the columns that tell rows
        apart (default: those of the kind's contract; without any, whole rows are compared). `limit`:
        how many rows of each sort come along. Raises `NotFound` (E511) and `Refused` (E404, E103,
        E510), `Damaged` (E315) where the bytes of one are gone.
        """
        from bus.diff import diff  # noqa: PLC0415 - brings duckdb; producers need it not

        return diff(self.lake, self._registry, a, b, key=_listed(key), limit=limit)


class Draft(Changes[None]):
    """A job being built, in a with-block: add artifacts and changes; `job` is what it became.

    Its changes happen in the order of the calls, after its artifacts, which they may name:
    ``job.alias("signals:prod", "name:t0")``.
    """

    def __init__(
        self,
        bus: Bus,
        job_id: str,
        begin: Callable[[Progress], Staging],
        finish: Callable[[Staging, Sequence[Mapping[str, Any]]], StagedJob],
        bar: Bar,
        *,
        required: bool,
    ) -> None:
        self.job_id = job_id
        self._bus = bus
        self.lake = bus.lake
        self.mutations: list[Mapping[str, Any]] = []
        self._begin = begin
        self._finish = finish
        self._required = required
        self._bar = bar
        self._staging: Staging | None = None
        self._lost: Unavailable | None = None
        self._job: Job | None = None

    def __enter__(self) -> Self:
        self._staging = self._attempt(partial(self._begin, self._bar.advance))
        if self._staging is not None:
            self.job_id = self._staging.job_id
        return self

    def add(self, data: Any, *, name: str | None = None, move: bool = False, **fields: Any) -> None:
        """Add one artifact; `fields` are those of `bus.model.ArtifactEntry`.

        Its `inputs` and `supersedes` may be references of any form, a pin among the inputs too.
        """
        for field in ("inputs", "supersedes"):
            if fields.get(field):
                fields[field] = self._all_meant(fields[field])
        if self._staging is not None:
            self._attempt(partial(self._staging.add, data, name=name, move=move, **fields))

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        staged = None
        try:
            if kind is None and self._staging is not None:
                staged = self._attempt(partial(self._finish, self._staging, self.mutations))
        finally:
            self._bar.stop()
            if staged is None and self._staging is not None:
                self._staging.discard()
        if staged is not None:
            self._job = self._bus._submitted(staged)  # noqa: SLF001 - a part of it
        elif kind is None and self._lost is not None:
            _warn(self._lost)
            self._job = LostJob(self._bus, self.job_id, None, self._lost)

    def _attempt(self, action: Callable[[], T]) -> T | None:
        """Do it; what the disk refuses is raised if the job is required, and noted if it is not."""
        if self._lost is not None:
            return None
        try:
            return action()
        except Unavailable as error:
            if self._required:
                raise
            self._lost = error
            return None

    def mutate(self, *mutations: Mapping[str, Any]) -> None:
        """Add changes given as they stand in manifest.json."""
        self.mutations += mutations

    @property
    def job(self) -> Job:
        """The submitted job; after the block only."""
        if self._job is None:
            raise RuntimeError("the job is submitted when its block ends")
        return self._job

    def wait(self, timeout_s: float | None = None) -> Receipt:
        """`Job.wait` of the submitted job; after the block only."""
        return self.job.wait(timeout_s)


class NotSubmitted(UserWarning):
    """A table was not submitted, and the program went on because it did not require it."""


def _warn(error: Unavailable) -> None:
    """Warn at the line of the program, not at one of this package."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "bus":
        level, frame = level + 1, frame.f_back
    text = f"not submitted, the program goes on without: {error}"
    warnings.warn(text, NotSubmitted, stacklevel=level)


@dataclass(frozen=True)
class Job:
    """A submission. `submission_id` None stands for whichever came last under that id."""

    bus: Bus
    job_id: str
    submission_id: str | None = None

    @property
    def id(self) -> str:
        """The job_id, under the name that Celery's results use."""
        return self.job_id

    def _repr_html_(self) -> str:
        answer = self.answer()
        facts = {"state": self.status, "submission": self.submission_id}
        more = answer._repr_html_() if answer is not None else ""
        return shown.facts_html(f"job {self.job_id}", facts, more)

    @property
    def status(self) -> JobState:
        """Where the job is now; of one whose directory was discarded, how it ended."""
        state = self.bus.lake.state_of(self.job_id)
        if state is JobState.UNKNOWN and (known := self.answer()):
            return JobState.COMMITTED if isinstance(known, Receipt) else JobState.REJECTED
        return state

    def get(self, timeout: float | None = None) -> Receipt:
        """`wait` under the name that Celery's results use."""
        return self.wait(timeout)

    def wait(self, timeout_s: float | None = None) -> Receipt:
        """Block until the bus has answered.

        Raises `Rejected` with every problem (`JobConflict` when its job_id was committed with other
        content), `WaitTimeout` (E506; the job is safe) when `timeout_s` passed without an answer.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s = _FIRST_LOOK_S
        while (answer := self.answer()) is None:
            left_s = _FOREVER_S if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                message = f"job {self.job_id} is {self.status} after {timeout_s:g} s in {self.bus.lake.root}"
                raise WaitTimeout(message, where=self.job_id)
            try:
                heard = self.bus.broker.await_answer(self.job_id, left_s)
            except Unavailable:
                pass  # nobody will tell us: look again after a pause
            else:
                if heard is None:
                    continue
                if (answer := self._mine(heard)) is not None:
                    break
            time.sleep(min(left_s, pause_s))
            pause_s = min(2 * pause_s, _LAST_LOOK_S)
        return _receipt_or_raise(answer)

    def answer(self) -> Receipt | RejectReason | None:
        """What lies in the job's directory: the answer to this submission, or None so far.

        Of a job whose directory was discarded, it is told by the journal.
        """
        lake = self.bus.lake
        state = lake.state_of(self.job_id)
        if self.submission_id is None and state in _PENDING:
            return None
        newest: Receipt | RejectReason | None = None
        for state in _DONE:
            for directory in lake.submissions(state, self.job_id):
                found = _read_answer(directory / _ANSWERS[state])
                if found is None:
                    continue
                if self.submission_id is not None:
                    if self._is_mine(found, directory):
                        return found
                elif newest is None or found.seq >= newest.seq:
                    newest = found
        # A rejection may have been made good since by a receipt that was discarded before it.
        if state not in _PENDING and not isinstance(newest, Receipt):
            known = _from_journal(lake, self.job_id, self.submission_id)
            newest = known if newest is None or (known and known.seq > newest.seq) else newest
        return newest

    def _is_mine(self, found: Receipt | RejectReason, directory: Path) -> bool:
        if found.submission_id == self.submission_id:
            return True
        # An equal job that came later carries the first one's receipt, beside its own verdict.
        try:
            verdict = json.loads((directory / VERDICT).read_bytes())
        except (OSError, ValueError):
            return False
        return bool(verdict.get("submission_id") == self.submission_id)

    def _mine(self, heard: bytes) -> Receipt | RejectReason | None:
        """What was announced, if it answers this submission and not an earlier one of that id."""
        found = _parse_answer(heard)
        if self.submission_id is None or found is None:
            return self.answer()
        return found if found.submission_id == self.submission_id else None


@dataclass(frozen=True)
class LostJob(Job):
    """What `submit` returns where nothing could be written and nothing was required."""

    error: Unavailable | None = None

    @property
    def status(self) -> JobState:
        """It is nowhere."""
        return JobState.UNKNOWN

    def wait(self, timeout_s: float | None = None) -> Receipt:  # noqa: ARG002 - there is nothing to wait for
        """Raise what kept it from being submitted."""
        raise self.error or Unavailable("nothing was submitted")

    def answer(self) -> Receipt | RejectReason | None:
        """None: nobody was asked."""
        return None


def _is_required(said: bool | None) -> bool:  # noqa: FBT001 - as the caller was told
    if said is not None:
        return said
    return os.environ.get("BUS_REQUIRED", "").lower() in {"1", "true", "yes", "on"}


def _listed(value: Sequence[str] | str | None) -> list[str] | None:
    return value if value is None else [value] if isinstance(value, str) else list(value)


def _values(tags: Mapping[str, str | Sequence[str]] | None) -> dict[str, list[str]] | None:
    return None if tags is None else {k: _listed(v) or [] for k, v in tags.items()}


def submission_of(lake: Lake, job_id: str) -> str | None:
    """The submission that lies in the inbox, in work or in ready, when our own client wrote it."""
    for state in _PENDING:
        try:
            data = (lake.state_dir(state) / job_id / COMMIT).read_bytes()
            return CommitMarker.from_bytes(data).submission_id
        except (OSError, ValidationError):
            continue
    return None


def _from_journal(
    lake: Lake, job_id: str, submission_id: str | None
) -> Receipt | RejectReason | None:
    from bus import answers  # noqa: PLC0415 - brings sqlite3, and is seldom asked

    return answers.again(lake, job_id, submission_id)


def _read_answer(path: Path) -> Receipt | RejectReason | None:
    try:
        return _parse_answer(path.read_bytes())
    except OSError:
        return None


def _parse_answer(document: bytes) -> Receipt | RejectReason | None:
    for model in (Receipt, RejectReason):
        try:
            return model.from_bytes(document)
        except ValidationError:
            continue
    return None


def _receipt_or_raise(answer: Receipt | RejectReason) -> Receipt:
    if isinstance(answer, Receipt):
        return answer
    problems = [Problem(Code(p.code), p.where, p.message, p.hint) for p in answer.problems]
    conflict = any(found.code is Code.E105 for found in problems)
    raise (JobConflict if conflict else Rejected).of(problems)
