"""The command line against a running bus, and the commands that run one."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from bus import cli
from bus.broker import Endpoint, write_endpoint
from bus.client import Bus
from bus.lake import MANIFEST, Lake
from bus.settings import Settings
from bus.supervisor import processes, valkey
from tests.jobs import small_table
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.xdist_group("bus")

REPOSITORY = Path(__file__).parents[2]
ROLES = ("worker", "writer", "pump", "beat")
MINE = ["--kind", "things", "--producer", "shell"]
Answer = tuple[int, Any]


@pytest.fixture
def on(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run a command on a lake with --json, in this process: its exit code and its document."""

    def run(lake: Path, *words: object) -> Answer:
        capsys.readouterr()
        status = cli.run([*map(str, words), "--lake", str(lake), "--json"])
        return status, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def bus(live_bus: Bus, on: Callable[..., Answer]) -> Callable[..., Answer]:
    """The same on the lake of the running bus."""
    return partial(on, live_bus.lake.root)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "table.parquet"
    pq.write_table(small_table(start=len(str(tmp_path))), path)
    return path


def command(*words: object, lake: Path) -> list[str]:
    return [sys.executable, "-m", "bus", *map(str, words), "--lake", str(lake)]


def finished(*words: object, lake: Path) -> subprocess.CompletedProcess[str]:
    """A command as a process of its own."""
    return subprocess.run(
        command(*words, lake=lake),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ── on a running bus ──────────────────────────────────────────────────────────────────────────


def test_a_submitted_file_is_committed_catalogued_and_found_again(
    bus: Callable[..., Answer], parquet: Path
) -> None:
    submit = ["submit", parquet, *MINE, "--run-id", "cli-1", "--wait", "--timeout", "20"]
    status, receipt = bus(*submit, "--artifact-id", "one", "--tag", "token=SOL")
    assert status == 0
    assert receipt["status"] == "committed"
    (artifact,) = receipt["artifacts"]

    _, shown = bus("path", "cli-1/one")
    assert shown["path"] == artifact["path"]
    assert pq.read_table(shown["path"]) == pq.read_table(parquet)
    _, facts = bus("show", artifact["artifact_id"][:13])
    assert facts["tags"] == {"token": ["SOL"]}
    _, rows = bus("jobs", "--run-id", "cli-1")
    assert [(row["job_id"], row["state"]) for row in rows] == [(receipt["job_id"], "committed")]
    assert bus("runs", "--producer", "shell", "--kind", "things")[0] == 0

    sql = "SELECT name, rows FROM catalog.artifacts_f WHERE run_id = 'cli-1'"
    found = wait_until(lambda: bus("query", sql)[1]["rows"], what="its row in the catalog")
    assert found == [{"name": "one", "rows": 3}]


def test_a_rejected_job_is_explained_mended_and_sent_again(
    bus: Callable[..., Answer], live_bus: Bus, tmp_path: Path, parquet: Path
) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(parquet.read_bytes()[:-7])
    status, document = bus("submit", broken, *MINE, "--job-id", "mend-me", "--wait")
    assert status == 1
    codes = [problem["code"] for problem in document["error"]["problems"]]
    assert codes
    assert set(codes) <= {"E307", "E308"}

    _, (rejection,) = bus("rejected", "mend-me")
    assert [p["code"] for p in rejection["problems"]] == codes
    directory = Path(rejection["path"])
    assert directory == live_bus.lake.rejected / "mend-me"
    shutil.copy(parquet, directory / "000.parquet.new")
    (directory / "000.parquet.new").rename(directory / "000.parquet")
    manifest = json.loads((directory / MANIFEST).read_text())
    for measured in ("sha256", "size_bytes"):
        manifest["artifacts"][0].pop(measured)
    (directory / MANIFEST).write_text(json.dumps(manifest))

    status, receipt = bus("retry", "mend-me", "--wait", "--timeout", "20")
    assert status == 0, receipt
    assert receipt["artifacts"][0]["rows"] == 3
    assert bus("rejected", "mend-me")[0] == 1
    _, shown = bus("show", "mend-me")
    assert [row["state"] for row in shown["submissions"]] == ["committed", "rejected"]


def test_status_and_health_know_every_process_of_a_running_bus(
    bus: Callable[..., Answer],
) -> None:
    wait_until(lambda: all(bus("health", role)[0] == 0 for role in ROLES), what="all show life")
    status, document = bus("status")
    assert status == 0
    assert document["running"]
    assert document["writer"]["state"] == "alive"
    assert document["queues"]["answers"]
    alive = {process["role"] for process in document["processes"] if process["alive"]}
    assert alive == {"ingest", "writer", "pump", "beat", "redis"}
    assert [f for f in document["findings"] if f["bad"]] == []


def test_views_are_rebuilt_by_the_running_writer(
    bus: Callable[..., Answer], live_bus: Bus, parquet: Path
) -> None:
    submit = ["submit", parquet, *MINE, "--run-id", "before", "--wait"]
    assert bus(*submit)[0] == 0
    sql = "SELECT run_id, name FROM catalog.artifacts_f WHERE run_id = 'before'"
    rows = wait_until(lambda: bus("query", sql)[1]["rows"], what="its row in the catalog")
    for view in (live_bus.lake.manifest_db.parent, live_bus.lake.catalog_db):
        shutil.rmtree(view) if view.is_dir() else view.unlink()
    status, document = bus("rebuild", "--timeout", "30")
    assert status == 0, document
    assert document["seq"] >= 1
    assert not live_bus.lake.rebuild_request.exists()
    assert bus("query", sql)[1]["rows"] == rows
    status, report = bus("verify", "--quick")
    assert report["findings"] == []
    assert status == 0
    assert bus(*submit)[0] == 0  # and it goes on committing


def test_what_was_replaced_is_collected_and_backed_up_while_the_bus_runs(
    bus: Callable[..., Answer], live_bus: Bus, tmp_path: Path
) -> None:
    kind: dict[str, Any] = {"kind": "collected", "producer": "shell", "logical_key": "k"}
    first = live_bus.submit(small_table(start=501), **kind).wait(30).artifacts[0]
    backup = bus("backup", tmp_path / "backup")
    assert (backup[0], backup[1]["findings"]) == (0, [])
    live_bus.submit(small_table(start=502), **kind, supersedes=first.artifact_id).wait(30)
    assert bus("policy", "collected", "--keep-last", "1", "--wait", "--timeout", "30")[0] == 0
    status, plan = bus("gc", "--grace-days", "0", "--apply", "--wait", "--timeout", "30")
    assert status == 0
    assert [answer["status"] for answer in plan["answers"]] == ["committed"] * len(plan["jobs"])
    wait_until(lambda: not Path(first.path).exists(), what="the object in the trash")
    assert bus("show", first.artifact_id)[1]["status"] == "purged"
    assert bus("gc", "--undo", first.artifact_id, "--wait", "--timeout", "30")[0] == 0
    assert Path(first.path).exists()
    assert bus("backup", tmp_path / "backup")[1]["copied_objects"] >= 1
    assert bus("backup", tmp_path / "backup", "--verify")[0] == 0
    assert bus("verify", "--quick")[1]["findings"] == []


def test_an_export_is_built_by_hand_while_the_bus_runs(bus: Callable[..., Answer]) -> None:
    wait_until(lambda: bus("query", "SELECT 1 AS x")[0] == 0, what="a catalog")
    status, (export,) = bus("export", "schema_views")
    assert status == 0
    assert export["state"] in {"ok", "stale"}
    assert pq.read_metadata(export["path"]).num_rows == export["rows"] > 0


def test_redis_cli_users_without_redis_cli_ring_for_a_job(
    bus: Callable[..., Answer], live_bus: Bus
) -> None:
    silent = Bus(live_bus.settings, ring=lambda _: False)
    job = silent.submit(small_table(start=77), kind="things", producer="shell")
    status, length = bus("redis", "LPUSH", "bus:notify", json.dumps({"job_id": job.job_id}))
    assert (status, length >= 1) == (0, True)
    assert bus("wait", job.job_id, "--timeout", "20")[1]["status"] == "committed"


def test_the_doctor_finds_the_bus_in_order(bus: Callable[..., Answer]) -> None:
    status, document = bus("doctor")
    grades = {check["check"]: check["grade"] for check in document["checks"]}
    assert status == 0
    assert grades["redis"] == "ok"


# ── running one ───────────────────────────────────────────────────────────────────────────────


@contextmanager
def started(*words: object, lake: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs until it is stopped; killed at the end if it is still there."""
    settings = Settings(lake=lake)
    process = subprocess.Popen(
        command(*words, lake=lake),
        cwd=REPOSITORY,
        env=processes.environment(settings) | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_up_says_what_runs_refuses_a_second_and_down_stops_it(
    tmp_path: Path, on: Callable[..., Answer]
) -> None:
    lake = tmp_path / "lake"
    with started("up", "--workers", "1", "--json", lake=lake) as up:
        assert up.stdout is not None
        running = json.loads(up.stdout.readline())
        assert set(running["processes"]) == {"redis", "ingest", "writer", "pump", "beat"}
        assert running["lake"] == str(lake)
        assert running["flower"] is None

        second = finished("up", lake=lake)
        assert second.returncode == 2
        assert second.stdout == ""
        assert second.stderr.startswith("E502")
        assert str(running["pid"]) in second.stderr

        assert on(lake, "status")[1]["writer"]["state"] == "alive"
        assert on(lake, "down") == (0, {"stopped": True})
        out, err = up.communicate(timeout=10)
        assert (up.returncode, out, err) == (0, "", "")
    assert on(lake, "down") == (0, {"stopped": False})
    assert on(lake, "status")[1]["writer"]["state"] == "not started"


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A server of one's own, as a deployment has."""
    own = Lake(tmp_path / "redis")
    server = valkey.prepare(own)
    process = subprocess.Popen(server.command, cwd=own.redis_data, stdout=subprocess.DEVNULL)
    wait_until(lambda: valkey.answers(server.url))
    yield server.url
    process.kill()
    process.wait()


def test_the_processes_run_one_by_one_as_compose_and_systemd_start_them(
    tmp_path: Path,
    redis_url: str,
    parquet: Path,
    on: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lake = tmp_path / "lake"
    monkeypatch.setenv("BUS_REDIS_URL", redis_url)
    Lake(lake).create()
    assert on(lake, "health", "writer")[0] == 1
    with ExitStack() as stack:
        running = {
            role: stack.enter_context(started(role, lake=lake, BUS_REDIS_URL=redis_url))
            for role in ROLES
        }
        status, receipt = on(lake, "submit", parquet, *MINE, "--wait", "--timeout", "60")
        assert (status, receipt["status"]) == (0, "committed")
        for role in ROLES:
            wait_until(lambda role=role: on(lake, "health", role)[0] == 0, 30, what=role)  # type: ignore[misc]
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        for role, process in running.items():
            process.communicate(timeout=20)
            assert process.returncode == 0, role
    assert on(lake, "health", "writer")[0] == 1


@pytest.mark.parametrize("role", ["worker", "writer", "beat", "flower"])
def test_a_process_without_a_redis_says_so_at_once(
    role: str, tmp_path: Path, on: Callable[..., Answer]
) -> None:
    Lake(tmp_path / "lake").create()
    status, document = on(tmp_path / "lake", role)
    assert status == 2
    assert document["error"]["code"] == "E501"


def test_a_pump_without_a_redis_says_so_at_once(tmp_path: Path) -> None:
    Lake(tmp_path / "lake").create()
    said = finished("pump", lake=tmp_path / "lake")  # it sets signal handlers: not in our process
    assert said.returncode == 2
    assert said.stderr.startswith("E501")


def test_an_endpoint_that_outlived_its_bus_is_no_bus(
    tmp_path: Path, on: Callable[..., Answer]
) -> None:
    lake = Lake(tmp_path / "lake")
    lake.create()
    left = Endpoint("redis://127.0.0.1:1/0", "", 1, "2026-01-08T05:12:33Z", {"writer": 1})
    write_endpoint(lake, left)
    _, document = on(lake.root, "status")
    assert document["running"] is False
    assert document["writer"]["state"] == "not started"
