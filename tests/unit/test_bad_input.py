"""What a producer hands in and the bus cannot take: refused at once, clearly, with nothing left behind."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus import disk
from bus.client import Bus
from bus.errors import BusError, Code, Refused, Unavailable
from bus.lake import MANIFEST
from bus.model import JobManifest, JobState
from bus.settings import Settings
from tests.jobs import verdict_of
from tests.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KINDS: dict[str, Any] = {
    "fills": {
        "columns": {
            "ts": "timestamp[us, UTC]!",
            "mint": "string!",
            "price": "float64!",
            "size": "int32",
            "note": "string?",
        },
        "key": ["ts", "mint"],
        "checks": {"price_is_positive": "price > 0"},
    },
    "prices": {"columns": {"price": "float64!"}},
}
NOON = datetime(2026, 1, 8, 12, tzinfo=UTC)
ONE_PM = datetime(2026, 1, 8, 13, tzinfo=UTC)
#: Out of key order: what is written would be sorted, what is refused keeps its rows' numbers.
GOOD: dict[str, Any] = {
    "ts": [ONE_PM, NOON],
    "mint": ["a", "a"],
    "price": [2.0, 1.0],
    "size": pa.array([2, 1], pa.int32()),
}


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path / "lake", kinds=KINDS)


@pytest.fixture
def bus(pipe: Pipeline) -> Bus:
    return Bus(pipe.settings)


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


# ── the contract ──────────────────────────────────────────────────────────────────────────────

BROKEN: dict[str, tuple[dict[str, Any], set[str]]] = {
    "a missing column": (without("mint"), {"E202"}),
    "a column of the wrong type": (GOOD | {"price": ["2", "1"]}, {"E203"}),
    "a time without a zone": (GOOD | {"ts": [datetime(2026, 1, 8), None]}, {"E203"}),  # noqa: DTZ001
    "a lossy cast": (GOOD | {"size": [2**40, 1]}, {"E208"}),
    "a NaN in a column without NULL": (GOOD | {"price": [2.0, float("nan")]}, {"E205"}),
    "a NULL in a column without NULL": (GOOD | {"mint": [None, "a"]}, {"E205"}),
    "a broken check": (GOOD | {"price": [2.0, -1.0]}, {"E204"}),
    "a repeated key": (GOOD | {"ts": [NOON, NOON]}, {"E206"}),
    "everything at once": (
        without("mint") | {"size": ["x", "y"], "price": [float("nan"), -1.0]},
        {"E202", "E203", "E204", "E205"},
    ),
}
FORMS: dict[str, Callable[[pa.Table, Path], Any]] = {
    "pyarrow": lambda table, _: table,
    "a stream": lambda table, _: table.to_reader(max_chunksize=1),
    "polars": lambda table, _: pl.DataFrame(table),
    "a file": lambda table, folder: written(table, folder / "mine.parquet"),
}


def written(table: pa.Table, path: Path) -> Path:
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", BROKEN)
def test_what_the_contract_refuses_is_refused_before_it_is_staged_in_the_words_of_the_validator(
    case: str, form: str, pipe: Pipeline, bus: Bus, tmp_path: Path
) -> None:
    columns, codes = BROKEN[case]
    table = pa.table(columns)
    data = FORMS[form](table, tmp_path)
    with pytest.raises(Refused) as caught:
        bus.submit(data, kind="fills", producer="tests")
    assert os.listdir(bus.lake.inbox) == []
    assert {str(found.code) for found in caught.value.problems} == codes

    pipe.stage("unchecked", table, kind="fills")  # as a producer that knows no contracts does
    pipe.judge()
    theirs = [found.model_dump() for found in verdict_of(pipe.lake, "unchecked").problems]
    assert [found.as_dict() for found in caught.value.problems] == theirs


def test_a_nan_is_missing_whichever_library_wrote_it(bus: Bus) -> None:
    frame = pd.DataFrame({"price": [1.0, np.nan]})
    for data in (frame, pl.DataFrame(frame), pa.table(frame)):
        with pytest.raises(Refused) as caught:
            bus.submit(data, kind="prices", producer="tests")
        assert [(p.code, p.where) for p in caught.value.problems] == [
            (Code.E205, "000.parquet:price")
        ]
        assert "row 1" in caught.value.message


def test_an_empty_table_is_legal_where_the_contract_allows_it(bus: Bus) -> None:
    job = bus.submit(pa.table(GOOD).slice(0, 0), kind="fills", producer="tests")
    assert job.status is JobState.STAGED
    with pytest.raises(Refused) as caught:
        bus.submit(pa.table({"ts": pa.array([], pa.string())}), kind="fills", producer="tests")
    assert {p.code for p in caught.value.problems} == {Code.E202, Code.E203}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ([{"a": 1}, {"a": "x"}], "E601"),
        ([1, 2], "E601"),
        (pd.DataFrame({"a": [1, "x"]}), "E601"),
        ([], "E312"),
        (pa.table({}), "E312"),
    ],
    ids=["mixed", "numbers", "objects", "nothing", "no columns"],
)
def test_rows_that_are_no_table_are_refused(bus: Bus, data: Any, code: str) -> None:
    with pytest.raises(Refused) as caught:
        bus.submit(data, kind="things", producer="tests")
    assert caught.value.code == code
    assert caught.value.hint
    assert os.listdir(bus.lake.inbox) == []


# ── names ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("field", ["kind", "producer", "run_id", "name", "job_id"])
@pytest.mark.parametrize(
    "word",
    ["a/b", "..", "a\0b", "x" * 300, "🚀", "a b", "a\n"],
    ids=["slash", "dots", "NUL", "long", "emoji", "space", "newline"],
)
def test_a_name_that_can_be_none_is_refused_by_its_field(bus: Bus, field: str, word: str) -> None:
    fields: dict[str, Any] = {"kind": "things", "producer": "tests"} | {field: word}
    with pytest.raises(Refused) as caught:
        bus.submit(pa.table({"x": [1]}), **fields)
    assert caught.value.code == "E104"
    assert caught.value.where.split(".")[-1] == {"name": "artifact_id"}.get(field, field)
    assert caught.value.hint
    assert os.listdir(bus.lake.inbox) == []


def test_every_artifact_has_a_kind_its_own_or_the_jobs(bus: Bus) -> None:
    table = pa.table({"x": [1]})
    with bus.job(producer="tests", run_id="run-1") as job:
        job.add(table, name="one", kind="trades")
        job.add(table, name="two", kind="others")
    manifest = JobManifest.from_bytes((bus.lake.inbox / job.job.job_id / MANIFEST).read_bytes())
    assert manifest.kind == "trades"
    assert [entry.kind for entry in manifest.artifacts] == ["trades", "others"]
    with pytest.raises(Refused, match="what kind"), bus.job(producer="tests") as job:
        job.add(table)
    assert os.listdir(bus.lake.inbox) == [manifest.job_id]


# ── files ─────────────────────────────────────────────────────────────────────────────────────


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def a_link_to_nothing(folder: Path) -> Path:
    (folder / "link").symlink_to("nothing")
    return folder / "link"


BAD_PATHS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a missing file": (lambda folder: folder / "none.parquet", "E301"),
    "a file below a file": (
        lambda folder: written(pa.table({"x": [1]}), folder / "f") / "g",
        "E301",
    ),
    "a link to nothing": (a_link_to_nothing, "E301"),
    "a name with NUL": (lambda folder: folder / "a\0b.parquet", "E301"),
    "a name of 300 characters": (lambda folder: folder / ("x" * 300), "E301"),
    "a directory": (lambda folder: folder, "E302"),
    "a pipe": (a_pipe, "E302"),
}


@pytest.mark.parametrize("kind", ["things", "fills"])
@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("case", BAD_PATHS)
def test_a_path_that_is_no_file_is_refused(
    case: str, bus: Bus, tmp_path: Path, kind: str, move: bool
) -> None:
    make, code = BAD_PATHS[case]
    path = make(tmp_path)
    with pytest.raises(Refused) as caught:
        bus.submit(path, kind=kind, producer="tests", move=move)
    assert (caught.value.code, caught.value.where) == (code, str(path))
    assert os.listdir(bus.lake.inbox) == []


def test_a_file_may_be_named_as_it_likes(bus: Bus, tmp_path: Path) -> None:
    path = written(pa.table({"x": [1]}), tmp_path / "🚀 é\n.parquet")
    assert bus.submit(path, kind="things", producer="tests").status is JobState.STAGED


@pytest.mark.needs_user
def test_a_file_that_may_not_be_read_is_refused_and_named(bus: Bus, tmp_path: Path) -> None:
    path = written(pa.table({"x": [1]}), tmp_path / "mine.parquet")
    path.chmod(0)
    with pytest.raises(Refused) as caught:
        bus.submit(path, kind="things", producer="tests")
    assert (caught.value.code, caught.value.where) == (Code.E601, str(path))
    assert os.listdir(bus.lake.inbox) == []


def test_a_file_whose_bytes_cannot_be_read_leaves_nothing_behind(bus: Bus) -> None:
    with pytest.raises(Unavailable) as caught:  # the kernel says EIO of its first page
        bus.submit("/proc/self/mem", kind="things", producer="tests", required=True)
    assert caught.value.code == "E505"
    assert os.listdir(bus.lake.inbox) == []


def test_a_file_that_is_written_to_while_it_is_copied_is_refused(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(pa.table({"x": [1]}), tmp_path / "mine.parquet")
    copy = disk.copy_file

    def copy_and_append(source: Path, target: Path) -> None:
        copy(source, target)
        with source.open("ab") as file:
            file.write(b"more")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "copy_file", copy_and_append)
        with pytest.raises(Refused) as caught:
            bus.submit(path, kind="things", producer="tests")
    assert (caught.value.code, caught.value.where) == (Code.E304, str(path))
    assert os.listdir(bus.lake.inbox) == []
    assert bus.submit(path, kind="things", producer="tests").status is JobState.STAGED


def test_every_refusal_is_a_bus_error_with_a_hint(tmp_path: Path) -> None:
    """Whatever is handed in, nothing but the tree of `bus.errors` comes out."""
    bus = Bus(Settings.load(tmp_path / "lake"))
    for data in (None, 7, b"bytes", {"x": [1]}, object(), [None], tmp_path, "nothing", ("a",)):
        with pytest.raises(BusError) as caught:
            bus.submit(data, kind="things", producer="tests")
        assert caught.value.hint
