"""Every fsync of the protocol carries weight: without any one of them, a power cut could lose data.

A strict reading of POSIX is kept beside the real disk: a file's bytes and mode are durable as they
were at its last fsync, a directory's names as they were at the directory's. At each numbered point
of the protocol it is known what must be durable. Then the same job runs again and again, each time
with another fsync left out, and each time something must be missed.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bus import disk, writer as writer_module
from bus.lake import RECEIPT, REJECT_REASON, VERDICT
from tests.crash_kit import Job, finish
from tests.pipeline import LightCatalog, Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from bus.lake import Lake

GOOD = Job("good", (1,))
BAD = Job("bad", (2,), broken=True)
#: What a job of one artifact has to itself: eleven for each, and one when its object is the first
#: in its directory (DESIGN section 5). A batch shares the others, however many jobs it has.
OF_EACH_JOB = (
    *(r"\.staging-[^/]+/000\.parquet", r"\.staging-[^/]+/manifest\.json"),
    *(r"\.staging-[^/]+/COMMIT", r"\.staging-[^/]+", r"bus/inbox"),
    *(r"bus/work/[^/]+/000\.parquet", r"store/objects/..", r"store/objects"),
    *(r"bus/work/[^/]+/\.bus-verdict-\w+", r"bus/work/[^/]+"),
    *(r"bus/ready/[^/]+/(receipt|REJECT_REASON)\.json", r"bus/ready/[^/]+"),
)
OF_A_BATCH = (
    *(r"bus/ready", r"run/record-[^/]+\.tmp", r"store/journal"),
    *(r"bus/processed", r"bus/rejected"),
)
#: Once when a lake is new or its writer starts.
OF_A_START = (r"manifest/\.manifest\.sqlite\.begun", r"manifest")


class StrictDisk(disk.Device):
    """What a power cut would leave, if fsync promised no more than it must."""

    def __init__(self, lake_root: Path) -> None:
        self.root = lake_root
        self.files: dict[int, tuple[int, int, int]] = {}
        self.names: dict[int, dict[str, int]] = {}
        self.told: list[str] = []
        self.left_out = -1
        self.missed: list[str] = []
        for directory in [lake_root, *(p for p in lake_root.rglob("*") if p.is_dir())]:
            self.note(directory.stat().st_ino, directory)  # Lake.create made the tree durable

    def fsync(self, fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        number, seen = len(self.told), os.fstat(fd)
        self.told.append(str(path.relative_to(self.root)))
        if number == self.left_out:
            return
        if stat.S_ISDIR(seen.st_mode):
            self.note(seen.st_ino, path)
        else:
            self.files[seen.st_ino] = (seen.st_size, seen.st_mtime_ns, seen.st_mode)

    def note(self, inode: int, directory: Path) -> None:
        with os.scandir(directory) as entries:
            self.names[inode] = {entry.name: entry.inode() for entry in entries}

    def needs(self, *paths: Path) -> None:
        """Note what of this would not survive: a name on the way, or a file's bytes or mode."""
        for path in paths:
            at = self.root
            for part in path.relative_to(self.root).parts:
                inode = (at / part).lstat().st_ino
                if self.names.get(at.stat().st_ino, {}).get(part) != inode:
                    self.missed.append(f"the name {at / part}")
                at /= part
            seen = path.stat()
            known = self.files.get(seen.st_ino)
            if path.is_file() and known != (seen.st_size, seen.st_mtime_ns, seen.st_mode):
                self.missed.append(f"the bytes of {path}")

    def needs_within(self, directory: Path, *names: str) -> None:
        """The same for names in a job's directory, wherever that itself may come to lie."""
        for name in names:
            path = directory / name
            if self.names.get(directory.stat().st_ino, {}).get(name) != path.lstat().st_ino:
                self.missed.append(f"the name {name} in {directory}")
            seen = path.stat()
            if self.files.get(seen.st_ino) != (seen.st_size, seen.st_mtime_ns, seen.st_mode):
                self.missed.append(f"the bytes of {path}")


def promises(lake: Lake, strict: StrictDisk) -> dict[str, Callable[[], None]]:
    """What must be durable at each point, for whoever goes on from it relies on it."""

    def objects() -> None:
        strict.needs(*lake.all_objects())

    def committed() -> None:
        objects()
        strict.needs(*lake.journal.glob("*.json"))

    return {
        "stage.done": lambda: strict.needs(*lake.inbox.iterdir(), *lake.inbox.glob("*/*")),
        "commit.written": lambda: strict.needs(*lake.ready.iterdir()),
        "store.done": objects,
        "verdict.written": lambda: needs_documents(strict, lake.work, VERDICT),
        "commit.done": committed,
        "answer.written": lambda: needs_answers(lake, strict),
        "answer.done": lambda: needs_the_answered(lake, strict),
    }


def needs_documents(strict: StrictDisk, directory: Path, *names: str) -> None:
    for job in directory.iterdir():
        strict.needs_within(job, *names)


def needs_answers(lake: Lake, strict: StrictDisk) -> None:
    """Once the files of a job are gone from its directory, its answer must hold."""
    for job in lake.ready.iterdir():
        for name in (RECEIPT, REJECT_REASON):
            if (job / name).exists():
                strict.needs_within(job, name)


def needs_the_answered(lake: Lake, strict: StrictDisk) -> None:
    strict.needs(*lake.processed.iterdir(), *lake.rejected.iterdir())
    needs_documents(strict, lake.processed, RECEIPT, VERDICT)
    needs_documents(strict, lake.rejected, REJECT_REASON, VERDICT)


def run(root: Path, *jobs: Job, left_out: int = -1) -> StrictDisk:
    """Jobs through the whole protocol in one batch, with the fsync of that number left out."""
    pipe = Pipeline(root / "lake")
    strict = StrictDisk(pipe.lake.root)
    strict.left_out = left_out
    points = promises(pipe.lake, strict)

    def at_point(name: str) -> None:
        points.get(name, lambda: None)()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer_module, "Catalog", LightCatalog)
        patch.setattr(disk, "crash_point", at_point)
        with disk.using(strict):
            for job in jobs:
                job.submit(pipe)
            finish(pipe)
    assert {pipe.state(job.job_id).value for job in jobs} <= {"committed", "rejected"}
    return strict


@pytest.mark.parametrize("job", [GOOD, BAD], ids=["accepted", "rejected"])
def test_at_every_point_what_is_relied_on_is_durable(job: Job, tmp_path: Path) -> None:
    strict = run(tmp_path, job)
    assert strict.missed == []


@pytest.mark.parametrize("jobs", [1, 6])
def test_a_job_costs_at_most_twelve_syncs_and_a_batch_shares_the_others(
    tmp_path: Path, jobs: int
) -> None:
    told = run(tmp_path, *(Job(f"job-{n}", (n,)) for n in range(jobs))).told

    def count(patterns: tuple[str, ...]) -> int:
        return sum(bool(re.fullmatch(rf"(.*/)?({'|'.join(patterns)})", path)) for path in told)

    assert count(OF_EACH_JOB) <= 12 * jobs
    assert count(OF_A_BATCH) == len(OF_A_BATCH) - 1  # none of the jobs was rejected
    assert count(OF_EACH_JOB) + count(OF_A_BATCH) + count(OF_A_START) == len(told)


@pytest.mark.parametrize("job", [GOOD, BAD], ids=["accepted", "rejected"])
def test_no_fsync_can_be_left_out(job: Job, tmp_path: Path) -> None:
    synced = run(tmp_path / "all", job).told
    without: dict[str, list[str]] = {}
    for number, what in enumerate(synced):
        (tmp_path / f"{number}").mkdir()
        without[f"{number} {what}"] = run(tmp_path / f"{number}", job, left_out=number).missed
    idle = [what for what, missed in without.items() if not missed]
    # A view is made anew if a power cut spoils it; that fsync only spares readers the sight.
    assert [what for what in idle if " manifest" not in what] == []


def test_the_strict_disk_knows_a_file_that_changed_after_its_fsync(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    strict = StrictDisk(tmp_path)
    fd = os.open(path, os.O_RDONLY)
    strict.fsync(fd)
    strict.needs(path)
    assert strict.missed == []
    os.fchmod(fd, 0o444)
    os.close(fd)
    strict.needs(path)
    assert strict.missed == [f"the bytes of {path}"]
