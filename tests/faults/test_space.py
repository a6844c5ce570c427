"""A disk that is full, has no inodes left, is read-only, is two disks, or belongs to someone else.

The lake lies on a small file system of its own. Producers are told what is wrong, workers and the
writer leave everything where it is, and when there is room again all goes on by itself.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from bus import doctor, exports, writer as writer_module
from bus.client import Bus
from bus.errors import Unavailable
from bus.intake import Intake
from bus.model import JobState
from bus.settings import Settings
from bus.supervisor import processes
from bus.verify import verify
from tests.faults.actors import BROKEN, TABLES, Actor, Stage, assert_all_ended_once
from tests.pipeline import LightCatalog, Pipeline, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bus.lake import Lake
    from tests.campaign import Campaign
    from tests.crash_kit import Scene

pytestmark = pytest.mark.needs_root

_NOBODY = 65534
_BLOCK = 4096
_SIZE = 64 << 20
_INODES = 3000
#: What a writer needs to commit the jobs of the stage is about 20 blocks, DuckDB's file 100.
_BLOCKS_LEFT = (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48)
_BLOCKS_LEFT_DUCKDB = (1, 30, 60, 100, 150, 250, 400, 700)
_INODES_LEFT = (0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32)


@contextmanager
def mounted(at: Path, *arguments: str) -> Iterator[Path]:
    """Something mounted there for the length of the block."""
    done = subprocess.run(
        ["mount", *arguments, str(at)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


@contextmanager
def small_disk(at: Path) -> Iterator[Path]:
    """A small file system of its own, mounted there."""
    options = f"size={_SIZE},nr_inodes={_INODES}"
    at.mkdir(exist_ok=True)
    with mounted(at, "-t", "tmpfs", "-o", options, "small"):
        yield at


@contextmanager
def on_a_small_disk(stage: Stage) -> Iterator[Scene]:
    """The stage's lake, anew, on a file system of its own; what it notes lies elsewhere."""
    scene = stage.reset()
    lake, there = scene.root / "lake", scene.root / "before"
    lake.rename(there)
    with small_disk(lake):
        subprocess.run(["cp", "-a", f"{there}/.", lake], check=True)
        yield scene


@contextmanager
def full(lake: Path, *, blocks_left: int) -> Iterator[None]:
    """Hardly any room within the block."""
    balloon = lake / "balloon"
    with balloon.open("wb") as file:
        room = os.statvfs(lake)
        os.posix_fallocate(file.fileno(), 0, (room.f_bavail - blocks_left) * room.f_frsize)
    try:
        yield
    finally:
        balloon.unlink()


@contextmanager
def without_inodes(lake: Path, *, left: int) -> Iterator[None]:
    """Hardly any file can be created within the block."""
    place = lake / "many"
    place.mkdir()
    for number in range(os.statvfs(lake).f_favail - left):
        (place / str(number)).touch()
    try:
        yield
    finally:
        shutil.rmtree(place)


def play(scene: Scene, part: str) -> int:
    with Actor(scene, part) as actor:
        return actor.go()


def rejected(lake: Lake) -> set[str]:
    return {path.name for path in lake.rejected.iterdir()}


# ── no room ─────────────────────────────────────────────────────────────────────────────────────


def test_a_producer_is_told_that_the_disk_is_full_and_nothing_of_the_job_is_there(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "lake") as root:
        bus = Bus(Settings.load(root))
        bus.lake.create()
        given = tmp_path / "given.parquet"
        pq.write_table(table(1, rows=50_000), given)
        for blocks in (0, 1, 2, 3):
            with full(root, blocks_left=blocks), pytest.raises(Unavailable) as caught:
                data = given if blocks % 2 else table(1)
                bus.submit(data, kind="signals", producer="tests", required=True)
            assert caught.value.code == "E504"
            assert "No space left" in caught.value.message
            assert os.listdir(bus.lake.inbox) == []
        job = bus.submit(given, kind="signals", producer="tests")
        assert job.status is JobState.STAGED


def test_a_file_that_was_handed_over_comes_back_when_the_disk_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "lake") as root:
        bus = Bus(Settings.load(root))
        bus.lake.create()
        given = root / "given.parquet"
        pq.write_table(table(1, rows=50_000), given)
        with full(root, blocks_left=0), pytest.raises(Unavailable):  # noqa: SIM117 - one is the subject
            with bus.job(kind="signals", producer="tests", required=True) as draft:
                draft.add(given, move=True)
        assert pq.read_table(given) == table(1, rows=50_000)
        assert os.listdir(bus.lake.inbox) == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", ["worker", "writer"])
def test_a_full_disk_delays_everything_and_rejects_nothing_in(
    part: str, tmp_path: Path, campaign: Campaign
) -> None:
    stage = Stage(tmp_path, part)
    tried = campaign.some(_BLOCKS_LEFT, short=1)
    for blocks in tried:
        with on_a_small_disk(stage) as scene:
            lake = scene.pipe().lake
            with full(lake.root, blocks_left=blocks):
                play(scene, part)
                assert rejected(lake) <= {BROKEN}
            assert_all_ended_once(scene)
    campaign.record(part=part, full_disks=len(tried), violations=0)


def test_a_writer_that_ends_on_a_full_disk_gives_its_lock_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(writer_module), "Catalog", LightCatalog)
    with small_disk(tmp_path / "lake") as root:
        pipe = Pipeline(root)
        pipe.stage("one", table(1))
        pipe.judge()
        writer = pipe.writer()
        with full(root, blocks_left=0):
            with pytest.raises(OSError, match="No space left"):
                writer.drain()
            with pytest.raises(sqlite3.Error):
                writer.close()
        pipe.commit()
        assert pipe.state("one") is JobState.COMMITTED


@pytest.mark.timeout(600)
def test_a_full_disk_while_the_catalog_is_written(tmp_path: Path, campaign: Campaign) -> None:
    stage = Stage(tmp_path, "writer", light=False)
    tried = campaign.some(_BLOCKS_LEFT_DUCKDB, short=1)
    for blocks in tried:
        with on_a_small_disk(stage) as scene:
            with full(scene.root / "lake", blocks_left=blocks):
                play(scene, "writer")
            assert_all_ended_once(scene)
    campaign.record(full_disks=len(tried), violations=0)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", ["worker", "writer"])
def test_exhausted_inodes_delay_everything_and_reject_nothing_in(
    part: str, tmp_path: Path, campaign: Campaign
) -> None:
    stage = Stage(tmp_path, part)
    tried = campaign.some(_INODES_LEFT, short=1)
    for left in tried:
        with on_a_small_disk(stage) as scene:
            lake = scene.pipe().lake
            with without_inodes(lake.root, left=left):
                play(scene, part)
                assert rejected(lake) <= {BROKEN}
            assert_all_ended_once(scene)
    campaign.record(part=part, without_inodes=len(tried), violations=0)


def test_an_export_without_room_leaves_the_old_file_and_says_so(tmp_path: Path) -> None:
    rows = "SELECT hash(i)::VARCHAR AS h FROM range(100000) t(i)"
    with small_disk(tmp_path / "lake") as root:
        pipe = Pipeline(root, exports={"big": {"sql": rows}})
        pipe.stage("one", table(1))
        pipe.run()
        assert build(pipe)["ok"]
        path = pipe.lake.export_path("big")
        before = path.read_bytes()
        with full(root, blocks_left=60):
            found = build(pipe)
        assert not found["ok"]
        assert "No space left" in found["error"]
        assert path.read_bytes() == before
        assert build(pipe)["ok"]
        assert verify(pipe.lake, pipe.settings, pipe.registry).findings == []


def build(pipe: Pipeline) -> dict[str, Any]:
    built = exports.build(pipe.lake, pipe.settings, ["big"], force=True)
    return {r["name"]: r for r in exports.publish(pipe.lake, built)}["big"]


# ── read-only ───────────────────────────────────────────────────────────────────────────────────


def test_a_disk_that_turns_read_only_stops_everything_and_loses_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "worker")
    with on_a_small_disk(stage) as scene:
        pipe = scene.pipe()
        lake = pipe.lake
        intake = Intake(pipe.lake, pipe.settings, pipe.registry)
        assert len(intake.drain().judged) == len({*TABLES, BROKEN})
        pipe.stage("late", table(8))
        remount(lake.root, "ro")
        try:
            assert "Read-only file system" in intake.drain().faults["late"]
            with pytest.raises(Unavailable, match="Read-only file system") as caught:
                pipe.stage("too-late", table(8))
            assert caught.value.code == "E505"
            assert play(scene, "writer") == 3
            assert lake.count(JobState.READY) == len({*TABLES, BROKEN})
        finally:
            remount(lake.root, "rw")
        assert intake.drain().judged == ["late"]
        assert_all_ended_once(scene)


def remount(at: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(at)], check=True)


# ── two disks ───────────────────────────────────────────────────────────────────────────────────


def test_a_lake_across_two_mounts_is_refused_whichever_directory_it_is(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path)
    lake = pipe.lake
    needed = (lake.work, lake.ready, lake.processed, lake.rejected, lake.objects, lake.journal)
    for directory in (*needed, lake.quarantine, lake.artifacts, lake.run_trees):
        with mounted(directory, "--bind", str(directory)):
            with pytest.raises(
                Unavailable, match=f"to {directory}: Invalid cross-device"
            ) as caught:
                lake.probe()
            assert caught.value.code == "E507"
            found = {finding.check: finding for finding in doctor.examine(lake, pipe.settings)}
            assert found["link and rename"].grade == "bad"
    lake.probe()


def test_a_bus_does_not_start_across_two_mounts(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path / "lake")
    ready = pipe.lake.ready
    with mounted(ready, "--bind", str(ready)):
        ended = subprocess.run(
            [sys.executable, "-m", "bus.supervisor", "up"],
            env=processes.environment(pipe.settings) | {"XDG_STATE_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert ended.returncode != 0
    assert "E507" in ended.stderr
    assert f"to {ready}: Invalid cross-device link" in ended.stderr


def test_a_bus_that_runs_across_two_mounts_anyway_loses_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "writer")
    scene = stage.reset()
    lake = scene.pipe().lake
    with mounted(lake.journal, "--bind", str(lake.journal)):
        assert play(scene, "writer") == 3
        assert "one" in os.listdir(lake.ready)
    assert_all_ended_once(scene)


# ── somebody else's ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that others can reach, unlike pytest's own."""
    place = Path(tempfile.mkdtemp(prefix="bus-test-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def as_nobody(stage: Stage) -> Scene:
    """The stage, anew, belonging to a user who is not exempt from permissions."""
    scene = stage.reset()
    subprocess.run(["chown", "-R", f"{_NOBODY}:{_NOBODY}", scene.root], check=True)
    return scene


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("part", "directories"),
    [
        ("worker", ("work", "claims", "ready", "store/objects")),
        ("writer", ("store/journal", "processed", "ready", "run", "../artifacts", "../manifest")),
    ],
    ids=["worker", "writer"],
)
def test_a_directory_that_may_not_be_written_delays_and_rejects_nothing_in(
    part: str, directories: tuple[str, ...], open_place: Path, campaign: Campaign
) -> None:
    stage = Stage(open_place, part)
    for directory in campaign.some(directories, short=1):
        scene = as_nobody(stage)
        lake = scene.pipe().lake
        (lake.bus / directory).chmod(0o555)
        with Actor(scene, part, uid=_NOBODY) as actor:
            actor.go()
        assert rejected(lake) == set()
        (lake.bus / directory).chmod(0o755)
        assert_all_ended_once(scene)


def test_a_job_directory_that_may_not_be_read_waits_until_it_may(open_place: Path) -> None:
    scene = as_nobody(Stage(open_place, "worker"))
    lake = scene.pipe().lake
    closed = lake.inbox / "one"
    os.chown(closed, 0, 0)
    closed.chmod(0o700)
    with Actor(scene, "worker", uid=_NOBODY) as actor:
        assert actor.go() == 0
    assert {*TABLES, BROKEN} - set(os.listdir(lake.ready)) == {"one"}
    assert lake.state_of("one") is JobState.STAGED
    os.chown(closed, _NOBODY, _NOBODY)
    assert_all_ended_once(scene)
