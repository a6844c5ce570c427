"""What `Bus` is asked of retention: what may go, for how long versions are kept, and back again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from bus.lake import Lake
    from bus.retention import Plan
    from bus.settings import Settings
    from bus.staging import StagedJob

_Job = TypeVar("_Job")


class Keeping(ABC, Generic[_Job]):
    """Plans, purges and policies; all that changes anything is a job."""

    lake: Lake
    settings: Settings

    @abstractmethod
    def _submitted(self, staged: StagedJob) -> _Job:
        """Ring for a job that lies in the inbox."""

    def gc(self, *, apply: bool = False, grace_days: float | None = None) -> Plan:
        """What may go, and why the rest stays; `apply` asks the writer to let it go.

        Without `apply` nothing is changed. With it, `Plan.jobs` names the jobs that were submitted:
        the writer looks again, and what must stay after all is a warning in their receipts. What
        went lies in the trash for `trash_days`. Raises `Unavailable` (E508) in an empty lake.
        """
        from bus import retention  # noqa: PLC0415 - brings pyarrow; waiting needs it not

        plan = retention.plan(self.lake, self.settings, grace_days=grace_days)
        if apply:
            for staged in retention.apply(self.lake, plan):
                self._submitted(staged)
        return plan

    def take_back(self, *references: str) -> _Job:
        """Bring artifacts that were purged back from the trash, as they were before.

        Raises `NotFound` (E511) where one names nothing, or its bytes are in the trash no more.
        """
        from bus import retention  # noqa: PLC0415 - as above
        from bus.lookup import find_artifact  # noqa: PLC0415 - brings sqlite3

        ids = [find_artifact(self.lake, reference) for reference in references]
        return self._asked("bus.gc", retention.restores(self.lake, ids))

    def set_policy(
        self, kind: str, *, keep_last: int | None = None, keep_days: int | None = None
    ) -> _Job:
        """How long withdrawn versions of a kind keep their bytes: see `bus.model.SetPolicy`.

        Neither of both removes the policy. Raises `Refused` (E103, E104) for values that cannot be.
        """
        policy = {"op": "set_policy", "kind": kind, "keep_last": keep_last, "keep_days": keep_days}
        return self._asked("bus.policy", [policy])

    def _asked(self, producer: str, mutations: list[dict[str, Any]]) -> _Job:
        from bus.staging import stage_mutations  # noqa: PLC0415 - brings pyarrow

        return self._submitted(stage_mutations(self.lake, producer, mutations))
