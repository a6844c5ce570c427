"""What every measurement is given: a place to work in, how often to repeat, where to report."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import inputs, lakes
from benchmarks.figures import Figure, Report
from benchmarks.rounds import Patience, Plan, Rounds
from bus.lake import Lake

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Workshop:
    """One run of the benchmarks.

    folder  temporary, on the repository's file system, removed at the end
    quick   smaller cases and fewer rounds: does it work at all? The figures mean little
    noisy   rounds count whatever other processes do: while developing on a busy machine
    """

    folder: Path
    report: Report
    quick: bool = False
    noisy: bool = False
    patience: Patience = field(default_factory=Patience)

    def plan(self, wanted: int = 5) -> Plan:
        """That many rounds; two of them when in a hurry."""
        return Plan(min(wanted, 2) if self.quick else wanted, self.noisy, self.patience)

    def size(self, full: int, quick: int) -> int:
        """The size of a case."""
        return quick if self.quick else full

    def room(self, name: str) -> Path:
        """A new directory. It stays until the end: see `_spread`."""
        return Path(tempfile.mkdtemp(dir=self.folder, prefix=f"{name}-"))

    def files(self, count: int) -> list[Path]:
        """Different Parquet files of 5,000 x 10, made once and shared by all measurements."""
        return inputs.make_files(self.folder / "pool", count)

    def lake_of(self, artifacts: int) -> Lake:
        """A lake of so many artifacts with every view, made once and shared by all measurements."""
        root = self.folder / f"lake-of-{artifacts}"
        complete = root.with_suffix(".complete")
        if complete.exists():
            return Lake(root)
        shutil.rmtree(root, ignore_errors=True)  # of a measurement that failed while it made it
        lake = lakes.grown_lake(root, artifacts)
        lakes.catalogue(lake)
        complete.touch()
        return lake

    def say(self, text: str) -> None:
        """A line of talk between the figures."""
        print(f"    {text}", flush=True)

    def show(  # noqa: PLR0913 - the parts of a figure, by name
        self,
        name: str,
        value: float | str | None,
        unit: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        rounds: Rounds | None = None,
        remark: str = "",
    ) -> None:
        """Report one figure; `rounds` adds what must be known about their noise."""
        remarks = "; ".join(filter(None, (remark, rounds.remark if rounds else "")))
        self.report.add(Figure(name, value, unit, at_least, at_most, remarks))


@contextmanager
def open_workshop(report: Report, *, quick: bool, noisy: bool) -> Iterator[Workshop]:
    """A workshop whose folder goes away, whatever happens in it."""
    above = REPOSITORY / ".bench-tmp"
    above.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=above))
    _spread(folder)
    try:
        yield Workshop(folder, report, quick, noisy)
    finally:
        _remove(folder)
        if not any(above.iterdir()):
            above.rmdir()


def _remove(folder: Path) -> None:
    """Remove all rooms, some at a time: so many files take minutes one after the other."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for room in folder.iterdir():
            pool.submit(shutil.rmtree, room, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


_GET_FLAGS, _SET_FLAGS, _TOP_DIRECTORY = 0x80086601, 0x40086602, 0x00020000


def _spread(folder: Path) -> None:
    """Ask the file system to place each directory made in `folder` far from the others.

    ext4 without a journal takes 20 to 50 times as long to create a file where files were deleted in
    the last minutes (measured: 20 us against 400 to 900), by a test run before us, say. Each room
    then begins in a clean place, and nothing is deleted while anything is measured. Elsewhere the
    flag is not known, and this does nothing.
    """
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            flags = bytearray(8)
            fcntl.ioctl(fd, _GET_FLAGS, flags)
            wanted = int.from_bytes(flags, sys.byteorder) | _TOP_DIRECTORY
            fcntl.ioctl(fd, _SET_FLAGS, wanted.to_bytes(8, sys.byteorder))
        finally:
            os.close(fd)
