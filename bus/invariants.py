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
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from bus.hashing import file_hash
from bus.lake import COMMIT, MANIFEST, RECEIPT, REJECT_REASON, VERDICT
from bus.model import (
    CommitMarker,
    JobManifest,
    JobState,
    Outcome,
    Receipt,
    RejectReason,
    Verdict,
    artifact_id_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from bus.lake import Lake
    from bus.manifest import Manifest
    from bus.settings import Settings

REBUILD = "Run `bus rebuild`: the truth is not affected."
RESTORE = "Restore it from a backup, or submit the same rows again."
MAKE_READ_ONLY = "Make it read-only (0444) once it is known that its bytes are right."
OUR_ERROR = "This is an error of the bus, not of your data: please report it with this line."
_KEPT = "Nothing else is lost: the journal has all that it said."
_HASHERS = 2
_SLACK_S = 60.0
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ON_THEIR_WAY = (JobState.STAGED, JobState.VALIDATING, JobState.READY)


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken invariant: its number, the place, what is wrong there, and what to do."""

    invariant: int
    where: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"invariant {self.invariant} at {self.where}: {self.message} ({self.fix})"


OBJECTS_IN_USE = """
SELECT file_hash, size_bytes FROM objects
WHERE file_hash NOT IN (SELECT file_hash FROM damage_facts WHERE ended_seq IS NULL)
ORDER BY file_hash
"""


# ── 1 and 2: objects ──────────────────────────────────────────────────────────────────────────


def object_at(path: Path, size_bytes: int) -> Iterator[Finding]:
    """1: the object is there, a whole plain file. 2: nobody may write it."""
    try:
        seen = path.lstat()
    except FileNotFoundError:
        yield Finding(1, str(path), "the object is missing", RESTORE)
        return
    if not stat.S_ISREG(seen.st_mode):
        yield Finding(1, str(path), "the object is no regular file", RESTORE)
    elif seen.st_size != size_bytes:
        message = f"{seen.st_size:,} bytes where {size_bytes:,} were committed"
        yield Finding(1, str(path), message, RESTORE)
    elif seen.st_mode & 0o222:
        message = f"the object is writable (mode {stat.S_IMODE(seen.st_mode):o})"
        yield Finding(2, str(path), message, MAKE_READ_ONLY)


def told(facts: Manifest, finding: Finding, file_hash_text: str) -> Finding:
    """The finding, naming what stands on the object."""
    users = facts.rows(
        "SELECT artifact_type, logical_key, artifact_id FROM artifacts WHERE file_hash = ? LIMIT 4",
        (file_hash_text,),
    )
    named = [f"{kind} {key} ({artifact_id})" for kind, key, artifact_id in users[:3]]
    more = " and others" if len(users) > len(named) else ""
    whose = f"on it: {', '.join(named)}{more}" if named else "no artifact stands on it"
    return replace(finding, message=f"{finding.message}; {whose}")


def hashes(
    chosen: list[tuple[str, Path]], was_read: Callable[[int, int], None]
) -> Iterator[Finding]:
    """1: hashed again, each file has the hash it is listed with; missing ones were told already.

    `was_read(number, bytes)` is called after each.
    """
    with ThreadPoolExecutor(_HASHERS) as pool:
        looks = pool.map(_hash, chosen)
        for number, ((expected, path), (seen, size_bytes)) in enumerate(
            zip(chosen, looks, strict=True), start=1
        ):
            was_read(number, size_bytes)
            if seen != expected:
                yield Finding(1, str(path), f"its bytes are {seen}", RESTORE)


def _hash(item: tuple[str, Path]) -> tuple[str, int]:
    expected, path = item
    try:
        return file_hash(path), path.stat().st_size
    except FileNotFoundError:
        return expected, 0
    except OSError as error:
        return f"unreadable: {error.strerror}", 0


def next_objects(lake: Lake, manifest: Manifest, size: int) -> list[tuple[str, Path]]:
    """The objects after those of the last time, round and round."""
    try:
        last = lake.verify_cursor.read_text()
    except OSError:
        last = ""
    after = (
        "SELECT DISTINCT file_hash FROM artifact_facts "
        "WHERE ended_seq IS NULL AND file_hash > ? AND file_hash NOT IN ("
        "SELECT file_hash FROM damage_facts WHERE ended_seq IS NULL) ORDER BY file_hash LIMIT ?"
    )
    names = [name for (name,) in manifest.rows(after, (last, size))]
    if len(names) < size:
        names += [n for (n,) in manifest.rows(after, ("", size - len(names))) if n not in names]
    return [(name, lake.object_path(name.removeprefix("sha256:"))) for name in names]


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
    for table, start, end, verb in _GRAPHS:
        edges = f"SELECT {start}, {end} FROM {table} WHERE ended_seq IS NULL"  # noqa: S608 - likewise
        for artifact_id in _in_cycles(edge for rows in facts.chunks(edges) for edge in rows):
            yield Finding(8, artifact_id, f"{verb} itself", OUR_ERROR)


_REFERENCES = (
    *(("lineage_facts", "artifact_id"), ("lineage_facts", "input_artifact_id")),
    *(("supersede_facts", "artifact_id"), ("supersede_facts", "supersedes_artifact_id")),
    *(("tag_facts", "artifact_id"), ("tombstone_facts", "artifact_id")),
    *(("alias_facts", "artifact_id"), ("pin_facts", "artifact_id")),
    ("run_artifacts", "artifact_id"),
)
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
    """10: every committed job has its receipt, or lies in ready/, where the writer will find it."""
    names = {entry.name for entry in lake.listing(JobState.COMMITTED)}
    ready = {entry.name for entry in lake.listing(JobState.READY)}
    for rows in facts.chunks("SELECT job_id, seq FROM jobs WHERE outcome = 'committed'"):
        for job_id, seq in rows:
            if job_id not in names and job_id not in ready:
                where = str(lake.state_dir(JobState.COMMITTED) / job_id)
                yield Finding(10, where, f"the receipt of commit {seq} is gone", _KEPT)


def answer(
    lake: Lake, state: JobState, name: str, facts: Manifest, lying: dict[str, Path]
) -> Iterator[Finding]:
    """5: a directory with a verdict is the only one of it, and lies where the journal says.

    `lying`: where each verdict was met so far.
    """
    path = lake.state_dir(state) / name
    try:
        verdict = Verdict.from_bytes((path / VERDICT).read_bytes())
    except FileNotFoundError:
        if path.is_dir() and state not in _ON_THEIR_WAY:
            yield Finding(5, str(path), "answered without a verdict", _KEPT)
        return
    except (OSError, ValidationError) as error:
        if state not in _ON_THEIR_WAY:  # else the writer sends it back to be judged again
            yield Finding(5, str(path / VERDICT), f"unreadable: {_first_line(error)}", _KEPT)
        return
    other = lying.setdefault(verdict.verdict_id, path)
    if other != path and other.exists() and path.exists():
        message = f"the same submission lies in {other} too"
        yield Finding(5, str(path), message, "Keep the one that the journal speaks of.")
    if state not in _ON_THEIR_WAY:
        yield from _second_names(lake, path, verdict)
        yield from _document(path, state, verdict, facts)


def _second_names(lake: Lake, path: Path, verdict: Verdict) -> Iterator[Finding]:
    """2: no file of an answered job is a second name of an object, through which to change it."""
    for artifact in verdict.artifacts:
        with suppress(FileNotFoundError):
            if (path / artifact.relpath).samefile(lake.object_path(artifact.sha256)):
                message = f"a second name of the object {artifact.sha256}"
                yield Finding(2, str(path / artifact.relpath), message, "Remove this name.")


def _document(path: Path, state: JobState, verdict: Verdict, facts: Manifest) -> Iterator[Finding]:
    """10: receipt or reason say what the journal says."""
    rejected = state is JobState.REJECTED
    document = path / (REJECT_REASON if rejected else RECEIPT)
    model: type[Receipt | RejectReason] = RejectReason if rejected else Receipt
    try:
        told = model.from_bytes(document.read_bytes())
    except (OSError, ValidationError) as error:
        yield Finding(10, str(document), f"unreadable: {_first_line(error)}", _KEPT)
        return
    known = facts.rows(_JOURNALED, (verdict.verdict_id,))
    if not known:
        if told.seq <= facts.applied[0]:  # else it was committed after we began
            message = f"answered as of commit {told.seq}, but that is not in the journal"
            yield Finding(5, str(path), message, "Submit the job again.")
        return
    ((outcome, seq, job_id, problems),) = known
    if rejected != (outcome == Outcome.REJECTED):
        yield Finding(5, str(path), f"the journal says {outcome}, in commit {seq}", _KEPT)
    elif (told.job_id, told.seq, _content(told)) != (job_id, seq, _expected(facts, told, problems)):
        yield Finding(10, str(document), f"differs from commit {seq} of the journal", _KEPT)


_JOURNALED = """
SELECT outcome, coalesce(first_seq, seq), job_id, problems_json FROM jobs WHERE verdict_id = ?
"""
_DELIVERED = """
SELECT name, artifact_id, file_hash, content_hash, rows FROM run_artifacts
WHERE job_id = ? AND seq = ? ORDER BY use_no
"""


def _content(told: Receipt | RejectReason) -> list[Any]:
    if isinstance(told, RejectReason):
        return [problem.model_dump() for problem in told.problems]
    return [(a.name, a.artifact_id, a.file_hash, a.content_hash, a.rows) for a in told.artifacts]


def _expected(facts: Manifest, told: Receipt | RejectReason, problems: str | None) -> list[Any]:
    if isinstance(told, RejectReason):
        found: list[Any] = json.loads(problems or "[]")
        return found
    return facts.rows(_DELIVERED, (told.job_id, told.seq))


def _first_line(error: Exception) -> str:
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
    for state in _ON_THEIR_WAY:
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
    changing = {row[0] for rows in live.chunks(_CHANGING, (done,) * 7) for row in rows}
    owned: set[Path] = set()
    for rows in live.chunks(_ACTIVE):
        for kind, version, artifact_id, file_hash_text in rows:
            path = lake.artifact_path(kind, version, artifact_id)
            owned.add(path)
            if artifact_id not in changing:
                yield from _shows(lake, path, file_hash_text, whole=whole)
    for path in lake.artifact_links():
        if path not in owned and _UUID.fullmatch(path.stem) and path.stem not in changing:
            yield Finding(4, str(path), "a link of no active artifact", REBUILD)


_ACTIVE = """
SELECT artifact_type, schema_version, artifact_id, file_hash FROM linked
"""
#: Artifacts that began, ended, or changed their status after a commit.
_CHANGING = """
SELECT artifact_id FROM artifact_facts WHERE added_seq > ? OR ended_seq > ?
UNION SELECT supersedes_artifact_id FROM supersede_facts WHERE added_seq > ?
UNION SELECT artifact_id FROM tombstone_facts WHERE added_seq > ? OR ended_seq > ?
UNION SELECT artifact_id FROM artifact_facts WHERE file_hash IN (
  SELECT file_hash FROM damage_facts WHERE added_seq > ? OR ended_seq > ?)
"""


def trees(lake: Lake, live: Manifest) -> Iterator[Finding]:
    """4: every use up to the commit that trees have come to is in its run's tree, with a sidecar."""
    done = live.progress("trees")
    for rows in live.chunks(_NEWEST_USES, (done,)):
        for run_id, name, artifact_id, file_hash_text in rows:
            yield from _shows(lake, lake.run_data_path(run_id, name), file_hash_text, whole=True)
            sidecar = lake.sidecar_path(artifact_id)
            if not sidecar.exists():
                yield Finding(4, str(sidecar), "the sidecar is missing", REBUILD)


_NEWEST_USES = """
SELECT run_id, name, artifact_id, file_hash FROM run_artifacts u
WHERE seq <= ? AND use_no = (
  SELECT max(use_no) FROM run_artifacts n WHERE n.run_id = u.run_id AND n.name = u.name)
"""


def _shows(lake: Lake, path: Path, file_hash_text: str, *, whole: bool) -> Iterator[Finding]:
    """Whether a view's file is the object, or a copy of it."""
    source = lake.object_path(file_hash_text.removeprefix("sha256:"))
    if not source.exists():
        return  # told as 1
    if not path.exists():
        yield Finding(4, str(path), "the link is missing", REBUILD)
    elif not path.samefile(source):
        seen = path.stat()
        differs = seen.st_size != source.stat().st_size or seen.st_nlink > 1  # no copy of ours
        if differs or (whole and file_hash(path) != file_hash_text):
            yield Finding(4, str(path), "the link shows other bytes than the object", REBUILD)


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
            yield Finding(9, str(path), f"unreadable: {_first_line(error)}", "Run `bus export`.")
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
