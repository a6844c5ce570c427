"""The SQL recipes of the source documents, unchanged, while the writer works; and their equivalents."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from bus.catalog import select
from tests.pipeline import Pipeline, facts, id_of, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bus.writer import Writer

# As they stand in the documents, but for the id in the last one.
ACTIVE = """
SELECT artifact_id, artifact_type, logical_key, status, row_count
FROM artifacts
WHERE status = 'active'
ORDER BY created_at DESC
LIMIT 10;
"""
BY_TYPE = """
SELECT * FROM artifacts
WHERE artifact_type = 'alerts_v1'
AND status = 'active';
"""
BY_TAG = """
SELECT a.* FROM artifacts a
JOIN artifact_tags t ON a.artifact_id = t.artifact_id
WHERE t.k = 'source' AND t.v = 'telegram';
"""
LINEAGE = """
SELECT * FROM artifact_lineage
WHERE artifact_id = 'abc-123';
"""
COLUMNS = [
    *("artifact_id", "artifact_type", "schema_version", "logical_key", "status", "path_parquet"),
    *("path_sidecar", "file_hash", "content_hash", "row_count", "min_ts", "max_ts", "created_at"),
]

TELEGRAM = facts("t", 1, kind="alerts_v1", tags={"source": ["telegram"]})
WITHDRAWN = facts("w", 2, kind="alerts_v1", tags={"source": ["discord"]})
DERIVED = facts("d", 3, kind="run_metrics", inputs=["name:t"])
GONE = {"op": "tombstone", "target": id_of(WITHDRAWN), "reason": "wrong"}


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path / "lake")


@pytest.fixture
def writer(pipe: Pipeline) -> Iterator[Writer]:
    with pipe.writer() as writer:
        pipe.judged(verdict("j1", TELEGRAM, WITHDRAWN, DERIVED))
        writer.drain()
        pipe.judged(verdict("j2", mutations=[GONE]))
        writer.drain()
        yield writer


@pytest.fixture(params=["command", "module"])
def ask(request: pytest.FixtureRequest, pipe: Pipeline) -> Callable[[str], list[list[str]]]:
    """What a recipe finds, all as text: asked of the sqlite3 command, or of Python's own sqlite3."""
    path = pipe.lake.manifest_db

    def by_command(sql: str) -> list[list[str]]:
        command = ["sqlite3", "-separator", "\t", str(path), sql]
        run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert (run.returncode, run.stderr) == (0, "")
        return [line.split("\t") for line in run.stdout.splitlines()]

    def by_module(sql: str) -> list[list[str]]:
        with closing(sqlite3.connect(path)) as db:
            return [["" if v is None else str(v) for v in row] for row in db.execute(sql)]

    if request.param == "command" and shutil.which("sqlite3") is None:
        pytest.skip("no sqlite3 command on this machine; Python's own was asked")
    return by_command if request.param == "command" else by_module


def test_active_artifacts_by_age(writer: Writer, ask: Callable[[str], list[list[str]]]) -> None:
    found = ask(ACTIVE)
    assert {row[0] for row in found} == {id_of(TELEGRAM), id_of(DERIVED)}
    assert {tuple(row[1:]) for row in found} == {
        ("alerts_v1", "name=t", "active", "2"),
        ("run_metrics", "name=d", "active", "2"),
    }
    assert writer.seq == 2


def test_artifacts_of_a_type(writer: Writer, ask: Callable[[str], list[list[str]]]) -> None:
    (row,) = ask(BY_TYPE)
    found = dict(zip(COLUMNS, row, strict=True))
    assert found["artifact_id"] == id_of(TELEGRAM)
    assert found["path_parquet"].endswith(f"{TELEGRAM.sha256}.parquet")
    assert writer.seq == 2


def test_artifacts_by_a_tag_and_lineage_by_id(
    writer: Writer, ask: Callable[[str], list[list[str]]]
) -> None:
    assert [row[0] for row in ask(BY_TAG)] == [id_of(TELEGRAM)]
    recipe = LINEAGE.replace("abc-123", id_of(DERIVED))
    assert ask(recipe) == [[id_of(DERIVED), id_of(TELEGRAM)]]
    assert writer.seq == 2


def test_recipes_answer_between_any_two_commits_of_a_working_writer(
    pipe: Pipeline, writer: Writer, ask: Callable[[str], list[list[str]]]
) -> None:
    for number in range(3, 8):
        before = len(ask(BY_TYPE))
        pipe.judged(verdict(f"more-{number}", facts(f"m{number}", number, kind="alerts_v1")))
        writer.drain()
        assert len(ask(BY_TYPE)) == before + 1


def test_the_equivalents_on_the_catalog_find_the_same(pipe: Pipeline, writer: Writer) -> None:
    assert writer.seq == 2

    def found(sql: str) -> list[tuple[object, ...]]:
        return select(pipe.lake, pipe.settings, sql)[1]

    active = (
        "SELECT artifact_id, kind, logical_key, status, rows FROM catalog.artifacts_d "
        "WHERE status = 'active' ORDER BY ingested_at DESC, artifact_id LIMIT 10"
    )
    telegram, derived = id_of(TELEGRAM), id_of(DERIVED)
    assert found(active) == sorted(
        [
            (telegram, "alerts_v1", "name=t", "active", 2),
            (derived, "run_metrics", "name=d", "active", 2),
        ]
    )
    of_type = "SELECT artifact_id FROM catalog.artifacts_d WHERE kind = 'alerts_v1'"
    assert found(f"{of_type} AND status = 'active'") == [(telegram,)]
    tagged = (
        "SELECT a.artifact_id FROM catalog.artifacts_d a JOIN catalog.tags_f t USING (artifact_id)"
    )
    assert found(f"{tagged} WHERE t.k = 'source' AND t.v = 'telegram'") == [(telegram,)]
    lineage = "SELECT artifact_id, input_artifact_id FROM catalog.lineage_f"
    assert found(f"{lineage} WHERE artifact_id = '{derived}'") == [(derived, telegram)]
    assert found(
        "SELECT logical_key, status FROM catalog.artifacts_d WHERE status <> 'active'"
    ) == [("name=w", "tombstoned")]
