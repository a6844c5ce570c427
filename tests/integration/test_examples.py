"""The examples do what they say, on a running bus."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.waiting import wait_until

if TYPE_CHECKING:
    from bus.client import Bus

pytestmark = pytest.mark.xdist_group("bus")
EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*words: object) -> str:
    command = [*map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def test_producers_in_python_and_in_shell_meet_in_one_query(live_bus: Bus, tmp_path: Path) -> None:
    path = Path(run(sys.executable, EXAMPLES / "producer.py", live_bus.lake.root))
    assert pq.read_metadata(path).num_rows == 60
    own = tmp_path / "candles.parquet"
    pq.write_table(pa.table({"ts": [1, 2], "close": [3.0, 4.0]}), own)
    job_id = run("sh", EXAMPLES / "producer.sh", live_bus.lake.root, own)
    assert live_bus.wait(job_id, 60).artifacts[0].rows == 2
    both = (
        "SELECT producer, rows FROM catalog.artifacts_f WHERE kind = 'example_candles' ORDER BY 1"
    )
    expected = [
        {"producer": "python-example", "rows": 60},
        {"producer": "shell-example", "rows": 2},
    ]
    wait_until(lambda: live_bus.query(both) == expected)
