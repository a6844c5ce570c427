"""Code that was written for the documents' `artifact_store` goes on to work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from bus.errors import Refused
from bus.producers.artifact_store import publish_dataframe

if TYPE_CHECKING:
    from bus.client import Bus

pytestmark = pytest.mark.xdist_group("bus")
SCRIPT = Path(__file__).parents[2] / "scripts" / "bus_submit.py"


def published(bus: Bus, rows: list[int], key: str, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "artifact_type": "signals",
        "schema_version": 1,
        "logical_key": key,
        "df": pd.DataFrame({"x": rows}),
        "tags": [("res", "1m"), ("res", "5m")],
        "input_artifact_ids": [],
        "writer_name": "exporter",
        "writer_version": "0.1.0",
        "git_commit": "1f3a9c0e",
        "git_dirty": False,
        "params": {"interval": "1m"},
    }
    manifest_db, artifacts = bus.lake.root / "manifest" / "manifest.sqlite", bus.lake.artifacts
    return publish_dataframe(manifest_db, artifacts, **(fields | changes))


def test_a_data_frame_is_published_and_again_is_a_duplicate(live_bus: Bus) -> None:
    first = published(live_bus, [1, 2], "store=1")
    assert first["deduped"] is False
    sidecar = first["sidecar"]
    assert sidecar["artifact_id"] == first["artifactId"]
    assert sidecar["tags"] == {"res": ["1m", "5m"]}
    assert sidecar["provenance"]["writer"]["git_commit"] == "1f3a9c0e"
    again = published(live_bus, [1, 2], "store=1", params={"interval": "5m"})
    assert (again["deduped"], again["mode"]) == (True, "file_hash")
    assert again["existingArtifactId"] == first["artifactId"]


def test_what_a_contract_refuses_is_an_exception_with_every_problem(live_bus: Bus) -> None:
    with pytest.raises(Refused) as refused:
        published(live_bus, [1], "store=2", artifact_type="ohlcv_slice")
    assert len(refused.value.problems) > 1


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_publish_csv_takes_the_documents_flags(live_bus: Bus, tmp_path: Path) -> None:
    csv = tmp_path / "slice.csv"
    csv.write_text("x,y\n1,a\n2,b\n")
    root = live_bus.lake.root
    words = [
        *("-m", "bus", "publish-csv", "--manifest-db", root / "manifest" / "manifest.sqlite"),
        *("--manifest-sql", "sql/manifest_v1.sql", "--artifacts-root", root / "artifacts"),
        *("--artifact-type", "slices", "--schema-version", 1, "--logical-key", "token=So1"),
        *("--csv", csv, "--writer-name", "slice_exporter", "--writer-version", "0.1.0"),
        *("--git-commit", "1f3a9c0e", "--params-json", '{"resolution": "1s"}'),
        *("--tag", "res=1s", "--tag", "kind=slices", "--json"),
    ]
    said = json.loads(run(*words).stdout)
    assert (said["deduped"], said["rows"]) == (False, 2)
    assert json.loads(run(*words).stdout)["existingArtifactId"] == said["artifactId"]
    csv.write_text("x,y\n1,a\n")
    assert run(*words).returncode == 0


def test_the_documents_script_is_an_alias_of_submit(live_bus: Bus, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"x": [1]}).to_parquet(path)
    done = run(
        *(SCRIPT, "--bus-root", live_bus.lake.root / "bus", "--job-id", "by-script"),
        *("--run-id", "run-9", "--producer", "baseline", "--kind", "signals"),
        *("--artifact-id", "signals", "--parquet", path, "--rows", "1", "--meta-json", "{}"),
    )
    assert done.returncode == 0, done.stderr
    assert live_bus.wait("by-script", 30).artifacts[0].rows == 1
