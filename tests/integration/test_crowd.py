"""Many programs and many threads submit at once: every job is answered, once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bus.client import Job
from tests.integration.crowd import KIND, SHARED_JOB
from tests.waiting import wait_until

if TYPE_CHECKING:
    from bus.client import Bus
    from tests.campaign import Campaign

pytestmark = pytest.mark.xdist_group("bus")

REPOSITORY = Path(__file__).parents[2]
PROCESSES, THREADS = 8, 5
PATIENCE_S = 300.0
COUNTED = f"""SELECT count(*) AS jobs, count(DISTINCT job_id) AS ids,
                      (SELECT count(*) FROM catalog.artifacts_f WHERE kind = '{KIND}') AS uses,
                      (SELECT count(DISTINCT artifact_id) FROM catalog.artifacts_f
                       WHERE kind = '{KIND}') AS artifacts
               FROM catalog.jobs_f WHERE kind = '{KIND}' AND outcome = 'committed'"""


@pytest.mark.timeout(600)
def test_eight_programs_submit_at_once_and_no_receipt_is_lost_or_doubled(
    live_bus: Bus, campaign: Campaign
) -> None:
    count = campaign.size(short=5, long=40)  # 8 x 25 and 8 x 200
    command = [sys.executable, "-m", "tests.integration.crowd", str(live_bus.lake.root)]
    crowd = [
        subprocess.Popen(
            [*command, f"p{who}", str(THREADS), str(count)], cwd=REPOSITORY, stdout=subprocess.PIPE
        )
        for who in range(PROCESSES)
    ]
    said = [process.communicate(timeout=PATIENCE_S)[0] for process in crowd]
    assert [process.returncode for process in crowd] == [0] * PROCESSES

    jobs = [Job(live_bus, *pair) for line in said for pair in json.loads(line)]
    receipts = [job.wait(PATIENCE_S) for job in jobs]
    own = [receipt for receipt in receipts if receipt.job_id != SHARED_JOB]
    total = PROCESSES * THREADS * count
    assert len({receipt.job_id for receipt in own}) == len(own) == total
    assert len({receipt.artifacts[0].artifact_id for receipt in own}) == total
    shared = {r.seq: r.artifacts[0].artifact_id for r in receipts if r.job_id == SHARED_JOB}
    assert len(shared) == 1, "everybody was given the first receipt"

    everything = dict.fromkeys(("jobs", "ids", "uses", "artifacts"), total + 1)
    wait_until(lambda: live_bus.query(COUNTED) == [everything], what=str(everything))
    campaign.record(processes=PROCESSES, submissions=total, lost=0, doubled=0)
