"""The runbook goes where the program goes, and `bus explain` finds it in both places."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bus import runbook
from bus.errors import Code
from bus.model import DUCKDB_UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _read_anew() -> Iterator[None]:
    runbook._paragraphs.cache_clear()
    yield
    runbook._paragraphs.cache_clear()


def test_the_wheel_and_the_image_take_the_runbook_along() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"ops/RUNBOOK.md": "bus/RUNBOOK.md"}
    assert "COPY ops/RUNBOOK.md ops/" in (REPOSITORY / "ops" / "Dockerfile").read_text()


def test_an_installed_copy_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "### E202 missing column\nAs installed.\n\n# Next\n"
    (tmp_path / "RUNBOOK.md").write_text(text)
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    assert runbook.paragraph(Code.E202) == "As installed."


def test_without_any_the_hint_must_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    monkeypatch.setattr(runbook, "_of_a_checkout", lambda: tmp_path / "none")
    assert runbook.paragraph(Code.E202) == Code.E202.hint


def test_every_warning_of_a_table_or_a_job_has_a_paragraph_and_the_other_way_round() -> None:
    sources = [(REPOSITORY / "bus" / name).read_text() for name in ("validation.py", "remarks.py")]
    yielded = {name for text in sources for name in re.findall(r'yield f?"([a-z_]+)[:"]', text)}
    told = {name for name in runbook._paragraphs() if name not in set(Code)}
    assert told == {*yielded, "generic_kind", DUCKDB_UNREADABLE}
    assert all(runbook.on_warning(name) for name in told)
    assert runbook.on_warning("E202") is None


def test_a_paragraph_ends_where_the_next_heading_begins() -> None:
    for code in Code:
        text = runbook.paragraph(code)
        assert text
        assert "\n#" not in text
