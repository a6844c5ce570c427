"""The invariants of the design, each a function that looks and yields what is wrong.

The numbers are those of DESIGN section 11. `facts` is a manifest that equals the journal. Two
invariants cannot be seen in a lake at rest and are checked by what their violation leaves behind:
11 (a bad job never stops good ones) by jobs that others have passed, 12 (never two writers) by the
order of writers in the journal. 3, 4 and the levels of looking are in `bus.verify`.
"""

from __future__ import annotations

import json
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from bus import views
from bus.hashing import file_hash
from bus.lake import COMMIT, DATA, MANIFEST
from bus.model import (
    CommitMarker,
    JobManifest,
    JobState,
    artifact_id_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from bus.damage import Affected
    from bus.lake import Lake
    from bus.manifest import Manifest
    from bus.settings import Settings

RELINK = "Run `bus rebuild`, or `bus verify --repair`: links and trees are views."
REBUILD = "Run `bus rebuild`: the truth is not affected."
REMAKE = "Run `bus rebuild --from-journal`: the truth is not affected."
RETRACT = "Run `bus verify --repair`, or remove it: no rebuild relies on it."
RESTORE_RECORD = "Restore the record from a backup; nothing may be committed after a gap."
RESTORE = "Restore it from a backup, or submit the same rows again."
MAKE_READ_ONLY = "Make it read-only (0444) once it is known that its bytes are right."
RECORD_READ_ONLY = "Make it read-only (0444)."
OUR_ERROR = "This is an error of the bus, not of your data: please report it with this line."
KEPT = "Nothing else is lost: the journal has all that it said."
#: Threads that hash.
HASHERS = max(2, min(8, os.cpu_count() or 1))
#: Files that a thread takes at most: handing one over costs as much as hashing a small one.
_HASHED_AT_A_TIME = 16
_SLACK_S = 60.0
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ON_THEIR_WAY = (JobState.STAGED, JobState.VALIDATING, JobState.READY)


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken invariant: its number, the place, what is wrong there, and what to do.

    `affected`: of damage, the artifacts on it and those made from them.
    """

    invariant: int
    where: str
    message: str
    fix: str
    affected: Affected | None = None

    def __str__(self) -> str:
        return f"invariant {self.invariant} at {self.where}: {self.message} ({self.fix})"


OBJECTS_IN_USE = """
SELECT file_hash, size_bytes FROM objects
WHERE file_hash NOT IN (SELECT file_hash FROM damage_facts WHERE ended_seq IS NULL)
  AND file_hash NOT IN (SELECT file_hash FROM purge_facts WHERE ended_seq IS NULL)
ORDER BY file_hash
"""


# ── 1 and 2: objects ──────────────────────────────────────────────────────────────────────────


def object_at(place: str, size_bytes: int) -> Iterator[Finding]:
    """1: the object is there, a whole plain file. 2: nobody may write it."""
    try:
        seen = os.lstat(place)
    except FileNotFoundError:
        yield Finding(1, place, "the object is missing", RESTORE)
        return
    if not stat.S_ISREG(seen.st_mode):
        yield Finding(1, place, "the object is no regular file", RESTORE)
    elif seen.st_size != size_bytes:
        message = f"{seen.st_size:,} bytes where {size_bytes:,} were committed"
        yield Finding(1, place, message, RESTORE)
    elif seen.st_mode & 0o222:
        message = f"the object is writable (mode {stat.S_IMODE(seen.st_mode):o})"
        yield Finding(2, place, message, MAKE_READ_ONLY)


def naming(finding: Finding, affected: Affected) -> Finding:
    """The finding, with what it means to people."""
    return replace(finding, message=f"{finding.message}; {affected}", affected=affected)


def hashes(
    chosen: list[tuple[str, str]], was_read: Callable[[int, int], None]
) -> Iterator[Finding]:
    """1: hashed again, each file has the hash it is listed with; missing ones were told already.

    `was_read(number, bytes)` is called after each.
    """
    size = max(1, min(len(chosen) // (32 * HASHERS), _HASHED_AT_A_TIME))  # so that all end together
    portions = (chosen[n : n + size] for n in range(0, len(chosen), size))
    with ThreadPoolExecutor(HASHERS) as pool:
        looks = chain.from_iterable(pool.map(_hash, portions))
        for number, ((expected, place), (seen, size_bytes)) in enumerate(
            zip(chosen, looks, strict=True), start=1
        ):
            was_read(number, size_bytes)
            if seen != expected:
                yield Finding(1, place, f"its bytes are {seen}", RESTORE)


def _hash(portion: list[tuple[str, str]]) -> list[tuple[str, int]]:
    return [_hash_one(expected, place) for expected, place in portion]


def _hash_one(expected: str, place: str) -> tuple[str, int]:
    try:
        return file_hash(place), os.stat(place).st_size  # noqa: PTH116 - texts: a million of them
    except FileNotFoundError:
        return expected, 0
    except OSError as error:
        return f"unreadable: {error.strerror}", 0


def next_objects(lake: Lake, manifest: Manifest, size: int) -> list[tuple[str, str]]:
    """The objects after those of the last time, round and round."""
    try:
        last = lake.verify_cursor.read_text()
    except OSError:
        last = ""
    after = (
        "SELECT DISTINCT file_hash FROM artifact_facts "
        "WHERE ended_seq IS NULL AND file_hash > ? AND file_hash NOT IN ("
        "SELECT file_hash FROM damage_facts WHERE ended_seq IS NULL) AND file_hash NOT IN ("
        "SELECT file_hash FROM purge_facts WHERE ended_seq IS NULL) ORDER BY file_hash LIMIT ?"
    )
    names = [name for (name,) in manifest.rows(after, (last, size))]
    if len(names) < size:
        names += [n for (n,) in manifest.rows(after, ("", size - len(names))) if n not in names]
    return [(name, lake.object_place(name.removeprefix("sha256:"))) for name in names]


def purges(facts: Manifest) -> Iterator[Finding]:
    """1: bytes are given up only of what was superseded or tombstoned."""
    for kind, key, artifact_id in facts.rows(_PURGED_ACTIVE):
        message = f"{kind} {key} was purged, and nothing had superseded or tombstoned it"
        yield Finding(1, artifact_id, message, RESTORE)


_PURGED_ACTIVE = """
SELECT artifact_type, logical_key, artifact_id FROM artifact_facts a
WHERE ended_seq IS NULL
  AND file_hash IN (SELECT file_hash FROM purge_facts WHERE ended_seq IS NULL)
  AND artifact_id NOT IN (
    SELECT supersedes_artifact_id FROM supersede_facts WHERE ended_seq IS NULL)
  AND artifact_id NOT IN (SELECT artifact_id FROM tombstone_facts WHERE ended_seq IS NULL)
"""


# ── 7 and 8: identities and references ────────────────────────────────────────────────────────


def identities(facts: Manifest) -> Iterator[Finding]:
    """7: an artifact_id follows from its identity, and stands for one set of bytes at a time."""
    for rows in facts.chunks(
        "SELECT artifact_id, artifact_type, schema_version, logical_key, content_hash "
        "FROM artifact_facts"
    ):
        for artifact_id, *identity in rows:
            if (expected := artifact_id_of(*identity)) != artifact_id:
                yield Finding(7, artifact_id, f"its identity gives {expected}", OUR_ERROR)
    for artifact_id, times in facts.rows(
        "SELECT artifact_id, count(*) FROM artifact_facts WHERE ended_seq IS NULL "
        "GROUP BY artifact_id HAVING count(*) > 1"
    ):
        yield Finding(7, artifact_id, f"exists {times} times", OUR_ERROR)


def references(facts: Manifest) -> Iterator[Finding]:
    """8: what is referred to exists, and nothing descends from itself or supersedes itself."""
    for table, column in _REFERENCES:
        for target, count in facts.rows(
            f"SELECT {column}, count(*) FROM {table} f WHERE NOT EXISTS ("  # noqa: S608 - our own tables
            f"SELECT 1 FROM artifact_facts a WHERE a.artifact_id = f.{column}) GROUP BY {column}"
        ):
            message = f"does not exist, but {count} rows of {table} refer to it"
            yield Finding(8, target, message, OUR_ERROR)
    for table, column in _NUMBERS:
        for number, count in facts.rows(
            f"SELECT {column}, count(*) FROM {table} f WHERE NOT EXISTS ("  # noqa: S608 - likewise
            f"SELECT 1 FROM nodes n WHERE n.node = f.{column}) GROUP BY {column}"
        ):
            message = f"{count} rows of {table} refer to an artifact of this number; there is none"
            yield Finding(8, f"{column} {number}", message, OUR_ERROR)
    for table in _NUMBERED:
        for artifact_id, count in facts.rows(
            f"SELECT f.artifact_id, count(*) FROM {table} f LEFT JOIN nodes n USING (node) "  # noqa: S608 - likewise
            "WHERE n.artifact_id IS NOT f.artifact_id GROUP BY f.artifact_id"
        ):
            message = f"{count} rows of {table} have it under a number that is not its own"
            yield Finding(8, artifact_id, message, OUR_ERROR)
    for table, start, end, verb in _GRAPHS:
        edges = f"SELECT {start}, {end} FROM {table} WHERE ended_seq IS NULL"  # noqa: S608 - likewise
        for artifact_id in _in_cycles(edge for rows in facts.chunks(edges) for edge in rows):
            yield Finding(8, artifact_id, f"{verb} itself", OUR_ERROR)


_REFERENCES = (
    *(("supersede_facts", "artifact_id"), ("supersede_facts", "supersedes_artifact_id")),
    *(("tombstone_facts", "artifact_id"), ("alias_facts", "artifact_id")),
    *(("pin_facts", "artifact_id"), ("run_artifacts", "artifact_id")),
    ("nodes", "artifact_id"),  # what tags and lineage speak of
)
_NUMBERS = (("tag_marks", "node"), ("lineage_edges", "node"), ("lineage_edges", "input"))
_NUMBERED = ("artifact_facts", "run_artifacts")
_GRAPHS = (
    ("lineage_facts", "artifact_id", "input_artifact_id", "descends from"),
    ("supersede_facts", "artifact_id", "supersedes_artifact_id", "supersedes"),
)


def _in_cycles(edges: Iterable[tuple[str, str]]) -> list[str]:
    """Nodes that are left when those without a way on are taken away, again and again."""
    ways_on: dict[str, int] = {}
    back: dict[str, list[str]] = {}
    for start, end in edges:
        ways_on[start] = ways_on.get(start, 0) + 1
        ways_on.setdefault(end, 0)
        back.setdefault(end, []).append(start)
    done = [node for node, count in ways_on.items() if count == 0]
    for node in done:
        for start in back.get(node, ()):
            ways_on[start] -= 1
            if ways_on[start] == 0:
                done.append(start)  # the list is a queue
    return sorted(ways_on.keys() - set(done))


# ── 5, 10, 12: jobs, their answers, and who committed them ────────────────────────────────────


def submissions(facts: Manifest) -> Iterator[int]:
    """5: records that hold a verdict which an earlier one holds, too: it was indexed there."""
    for (seq,) in facts.rows(
        "SELECT c.seq FROM commits c LEFT JOIN (SELECT seq, count(*) AS n FROM jobs GROUP BY seq) j "
        "ON j.seq = c.seq WHERE c.jobs <> coalesce(j.n, 0)"
    ):
        yield seq


def commits_of_jobs(facts: Manifest) -> Iterator[Finding]:
    """5: a job_id is committed at most once."""
    for job_id, seqs in facts.rows(
        "SELECT job_id, group_concat(seq, ', ') FROM jobs WHERE outcome = 'committed' "
        "GROUP BY job_id HAVING count(*) > 1"
    ):
        yield Finding(5, job_id, f"was committed more than once: in {seqs}", OUR_ERROR)


def writers(facts: Manifest) -> Iterator[Finding]:
    """12: a writer that another has followed never commits again."""
    present = ""
    gone: set[str] = set()
    for seq, writer in facts.rows("SELECT seq, writer FROM commits ORDER BY seq"):
        if writer in gone:
            message = f"writer {writer} committed {seq} after another had taken over"
            yield Finding(12, f"commit {seq}", message, OUR_ERROR)
        if writer != present:
            gone.add(present)
            present = writer


def unanswered(lake: Lake, facts: Manifest) -> Iterator[Finding]:
    """10: every committed job has its receipt, or lies in ready/, where the writer will find it.

    But for those that were discarded, or not restored: the journal answers for them.
    """
    names = {*lake.names(JobState.COMMITTED), *lake.names(JobState.READY)}
    for rows in facts.chunks(_WITH_RECEIPT, (lake.restored_at(),)):
        for job_id, seq in rows:
            if job_id not in names:
                where = str(lake.state_dir(JobState.COMMITTED) / job_id)
                yield Finding(10, where, f"the receipt of commit {seq} is gone", KEPT)


_WITH_RECEIPT = """
SELECT job_id, seq FROM jobs WHERE outcome = 'committed' AND committed_at_utc >= max(?, coalesce(
  (SELECT max(before) FROM discard_facts WHERE jobs = 'committed'), ''))
"""


def first_line(error: Exception) -> str:
    """What fits into a finding."""
    return str(error).partition("\n")[0]


# ── 6 and 11: jobs on their way ───────────────────────────────────────────────────────────────


def staged(lake: Lake) -> Iterator[Finding]:
    """6: what our clients acknowledged is whole: its manifest is the one they wrote, its files are there.

    Jobs that other programs fill in place are theirs to complete.
    """
    for state in (JobState.STAGED, JobState.VALIDATING):
        for entry in lake.listing(state):
            path = lake.state_dir(state) / entry.name
            with suppress(FileNotFoundError, ValidationError):
                marker = CommitMarker.from_bytes((path / COMMIT).read_bytes())
                manifest = JobManifest.from_bytes((path / MANIFEST).read_bytes())
                yield from _lacking(path, marker, manifest)


def _lacking(path: Path, marker: CommitMarker, manifest: JobManifest) -> Iterator[Finding]:
    again = "Submit the job again."
    if file_hash(path / MANIFEST) != f"sha256:{marker.manifest_sha256}":
        yield Finding(6, str(path / MANIFEST), "changed after the job was acknowledged", again)
        return
    for entry in manifest.artifacts:
        if entry.size_bytes is None:
            continue
        try:
            seen = os.lstat(path / entry.relpath).st_size
        except FileNotFoundError:
            if path.is_dir():
                yield Finding(6, str(path / entry.relpath), "acknowledged, but missing", again)
            continue
        if seen != entry.size_bytes:
            message = f"{seen:,} bytes where {entry.size_bytes:,} were acknowledged"
            yield Finding(6, str(path / entry.relpath), message, again)


def stuck(lake: Lake, settings: Settings, facts: Manifest) -> Iterator[Finding]:
    """11: no job lies where it is while others pass it for longer than anything may wait."""
    newest = facts.named("newest_moment", ())
    if not newest:
        return
    patience_s = max(settings.lineage_wait_s, settings.incomplete_after_s) + _SLACK_S
    newest_s = datetime.fromisoformat(newest[0][0]).timestamp()
    for state in ON_THEIR_WAY:
        for entry in lake.listing(state):
            path = lake.state_dir(state) / entry.name
            if state is JobState.STAGED and not (path / COMMIT).exists():
                continue  # its producer has not finished it
            if newest_s - entry.changed_at_s > patience_s and path.exists():
                since = datetime.fromtimestamp(entry.changed_at_s, UTC).isoformat("T", "seconds")
                message = f"lies there since {since}, and jobs that came later were committed"
                yield Finding(11, str(path), message, "See the logs of workers and writer.")


# ── 4: file views ─────────────────────────────────────────────────────────────────────────────


def links(lake: Lake, live: Manifest, *, whole: bool) -> Iterator[Finding]:
    """4: `artifacts/` shows exactly the active artifacts, each with the bytes of its object.

    What changed after the commit up to which links are known to be made is left out. `whole`:
    where a link ran out of names and became a copy, its bytes are read.
    """
    done = live.progress("links")
    changing = {row[0] for rows in live.chunks(_CHANGING, (done,) * 9) for row in rows}
    strays = views.listing(lake)
    none: set[str] = set()
    for rows in live.chunks(_ACTIVE):
        for kind, version, artifact_id, file_hash_text in rows:
            directory, name = lake.artifact_place(kind, version, artifact_id)
            strays.get(directory, none).discard(name)
            if artifact_id not in changing:
                yield from _shows(lake, f"{directory}/{name}", file_hash_text, whole=whole)
    for directory, names in strays.items():
        for name in names:
            artifact_id = name.removesuffix(".parquet")
            if _UUID.fullmatch(artifact_id) and artifact_id not in changing:
                yield Finding(4, f"{directory}/{name}", "a link of no active artifact", RELINK)


_ACTIVE = """
SELECT artifact_type, schema_version, artifact_id, file_hash FROM linked
"""
#: Artifacts that began, ended, or changed their status after a commit.
_CHANGING = """
SELECT artifact_id FROM artifact_facts WHERE added_seq > ? OR ended_seq > ?
UNION SELECT supersedes_artifact_id FROM supersede_facts WHERE added_seq > ?
UNION SELECT artifact_id FROM tombstone_facts WHERE added_seq > ? OR ended_seq > ?
UNION SELECT artifact_id FROM artifact_facts WHERE file_hash IN (
  SELECT file_hash FROM damage_facts WHERE added_seq > ? OR ended_seq > ?
  UNION ALL SELECT file_hash FROM purge_facts WHERE added_seq > ? OR ended_seq > ?)
"""


def trees(lake: Lake, live: Manifest) -> Iterator[Finding]:
    """4: every use up to the commit that trees have come to is in its run's tree."""
    done = live.progress("trees")
    for rows in live.chunks(_NEWEST_USES, (done,)):
        for run_id, name, file_hash_text in rows:
            place = f"{lake.run_place(run_id, name)}/{DATA}"
            yield from _shows(lake, place, file_hash_text, whole=True)


_NEWEST_USES = """
SELECT run_id, name, file_hash FROM run_artifacts u
WHERE seq <= ? AND use_no = (
  SELECT max(use_no) FROM run_artifacts n WHERE n.run_id = u.run_id AND n.name = u.name)
  AND file_hash NOT IN (SELECT file_hash FROM purge_facts WHERE ended_seq IS NULL)
"""


def _shows(lake: Lake, place: str, file_hash_text: str, *, whole: bool) -> Iterator[Finding]:
    """Whether a view's file is the object, or a copy of it; a missing object was told as 1."""
    source = lake.object_place(file_hash_text.removeprefix("sha256:"))
    try:
        if not views.shows(source, place, whole=whole):
            yield Finding(4, place, "the link shows other bytes than the object", RELINK)
    except FileNotFoundError:
        yield Finding(4, place, "the link is missing", RELINK)


# ── 9: what readers open ──────────────────────────────────────────────────────────────────────


def exports(lake: Lake, *, whole: bool) -> Iterator[Finding]:
    """9: every export opens and has the rows that the status tells; `whole`: every page is read."""
    try:
        status = json.loads(lake.export_status.read_bytes())
        rows = {result["name"]: result.get("rows") for result in status["results"]}
    except FileNotFoundError:
        rows = {}
    except (ValueError, KeyError, TypeError) as error:
        yield Finding(9, str(lake.export_status), f"unreadable: {error}", "Run `bus export`.")
        rows = {}
    for path in sorted(lake.exports.glob("*.parquet")):
        try:
            found = _rows_of(path, whole=whole)
        except FileNotFoundError:
            continue
        except (OSError, pa.ArrowException) as error:
            yield Finding(9, str(path), f"unreadable: {first_line(error)}", "Run `bus export`.")
            continue
        expected = rows.get(path.stem)
        if expected is not None and expected != found:
            message = f"{found:,} rows where the status tells {expected:,}"
            yield Finding(9, str(path), message, "Run `bus export`.")


def _rows_of(path: Path, *, whole: bool) -> int:
    with pq.ParquetFile(path, page_checksum_verification=whole) as file:
        if not whole:
            return int(file.metadata.num_rows)
        return sum(batch.num_rows for batch in file.iter_batches())
