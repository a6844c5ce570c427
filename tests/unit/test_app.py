"""The Celery app's configuration, the pump's reading of notifications, the processes' commands."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from bus import app
from bus.broker import Address, Endpoint, write_endpoint
from bus.lake import Lake
from bus.model import JobState
from bus.settings import Settings
from bus.supervisor import processes, valkey
from bus.tasks import ingest
from bus.tasks.notify import BadEntryError, Pump, job_id_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WHERE = Address("redis://bus:secret@127.0.0.1:6400/0", "bus-1a2b3c4d:")


@pytest.fixture
def conf(tmp_path: Path) -> dict[str, Any]:
    return app.configuration(Settings(lake=tmp_path), WHERE)


def run_python(code: str, **environment: str) -> str:
    found = {k: v for k, v in os.environ.items() if not k.startswith("BUS_")} | environment
    run = subprocess.run(
        [sys.executable, "-c", code], env=found, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


# ── configuration ─────────────────────────────────────────────────────────────────────────────


def test_only_json_is_spoken(conf: dict[str, Any]) -> None:
    assert conf["accept_content"] == ["json"]
    spoken = {conf[f"{what}_serializer"] for what in ("task", "result", "event")}
    assert spoken == {"json"}


def test_a_message_outlives_the_worker_that_took_it(conf: dict[str, Any]) -> None:
    assert conf["task_acks_late"]
    assert conf["task_reject_on_worker_lost"]
    assert conf["worker_prefetch_multiplier"] == 1
    visible_again_s = conf["broker_transport_options"]["visibility_timeout"]
    assert conf["task_soft_time_limit"] < conf["task_time_limit"] < visible_again_s


def test_every_task_has_its_queue_and_there_are_no_others(conf: dict[str, Any]) -> None:
    queues = {queue.name for queue in conf["task_queues"]}
    assert queues == {"ingest", "writer"}
    assert {route["queue"] for route in conf["task_routes"].values()} == queues
    assert not conf["task_create_missing_queues"]
    app.app.loader.import_default_modules()
    ours = {name for name in app.app.tasks if name.startswith("bus.")}
    assert ours == set(conf["task_routes"])


def test_there_is_no_result_backend(conf: dict[str, Any]) -> None:
    assert conf["result_backend"] is None
    assert conf["task_ignore_result"]


def test_celerys_keys_carry_the_lakes_prefix(conf: dict[str, Any]) -> None:
    assert conf["broker_transport_options"]["global_keyprefix"] == WHERE.prefix


def test_a_tick_that_nobody_reads_expires_before_the_next(conf: dict[str, Any]) -> None:
    ticks = conf["beat_schedule"]
    assert set(ticks) == {"sweep", "refresh-exports", "verify-sample"}
    for tick in ticks.values():
        assert tick["options"]["expires"] == tick["schedule"] > 0


def test_importing_the_app_reads_nothing_and_leaves_the_callers_app_alone(tmp_path: Path) -> None:
    code = (
        "import celery; mine = celery.Celery('mine'); import bus.app, bus.tasks.ingest; "
        "print(celery.current_app.main, bus.app.app.configured)"
    )
    assert run_python(code, BUS_CONFIG=str(tmp_path / "no-such.toml")) == "mine False"


@pytest.mark.parametrize("queues", [[], ["ingest", "writer"], ["elsewhere"]])
def test_a_worker_reads_one_queue(queues: list[str], conf: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match="-Q ingest or -Q writer"):
        app._worker_begins(conf=conf, options={"queues": queues})


# ── submit_artifact.delay without a bus ───────────────────────────────────────────────────────


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lake]:
    """This process is a producer of a lake that nobody serves."""
    lake = Lake(tmp_path / "lake")
    lake.create()
    monkeypatch.setattr(ingest, "_mine", threading.local())
    app.use(Settings(lake=lake.root))
    yield lake
    app._chosen.clear()
    for cached in (app.settings, app.lake, app.broker, app.hasty_broker):
        cached.cache_clear()


def deaf_port() -> socket.socket:
    """A port that takes connections and never says a word, as a hung Redis does."""
    deaf = socket.socket()
    deaf.bind(("127.0.0.1", 0))
    deaf.listen()
    return deaf


@pytest.mark.parametrize("how", ["no bus", "refused", "hung"])
def test_delay_never_fails_for_a_broker(
    nowhere: Lake, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with deaf_port() as deaf:
        port = {"refused": valkey.free_port(), "hung": deaf.getsockname()[1]}.get(how)
        if port is not None:
            there = Endpoint(f"redis://bus:x@127.0.0.1:{port}/0", "", 1, "2026-01-08T05:12:33Z")
            write_endpoint(nowhere, there)
        table = pa.table({"n": [1]})
        first = ingest.submit_artifact.delay(table, kind="things", producer="tester")
        started_s = time.monotonic()
        again = ingest.submit_artifact.delay(first.job_id)
        elapsed_s = time.monotonic() - started_s
    assert (first.status, again.id) == (JobState.STAGED, first.job_id)
    assert elapsed_s < 0.2
    assert "waits in the inbox" in caplog.text


# ── notifications ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("entry", "job_id"),
    [
        (b'{"job_id": "job-1"}', "job-1"),
        (b'{"job_id":"job-1","from":{"lang":"ts"}}', "job-1"),
        (b"job-1", "job-1"),
        (b" 2026-01-08T05-12-33Z__baseline__alerts\n", "2026-01-08T05-12-33Z__baseline__alerts"),
        (b"42", "42"),
    ],
)
def test_a_notification_is_an_object_or_the_bare_id(entry: bytes, job_id: str) -> None:
    assert job_id_of(entry) == job_id


@pytest.mark.parametrize(
    "entry",
    [
        *(b"", b" ", b"{", b"{}", b"[]", b'["job-1"]', b"null", b"true", b'"job-1"', b"a b"),
        *(b'{"job_id": 7}', b'{"job_id": null}', b'{"job_id": ["a"]}', b'{"id": "job-1"}'),
        *(b'{"job_id": "a", "job_id": "b"}', b'{"job_id": NaN}', b'{"job_id": "../up"}'),
        *(b"../../etc/passwd", b"/abs", b"a/b", b"\xff\xfe", b"a\x00b", b"x" * 129),
        *(b'{"job_id": "job-1", "x": "' + b"y" * 5000 + b'"}', b"[" * 4000),
        b'{"x":' * 700 + b"1" + b"}" * 700,
    ],
)
def test_anything_else_says_why_not(entry: bytes) -> None:
    with pytest.raises(BadEntryError) as caught:
        job_id_of(entry)
    assert 0 < len(str(caught.value)) < 400


class _Entries:
    """Notifications that lie there already."""

    def __init__(self, *entries: bytes) -> None:
        self._entries = list(entries)
        self.bad: list[bytes] = []

    def take(self) -> tuple[list[bytes], int]:
        return self._entries, 0

    def settle(self, entries: list[bytes], bad: list[tuple[bytes, str]]) -> None:
        assert entries == self._entries
        self.bad = [entry for entry, _ in bad]


def test_the_writer_is_woken_with_the_validators_once_for_all_that_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rung: list[str] = []
    monkeypatch.setattr(app, "send", lambda _task, job_id: rung.append(job_id))
    monkeypatch.setattr(app, "ring_writer", lambda: rung.append("writer"))
    pump = Pump(Settings(lake=tmp_path, workers=4), WHERE, threading.Event())

    came = _Entries(b"job-1", b"[]", b"job-2", b"job-1")
    pump._move(came)  # type: ignore[arg-type]
    assert (rung, came.bad) == (["job-1", "job-2", "writer"], [b"[]"])

    rung.clear()
    pump._move(_Entries(b"[]"))  # type: ignore[arg-type]
    assert rung == []


# ── processes ─────────────────────────────────────────────────────────────────────────────────


def test_a_child_gets_the_settings_and_not_somebody_elses_redis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUS_REDIS_URL", "redis://another/0")
    mine = Settings(lake=tmp_path, sweep_interval_s=0.5, strict_kinds=True)
    found = processes.environment(mine)
    assert "BUS_REDIS_URL" not in found
    code = (
        "from bus.settings import Settings; s = Settings.load(); import json; "
        "print(json.dumps([str(s.lake), s.sweep_interval_s, s.strict_kinds, s.redis_url]))"
    )
    told = {name: value for name, value in found.items() if name.startswith("BUS_")}
    assert json.loads(run_python(code, **told)) == [str(tmp_path), 0.5, True, None]


def test_no_command_line_carries_a_password(tmp_path: Path) -> None:
    settings = Settings(lake=tmp_path, redis_url=WHERE.url)
    commands = [
        processes.worker_command(4),
        processes.writer_command(),
        processes.pump_command(),
        processes.beat_command(),
        processes.flower_command(),
    ]
    secret = processes.flower_environment(settings)["FLOWER_BASIC_AUTH"].split(":")[1]
    words = {word for command in commands for word in command}
    assert not [word for word in words if "secret" in word or secret in word]


def test_flower_listens_on_loopback_behind_a_password_and_touches_nothing(tmp_path: Path) -> None:
    options = processes.flower_environment(Settings(lake=tmp_path), port=5999)
    assert options["FLOWER_ADDRESS"] == "127.0.0.1"
    assert options["FLOWER_PORT"] == "5999"
    assert options["FLOWER_READ_ONLY"] == "true"
    user, _, password = options["FLOWER_BASIC_AUTH"].partition(":")
    assert user
    assert len(password) >= 20


def test_what_the_caller_sets_for_flower_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "me:mine")
    monkeypatch.setenv("FLOWER_ADDRESS", "0.0.0.0")  # noqa: S104 - inside a container
    options = processes.flower_environment(Settings(lake=tmp_path))
    assert (options["FLOWER_BASIC_AUTH"], options["FLOWER_ADDRESS"]) == ("me:mine", "0.0.0.0")  # noqa: S104


def test_the_writer_is_one_process_that_can_be_terminated() -> None:
    command = processes.writer_command()
    assert command[command.index("--concurrency") + 1] == "1"
    assert command[command.index("--pool") + 1] == "prefork"
