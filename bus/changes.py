"""The change feed: what each commit changed, fact by fact, in order, from any commit on.

It is read from the manifest's facts, so it tells what became true and what ceased to be: a tag that
was there already is no change, however often it is set. A rebuild tells the same again.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bus.finding import Then
from bus.manifest import reading
from bus.model import iso

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bus.lake import Lake

#: Artifacts whose changes are read at a time; bounds memory.
_WINDOW_ARTIFACTS = 2_000
#: How often a follower looks whether the next record is there.
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Change:
    """One fact that began or ended with commit `seq`, made `at`.

    change       a job was committed, rejected or repeated; an artifact created, deduped (delivered
                 again) or revived (on bytes that are whole), derived (from an input), superseded,
                 tombstoned, damaged or restored, purged, tagged, aliased or pinned; the opposites
                 begin with ``un``; policy_set and policy_removed, of a kind; discarded, of old jobs
    kind         the artifact's (or the job's, or the alias's)
    artifact_id  which artifact; None for jobs
    job_id       which job, for jobs and deliveries
    details      more, by the sort of change: ``run_id``, ``name``, ``rows``, ``k``, ``v``, ``by`` …
    """

    seq: int
    at: datetime
    change: str
    kind: str | None
    artifact_id: str | None
    job_id: str | None
    details: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: `at` as ISO 8601 text."""
        return asdict(self) | {"at": iso(self.at)}


def changes(
    lake: Lake, since: int = 0, *, kind: str | None = None, follow: bool = False
) -> Iterator[Change]:
    """Every change by commits after `since`, in order.

    To go on later, remember the `seq` of the last commit that was taken in whole. `follow` goes on
    for ever: new commits come within a fifth of a second. Raises `NotFound` (E511) when there is no
    commit `since`, `Unavailable` (E508) when the manifest cannot be read.
    """
    with Then.of(lake, since) as then:
        return _changes(lake, then.seq, kind, follow=follow)


def _changes(lake: Lake, low: int, kind: str | None, *, follow: bool) -> Iterator[Change]:
    while True:
        while (window := _window(lake, low, kind)) is not None:
            low, found = window
            yield from found
        if not follow:
            return
        time.sleep(_POLL_S)
        while not lake.record_path(low + 1).exists():
            time.sleep(_POLL_S)


def _window(lake: Lake, low: int, kind: str | None) -> tuple[int, list[Change]] | None:
    """A commit after `low`, and all that changed until then; None when there is none.

    Read in whole: a reader that pauses half-way would keep SQLite's log from being folded in.
    """
    with reading(lake) as manifest:
        if manifest is None:
            return None
        asked = {"low": low, "size": _WINDOW_ARTIFACTS}
        ((high,),) = manifest.named("window_of_changes", asked)
        if high is None:
            return None
        rows = manifest.named("changes", {"low": low, "high": high, "kind": kind})
    return high, [_change(row) for row in rows]


def _change(row: tuple[Any, ...]) -> Change:
    seq, at, change, kind, artifact_id, job_id, details = row
    told = {name: value for name, value in json.loads(details).items() if value is not None}
    return Change(seq, datetime.fromisoformat(at), change, kind, artifact_id, job_id, told)
