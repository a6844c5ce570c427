"""The manifest: commits written down exactly once, in order, the same at every rebuild."""

from __future__ import annotations

import sqlite3
import struct
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from bus import manifest
from bus.errors import Unavailable
from bus.invariants import references
from bus.journal import GENESIS, Commit
from bus.lake import Lake
from bus.manifest import BrokenManifestError, Manifest, StaleManifestError
from bus.model import Alias, JobRecord, Outcome, Pin, Tag, Tombstone, Unpin, Untag
from tests.ledger import Ledger, dump
from tests.pipeline import facts, id_of, verdict
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

A, B = facts("a", 1), facts("b", 2)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path)
    yield ledger
    ledger.assert_equals_a_rebuild()
    ledger.manifest.close()


def rows(ledger: Ledger, sql: str) -> list[tuple[Any, ...]]:
    return ledger.manifest.rows(sql)


# ── one commit after the other ───────────────────────────────────────────────────────────────────


def test_an_empty_manifest_has_applied_nothing(ledger: Ledger) -> None:
    assert ledger.manifest.applied == (0, GENESIS)
    assert ledger.manifest.progress("links") == 0


def test_a_commit_is_applied_once_and_only_after_the_one_before_it(ledger: Ledger) -> None:
    ledger.committed(verdict("j1", A))
    first = ledger.commits[0]
    before = dump(ledger.manifest)
    second = ledger.as_commit([JobRecord(job_id="j2", verdict_id="v2", outcome=Outcome.REJECTED)])
    third = Commit(second.record.model_copy(update={"seq": 3}), second.sha256)
    stranger = Commit(second.record.model_copy(update={"prev": "f" * 64}), second.sha256)
    for wrong in ([first], [third], [stranger], [second, first]):
        with pytest.raises(StaleManifestError):
            ledger.manifest.apply(wrong)
        assert dump(ledger.manifest) == before
    assert ledger.manifest.applied == (1, first.sha256)


def test_a_batch_is_applied_whole_or_not_at_all(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dump(ledger.manifest)
    commit = ledger.as_commit(ledger.decide(verdict("j", A)).records)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "_note", full)
        with pytest.raises(sqlite3.OperationalError):
            ledger.manifest.apply([commit])
    assert dump(ledger.manifest) == before
    ledger.manifest.apply([commit])  # the same connection works on when there is room again
    ledger.commits.append(commit)
    assert ledger.manifest.applied == (1, commit.sha256)


def test_a_reader_sees_the_commit_before_until_the_next_is_whole(ledger: Ledger) -> None:
    reader = Manifest.read(ledger.lake)
    assert reader.applied[0] == 0
    ledger.committed(verdict("j", A))
    assert reader.applied[0] == 1
    with pytest.raises(sqlite3.OperationalError):
        reader.rows("DELETE FROM jobs")
    reader.close()


def test_a_reader_without_a_manifest_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        Manifest.read(Lake(tmp_path))
    assert caught.value.code == "E508"


@pytest.mark.parametrize("damage", ["text", "zeros", "truncated"])
def test_a_file_that_is_no_sound_database_is_told_from_other_faults(
    tmp_path: Path, damage: str
) -> None:
    ledger = Ledger(tmp_path)
    ledger.committed(verdict("j", A))
    ledger.manifest.close()
    path = ledger.lake.manifest_db
    data = path.read_bytes()
    bad = {"text": b"no database" * 1000, "zeros": b"\0" * 8192, "truncated": data[:5000]}
    path.write_bytes(bad[damage])
    with pytest.raises(BrokenManifestError):
        Manifest.open(ledger.lake).rows("SELECT * FROM jobs")


def test_a_write_ahead_log_without_its_database_is_not_replayed_into_a_new_one(
    tmp_path: Path,
) -> None:
    # A rebuild that is killed between removing manifest.sqlite and its -wal leaves this.
    ledger = Ledger(tmp_path)
    ledger.committed(verdict("j", A))
    ledger.lake.manifest_db.unlink()
    assert ledger.lake.manifest_db.with_name("manifest.sqlite-wal").stat().st_size > 0
    anew = Manifest.open(ledger.lake)
    assert anew.applied == (0, GENESIS)
    anew.close()


def test_the_log_is_folded_into_the_file_beside_the_commits(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_FOLD_ROWS", 100)

    def folded() -> int:
        """The commit that the file itself holds, without its log; 0 for none."""
        wait_until(lambda: not _folding(), what="the end of folding")
        with closing(Manifest.read_copy(ledger.lake.manifest_db)) as alone:
            found = alone.rows("SELECT 1 FROM sqlite_master WHERE name = 'meta'")
            return alone.applied[0] if found else 0

    ledger.committed(verdict("j1", A))
    assert folded() == 0
    number = 1
    while folded() == 0:
        number += 1
        assert number < 1000
        ledger.committed(verdict(f"j{number}", facts(f"n{number}", number)))
    assert ledger.manifest.applied[0] == number


def test_folding_begins_only_on_what_is_not_folded(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_FOLD_ROWS", 1)
    monkeypatch.setattr(manifest, "_FOLD_SHARE", 0)
    begun, fold = [], manifest._Folder._fold

    def told(folder: manifest._Folder, rows: int) -> None:
        """SQLite's index of the log: how many pages it has, and how many of them are folded."""
        shared = ledger.lake.manifest_db.with_name("manifest.sqlite-shm").read_bytes()
        begun.append((*struct.unpack_from("=I", shared, 16), *struct.unpack_from("=I", shared, 96)))
        fold(folder, rows)

    monkeypatch.setattr(manifest._Folder, "_fold", told)
    for number in range(100):
        ledger.committed(verdict(f"j{number}", facts(f"n{number}", number)))
    assert len(begun) > 5
    assert [(pages, folded) for pages, folded in begun if folded >= pages] == []
    assert ledger.manifest.rows("PRAGMA wal_autocheckpoint") == [(0,)], "nothing else folds"


def test_a_commit_waits_for_the_end_of_a_log_that_has_grown_long(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_FOLD_ROWS", 1)
    monkeypatch.setattr(manifest, "_FOLD_SHARE", 0)
    monkeypatch.setattr(manifest, "_FOLD_PAGES_AT_LAST", 1)
    fold = manifest._Folder._fold

    def slowly(folder: manifest._Folder, rows: int) -> None:
        time.sleep(0.05)  # a commit that did not wait would be back long before
        fold(folder, rows)

    monkeypatch.setattr(manifest._Folder, "_fold", slowly)
    ledger.committed(verdict("j", A))
    wait_until(lambda: not _folding(), what="the end of folding")
    for number in range(10):
        ledger.committed(verdict(f"j{number}", facts(f"n{number}", number)))
        assert not _folding()
    log = ledger.lake.manifest_db.with_name("manifest.sqlite-wal")
    assert log.stat().st_size < 4096 * 100, "it begins anew each time"


def test_what_a_reader_kept_from_being_folded_is_tried_again(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_FOLD_ROWS", 100)
    with closing(Manifest.read(ledger.lake)) as reader:
        reader._db.execute("BEGIN")
        reader.rows("SELECT * FROM meta")
        for number in range(100):
            ledger.committed(verdict(f"j{number}", facts(f"n{number}", number)))
            wait_until(lambda: not _folding(), what="the end of folding")
    ledger.committed(verdict("last", A))
    wait_until(lambda: not _folding(), what="the end of folding")
    with closing(Manifest.read_copy(ledger.lake.manifest_db)) as alone:
        assert alone.applied[0] == ledger.manifest.applied[0]


def test_closing_waits_for_what_is_being_folded(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_FOLD_ROWS", 1)
    begun, go_on = threading.Event(), threading.Event()

    def fold(_folder: manifest._Folder, _rows: int) -> None:
        begun.set()
        go_on.wait(60)

    monkeypatch.setattr(manifest._Folder, "_fold", fold)
    ledger.committed(verdict("j", A))
    assert begun.wait(60)
    threading.Timer(0.1, go_on.set).start()
    ledger.manifest.close()
    assert go_on.is_set()
    ledger.manifest = Manifest.open(ledger.lake)


def _folding() -> bool:
    return any(thread.name == "manifest-fold" for thread in threading.enumerate())


def test_a_manifest_that_was_deleted_is_not_begun_again_by_folding_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_FOLD_ROWS", 1)
    saved = ledger.lake.manifest_db.with_name("elsewhere")
    ledger.lake.manifest_db.rename(saved)
    ledger.committed(verdict("j", A))
    ledger.manifest.close()
    assert not ledger.lake.manifest_db.exists()
    saved.rename(ledger.lake.manifest_db)
    ledger.manifest = Manifest.open(ledger.lake)


# ── what a record becomes ────────────────────────────────────────────────────────────────────────


def test_the_documents_tables_show_an_artifact(ledger: Ledger) -> None:
    derived = facts("b", 2, inputs=["name:a"], tags={"run": ["x", "y"]})
    ledger.committed(verdict("j", A, derived, meta={"note": "ä"}))
    a, b = id_of(A), id_of(derived)
    found = rows(ledger, "SELECT artifact_id, artifact_type, status, path_parquet FROM artifacts")
    path = str(ledger.lake.object_path(A.sha256))
    assert (a, "signals", "active", path) in found
    assert rows(ledger, "SELECT * FROM artifact_lineage") == [(b, a)]
    assert rows(ledger, "SELECT * FROM artifact_tags ORDER BY v") == [
        (b, "run", "x"),
        (b, "run", "y"),
    ]
    assert rows(ledger, "SELECT name, nulls, min, max FROM column_stats ORDER BY min") == [
        ("x", 0, 1, 2),
        ("x", 0, 2, 3),
    ]


def test_a_rejection_is_in_jobs_and_nowhere_else(ledger: Ledger) -> None:
    problem = {"code": "E307", "where": "a.parquet", "message": "m", "hint": "h"}
    refused = verdict("j", accepted=False, problems=[problem], job_digest=None, run_id=None)
    ledger.commit(refused)
    ((outcome, problems),) = rows(ledger, "SELECT outcome, problems_json FROM jobs")
    assert outcome == "rejected"
    assert "E307" in problems
    for table in ("artifact_facts", "runs", "run_artifacts", "objects"):
        assert rows(ledger, f"SELECT * FROM {table}") == []


def test_a_run_is_widened_by_each_job_and_the_newest_meta_wins_by_key(ledger: Ledger) -> None:
    ledger.committed(verdict("j1", A, meta={"a": 1, "b": 1}))
    ledger.committed(verdict("j2", B, meta={"b": 2}))
    found = rows(ledger, "SELECT first_seq, last_seq, meta_json FROM runs")
    assert found == [(1, 2, '{"a":1,"b":2}')]


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (2**64 - 1, float(2**64 - 1)),  # validators write such as text; a float is what JSON gives
        (-(2**63) - 1, float(-(2**63) - 1)),
        (float("inf"), "Infinity"),
        ("18446744073709551615", "18446744073709551615"),
        (2**63 - 1, 2**63 - 1),
        (True, 1),
        (1.5, 1.5),
        ("2026-01-08", "2026-01-08"),
        (None, None),
    ],
)
def test_a_statistic_that_sqlite_has_no_number_for_stops_nobody(
    ledger: Ledger, value: Any, stored: Any
) -> None:
    # An error here would come after the commit, at every start of the writer, for ever.
    stats = [{"name": "x", "nulls": 0, "min": value, "max": value}]
    ledger.committed(verdict("j", facts("a", 1, column_stats=stats)))
    assert rows(ledger, "SELECT min, max FROM column_stats") == [(stored, stored)]


# ── facts that begin and end, also within one commit ─────────────────────────────────────────────


def mutate(ledger: Ledger, *batch: list[Any]) -> None:
    """One commit with one job for each list of mutations."""
    number = len(ledger.commits)
    ledger.committed(*(verdict(f"m{number}.{n}", mutations=ops) for n, ops in enumerate(batch)))


def test_an_alias_moved_twice_in_one_commit_means_the_last_one(ledger: Ledger) -> None:
    ledger.committed(verdict("j", A, B))
    to_a = Alias(op="alias", kind="signals", alias="best", target=id_of(A))
    to_b = Alias(op="alias", kind="signals", alias="best", target=id_of(B))
    mutate(ledger, [to_a], [to_b])
    assert ledger.alias("signals", "best") == id_of(B)
    mutate(ledger, [to_a, to_b], [to_a])
    assert ledger.alias("signals", "best") == id_of(A)
    gone = Alias(op="alias", kind="signals", alias="best", target=None)
    mutate(ledger, [to_b], [gone])
    assert ledger.alias("signals", "best") is None
    assert rows(ledger, "SELECT count(*) FROM alias_facts WHERE ended_seq = added_seq") == [(0,)]


def test_a_tag_taken_off_and_put_on_in_one_commit_is_on(ledger: Ledger) -> None:
    ledger.committed(verdict("j", A))
    on = Tag(op="tag", target=id_of(A), tags={"k": ["v"]})
    off = Untag(op="untag", target=id_of(A), tags={"k": ["v"]})
    mutate(ledger, [on], [off], [on])
    assert rows(ledger, "SELECT k, v FROM artifact_tags") == [("k", "v")]
    mutate(ledger, [off, on, off])
    assert rows(ledger, "SELECT k, v FROM artifact_tags") == []
    assert rows(ledger, "SELECT added_seq, ended_seq FROM tag_facts") == [(2, 3)]


def test_a_pin_removed_and_set_again_in_one_commit_is_set(ledger: Ledger) -> None:
    ledger.committed(verdict("j", A))
    pin = Pin(op="pin", pin="paper", target=[id_of(A)])
    unpin = Unpin(op="unpin", pin="paper", target=[id_of(A)])
    mutate(ledger, [pin], [unpin], [pin])
    assert rows(ledger, "SELECT pin, artifact_id FROM pins") == [("paper", id_of(A))]


def test_tombstoned_revived_and_tombstoned_again_in_one_commit_is_tombstoned(
    ledger: Ledger,
) -> None:
    ledger.committed(verdict("j", A))
    wrong = [Tombstone(op="tombstone", target=id_of(A), reason="wrong")]
    again = facts("a", 1, codec="zstd")
    ledger.committed(
        verdict("t1", mutations=wrong), verdict("j2", again), verdict("t2", mutations=wrong)
    )
    assert ledger.status() == {id_of(A): "tombstoned"}
    assert rows(ledger, "SELECT file_hash FROM artifacts") == [(again.file_hash,)]


def test_facts_tell_how_things_stood_after_each_commit(ledger: Ledger) -> None:
    ledger.committed(verdict("j", A))
    mutate(ledger, [Tag(op="tag", target=id_of(A), tags={"k": ["v"]})])
    mutate(ledger, [Untag(op="untag", target=id_of(A), tags={"k": ["v"]})])
    mutate(ledger, [Tag(op="tag", target=id_of(A), tags={"k": ["v"]})])
    held = [
        bool(
            ledger.manifest.rows(
                "SELECT 1 FROM tag_facts WHERE added_seq <= :s AND ifnull(ended_seq > :s, 1)",
                {"s": seq},
            )
        )
        for seq in range(1, 5)
    ]
    assert held == [False, True, False, True]


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────


def test_what_is_new_lies_side_by_side_however_much_there_is(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_FOLD_ROWS", 1_000_000)  # so that the log only grows
    ledger.manifest.index()
    log = ledger.lake.manifest_db.with_name("manifest.sqlite-wal")

    def pages(numbers: range) -> float:
        """How many pages committing these wrote."""
        before = log.stat().st_size
        tagged = (facts(f"n{n}", n, tags={"n": [str(n)]}, inputs=[id_of(A)]) for n in numbers)
        ledger.committed(verdict(f"j{numbers[0]}", *tagged))
        return (log.stat().st_size - before) / 4096

    ledger.committed(verdict("first", A))
    for first in range(2, 5_000, 1_000):
        pages(range(first, first + 1_000))
    # Only by its id and by its file's hash each row is on a page of its own; of what else there is
    # the last page is enough.
    assert pages(range(10_000, 10_020)) < 20 * 2 + 80


def test_an_id_that_no_record_creates_is_told_as_our_error(ledger: Ledger) -> None:
    (job,) = ledger.committed(verdict("j1", A))
    nowhere, elsewhere = id_of(facts("nowhere", 8)), id_of(facts("elsewhere", 9))
    artifact = job.artifacts[0].model_copy(update={"decision": "deduped", "inputs": [nowhere]})
    tags = [Tag(op="tag", target=target, tags={"k": ["v"]}) for target in (elsewhere, nowhere)]
    wrong = {"job_id": "j2", "verdict_id": "v2", "artifacts": [artifact], "mutations": tags}
    ledger.apply([job.model_copy(update=wrong)])
    found = {finding.where: finding.invariant for finding in references(ledger.manifest)}
    assert found == {nowhere: 8, elsewhere: 8}


def test_numbers_that_lead_to_no_artifact_or_to_another_are_told(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.committed(
        verdict("j", facts("a", 1, tags={"k": ["v"]}), facts("b", 2, inputs=[id_of(A)]))
    )
    assert list(references(ledger.manifest)) == []
    for change in (
        "UPDATE tag_marks SET node = 997",
        "UPDATE lineage_edges SET node = 998, input = 999",
        f"UPDATE run_artifacts SET node = 2 WHERE artifact_id = '{id_of(A)}'",
        f"UPDATE artifact_facts SET node = 1 WHERE artifact_id = '{id_of(B)}'",
    ):
        ledger.manifest._db.execute(change)
    found = [finding.where for finding in references(ledger.manifest)]
    assert found == ["node 997", "node 998", "input 999", id_of(B), id_of(A)]
    ledger.manifest.close()
