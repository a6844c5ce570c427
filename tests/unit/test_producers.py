"""Adapters: files become one job with the names a person expects."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bus.client import Bus
from bus.model import JobManifest
from bus.producers.files import ParquetFile, names_for, submit_files
from bus.settings import Settings


def test_one_file_is_named_after_its_kind_and_several_after_themselves() -> None:
    assert names_for([Path("a/x.parquet")], "trades") == ["trades"]
    several = [Path("a/x.parquet"), Path("y.parquet"), Path("b/x.parquet")]
    assert names_for(several, "trades") == ["x", "y", "x-2"]


def test_several_files_become_one_job_whose_manifest_says_what_is_known(tmp_path: Path) -> None:
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for number, path in enumerate(paths):
        pq.write_table(pa.table({"n": range(number + 1)}), path)
    bus = Bus(Settings(lake=tmp_path / "lake"))
    files = [ParquetFile(paths[0], "a", "key=a", 1), ParquetFile(paths[1], "b")]
    job = submit_files(
        bus, files, shared={"tags": {"k": ["v"]}}, kind="things", producer="tests", run_id="r"
    )
    lying = bus.lake.inbox / job.job_id
    manifest = JobManifest.from_bytes((lying / "manifest.json").read_bytes())
    assert [(a.artifact_id, a.logical_key, a.rows) for a in manifest.artifacts] == [
        ("a", "key=a", 1),
        ("b", None, None),
    ]
    assert [a.tags for a in manifest.artifacts] == [{"k": ["v"]}] * 2
    assert all(path.exists() for path in paths)
