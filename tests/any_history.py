"""Any history: commits of any jobs, chosen by numbers, so that hypothesis can make them up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from bus.finding import Then
from bus.model import (
    Alias,
    MarkDamaged,
    Pin,
    Purge,
    Restore,
    Supersede,
    Tag,
    Tombstone,
    Unpin,
    Untag,
)
from tests.ledger import Ledger
from tests.pipeline import facts, verdict

if TYPE_CHECKING:
    from bus.lake import Lake
    from bus.model import Mutation, Verdict

KINDS = ("ka", "kb")
RUNS = ("run-1", "run-2")
PRODUCERS = ("p", "q")
NAMES = ("a", "b")
ALIASES = ("best", "latest")

#: Any job: what it does, and numbers that choose what to, with what, by whom.
JOBS = st.tuples(
    st.sampled_from(
        ["deliver"] * 6
        + ["supersede", "tombstone", "tag", "untag", "alias", "no alias", "pin", "unpin"]
        + ["damage", "restore", "purge"]
    ),
    st.lists(st.integers(0, 11), min_size=6, max_size=6),
)
COMMITS = st.lists(st.lists(JOBS, min_size=1, max_size=4), min_size=1, max_size=9)


class Story:
    """A manifest that grows by any jobs; those that are refused are part of it."""

    def __init__(self, folder: str, *, in_memory: bool = True) -> None:
        self.ledger = Ledger(Path(folder), in_memory=in_memory)
        self.delivered: list[tuple[str, Any]] = []  # job_id and facts of each delivery
        self.jobs = 0

    @property
    def lake(self) -> Lake:
        return self.ledger.lake

    def then(self, seq: int) -> Then:
        """How things stood after a commit."""
        return Then(self.ledger.manifest, self.lake, seq)

    def commit(self, jobs: list[tuple[str, list[int]]]) -> None:
        """One commit of these jobs, and one for each that purges.

        Those are written down as they are: whether bytes may be given up is the writer's affair.
        """
        self.ledger.commit(*(self._verdict(*job) for job in jobs if job[0] != "purge"))
        for job in jobs:
            if job[0] == "purge" and self.delivered:
                asked = self._verdict(*job)
                (record,) = self.ledger.decide(asked).records
                self.ledger.apply([record.model_copy(update={"mutations": asked.mutations})])

    def _verdict(self, what: str, chosen: list[int]) -> Verdict:
        self.jobs += 1
        job_id = f"j{self.jobs}"
        said = {"run_id": RUNS[chosen[0] % 2], "producer": PRODUCERS[chosen[1] % 2]}
        if what == "deliver" or not self.delivered:
            return verdict(job_id, self._facts(job_id, chosen), **said)
        return verdict(job_id, mutations=[self._mutation(what, chosen)], **said)

    def _facts(self, job_id: str, chosen: list[int]) -> Any:
        one, two, three, *_ = chosen
        made = facts(
            NAMES[one % 2],
            two % 3,
            codec=("snappy", "zstd")[three % 2],
            kind=KINDS[three % 3 % 2],
            tags={"colour": [("red", "blue")[two % 2]]} if one % 3 else {},
            inputs=[self._reference(three)] if self.delivered and two % 4 == 1 else None,
            supersedes=[self._reference(one)] if self.delivered and three % 4 == 1 else [],
        )
        self.delivered.append((job_id, made))
        return made

    def _reference(self, number: int) -> str:
        job_id, made = self.delivered[number % len(self.delivered)]
        return f"job:{job_id}/{made.name}"

    def _mutation(self, what: str, chosen: list[int]) -> Mutation:
        first, second, third, *_ = chosen
        target, kind = self._reference(first), KINDS[third % 2]
        tags = {"colour": [("red", "blue")[second % 2]]}
        sha256 = self.delivered[first % len(self.delivered)][1].sha256
        match what:
            case "supersede":
                return Supersede(op="supersede", target=target, by=self._reference(second))
            case "tombstone":
                return Tombstone(op="tombstone", target=target, reason="wrong")
            case "tag":
                return Tag(op="tag", target=target, tags=tags)
            case "untag":
                return Untag(op="untag", target=target, tags=tags)
            case "alias" | "no alias":
                meant = target if what == "alias" else None
                return Alias(op="alias", kind=kind, alias=ALIASES[second % 2], target=meant)
            case "pin":
                return Pin(op="pin", pin="paper", target=[target])
            case "unpin":
                return Unpin(op="unpin", pin="paper", target=[target])
            case "damage":
                return MarkDamaged(op="mark_damaged", object=sha256, found="gone")
            case "purge":
                return Purge(op="purge", object=sha256, reason="old")
        return Restore(op="restore", object=sha256)

    def close(self) -> None:
        self.ledger.manifest.close()
