"""The power fails for real: a file system of its own is shut down in the middle of its work.

The lake lies on a loop-mounted image. At a crash point the child that works there tells the kernel
to shut the file system down without writing its log any further, and dies in the same moment. The
image is mounted again, the file system recovers from its log, and so does the bus.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import struct
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bus import disk
from tests import crash_kit
from tests.crash.test_protocol_crashes import (
    BATCH,
    BEFORE,
    NEED_THE_CATALOG,
    ONCE_A_JOB,
    assert_all_is_well,
    assert_the_batch_is_as_ever,
)
from tests.crash_kit import PROTOCOL_POINTS, Job, Scene
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.campaign import Campaign

pytestmark = [pytest.mark.needs_root, pytest.mark.xdist_group("loop")]

#: include/uapi/linux/fs.h: shut the file system down, and do not even write its log.
_FS_IOC_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2
_MIB = 1 << 20
#: How each is made, and the smallest image that it takes.
FILE_SYSTEMS = {
    "ext4": (["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"], 48 * _MIB),
    "xfs": (["mkfs.xfs", "-q", "-f"], 320 * _MIB),
}
#: LightCatalog stands in for the catalog: its own points are passed in a test of crashes only.
POINTS = [name for name in PROTOCOL_POINTS if name not in NEED_THE_CATALOG]
TWICE = [f"{name}:2" for name in ONCE_A_JOB]
#: Points that recovery passes, whatever it finds.
IN_RECOVERY = [name for name in POINTS if not name.startswith("stage.")]


@dataclass
class Machine:
    """A lake on a disk whose power can be cut; `scene.root` itself lies on another, safe one."""

    scene: Scene
    image: Path
    kind: str

    @property
    def lake(self) -> Path:
        return self.scene.root / "lake"

    def make(self) -> None:
        command, size = FILE_SYSTEMS[self.kind]
        with self.image.open("wb") as file:
            file.truncate(size)
        subprocess.run([*command, self.image], check=True, capture_output=True)
        self.lake.mkdir()

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self.image, self.lake], check=True)

    def unmount(self) -> None:
        wait_until(lambda: subprocess.run(["umount", self.lake], check=False).returncode == 0)

    def start_again(self) -> None:
        """Power comes back: the file system replays its log."""
        self.unmount()
        self.mount()

    def run(self, *jobs: Job, power_fails_at: str, device: disk.Device | None = None) -> bool:
        """Work in a child until the power fails there; whether it did."""
        (self.scene.root / "acks").mkdir(exist_ok=True)
        child = crash_kit._fork_server.Process(
            target=_work, args=(self.scene, jobs, power_fails_at, device)
        )
        child.start()
        child.join(60)
        assert child.exitcode in {0, -signal.SIGKILL}, child.exitcode
        return child.exitcode != 0


class Forgetful(disk.Device):
    """A disk that says it wrote what it has not: every fsync of the protocol is left out."""

    def fsync(self, fd: int) -> None:
        pass


def _work(scene: Scene, jobs: tuple[Job, ...], at: str, device: disk.Device | None) -> None:
    name, _, nth = at.partition(":")
    left = int(nth or 1)
    fd = os.open(scene.root / "lake", os.O_RDONLY | os.O_DIRECTORY)

    def passed(point: str) -> None:
        nonlocal left
        left -= point == name
        if left <= 0:
            shut_down(fd)
            os.kill(os.getpid(), signal.SIGKILL)

    vars(disk)["crash_point"] = passed
    with ExitStack() as stack:
        if device is not None:
            stack.enter_context(disk.using(device))
        crash_kit._work(scene, jobs, "")
    os.close(fd)


def shut_down(fd: int) -> None:
    """Cut a file system off from its disk, now."""
    fcntl.ioctl(fd, _FS_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))


@pytest.fixture(params=FILE_SYSTEMS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    kind = request.param
    tool = FILE_SYSTEMS[kind][0][0]
    if shutil.which(tool) is None:
        pytest.skip(f"there is no {tool} here")
    memory = Path("/dev/shm")  # noqa: S108 - of whoever runs the tests as root
    image = (memory if memory.is_dir() else tmp_path) / f"{tmp_path.name}-{os.getpid()}.img"
    made = Machine(Scene(tmp_path), image, kind)
    try:
        made.make()
        _mount_or_skip(made)
        yield made
        made.unmount()
    finally:
        subprocess.run(["umount", "-l", made.lake], check=False, capture_output=True)
        image.unlink(missing_ok=True)


def _mount_or_skip(machine: Machine) -> None:
    try:
        machine.mount()
        fd = os.open(machine.lake, os.O_RDONLY | os.O_DIRECTORY)
        try:
            shut_down(fd)
        finally:
            os.close(fd)
        machine.start_again()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no power can be cut here: {error}")


def finish(machine: Machine) -> None:
    """Recover; what was never acknowledged is submitted again; then all must be well."""
    machine.scene.run()
    pipe = machine.scene.pipe()
    known = {job.job_id for record in pipe.records() for job in record.jobs}
    missed = [job for job in [*BEFORE, *BATCH] if job.job_id not in known]
    assert not machine.scene.acknowledged() & {job.job_id for job in missed}
    machine.scene.run(*missed)
    assert_all_is_well(machine.scene, [*BEFORE, *BATCH])


def points_of(campaign: Campaign, short: int) -> list[str]:
    return campaign.some(POINTS + TWICE, short)


@pytest.mark.timeout(1800)
def test_power_lost_at_a_point_and_all_is_well_after_the_next_start(
    machine: Machine, campaign: Campaign
) -> None:
    points = points_of(campaign, 2)
    for point in points:
        empty(machine)
        machine.run(*BEFORE, power_fails_at="")
        assert machine.run(*BATCH, power_fails_at=point), f"nobody passed {point}"
        machine.start_again()
        finish(machine)
        assert_the_batch_is_as_ever(machine.scene)
    campaign.record(file_system=machine.kind, points=len(points), violations=0)


@pytest.mark.timeout(1800)
def test_power_lost_again_in_the_middle_of_recovery(machine: Machine, campaign: Campaign) -> None:
    points = points_of(campaign, 1)
    cuts = 0
    for point in points:
        empty(machine)
        cuts += machine.run(*BEFORE, *BATCH, power_fails_at=point)
        machine.start_again()
        for _ in range(3):
            later = f"{campaign.chance.choice(IN_RECOVERY)}:{campaign.chance.randint(1, 2)}"
            cuts += machine.run(power_fails_at=later)
            machine.start_again()
        finish(machine)
    assert cuts >= len(points)
    campaign.record(file_system=machine.kind, points=len(points), cuts=cuts, violations=0)


def test_without_fsyncs_an_acknowledged_job_is_lost(machine: Machine) -> None:
    machine.run(*BEFORE, power_fails_at="")
    machine.run(*BATCH, power_fails_at="answer.done", device=Forgetful())
    machine.start_again()
    with pytest.raises(AssertionError):
        finish(machine)


def empty(machine: Machine) -> None:
    """Another lake on the same disk, and nobody who was told anything."""
    for path in machine.lake.iterdir():
        if path.name != "lost+found":
            shutil.rmtree(path)
    shutil.rmtree(machine.scene.root / "acks", ignore_errors=True)
