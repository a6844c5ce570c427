"""The status as metrics: what Prometheus reads is what the status says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bus import health
from tests.pipeline import Pipeline, table

if TYPE_CHECKING:
    from pathlib import Path

_LINE = re.compile(r'^bus_[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? -?[0-9.e+-]+$')


def read(text: str) -> dict[str, float]:
    """`name{labels}` -> value; every line must be well formed, and each family declared once."""
    found = {}
    declared: list[str] = []
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            declared.append(line.split()[2])
        elif not line.startswith("#"):
            assert _LINE.match(line), line
            name, _, value = line.rpartition(" ")
            assert name.partition("{")[0] in declared
            found[name] = float(value)
    assert len(declared) == len(set(declared))
    return found


def test_metrics_say_what_the_status_says(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path / "lake")
    pipe.stage("done", table(1))
    pipe.run()
    pipe.stage("waits", table(2))
    found = health.status(pipe.lake, pipe.settings)
    metrics = read(health.prometheus(found))
    assert metrics['bus_jobs{state="staged"}'] == 1
    for state, backlog in found.jobs.items():
        assert metrics[f'bus_jobs{{state="{state}"}}'] == backlog.count
    assert metrics['bus_commit_seq{view="catalog"}'] == 1
    assert metrics["bus_writer_up"] == 0
    assert metrics["bus_redis_up"] == 0
    assert metrics["bus_damaged_artifacts"] == 0
    assert metrics["bus_disk_free_bytes"] > 1e6
    assert metrics["bus_up"] == float(found.ok)
    assert not any("queue_depth" in name for name in metrics), "nobody knows without Redis"
