"""Step 1: what a producer is told is staged lies whole in the inbox, whatever it was made of."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from typing import TYPE_CHECKING, Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus.errors import JobConflict, Refused
from bus.frames import ParquetOptions
from bus.lake import COMMIT, MANIFEST, Lake
from bus.model import CommitMarker, JobManifest, JobState
from bus.staging import StagedJob, Staging, new_job_id

if TYPE_CHECKING:
    from pathlib import Path

TABLE = pa.table({"x": [1, 2, 3], "y": ["a", None, "c"]})


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def stage(lake: Lake, job_id: str = "job", data: Any = TABLE, **fields: Any) -> StagedJob:
    with Staging(lake, "run", "tests", "signals", job_id) as job:
        job.add(data)
        return job.submit(**fields)


def manifest(lake: Lake, job_id: str = "job") -> JobManifest:
    return JobManifest.from_bytes((lake.inbox / job_id / MANIFEST).read_bytes())


def test_a_lake_is_made_where_there_is_none(lake: Lake) -> None:
    stage(lake)
    assert lake.state_of("job") is JobState.STAGED


def test_the_manifest_says_what_the_files_are(lake: Lake) -> None:
    stage(lake)
    (entry,) = manifest(lake).artifacts
    path = lake.inbox / "job" / entry.relpath
    assert entry.artifact_id == "signals"
    assert entry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (entry.size_bytes, entry.rows) == (path.stat().st_size, 3)
    assert pq.read_table(path).equals(TABLE)


def test_commit_carries_the_manifests_hash_and_the_submission_id(lake: Lake) -> None:
    told = stage(lake)
    marker = CommitMarker.from_bytes((lake.inbox / "job" / COMMIT).read_bytes())
    data = (lake.inbox / "job" / MANIFEST).read_bytes()
    assert marker.manifest_sha256 == hashlib.sha256(data).hexdigest()
    assert (told.job_id, told.submission_id) == ("job", marker.submission_id)


@pytest.mark.parametrize(
    "data",
    [
        TABLE,
        TABLE.to_batches()[0],
        TABLE.to_reader(),
        TABLE.to_pylist(),
        pd.DataFrame({"x": [1, 2, 3], "y": ["a", None, "c"]}),
        pl.DataFrame({"x": [1, 2, 3], "y": ["a", None, "c"]}),
    ],
    ids=["table", "batch", "reader", "dicts", "pandas", "polars"],
)
def test_anything_tabular_is_taken(lake: Lake, data: Any) -> None:
    stage(lake, data=data)
    (entry,) = manifest(lake).artifacts
    read = pq.read_table(lake.inbox / "job" / entry.relpath)
    assert read.select(["x", "y"]).to_pylist() == TABLE.to_pylist()
    assert entry.rows == 3


@pytest.mark.parametrize("data", [5, b"bytes", {"x": 1}, object()])
def test_what_is_no_table_is_e601_and_leaves_nothing(lake: Lake, data: Any) -> None:
    with pytest.raises(Refused) as caught:
        stage(lake, data=data)
    assert caught.value.code == "E601"
    assert os.listdir(lake.inbox) == []


def test_a_file_is_copied_and_stays_the_producers(lake: Lake, tmp_path: Path) -> None:
    mine = tmp_path / "mine.parquet"
    pq.write_table(TABLE, mine)
    stage(lake, data=mine)
    (entry,) = manifest(lake).artifacts
    taken = lake.inbox / "job" / entry.relpath
    assert taken.read_bytes() == mine.read_bytes()
    assert not taken.samefile(mine)
    with pytest.raises(Refused) as caught:
        stage(lake, "other", data=tmp_path / "nothing.parquet")
    assert caught.value.code == "E301"


def test_a_temporary_file_may_be_moved(lake: Lake, tmp_path: Path) -> None:
    mine = tmp_path / "mine.parquet"
    pq.write_table(TABLE, mine)
    with Staging(lake, "run", "tests", "signals", "job") as job:
        job.add(mine, move=True)
        job.submit()
    assert not mine.exists()
    assert lake.state_of("job") is JobState.STAGED


def test_an_exception_in_the_block_leaves_nothing(lake: Lake) -> None:
    class Oops(Exception):
        pass

    with pytest.raises(Oops), Staging(lake, "run", "tests", "signals", "job") as job:
        job.add(TABLE)
        raise Oops
    assert os.listdir(lake.inbox) == []


def test_every_problem_of_a_manifest_is_told_before_anything_is_staged(lake: Lake) -> None:
    with pytest.raises(Refused) as caught, Staging(lake, "a/b", "tests", "signals", "job") as job:
        job.add(TABLE, name="bad name")
        job.submit(after=["../x"])
    assert [(str(p.code), p.where) for p in caught.value.problems] == [
        ("E104", "manifest.json.run_id"),
        ("E104", "manifest.json.artifacts[0].artifact_id"),
        ("E104", "manifest.json.after[0]"),
    ]
    assert os.listdir(lake.inbox) == []


@pytest.mark.parametrize("meta", [{"f": float("nan")}, {"t": "x" * 5000}, {"n": 2**70}])
def test_meta_that_the_bus_would_reject_is_refused_here(lake: Lake, meta: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        stage(lake, meta=meta)
    assert os.listdir(lake.inbox) == []


# ── the same id again ────────────────────────────────────────────────────────────────────────────


def test_the_same_job_while_it_waits_is_acknowledged_as_the_one_that_waits(lake: Lake) -> None:
    first = stage(lake)
    inode = (lake.inbox / "job").stat().st_ino
    assert stage(lake) == first
    assert (lake.inbox / "job").stat().st_ino == inode
    assert os.listdir(lake.inbox) == ["job"]


def test_another_job_of_a_waiting_id_is_refused_and_the_first_stays(lake: Lake) -> None:
    stage(lake)
    before = {p.name: p.read_bytes() for p in (lake.inbox / "job").iterdir()}
    with pytest.raises(JobConflict) as caught:
        stage(lake, data=pa.table({"x": [9]}))
    assert caught.value.code == "E105"
    assert {p.name: p.read_bytes() for p in (lake.inbox / "job").iterdir()} == before
    assert os.listdir(lake.inbox) == ["job"]


def test_a_job_that_is_taken_while_we_look_is_no_conflict(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between the rename that fails and the look at what is in the way, a validator may claim it.
    stage(lake)
    real = Lake.publish_staged

    def claimed_meanwhile(self: Lake, staging: Path, job_id: str) -> None:
        try:
            real(self, staging, job_id)
        except JobConflict:
            (lake.inbox / "job").rename(lake.work / "job")
            raise

    monkeypatch.setattr(Lake, "publish_staged", claimed_meanwhile)
    stage(lake, data=pa.table({"x": [9]}))
    assert (lake.inbox / "job").is_dir()
    assert (lake.work / "job").is_dir()


def test_generated_ids_do_not_repeat_within_a_moment() -> None:
    made = [new_job_id("p" * 128, "k" * 128) for _ in range(1000)]
    assert len(set(made)) == 1000
    assert max(map(len, made)) <= 128


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def test_pages_carry_checksums_and_the_codec_is_the_callers(lake: Lake) -> None:
    with Staging(lake, "r", "p", "k", "job", ParquetOptions(compression="snappy")) as job:
        job.add(TABLE)
        job.submit()
    (entry,) = manifest(lake).artifacts
    path = lake.inbox / "job" / entry.relpath
    metadata = pq.read_metadata(path)
    assert metadata.row_group(0).column(0).compression == "SNAPPY"
    # A flipped bit in a page is noticed only because of the checksum.
    column = metadata.row_group(0).column(0)
    begin = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[begin + column.total_compressed_size - 1] ^= 1
    with pytest.raises(OSError, match=r"(?i)crc|checksum"):
        pq.read_table(pa.BufferReader(bytes(data)), page_checksum_verification=True)


def test_a_stream_is_written_as_it_comes(lake: Lake) -> None:
    batches = (pa.record_batch({"x": range(n, n + 10)}) for n in range(0, 1000, 10))
    reader = pa.RecordBatchReader.from_batches(pa.schema([("x", pa.int64())]), batches)
    stage(lake, data=reader)
    (entry,) = manifest(lake).artifacts
    assert entry.rows == 1000
    assert pq.read_metadata(lake.inbox / "job" / entry.relpath).num_rows == 1000


def test_the_inbox_shows_no_partial_names_while_a_job_is_built(lake: Lake) -> None:
    with Staging(lake, "run", "tests", "signals", "job") as job:
        job.add(TABLE)
        (name,) = os.listdir(lake.inbox)
        assert name.startswith(".staging-")
        assert lake.listing(JobState.STAGED) == []
        job.submit()
    assert stat.S_ISDIR((lake.inbox / "job").stat().st_mode)


def test_mutations_need_no_table(lake: Lake) -> None:
    with Staging(lake, "run", "tests", "signals", "job") as job:
        job.submit(mutations=[{"op": "tombstone", "target": "x", "reason": "wrong"}])
    found = json.loads((lake.inbox / "job" / MANIFEST).read_bytes())
    assert found["mutations"][0]["op"] == "tombstone"
