"""A legal file that pyarrow reads and DuckDB does not is kept, and stops nobody's view."""

from __future__ import annotations

from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pytest

from bus import exports
from bus.catalog import select
from bus.model import DUCKDB_UNREADABLE
from bus.verify import verify
from tests.jobs import parquet_bytes, put_job, small_table
from tests.pipeline import Pipeline

if TYPE_CHECKING:
    from pathlib import Path

#: An encoding that DuckDB lacks for columns of a fixed width.
ODD = parquet_bytes(
    small_table().append_column("d", pa.array([b"abcd"] * 3, pa.binary(4))),
    use_dictionary=False,
    column_encoding={"d": "BYTE_STREAM_SPLIT"},
)


def test_the_file_is_one_that_duckdb_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "odd.parquet"
    path.write_bytes(ODD)
    with duckdb.connect() as db, pytest.raises(duckdb.Error):
        db.execute(f"FROM read_parquet('{path}')").fetchall()


def test_it_is_kept_with_a_warning_and_left_out_of_what_duckdb_makes(tmp_path: Path) -> None:
    every = {"things": {"sql": "SELECT * FROM canon.things"}}
    pipe = Pipeline(tmp_path / "lake", exports=every)
    put_job(pipe.lake, "odd", {"a0.parquet": ODD})
    put_job(pipe.lake, "good", {"a0.parquet": small_table(3, 10)})
    pipe.judge()
    with pipe.writer() as writer:
        while writer.drain().more:
            pass
    (artifact,) = pipe.receipt("odd").artifacts
    assert any(text.startswith(DUCKDB_UNREADABLE) for text in artifact.warnings)
    assert pipe.receipt("good").artifacts[0].warnings == ["generic_kind"]
    assert len(select(pipe.lake, None, "SELECT * FROM canon.things")[1]) == 3
    assert select(pipe.lake, None, "SELECT count(*) FROM catalog.artifacts_f")[1] == [(2,)]
    results = exports.publish(pipe.lake, exports.build(pipe.lake, pipe.settings, ["things"]))
    assert [(r["ok"], r["rows"]) for r in results] == [(True, 3)]
    assert verify(pipe.lake, pipe.settings, pipe.registry).findings == []
    with pipe.writer() as writer:
        writer.rebuild()
        while writer.drain().more:
            pass
    assert len(select(pipe.lake, None, "SELECT * FROM canon.things")[1]) == 3
    assert verify(pipe.lake, pipe.settings, pipe.registry).findings == []
