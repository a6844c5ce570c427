"""The n-th system call fails, for every n: in a producer, in a worker, in the writer.

strace makes one call return an error that it never made, once or from then on. The process may
report it or end. Whoever comes after it, on a healthy machine, finds everything: each acknowledged
job comes to its end once, and no job is rejected for what happened to us.
"""

from __future__ import annotations

import resource
import sys
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.faults import strace
from tests.faults.actors import Actor, Stage, assert_all_ended_once
from tests.faults.strace import Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.campaign import Campaign

_FAILING_DISK = (
    *("fsync", "fdatasync", "rename", "renameat", "renameat2", "link", "linkat", "unlink"),
    *("unlinkat", "rmdir", "ftruncate", "fchmod", "write", "pwrite64", "read", "pread64"),
    *("preadv", "preadv2", "getdents64", "newfstatat", "statx", "flock", "copy_file_range"),
)
_FULL_DISK = (
    *("write", "pwrite64", "mkdir", "mkdirat", "openat", "link", "linkat", "rename", "renameat"),
    *("ftruncate", "copy_file_range", "fsync"),
)
PAIRS = (
    *((call, "EIO") for call in _FAILING_DISK),
    *((call, "ENOSPC") for call in _FULL_DISK),
    *((call, "EMFILE") for call in ("openat",)),
    *((call, "ENOMEM") for call in ("mmap",)),
)
_CALLS = sorted({call for call, _ in PAIRS})
#: A file may not grow beyond so many bytes: from nothing at all to the largest files there are.
_FILE_SIZES = (0, 1, 60, 300, 700, 1200, 2500, 4200, 9000, 20_000, 33_000, 60_000, 130_000, 145_000)
#: Larger than every table and SQLite's index, smaller than the documents of a wordy job.
_FITS_TABLES_ONLY = 100_000


@pytest.fixture(scope="module")
def _tracing() -> None:
    if (why := strace.why_not()) is not None:
        pytest.skip(why)


@pytest.fixture(scope="module")
def stage_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Stage]:
    """The stage for a part, built once: every play begins by putting it back."""

    @cache
    def stage(part: str, *, light: bool = True) -> Stage:
        return Stage(tmp_path_factory.mktemp(part), part, light=light)

    return stage


def faults_of(stage: Stage, log: Path) -> list[Fault]:
    """Every call that touches the lake when nothing fails, with every error it may return.

    From every fourth on, the error lasts too: a disk that is full stays full.
    """
    scene = stage.reset()
    with Actor(scene, stage.part) as actor, strace.attached(actor.pid, log, _CALLS):
        assert actor.go() == 0, (scene.root / "ended").read_text()
    reached = strace.calls_below(log, scene.root / "lake")
    return [
        Fault(call, error, nth, lasting)
        for call, error in PAIRS
        for nth in reached.get(call, ())
        for lasting in (False, True)
        if not lasting or nth % 4 == 1
    ]


def play(stage: Stage, fault: Fault, log: Path) -> tuple[bool, int]:
    """Whether the fault was met, and how the process ended; all is well afterwards."""
    scene = stage.reset()
    try:
        with (
            Actor(scene, stage.part) as actor,
            strace.attached(actor.pid, log, [fault.call], fault),
        ):
            code = actor.go()
        assert_all_ended_once(scene)
    except BaseException as error:
        error.add_note(f"{stage.part}, with {fault}")
        if (scene.root / "ended").exists():
            error.add_note((scene.root / "ended").read_text())
        raise
    return strace.reached(log), code


def each_kind_of(faults: list[Fault], campaign: Campaign, count: int) -> list[Fault]:
    """So many of them, and of no kind two before there is one of each other kind."""
    shuffled = campaign.chance.sample(faults, len(faults))
    turns: Counter[tuple[str, str]] = Counter()
    rounds = []
    for fault in shuffled:
        kind = (fault.call, fault.error)
        rounds.append((turns[kind], fault))
        turns[kind] += 1
    return [fault for _, fault in sorted(rounds, key=lambda found: found[0])[:count]]


@pytest.mark.usefixtures("_tracing")
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("part", "catalog", "short", "long"),
    [
        pytest.param("producer", "light", 5, sys.maxsize, id="a-producer"),
        pytest.param("worker", "light", 8, sys.maxsize, id="a-worker"),
        pytest.param("writer", "light", 8, sys.maxsize, id="the-writer"),
        pytest.param("writer", "duckdb", 1, 300, id="the-writer-with-duckdb"),
    ],
)
def test_whichever_system_call_fails_in(  # noqa: PLR0913, PLR0917 - a table's columns
    part: str,
    catalog: str,
    short: int,
    long: int,
    stage_of: Callable[..., Stage],
    tmp_path: Path,
    campaign: Campaign,
) -> None:
    stage = stage_of(part, light=catalog == "light")
    count = campaign.size(short=short, long=long)
    faults = each_kind_of(faults_of(stage, tmp_path / "calls"), campaign, count)
    ends: Counter[int] = Counter()
    met = 0
    for fault in faults:
        was_met, code = play(stage, fault, tmp_path / "trace")
        met += was_met
        ends[code] += 1
    assert met >= 0.9 * len(faults), "most of them were never reached: what is counted is wrong"
    campaign.record(part=part, catalog=catalog, faults=met, ended=ends[3], violations=0)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", ["producer", "worker", "writer"])
def test_a_file_that_cannot_grow_is_never_taken_for_whole_by(
    part: str, stage_of: Callable[..., Stage], campaign: Campaign
) -> None:
    stage = stage_of(part)
    sizes = [_FITS_TABLES_ONLY, *campaign.some(_FILE_SIZES, short=1)]
    for size in sizes:
        scene = stage.reset()
        with Actor(scene, part, {resource.RLIMIT_FSIZE: size}) as actor:
            actor.go()
        assert_all_ended_once(scene)
    campaign.record(part=part, file_sizes=len(sizes), violations=0)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", ["producer", "worker", "writer"])
def test_descriptors_that_run_out_reject_nothing_in(
    part: str, stage_of: Callable[..., Stage], campaign: Campaign
) -> None:
    stage = stage_of(part)
    limits = campaign.some(range(6, 30), short=1)
    for limit in limits:
        scene = stage.reset()
        with Actor(scene, part, {resource.RLIMIT_NOFILE: limit}) as actor:
            actor.go()
        assert_all_ended_once(scene)
    campaign.record(part=part, limits=len(limits), violations=0)


# ── tests of the tests ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def worker(stage_of: Callable[..., Stage]) -> Stage:
    return stage_of("worker")


def test_a_job_rejected_for_our_fault_would_be_noticed(worker: Stage) -> None:
    scene = worker.reset()
    with Actor(scene, "worker") as actor:
        actor.go()
    ready = scene.pipe().lake.ready / "one"
    (ready / "verdict.json").unlink()
    (ready / "000.parquet").chmod(0o644)
    (ready / "000.parquet").write_bytes(b"half of it")
    with pytest.raises(AssertionError):
        assert_all_ended_once(scene)


@pytest.mark.usefixtures("_tracing")
def test_a_fault_is_met_where_it_was_counted(worker: Stage, tmp_path: Path) -> None:
    met, code = play(worker, Fault("fsync", "EIO", 1), tmp_path / "trace")
    assert (met, code) == (True, 3)


@pytest.mark.usefixtures("_tracing")
def test_a_validators_child_that_cannot_answer_counts_as_no_attempt(
    worker: Stage, tmp_path: Path
) -> None:
    """Three counted ends reject a job; and the second write of every child is its answer."""
    met, _ = play(worker, Fault("write", "EIO", 2), tmp_path / "trace")
    assert met
