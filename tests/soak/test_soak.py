"""A few seconds of `make soak`, and proof that it notices what it is there to notice."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from bus.client import Bus
from bus.model import JobState
from tests.soak.campaign import Options, run
from tests.soak.check import check
from tests.soak.jobs import Ack, File, note

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.campaign import Campaign
    from tests.soak.processes import Place

SECONDS = 2.0


def forget_a_job(place: Place) -> None:
    """An acknowledged job that nobody ever saw again."""
    note(place.folder / "acks-9.jsonl", Ack("p9-1-1", "gone", [File("t0", 1, "0" * 64)]))


def alter_an_object(place: Place) -> None:
    path = next(Bus(place.settings).lake.all_objects())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


def lose_a_receipt(place: Place) -> None:
    lake = Bus(place.settings).lake
    committed = lake.listing(JobState.COMMITTED)[0].name
    (lake.processed / committed / "receipt.json").unlink()


def leave_a_job_behind(place: Place) -> None:
    lake = Bus(place.settings).lake
    committed = lake.listing(JobState.COMMITTED)[0].name
    os.rename(lake.processed / committed, lake.ready / committed)  # noqa: PTH104 - as a crash would


def tell_other_bytes(place: Place) -> None:
    lake = Bus(place.settings).lake
    path = lake.processed / lake.listing(JobState.COMMITTED)[0].name / "receipt.json"
    told = json.loads(path.read_bytes())
    told["artifacts"][0]["rows"] += 1
    path.write_text(json.dumps(told))


HARMS: list[tuple[Callable[[Place], None], str]] = [
    (forget_a_job, "lost"),
    (lose_a_receipt, "lost"),
    (leave_a_job_behind, "lost"),
    (tell_other_bytes, "altered"),
    (alter_an_object, "altered"),
]


def test_a_few_seconds_of_random_kills_lose_double_and_alter_nothing(
    tmp_path: Path, campaign: Campaign
) -> None:
    options = Options(SECONDS, campaign.seed, light_kills_per_s=10.0, real=False, least=10)
    outcome = run(tmp_path, options)
    found = outcome.findings
    assert found.violations == []
    assert sum(outcome.kills.values()) >= 10
    assert found.acknowledged >= 10
    assert found.committed > 0
    line = str(outcome)
    assert f"{sum(outcome.kills.values()):,} kills, {found.acknowledged:,} submissions" in line
    assert "0 lost, 0 doubled, 0 altered, 0 other findings" in line
    campaign.record(kills=sum(outcome.kills.values()), acknowledged=found.acknowledged)

    it_would_notice(outcome.place)


def it_would_notice(place: Place) -> None:
    """Harm is done one after the other to the same lake: each adds to what is found."""
    before = check(place, whole=False)
    for harm, where in HARMS:
        harm(place)
        after = check(place, whole=False)
        assert len(getattr(after, where)) > len(getattr(before, where)), harm.__name__
        before = after
