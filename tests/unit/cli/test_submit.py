"""`bus submit`: every flag reaches the manifest, and nothing bad is staged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from bus.lake import MANIFEST, Lake
from bus.model import JobManifest, JobState
from bus.specs import Registry
from tests.pipeline import table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.said import Said


def staged(lake: Lake, job_id: str) -> JobManifest:
    return JobManifest.from_bytes((lake.inbox / job_id / MANIFEST).read_bytes())


def test_with_no_bus_a_submission_waits_in_the_inbox_and_says_so(
    tmp_path: Path, parquet: Path, bus: Callable[..., Said]
) -> None:
    said = bus("submit", parquet, "--kind", "trades", "--lake", tmp_path / "new")
    assert said.status == 0
    assert "No bus answers" in said.err
    assert "inbox" in said.err
    job_id = said.out.strip()
    lake = Lake(tmp_path / "new")
    assert lake.state_of(job_id) is JobState.STAGED
    found = staged(lake, job_id)
    assert (found.producer, found.kind, len(found.artifacts)) == ("manual", "trades", 1)
    assert found.artifacts[0].artifact_id == "trades"


def test_the_documents_flags_reach_the_manifest(tmp_path: Path, bus: Callable[..., Said]) -> None:
    spec = Registry.built_in().find("alerts_std", 1)
    assert spec is not None
    parquet = tmp_path / "alerts.parquet"
    pq.write_table(spec.schema.empty_table(), parquet)
    said = bus(
        *("submit", "--bus-root", tmp_path / "data" / "bus", "--parquet", parquet, "--json"),
        *("--job-id", "2026-01-08T05-12-33Z__baseline__alerts", "--run-id", "run-9"),
        *("--producer", "baseline", "--kind", "alerts_std", "--artifact-id", "alerts_std"),
        *("--schema-hint", "canon.alerts_std", "--rows", "3", "--meta-json", '{"git_sha": "1f3"}'),
    )
    assert said.json["job_id"] == "2026-01-08T05-12-33Z__baseline__alerts"
    assert said.json["rung"] is False
    found = staged(Lake(tmp_path / "data"), said.json["job_id"])
    assert (found.run_id, found.producer, found.kind) == ("run-9", "baseline", "alerts_std")
    assert found.meta == {"git_sha": "1f3"}
    (artifact,) = found.artifacts
    assert (artifact.artifact_id, artifact.schema_hint) == ("alerts_std", "canon.alerts_std")
    assert artifact.rows == 3


def test_the_other_flags_reach_the_manifest(
    tmp_path: Path, parquet: Path, bus: Callable[..., Said]
) -> None:
    said = bus(
        *("submit", parquet, "--kind", "x", "--lake", tmp_path / "l", "--job-id", "j"),
        *("--tag", "token=SOL", "--tag", "token=WIF", "--tag", "k=a=b", "--schema-version", "2"),
        *("--logical-key", "token=SOL", "--input", "name:other", "--input", "job:j/x"),
        *("--supersedes", "job:old/x", "--after", "job-0"),
    )
    assert said.status == 0
    found = staged(Lake(tmp_path / "l"), "j")
    (artifact,) = found.artifacts
    assert artifact.tags == {"token": ["SOL", "WIF"], "k": ["a=b"]}
    assert (artifact.schema_version, artifact.logical_key) == (2, "token=SOL")
    assert artifact.inputs == ["name:other", "job:j/x"]
    assert artifact.supersedes == ["job:old/x"]
    assert found.after == ["job-0"]


def test_made_from_nothing_differs_from_not_said(
    tmp_path: Path, parquet: Path, bus: Callable[..., Said]
) -> None:
    lake = Lake(tmp_path / "l")
    for job_id, flags in (("silent", []), ("said", ["--no-inputs"])):
        bus("submit", parquet, "--kind", "x", "--lake", lake.root, "--job-id", job_id, *flags)
    assert staged(lake, "silent").artifacts[0].inputs is None
    assert staged(lake, "said").artifacts[0].inputs == []


def test_several_files_make_one_job(
    tmp_path: Path, parquet: Path, bus: Callable[..., Said]
) -> None:
    other = tmp_path / "fills.parquet"
    pq.write_table(table(9), other)
    lake = Lake(tmp_path / "l")
    base = ["--kind", "x", "--lake", lake.root]
    bus("submit", parquet, other, *base, "--job-id", "by-file")
    bus("submit", "--parquet", parquet, "--parquet", other, *base, "--job-id", "by-name",
        "--artifact-id", "t", "--artifact-id", "f", "--rows", "3", "--rows", "3")  # fmt: skip
    assert [a.artifact_id for a in staged(lake, "by-file").artifacts] == ["trades", "fills"]
    assert [a.artifact_id for a in staged(lake, "by-name").artifacts] == ["t", "f"]


def test_metadata_may_come_from_a_file(
    tmp_path: Path, parquet: Path, bus: Callable[..., Said]
) -> None:
    (tmp_path / "meta.json").write_text('{"params": {"interval": "1m"}}')
    flags = ["--meta-json", f"@{tmp_path / 'meta.json'}", "--job-id", "j"]
    assert bus("submit", parquet, "--kind", "x", "--lake", tmp_path / "l", *flags).status == 0
    assert staged(Lake(tmp_path / "l"), "j").meta == {"params": {"interval": "1m"}}


@pytest.mark.parametrize(
    ("flags", "place", "text"),
    [
        (["--meta-json", "{"], "--meta-json", "not JSON"),
        (["--meta-json", "[1]"], "--meta-json", "not a JSON object"),
        (["--tag", "token"], "--tag", "'token' is not k=v"),
        (["--artifact-id", "a", "--artifact-id", "b"], "--artifact-id", "2 times for 1 files"),
        (["--no-inputs", "--input", "name:x"], "--no-inputs", "--input was given"),
        (["--bus-root", "x/bus"], "", "name the same thing"),
        (["--artifact-id", "no/slash"], "artifact_id", "not an identifier"),
        (["--job-id", "../up"], "job_id", "not a job id"),
    ],
)
def test_a_bad_flag_of_submit_stages_nothing(
    flags: list[str],
    place: str,
    text: str,
    tmp_path: Path,
    parquet: Path,
    bus: Callable[..., Said],
) -> None:
    said = bus("submit", parquet, "--kind", "x", "--lake", tmp_path / "l", *flags)
    assert (said.status, said.out) == (2, "")
    assert place in said.err
    assert text in said.err
    assert list((tmp_path / "l").glob("bus/inbox/*")) == []


def test_one_artifact_to_supersede_and_several_files_contradict_each_other(
    parquet: Path, bus: Callable[..., Said]
) -> None:
    said = bus("submit", parquet, parquet, "--kind", "x", "--supersedes", "y")
    assert said.status == 2
    assert "--supersedes" in said.err


def test_waiting_with_no_bus_ends_in_time_and_the_job_is_safe(
    tmp_path: Path, parquet: Path, bus: Callable[..., Said]
) -> None:
    flags = ["--wait", "--timeout", "0.1", "--job-id", "j"]
    said = bus("submit", parquet, "--kind", "x", "--lake", tmp_path / "l", *flags)
    assert said.status == 1
    assert "E506" in said.err
    assert Lake(tmp_path / "l").state_of("j") is JobState.STAGED
