"""Answered jobs, held against the journal: where each lies, and that its answer is the journal's.

Of processed/ and rejected/; jobs on their way are looked at only so far as they may be there twice.
Places are texts: there may be a million, and making paths costs as much as reading the files.
"""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from bus import answers, disk
from bus.hashing import file_hash
from bus.invariants import KEPT, ON_THEIR_WAY, Finding, first_line
from bus.lake import MANIFEST, RECEIPT, REJECT_REASON, VERDICT
from bus.model import JobState, Outcome, Receipt, RejectReason, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bus.lake import Lake
    from bus.manifest import Manifest
    from bus.model import CommitRecord, JobRecord


@dataclass(frozen=True, slots=True)
class Recorded:
    """A record of the journal, and its jobs by their verdicts."""

    record: CommitRecord
    jobs: dict[str, JobRecord]


class AnsweredJobs:
    """One look over jobs. `recorded`: what the journal has under a number; None where it is damaged."""

    def __init__(
        self, lake: Lake, facts: Manifest, recorded: Callable[[int], Recorded | None]
    ) -> None:
        self._lake = lake
        self._facts = facts
        self._recorded = recorded
        self._lying: dict[str, str] = {}  # where each verdict was met
        self._elsewhere: defaultdict[str, list[str]] = defaultdict(list)  # receipts by other roots

    def look(self, state: JobState, name: str) -> Iterator[Finding]:
        """5: a directory with a verdict is the only one of it, and lies where the journal says."""
        place = f"{self._lake.state_dir(state)}/{name}"
        try:
            verdict = Verdict.from_bytes(disk.read(f"{place}/{VERDICT}"))
        except FileNotFoundError:
            if os.path.isdir(place) and state not in ON_THEIR_WAY:  # noqa: PTH112 - texts, see above
                yield Finding(5, place, "answered without a verdict", KEPT)
            return
        except (OSError, ValidationError) as error:
            if state not in ON_THEIR_WAY:  # else the writer sends it back to be judged again
                yield Finding(5, f"{place}/{VERDICT}", f"unreadable: {first_line(error)}", KEPT)
            return
        other = self._lying.setdefault(verdict.verdict_id, place)
        if other != place and os.path.exists(other) and os.path.exists(place):  # noqa: PTH110 - as above
            message = f"the same submission lies in {other} too"
            yield Finding(5, place, message, "Keep the one that the journal speaks of.")
        if state not in ON_THEIR_WAY:
            yield from self._second_names(place, verdict)
            yield from _judged_manifest(place, verdict)
            yield from self._document(place, state, verdict)

    def _second_names(self, place: str, verdict: Verdict) -> Iterator[Finding]:
        """2: no file of an answered job is a second name of an object, through which to change it."""
        for artifact in verdict.artifacts:
            with suppress(FileNotFoundError):
                file = f"{place}/{artifact.relpath}"
                if os.path.samefile(file, self._lake.object_place(artifact.sha256)):  # noqa: PTH121 - as above
                    message = f"a second name of the object {artifact.sha256}"
                    yield Finding(2, file, message, "Remove this name.")

    def _document(self, place: str, state: JobState, verdict: Verdict) -> Iterator[Finding]:
        """10: receipt or reason say what the journal says."""
        rejected = state is JobState.REJECTED
        document = f"{place}/{REJECT_REASON if rejected else RECEIPT}"
        model: type[Receipt | RejectReason] = RejectReason if rejected else Receipt
        try:
            told = model.from_bytes(disk.read(document))
        except (OSError, ValidationError) as error:
            yield Finding(10, document, f"unreadable: {first_line(error)}", KEPT)
            return
        known = self._facts.rows(_JOURNALED, (verdict.verdict_id,))
        if not known:
            if told.seq <= self._facts.applied[0]:  # else it was committed after we began
                message = f"answered as of commit {told.seq}, but that is not in the journal"
                yield Finding(5, place, message, "Submit the job again.")
            return
        ((outcome, seq, first_seq),) = known
        if rejected != (outcome == Outcome.REJECTED):
            yield Finding(5, place, f"the journal says {outcome}, in commit {seq}", KEPT)
        elif not self._is_the_answer(told, document, verdict.verdict_id, seq, first_seq or seq):
            message = f"differs from commit {first_seq or seq} of the journal"
            yield Finding(10, document, message, KEPT)

    def _is_the_answer(
        self,
        told: Receipt | RejectReason,
        document: str,
        verdict_id: str,
        seq: int,
        first_seq: int,
    ) -> bool:
        then, first = self._recorded(seq), self._recorded(first_seq)
        if then is None or first is None or verdict_id not in then.jobs:
            return True  # the journal's damage is told elsewhere
        job = then.jobs[verdict_id]
        if isinstance(told, RejectReason):
            return told == answers.reason(job, then.record)
        expected = answers.receipt(self._lake, job, first.record)
        return told == expected or self._is_from_before_a_move(told, expected, document)

    def _is_from_before_a_move(self, told: Receipt, expected: Receipt, document: str) -> bool:
        """Whether it says the same of a lake that lay elsewhere: receipts are not written again."""
        pairs = zip(told.artifacts, expected.artifacts, strict=False)
        moved = [a.model_copy(update={"path": e.path}) for a, e in pairs]
        if told.model_copy(update={"artifacts": moved}) != expected:
            return False
        here = str(self._lake.public_root)
        ends = [artifact.path.removeprefix(here) for artifact in expected.artifacts]
        roots = {a.path.removesuffix(end) for a, end in zip(told.artifacts, ends, strict=True)}
        self._elsewhere["".join(roots)].append(document)
        return len(roots) == 1

    def odd_ones(self) -> Iterator[Finding]:
        """10: after all were looked at, receipts that name a root which no other one names."""
        for root, documents in self._elsewhere.items():
            if len(documents) == 1:
                message = f"says that the lake lies in {root}, as no other receipt does"
                yield Finding(10, documents[0], message, KEPT)


def _judged_manifest(place: str, verdict: Verdict) -> Iterator[Finding]:
    """5: the job's own manifest is the one that was judged."""
    with suppress(FileNotFoundError):
        judged = verdict.manifest_sha256
        if judged is not None and file_hash(f"{place}/{MANIFEST}") != f"sha256:{judged}":
            yield Finding(5, f"{place}/{MANIFEST}", "changed after it was judged", KEPT)


_JOURNALED = "SELECT outcome, seq, first_seq FROM jobs WHERE verdict_id = ?"
