"""What `catalog.*` tells readers: runs, artifacts, jobs, facts, the present and the past."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus.catalog import Catalog, select
from bus.lake import Lake
from bus.model import Alias, Outcome, Pin, Tag, Tombstone, Unpin, Untag
from tests.history import columns_of, digest_of
from tests.shown import Shown

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Shown]:
    shown = Shown(tmp_path / "lake")
    yield shown
    shown.close()


def test_the_columns_of_artifacts_f_are_those_of_the_design(bus: Shown) -> None:
    bus.show()
    columns, rows = select(bus.lake, bus.settings, "SELECT * FROM catalog.artifacts_f")
    assert columns == [
        *("artifact_key", "run_id", "name", "artifact_id", "producer", "kind", "schema_version"),
        *("format", "canonical_path", "rows", "schema_hint", "file_hash", "content_hash"),
        *("created_at_utc", "ingested_at", "seq", "meta_json", "logical_key", "min_ts", "max_ts"),
    ]
    assert rows == []


def test_an_artifact_is_found_with_all_its_facts_and_its_file_can_be_read(bus: Shown) -> None:
    table = pa.table({"n": [1, 2, 3]})
    artifact = bus.history.artifact(table, name="fills", schema_hint="canon.fills")
    bus.history.commit(bus.history.job(artifact, run_id="r", meta={"git_sha": "abc"}))
    (row,) = bus.shown(
        "SELECT artifact_key, artifact_id, name, producer, kind, schema_version, format, rows, "
        "schema_hint, file_hash, content_hash, meta_json, created_at_utc::VARCHAR, "
        "ingested_at::VARCHAR, canonical_path FROM catalog.artifacts_f"
    )
    assert row[:8] == (
        "r:fills:1",
        artifact.artifact_id,
        "fills",
        "tester",
        "things",
        1,
        "parquet",
        3,
    )
    assert row[8:12] == (
        "canon.fills",
        artifact.file_hash,
        artifact.content_hash,
        '{"git_sha":"abc"}',
    )
    assert row[12:14] == ("2026-01-08 05:12:33+00", "2026-01-08 06:00:00+00")
    assert Path(row[14]) == bus.lake.object_path(artifact.sha256)
    assert pq.read_table(row[14]).equals(table)


def test_a_content_hash_that_is_a_file_hash_is_told_in_full(bus: Shown) -> None:
    content_hash = f"file:sha256:{digest_of('x')}"
    bus.history.commit(bus.history.job(bus.history.artifact(content_hash=content_hash)))
    assert bus.shown("SELECT content_hash FROM catalog.artifacts_f") == [(content_hash,)]


def test_a_deduplicated_artifact_has_a_row_in_each_run(bus: Shown) -> None:
    first = bus.history.artifact()
    again = first.model_copy(update={"decision": "deduped", "mode": "file_hash"})
    bus.history.commit(bus.history.job(first, run_id="one"), bus.history.job(again, run_id="two"))
    assert bus.shown("SELECT run_id, artifact_id FROM catalog.artifacts_f ORDER BY 1") == [
        ("one", first.artifact_id),
        ("two", first.artifact_id),
    ]


def test_artifact_keys_are_unique_even_for_one_name_twice_in_one_commit(bus: Shown) -> None:
    new = bus.history.artifact
    jobs = [bus.history.job(new(name="b:c"), run_id="a") for _ in range(2)]
    bus.history.commit(*jobs, bus.history.job(new(name="c"), run_id="a:b"))
    bus.history.commit(bus.history.job(new(name="c"), run_id="a:b"))
    keys = [
        key for (key,) in bus.shown("SELECT artifact_key FROM catalog.artifacts_f ORDER BY ALL")
    ]
    assert keys == ["a:b:c:1", "a:b:c:1:1", "a:b:c:1:2", "a:b:c:2"]


def test_a_run_is_one_row_that_later_jobs_widen(bus: Shown) -> None:
    for meta in ({"a": 1}, {"b": 2}, {"a": 3}):
        bus.history.commit(bus.history.job(bus.history.artifact(), run_id="r", meta=meta))
        bus.show()
    sql = "SELECT run_id, first_seq, last_seq, meta_json, last_seen_at > first_seen_at FROM "
    assert bus.rows(sql + "catalog.runs_d") == [("r", 1, 3, '{"a":3,"b":2}', True)]


def test_the_latest_of_each_producer_kind_and_name_comes_newest_first(bus: Shown) -> None:
    new, job = bus.history.artifact, bus.history.job
    old, other = new(name="x"), new(name="y")
    bus.history.commit(job(old, other))
    newer, elsewhere = new(name="x"), new(name="x")
    bus.history.commit(job(newer), job(elsewhere, producer="another"))
    sql = "SELECT artifact_id FROM catalog.latest_artifacts_v"
    assert bus.shown(sql) == [
        (elsewhere.artifact_id,),
        (newer.artifact_id,),
        (other.artifact_id,),
    ]
    gone = Tombstone(op="tombstone", target=newer.artifact_id, reason="wrong")
    bus.history.commit(bus.history.change(gone))
    assert (old.artifact_id,) in bus.shown(sql)
    assert (newer.artifact_id,) not in bus.rows(sql)


def test_a_rejected_job_is_listed_with_its_problems(bus: Shown) -> None:
    problems = [{"code": "E301", "where": "a.parquet", "message": "missing", "hint": "write it"}]
    job = bus.history.job(job_id="bad", outcome=Outcome.REJECTED, problems=problems)
    bus.history.commit(job)
    (row,) = bus.shown("SELECT job_id, outcome, seq, problems_json->0->>'code' FROM catalog.jobs_f")
    assert row == ("bad", "rejected", 1, "E301")
    assert bus.rows("SELECT count(*) FROM catalog.artifacts_f") == [(0,)]


def test_tags_lineage_aliases_and_pins_show_what_holds_now(bus: Shown) -> None:
    source = bus.history.artifact(tags={"chain": ["solana", "evm"]})
    made = bus.history.artifact(inputs=[source.artifact_id])
    bus.history.commit(bus.history.job(source, made))
    bus.show()
    target = source.artifact_id
    bus.history.commit(
        bus.history.change(
            Untag(op="untag", target=target, tags={"chain": ["evm"]}),
            Tag(op="tag", target=made.artifact_id, tags={"good": ["yes"]}),
            Alias(op="alias", kind="things", alias="best", target=target),
            Pin(op="pin", pin="set", target=[target]),
        )
    )
    bus.show()
    bus.history.commit(
        bus.history.change(
            Alias(op="alias", kind="things", alias="best", target=made.artifact_id),
            Unpin(op="unpin", pin="set", target=[target]),
        )
    )
    assert bus.shown("SELECT artifact_id, k, v FROM catalog.tags_f ORDER BY k") == [
        (target, "chain", "solana"),
        (made.artifact_id, "good", "yes"),
    ]
    lineage = "SELECT artifact_id, input_artifact_id FROM catalog.lineage_f"
    assert bus.rows(lineage) == [(made.artifact_id, target)]
    assert bus.rows("SELECT alias, artifact_id FROM catalog.aliases_f") == [
        ("best", made.artifact_id)
    ]
    assert bus.rows("FROM catalog.pins_f") == []


def test_the_past_is_as_it_was_after_that_commit(bus: Shown) -> None:
    first, second = bus.history.artifact(name="a"), bus.history.artifact(name="b")
    bus.history.commit(bus.history.job(first, second))
    bus.show()
    newer = bus.history.artifact(name="a", supersedes=[first.artifact_id])
    bus.history.commit(bus.history.job(newer))
    gone = Tombstone(op="tombstone", target=second.artifact_id, reason="wrong")
    bus.history.commit(bus.history.change(gone))
    bus.show()

    def then(seq: int) -> dict[str, str]:
        return dict(bus.rows(f"SELECT artifact_id, status FROM catalog.artifacts_asof({seq})"))

    ids = first.artifact_id, second.artifact_id, newer.artifact_id
    assert then(0) == {}
    assert then(1) == dict(zip(ids, ("active", "active"), strict=False))
    assert then(2) == dict(zip(ids, ("superseded", "active", "active"), strict=True))
    assert then(3) == dict(zip(ids, ("superseded", "tombstoned", "active"), strict=True))


def test_a_revived_artifact_points_at_its_new_bytes_everywhere(bus: Shown) -> None:
    first = bus.history.artifact()
    bus.history.commit(bus.history.job(first, run_id="one"))
    bus.show()
    gone = Tombstone(op="tombstone", target=first.artifact_id, reason="wrong")
    bus.history.commit(bus.history.change(gone))
    bus.show()
    other = f"sha256:{digest_of('other bytes')}"
    again = first.model_copy(update={"decision": "revived", "file_hash": other})
    bus.history.commit(bus.history.job(again, run_id="two"))
    sql = "SELECT run_id, file_hash, status FROM catalog.artifacts_asof(3) ORDER BY 1"
    assert bus.shown(sql) == [("one", other, "active"), ("two", other, "active")]
    assert Catalog.digest(bus.lake) == bus.rebuilt_digest()


def test_paths_are_published_under_the_public_root(tmp_path: Path) -> None:
    public = tmp_path / "public"
    public.symlink_to(tmp_path / "lake", target_is_directory=True)
    bus = Shown(tmp_path / "lake")
    bus.history.lake = bus.lake = Lake(tmp_path / "lake", public)
    bus.catalog.close()
    bus.catalog = bus.open()
    bus.history.commit_tables("things", pa.table({"n": [1]}))
    ((path,),) = bus.shown("SELECT canonical_path FROM catalog.artifacts_f")
    assert path.startswith(f"{public}/bus/store/objects/")
    assert pq.read_table(path).num_rows == 1
    assert bus.rows("FROM canon.things") == [(1,)]
    bus.close()


def test_the_history_of_the_tests_tells_columns_as_validators_do() -> None:
    assert columns_of(pa.table({"n": [1]})) == [{"name": "n", "type": "int64"}]
