"""What commits stand on: objects that are there before a commit, and what becomes of damaged ones.

Anyone may find damage and submit `mark_damaged`; the writer looks again before it commits that. The
damaged file is then kept in quarantine/, and links to it are taken away, so that nobody reads its
bytes by mistake. When the bytes are back, by `restore` or because someone submitted them again,
links show them again. Every step may be repeated after a crash.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from bus import disk, views
from bus.decisions import revived
from bus.hashing import file_hash
from bus.model import MarkDamaged, Outcome, Restore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bus.lake import Lake
    from bus.manifest import Manifest
    from bus.model import CommitRecord, JobRecord, Mutation, Verdict

log = structlog.get_logger("bus.writer")


class MissingObjectError(Exception):
    """The job itself cannot provide an object that it stands on; the text is its SHA-256."""


# ── before a commit ───────────────────────────────────────────────────────────────────────────


def on_objects(lake: Lake, record: JobRecord, verdict: Verdict, directory: str) -> JobRecord:
    """The record, standing on objects that are there, and with nothing said that is not true.

    A missing object is linked again from the job's `directory`; one that shall be restored, out of
    the trash. A duplicate of an artifact whose object is gone revives it with the submitted bytes.
    Raises `MissingObjectError`.
    """
    facts_of = {facts.name: facts for facts in verdict.artifacts}
    artifacts = []
    for artifact in record.artifacts:
        facts = facts_of[artifact.name]
        missing = not os.path.lexists(lake.object_place(artifact.sha256))
        standing = revived(artifact, facts) if missing and artifact.mode else artifact
        if missing and not _restored(lake, standing.sha256, Path(directory, facts.relpath)):
            raise MissingObjectError(standing.sha256)
        artifacts.append(standing)
    mutations: list[Mutation] = []
    warnings = list(record.warnings)
    for mutation in record.mutations:
        if isinstance(mutation, Restore) and (thrown_away := lake.in_trash(mutation.object)):
            _restored(lake, mutation.object, thrown_away)
        if untrue := _untrue(lake, mutation):
            warnings.append(f"{mutation.op}: {untrue}; nothing was changed")
        else:
            mutations.append(mutation)
    changes = {"artifacts": artifacts, "mutations": mutations, "warnings": warnings}
    return record.model_copy(update=changes)


def _restored(lake: Lake, sha256: str, source: Path) -> bool:
    """Make sure of an object from another file; False when that file is not it."""
    target = lake.object_path(sha256)
    if target.exists():
        return True
    if not source.exists() or file_hash(source) != f"sha256:{sha256}":
        return False
    if not target.parent.is_dir():
        target.parent.mkdir()
        disk.sync_dir(target.parent.parent)
    disk.sync_file(source)
    disk.link_new(source, target)
    disk.sync_dir(target.parent)
    return True


def _untrue(lake: Lake, mutation: Mutation) -> str | None:
    """What is not so of a mutation that speaks of bytes."""
    match mutation:
        case MarkDamaged(object=sha256) if is_whole(lake, sha256):
            return f"object {sha256} is whole"
        case Restore(object=sha256) if not is_whole(lake, sha256):
            return f"object {sha256} is not back"
        case _:
            return None


def is_whole(lake: Lake, sha256: str) -> bool:
    """Whether an object is there with the bytes that its name tells. Reads all of it."""
    try:
        return file_hash(lake.object_path(sha256)) == f"sha256:{sha256}"
    except OSError:
        return False


# ── after a commit ────────────────────────────────────────────────────────────────────────────


def follow(lake: Lake, record: CommitRecord, manifest: Manifest) -> None:
    """Objects that this commit calls damaged go to quarantine, those that are back are shown."""
    for sha256 in _marked(record):
        _withdraw(lake, manifest, sha256)
    for (file_hash_text,) in manifest.named("bytes_back", (record.seq,)):
        source = lake.object_path(file_hash_text.removeprefix("sha256:"))
        if source.exists():
            for path in views.places(lake, manifest, file_hash_text):
                views.replace_link(source, path)


def set_aside_damaged(lake: Lake, manifest: Manifest) -> None:
    """Every object that is known to be damaged, and yet lies among the others, to quarantine."""
    for (file_hash_text,) in manifest.rows(
        "SELECT file_hash FROM damage_facts WHERE ended_seq IS NULL"
    ):
        _withdraw(lake, manifest, file_hash_text.removeprefix("sha256:"))


def _withdraw(lake: Lake, manifest: Manifest, sha256: str) -> None:
    """Into quarantine/ with a damaged object, and away with what shows it."""
    _set_aside(lake, sha256)
    if not lake.object_path(sha256).exists():
        for path in views.places(lake, manifest, f"sha256:{sha256}"):
            disk.remove(path)


def _marked(record: CommitRecord) -> Iterator[str]:
    for job in record.jobs:
        if job.outcome is Outcome.COMMITTED:
            yield from (m.object for m in job.mutations if isinstance(m, MarkDamaged))


def _set_aside(lake: Lake, sha256: str) -> None:
    """Into quarantine/, unless it has been restored since (a rebuild comes by here again)."""
    path = lake.object_path(sha256)
    if not path.exists() or is_whole(lake, sha256):
        return
    name = f"{sha256}.{secrets.token_hex(4)}"
    disk.move(path, lake.quarantine / name)
    disk.sync_dir(lake.quarantine)
    disk.sync_dir(path.parent)
    log.error("object_quarantined", object=sha256, kept_as=str(lake.quarantine / name))
