"""The command line in this process, on a lake with something in every state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
import structlog

from bus import cli
from tests.pipeline import Pipeline, facts, table, verdict
from tests.said import BOTH_PROBLEMS, Said

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _nobody_elses_lake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """Some commands configure logging for their process, which here is that of all tests."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def bus(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command: its exit code, and what it wrote to stdout and stderr."""

    def run(*argv: object) -> Said:
        capsys.readouterr()
        status = cli.run([str(word) for word in argv])
        out, err = capsys.readouterr()
        return Said(status, out, err)

    return run


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A lake with something in every state; tests only look at it."""
    made = Pipeline(tmp_path_factory.mktemp("cli") / "lake", lineage_wait_s=600)
    fill(made)
    return made


def fill(made: Pipeline) -> None:
    tagged = facts("alerts", 1, tags={"token": ["SOL"]})
    refused = verdict("broken", accepted=False, problems=BOTH_PROBLEMS, job_digest=None)
    with made.writer() as writer:
        made.judged(verdict("job-1", tagged, meta={"note": "x"}))
        writer.drain()
        made.judged(verdict("job-2", tagged, run_id="run-2", producer="others"))
        writer.drain()
        made.judged(refused, files={"x.parquet": b"no"})
        made.judged(verdict("waits", facts("late", 2, inputs=["job:later/x"])))
        writer.drain()
    made.stage("fresh", table(3), run_id="run-3", kind="other")


@pytest.fixture
def own(tmp_path: Path) -> Pipeline:
    """The same, for tests that change it."""
    made = Pipeline(tmp_path / "lake", lineage_wait_s=600)
    fill(made)
    return made


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "trades.parquet"
    pq.write_table(table(7), path)
    return path
