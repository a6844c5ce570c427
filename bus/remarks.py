"""What is odd about a job without being a reason to refuse it: warnings, and what is kept back.

Secrets that people leave in `meta` stay in the manifest.json of their job; they do not go on into
the verdict, and so never into the journal, which nobody can edit.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bus.lake import COMMIT, MANIFEST, OLD, VERDICT
from bus.model import utc_now
from bus.submission import OUR_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bus.model import JobManifest

REDACTED = "***"
_SHOWN = 10
_MAX_ENTRIES = 10_000
_OWN = {MANIFEST, COMMIT, VERDICT, OLD}
_SECRET_KEY = re.compile(
    r"passw(or)?d|secret|private_?key|api_?key|access_?key|auth_?token|access_?token|bearer",
    re.IGNORECASE,
)
#: A key id of a large cloud; a token in a URL; a PEM block. `token` alone is a coin here.
_SECRET_TEXT = re.compile(r"AKIA[0-9A-Z]{16}|[?&](?:\w+_)?token=|-----BEGIN [A-Z ]*PRIVATE KEY")
_AHEAD = timedelta(hours=24)


def redacted(value: Any, place: str = "meta") -> tuple[Any, list[str]]:
    """`value` with every secret-looking part replaced, and where those were."""
    if isinstance(value, dict):
        parts = {k: _redacted_entry(k, v, f"{place}.{k}") for k, v in value.items()}
        return {k: v for k, (v, _) in parts.items()}, [
            w for _, found in parts.values() for w in found
        ]
    if isinstance(value, list):
        items = [redacted(v, f"{place}[{i}]") for i, v in enumerate(value)]
        return [v for v, _ in items], [w for _, found in items for w in found]
    if isinstance(value, str) and _SECRET_TEXT.search(value):
        return REDACTED, [place]
    return value, []


def _redacted_entry(key: str, value: Any, place: str) -> tuple[Any, list[str]]:
    if _SECRET_KEY.search(key) and isinstance(value, str | int) and not isinstance(value, bool):
        return REDACTED, [place]
    return redacted(value, place)


def warnings_of(directory_fd: int, manifest: JobManifest, secrets: list[str]) -> Iterator[str]:
    """Warnings about a job as a whole, each ``name: what``."""
    if secrets:
        yield f"secrets_redacted: {_listed(sorted(secrets))}"
    if manifest.created_at_utc > utc_now() + _AHEAD:
        yield f"created_in_the_future: {manifest.created_at_utc.isoformat()}"
    if extra := _extra_files(directory_fd, {entry.relpath for entry in manifest.artifacts}):
        yield f"extra_files: {_listed(extra)}"


def _extra_files(directory_fd: int, listed: set[str]) -> list[str]:
    """Files below the job directory that are neither listed nor the bus's; a few of too many."""
    found: list[str] = []
    seen = 0
    folders = [""]
    while folders and seen < _MAX_ENTRIES:
        folder = folders.pop()
        try:
            entries = list(_entries(directory_fd, folder))
        except PermissionError:
            found.append(folder)
            continue
        seen += len(entries)
        for entry, is_folder in entries:
            if is_folder and entry != OLD:
                folders.append(entry)
            elif entry not in listed and entry not in _OWN and not _is_ours(entry):
                found.append(entry)
    return sorted(found)


def _is_ours(entry: str) -> bool:
    """Whether it is a temporary file of an attempt that a death cut short."""
    return entry.rpartition("/")[2].startswith(OUR_PREFIX)


def _entries(directory_fd: int, folder: str) -> Iterator[tuple[str, bool]]:
    """(path below the job directory, whether it is a directory) of each entry of a folder."""
    fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory_fd)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                yield path, entry.is_dir(follow_symlinks=False)
    finally:
        os.close(fd)


def _listed(places: list[str]) -> str:
    """A few of them, printable whatever they are called."""
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    shown = (p if p.isprintable() else ascii(p) for p in places[:_SHOWN])
    return ", ".join(f"{p:.160}" for p in shown) + more
