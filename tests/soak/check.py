"""After a soak: every acknowledged submission against the journal, its receipt and its bytes."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import ValidationError

from bus.client import Bus
from bus.journal import Journal
from bus.lake import RECEIPT, REJECT_REASON
from bus.model import JobState, Outcome, Receipt, RejectReason
from bus.specs import Registry
from bus.verify import verify
from tests.soak.jobs import File, Plan, noted

if TYPE_CHECKING:
    from pathlib import Path

    from bus.lake import Lake
    from bus.model import JobRecord
    from tests.soak.jobs import Ack
    from tests.soak.processes import Place


@dataclass
class Findings:
    """What was held against what, and what was wrong, in words."""

    acknowledged: int = 0
    jobs: int = 0
    committed: int = 0
    repeated: int = 0
    rejected: int = 0
    commits: int = 0
    objects: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def violations(self) -> list[str]:
        return [*self.lost, *self.doubled, *self.altered, *self.broken]


def check(place: Place, *, whole: bool = True) -> Findings:
    """Look at everything, when nothing is at work any more; `whole`: also as `bus verify` does."""
    found = _Check(place).run()
    if whole:
        lake, registry = Bus(place.settings).lake, Registry.load(place.settings)
        report = verify(lake, place.settings, registry)
        found.objects = report.objects
        found.broken += [f"verify: {finding}" for finding in report.findings]
    return found


class _Check:
    def __init__(self, place: Place) -> None:
        self._place = place
        self._lake: Lake = Bus(place.settings).lake
        self._found = Findings()
        self._by_submission: defaultdict[str, list[JobRecord]] = defaultdict(list)
        self._committed: defaultdict[str, list[JobRecord]] = defaultdict(list)
        self._hashes: dict[Path, str] = {}

    def run(self) -> Findings:
        self._read_journal()
        seen: set[str] = set()
        for ack in noted(self._place.folder):
            seen.add(ack.job_id)
            self._found.acknowledged += 1
            self._acknowledged(ack)
        self._found.jobs = len(seen)
        self._commits()
        self._leftovers()
        return self._found

    def _read_journal(self) -> None:
        journal = Journal(self._lake)
        outcomes: Counter[Outcome] = Counter()
        for seq in journal.numbers():
            commit = journal.read(seq)
            assert commit is not None
            self._found.commits += 1
            for job in commit.record.jobs:
                outcomes[job.outcome] += 1
                self._by_submission[job.submission_id or ""].append(job)
                if job.outcome is Outcome.COMMITTED:
                    self._committed[job.job_id].append(job)
        self._found.committed = outcomes[Outcome.COMMITTED]
        self._found.repeated = outcomes[Outcome.REPEATED]
        self._found.rejected = outcomes[Outcome.REJECTED]

    # ── what producers were told ──────────────────────────────────────────────────────────────

    def _acknowledged(self, ack: Ack) -> None:
        records = self._by_submission.get(ack.submission_id, [])
        what = f"{ack.job_id} ({ack.submission_id})"
        if not records:
            self._found.lost.append(f"{what} is not in the journal")
        elif len(records) > 1:
            self._found.doubled.append(f"{what} is in the journal {len(records)} times")
        elif ack.rejected_as:
            self._rejected(ack, records[0])
        elif records[0].outcome is Outcome.REJECTED:
            codes = [problem.code for problem in records[0].problems]
            self._found.lost.append(f"{what} is good and was rejected: {codes}")
        else:
            self._receipt(ack)

    def _rejected(self, ack: Ack, record: JobRecord) -> None:
        codes = {problem.code for problem in record.problems}
        if codes != {ack.rejected_as}:
            message = f"{ack.job_id} is {record.outcome} {codes}, not {ack.rejected_as}"
            self._found.broken.append(message)
        reasons = self._answers(ack.job_id, JobState.REJECTED)
        if ack.rejected_as not in [r.code for r in reasons if isinstance(r, RejectReason)]:
            self._found.lost.append(f"{ack.job_id} lies nowhere with {ack.rejected_as}")

    def _receipt(self, ack: Ack) -> None:
        """The receipt tells exactly the files that were handed in, and they are there."""
        receipts = [
            r for r in self._answers(ack.job_id, JobState.COMMITTED) if isinstance(r, Receipt)
        ]
        if not receipts:
            self._found.lost.append(f"{ack.job_id} has no receipt")
        for receipt in receipts:
            told = [
                File(a.name, a.rows, a.file_hash.removeprefix("sha256:")) for a in receipt.artifacts
            ]
            if told != ack.files:
                self._found.altered.append(f"the receipt of {ack.job_id}: {told} for {ack.files}")
        for file in ack.files:
            path = self._lake.object_path(file.sha256)
            if self._hash(path) != file.sha256:
                self._found.altered.append(f"{ack.job_id}/{file.name}: {path} has other bytes")

    def _answers(self, job_id: str, state: JobState) -> list[Receipt | RejectReason]:
        name, model = (
            (RECEIPT, Receipt) if state is JobState.COMMITTED else (REJECT_REASON, RejectReason)
        )
        found: list[Receipt | RejectReason] = []
        for directory in self._lake.submissions(state, job_id):
            try:
                found.append(model.from_bytes((directory / name).read_bytes()))
            except (OSError, ValidationError) as error:
                self._found.broken.append(f"{directory / name}: {error}")
        return found

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            try:
                self._hashes[path] = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                self._hashes[path] = str(error)
        return self._hashes[path]

    # ── what was committed, acknowledged or not ───────────────────────────────────────────────

    def _commits(self) -> None:
        """Each job was committed once, with what its id says."""
        for job_id, records in self._committed.items():
            if len(records) > 1:
                self._found.doubled.append(f"{job_id} was committed {len(records)} times")
            told = [
                File(a.name, a.rows, a.file_hash.removeprefix("sha256:"))
                for a in records[0].artifacts
            ]
            if told != Plan.of(job_id).files():
                self._found.altered.append(f"{job_id} was committed as {told}")

    def _leftovers(self) -> None:
        for state in (JobState.STAGED, JobState.VALIDATING, JobState.READY):
            names = [waiting.name for waiting in self._lake.listing(state)]
            self._found.lost += [f"{name} still lies in {state}" for name in names]
