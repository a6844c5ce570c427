"""A bus that starts before a deep inbox: how soon it sees what waits, and commits the first of it.

Once by its parts, as the promise is made: a sweep, a worker, a writer that open the lake. Once as a
whole bus, from the moment when all its processes have shown life.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from bus.intake import DUE_MAX, Intake, due
from bus.lake import COMMIT, MANIFEST, Lake
from bus.model import JobState
from bus.settings import Settings
from bus.specs import Registry
from bus.supervisor import running
from bus.writer import Writer
from tests.jobs import manifest_of, parquet_bytes, small_table
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.campaign import Campaign

#: What is promised, for 20,000 jobs.
SEEN_S = 1.0
COMMITTED_S = 2.0
#: How long a worker of the bus takes jobs before it tells the writer of the first.
_FIRST_SLICE_S = 0.05


def fill_inbox(lake: Lake, count: int) -> None:
    """So many committed jobs as a program without our client makes them, of one file's bytes."""
    lake.create()
    shared = lake.root / "shared.parquet"
    data = parquet_bytes(small_table())
    shared.write_bytes(data)
    entry = {"artifact_id": "a", "format": "parquet", "relpath": "a.parquet"}
    entry |= {"sha256": hashlib.sha256(data).hexdigest()}
    template = json.dumps(manifest_of("JOB", [], artifacts=[entry]))
    for number in range(count):
        job_id = f"job-{number:06d}"
        directory = f"{lake.inbox}/{job_id}"
        os.mkdir(directory)  # noqa: PTH102 - 20,000 times
        os.link(shared, f"{directory}/a.parquet")
        manifest = template.replace("JOB", job_id).encode()
        marker = {"manifest_sha256": hashlib.sha256(manifest).hexdigest(), "submission_id": job_id}
        for name, content in ((MANIFEST, manifest), (COMMIT, json.dumps(marker).encode())):
            with open(f"{directory}/{name}", "wb") as file:  # noqa: PTH123 - likewise
                file.write(content)


@pytest.mark.timeout(300)
def test_a_deep_inbox_is_seen_and_its_first_commit_made_soon_after_the_start(
    tmp_path: Path, campaign: Campaign
) -> None:
    count = campaign.size(short=2000, long=20_000)
    settings = Settings.load(tmp_path)
    lake, registry = Lake(tmp_path), Registry.load(settings)
    fill_inbox(lake, count)

    started_s = time.perf_counter()
    found = due(lake)
    seen_s = time.perf_counter() - started_s
    assert len(found.ingest) == DUE_MAX
    assert found.ingest == sorted(found.ingest)  # the oldest first

    started_s = time.perf_counter()
    taken = Intake(lake, settings, registry).drain(found.ingest[0], _FIRST_SLICE_S)
    judged_s = time.perf_counter() - started_s
    with Writer.open(lake, settings, registry) as writer:
        drained = writer.drain(0.0)
        committed_s = time.perf_counter() - started_s
    assert taken.more
    assert drained.jobs == len(taken.judged) > 0
    assert lake.count(JobState.COMMITTED) == drained.jobs

    campaign.record(
        jobs=count,
        seen_s=round(seen_s, 3),
        judged_s=round(judged_s, 3),
        first_commit_s=round(committed_s, 3),
    )
    assert seen_s <= SEEN_S
    assert committed_s <= COMMITTED_S


@pytest.mark.timeout(300)
@pytest.mark.xdist_group("bus")
def test_a_whole_bus_goes_to_work_on_a_deep_inbox_at_once(
    tmp_path: Path, campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    settings = Settings.load(tmp_path / "lake", workers=2)
    lake = Lake(settings.lake)
    count = campaign.size(short=500, long=20_000)
    fill_inbox(lake, count)
    started_s = time.time()
    with running(settings):
        ready_s = time.time() - started_s
        first = lake.record_path(1)
        wait_until(first.exists, what="the first commit")
        committed_s = first.stat().st_mtime - started_s
    campaign.record(jobs=count, ready_s=round(ready_s, 3), first_commit_s=round(committed_s, 3))
    assert committed_s - ready_s <= COMMITTED_S
