"""Claims: who validates a job now, and how earlier attempts at it ended.

A claim is a locked file in claims/. The lock says that someone alive has the job; what the file
holds survives the holder, and says whether the job was put down on purpose or dropped by a death.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Self

from bus.submission import is_id

if TYPE_CHECKING:
    from pathlib import Path

    from bus import disk
    from bus.lake import Lake
    from bus.submission import Submission

#: After so many counted ends a job is rejected as E303.
MAX_ENDS = 3
#: A directory's name longer than this leaves no room for `~2`, or for a temporary name beside it.
_MAX_NAME_BYTES = 200


@dataclass(slots=True)
class Record:
    """What a claim file holds.

    `ends`: how attempts ended that a living parent observed. `explained`: the job was put down on
    purpose (not ready yet, a full disk), so the next attempt may run in the pool's process again.
    """

    ends: list[str] = field(default_factory=list)
    explained: bool = False

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """A record; an empty or torn one (it is never synced) is a death without explanation."""
        try:
            raw = json.loads(data)
            return cls([str(end) for end in raw["ends"]], bool(raw["explained"]))
        except (ValueError, KeyError, TypeError):
            return cls()

    def to_bytes(self) -> bytes:
        """The inverse of `parse`."""
        return json.dumps(asdict(self)).encode()


@dataclass(slots=True)
class Claim:
    """A job that we hold: its directory in work/, where it goes from there, its lock, its record.

    `dropped`: it was found in work/ after a death that nobody explained.
    """

    name: str
    path: Path
    ready: Path
    lock: disk.Lock
    record: Record = field(default_factory=Record)
    dropped: bool = False
    submission: Submission | None = None
    finished: bool = False

    def put_down(self) -> None:
        """Let go of a job that is not finished; the record tells the next holder how it stands."""
        self.finished = True
        try:
            self.lock.write(self.record.to_bytes())
        except OSError:
            pass  # no room for the record: the next holder takes it for an unexplained death
        finally:
            self.lock.release()

    def finish(self) -> None:
        """Let go of a job that has moved on: nothing of the claim is left."""
        self.lock.release(unlink=True)
        self.finished = True


def claim_path(lake: Lake, name: str) -> Path:
    """The claim file of the job directory `name`, which need not be an id."""
    return lake.claim_path(name if is_id(name) else f"~{_short_hash(name)}")


def job_name(name: str) -> str:
    """What an inbox directory is called from now on: its name, if documents and paths can bear it.

    A name that is no id is rejected in any case. One that is not text, holds control characters or
    is very long is replaced by ``_invalid-<hash>``, which is no id either, so that the rejection
    itself can be stored.
    """
    bearable = name.isprintable() and len(os.fsencode(name)) <= _MAX_NAME_BYTES
    return name if bearable else f"_invalid-{_short_hash(name)}"


def _short_hash(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
