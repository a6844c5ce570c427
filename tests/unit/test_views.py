"""The file views: links, sidecars and run trees show the present, and can be made again."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING

import pytest

from bus import disk, views
from bus.model import CommitRecord, Supersede, Tombstone
from tests.ledger import Ledger
from tests.pipeline import facts, id_of, parquet, sha256, verdict

if TYPE_CHECKING:
    from pathlib import Path

    from bus.model import ArtifactFacts, Verdict

A, B, C = facts("a", 1), facts("b", 2), facts("c", 3)


class Shelf:
    """Commits whose objects are stored and whose views are made, as the writer makes them."""

    def __init__(self, path: Path) -> None:
        self.ledger = Ledger(path, in_memory=True)
        self.lake = self.ledger.lake
        self.lake.create()

    def commit(self, *verdicts: Verdict) -> CommitRecord:
        for found in verdicts:
            for artifact in found.artifacts:
                self.store(artifact)
        self.ledger.committed(*verdicts)
        record = self.ledger.commits[-1].record
        self.link(record)
        return record

    def store(self, artifact: ArtifactFacts) -> None:
        number = int(artifact.content_hash.removeprefix("ch1:"), 16)
        for codec in ("snappy", "zstd"):
            path = self.lake.object_path(sha256(parquet(number, codec)))
            if path.stem == artifact.sha256 and not path.exists():
                path.parent.mkdir(exist_ok=True)
                disk.write_plain(path, parquet(number, codec), 0o444)

    def link(self, record: CommitRecord) -> None:
        views.link_artifacts(self.lake, record)
        views.unlink_inactive(self.lake, record, self.ledger.manifest)

    def trees(self) -> None:
        for commit in self.ledger.commits:
            for _ in views.build_trees(self.lake, commit.record):
                pass

    def shown(self) -> dict[str, bytes]:
        """What `canon.*` would read: bytes by artifact_id."""
        return {p.stem: p.read_bytes() for p in self.lake.artifact_links()}


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    tmp_path.joinpath("lake").mkdir()
    return Shelf(tmp_path / "lake")


# ── links ────────────────────────────────────────────────────────────────────────────────────────


def test_a_link_is_the_object_itself_and_made_once(shelf: Shelf) -> None:
    record = shelf.commit(verdict("j1", A, B))
    path = shelf.lake.artifact_path("signals", 1, id_of(A))
    assert path.samefile(shelf.lake.object_path(A.sha256))
    inode = path.stat().st_ino
    shelf.link(record)
    assert path.stat().st_ino == inode
    assert shelf.shown() == {id_of(A): parquet(1), id_of(B): parquet(2)}


def test_one_object_may_be_several_artifacts_and_a_duplicate_is_no_new_one(shelf: Shelf) -> None:
    other = facts("a", 1, logical_key="other")
    shelf.commit(verdict("j1", A), verdict("j2", other), verdict("j3", A, run_id="run-3"))
    assert shelf.shown() == {id_of(A): parquet(1), id_of(other): parquet(1)}


def test_superseded_and_tombstoned_artifacts_go_and_their_objects_stay(shelf: Shelf) -> None:
    shelf.commit(verdict("j1", A, B))
    shelf.commit(verdict("j2", facts("c", 3, supersedes=[id_of(A)])))
    wrong = Tombstone(op="tombstone", target=id_of(B), reason="wrong")
    shelf.commit(verdict("j3", mutations=[wrong]))
    assert set(shelf.shown()) == {id_of(facts("c", 3))}
    assert shelf.lake.object_path(A.sha256).exists()
    assert shelf.lake.object_path(B.sha256).exists()


def test_a_revived_artifact_shows_the_new_bytes(shelf: Shelf) -> None:
    first = shelf.commit(verdict("j1", A))
    wrong = Tombstone(op="tombstone", target=id_of(A), reason="wrong")
    shelf.commit(verdict("j2", mutations=[wrong]))
    again = facts("a", 1, codec="zstd")
    revival = shelf.commit(verdict("j3", again))
    assert shelf.shown() == {id_of(A): parquet(1, "zstd")}
    shelf.link(first)  # taken up after a crash from the beginning: the last word stays
    shelf.link(revival)
    assert shelf.shown() == {id_of(A): parquet(1, "zstd")}


def test_one_that_is_revived_but_superseded_is_not_shown(shelf: Shelf) -> None:
    shelf.commit(verdict("j1", A, B))
    old = Supersede(op="supersede", target=id_of(A), by=id_of(B))
    wrong = Tombstone(op="tombstone", target=id_of(A), reason="wrong")
    shelf.commit(verdict("j2", mutations=[old, wrong]))
    shelf.commit(verdict("j3", A))
    assert shelf.ledger.status()[id_of(A)] == "superseded"
    assert set(shelf.shown()) == {id_of(B)}


def test_taken_up_anywhere_and_repeated_the_links_come_out_the_same(shelf: Shelf) -> None:
    shelf.commit(verdict("j1", A, B))
    wrong = Tombstone(op="tombstone", target=id_of(A), reason="wrong")
    shelf.commit(verdict("j2", mutations=[wrong]))
    shelf.commit(verdict("j3", facts("a", 1, codec="zstd"), facts("c", 3, supersedes=[id_of(B)])))
    before = shelf.shown()
    records = [commit.record for commit in shelf.ledger.commits]
    for start in range(len(records)):
        disk.remove_tree(shelf.lake.artifacts)
        for record in [*records, *records[start:]]:
            shelf.link(record)
        assert shelf.shown() == before
    disk.remove_tree(shelf.lake.artifacts)
    assert views.match_artifacts(shelf.lake, shelf.ledger.manifest) == (len(before), 0)
    assert shelf.shown() == before


def test_matching_makes_what_is_missing_and_touches_nothing_else(shelf: Shelf) -> None:
    shelf.commit(verdict("j1", A, B))
    kept = shelf.lake.artifact_path("signals", 1, id_of(A))
    before = kept.stat().st_ctime_ns
    shelf.lake.artifact_path("signals", 1, id_of(B)).unlink()
    assert views.match_artifacts(shelf.lake, shelf.ledger.manifest) == (1, 0)
    assert set(shelf.shown()) == {id_of(A), id_of(B)}
    assert kept.stat().st_ctime_ns == before
    assert views.match_artifacts(shelf.lake, shelf.ledger.manifest) == (0, 0)


def test_matching_replaces_a_link_that_shows_the_bytes_from_before_a_revival(shelf: Shelf) -> None:
    shelf.commit(verdict("j1", A))
    old = shelf.shown()
    wrong = Tombstone(op="tombstone", target=id_of(A), reason="wrong")
    shelf.commit(verdict("j2", mutations=[wrong]))
    shelf.commit(verdict("j3", facts("a", 1, codec="zstd")))
    new = shelf.shown()
    link = shelf.lake.artifact_path("signals", 1, id_of(A))
    link.unlink()
    link.hardlink_to(shelf.lake.object_path(A.sha256))
    assert shelf.shown() == old != new
    assert views.match_artifacts(shelf.lake, shelf.ledger.manifest) == (1, 0)
    assert shelf.shown() == new


def test_where_an_object_has_all_the_names_it_can_have_a_copy_is_shown(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_many(*_: object, **__: object) -> None:
        raise OSError(errno.EMLINK, "too many links")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", too_many)
        shelf.lake.kind_dir("signals", 1).mkdir(parents=True)
        shelf.commit(verdict("j1", A))
    path = shelf.lake.artifact_path("signals", 1, id_of(A))
    assert path.read_bytes() == parquet(1)
    assert not path.samefile(shelf.lake.object_path(A.sha256))


def test_matching_takes_strays_and_leaves_names_that_are_no_artifacts(shelf: Shelf) -> None:
    shelf.commit(verdict("j1", A))
    stray = shelf.lake.artifact_path("signals", 1, id_of(B))
    gone_kind = shelf.lake.artifact_path("gone", 3, id_of(B))
    empty = shelf.lake.kind_dir("signals", 1) / "empty.parquet"
    for path in (stray, gone_kind, empty):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert views.match_artifacts(shelf.lake, shelf.ledger.manifest) == (0, 2)
    assert set(shelf.shown()) == {id_of(A), "empty"}


def test_matching_the_whole_replaces_links_that_show_other_bytes_and_leaves_copies(
    shelf: Shelf,
) -> None:
    shelf.commit(verdict("j1", A, B, C))
    swapped, copied, rotten = (shelf.lake.artifact_path("signals", 1, id_of(f)) for f in (A, B, C))
    swapped.unlink()
    os.link(shelf.lake.object_path(B.sha256), swapped)
    for path, found in ((copied, B), (rotten, C)):
        data = shelf.lake.object_path(found.sha256).read_bytes()
        path.unlink()
        path.write_bytes(data if path is copied else data[:-1] + b"x")
    inode = copied.stat().st_ino
    assert views.match_artifacts(shelf.lake, shelf.ledger.manifest) == (0, 0)
    assert views.match_artifacts(shelf.lake, shelf.ledger.manifest, whole=True) == (2, 0)
    assert copied.stat().st_ino == inode
    assert [p.read_bytes() for p in (swapped, rotten)] == [parquet(1), parquet(3)]


def test_an_object_that_is_gone_is_passed_over(shelf: Shelf) -> None:
    record = shelf.commit(verdict("j1", A, B))
    disk.remove_tree(shelf.lake.artifacts)
    shelf.lake.object_path(A.sha256).unlink()
    shelf.link(record)
    shelf.trees()
    assert set(shelf.shown()) == {id_of(B)}
    assert shelf.lake.run_data_path("run-1", "b").exists()
    assert not shelf.lake.run_data_path("run-1", "a").exists()
    assert shelf.lake.sidecar_path(id_of(A)).exists()  # what was known of it is not lost


# ── sidecars and run trees ───────────────────────────────────────────────────────────────────────


def test_a_sidecar_tells_identity_provenance_and_lineage(shelf: Shelf) -> None:
    derived = facts("b", 2, inputs=[id_of(A)], tags={"k": ["v"]})
    shelf.commit(verdict("j1", A))
    shelf.commit(verdict("j2", derived, run_id="run-2", meta={"note": "ä"}))
    shelf.trees()
    told = json.loads(shelf.lake.sidecar_path(id_of(derived)).read_bytes())
    assert told["artifact_id"] == id_of(derived)
    assert told["identity"]["file_hash"] == B.file_hash
    assert told["identity"]["columns"] == [{"name": "x", "type": "int64"}]
    assert (told["provenance"]["run_id"], told["provenance"]["seq"]) == ("run-2", 2)
    assert told["provenance"]["meta"] == {"note": "ä"}
    assert told["lineage"]["inputs"] == [id_of(A)]
    assert told["tags"] == {"k": ["v"]}
    assert told["paths"]["parquet"] == str(shelf.lake.object_path(B.sha256))


def test_a_run_tree_shows_each_name_with_the_newest_that_was_delivered(shelf: Shelf) -> None:
    shelf.commit(verdict("j1", A, B, meta={"n": 1}))
    newer = facts("a", 3, logical_key="name=a")
    shelf.commit(verdict("j2", newer, meta={"n": 2}))
    for _ in range(2):  # making it again changes nothing
        shelf.trees()
        assert shelf.lake.run_data_path("run-1", "a").read_bytes() == parquet(3)
        assert shelf.lake.run_data_path("run-1", "b").read_bytes() == parquet(2)
    schema = json.loads(shelf.lake.run_schema_path("run-1", "a").read_bytes())
    assert schema["columns"] == [{"name": "x", "type": "int64"}]
    assert (schema["kind"], schema["schema_version"]) == ("signals", 1)
    (meta,) = (shelf.lake.run_tree("run-1")).glob("meta.json")
    assert json.loads(meta.read_bytes())["meta"] == {"n": 2}


def test_a_duplicate_is_in_the_tree_of_each_run_that_uses_it(shelf: Shelf) -> None:
    shelf.commit(verdict("j1", A), verdict("j2", A, run_id="run-2"))
    shelf.trees()
    for run_id in ("run-1", "run-2"):
        assert shelf.lake.run_data_path(run_id, "a").samefile(shelf.lake.object_path(A.sha256))


def test_tree_work_can_be_paused_after_each_file_and_ends(shelf: Shelf) -> None:
    shelf.commit(verdict("j1", A, B))
    work = views.build_trees(shelf.lake, shelf.ledger.commits[0].record)
    steps = 0
    while views.take(work, 1):
        steps += 1
        if steps == 1:
            assert not shelf.lake.run_data_path("run-1", "b").exists()
    assert steps >= 5  # what the run is, two sidecars, two tables
    assert shelf.lake.run_data_path("run-1", "b").exists()
