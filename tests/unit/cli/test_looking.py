"""Commands that look: jobs, rejected, show, path, query, explain, status, doctor."""

from __future__ import annotations

import io
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from bus.errors import Code
from bus.lake import Lake
from tests.pipeline import Pipeline, facts, id_of, verdict
from tests.said import BOTH_PROBLEMS, Said

if TYPE_CHECKING:
    from collections.abc import Callable


def test_jobs_shows_those_on_their_way_first_then_the_newest(
    filled: Pipeline, bus: Callable[..., Said]
) -> None:
    rows = bus("jobs", "--lake", filled.lake.root, "--json").json
    assert [(r["job_id"], r["state"]) for r in rows] == [
        ("fresh", "staged"),
        ("waits", "ready"),
        ("broken", "rejected"),
        ("job-2", "committed"),
        ("job-1", "committed"),
    ]
    by_id = {row["job_id"]: row for row in rows}
    assert by_id["fresh"]["run_id"] == "run-3"
    assert by_id["waits"]["waiting_for"] == ["job:later/x"]
    assert by_id["broken"]["codes"] == ["E307", "E202"]
    assert by_id["job-1"]["seq"] == 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--state", "pending"], ["fresh", "waits"]),
        (["--state", "staged"], ["fresh"]),
        (["--state", "ready"], ["waits"]),
        (["--state", "committed"], ["job-2", "job-1"]),
        (["--state", "rejected"], ["broken"]),
        (["--run-id", "run-2"], ["job-2"]),
        (["--kind", "other"], ["fresh"]),
        (["--limit", "3"], ["fresh", "waits", "broken"]),
        (["--run-id", "run-1", "--state", "committed"], ["job-1"]),
    ],
)
def test_jobs_can_be_filtered(
    flags: list[str], expected: list[str], filled: Pipeline, bus: Callable[..., Said]
) -> None:
    rows = bus("jobs", "--lake", filled.lake.root, "--json", *flags).json
    assert [row["job_id"] for row in rows] == expected


def test_a_job_whose_producer_has_not_finished_it_waits_for_commit(
    tmp_path: Path, bus: Callable[..., Said]
) -> None:
    lake = Lake(tmp_path / "lake")
    lake.create()
    (lake.inbox / "half").mkdir()
    (lake.inbox / "closed").mkdir(mode=0o000)
    rows = bus("jobs", "--lake", lake.root, "--json").json
    assert {row["job_id"]: row["waiting_for"] for row in rows} == {
        "half": ["COMMIT"],
        "closed": ["COMMIT"],
    }
    assert "waits for COMMIT" in bus("jobs", "--lake", lake.root).out


def test_rejected_shows_every_problem_with_code_place_hint_and_where_the_files_lie(
    filled: Pipeline, bus: Callable[..., Said]
) -> None:
    text = bus("rejected", "--lake", filled.lake.root).out
    for problem in BOTH_PROBLEMS:
        assert f"{problem.code} {problem.where}" in text
        assert problem.message in text
        assert f"hint: {problem.hint}" in text
    directory = filled.lake.rejected / "broken"
    assert f"files: {directory}" in text
    assert (directory / "x.parquet").read_bytes() == b"no"
    (found,) = bus("rejected", "broken", "--lake", filled.lake.root, "--json").json
    assert [p["code"] for p in found["problems"]] == ["E307", "E202"]
    assert found["path"] == str(directory)


def test_show_tells_what_a_job_waits_for(filled: Pipeline, bus: Callable[..., Said]) -> None:
    assert "job:later/x" in bus("show", "waits", "--lake", filled.lake.root).out


def test_show_finds_one_artifact_by_each_kind_of_reference(
    filled: Pipeline, bus: Callable[..., Said]
) -> None:
    whole = bus("show", "run-1/alerts", "--lake", filled.lake.root, "--json").json
    artifact_id = whole["artifact_id"]
    for reference in (artifact_id, artifact_id[:6], "job:job-1/alerts", f"artifact:{artifact_id}"):
        again = bus("show", reference, "--lake", filled.lake.root, "--json").json
        assert again["artifact_id"] == artifact_id
    assert whole["tags"] == {"token": ["SOL"]}
    assert whole["rows"] == 2
    assert [use["run_id"] for use in whole["uses"]] == ["run-2", "run-1"]
    assert [column["name"] for column in whole["columns"]] == ["x"]


def test_a_job_and_a_run_of_one_name_can_be_told_apart(
    own: Pipeline, bus: Callable[..., Said]
) -> None:
    own.judged(verdict("run-1", facts("more", 5)))
    own.commit()
    at = ["--lake", own.lake.root, "--json"]
    assert bus("show", "run-1", *at).json["type"] == "job"
    assert bus("show", "job:run-1", *at).json["type"] == "job"
    assert bus("show", "run:run-1", *at).json["type"] == "run"


def test_the_beginning_of_an_id_that_fits_several_is_not_guessed(
    own: Pipeline, bus: Callable[..., Said]
) -> None:
    many = [facts(f"m{number}", number, kind="many") for number in range(17)]
    own.judged(verdict("many", *many))  # of 17 ids two begin alike
    own.commit()
    ids = sorted(id_of(one) for one in many)
    first = next(a[0] for a, b in pairwise(ids) if a[0] == b[0])
    said = bus("path", f"many@1/{first}", "--lake", own.lake.root)
    assert said.status == 2
    assert "E404" in said.err
    for one in many:
        listed = f"{id_of(one)} (many {one.logical_key}, created 20" in said.err
        assert listed == id_of(one).startswith(first)


def test_path_prints_the_path_of_the_bytes_and_nothing_else(
    filled: Pipeline, bus: Callable[..., Said]
) -> None:
    said = bus("path", "run-2/alerts", "--lake", filled.lake.root)
    path = Path(said.out.strip())
    assert path.is_absolute()
    assert pq.read_table(path).to_pydict() == {"x": [1, 2]}
    assert said.err == ""


def test_the_contract_of_a_kind_lists_its_columns(bus: Callable[..., Said]) -> None:
    (spec,) = bus("show", "--kind", "run_metrics", "--json").json
    assert [c["name"] for c in spec["columns"]] == ["run_id", "metric_name", "metric_value", "ts"]
    assert "metric_name" in bus("show", "--kind", "run_metrics").out
    assert "open: any columns" in bus("show", "--kind", "fills").out


def test_a_query_reads_the_published_catalog(filled: Pipeline, bus: Callable[..., Said]) -> None:
    sql = "SELECT run_id, name, rows FROM catalog.artifacts_f ORDER BY run_id"
    found = bus("query", sql, "--lake", filled.lake.root, "--json").json
    assert found["columns"] == ["run_id", "name", "rows"]
    assert found["rows"] == [
        {"run_id": "run-1", "name": "alerts", "rows": 2},
        {"run_id": "run-2", "name": "alerts", "rows": 2},
    ]
    limited = bus("query", sql, "--lake", filled.lake.root, "--limit", "1").out
    assert "run-1" in limited
    assert "The first 1 rows" in limited


def test_a_query_may_come_from_stdin(
    filled: Pipeline, bus: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT 42 AS answer"))
    said = bus("query", "-", "--lake", filled.lake.root, "--json")
    assert said.json["rows"] == [{"answer": 42}]


@pytest.mark.parametrize("code", list(Code))
def test_every_code_is_explained_with_more_than_its_hint(
    code: Code, bus: Callable[..., Said]
) -> None:
    found = bus("explain", str(code).lower(), "--json").json
    assert (found["code"], found["title"]) == (str(code), code.label)
    assert len(found["text"]) > 100
    assert "### " not in found["text"]


def test_a_warning_is_explained_by_its_name(bus: Callable[..., Said]) -> None:
    found = bus("explain", "generic_kind", "--json").json
    assert found["warning"] == "generic_kind"
    assert "strict_kinds" in found["text"]
    assert "No contract is declared" in bus("explain", "generic_kind").out


def test_without_a_runbook_explain_falls_back_to_the_hint(
    bus: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.runbook._paragraphs", dict)
    assert bus("explain", "E202", "--json").json["text"] == Code.E202.hint


def test_status_names_what_needs_a_hand_first(filled: Pipeline, bus: Callable[..., Said]) -> None:
    said = bus("status", "--lake", filled.lake.root)
    lines = said.out.splitlines()
    assert "no bus runs" in lines[0]
    assert "writer: not started" in said.out
    document = bus("status", "--lake", filled.lake.root, "--json").json
    assert document["writer"]["state"] == "not started"
    assert document["jobs"]["ready"]["count"] == 1
    assert document["catalog"]["seq"] == document["catalog"]["manifest_seq"] == 3


def test_the_doctor_lists_every_setting_without_the_password(
    bus: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUS_REDIS_URL", "redis://u:secret-word@h:1/0")
    for form in ([], ["--json"]):
        said = bus("doctor", "--settings", *form)
        assert "lineage_wait_s" in said.out
        assert "secret-word" not in said.out
