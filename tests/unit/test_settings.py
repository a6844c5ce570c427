"""Settings: where a value comes from, and the source documents' configuration file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from bus.errors import Refused
from bus.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "project" / "scripts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_an_argument_wins_over_the_environment_which_wins_over_the_file(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "bus.toml").write_text("workers = 2\nsweep_interval_s = 7.0\nquiet_s = 9.0\n")
    monkeypatch.setenv("BUS_WORKERS", "3")
    monkeypatch.setenv("BUS_SWEEP_INTERVAL_S", "8")
    found = Settings.load(workers=4)
    assert (found.workers, found.sweep_interval_s, found.quiet_s) == (4, 8.0, 9.0)
    assert found.lake == project / "data"


DOCUMENTED = {
    "duckdb_path": "data/alerts.duckdb",
    "bus_root": "data/bus",
    "poll_interval_s": 1.0,
    "lock_timeout_s": 30,
    "export": {
        "enabled": True,
        "export_dir": "data/exports",
        "jobs": [{"name": "mine", "path": "mine.parquet", "sql": "SELECT 1 AS one"}],
    },
}


@pytest.mark.parametrize("place", ["scripts", "."])
def test_the_documents_configuration_is_read_where_they_keep_it(project: Path, place: str) -> None:
    (project / place / "bus_config.json").write_text(json.dumps(DOCUMENTED))
    found = Settings.load()
    assert found.lake == project / "data"
    assert (found.sweep_interval_s, found.lock_timeout_s) == (1.0, 30.0)
    assert found.exports["mine"].sql == "SELECT 1 AS one"
    assert "alerts_std" in found.exports


def test_a_file_that_cannot_be_read_is_refused_and_named(project: Path) -> None:
    (project / "bus_config.json").write_text("{")
    with pytest.raises(Refused) as caught:
        Settings.load()
    assert (caught.value.code, caught.value.where) == ("E103", str(project / "bus_config.json"))
