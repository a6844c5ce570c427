"""Files of ours in a job's directory, where its producer may have put anything under their names."""

from __future__ import annotations

import os
import secrets
import stat
from typing import TYPE_CHECKING

import structlog

from bus import disk
from bus.lake import OLD, OUR_NAMES, VERDICT

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

log = structlog.get_logger("bus.writer")


def move_aside(directory: Path, names: Collection[str] = OUR_NAMES) -> bool:
    """These names, unread, to `.bus-old/`: a verdict that we did not write is none."""
    found = set(names).intersection(os.listdir(directory))
    if not found:
        return False
    old = directory / OLD
    if os.path.lexists(old) and not stat.S_ISDIR(old.lstat().st_mode):
        disk.move(old, _unused(directory, OLD))  # a link would lead the files out of here
    old.mkdir(exist_ok=True)
    for name in found:
        disk.move(directory / name, _unused(old, name))
    return True


def send_back(path: Path, work: Path, reason: str) -> None:
    """A judged job goes from ready/ back to `work`, to be judged once more; its verdict is kept.

    It stays where it is when it cannot go: while a newer submission of its id is being judged, or
    where its producer has made that impossible.
    """
    if not path.is_dir():
        return  # removed by hand: nothing was committed, nothing is left to answer
    log.warning("verdict_refused", job_id=path.name, reason=reason)
    back = work / path.name
    if back.exists():
        return  # it follows when that one has moved on
    try:
        move_aside(path, [VERDICT])
        disk.move(path, back)
    except OSError as error:
        if error.errno not in disk.FOREIGN_ERRNOS:
            raise
        log.warning("verdict_kept", job_id=path.name, why=str(error))


def _unused(directory: Path, name: str) -> Path:
    free = f"{name}.{secrets.token_hex(4)}"
    return directory / free
