"""What a job directory says about itself: COMMIT and manifest.json, read without trusting either.

Everything in a job directory was written by somebody else. Files are opened without following
links and without blocking, read up to a limit, parsed as strict JSON, and every finding becomes a
`Problem`; nothing here raises because of what a producer wrote.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bus import disk, strict_json
from bus.diagnosis import manifest_problems
from bus.errors import Code, Problem, problem
from bus.lake import COMMIT, MANIFEST, OUR_NAMES
from bus.model import (
    ID_PATTERN,
    MAX_TAG_KEY_BYTES,
    MAX_TAGS,
    CommitMarker,
    JobManifest,
    Tag,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_COMMIT_BYTES = 4096
MAX_RELPATH_LEVELS = 8
MAX_COMPONENT_BYTES = 255

_ID = re.compile(ID_PATTERN)
_COMPONENT = re.compile(r"[A-Za-z0-9._=-]+")
_DRIVE = re.compile(r"[A-Za-z]:")
#: Names that one of the systems we read from cannot store, with or without an extension.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_OURS = {MANIFEST.casefold(), COMMIT.casefold(), *(name.casefold() for name in OUR_NAMES)}
#: Names of our own making in a job directory.
OUR_PREFIX = ".bus-"


@dataclass(frozen=True, slots=True)
class Submission:
    """A job directory's two documents, and all that is wrong with them.

    `self_contained`: COMMIT carries the manifest's hash, as our own clients write it, so the
    directory came by one rename. `manifest` is None when it cannot be used; `claims` then holds
    what could be read of it, for people who look for their job. `manifest_state` tells whether the
    file is still the one that was read (`is_unchanged`).
    """

    name: str
    self_contained: bool = False
    submission_id: str | None = None
    manifest: JobManifest | None = None
    manifest_state: tuple[int, int, int] | None = None
    manifest_sha256: str | None = None
    claims: dict[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def is_id(name: str) -> bool:
    """Whether `name` may be a job id (and so a directory's name in any state)."""
    return _ID.fullmatch(name) is not None


def read_submission(directory_fd: int, name: str) -> Submission:
    """Read COMMIT and manifest.json of the job directory `name`, open as `directory_fd`.

    Raises OSError only for faults of ours (EIO, EMFILE).
    """
    problems = list(_name_problems(name))
    marker, found = _read_commit(directory_fd)
    problems += found
    state = _state_of_manifest(directory_fd)  # before it is read: what changes later shows
    data, found = read_document(directory_fd, MANIFEST, strict_json.MAX_SIZE_BYTES, Code.E101)
    problems += found
    manifest: JobManifest | None = None
    claims: dict[str, str] = {}
    sha256: str | None = None
    if data is not None:
        manifest, claims, found = _parse_manifest(data)
        sha256 = hashlib.sha256(data).hexdigest()
        problems += [*found, *_marker_problems(marker, sha256)]
    if manifest is not None:
        problems += _identity_problems(manifest, name)
    return Submission(
        name,
        self_contained=marker is not None,
        submission_id=marker.submission_id if marker else None,
        manifest=manifest,
        manifest_state=state,
        manifest_sha256=sha256,
        claims=claims,
        problems=tuple(problems),
    )


def is_unchanged(directory_fd: int, submission: Submission) -> bool:
    """Whether manifest.json is still the very file that `submission` was read from."""
    state = _state_of_manifest(directory_fd)
    return state is not None and state == submission.manifest_state


def _state_of_manifest(directory_fd: int) -> tuple[int, int, int] | None:
    try:
        seen = os.stat(MANIFEST, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return seen.st_ino, seen.st_size, seen.st_ctime_ns


def read_document(
    directory_fd: int, name: str, limit_bytes: int, missing: Code
) -> tuple[bytes | None, list[Problem]]:
    """The bytes of a small regular file, or None and why not (missing, E302, E107)."""
    try:
        fd = disk.open_foreign(directory_fd, name)
    except FileNotFoundError:
        return None, [problem(missing, name, f"there is no {name}")]
    except OSError as error:
        if not is_producers_fault(error):
            raise
        return None, [problem(Code.E302, name, f"{name} is not a readable plain file")]
    try:
        size_bytes = os.fstat(fd).st_size
        data = os.pread(fd, size_bytes, 0) if size_bytes <= limit_bytes else b""
    finally:
        os.close(fd)
    if size_bytes > limit_bytes:
        message = f"{size_bytes:,} bytes; at most {limit_bytes:,} are read"
        return None, [problem(Code.E107, name, message)]
    return data, []


def is_producers_fault(error: OSError) -> bool:
    """Whether opening failed because of what lies there, not because of our disk or limits."""
    return isinstance(error, disk.NotRegularError) or error.errno in disk.FOREIGN_ERRNOS


# ── COMMIT and the manifest ───────────────────────────────────────────────────────────────────


def _read_commit(directory_fd: int) -> tuple[CommitMarker | None, list[Problem]]:
    data, problems = read_document(directory_fd, COMMIT, MAX_COMMIT_BYTES, Code.E112)
    if data is None or not data.strip():
        return None, problems
    try:
        return CommitMarker.model_validate(strict_json.loads(data, where=COMMIT)), []
    except (strict_json.StrictJsonError, ValidationError) as error:
        first = str(error).splitlines()[0]
        message = f"COMMIT is neither empty nor a marker: {first[:200]}"
        return None, [problem(Code.E112, COMMIT, message)]


def _parse_manifest(data: bytes) -> tuple[JobManifest | None, dict[str, str], list[Problem]]:
    try:
        raw = strict_json.loads(data, where=MANIFEST)
    except strict_json.StrictJsonError as error:
        return None, {}, [error.problem]
    if not isinstance(raw, dict):
        message = f"the document is a {type(raw).__name__}, not an object"
        return None, {}, [problem(Code.E103, MANIFEST, message)]
    try:
        return JobManifest.model_validate(raw), {}, []
    except ValidationError as error:
        return None, _claims(raw), manifest_problems(error, MANIFEST)


def _claims(raw: dict[str, Any]) -> dict[str, str]:
    """Who says they wrote this, as far as it is readable."""
    wanted = ("run_id", "producer", "kind")
    found = {name: raw.get(name) for name in wanted}
    return {name: v for name, v in found.items() if isinstance(v, str) and is_id(v)}


def _marker_problems(marker: CommitMarker | None, sha256: str) -> Iterator[Problem]:
    if marker is not None and marker.manifest_sha256 != sha256:
        message = f"COMMIT was written for a manifest with SHA-256 {marker.manifest_sha256}"
        yield problem(Code.E112, COMMIT, f"{message}; manifest.json has {sha256}")


def _name_problems(name: str) -> Iterator[Problem]:
    if not is_id(name):
        yield problem(Code.E104, "job_id", f"the directory {name[:160]!r} is not named after an id")


# ── the rules between fields ──────────────────────────────────────────────────────────────────


def _identity_problems(manifest: JobManifest, name: str) -> Iterator[Problem]:
    """Rules that pydantic's types do not hold: E106, E108, E109, E110, E407."""
    if manifest.job_id != name:
        message = f"job_id is {manifest.job_id!r}, the directory is {name[:160]!r}"
        yield problem(Code.E106, f"{MANIFEST}.job_id", message)
    for index, entry in enumerate(manifest.artifacts):
        place = entry_place(index)
        if (why := relpath_fault(entry.relpath)) is not None:
            yield problem(Code.E108, f"{place}.relpath", f"{entry.relpath[:160]!r} {why}")
        if entry.format != "parquet":
            yield problem(Code.E110, f"{place}.format", f"format {entry.format[:80]!r}")
    yield from _repeated((e.artifact_id for e in manifest.artifacts), "artifact_id")
    yield from _repeated((e.relpath for e in manifest.artifacts), "relpath")
    yield from tag_problems(manifest)


def entry_place(index: int) -> str:
    """Where the manifest speaks of its n-th artifact."""
    return f"{MANIFEST}.artifacts[{index}]"


def tag_problems(manifest: JobManifest) -> Iterator[Problem]:
    """E407: tags that no artifact may carry, however few it has.

    A rule for producers only: what the journal once took must stay readable, so it is no part of
    the documents' types.
    """
    said = [(entry_place(n), entry.tags) for n, entry in enumerate(manifest.artifacts)]
    for number, mutation in enumerate(manifest.mutations):
        if isinstance(mutation, Tag):
            said.append((f"{MANIFEST}.mutations[{number}]", mutation.tags))
    for place, tags in said:
        for key in tags:
            if not 0 < (size_bytes := len(key.encode())) <= MAX_TAG_KEY_BYTES:
                message = f"the key of a tag has 1 to {MAX_TAG_KEY_BYTES} bytes, not {size_bytes:,}"
                yield problem(Code.E407, f"{place}.tags", message)
        if (count := sum(map(len, tags.values()))) > MAX_TAGS:
            message = f"{count:,} tags; an artifact carries {MAX_TAGS} at most"
            yield problem(Code.E407, f"{place}.tags", message)


def _repeated(values: Iterable[str], field_name: str) -> Iterator[Problem]:
    """Values that a case-insensitive or normalising file system would take for one."""
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        earlier = first.setdefault(unicodedata.normalize("NFC", value).casefold(), index)
        if earlier != index:
            message = f"{value[:160]!r} is that of artifacts[{earlier}] too (case does not count)"
            yield problem(Code.E109, f"{entry_place(index)}.{field_name}", message)


def relpath_fault(relpath: str) -> str | None:
    """Why `relpath` is not a plain path below the job directory; None when it is.

    One component may be any printable name; deeper paths are of ``A-Z a-z 0-9 . _ = -``.
    """
    if not relpath or "\0" in relpath or "\\" in relpath:
        return "is empty, or holds a NUL or a backslash"
    if relpath.startswith("/") or _DRIVE.match(relpath):
        return "is absolute"
    components = relpath.split("/")
    if len(components) > MAX_RELPATH_LEVELS:
        return f"has more than {MAX_RELPATH_LEVELS} levels"
    if len(components) > 1 and not all(_COMPONENT.fullmatch(c) for c in components):
        return "has a part that is empty or not of A-Z a-z 0-9 . _ = -"
    return next(filter(None, map(_component_fault, components)), None)


def _component_fault(name: str) -> str | None:
    if name in {".", ".."}:
        return "leaves the directory"
    if name.endswith((".", " ")) or name.startswith(" "):
        return "begins or ends with a space, or ends with a dot"
    if len(name.encode()) > MAX_COMPONENT_BYTES or not name.isprintable():
        return "is too long or holds a control character"
    if _RESERVED.fullmatch(name) or name.casefold() in _OURS or name.startswith(OUR_PREFIX):
        return "is a reserved name"
    return None
