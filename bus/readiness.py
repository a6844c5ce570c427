"""Whether a committed job may be taken yet, decided in one stateless look (DESIGN section 4).

Our own clients rename a finished directory into place: nothing to wait for. Everyone else may be
in the middle of copying, and in name order COMMIT is copied first. So a directory that is not
visibly whole must have been quiet for a while; and ctime tells, because copies preserve mtime.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from bus import disk
from bus.errors import Code
from bus.lake import COMMIT
from bus.submission import relpath_fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bus.model import ArtifactEntry
    from bus.settings import Settings
    from bus.submission import Submission

#: A job that misses something is looked at again after so long, at most.
LOOK_AGAIN_S = 5.0
#: So many entries are looked at for the time of the last change.
_MAX_ENTRIES = 10_000
#: A change that lies this far in the future was made before the clock was set back.
_CLOCK_SLACK_S = 1.0
_MAGIC = (b"PAR1", b"PARE")
_SMALLEST_BYTES = 12


def is_committed(directory: str | os.PathLike[str]) -> bool:
    """Whether there is a COMMIT in `directory`, whatever it is."""
    return os.path.lexists(f"{os.fspath(directory)}/{COMMIT}")


def wait_s(directory_fd: int, submission: Submission, settings: Settings) -> float:
    """How long until it is worth looking again; 0 when the job may be taken.

    `settings.quiet_s` without a change make a job without a marker ready, unless a listed file is
    missing or incomplete: then `settings.incomplete_after_s` without a change do, and validation
    says E306.
    """
    unsettled = _is_unsettled(submission)
    lacking = not unsettled and _is_lacking(directory_fd, submission)
    if submission.self_contained and not unsettled and not lacking:
        return 0.0
    age_s = quiet_for_s(directory_fd)
    if age_s < settings.quiet_s:
        return settings.quiet_s - age_s
    if submission.self_contained or not lacking:
        return 0.0
    return min(LOOK_AGAIN_S, max(0.0, settings.incomplete_after_s - age_s))


def quiet_for_s(directory_fd: int) -> float:
    """Seconds since the directory or anything in it last changed."""
    newest_s = max(_changes(directory_fd))
    age_s = time.time() - newest_s
    return max(0.0, age_s) if age_s > -_CLOCK_SLACK_S else float("inf")


def _changes(directory_fd: int) -> Iterator[float]:
    yield os.fstat(directory_fd).st_ctime
    seen = 0
    for _, folders, files, at in os.fwalk(dir_fd=directory_fd, onerror=None):
        for name in (*folders, *files):
            try:
                yield os.stat(name, dir_fd=at, follow_symlinks=False).st_ctime
            except FileNotFoundError:
                yield time.time()  # something is being moved right now
        seen += len(folders) + len(files)
        if seen > _MAX_ENTRIES:
            return


def _is_unsettled(submission: Submission) -> bool:
    """Whether manifest.json or COMMIT may be half copied: unreadable, or not of each other."""
    codes = {found.code for found in submission.problems}
    return submission.manifest is None or Code.E112 in codes


def _is_lacking(directory_fd: int, submission: Submission) -> bool:
    """Whether a listed file is missing, or visibly only the beginning of itself."""
    entries = submission.manifest.artifacts if submission.manifest is not None else ()
    return any(
        is_incomplete(directory_fd, entry)
        for entry in entries
        if relpath_fault(entry.relpath) is None
    )


def is_incomplete(directory_fd: int, entry: ArtifactEntry) -> bool:
    """Whether the file is missing, shorter than declared, or Parquet without its end."""
    try:
        if entry.size_bytes is not None:
            seen = os.stat(entry.relpath, dir_fd=directory_fd, follow_symlinks=False)
            return seen.st_size < entry.size_bytes
        fd = disk.open_foreign(directory_fd, entry.relpath)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    try:
        return lacks_its_end(fd)
    finally:
        os.close(fd)


def lacks_its_end(fd: int) -> bool:
    """Whether a file is empty, or begins as Parquet and does not end as Parquet."""
    size_bytes = os.fstat(fd).st_size
    if size_bytes == 0:
        return True
    head = os.pread(fd, 4, 0)
    if size_bytes < _SMALLEST_BYTES:
        return head in _MAGIC
    return head in _MAGIC and os.pread(fd, 4, size_bytes - 4) not in _MAGIC
