"""Backups of a lake that works, checked and restored: whole, incremental, resumed, refused."""

from __future__ import annotations

import shutil
import threading
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from bus import backup as backup_module, disk, objects, writer as writer_module
from bus.backup import backup, check, restore
from bus.catalog import Catalog
from bus.client import Bus
from bus.errors import LakeBusy, Refused
from bus.lake import Lake
from bus.manifest import Manifest
from bus.model import iso, utc_now
from bus.rebuilt import Twin, manifest_differences
from bus.repair import mend
from bus.verify import verify
from tests.pipeline import KIND, LightCatalog, Pipeline, table
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from bus.backup import Report
    from bus.invariants import Finding


@pytest.fixture
def pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """Three committed artifacts, k0 to k2, and a rejected job."""
    monkeypatch.setattr(writer_module, "Catalog", LightCatalog)
    pipe = Pipeline(tmp_path / "lake")
    for number in range(3):
        publish(pipe, number)
    pipe.stage("bad", table(9), entries={"inputs": ["job:nobody/t0"]})
    settle(pipe)
    return pipe


def settle(pipe: Pipeline) -> None:
    pipe.judge()
    with pipe.writer() as writer:
        while writer.drain().more:
            pass


def publish(pipe: Pipeline, number: int, **fields: Any) -> None:
    pipe.stage(f"job-{number}", table(number), keys=[f"k{number}"], **fields)
    settle(pipe)


def object_of(lake: Lake, pipe: Pipeline, number: int) -> Path:
    """Where the artifact of a job lies, in its lake or in another place."""
    return lake.object_path(pipe.receipt(f"job-{number}").artifacts[0].file_hash[-64:])


def purge(pipe: Pipeline, number: int) -> None:
    """Withdraw an artifact and give its bytes up."""
    target = f"job:job-{number}/t0"
    withdrawn = [{"op": "tombstone", "target": target, "reason": "wrong"}]
    pipe.stage(f"withdraw-{number}", mutations=withdrawn)
    settle(pipe)
    sha256 = object_of(pipe.lake, pipe, number).stem
    gone = [{"op": "purge", "object": sha256, "reason": "wrong"}]
    pipe.stage(f"purge-{number}", mutations=gone)
    settle(pipe)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


def problems(root: Path) -> list[Finding]:
    pipe = Pipeline(root)
    found = verify(pipe.lake, pipe.settings, pipe.registry).findings
    return [f for f in found if f.where != str(pipe.lake.catalog_db)]  # the light one is none


def assert_equals_the_journal(place: Path, lake: Lake, seq: int, folder: Path) -> None:
    """The manifest of a restored lake is what the first `seq` records of another one make."""
    folder.mkdir()
    with closing(Twin(lake, folder)) as twin, closing(Manifest.read(Lake(place))) as restored:
        twin.grow(seq)
        assert restored.applied == twin.manifest.applied
        restored_roots = {k: v for k, v in restored.meta().items() if k.endswith("_root")}
        assert all(str(place) in root for root in restored_roots.values())
        assert [d for d in manifest_differences(restored, twin.manifest) if "meta" not in d] == []


# ── whole ─────────────────────────────────────────────────────────────────────────────────────


def test_what_is_restored_is_what_was_backed_up(pipe: Pipeline, tmp_path: Path) -> None:
    made = backup(pipe.lake, pipe.settings, tmp_path / "backup")
    assert (made.seq, made.objects, made.copied_objects, made.findings) == (4, 3, 3, [])
    assert check(tmp_path / "backup").findings == []
    found = restore(tmp_path / "backup", tmp_path / "new")
    assert (found.seq, found.objects, found.findings) == (4, 3, [])
    assert_equals_the_journal(tmp_path / "new", pipe.lake, 4, tmp_path / "twin")
    assert problems(tmp_path / "new") == []
    bus = Bus(Pipeline(tmp_path / "new").settings)
    receipt = bus.wait("job-1", timeout_s=0)
    assert receipt.artifacts[0].path.startswith(str(tmp_path / "new"))
    # And the lake goes on.
    new = Pipeline(tmp_path / "new")
    publish(new, 7)
    publish(new, 1, run_id="run-again")
    assert new.records()[-1].jobs[0].outcome == "rejected", "the journal knows job-1"
    assert problems(tmp_path / "new") == []


def test_a_restored_catalog_has_the_digest_of_the_lake_at_that_commit(tmp_path: Path) -> None:
    root = tmp_path / "readers"  # who sees either lake under one name
    root.symlink_to(tmp_path / "lake")
    pipe = Pipeline(tmp_path / "lake", public_root=root)
    publish(pipe, 1)
    (tmp_path / "bus.toml").write_text(f'public_root = "{root}"\n')
    settings = pipe.settings.model_copy(update={"config_path": tmp_path / "bus.toml"})
    digest = Catalog.digest(pipe.lake)
    backup(pipe.lake, settings, tmp_path / "backup")
    publish(pipe, 2)
    root.unlink()
    root.symlink_to(tmp_path / "new")
    restore(tmp_path / "backup", tmp_path / "new")
    assert Catalog.digest(Lake(tmp_path / "new")) == digest
    assert Catalog.digest(pipe.lake) != digest


def test_a_later_backup_copies_only_what_is_new(pipe: Pipeline, tmp_path: Path) -> None:
    place = tmp_path / "backup"
    backup(pipe.lake, pipe.settings, place)
    before = {path: path.stat().st_ino for path in place.rglob("*.parquet")}
    publish(pipe, 5)
    again = backup(pipe.lake, pipe.settings, place)
    assert (again.seq, again.copied_objects, again.copied_records) == (5, 1, 1)
    assert {path: path.stat().st_ino for path in before} == before
    nothing = backup(pipe.lake, pipe.settings, place)
    assert (nothing.copied_objects, nothing.copied_records, nothing.copied_bytes) == (0, 0, 0)


def test_a_backup_shares_no_file_with_the_lake(pipe: Pipeline, tmp_path: Path) -> None:
    backup(pipe.lake, pipe.settings, tmp_path / "backup")
    theirs = {path.stat().st_ino for path in pipe.lake.root.rglob("*") if path.is_file()}
    ours = [path for path in (tmp_path / "backup").rglob("*") if path.is_file()]
    assert theirs.isdisjoint(path.stat().st_ino for path in ours)
    assert {oct(path.stat().st_mode & 0o777) for path in ours if "store" in path.parts} == {"0o444"}


def test_what_was_purged_is_not_missed_and_stays_where_it_was(
    pipe: Pipeline, tmp_path: Path
) -> None:
    place = tmp_path / "backup"
    backup(pipe.lake, pipe.settings, place)
    purge(pipe, 1)
    found = backup(pipe.lake, pipe.settings, place)
    assert (found.objects, found.findings) == (2, [])
    assert object_of(Lake(place), pipe, 1).exists()
    assert restore(place, tmp_path / "new").objects == 2
    assert problems(tmp_path / "new") == []
    statuses = Pipeline(tmp_path / "new").rows("SELECT logical_key, status FROM artifacts")
    assert dict(statuses)["k1"] == "purged"


# ── while the lake works ──────────────────────────────────────────────────────────────────────


def test_backups_beside_ingest_and_purges_are_each_whole(pipe: Pipeline, tmp_path: Path) -> None:
    busy = Pipeline(pipe.lake.root, trash_days=0)
    place, stop = tmp_path / "backup", threading.Event()
    rounds: list[int] = []

    def work() -> None:
        while not stop.is_set() and len(rounds) < 200:
            number = 100 + len(rounds)
            publish(busy, number)
            purge(busy, number)
            rounds.append(number)

    def more_than(done: int) -> bool:
        return len(rounds) > done or not ingest.is_alive()

    ingest = threading.Thread(target=work)
    ingest.start()
    made: list[Report] = []
    try:
        for _ in range(4):
            done = len(rounds)
            made.append(backup(pipe.lake, pipe.settings, place))
            wait_until(partial(more_than, done))
    finally:
        stop.set()
        ingest.join()
    assert [report.findings for report in made] == [[]] * 4
    assert len({report.seq for report in made}) == 4
    assert check(place).findings == []
    restore(place, tmp_path / "new")
    assert_equals_the_journal(tmp_path / "new", pipe.lake, made[-1].seq, tmp_path / "twin")
    assert problems(tmp_path / "new") == []


@pytest.mark.parametrize("trash", ["full", "emptied"])
def test_what_is_purged_while_it_is_copied_comes_from_the_trash_or_is_not_needed(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trash: str
) -> None:
    real = backup_module._Copy.objects
    once = [1]

    def purged_meanwhile(copy: Any, extent: Any) -> list[str]:
        while once:
            purge(pipe, once.pop())
            if trash == "emptied":
                shutil.rmtree(pipe.lake.trash)
        return real(copy, extent)

    monkeypatch.setattr(backup_module._Copy, "objects", purged_meanwhile)
    found = backup(pipe.lake, pipe.settings, tmp_path / "backup")
    assert found.findings == []
    assert (found.seq, found.objects) == ((4, 3) if trash == "full" else (6, 2))
    assert check(tmp_path / "backup").findings == []


# ── interrupted ───────────────────────────────────────────────────────────────────────────────


def test_an_interrupted_backup_is_none_yet_and_the_next_one_goes_on(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "backup"
    real = objects.copied
    calls: list[Path] = []

    def copied(source: Path, target: Path, sha256: str) -> bool:
        calls.append(target)
        if len(calls) > 2:
            (target.parent / ".left").touch()
            raise OSError(28, "No space left on device")
        return real(source, target, sha256)

    with monkeypatch.context() as patch:
        patch.setattr(backup_module, "copied", copied)
        with pytest.raises(OSError, match="No space"):
            backup(pipe.lake, pipe.settings, place)
    with pytest.raises(Refused, match="not come to its end"):
        check(place)
    with pytest.raises(Refused, match="not come to its end"):
        restore(place, tmp_path / "new")
    found = backup(pipe.lake, pipe.settings, place)
    assert 0 < found.copied_objects < 3
    assert check(place).findings == []
    assert list(place.rglob(".*")) == []


def test_a_backup_that_ends_before_its_note_still_is_the_one_before(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "backup"
    backup(pipe.lake, pipe.settings, place)
    publish(pipe, 5)

    def die(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(backup_module, "_finish", die)
        with pytest.raises(SystemExit):
            backup(pipe.lake, pipe.settings, place)
    assert Lake(place).record_path(5).exists()
    assert (check(place).seq, check(place).findings) == (4, [])
    assert restore(place, tmp_path / "new").seq == 4
    found = backup(pipe.lake, pipe.settings, place)
    assert (found.seq, found.copied_objects, found.copied_records) == (5, 0, 0)


def test_an_interrupted_restore_goes_on(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, root = tmp_path / "backup", tmp_path / "new"
    backup(pipe.lake, pipe.settings, place)

    def die(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(backup_module, "_make_views", die)
        with pytest.raises(SystemExit):
            restore(place, root)
    assert restore(place, root).copied_objects == 0
    assert problems(root) == []
    assert not Lake(root).backup_note.exists()


def test_settings_stay_as_private_as_they_are(pipe: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "bus.toml").write_text("strict_kinds = false\n")
    (tmp_path / "bus.toml").chmod(0o600)
    settings = pipe.settings.model_copy(update={"config_path": tmp_path / "bus.toml"})
    backup(pipe.lake, settings, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")
    for place in ("backup", "restored"):
        assert (tmp_path / place / "bus.toml").stat().st_mode & 0o777 == 0o600


# ── damage ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("what", ["object", "missing object", "record", "last record", "settings"])
def test_damage_of_a_backup_is_found_and_named(pipe: Pipeline, tmp_path: Path, what: str) -> None:
    (tmp_path / "bus.toml").write_text("strict_kinds = false\n")
    settings = pipe.settings.model_copy(update={"config_path": tmp_path / "bus.toml"})
    place = Lake(tmp_path / "backup")
    backup(pipe.lake, settings, place.root)
    path = {
        "object": object_of(place, pipe, 1),
        "missing object": object_of(place, pipe, 1),
        "record": place.record_path(2),
        "last record": place.record_path(4),
        "settings": place.root / "bus.toml",
    }[what]
    if what == "missing object":
        path.unlink()
    else:
        flip(path)
    (found,) = check(place.root).findings
    named = path.stem if what != "record" else place.record_path(3).stem
    assert named in found.where or path.stem in found.where
    if "object" in what:
        assert f"{KIND} k1" in found.message
        again = backup(pipe.lake, settings, place.root)
        assert again.copied_objects == (1 if what == "missing object" else 0)
        path.unlink()
        backup(pipe.lake, settings, place.root)
        assert check(place.root).findings == []


def test_a_damaged_object_of_a_backup_is_named_and_the_rest_is_restored(
    pipe: Pipeline, tmp_path: Path
) -> None:
    place = Lake(tmp_path / "backup")
    backup(pipe.lake, pipe.settings, place.root)
    flip(object_of(place, pipe, 1))
    (found,) = restore(place.root, tmp_path / "new").findings
    assert f"{KIND} k1" in found.message
    assert {f.invariant for f in problems(tmp_path / "new")} == {1}
    assert object_of(Lake(tmp_path / "new"), pipe, 2).exists()


def test_a_damaged_object_of_the_lake_is_named_and_keeps_nothing_else_back(
    pipe: Pipeline, tmp_path: Path
) -> None:
    flip(object_of(pipe.lake, pipe, 1))
    found = backup(pipe.lake, pipe.settings, tmp_path / "backup")
    assert [f"{KIND} k1" in f.message for f in found.findings] == [True]
    assert found.copied_objects == 2
    assert not object_of(Lake(tmp_path / "backup"), pipe, 1).exists()


def test_what_is_damaged_in_the_lake_comes_back_from_the_backup(
    pipe: Pipeline, tmp_path: Path
) -> None:
    place = Lake(tmp_path / "backup")
    backup(pipe.lake, pipe.settings, place.root)
    flip(object_of(pipe.lake, pipe, 1))
    for expected in ("damaged", "active"):
        report = verify(pipe.lake, pipe.settings, pipe.registry)
        deeds = mend(pipe.lake, report, place)
        settle(pipe)
        assert dict(pipe.rows("SELECT logical_key, status FROM artifacts"))["k1"] == expected
    assert any("brought" in deed for deed in deeds)
    assert problems(pipe.lake.root) == []


# ── refused ───────────────────────────────────────────────────────────────────────────────────


def test_a_backup_takes_no_place_that_is_in_use(pipe: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    other = Pipeline(tmp_path / "other")
    publish(other, 8)
    backup(other.lake, other.settings, tmp_path / "theirs")
    cases = {
        "would be lost with it": pipe.lake.root / "backup",
        "something else": tmp_path / "mine",
        "another history": tmp_path / "theirs",
    }
    for why, place in cases.items():
        before = sorted(place.rglob("*"))
        with pytest.raises(Refused, match=why) as refused:
            backup(pipe.lake, pipe.settings, place)
        assert refused.value.code == "E513"
        assert sorted(place.rglob("*")) == before


def test_a_lake_that_went_back_begins_another_backup(pipe: Pipeline, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    backup(pipe.lake, pipe.settings, old)
    restore(old, new)
    restored = Pipeline(new)
    publish(pipe, 5)
    backup(pipe.lake, pipe.settings, old)
    publish(restored, 6)
    with pytest.raises(Refused, match="another history"):
        backup(restored.lake, restored.settings, old)
    assert check(old).seq == 5


def test_a_restore_needs_a_backup_and_an_empty_place(pipe: Pipeline, tmp_path: Path) -> None:
    place = tmp_path / "backup"
    with pytest.raises(Refused, match="no backup"):
        restore(place, tmp_path / "new")
    with pytest.raises(Refused, match="no backup"):
        check(pipe.lake.root)
    backup(pipe.lake, pipe.settings, place)
    with pytest.raises(Refused, match="a lake already"):
        restore(place, pipe.lake.root)
    waiting = Pipeline(tmp_path / "waiting")
    waiting.stage("job", table(1))
    with pytest.raises(Refused, match="a lake already"):
        restore(place, waiting.lake.root)
    with pytest.raises(Refused, match="already"):
        restore(place, place)
    made = Pipeline(tmp_path / "made")  # directories alone are no lake yet
    assert restore(place, made.lake.root).seq == 4


def test_one_backup_at_a_time(pipe: Pipeline, tmp_path: Path) -> None:
    place = Lake(tmp_path / "backup")
    backup(pipe.lake, pipe.settings, place.root)
    with disk.locked(place.backup_lock) as lock:
        assert lock is not None
        with pytest.raises(LakeBusy, match="at work there"):
            backup(pipe.lake, pipe.settings, place.root)


def test_jobs_that_were_discarded_are_not_asked_for_after_a_restore(
    pipe: Pipeline, tmp_path: Path
) -> None:
    discard = {"op": "discard", "jobs": "committed", "before": iso(utc_now())}
    pipe.stage("discard", mutations=[discard])
    settle(pipe)
    backup(pipe.lake, pipe.settings, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "new")
    assert problems(tmp_path / "new") == []
