"""`bus verify`: every broken invariant is found and named, and a sound lake is left in peace."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus import checkpoints, disk
from bus.journal import GENESIS, Journal
from bus.lake import CHECKPOINT, COMMIT, MANIFEST, RECEIPT, REJECT_REASON, VERDICT, Lake
from bus.manifest import Manifest
from bus.model import Alias, CommitMarker, Supersede, Tombstone
from bus.rebuilt import Twin
from bus.verify import Finding, Level, sample, verify
from tests.pipeline import Pipeline, facts, id_of, sha256, table, verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

A = facts("a", 1, logical_key="token=So1")
B = facts("b", 2, inputs=["job:j-a/a"], tags={"stage": ["raw"]})
OLD, DEAD, NEW = facts("old", 3), facts("dead", 4), facts("new", 5)
NOWHERE = "00000000-0000-5000-8000-000000000000"
PROBLEM = {"code": "E307", "where": "a.parquet", "message": "m", "hint": "h"}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with some of everything, made once."""
    pipe = Pipeline(tmp_path_factory.mktemp("template"))
    first = verdict("j-a", A)
    batches = [
        [first],
        [verdict("j-b", B, run_id="run-2")],
        [verdict("j-c", OLD, DEAD, NEW)],
        [
            verdict(
                "m-1",
                mutations=[
                    Supersede(op="supersede", target=id_of(OLD), by=id_of(NEW)),
                    Tombstone(op="tombstone", target=id_of(DEAD), reason="wrong"),
                    Alias(op="alias", kind="signals", alias="best", target=id_of(A)),
                ],
            )
        ],
        [
            verdict("r-1", accepted=False, problems=[PROBLEM]),
            verdict("j-a", A, job_digest=first.job_digest),
            verdict("j-d", facts("a", 1, codec="zstd", logical_key="token=So1")),
        ],
    ]
    with pipe.writer() as writer:
        for batch in batches:
            for found in batch:
                pipe.judged(found, {} if not found.accepted else None)
            writer.drain()
        while writer.drain().more:
            pass
    pq.write_table(pa.table({"x": [1, 2, 3]}), pipe.lake.export_path("alerts"))
    status = {"results": [{"name": "alerts", "ok": True, "rows": 3}]}
    disk.replace_view(pipe.lake.export_status, json.dumps(status).encode())
    checkpoints.make(pipe.lake)
    return pipe.lake.root


@pytest.fixture
def pipe(template: Path, tmp_path: Path) -> Pipeline:
    """A copy of the template, links and all."""
    copied: dict[int, str] = {}

    def copy(source: str, target: str) -> None:
        inode = os.stat(source).st_ino  # noqa: PTH116 - shutil gives texts
        if inode in copied:
            os.link(copied[inode], target)
        else:
            shutil.copy2(source, target)
            copied[inode] = target

    root = tmp_path / "lake"
    shutil.copytree(template, root, copy_function=copy)
    return Pipeline(root, public_root=template)


def check(pipe: Pipeline, level: Any = "full") -> list[Finding]:
    return verify(pipe.lake, pipe.settings, pipe.registry, level).findings


def overwrite(path: Path, data: bytes) -> None:
    mode = path.stat().st_mode & 0o777
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(mode)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    overwrite(path, bytes(data))


def change_manifest(pipe: Pipeline, *statements: str) -> None:
    with closing(sqlite3.connect(pipe.lake.manifest_db)) as db:
        for sql in statements:
            assert db.execute(sql).rowcount > 0, sql
        db.commit()


def change_catalog(pipe: Pipeline, sql: str) -> None:
    with duckdb.connect(str(pipe.lake.catalog_db)) as db:
        db.execute(sql)


def edit_journal(pipe: Pipeline, seq: int, old: str, new: str) -> None:
    path = pipe.lake.record_path(seq)
    text = path.read_text()
    assert old in text
    overwrite(path, text.replace(old, new, 1).encode())


# ── a sound lake ─────────────────────────────────────────────────────────────────────────────────


def dates(pipe: Pipeline) -> dict[Path, int]:
    """When each file was changed last; SQLite's own files beside the manifest come and go."""
    files = (p for p in pipe.lake.root.rglob("*") if not p.is_dir() and "sqlite-" not in p.name)
    return {path: path.lstat().st_mtime_ns for path in files}


@pytest.mark.parametrize("level", ["quick", "sample", "full"])
def test_a_sound_lake_has_no_findings_and_is_not_changed(pipe: Pipeline, level: Level) -> None:
    before = dates(pipe)
    report = verify(pipe.lake, pipe.settings, pipe.registry, level)
    assert report.findings == []
    assert report.ok
    assert (report.seq, report.jobs, report.artifacts, report.objects) == (5, 7, 5, 5)
    assert (report.hashed_bytes > 0) == (level != "quick")
    assert dates(pipe) == before


def test_a_lake_in_which_nothing_ever_happened_is_sound(tmp_path: Path) -> None:
    assert check(Pipeline(tmp_path)) == []


def test_jobs_on_their_way_are_no_findings(pipe: Pipeline) -> None:
    pipe.stage("staged", table(1))
    pipe.judged(verdict("ready", facts("new", 9)))
    shutil.copytree(pipe.lake.ready / "ready", pipe.lake.work / "other")
    (pipe.lake.work / "other" / VERDICT).unlink()
    (pipe.lake.inbox / ".staging-half").mkdir()
    assert check(pipe) == []


def test_a_commit_that_was_not_answered_yet_is_no_finding(pipe: Pipeline) -> None:
    disk.move(pipe.lake.processed / "j-b", pipe.lake.ready / "j-b")
    assert check(pipe) == []


def test_progress_is_told(pipe: Pipeline) -> None:
    told: list[tuple[str, int, int]] = []
    verify(
        pipe.lake,
        pipe.settings,
        pipe.registry,
        "full",
        progress=lambda what, done, total: told.append((what, done, total)),
    )
    assert {what for what, _, _ in told} == {"journal", "hashing", "answers"}
    assert all(done <= total for _, done, total in told)


# ── one harm, one finding ────────────────────────────────────────────────────────────────────────


def object_of(lake: Lake) -> Path:
    return lake.object_path(A.sha256)


def lose_object(pipe: Pipeline) -> None:
    object_of(pipe.lake).unlink()


def flip_object(pipe: Pipeline) -> None:
    flip_a_byte(object_of(pipe.lake))


def cut_object(pipe: Pipeline) -> None:
    overwrite(object_of(pipe.lake), object_of(pipe.lake).read_bytes()[:-1])


def link_object(pipe: Pipeline) -> None:
    path = object_of(pipe.lake)
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def open_object(pipe: Pipeline) -> None:
    object_of(pipe.lake).chmod(0o644)


def damage_unused_object(pipe: Pipeline) -> None:
    path = pipe.lake.object_path("ab" * 32)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"something else")
    path.chmod(0o444)


def keep_a_second_name(pipe: Pipeline) -> None:
    os.link(object_of(pipe.lake), pipe.lake.processed / "j-a" / A.relpath)


def open_record(pipe: Pipeline) -> None:
    pipe.lake.record_path(2).chmod(0o644)


def remove_record(pipe: Pipeline) -> None:
    pipe.lake.record_path(2).unlink()


def remove_last_record(pipe: Pipeline) -> None:
    pipe.lake.record_path(5).unlink()


def edit_record(pipe: Pipeline) -> None:
    edit_journal(pipe, 2, '"run-2"', '"run-3"')


def edit_last_record(pipe: Pipeline) -> None:
    edit_journal(pipe, 5, '"tests"', '"testS"')


def cut_record(pipe: Pipeline) -> None:
    path = pipe.lake.record_path(3)
    overwrite(path, path.read_bytes()[:50])


def change_row(pipe: Pipeline) -> None:
    change_manifest(pipe, "UPDATE artifact_facts SET row_count = 7 WHERE artifact_no = 1")


def delete_row(pipe: Pipeline) -> None:
    change_manifest(pipe, "DELETE FROM tag_marks")


def add_row(pipe: Pipeline) -> None:
    change_manifest(pipe, f"INSERT INTO pin_facts VALUES ('p', '{id_of(A)}', 1, NULL)")


def break_manifest(pipe: Pipeline) -> None:
    pipe.lake.manifest_db.write_bytes(b"no database" * 1000)


def lose_manifest(pipe: Pipeline) -> None:
    pipe.lake.manifest_db.unlink()


def change_catalog_row(pipe: Pipeline) -> None:
    # The newest rows lie in a JSON text, the others in tables.
    was, is_now = '"committed"', '"rejected"'
    change_catalog(pipe, f"UPDATE held.fresh SET data = replace(data, '{was}', '{is_now}')")


def change_catalog_view(pipe: Pipeline) -> None:
    change_catalog(pipe, "CREATE OR REPLACE VIEW canon.signals AS SELECT 1 AS x")


def change_catalog_macro(pipe: Pipeline) -> None:
    change_catalog(pipe, "CREATE OR REPLACE MACRO held.shape(types) AS MAP {'x': types}")


def break_catalog(pipe: Pipeline) -> None:
    overwrite(pipe.lake.catalog_db, pipe.lake.catalog_db.read_bytes()[:100_000])


def lose_catalog(pipe: Pipeline) -> None:
    pipe.lake.catalog_db.unlink()


def link_of(pipe: Pipeline, found: Any = A) -> Path:
    return pipe.lake.artifact_path(found.kind, found.schema_version, id_of(found))


def lose_link(pipe: Pipeline) -> None:
    link_of(pipe).unlink()


def swap_link(pipe: Pipeline) -> None:
    link_of(pipe).unlink()
    os.link(pipe.lake.object_path(B.sha256), link_of(pipe))


def copy_link_with_other_bytes(pipe: Pipeline) -> None:
    path = link_of(pipe)
    path.unlink()
    shutil.copy(object_of(pipe.lake), path)
    flip_a_byte(path)


def link_the_dead(pipe: Pipeline) -> None:
    os.link(pipe.lake.object_path(DEAD.sha256), link_of(pipe, DEAD))


def link_the_unknown(pipe: Pipeline) -> None:
    os.link(object_of(pipe.lake), pipe.lake.artifact_path("signals", 1, NOWHERE))


def lose_run_link(pipe: Pipeline) -> None:
    pipe.lake.run_data_path("run-2", "b").unlink()


def lose_sidecar(pipe: Pipeline) -> None:
    pipe.lake.sidecar_path(id_of(A)).unlink()


def change_sidecar(pipe: Pipeline) -> None:
    rewrite(pipe.lake.sidecar_path(id_of(A)), "token=So1", "token=So2")


def change_schema(pipe: Pipeline) -> None:
    rewrite(pipe.lake.run_schema_path("run-2", "b"), "int64", "int32")


def change_run_meta(pipe: Pipeline) -> None:
    rewrite(pipe.lake.run_meta_path("run-2"), '"tests"', '"testS"')


def rewrite(path: Path, old: str, new: str) -> None:
    """As a disk would: the times do not tell."""
    seen = path.stat()
    assert old in path.read_text()
    overwrite(path, path.read_text().replace(old, new, 1).encode())
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def checkpoint_of(pipe: Pipeline) -> Path:
    return pipe.lake.checkpoint_path(5)


def flip_checkpoint(pipe: Pipeline) -> None:
    flip_a_byte(checkpoint_of(pipe) / pipe.lake.manifest_db.name)


def cut_checkpoint(pipe: Pipeline) -> None:
    path = checkpoint_of(pipe) / CHECKPOINT
    overwrite(path, path.read_bytes()[:-1])


def give_checkpoint_another_record(pipe: Pipeline) -> None:
    path = checkpoint_of(pipe) / CHECKPOINT
    document = json.loads(path.read_bytes()) | {"record_sha256": "0" * 64}
    overwrite(path, json.dumps(document).encode())


def make_checkpoint_of_a_wrong_manifest(pipe: Pipeline) -> None:
    change_manifest(pipe, "UPDATE artifact_facts SET row_count = 7 WHERE artifact_no = 1")
    checkpoints.make(pipe.lake)
    change_manifest(pipe, "UPDATE artifact_facts SET row_count = 2 WHERE artifact_no = 1")


def drop_index(pipe: Pipeline) -> None:
    with closing(sqlite3.connect(pipe.lake.manifest_db)) as db:
        db.execute("DROP INDEX jobs_id")


def change_manifest_view(pipe: Pipeline) -> None:
    with closing(sqlite3.connect(pipe.lake.manifest_db)) as db:
        db.executescript("DROP VIEW pins; CREATE VIEW pins AS SELECT 1 AS pin")


def break_index(pipe: Pipeline) -> None:
    """A row that its index does not have: queries by job_id miss it."""
    with closing(sqlite3.connect(pipe.lake.manifest_db)) as db:
        schema = db.execute("PRAGMA schema_version").fetchone()[0]
        db.execute("PRAGMA writable_schema = ON")
        row = "FROM sqlite_master WHERE name = 'jobs_id'"
        kept = db.execute(f"SELECT * {row}").fetchone()
        db.execute("DELETE FROM sqlite_master WHERE name = 'jobs_id'")
        db.execute(f"PRAGMA schema_version = {schema + 1}")
        db.commit()
    with closing(sqlite3.connect(pipe.lake.manifest_db)) as db:
        db.execute("UPDATE jobs SET job_id = 'x' WHERE job_no = 1")
        db.execute("PRAGMA writable_schema = ON")
        db.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", kept)
        db.execute(f"PRAGMA schema_version = {schema + 2}")
        db.commit()
    with closing(sqlite3.connect(pipe.lake.manifest_db)) as db:
        db.execute("UPDATE jobs NOT INDEXED SET outcome = outcome WHERE 0")
        db.commit()


def keep_writers_out(pipe: Pipeline) -> None:
    path = pipe.lake.manifest_db
    data = bytearray(path.read_bytes())
    data[18] ^= 1
    path.write_bytes(data)


def double_job(pipe: Pipeline) -> None:
    shutil.copytree(pipe.lake.processed / "j-b", pipe.lake.processed / "j-b~2")


def double_job_in_ready(pipe: Pipeline) -> None:
    shutil.copytree(pipe.lake.processed / "j-b", pipe.lake.ready / "j-b")


def rejected_though_committed(pipe: Pipeline) -> None:
    disk.move(pipe.lake.processed / "j-b", pipe.lake.rejected / "j-b")
    shutil.copy(pipe.lake.rejected / "r-1" / REJECT_REASON, pipe.lake.rejected / "j-b")


def answered_though_unknown(pipe: Pipeline) -> None:
    path = pipe.lake.processed / "stranger"
    shutil.copytree(pipe.lake.processed / "j-b", path)
    text = (path / VERDICT).read_text()
    known = json.loads(text)["verdict_id"]
    (path / VERDICT).write_text(text.replace(known, "f" * 32))


def lose_receipt(pipe: Pipeline) -> None:
    disk.remove_tree(pipe.lake.processed / "j-b")


def cut_receipt(pipe: Pipeline) -> None:
    path = pipe.lake.processed / "j-b" / RECEIPT
    path.write_bytes(path.read_bytes()[:20])


def change_receipt(pipe: Pipeline) -> None:
    path = pipe.lake.processed / "j-b" / RECEIPT
    path.write_text(path.read_text().replace('"rows":2', '"rows":3'))


def change_time_in_receipt(pipe: Pipeline) -> None:
    rewrite(pipe.lake.processed / "j-b" / RECEIPT, '"committed_at_utc":"2', '"committed_at_utc":"3')


def change_path_in_receipt(pipe: Pipeline) -> None:
    rewrite(pipe.lake.processed / "j-b" / RECEIPT, '"path":"/', '"path":"/x')


def change_judged_manifest(pipe: Pipeline) -> None:
    path = pipe.lake.processed / "j-b" / MANIFEST
    overwrite(path, path.read_bytes() + b" ")


def change_reason(pipe: Pipeline) -> None:
    path = pipe.lake.rejected / "r-1" / REJECT_REASON
    path.write_text(path.read_text().replace("E307", "E308"))


def break_export(pipe: Pipeline) -> None:
    path = pipe.lake.export_path("alerts")
    path.write_bytes(path.read_bytes()[:-10])


def shorten_export(pipe: Pipeline) -> None:
    pq.write_table(pa.table({"x": [1]}), pipe.lake.export_path("alerts"))


def break_export_status(pipe: Pipeline) -> None:
    pipe.lake.export_status.write_bytes(b'{"results": [')


def lose_staged_file(pipe: Pipeline) -> None:
    pipe.stage("staged", table(1))
    (pipe.lake.inbox / "staged" / "000.parquet").unlink()


def change_staged_manifest(pipe: Pipeline) -> None:
    pipe.stage("staged", table(1))
    path = pipe.lake.inbox / "staged" / MANIFEST
    path.write_bytes(path.read_bytes() + b" ")


HARMS: dict[Callable[[Pipeline], None], tuple[int, str, str]] = {
    # harm: (invariant, in `where`, in `message`)
    lose_object: (1, A.sha256, "missing; on it: signals token=So1"),
    flip_object: (1, A.sha256, "its bytes are sha256:"),
    cut_object: (1, A.sha256, "bytes where"),
    link_object: (1, A.sha256, "no regular file"),
    open_object: (2, A.sha256, "writable (mode 644)"),
    damage_unused_object: (1, "ab" * 32, "no artifact stands on it"),
    keep_a_second_name: (2, "processed/j-a/a.parquet", "a second name of the object"),
    open_record: (2, "000000000002.json", "writable"),
    remove_record: (3, "000000000002.json", "missing; on it: signals name=b (run-2/b, "),
    remove_last_record: (3, "000000000005.json", "the journal ends with 4"),
    edit_record: (3, "000000000002.json", "record 2 is not the one that was indexed"),
    edit_last_record: (3, "000000000005.json", "record 5 is not the one that was indexed"),
    cut_record: (3, "000000000003.json", "record 3 is not the one that was indexed"),
    change_row: (4, "manifest.sqlite", "table artifact_facts has 1 row"),
    delete_row: (4, "manifest.sqlite", "table tag_marks has 1 row missing"),
    add_row: (4, "manifest.sqlite", "table pin_facts has 1 row that a rebuild has not"),
    break_manifest: (4, "manifest.sqlite", "damaged"),
    lose_manifest: (4, "manifest.sqlite", "no manifest yet"),
    change_catalog_row: (4, "bus.duckdb", "table catalog.jobs_f has "),
    change_catalog_view: (4, "bus.duckdb", "view canon.signals has another text"),
    change_catalog_macro: (4, "bus.duckdb", "view held.shape has another text"),
    break_catalog: (9, "bus.duckdb", ""),
    lose_catalog: (9, "bus.duckdb", "no catalog yet"),
    lose_link: (4, id_of(A), "the link is missing"),
    swap_link: (4, id_of(A), "the link shows other bytes"),
    copy_link_with_other_bytes: (4, id_of(A), "the link shows other bytes"),
    link_the_dead: (4, id_of(DEAD), "a link of no active artifact"),
    link_the_unknown: (4, NOWHERE, "a link of no active artifact"),
    lose_run_link: (4, "run-2", "the link is missing"),
    lose_sidecar: (4, id_of(A), "the document is missing"),
    change_sidecar: (4, id_of(A), "differs from what commit 1 says"),
    change_schema: (4, "run-2/artifacts/b/schema.json", "differs from what commit 2 says"),
    change_run_meta: (4, "run-2/meta.json", "differs from what commit 2 says"),
    flip_checkpoint: (4, "checkpoints/000000000005", "the bytes of manifest.sqlite have changed"),
    cut_checkpoint: (4, "checkpoints/000000000005", "unreadable"),
    give_checkpoint_another_record: (4, "000000000005", "record 5 is another one"),
    make_checkpoint_of_a_wrong_manifest: (4, "000000000005", "table artifact_facts has 1 row"),
    drop_index: (4, "manifest.sqlite", "the schema has 1 row missing: ('index', 'jobs_id'"),
    change_manifest_view: (4, "manifest.sqlite", "the schema has 1 row that a rebuild has not"),
    break_index: (4, "manifest.sqlite", "damaged: "),
    keep_writers_out: (4, "manifest.sqlite", "its first page keeps writers out"),
    double_job: (5, "j-b", "the same submission lies in"),
    double_job_in_ready: (5, "ready/j-b", "the same submission lies in"),
    rejected_though_committed: (5, "rejected/j-b", "the journal says committed, in commit 2"),
    answered_though_unknown: (5, "stranger", "not in the journal"),
    lose_receipt: (10, "processed/j-b", "the receipt of commit 2 is gone"),
    cut_receipt: (10, "processed/j-b", "unreadable"),
    change_receipt: (10, "processed/j-b", "differs from commit 2"),
    change_time_in_receipt: (10, "processed/j-b", "differs from commit 2"),
    change_path_in_receipt: (10, "processed/j-b", "says that the lake lies in /x"),
    change_judged_manifest: (5, "processed/j-b/manifest.json", "changed after it was judged"),
    change_reason: (10, "rejected/r-1", "differs from commit 5"),
    break_export: (9, "alerts.parquet", "unreadable"),
    shorten_export: (9, "alerts.parquet", "1 rows where the status tells 3"),
    break_export_status: (9, "_export_status.json", "unreadable"),
    lose_staged_file: (6, "staged/000.parquet", "acknowledged, but missing"),
    change_staged_manifest: (6, "staged/manifest.json", "changed after"),
}
#: What a quick look, which reads neither objects nor answers nor makes a second manifest, misses.
NEEDS_MORE_THAN_A_LOOK = {
    *(flip_object, damage_unused_object, keep_a_second_name, change_row, delete_row, add_row),
    *(change_catalog_row, change_catalog_view, change_catalog_macro, break_catalog),
    copy_link_with_other_bytes,
    *(change_sidecar, change_schema, change_run_meta, drop_index),
    *(change_manifest_view, break_index),
    *(flip_checkpoint, make_checkpoint_of_a_wrong_manifest, change_time_in_receipt),
    *(change_path_in_receipt, change_judged_manifest),
    *(lose_run_link, lose_sidecar, double_job, double_job_in_ready, answered_though_unknown),
    *(rejected_though_committed, cut_receipt, change_receipt, change_reason),
}


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_harm_is_found_and_named(
    pipe: Pipeline, harm: Callable[[Pipeline], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if harm not in {change_catalog_row, change_catalog_view, change_catalog_macro, break_catalog}:
        # Making a second catalog is nearly all of the time that a small lake takes.
        monkeypatch.setattr(Twin, "catalog_differences", lambda *_: iter(()))
    harm(pipe)
    found = check(pipe)
    invariant, where, message = HARMS[harm]
    fitting = [f for f in found if f.invariant == invariant and where in f.where]
    assert any(message in f.message for f in fitting), found
    assert all(f.fix for f in found)
    # What follows from it may be told too, but nothing unrelated, and no check may break.
    assert not any("could not be checked" in f.message for f in found), found
    assert len(found) <= 4, found
    if harm not in NEEDS_MORE_THAN_A_LOOK:
        assert any(message in f.message for f in check(pipe, "quick"))


def test_a_lake_that_was_moved_is_sound_although_its_receipts_name_the_old_place(
    pipe: Pipeline, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").symlink_to(pipe.lake.root)
    moved = Pipeline(pipe.lake.root, public_root=tmp_path / "elsewhere")
    with moved.writer() as writer:
        writer.rebuild()
        while writer.drain().more:
            pass
    assert check(moved) == []


def test_damage_is_named_in_words_with_what_was_made_from_it_and_what_to_do(pipe: Pipeline) -> None:
    lose_object(pipe)
    (finding,) = check(pipe, "quick")
    assert finding.message == (
        f"the object is missing; on it: signals token=So1 (run-1/a, {id_of(A)}); "
        f"made from that: signals name=b (run-2/b, {id_of(B)})"
    )
    assert finding.fix == "Restore it from a backup, or submit the same rows again."
    report = verify(pipe.lake, pipe.settings, pipe.registry, "quick").as_dict()
    affected = report["findings"][0]["affected"]
    assert (affected["artifacts_total"], affected["downstream_total"]) == (1, 1)
    assert affected["downstream"][0] == {
        "artifact_id": id_of(B),
        "kind": "signals",
        "logical_key": "name=b",
        "run_id": "run-2",
        "name": "b",
    }


def test_of_much_that_is_affected_the_first_is_named_and_all_is_counted(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path)
    first = facts("first", 1)
    made = [facts(f"n{n}", 1, logical_key=f"k{n}", inputs=[id_of(first)]) for n in range(30)]
    with pipe.writer() as writer:
        for found in (verdict("j1", first), verdict("j2", *made)):
            pipe.judged(found)
            writer.drain()
    pipe.lake.object_path(first.sha256).unlink()
    finding = next(f for f in check(pipe, "quick") if f.invariant == 1)
    affected = finding.affected
    assert affected is not None
    assert (affected.artifacts_total, affected.downstream_total) == (31, 30)
    assert (len(affected.artifacts), len(affected.downstream)) == (20, 20)
    assert " and 28 more; made from that: " in finding.message


def test_a_job_that_others_have_passed_is_found(pipe: Pipeline) -> None:
    pipe.judged(verdict("left", facts("left", 8)))
    change_manifest(
        pipe, "UPDATE commits SET committed_at_utc = '2099-01-01T00:00:00Z' WHERE seq = 5"
    )
    found = check(pipe, "quick")
    assert [(f.invariant, f.where) for f in found] == [(11, str(pipe.lake.ready / "left"))]


# ── what only an error of the writer could do ────────────────────────────────────────────────────


def rewritten(pipe: Pipeline, change: Callable[[list[dict[str, Any]]], None]) -> list[Finding]:
    """Change the records, chain them again, index them: a journal that is wrong and consistent."""
    paths = [pipe.lake.record_path(seq) for seq in range(1, 6)]
    records = [json.loads(path.read_bytes()) for path in paths]
    change(records)
    prev = "0" * 64
    for path, record in zip(paths, records, strict=True):
        record["prev"] = prev
        data = json.dumps(record, separators=(",", ":")).encode()
        overwrite(path, data)
        prev = sha256(data)
    Manifest.delete(pipe.lake)
    with closing(Manifest.open(pipe.lake)) as manifest:
        manifest.apply(Journal(pipe.lake).after(0, GENESIS))
    return check(pipe, "quick")


def test_a_job_committed_twice_is_found(pipe: Pipeline) -> None:
    def double(records: list[dict[str, Any]]) -> None:
        again = json.loads(json.dumps(records[1]["jobs"][0]))
        again["verdict_id"] = "e" * 32
        for artifact in again["artifacts"]:
            artifact["decision"] = "deduped"
        records[4]["jobs"].append(again)

    found = rewritten(pipe, double)
    assert [(f.invariant, f.where, f.message) for f in found if f.invariant == 5] == [
        (5, "j-b", "was committed more than once: in 2, 5")
    ]


def test_a_verdict_in_the_journal_twice_is_found(pipe: Pipeline) -> None:
    def double(records: list[dict[str, Any]]) -> None:
        records[4]["jobs"].append(records[1]["jobs"][0] | {"artifacts": []})

    found = [f for f in rewritten(pipe, double) if "is in the journal again" in f.message]
    assert [(f.invariant, f.where) for f in found] == [(5, "j-b")]


def test_an_id_that_does_not_follow_from_its_identity_is_found(pipe: Pipeline) -> None:
    def rename(records: list[dict[str, Any]]) -> None:
        records[2]["jobs"][0]["artifacts"][2]["logical_key"] = "other"

    found = [f for f in rewritten(pipe, rename) if f.invariant == 7]
    assert [f.where for f in found] == [id_of(NEW)]


def test_an_input_that_does_not_exist_is_found(pipe: Pipeline) -> None:
    def dangle(records: list[dict[str, Any]]) -> None:
        records[1]["jobs"][0]["artifacts"][0]["inputs"] = [NOWHERE]

    found = [f for f in rewritten(pipe, dangle) if f.invariant == 8]
    assert [(f.where, "does not exist" in f.message) for f in found] == [(NOWHERE, True)]


def test_a_cycle_is_found_with_everyone_on_it(pipe: Pipeline) -> None:
    def bite_the_tail(records: list[dict[str, Any]]) -> None:
        (again,) = (job for job in records[4]["jobs"] if job["job_id"] == "j-d")
        again["artifacts"][0]["inputs"] = [id_of(B)]  # a, made again from b

    found = [f for f in rewritten(pipe, bite_the_tail) if f.invariant == 8]
    assert sorted(f.where for f in found) == sorted([id_of(A), id_of(B)])
    assert {f.message for f in found} == {"descends from itself"}


def test_a_writer_that_came_back_after_another_is_found(pipe: Pipeline) -> None:
    def interleave(records: list[dict[str, Any]]) -> None:
        for record, name in zip(records, ["x", "x", "y", "x", "y"], strict=True):
            record["writer"] = name

    found = [f for f in rewritten(pipe, interleave) if f.invariant == 12]
    assert [f.where for f in found] == ["commit 4", "commit 5"]


# ── beside a working bus ─────────────────────────────────────────────────────────────────────────


def test_nothing_is_found_wrong_while_the_writer_works(template: Path, pipe: Pipeline) -> None:
    pipe = Pipeline(pipe.lake.root, public_root=template, checkpoint_every=3)
    done = threading.Event()
    number = 0

    def work() -> None:
        nonlocal number
        with pipe.writer() as writer:
            while not done.is_set():
                number += 1
                pipe.judged(verdict(f"n{number}", facts(f"n{number}", number % 20)))
                if number % 3 == 0:
                    old = id_of(facts(f"n{number - 1}", (number - 1) % 20))
                    gone = Tombstone(op="tombstone", target=old, reason="wrong")
                    pipe.judged(verdict(f"t{number}", mutations=[gone]))
                writer.drain(budget_s=0.05)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        reports = [
            verify(pipe.lake, pipe.settings, pipe.registry, level)
            for level in ("quick", "full", "full")
        ]
    finally:
        done.set()
        thread.join()
    assert [report.findings for report in reports] == [[]] * 3
    assert reports[0].seq < reports[-1].seq


# ── sampling ─────────────────────────────────────────────────────────────────────────


def test_samples_go_round_all_objects(pipe: Pipeline) -> None:
    two = pipe.settings.model_copy(update={"verify_sample_size": 2})
    flip_object(pipe)
    reports = [sample(pipe.lake, two) for _ in range(3)]
    found = [finding for report in reports for finding in report.findings]
    assert {f.where for f in found} == {str(object_of(pipe.lake))}
    assert "signals token=So1" in found[0].message
    assert [report.objects for report in reports] == [2, 2, 2]


def test_a_sample_of_a_lake_with_a_broken_manifest_says_so(pipe: Pipeline) -> None:
    break_manifest(pipe)
    assert [f.invariant for f in sample(pipe.lake, pipe.settings).findings] == [4]


def test_a_sample_of_an_empty_lake_finds_nothing(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path)
    assert sample(pipe.lake, pipe.settings).findings == []
    pipe.commit()
    assert sample(pipe.lake, pipe.settings).findings == []


def test_a_check_that_breaks_is_a_finding_and_stops_no_other(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("oops")

    monkeypatch.setattr("bus.invariants.identities", broken)
    lose_object(pipe)
    found = check(pipe, "quick")
    assert [(f.invariant, f.message[:23]) for f in found if f.invariant == 7] == [
        (7, "could not be checked: R")
    ]
    assert any(f.invariant == 1 for f in found)


def test_a_marker_of_a_stranger_is_not_held_against_the_lake(pipe: Pipeline) -> None:
    path = pipe.lake.inbox / "foreign"
    path.mkdir()
    (path / MANIFEST).write_bytes(b"{}")
    (path / COMMIT).write_bytes(b"")
    assert check(pipe, "quick") == []
    marker = CommitMarker(manifest_sha256="ab" * 32, submission_id="s")
    (path / COMMIT).write_bytes(marker.to_bytes())
    assert check(pipe, "quick") == []  # no manifest of ours: validation will say what is wrong
