"""Jobs that come before what they are made from, and the writer: nobody is refused, nobody waits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from bus import writer as writer_module
from bus.model import JobState
from tests.pipeline import LightCatalog, Pipeline, facts, id_of, verdict

if TYPE_CHECKING:
    from pathlib import Path

    from bus.lake import Waiting

NOWHERE = "00000000-0000-5000-8000-000000000000"


@pytest.fixture(autouse=True)
def light_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog has tests of its own."""
    monkeypatch.setattr(writer_module, "Catalog", LightCatalog)


def test_a_job_that_waits_for_many_is_read_again_when_the_last_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline(tmp_path, lineage_wait_s=600)
    sources = [facts(f"s{number}", number) for number in range(4)]
    pipe.judged(verdict("all", facts("all", 9, inputs=[id_of(s) for s in sources])))
    with pipe.writer() as writer:
        writer.drain()
        read: list[str] = []
        real = writer._read

        def noted(entry: Waiting) -> Any:
            read.append(entry.name)
            return real(entry)

        monkeypatch.setattr(writer, "_read", noted)
        for source in sources:
            pipe.judged(verdict(source.name, source))
            writer.drain()
    assert read == ["s0", "s1", "s2", "s3", "all"]
    assert pipe.state("all") is JobState.COMMITTED


def test_a_chain_that_came_in_reverse_is_one_commit_and_delays_nobody(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, lineage_wait_s=600)
    for number in reversed(range(20)):
        inputs = [f"job:link-{number - 1}/a"] if number else []
        pipe.judged(verdict(f"link-{number}", facts("a", number, inputs=inputs)))
    pipe.judged(verdict("lonely", facts("lonely", 50, inputs=[NOWHERE])))
    pipe.judged(verdict("other", facts("o", 51)))
    assert pipe.commit().jobs == 21
    (record,) = pipe.records()
    links = [job.job_id for job in record.jobs if job.job_id != "other"]
    assert links == [f"link-{number}" for number in range(20)]
    assert os.listdir(pipe.lake.ready) == ["lonely"]


def test_a_chain_that_came_in_reverse_and_late_is_not_refused(tmp_path: Path) -> None:
    # The writer was away for longer than jobs wait: what they waited for lies beside them.
    pipe = Pipeline(tmp_path, lineage_wait_s=0.0)
    for number in reversed(range(3)):
        inputs = [f"job:link-{number - 1}/a"] if number else []
        pipe.judged(verdict(f"link-{number}", facts("a", number, inputs=inputs)))
    pipe.commit()
    assert {str(pipe.state(f"link-{number}")) for number in range(3)} == {"committed"}
