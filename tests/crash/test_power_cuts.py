"""Every disk that a power cut may leave under a strict reading of POSIX, and what comes of it.

One story (`tests/crash/story.py`) is told on a disk that is watched (`tests/crash/posix.py`). For
each of its moments disks are made that a power cut may leave. A writer and a validator start on
them and work until nothing is left; then every invariant holds, every acknowledged submission has
ended exactly once and as in the undisturbed story, and nothing else is there in part. The same with
an fsync left out, or two steps swapped, must fail: these are the tests of the test.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from bus import checkpoints, disk
from bus.journal import Commit, Journal
from bus.writer import Writer
from tests.crash import story as story_module
from tests.crash.posix import Disk, Watched
from tests.crash.story import STORIES, Cut, Ends, Story, violations
from tests.pipeline import Log

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bus.model import CommitRecord
    from tests.campaign import Campaign

STRATEGIES = ("none", "all", "meta", *("random",) * 5)
#: Disks that a long campaign tries of each story, twice: what a start costs differs.
LONG = {"two jobs": 4_000, "a batch": 2_000, "second tries": 4_000}
#: One disk in so many is cut off again, in the middle of its recovery.
AGAIN = 10
#: What an fsync protects is lost soon after it, if at all: most cuts are among the next so many.
SOON = (12, 40, 1_000_000)
#: Disks after which a fault that nobody noticed counts as unnoticed.
PATIENCE = 1_500

#: Every fsync of the protocol, by the step (DESIGN section 5), and the paths by which it is known.
LOAD_BEARING = {
    "0 the tree": r"(\.|lake|lake/bus|lake/bus/store)$",
    "1 a file": r"\.staging-[^/]+/\d+\.parquet$",
    "1 the manifest": r"\.staging-[^/]+/manifest\.json$",
    "1 COMMIT": r"\.staging-[^/]+/COMMIT$",
    "1 the staging directory": r"\.staging-[^/]+$",
    "1 inbox": r"bus/inbox$",
    "5 a file": r"bus/work/[^/]+/\d+\.parquet$",
    "5 the directory of an object": r"store/objects/..$",
    "5 objects": r"store/objects$",
    "6 a verdict": r"\.bus-verdict-\w+$",
    "6 the directory of a job": r"bus/work/[^/]+$",
    "8 ready": r"bus/ready$",
    "8 a record": r"run/record-[^/]+\.tmp$",
    "8 the journal": r"store/journal$",
    "10 a receipt": r"bus/ready/[^/]+/receipt\.json$",
    "10 a reason": r"bus/ready/[^/]+/REJECT_REASON\.json$",
    "10 the directory of a job": r"bus/ready/[^/]+$",
    "retry: its old answer is gone": r"bus/inbox/[^./][^/]*$",
    "retry: COMMIT": r"bus/rejected/[^/]+/COMMIT$",
}
#: Those that only repeat what somebody else has promised already, and why they are there.
SPARE = {
    "5 an object that was there": r"store/objects/../\w+\.parquet$",  # its maker synced the file
    "8 the newest record, at a start": r"store/journal/\d+\.json$",  # before it was linked
    # A job comes back to ready/, and is answered again; for those who read the answer meanwhile.
    "10 processed": r"bus/processed$",
    "10 rejected": r"bus/rejected$",
    "retry: the directory": r"bus/rejected/[^/]+$",  # only COMMIT is new in it, in the old one's place
    "views": r"lake/(manifest|catalog)(/|$)",  # made anew
}


class NoSync(disk.Device):
    """Recovery is watched or judged, not timed."""

    def fsync(self, fd: int) -> None:
        pass


class Told:
    """A story and its undisturbed end; `root` is empty again, for the disks that are tried."""

    def __init__(self, root: Path, *scenes: Callable[[Story], None]) -> None:
        self.root = root
        root.mkdir(parents=True)
        self.device = Watched(root)
        self.story = Story(root, self.device).tell(*scenes)
        self.expected = Ends.of(self.story.pipe)
        self.clear()

    def clear(self) -> None:
        shutil.rmtree(self.root)
        self.root.mkdir()

    def cut(self, cut: Cut, found: Disk, *, lost: str = "") -> list[str]:
        """What is wrong after recovery from this disk; `lost` has gone from it as well."""
        found.lay(self.root)
        if lost:
            shutil.rmtree(self.root / lost, ignore_errors=True)
        wrong = self.judge(cut)
        self.clear()
        return wrong

    def cut_again(self, cut: Cut, found: Disk, chance: random.Random) -> list[str]:
        """The same, when the power fails a second time, in the middle of recovery."""
        found.lay(self.root)
        watched = Watched(self.root)
        times = [watched.now]
        watched.before = lambda *_: times.append(watched.now)
        with disk.using(watched):
            wrong = self.judge(cut)
        again = watched.moment(chance.choice(times)).state(chance.choice(STRATEGIES), chance)
        watched.close()
        self.clear()
        return wrong or self.cut(cut, again)

    def judge(self, cut: Cut) -> list[str]:
        acknowledged = set(self.story.acknowledged[: cut.acknowledged])
        asked_again = {one for one, time in self.story.retried.items() if cut.time >= time}
        return violations(self.story.pipe, acknowledged, self.expected, optional=asked_again)

    def first_violation(
        self,
        chance: random.Random,
        forgets: Callable[[str], bool] = lambda _: False,
        since: int = 0,
    ) -> list[str]:
        """Try disks until one shows something wrong; nothing when none does for long."""
        cuts = [cut for cut in self.story.cuts if cut.time >= since]
        for _ in range(PATIENCE):
            cut = chance.choice(cuts[: chance.choice(SOON)])
            moment = self.device.moment(cut.time, forgets)
            if wrong := self.cut(cut, moment.state(chance.choice(STRATEGIES), chance)):
                return wrong
        return []


@pytest.fixture(autouse=True)
def _without_syncs() -> Iterator[None]:
    with disk.using(NoSync()):
        yield


@pytest.fixture(scope="module")
def tellers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Told]]:
    """Stories by name, each told when it is first asked for; `all` of them in one lake."""
    every = dict.fromkeys(scene for scenes in STORIES.values() for scene in scenes)
    told: dict[str, Told] = {}

    def tell(name: str) -> Told:
        if name not in told:
            root = tmp_path_factory.mktemp("power") / "root"
            told[name] = Told(root, *STORIES.get(name, every))
        return told[name]

    yield tell
    for one in told.values():
        one.device.close()


def at_a_time(cut: Cut, told: Told) -> str:
    return f"at {cut.at.replace(str(told.root), '')}"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "part"), [(name, part) for part in "ab" for name in STORIES])
def test_after_any_power_cut_nothing_is_lost_or_doubled_or_altered(
    tellers: Callable[[str], Told], campaign: Campaign, name: str, part: str
) -> None:
    told = tellers(name)
    chance = campaign.chance
    seen: set[bytes] = set()
    again = 0
    while len(seen) < campaign.size(short=12, long=LONG[name]):
        cut = chance.choice(told.story.cuts)
        found = told.device.moment(cut.time).state(chance.choice(STRATEGIES), chance)
        if (digest := found.digest()) in seen:
            continue
        seen.add(digest)
        if len(seen) % AGAIN:
            wrong = told.cut(cut, found)
        else:
            wrong = told.cut_again(cut, found, chance)
            again += 1
        assert wrong == [], at_a_time(cut, told)
    figures = {"moments": len(told.story.cuts), "states": len(seen), "cut_twice": again}
    campaign.record(story=name, part=part, violations=0, **figures)


def test_whatever_a_power_cut_leaves_of_checkpoints_a_rebuild_is_right(
    tmp_path: Path, campaign: Campaign
) -> None:
    told = Told(tmp_path / "root", story_module.checkpoints_are_made_between_commits)
    cuts = told.story.cuts[len(told.story.cuts) // 3 :]  # there is one from about there on
    taken = Counter[int | None]()
    for number in range(campaign.size(short=12, long=2_000)):
        cut = campaign.chance.choice(cuts)
        strategy = ("all", "random", "meta")[number % 3]
        found = told.device.moment(cut.time).state(strategy, campaign.chance)
        with Log.of(checkpoints) as logs:
            assert told.cut(cut, found, lost="lake/manifest") == [], at_a_time(cut, told)
        seqs = [entry["seq"] for entry in logs if entry["event"] == "checkpoint_taken"]
        taken[seqs[0] if seqs else None] += 1
    told.device.close()
    assert len(taken) > 1, "none was ever taken, or always the same"
    campaign.record(taken={str(seq): times for seq, times in taken.items()}, violations=0)


@pytest.mark.xdist_group("power")
@pytest.mark.parametrize("what", LOAD_BEARING)
def test_no_fsync_that_carries_weight_can_be_left_out(
    tellers: Callable[[str], Told], campaign: Campaign, what: str
) -> None:
    told = tellers("second tries" if what.startswith("retry") else "all")
    pattern = re.compile(rf"(^|/){LOAD_BEARING[what]}")
    times = [s.time for s in told.device.syncs if pattern.search(s.path)]
    assert times, "nobody does it"
    wrong = told.first_violation(
        campaign.chance, lambda path: bool(pattern.search(path)), since=times[0]
    )
    assert wrong, "nobody noticed"


@pytest.mark.xdist_group("power")
def test_every_fsync_of_the_story_is_in_the_table(tellers: Callable[[str], Told]) -> None:
    told = tellers("all")
    known = [re.compile(rf"(^|/){p}") for p in [*LOAD_BEARING.values(), *SPARE.values()]]
    paths = {sync.path for sync in told.device.syncs}
    assert {path for path in paths if not any(p.search(path) for p in known)} == set()


# ── steps in the wrong order ──────────────────────────────────────────────────────────────────


def chmod_after_fsync(patch: pytest.MonkeyPatch) -> None:
    real = disk.link_new

    def late(source: Path | str, target: Path | str) -> bool:
        if str(source).endswith(".parquet"):
            os.chmod(source, 0o444)  # noqa: PTH101 - a text or a path
        return real(source, target)

    patch.setattr(disk, "make_read_only", lambda _: True)
    patch.setattr(disk, "link_new", late)


def answer_before_commit(patch: pytest.MonkeyPatch) -> None:
    append, answer = Journal.append, Writer._answer
    waiting: list[tuple[Journal, CommitRecord]] = []

    def later(journal: Journal, record: CommitRecord) -> Commit:
        waiting.append((journal, record))
        return Commit(record, hashlib.sha256(record.to_bytes()).hexdigest())

    def first(writer: Writer, *args: Any) -> None:
        answer(writer, *args)
        while waiting:
            append(*waiting.pop())

    patch.setattr(Journal, "append", later)
    patch.setattr(Writer, "_answer", first)


@pytest.mark.parametrize("swap", [chmod_after_fsync, answer_before_commit])
def test_no_two_steps_can_be_swapped(
    tmp_path: Path,
    campaign: Campaign,
    monkeypatch: pytest.MonkeyPatch,
    swap: Callable[[pytest.MonkeyPatch], None],
) -> None:
    with monkeypatch.context() as patch:
        swap(patch)
        told = Told(tmp_path / "root", story_module.a_job_comes_and_another_meanwhile)
    assert told.first_violation(campaign.chance), "nobody noticed"
    told.device.close()


# ── the simulator itself ──────────────────────────────────────────────────────────────────────


def states(device: Watched, chance: random.Random) -> list[dict[str, bytes]]:
    """Two hundred disks that may be found now, as the contents of every path."""
    moment = device.moment(device.now)
    found = []
    for _ in range(200):
        left = moment.state("random", chance)
        paths = dict(left._walk())
        found.append({p: left.files[i].data for p, i in paths.items() if i in left.files})
    return found


def test_what_was_synced_is_there_and_what_was_not_may_be_anything(
    tmp_path: Path, campaign: Campaign
) -> None:
    device = Watched(tmp_path)
    with disk.using(device):
        disk.write_durable(tmp_path / "kept", b"kept")
        disk.sync_dir(tmp_path)
        disk.write_durable(tmp_path / "unnamed", b"whole")
        disk.write_plain(tmp_path / "torn", b"torn")
    device.look()
    found = states(device, campaign.chance)
    device.close()
    assert {state["kept"] for state in found} == {b"kept"}
    assert {state.get("unnamed") for state in found} == {None, b"whole"}
    assert {None, b"", b"torn", b"to", b"to\0\0"} <= {state.get("torn") for state in found}


def test_a_renamed_directory_has_one_of_its_names(tmp_path: Path, campaign: Campaign) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    disk.write_plain(tmp_path / "a" / "file", b"")
    (tmp_path / "a" / "job").mkdir()
    disk.write_plain(tmp_path / "a" / "job" / "data", b"x")
    device = Watched(tmp_path)
    with disk.using(device):
        disk.move(tmp_path / "a" / "job", tmp_path / "b" / "job")
        disk.move(tmp_path / "b" / "job", tmp_path / "c" / "job")
        anywhere = states(device, campaign.chance)
        disk.sync_dir(tmp_path / "a")  # gone from there, so it has come to b or gone on to c
        elsewhere = states(device, campaign.chance)
        disk.sync_dir(tmp_path / "c")
        there = states(device, campaign.chance)
    device.close()
    places = [
        {tuple(p for p in state if p.endswith("data")) for state in found}
        for found in (anywhere, elsewhere, there)
    ]
    assert places == [
        {("a/job/data",), ("b/job/data",), ("c/job/data",)},
        {("b/job/data",), ("c/job/data",)},
        {("c/job/data",)},
    ]
