"""The journal: numbered, immutable commit records. Creating the next number is the commit point.

A record's name is taken with link(), which fails when the name exists: of two writers exactly one
gets the number, whatever locks say. Each record holds the SHA-256 of the one before it, so a later
edit of any record shows in the next one.
"""

from __future__ import annotations

import gc
import hashlib
import json
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from bus import disk
from bus.errors import Code, Damaged, Unavailable
from bus.model import CommitRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bus.lake import Lake

#: The newest version of records that is read here, and the one that is written.
JOURNAL_VERSION = 1
#: What pydantic calls a field, a mutation or an outcome that is not in the model.
_UNKNOWN_WORDS = {"extra_forbidden", "union_tag_invalid", "enum", "literal_error"}
_UPGRADE = (
    "Upgrade Artifact Bus here to the release that wrote it; nothing is written until then. "
    "If no newer one was ever used, the record is damaged: restore it from a backup."
)
#: `prev` of the first record.
GENESIS = "0" * 64
_CHUNK_COMMITS = 200
_CHUNK_ARTIFACTS = 2_000


class NumberTakenError(Exception):
    """Another writer committed under this number: replay it and decide again."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A record as it lies in the journal, with the SHA-256 of its bytes."""

    record: CommitRecord
    sha256: str


class Journal:
    """Append and read commit records. Readers need no lock."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    def append(self, record: CommitRecord) -> Commit:
        """Step 8: make `record` durable under its number. Raises `NumberTakenError`."""
        data = record.to_bytes()
        path = self._lake.record_path(record.seq)
        # Never a name that a dead process may have left: that file may be the record itself.
        temporary = self._lake.record_draft(f"{record.seq}-{secrets.token_hex(8)}")
        try:
            disk.write_durable(temporary, data, mode=0o444)
            disk.crash_point("commit.written")
            taken = not disk.link_new(temporary, path)
        finally:
            disk.remove(temporary)
        if taken:
            raise NumberTakenError(record.seq)
        disk.crash_point("commit.linked")
        disk.sync_dir(self._lake.journal)
        disk.crash_point("commit.done")
        return Commit(record, hashlib.sha256(data).hexdigest())

    def sweep(self) -> None:
        """Remove drafts of writers that died; the caller is the writer."""
        for path in self._lake.record_drafts():
            disk.remove(path)

    def read(self, seq: int) -> Commit | None:
        """The commit with that number, or None.

        Raises `Damaged` when it cannot be read, `Unavailable` (E512) when a newer release wrote it.
        """
        path = self._lake.record_path(seq)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            record = CommitRecord.from_bytes(data)
        except ValidationError as error:
            if news := _news(data, error):
                raise Unavailable(
                    f"journal record {seq} {news}", code=Code.E512, where=str(path), hint=_UPGRADE
                ) from None
            raise Damaged(
                f"journal record {seq} is unreadable: {error.error_count()} findings",
                where=str(path),
                hint="Restore the record from a backup; nothing may be committed after a gap.",
            ) from None
        if record.seq != seq:
            raise Damaged(
                f"journal record {seq} says it is {record.seq}",
                where=str(path),
                hint="Restore the record from a backup.",
            )
        return Commit(record, hashlib.sha256(data).hexdigest())

    def sha256(self, seq: int) -> str | None:
        """SHA-256 of the record with that number, unread; None without one."""
        try:
            return hashlib.sha256(self._lake.record_path(seq).read_bytes()).hexdigest()
        except FileNotFoundError:
            return None

    def after(self, seq: int, sha256: str) -> Iterator[Commit]:
        """Commits that follow `seq`, in order. Raises `Damaged` where the chain breaks."""
        previous = sha256
        while (commit := self.read(seq + 1)) is not None:
            if commit.record.prev != previous:
                raise Damaged(
                    f"journal record {seq + 1} does not follow record {seq}: the chain is broken",
                    where=str(self._lake.record_path(seq + 1)),
                    hint=f"Restore record {seq}, which was edited, from a backup.",
                )
            yield commit
            seq, previous = seq + 1, commit.sha256

    def check_gapless(self) -> int:
        """The newest number; raises `Damaged` when one below it is missing.

        Lists the directory, so only whoever is about to read the whole journal asks. Without it a
        rebuild would take the gap for the end, and new commits would bury what lies behind it.
        """
        names = self._lake.record_names()
        newest = int(max(names, default="0").partition(".")[0])  # all are of one length
        if newest != len(names):
            self._name_the_gap()
        return newest

    def _name_the_gap(self) -> None:
        for expected, number in enumerate(self.numbers(), start=1):
            if number != expected:
                raise Damaged(
                    f"journal record {expected} is missing, but record {number} is there",
                    where=str(self._lake.record_path(expected)),
                    hint="Restore the record from a backup; nothing may be committed after a gap.",
                )

    def sync(self, seq: int) -> None:
        """Make an existing record durable before relying on it (its writer may have died)."""
        disk.sync_file(self._lake.record_path(seq))
        disk.sync_dir(self._lake.journal)

    def numbers(self) -> list[int]:
        """Every number present, ascending: for verification only, it lists the directory."""
        return sorted(int(name.partition(".")[0]) for name in self._lake.record_names())


def _news(data: bytes, error: ValidationError) -> str | None:
    """What in a whole record this release has no word for; None when it is simply damaged.

    A newer release may add fields, mutations and outcomes. All else must read as it always did.
    """
    try:
        version = json.loads(data)["version"]
    except (ValueError, KeyError, TypeError):
        return None
    if isinstance(version, int) and version > JOURNAL_VERSION:
        return f"is of version {version}; this release reads version {JOURNAL_VERSION}"
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if {item["type"] for item in found} <= _UNKNOWN_WORDS:
        place = ".".join(map(str, found[0]["loc"]))
        return f"says what this release does not know, at {place}"
    return None


def in_chunks(commits: Iterable[Commit]) -> Iterator[list[Commit]]:
    """Commits in groups that are worth a transaction and bounded in memory."""
    chunk: list[Commit] = []
    artifacts = 0
    for commit in commits:
        chunk.append(commit)
        artifacts += sum(len(job.artifacts) for job in commit.record.jobs)
        if len(chunk) >= _CHUNK_COMMITS or artifacts >= _CHUNK_ARTIFACTS:
            yield chunk
            chunk, artifacts = [], 0
    if chunk:
        yield chunk


@contextmanager
def reading_much() -> Iterator[None]:
    """For reading a whole journal, or as many rows: they hold no cycles; looking costs a third."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
