"""`bus up` and the processes it starts: one a lake, restarted, drained, and never left behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from bus import broker, supervisor
from bus.client import Bus
from bus.errors import LakeBusy, Unavailable
from bus.lake import Lake
from bus.settings import Settings, last_lake_file
from bus.supervisor import Supervisor, processes, valkey
from tests.integration.conftest import processes_of
from tests.jobs import small_table
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bus.broker import Endpoint

pytestmark = pytest.mark.xdist_group("bus")

PATIENCE_S = 30.0
MINE: dict[str, Any] = {"kind": "things", "producer": "tester"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(lake=tmp_path / "lake", workers=1, sweep_interval_s=1.0)


@contextmanager
def up(settings: Settings, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`bus up` as a child of this test, ready; killed at the end if it is still there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bus.supervisor", "up", *options],
        env=processes.environment(settings),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        supervisor.wait_ready(settings, 45)
        yield process
    finally:
        process.kill()
        process.communicate()
        wait_until(lambda: processes_of(Lake(settings.lake)) == {}, what="children outlive it")


def endpoint_of(bus: Bus) -> Endpoint:
    found = broker.endpoint(bus.lake)
    assert found is not None
    return found


def submit(bus: Bus, number: int = 0) -> str:
    return bus.submit(small_table(start=number), **MINE).wait(PATIENCE_S).status


# ── one life ──────────────────────────────────────────────────────────────────────────────────


def test_a_bus_comes_up_serves_refuses_a_second_and_ends_with_code_0(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    started_s = time.monotonic()
    with up(settings, "--flower") as process:
        ready_s = time.monotonic() - started_s
        bus = Bus(settings)
        there = endpoint_of(bus)

        assert set(there.processes) == {"redis", "writer", "ingest", "pump", "beat", "flower"}
        assert there.pid == process.pid
        assert stat.S_IMODE(bus.lake.endpoint.stat().st_mode) == 0o600
        assert last_lake_file().read_text().strip() == str(bus.lake.root)
        another = settings.model_copy(update={"lake": tmp_path / "another"})
        with up(another):  # whoever names no lake still means the one that was there first
            assert last_lake_file().read_text().strip() == str(bus.lake.root)
        assert submit(bus) == "committed"
        assert ready_s < 15.0  # about 2 s on two idle cores

        no_password_on_a_command_line(bus, there)
        flower_wants_its_password(there, bus)

        second = subprocess.run(
            [sys.executable, "-m", "bus.supervisor", "up"],
            env=processes.environment(settings),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert second.returncode == 2
        assert "E502" in second.stderr
        assert str(process.pid) in second.stderr

        stopping_s = time.monotonic()
        process.terminate()
        assert process.wait(20) == 0
        assert time.monotonic() - stopping_s < 10.0
        assert processes_of(bus.lake) == {}
        assert not bus.lake.endpoint.exists()


def no_password_on_a_command_line(bus: Bus, there: Endpoint) -> None:
    password = there.url.split(":")[2].split("@")[0]
    assert there.flower is not None
    commands = " ".join(processes_of(bus.lake).values())
    assert "celery" in commands
    assert password not in commands
    assert there.flower["password"] not in commands


def flower_wants_its_password(there: Endpoint, bus: Bus) -> None:
    assert there.flower is not None
    url = there.flower["url"]
    assert url.startswith("http://127.0.0.1:")
    login = f"{there.flower['username']}:{there.flower['password']}".encode()
    known = {"Authorization": f"Basic {b64encode(login).decode()}"}
    wait_until(lambda: status_of(url, known) == 200, 30, what="Flower answers")
    assert status_of(url, {}) == 401
    assert status_of(f"{url}api/workers", {}) == 401

    # It turns events on by itself, and sees what the processes do.
    def seen() -> bytes:
        submit(bus)
        return body_of(f"{url}api/tasks", known)

    wait_until(lambda: b"bus.commit_ready" in seen(), what="it sees tasks")


def body_of(url: str, headers: dict[str, str]) -> bytes:
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - our own Flower
    with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310 - likewise
        return bytes(response.read())


def status_of(url: str, headers: dict[str, str]) -> int:
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - our own Flower
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310 - likewise
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


# ── deaths ────────────────────────────────────────────────────────────────────────────────────


def test_whoever_dies_is_started_again_and_work_goes_on(settings: Settings) -> None:
    with up(settings):
        bus = Bus(settings)
        assert submit(bus) == "committed"
        before = endpoint_of(bus).processes
        for name in ("redis", "ingest", "writer", "pump", "beat"):
            os.kill(before[name], signal.SIGKILL)
        wait_until(
            lambda: (
                not set(endpoint_of(bus).processes.values()) & set(before.values())
                and len(endpoint_of(bus).processes) == len(before)
            ),
            what="all are replaced",
        )
        assert endpoint_of(bus).url == broker.Broker(settings).address.url
        assert [submit(bus, number) for number in (1, 2)] == ["committed"] * 2
        gone = set(before.values())
        assert not gone & set(processes_of(bus.lake)), "a killed process's children live on"


def test_kill_9_of_the_supervisor_leaves_nothing_behind_and_loses_nothing(
    settings: Settings,
) -> None:
    bus = Bus(settings)
    with up(settings) as process:
        assert submit(bus) == "committed"
        assert len(processes_of(bus.lake)) > 6  # with the pools' children
        process.kill()
        process.wait()
        wait_until(lambda: processes_of(bus.lake) == {}, 5, what="everybody died with it")
    waiting = bus.submit(small_table(start=7), **MINE)
    assert waiting.status == "staged"
    # Nor does it matter that the server cannot read its files any more.
    for manifest in bus.lake.redis_data.rglob("*.manifest"):
        manifest.write_text("no manifest at all\n")
    with up(settings):
        assert waiting.wait(PATIENCE_S).status == "committed"
    assert [p.name for p in bus.lake.redis_data.iterdir() if p.name.startswith("unreadable-")]


def test_a_bus_is_refused_in_this_process_too(settings: Settings) -> None:
    lake = Lake(settings.lake)
    lake.create()
    with supervisor._only_one(lake), pytest.raises(LakeBusy) as caught:
        Supervisor(settings).run()
    assert caught.value.code == "E502"


def test_a_redis_that_does_not_answer_is_said_at_once(tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{valkey.free_port()}/0"
    with pytest.raises(Unavailable) as caught:
        Supervisor(Settings(lake=tmp_path, redis_url=url)).run()
    assert caught.value.code == "E501"
    assert not Lake(tmp_path).endpoint.exists()


# ── processes by themselves, on a Redis of one's own ──────────────────────────────────────────


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[str]:
    """A server that belongs to no lake."""
    own = Lake(tmp_path / "redis")
    server = valkey.prepare(own)
    process = subprocess.Popen(server.command, cwd=own.redis_data, stdout=subprocess.DEVNULL)
    wait_until(lambda: valkey.answers(server.url))
    yield server.url
    process.kill()
    process.wait()


@contextmanager
def alone(settings: Settings, run: str) -> Iterator[subprocess.Popen[bytes]]:
    """One process of the bus, started as `bus worker`, `bus writer` … start it."""
    code = f"from bus.supervisor.processes import {run} as run; from bus.settings import Settings; "
    said = settings.lake.parent / f"{run}-{time.monotonic_ns()}.log"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code + "run(Settings.load())"],
            env=processes.environment(settings),
            stdout=output,
            stderr=output,
        )
    process.said = said  # type: ignore[attr-defined]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_processes_run_one_by_one_share_a_redis_and_a_second_writer_waits(
    tmp_path: Path, shared: str
) -> None:
    settings = Settings(lake=tmp_path / "lake", redis_url=shared, workers=1, sweep_interval_s=1.0)
    Lake(settings.lake).create()
    bus = Bus(settings)
    with (
        alone(settings, "run_worker"),
        alone(settings, "run_pump"),
        alone(settings, "run_beat"),
        alone(settings, "run_writer") as first,
    ):
        assert submit(bus) == "committed"
        with alone(settings, "run_writer") as second:
            said = second.said  # type: ignore[attr-defined]
            wait_until(lambda: b"E503" in said.read_bytes(), what="the second says it waits")
            assert submit(bus, 1) == "committed"
            first.kill()
            assert submit(bus, 2) == "committed"

    prefix = broker.default_prefix(bus.lake).encode()
    names = list(bus.broker.client().scan_iter())
    assert names
    assert {name for name in names if not name.startswith(prefix)} == set()


def test_on_a_shared_redis_the_plain_list_is_heard_as_well_and_down_stops_the_bus(
    tmp_path: Path, shared: str
) -> None:
    settings = Settings(lake=tmp_path / "lake", redis_url=shared, workers=1, sweep_interval_s=600)
    bus = Bus(settings)
    bus.lake.create()
    assert supervisor.down(bus.lake) is False
    with up(settings) as process:
        silent = Bus(settings, ring=lambda _: False)
        for key in (broker.PLAIN_NOTIFY, bus.broker.keys.notify):
            job = silent.submit(small_table(), **MINE)
            bus.broker.client().lpush(key, job.job_id)
            assert job.wait(PATIENCE_S).status == "committed"
        assert supervisor.down(bus.lake) is True
        assert process.wait(5) == 0
    assert valkey.answers(shared), "the Redis was not ours to stop"
