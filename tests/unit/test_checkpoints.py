"""Checkpoints: a rebuild that begins with one comes out as one that begins with record 1."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from bus import checkpoints, disk, writer as writer_module
from bus.catalog import Catalog, published_seq
from bus.errors import Damaged
from bus.journal import Journal
from bus.lake import CHECKPOINT
from bus.manifest import Manifest
from bus.model import MarkDamaged, Tombstone
from tests.ledger import dump
from tests.pipeline import LightCatalog, Log, Pipeline, facts, id_of, verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

A, B, C = facts("a", 1, tags={"k": ["v"]}), facts("b", 2), facts("c", 3)
#: Tests that need the real catalog.
WHOLE: set[Callable[..., None]] = set()


def whole(test: Callable[..., None]) -> Callable[..., None]:
    WHOLE.add(test)
    return test


@pytest.fixture(autouse=True)
def light_catalog(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog has tests of its own; here it is real only where `whole` says so."""
    if request.function not in WHOLE:
        monkeypatch.setattr(writer_module, "Catalog", LightCatalog)


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    """Four commits, and a checkpoint of each of the last two but one."""
    pipe = Pipeline(tmp_path / "lake", checkpoint_every=1)
    commit(pipe, verdict("j1", A))
    commit(pipe, verdict("j2", B, run_id="run-2"))
    commit(pipe, verdict("j3", mutations=[Tombstone(op="tombstone", target=id_of(B), reason="w")]))
    without = Pipeline(pipe.lake.root)
    commit(without, verdict("j4", C))
    return pipe


def commit(pipe: Pipeline, *verdicts: Any) -> None:
    for found in verdicts:
        pipe.judged(found)
    with pipe.writer() as writer:
        while writer.drain().more:
            pass


def facts_of(pipe: Pipeline) -> dict[str, list[tuple[Any, ...]]]:
    with closing(Manifest.read(pipe.lake)) as manifest:
        return dump(manifest)


def from_record_1(pipe: Pipeline) -> dict[str, list[tuple[Any, ...]]]:
    """What the journal alone says."""
    with pipe.writer() as writer:
        writer.rebuild(from_journal=True)
    return facts_of(pipe)


def lose_the_manifest(pipe: Pipeline) -> None:
    disk.remove_tree(pipe.lake.manifest_db.parent)
    pipe.lake.manifest_db.parent.mkdir()


def started_from(action: Callable[[], object]) -> tuple[int | None, list[str]]:
    """Which checkpoint was taken meanwhile, and why others were not."""
    with Log.of(checkpoints) as logs:
        action()
    taken = [entry["seq"] for entry in logs if entry["event"] == "checkpoint_taken"]
    ignored = [entry["reason"] for entry in logs if entry["event"] == "checkpoint_ignored"]
    assert len(taken) <= 1
    return (taken[0] if taken else None), list(dict.fromkeys(ignored))


def start(pipe: Pipeline) -> None:
    pipe.writer().close()


def records_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read: list[int] = []
    real = Journal.read

    def noted(journal: Journal, seq: int) -> Any:
        read.append(seq)
        return real(journal, seq)

    monkeypatch.setattr(Journal, "read", noted)
    return read


# ── when ─────────────────────────────────────────────────────────────────────────────────────────


def test_one_is_made_whenever_enough_is_new_and_the_newest_two_are_kept(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, checkpoint_every=4)
    seen = []
    for number in range(1, 9):  # each commit brings two entries: a job and an artifact
        commit(pipe, verdict(f"j{number}", facts(f"n{number}", number)))
        seen.append(pipe.lake.checkpoint_seqs())
    assert seen == [[], [2], [2], [4, 2], [4, 2], [6, 4], [6, 4], [8, 6]]


def test_the_larger_the_lake_the_more_must_be_new(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, checkpoint_every=1)
    commit(pipe, *(verdict(f"j{n}", facts(f"n{n}", n)) for n in range(50)))
    assert pipe.lake.checkpoint_seqs() == [1]
    commit(pipe, verdict("few", facts("few", 90)))  # 2 of 102
    assert pipe.lake.checkpoint_seqs() == [1]
    commit(pipe, verdict("more", facts("more", 91), facts("most", 92), facts("last", 93)))
    assert pipe.lake.checkpoint_seqs() == [3, 1]


def test_none_is_made_in_a_lake_that_stands_still(pipe: Pipeline) -> None:
    before = pipe.lake.checkpoint_seqs()
    commit(pipe)  # the fourth commit was made by a writer that makes none
    assert pipe.lake.checkpoint_seqs() == [4, before[0]]
    commit(pipe)
    assert pipe.lake.checkpoint_seqs() == [4, before[0]]


def test_the_writer_goes_on_while_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline(tmp_path, checkpoint_every=1)
    real = disk.copy_file

    def copy_while_another_commit_is_made(source: Path, target: Path) -> None:
        real(source, target)
        if source == pipe.lake.catalog_db and writer.seq == 1:
            pipe.judged(verdict("j2", B))
            assert writer.drain().jobs == 1

    monkeypatch.setattr(disk, "copy_file", copy_while_another_commit_is_made)
    with pipe.writer() as writer:
        pipe.judged(verdict("j1", A))
        writer.drain()
    assert pipe.lake.checkpoint_seqs() == [2]
    monkeypatch.undo()
    monkeypatch.setattr(writer_module, "Catalog", LightCatalog)
    before = facts_of(pipe)
    lose_the_manifest(pipe)
    assert started_from(lambda: start(pipe)) == (2, [])
    assert facts_of(pipe) == before


def test_one_that_cannot_be_made_leaves_nothing_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline(tmp_path, checkpoint_every=1)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(checkpoints, "file_hash", full)
    with Log.of(checkpoints) as logs:
        commit(pipe, verdict("j1", A))
    assert [e["reason"] for e in logs if e["event"] == "checkpoint_not_made"] == [
        "database or disk is full"
    ]
    assert pipe.receipt("j1").seq == 1
    assert list(pipe.lake.checkpoints.iterdir()) == []


def test_none_is_made_where_it_would_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline(tmp_path, checkpoint_every=1)
    room = shutil.disk_usage(tmp_path)._replace(free=1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    commit(pipe, verdict("j1", A))
    assert list(pipe.lake.checkpoints.iterdir()) == []


# ── what for ─────────────────────────────────────────────────────────────────────────────────────


def test_a_start_without_the_manifest_reads_only_what_is_newer(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = facts_of(pipe)
    lose_the_manifest(pipe)
    read = records_read(monkeypatch)
    assert started_from(lambda: start(pipe)) == (3, [])
    assert set(read) == {4, 5}  # and looks whether there is a fifth
    assert facts_of(pipe) == before == from_record_1(pipe)


def test_a_start_with_the_manifest_looks_at_the_newest_record_only(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(*_: object) -> None:
        raise AssertionError("the journal was listed")

    monkeypatch.setattr(type(pipe.lake), "record_names", listed)
    read = records_read(monkeypatch)
    assert started_from(lambda: start(pipe)) == (None, [])
    assert set(read) == {4, 5}  # is it the one, and is there another


def test_a_rebuild_begins_with_a_checkpoint_unless_it_is_told_not_to(pipe: Pipeline) -> None:
    before = facts_of(pipe)
    with pipe.writer() as writer:
        assert started_from(writer.rebuild) == (3, [])
        assert facts_of(pipe) == before
        assert started_from(lambda: writer.rebuild(from_journal=True)) == (None, [])
        assert facts_of(pipe) == before


def test_links_that_were_lost_as_well_are_made_again(pipe: Pipeline) -> None:
    before = pipe.links()
    assert before == {id_of(A), id_of(C)}
    lose_the_manifest(pipe)
    disk.remove_tree(pipe.lake.artifacts)
    start(pipe)
    assert pipe.links() == before


def test_what_was_committed_and_not_followed_yet_is_followed_after_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline(tmp_path, checkpoint_every=1_000)
    commit(pipe, verdict("j1", A))
    path = pipe.lake.object_path(A.sha256)
    path.chmod(0o644)
    path.write_bytes(b"rotten")
    pipe.judged(
        verdict("m", mutations=[MarkDamaged(op="mark_damaged", object=path.stem, found="")])
    )
    writer = pipe.writer()
    monkeypatch.setattr(type(writer), "_link", lambda *_: None)  # it dies before that
    writer.drain(budget_s=0)
    checkpoints.make(pipe.lake)
    writer.close()
    monkeypatch.undo()
    monkeypatch.setattr(writer_module, "Catalog", LightCatalog)
    assert path.exists()
    lose_the_manifest(pipe)
    assert started_from(lambda: start(pipe))[0] == 2
    assert not path.exists()


def test_a_lake_that_was_moved_begins_with_it_and_names_its_new_place(pipe: Pipeline) -> None:
    moved = pipe.lake.root.with_name("moved")
    pipe.lake.root.rename(moved)
    there = Pipeline(moved)
    assert started_from(lambda: start(there)) == (3, [])
    paths = [path for (path,) in there.rows("SELECT path_parquet FROM artifacts")]
    assert paths
    assert all(os.path.exists(path) for path in paths)  # noqa: PTH110 - paths as readers get them


@whole
def test_manifest_and_catalog_lost_together_come_back_as_they_were(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, checkpoint_every=1)
    commit(pipe, verdict("j1", A), verdict("j2", B))
    assert pipe.lake.checkpoint_seqs() == [1]
    commit(Pipeline(tmp_path), verdict("j3", C))
    digest, before = Catalog.digest(pipe.lake), facts_of(pipe)
    for path in (pipe.lake.manifest_db, pipe.lake.catalog_db):
        disk.remove_tree(path.parent)
    folded: list[int] = []
    real = Catalog._fold

    def noted(catalog: Catalog, *args: Any) -> None:
        folded.append(catalog.applied_seq)
        real(catalog, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Catalog, "_fold", noted)
        commit(pipe)
    assert folded == []  # one fresh row was enough
    assert published_seq(pipe.lake) == 2
    assert Catalog.digest(pipe.lake) == digest
    assert facts_of(pipe) == before


# ── what is wrong with one ───────────────────────────────────────────────────────────────────────


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(change(data))


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def flip_the_copy(pipe: Pipeline) -> None:
    rewrite(pipe.lake.checkpoint_path(3) / pipe.lake.manifest_db.name, flipped)


def lose_the_copy(pipe: Pipeline) -> None:
    (pipe.lake.checkpoint_path(3) / pipe.lake.manifest_db.name).unlink()


def cut_the_document(pipe: Pipeline) -> None:
    rewrite(pipe.lake.checkpoint_path(3) / CHECKPOINT, lambda data: data[:-5])


def zero_the_document(pipe: Pipeline) -> None:
    """As a power cut may leave it."""
    rewrite(pipe.lake.checkpoint_path(3) / CHECKPOINT, lambda data: bytes(len(data)))


def lose_the_document(pipe: Pipeline) -> None:
    (pipe.lake.checkpoint_path(3) / CHECKPOINT).unlink()


def rename_it(pipe: Pipeline) -> None:
    pipe.lake.checkpoint_path(3).rename(pipe.lake.checkpoint_path(4))


def make_it_older(pipe: Pipeline) -> None:
    path = pipe.lake.checkpoint_path(3) / CHECKPOINT
    rewrite(path, lambda data: data.replace(b'"schema_version":', b'"schema_version":1'))


def give_it_another_history(pipe: Pipeline) -> None:
    path = pipe.lake.checkpoint_path(3) / CHECKPOINT
    sha256 = Journal(pipe.lake).sha256(3)
    assert sha256 is not None
    rewrite(path, lambda data: data.replace(sha256.encode(), b"0" * 64))


HARMS: dict[Callable[[Pipeline], None], str] = {
    flip_the_copy: "the bytes of manifest.sqlite have changed",
    lose_the_copy: "manifest.sqlite: No such file",
    cut_the_document: "unreadable",
    zero_the_document: "unreadable",
    lose_the_document: "unreadable",
    rename_it: "it says it is 3",
    make_it_older: "made with tables of version",
    give_it_another_history: "record 3 is another one",
}


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_one_with_something_wrong_is_passed_over_and_it_is_said(
    pipe: Pipeline, harm: Callable[[Pipeline], None]
) -> None:
    before = facts_of(pipe)
    harm(pipe)
    lose_the_manifest(pipe)
    taken, ignored = started_from(lambda: start(pipe))
    assert taken == 2
    assert HARMS[harm] in ignored[0]
    assert facts_of(pipe) == before


def test_where_none_is_sound_record_1_is_the_beginning(pipe: Pipeline) -> None:
    before = facts_of(pipe)
    for seq in pipe.lake.checkpoint_seqs():
        rewrite(pipe.lake.checkpoint_path(seq) / CHECKPOINT, flipped)
    lose_the_manifest(pipe)
    assert started_from(lambda: start(pipe))[0] is None
    assert facts_of(pipe) == before


def test_one_of_commits_that_the_journal_has_no_more_is_passed_over(pipe: Pipeline) -> None:
    for seq in (3, 4):
        pipe.lake.record_path(seq).unlink()  # restored from a backup of before
    assert started_from(lambda: start(pipe)) == (2, ["record 3 is not in the journal"])
    assert pipe.rows("SELECT count(*) FROM commits") == [(2,)]
    commit(pipe, verdict("j5", C))
    assert facts_of(pipe) == from_record_1(pipe)


def test_a_gap_behind_a_checkpoint_is_no_end_of_the_journal(pipe: Pipeline) -> None:
    commit(Pipeline(pipe.lake.root), verdict("j5", facts("e", 5)))
    pipe.lake.record_path(4).unlink()
    lose_the_manifest(pipe)
    with pytest.raises(Damaged, match="record 4 is missing"):
        pipe.writer()


def test_one_that_lies_there_already_is_replaced(pipe: Pipeline) -> None:
    assert checkpoints.make(pipe.lake) == 4
    rewrite(pipe.lake.checkpoint_path(4) / CHECKPOINT, flipped)
    assert checkpoints.make(pipe.lake) == 4
    assert checkpoints.read(pipe.lake, 4).seq == 4


def test_the_first_writer_after_a_boot_takes_those_away_that_a_power_cut_has_torn(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero_the_document(pipe)
    start(pipe)
    assert pipe.lake.checkpoint_seqs() == [3, 2]
    monkeypatch.setattr(disk, "boot_id", lambda: "another")
    start(pipe)
    assert pipe.lake.checkpoint_seqs() == [2]


def test_what_a_killed_writer_left_half_made_is_removed(pipe: Pipeline) -> None:
    draft = pipe.lake.checkpoint_draft("dead")
    shutil.copytree(pipe.lake.checkpoint_path(3), draft)
    start(pipe)
    assert not draft.exists()
