"""Into the trash and out of it: what each step looks at before it moves or deletes anything."""

from __future__ import annotations

from contextlib import closing
from datetime import date
from typing import TYPE_CHECKING

import pytest

from bus import hashing, objects, trash as trash_module, writer as writer_module
from bus.errors import LakeBusy
from bus.manifest import Manifest
from bus.objects import JudgedFile, Shelf
from bus.trash import Trash
from tests.pipeline import LightCatalog, Pipeline, parquet, sha256, table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """Two artifacts, k0 and k1, that are purged, and lie in their places yet."""
    monkeypatch.setattr(writer_module, "Catalog", LightCatalog)
    pipe = Pipeline(tmp_path / "lake")
    for number in range(2):
        pipe.stage(f"job-{number}", table(number), keys=[f"k{number}"])
    withdrawn = [
        {"op": "tombstone", "target": f"job:job-{n}/t0", "reason": "wrong"} for n in range(2)
    ]
    pipe.stage("withdraw", mutations=withdrawn, after=["job-0", "job-1"])
    pipe.run()
    gone = [{"op": "purge", "object": path.stem, "reason": "wrong"} for path in places(pipe)]
    pipe.stage("purge", mutations=gone)
    with monkeypatch.context() as patch:
        patch.setattr(Trash, "take_out_some", lambda *_: False)
        pipe.run()
    assert dict(pipe.rows("SELECT logical_key, status FROM artifacts")).keys() == {"k0", "k1"}
    assert {status for (status,) in pipe.rows("SELECT status FROM artifacts")} == {"purged"}
    return pipe


def places(pipe: Pipeline) -> list[Path]:
    """Where the objects of the two belong."""
    hashes = [pipe.receipt(f"job-{number}").artifacts[0].file_hash[-64:] for number in range(2)]
    return [pipe.lake.object_path(digest) for digest in hashes]


@pytest.fixture
def manifest(pipe: Pipeline) -> Iterator[Manifest]:
    with closing(Manifest.open(pipe.lake)) as manifest:
        yield manifest


def held() -> None:
    """The fence of a writer that has its lock."""


def finish(trash: Trash, manifest: Manifest) -> None:
    while trash.take_out_some(manifest, held):
        pass


def test_what_came_back_between_two_steps_is_not_moved(
    pipe: Pipeline, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trash_module, "_STEP", 1)
    trash = Trash(pipe.lake, days=7)
    trash.take_out_some(manifest, held)
    there = [path.exists() for path in places(pipe)]
    assert sorted(there) == [False, True]
    number = there.index(True)
    pipe.stage("again", table(number), keys=[f"k{number}"])
    with monkeypatch.context() as patch:
        patch.setattr(Trash, "take_out_some", lambda *_: False)
        pipe.run()
    finish(trash, manifest)
    assert [path.exists() for path in places(pipe)] == there


def test_a_duplicate_that_relied_on_an_object_brings_it_again_when_it_is_moved(
    pipe: Pipeline, manifest: Manifest
) -> None:
    pipe.stage("again", table(0), keys=["k0"])
    pipe.judge()  # it has proven the object that is there, and its own file lies in ready/
    finish(Trash(pipe.lake, days=0), manifest)
    assert not any(path.exists() for path in places(pipe))
    pipe.commit()
    assert [path.exists() for path in places(pipe)] == [True, False]
    statuses = dict(pipe.rows("SELECT logical_key, status FROM artifacts"))
    assert statuses == {"k0": "active", "k1": "purged"}


def test_a_writer_that_lost_its_lock_puts_back_what_it_moved(
    pipe: Pipeline, manifest: Manifest
) -> None:
    looks: list[None] = []

    def lost_meanwhile() -> None:
        looks.append(None)
        if not all(path.exists() for path in places(pipe)):
            raise LakeBusy("another writer may be at work")

    with pytest.raises(LakeBusy):
        Trash(pipe.lake, days=7).take_out_some(manifest, lost_meanwhile)
    assert len(looks) == 2
    assert all(path.exists() for path in places(pipe))
    finish(Trash(pipe.lake, days=7), manifest)
    assert not any(path.exists() for path in places(pipe))


def test_what_something_stands_on_after_all_goes_back_when_the_trash_is_emptied(
    pipe: Pipeline, manifest: Manifest
) -> None:
    finish(Trash(pipe.lake, days=7), manifest)
    first, second = places(pipe)
    # By no way that the bus has: the artifact is there again, and its object is not.
    manifest._db.execute("DELETE FROM purge_facts WHERE file_hash = ?", (f"sha256:{first.stem}",))
    finish(Trash(pipe.lake, days=0), manifest)
    assert first.exists()
    assert not second.exists()
    assert list(pipe.lake.trash.iterdir()) == []


def test_each_day_has_its_trash_and_is_emptied_after_so_many_days(
    pipe: Pipeline, manifest: Manifest
) -> None:
    for day in (date(2026, 1, 1), date(2026, 1, 2)):
        pipe.lake.trash_day(day).mkdir()
        (pipe.lake.trash_day(day) / "rejected.job.1234").mkdir()
    (pipe.lake.trash / "not ours").mkdir()
    assert [path.name for path in pipe.lake.trash_before(date(2026, 1, 1))] == ["2026-01-01"]
    finish(Trash(pipe.lake, days=7), manifest)
    left = {path.name for path in pipe.lake.trash.iterdir()}
    assert len(left) == 2, "today's, and what is not ours"
    assert "not ours" in left


def test_a_power_cut_has_everything_carried_out_again(pipe: Pipeline, manifest: Manifest) -> None:
    finish(Trash(pipe.lake, days=7), manifest)
    shown = pipe.lake.run_data_path("run-1", "t0")
    shown.write_bytes(b"a name that was taken away, and not synced")
    trash = Trash(pipe.lake, days=7)
    trash.begin_again(manifest)
    finish(trash, manifest)
    assert not shown.exists()


@pytest.mark.needs_user
def test_a_tree_that_its_producer_made_read_only_is_deleted_too(
    pipe: Pipeline, manifest: Manifest
) -> None:
    inner = pipe.lake.trash_day(date(2026, 1, 1)) / "rejected.job.1234" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    inner.chmod(0o500)
    finish(Trash(pipe.lake, days=7), manifest)
    assert not inner.exists()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_validator_whose_object_is_purged_while_it_looks_links_its_own(
    moment: str, pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = parquet(5)
    job = tmp_path / "job"
    job.mkdir()
    (job / "a.parquet").write_bytes(data)
    place = pipe.lake.object_path(sha256(data))
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(data)
    real = hashing.file_hash

    def purged_meanwhile(fd: int) -> str:
        found = real(fd) if moment == "after" else ""
        place.unlink()
        return found or real(fd)

    monkeypatch.setattr(objects, "file_hash", purged_meanwhile)
    with (job / "a.parquet").open("rb") as file:
        judged = JudgedFile.of(file.fileno(), "a.parquet", sha256(data))
    Shelf(pipe.lake).link(job, [judged])
    assert place.samefile(job / "a.parquet")
