"""Lineage through a running bus: jobs that overtake what they are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bus.errors import Rejected
from bus.model import JobState
from tests.jobs import small_table

if TYPE_CHECKING:
    from bus.client import Bus, Job

pytestmark = pytest.mark.xdist_group("bus")

LINKS = 12
PATIENCE_S = 30.0


def test_a_chain_of_jobs_in_reverse_order_is_committed_and_delays_nobody(live_bus: Bus) -> None:

    def submit(number: int) -> Job:
        return live_bus.submit(
            small_table(start=1000 + number),
            kind="links",
            producer="tester",
            job_id=f"link-{number}",
            name="link",
            inputs=[f"job:link-{number - 1}/link"] if number else [],
        )

    jobs = [submit(number) for number in reversed(range(1, LINKS))]
    # All of them wait, and an ordinary job goes by.
    live_bus.submit(small_table(start=2000), kind="things", producer="tester").wait(PATIENCE_S)
    assert {job.status for job in jobs} <= {JobState.STAGED, JobState.VALIDATING, JobState.READY}
    receipts = [job.wait(PATIENCE_S) for job in (*jobs, submit(0))]
    assert {receipt.status for receipt in receipts} == {"committed"}
    found = live_bus.lineage(f"job:link-{LINKS - 1}/link", "up")
    assert [node.name for node in found.nodes.values()] == ["link"] * LINKS
    assert len(found.edges) == LINKS - 1
    assert live_bus.impact("job:link-0/link").artifacts == LINKS - 1


def test_an_artifact_that_would_descend_from_itself_is_refused_by_name(live_bus: Bus) -> None:
    table = small_table(start=3000)
    first = live_bus.submit(table, kind="rings", producer="tester", name="a", logical_key="k")
    a = first.wait(PATIENCE_S).artifacts[0].artifact_id
    made = live_bus.submit(small_table(start=3001), kind="rings", producer="tester", inputs=a)
    b = made.wait(PATIENCE_S).artifacts[0].artifact_id
    again = live_bus.submit(
        table, kind="rings", producer="tester", name="a", logical_key="k", inputs=b
    )
    with pytest.raises(Rejected, match=f"name:a → rings .* \\({b}\\) → name:a") as caught:
        again.wait(PATIENCE_S)
    assert caught.value.code == "E402"
    assert len(live_bus.lineage(a).edges) == 1
