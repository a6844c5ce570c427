"""CSV as a producer's table: typed by the contract, and a bad cell has a line and a column."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus.columns import Column
from bus.contract import Spec
from bus.errors import Code, Refused
from bus.producers.csv_files import read_csv

if TYPE_CHECKING:
    from pathlib import Path

SPEC = Spec(
    "prices",
    columns=(
        Column("ts", pa.timestamp("us", tz="UTC"), nullable=False),
        Column("price", pa.float64()),
        Column("token", pa.string()),
    ),
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(text)
    return path


def test_columns_have_the_types_of_the_contract(tmp_path: Path) -> None:
    path = written(
        tmp_path, "ts,price,token,n\n2026-01-08T05:12:33Z,1,007,1\n2026-01-08T05:12:34Z,,,2\n"
    )
    table = read_csv(path, SPEC).read_all()
    assert table.schema.field("token").type == pa.string()
    assert table.schema.field("ts").type == pa.timestamp("us", tz="UTC")
    first, second = table.to_pylist()
    moment = datetime(2026, 1, 8, 5, 12, 33, tzinfo=UTC)
    assert first == {"ts": moment, "price": 1.0, "token": "007", "n": 1}
    assert (second["price"], second["token"]) == (None, None)


def test_an_empty_text_in_quotes_is_no_null(tmp_path: Path) -> None:
    path = written(tmp_path, 'ts,price,token\n2026-01-08T05:12:33Z,1,""\n')
    assert read_csv(path, SPEC).read_all()["token"].to_pylist() == [""]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("ts,price,token\n2026-01-08T05:12:33Z,1,a\n2026-01-08T05:12:33Z,zz,a\n", ":3:price"),
        ("ts,price,token\nyesterday,1,a\n", ":2:ts"),
        ("ts,price,token\n2026-01-08T05:12:33Z,1,a\n2026-01-08T05:12:33Z,1\n", ":3"),
        ("", ""),
    ],
)
def test_a_cell_that_does_not_fit_is_named(tmp_path: Path, text: str, place: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(Refused) as refused:
        read_csv(path, SPEC).read_all()
    (problem,) = refused.value.problems
    assert (problem.code, problem.where) == (Code.E601, f"{path}{place}")


def test_a_bad_cell_far_down_is_named_by_its_line(tmp_path: Path) -> None:
    good = "2026-01-08T05:12:33Z,1.5,a long enough text to fill more than one block of a file\n"
    path = written(tmp_path, "ts,price,token\n" + good * 200_000 + "2026-01-08T05:12:33Z,?,a\n")
    with pytest.raises(Refused, match="200002:price"):
        read_csv(path, SPEC).read_all()


def test_a_parquet_file_is_told_from_csv(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    pq.write_table(pa.table({"n": [1]}), path)
    with pytest.raises(Refused, match="a Parquet file, not CSV") as refused:
        read_csv(path)
    assert "bus submit" in refused.value.hint


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        read_csv(tmp_path / "none.csv")
    assert (refused.value.code, refused.value.where) == ("E301", str(tmp_path / "none.csv"))
    with pytest.raises(Refused) as refused:
        read_csv(tmp_path)
    assert refused.value.code == "E302"
