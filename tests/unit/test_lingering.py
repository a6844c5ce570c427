"""A writer that was woken early waits a little for what is being judged."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.pipeline import Pipeline, table

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path)


def test_a_drain_lingers_for_what_is_being_judged_and_for_nothing_else(pipe: Pipeline) -> None:
    with pipe.writer() as writer:
        pipe.stage("slow", table(1))
        judge = threading.Timer(0.1, pipe.judge)
        judge.start()
        assert writer.drain(budget_s=60, linger_s=60).jobs == 1
        judge.join()
        started_s = time.monotonic()
        assert writer.drain(budget_s=60, linger_s=60).jobs == 0
        assert time.monotonic() - started_s < 10


def test_it_lingers_no_longer_than_it_was_told(pipe: Pipeline) -> None:
    with pipe.writer() as writer:
        pipe.stage("unjudged", table(1))
        started_s = time.monotonic()
        assert writer.drain(budget_s=60, linger_s=0.05).jobs == 0
        assert 0.05 <= time.monotonic() - started_s < 10


def test_what_becomes_ready_while_a_drain_looks_is_not_left_behind(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pipe.writer() as writer:
        while writer.drain().more:
            pass  # views, so that nothing else keeps it going
        pipe.stage("late", table(1))
        look = writer._commit_ready

        def judged_behind_its_back() -> tuple[int, int]:
            seen = look()
            pipe.judge()
            return seen

        monkeypatch.setattr(writer, "_commit_ready", judged_behind_its_back)
        assert writer.drain(budget_s=60, linger_s=60).jobs == 1
