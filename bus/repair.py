"""What may be done about the findings of a verification: nothing that could lose anything.

Views are made again by the writer, on request; a wrong checkpoint is removed; leftovers that nobody
touched for a day go. Damage is told to the writer by a job, as everything that changes the catalog
is: `mark_damaged` for objects whose bytes are gone or changed, `restore` for those that are back. It
looks again itself.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bus import disk
from bus.errors import Unavailable
from bus.hashing import file_hash
from bus.intake import Intake, clean
from bus.invariants import (
    MAKE_READ_ONLY,
    REBUILD,
    RECORD_READ_ONLY,
    RELINK,
    REMAKE,
    RESTORE,
    RETRACT,
)
from bus.lake import Remake
from bus.manifest import Manifest
from bus.model import JobState
from bus.objects import copied
from bus.staging import stage_mutations
from bus.standing import is_whole
from bus.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bus.lake import Lake
    from bus.settings import Settings
    from bus.specs import Registry
    from bus.verify import Report

#: Said of one object at most.
_FOUND_CHARACTERS = 500
#: What the writer is asked for, by the fix that a finding names.
_ASKED = {RELINK: Remake.LINKS, REBUILD: Remake.VIEWS, REMAKE: Remake.FROM_JOURNAL}
_ON_THEIR_WAY = (JobState.STAGED, JobState.VALIDATING, JobState.READY)
#: Another writer's lock is waited for this long.
_LOCK_WAIT_S = 10.0


def mend(lake: Lake, report: Report, source: Lake | None = None) -> list[str]:
    """Do what cannot lose anything; each deed in words. The rest is left to the writer (`finish`).

    What the writer knows as damaged is brought back from `source` (a backup, or another lake),
    where that has it.
    """
    done = [*_read_only_again(report), *_retracted(report)]
    if source is not None:
        done += _brought_back(lake, source)
    if removed := clean(lake):
        done.append(f"removed {removed} leftovers that nobody had touched for a day")
    if asked := [_ASKED[finding.fix] for finding in report.findings if finding.fix in _ASKED]:
        lake.ask_for(max(asked))
        done.append(f"asked the writer to {max(asked).words}")
    if job_id := tell_of_damage(lake, report):
        done.append(f"told the writer which objects are damaged, or back: job {job_id}")
    return done


def _read_only_again(report: Report) -> Iterator[str]:
    """Objects whose bytes are right, and records that nothing else is said of."""
    wrong = {finding.where for finding in report.findings if finding.invariant == 3}  # noqa: PLR2004 - the chain
    for finding in report.findings:
        path = Path(finding.where)
        if finding.fix == MAKE_READ_ONLY:
            right = file_hash(path) == f"sha256:{path.stem}"
        else:
            right = finding.fix == RECORD_READ_ONLY and finding.where not in wrong
        if right and disk.freeze(path):
            yield f"made {path} read-only"


def _retracted(report: Report) -> Iterator[str]:
    for where in dict.fromkeys(f.where for f in report.findings if f.fix == RETRACT):
        disk.remove_tree(Path(where))
        yield f"removed the checkpoint {where}"


def finish(lake: Lake, settings: Settings, registry: Registry) -> list[str]:
    """Where no bus runs: be its validator and writer until nothing waits; each deed in words.

    Jobs that somebody left half done are finished, and what `mend` asked for is done. Raises
    `LakeBusy` (E503) when another writer holds the lake.
    """
    jobs = 0
    with Writer.open(lake, settings, registry, wait_s=_LOCK_WAIT_S) as writer:
        asked = lake.asked_for()
        while True:
            more = Intake(lake, settings, registry).drain().more
            drained = writer.drain()
            jobs += drained.jobs
            if not (more or drained.more):
                break
    done = [f"did it: {asked.words}"] if asked else []
    return [*done, f"committed and answered {jobs} jobs that waited"] if jobs else done


def is_at_rest(lake: Lake) -> bool:
    """Whether nothing waits for a validator or a writer."""
    waiting = any(lake.has_any(state) for state in _ON_THEIR_WAY)
    return not waiting and lake.asked_for() is None


def tell_of_damage(lake: Lake, report: Report) -> str | None:
    """Stage a job that says which objects are damaged and which are back; its job_id, if any is.

    It lies in the inbox when this returns; whoever runs a bus may ring for it, the sweep finds it.
    """
    in_use, marked = _objects(lake)
    mutations: list[dict[str, Any]] = []
    for finding in report.findings:
        sha256 = Path(finding.where).stem
        if finding.fix == RESTORE and sha256 in in_use - marked:
            found = finding.message[:_FOUND_CHARACTERS]
            mutations.append({"op": "mark_damaged", "object": sha256, "found": found})
    back = [sha256 for sha256 in sorted(marked) if is_whole(lake, sha256)]
    mutations += [{"op": "restore", "object": sha256} for sha256 in back]
    if not mutations:
        return None
    return stage_mutations(lake, "bus.verify", mutations).job_id


def _brought_back(lake: Lake, source: Lake) -> Iterator[str]:
    """Objects that are known as damaged, and set aside, where the source has them whole."""
    _, marked = _objects(lake)
    for sha256 in sorted(marked):
        place = lake.object_path(sha256)
        if place.exists() or not source.object_path(sha256).exists():
            continue
        place.parent.mkdir(exist_ok=True)
        if copied(source.object_path(sha256), place, sha256):
            disk.sync_dir(place.parent)
            disk.sync_dir(lake.objects)
            yield f"brought object {sha256} back from {source.root}"


def _objects(lake: Lake) -> tuple[set[str], set[str]]:
    """SHA-256 of the objects that artifacts stand on, and of those that are known as damaged."""
    try:
        manifest = Manifest.read(lake)
    except Unavailable:
        return set(), set()
    with closing(manifest):
        damaged = manifest.rows("SELECT file_hash FROM damage_facts WHERE ended_seq IS NULL")
        used = manifest.rows("SELECT file_hash FROM objects")
        return _digests(used), _digests(damaged)


def _digests(rows: list[tuple[Any, ...]]) -> set[str]:
    return {file_hash_text.removeprefix("sha256:") for (file_hash_text,) in rows}
