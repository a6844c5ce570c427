"""What may be done about the findings of a verification: nothing that could lose anything.

Damage is told to the writer by a job, as everything that changes the catalog is: `mark_damaged` for
objects whose bytes are gone or changed, `restore` for those that are back. It looks again itself.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bus import disk
from bus.errors import Unavailable
from bus.hashing import file_hash
from bus.invariants import MAKE_READ_ONLY, REBUILD, RESTORE
from bus.manifest import Manifest
from bus.staging import Staging
from bus.standing import is_whole

if TYPE_CHECKING:
    from bus.lake import Lake
    from bus.verify import Report

_RUN_ID = "maintenance"
_PRODUCER = "bus.verify"
_KIND = "maintenance"
#: Said of one object at most.
_FOUND_CHARACTERS = 500


def mend(lake: Lake, report: Report) -> list[str]:
    """Do what cannot lose anything; each deed in words. Damaged objects are told to the writer.

    Objects whose bytes are right become read-only again, and the writer is asked for a rebuild
    where a view is wrong.
    """
    done: list[str] = []
    for path in dict.fromkeys(Path(f.where) for f in report.findings if f.fix == MAKE_READ_ONLY):
        if file_hash(path) != f"sha256:{path.stem}":
            continue
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            done += [f"made {path} read-only"] if disk.make_read_only(fd) else []
        finally:
            os.close(fd)
    if any(finding.fix == REBUILD for finding in report.findings):
        disk.write_plain(lake.rebuild_request, b"")
        done.append("asked the writer to rebuild every view")
    if job_id := tell_of_damage(lake, report):
        done.append(f"told the writer which objects are damaged, or back: job {job_id}")
    return done


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
    with Staging(lake, _RUN_ID, _PRODUCER, _KIND) as job:
        return job.submit(mutations=mutations).job_id


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
