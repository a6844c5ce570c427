"""The trash: what was given up goes there, and for good some days later. The writer's idle work.

A commit says that an object is purged, or that directories of answered jobs may be discarded; here
that is carried out, in steps that the writer takes when nothing is ready. Between two steps it may
commit whatever it likes, so each step looks again at what holds, right before it moves anything and
before it deletes anything. Every step may be repeated after a crash.

Nothing that is submitted meanwhile can be lost: ARCHITECTURE.md, "Purges and resubmissions".
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import structlog

from bus import disk, views
from bus.model import JobState, utc_now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bus.lake import Lake
    from bus.manifest import Manifest

log = structlog.get_logger("bus.writer")

#: Objects or directories that one step is about.
_STEP = 50
_PROGRESS = "trash"
_T = TypeVar("_T")


class Trash:
    """Carries out what commits gave up. `days`: how long it lies in the trash.

    Belongs to one writer.
    """

    def __init__(self, lake: Lake, days: int) -> None:
        self._lake = lake
        self._days = timedelta(days=days)
        self._done = -1  # carried out up to this commit
        self._steps: Iterator[None] | None = None
        self._stuck: set[Path] = set()  # days of which something cannot be deleted

    def take_out_some(self, manifest: Manifest, check_fence: Callable[[], None]) -> bool:
        """One step; False when there is nothing to do.

        `check_fence` raises where another writer may be at work: then what was moved is put back.
        """
        if self._steps is None:
            if self._done < 0:
                self._done = manifest.progress(_PROGRESS)
            seq, _ = manifest.applied
            if self._done >= seq and not self._expired():
                return False
            self._steps = self._all_steps(manifest, seq, check_fence)
        check_fence()
        if not views.take(self._steps, 1):
            self._steps = None
        return True

    def begin_again(self, manifest: Manifest) -> None:
        """For another manifest; or after a power cut, when names that were taken away may be back."""
        manifest.note_progress({_PROGRESS: 0})
        self._done = 0
        self._steps = None

    def _all_steps(
        self, manifest: Manifest, seq: int, check_fence: Callable[[], None]
    ) -> Iterator[None]:
        span = (self._done, seq)
        purged = [row[0] for row in manifest.named("purged_since", span)]
        for group in _groups(purged):
            self._purge(manifest, group, check_fence)
            yield
        discarded = manifest.named("discarded_since", span)
        for jobs, before in discarded:
            yield from self._discard(JobState(jobs), datetime.fromisoformat(before))
        if purged or discarded:
            manifest.note_progress({_PROGRESS: seq})
        self._done = seq
        for day in self._expired():
            yield from self._empty(manifest, day)

    # ── into the trash ────────────────────────────────────────────────────────────────────────

    def _purge(
        self, manifest: Manifest, purged: Sequence[str], check_fence: Callable[[], None]
    ) -> None:
        """Objects that are still given up, and their names in run trees, which hold the bytes."""
        moved: dict[Path, Path] = {}
        day = self._lake.trash_day(utc_now().date())
        for (file_hash,) in manifest.among("still_purged", purged):
            for run_id, name in manifest.named("shown_in_runs", (file_hash,)):
                disk.remove(self._lake.run_data_path(run_id, name))
            disk.crash_point("purge.parted")
            place = self._lake.object_path(file_hash.removeprefix("sha256:"))
            if self._moved(place, day / place.name):
                moved[place] = day / place.name
                disk.crash_point("purge.moved")
        self._sync(day, {place.parent for place in moved})
        try:
            check_fence()
        except BaseException:  # another writer may have relied on them since we looked
            for place, thrown_away in moved.items():
                disk.link_new(thrown_away, place)
            self._sync(day, {place.parent for place in moved})
            raise
        if moved:
            log.info("purged", objects=len(moved), trash=str(day))

    def _discard(self, state: JobState, before: datetime) -> Iterator[None]:
        """Directories of jobs that were answered so and not changed since: a retry takes its own."""
        base = self._lake.state_dir(state)
        old = [e for e in self._lake.listing(state) if e.changed_at_s < before.timestamp()]
        for group in _groups(old):
            day = self._lake.trash_day(utc_now().date())
            for entry in group:
                if self._moved(base / entry.name, self._lake.job_in_trash(day, state, entry.name)):
                    disk.crash_point("discard.moved")
            self._sync(day, {base})
            yield

    def _moved(self, source: Path, target: Path) -> bool:
        """Whether there was anything to move; the trash of a new day is made for it.

        The target may be there, and be another name of the very object, which was taken back: then
        a rename would do nothing.
        """
        if not source.exists():
            return False
        if target.is_file():
            disk.remove(target)
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            disk.sync_dir(target.parent.parent)
        try:
            disk.move(source, target)
        except FileNotFoundError:
            return False  # `bus retry` was faster
        return True

    def _sync(self, day: Path, directories: set[Path]) -> None:
        if day.is_dir():
            for directory in [day, *directories]:
                disk.sync_dir(directory)

    # ── out of it ─────────────────────────────────────────────────────────────────────────────

    def _expired(self) -> list[Path]:
        days = self._lake.trash_before(utc_now().date() - self._days)
        return [day for day in days if day not in self._stuck]

    def _empty(self, manifest: Manifest, day: Path) -> Iterator[None]:
        """Delete what lies there. What something stands on after all goes back to its place."""
        for names in _groups(os.listdir(day)):
            objects = {name: self._lake.trashed_object(name) for name in names}
            asked = [f"sha256:{sha256}" for sha256 in objects.values() if sha256]
            needed = {row[0] for row in manifest.among("still_needed", asked)}
            for name, sha256 in objects.items():
                if sha256 and f"sha256:{sha256}" in needed:
                    self._put_back(day / name, sha256)
                _delete(day / name)
                disk.crash_point("trash.emptying")
            yield
        if os.listdir(day):
            self._stuck.add(day)
        else:
            disk.remove_tree(day)

    def _put_back(self, thrown_away: Path, sha256: str) -> None:
        """By no way that we know of: the last line of defence, and loud."""
        place = self._lake.object_path(sha256)
        place.parent.mkdir(exist_ok=True)
        if disk.link_new(thrown_away, place):
            disk.sync_dir(place.parent)
            disk.sync_dir(place.parent.parent)
            log.error("object_taken_back", object=sha256)


def _groups(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[at : at + _STEP] for at in range(0, len(items), _STEP))


def _delete(path: Path) -> None:
    """A file or a tree; directories that a producer made read-only are opened up first."""
    if not path.is_dir() or path.is_symlink():
        disk.remove(path)
        return
    try:
        disk.remove_tree(path)
    except PermissionError:
        try:
            for directory, _, _ in os.walk(path):
                disk.open_up(directory)
            disk.remove_tree(path)
        except OSError as error:
            log.warning("trash_kept", path=str(path), why=str(error))
