"""What SECURITY.md promises: limits, users of Redis, modes, secrets, pinned versions."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import shlex
import signal
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from celery import Celery

from bus import app, cli, process
from bus.broker import Address, Endpoint, open_redis, write_endpoint
from bus.settings import Settings
from bus.supervisor import processes, valkey
from tests.jobs import manifest_of, put_job, small_table
from tests.pipeline import Pipeline
from tests.unit.test_compose import OPS, _free_port, _start_environment, _wait_until_it_answers

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]
SECURITY = REPOSITORY / "SECURITY.md"

# ── the table of limits ───────────────────────────────────────────────────────────────────────

_UNITS = {
    "": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "s": 1,
    "min": 60,
    "h": 3600,
    "d": 86_400,
}
_ROW = re.compile(
    r"^\| (?P<what>.+?) \| (?P<most>[\d,]+) ?(?P<unit>\w*) \| (?P<held>.+?) \|$", re.MULTILINE
)


def _limits() -> list[tuple[str, int, str]]:
    """(what, value, who holds it) of each line of the table."""
    text = SECURITY.read_text().partition("## Limits")[2]
    return [
        (row["what"], int(row["most"].replace(",", "")) * _UNITS[row["unit"]], row["held"])
        for row in _ROW.finditer(text)
    ]


def test_the_table_of_limits_is_read_whole() -> None:
    lines = SECURITY.read_text().partition("## Limits")[2].splitlines()
    assert len(_limits()) == sum(line.startswith("| ") for line in lines) - 1
    assert len(_limits()) > 30


@pytest.mark.parametrize(("what", "value", "held"), _limits(), ids=[row[0] for row in _limits()])
def test_each_limit_is_held_by_what_the_table_names(what: str, value: int, held: str) -> None:
    (name,) = re.findall(r"`([\w.]+)`", held)
    if held.startswith("setting "):
        assert Settings.model_fields[name].default == value, what
        return
    module, _, attribute = name.rpartition(".")
    assert _found(module, attribute) == value, what


def _found(place: str, attribute: str) -> Any:
    try:
        return getattr(importlib.import_module(place), attribute)
    except ModuleNotFoundError:  # a field of a class, by its default
        module, _, owner = place.rpartition(".")
        return getattr(getattr(importlib.import_module(module), owner)(), attribute)


def test_every_test_that_the_document_names_exists() -> None:
    folder = ""
    for path in re.findall(r"`((?:tests/[\w/]+/)?test_\w+\.py)`", SECURITY.read_text()):
        folder = os.path.dirname(path) or folder  # noqa: PTH120 - text
        assert (REPOSITORY / folder / Path(path).name).is_file(), path


# ── the users of Redis ────────────────────────────────────────────────────────────────────────

_PASSWORDS = {"bus": "for-the-bus", "producer": "for-producers", "flower": "for-flower"}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Valkey started with ops/users.acl, as docker-compose starts it."""
    folder = tmp_path_factory.mktemp("acl")
    port = _free_port()
    environment = _start_environment(folder, port)
    command = ["sh", str(OPS / "valkey-start.sh")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            with _client(port, "bus") as client:
                _wait_until_it_answers(client)
            modes = {
                path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*-with-*")
            }
            assert modes == {"users-with-passwords.acl": 0o600, "valkey-with-users.conf": 0o600}
            yield port
        finally:
            server.send_signal(signal.SIGTERM)


def _client(port: int, user: str) -> redis.Redis:
    return redis.Redis(host="127.0.0.1", port=port, username=user, password=_PASSWORDS[user])


MAY = {
    "producer": (["PING"], ["LPUSH", "bus:notify", '{"job_id": "j"}']),
    "flower": (
        *(["PING"], ["LLEN", "ingest"], ["LLEN", "writer"], ["INFO"], ["PUBLISH", "/0.x", "1"]),
        ["LPUSH", "x.reply.celery.pidbox", "1"],
    ),
    "bus": (
        *(["LPUSH", "ingest", "x"], ["BRPOP", "ingest", "1"], ["SET", "bus:doorbell", "1"]),
        *(["XADD", "bus:events", "*", "a", "b"], ["HSET", "bus:heartbeats", "p", "{}"]),
        *(["EVAL", "return 1", "0"], ["INFO"], ["DEL", "bus:doorbell", "bus:events"]),
    ),
}
_MEDDLING = (
    *(["FLUSHALL"], ["FLUSHDB"], ["CONFIG", "GET", "*"], ["CONFIG", "SET", "maxmemory", "1"]),
    *(["SHUTDOWN"], ["DEBUG", "SLEEP", "0"], ["ACL", "LIST"], ["ACL", "SETUSER", "x", "on"]),
    *(["KEYS", "*"], ["MONITOR"], ["SAVE"], ["REPLICAOF", "127.0.0.1", "1"], ["SLOWLOG", "GET"]),
    *(["MODULE", "LIST"], ["CLIENT", "KILL", "TYPE", "normal"], ["SWAPDB", "0", "1"]),
)
_WORK = (
    *(["LPUSH", "ingest", "poison"], ["LPUSH", "writer", "poison"], ["RPUSH", "ingest", "x"]),
    *(
        ["LPUSH", "bus:dead", "x"],
        ["SET", "bus:doorbell", "1"],
        ["XADD", "bus:events", "*", "a", "b"],
    ),
    *(
        ["LPUSH", "bus:receipt:j", "{}"],
        ["HSET", "bus:heartbeats", "p", "{}"],
        ["HSET", "unacked", "a", "b"],
    ),
    *(["DEL", "ingest"], ["RENAME", "bus:notify", "ingest"]),
    # What a script does is what its caller may do.
    ["EVAL", "return redis.call('LPUSH', KEYS[1], 'poison')", "1", "ingest"],
)
MAY_NOT = {
    "producer": (
        *_MEDDLING,
        *_WORK,
        *(["LRANGE", "bus:notify", "0", "-1"], ["RPOP", "bus:notify"], ["DEL", "bus:notify"]),
        *(["LLEN", "ingest"], ["GET", "bus:doorbell"], ["LPUSH", "bus:notify:bad", "x"]),
        *(["PUBLISH", "/0.celery.pidbox", "x"], ["SUBSCRIBE", "x"], ["INFO"], ["SCAN", "0"]),
    ),
    "flower": (
        *_MEDDLING,
        *_WORK,
        *(
            ["LPUSH", "bus:notify", "x"],
            ["LRANGE", "bus:receipts", "0", "-1"],
            ["BRPOP", "ingest", "1"],
        ),
    ),
    "bus": _MEDDLING,
}


@pytest.mark.parametrize("user", MAY)
def test_a_user_may_do_what_its_work_needs(user: str, port: int) -> None:
    with _client(port, user) as client:
        for command in MAY[user]:
            client.execute_command(*command)


@pytest.mark.parametrize("user", MAY_NOT)
def test_a_user_may_do_nothing_else(user: str, port: int) -> None:
    allowed = []
    with _client(port, user) as client:
        for command in MAY_NOT[user]:
            try:
                client.execute_command(*command)
            except redis.exceptions.NoPermissionError:
                continue
            except redis.exceptions.ResponseError as error:
                assert "not allowed" in str(error), (command, error)  # DEBUG: for nobody
                continue
            allowed.append(command)
    assert allowed == []


def test_whoever_has_no_name_gets_nothing(port: int) -> None:
    with open_redis(f"redis://127.0.0.1:{port}", timeout_s=5.0) as nobody:
        for command in (["PING"], ["LPUSH", "bus:notify", "x"]):
            with pytest.raises(redis.exceptions.AuthenticationError):
                nobody.execute_command(*command)


def test_flowers_rights_are_enough_to_ask_workers_and_to_hear_them(port: int) -> None:
    where = Address(f"redis://flower:{_PASSWORDS['flower']}@127.0.0.1:{port}/0", "")
    flower = Celery("flower", set_as_current=False)
    flower.config_from_object(app.configuration(Settings(), where))

    assert flower.control.ping(timeout=0.2) == []
    flower.control.enable_events()
    with flower.connection() as connection:
        receiver = flower.events.Receiver(connection, handlers={"*": lambda _: None})
        list(receiver.itercapture(limit=1, timeout=0.2))


# ── modes ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def careless() -> Iterator[None]:
    """A umask that takes nothing away."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("careless")
def test_processes_of_the_bus_create_nothing_that_others_could_write(tmp_path: Path) -> None:
    process.keep_others_out()
    bus = Pipeline(tmp_path / "lake")
    bus.stage("good", small_table())
    put_job(bus.lake, "bad", {"a0.parquet": b"no"})
    bus.run()
    write_endpoint(bus.lake, Endpoint("redis://bus:secret@127.0.0.1:1/0", "", 1, "now"))
    valkey.prepare(bus.lake)

    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in bus.lake.root.rglob("*")}
    assert {str(path): oct(mode) for path, mode in modes.items() if mode & 0o022} == {}
    assert {modes[path] for path in bus.lake.all_objects()} == {0o444}
    assert {modes[path] for path in bus.lake.journal.iterdir()} == {0o444}
    assert modes[bus.lake.endpoint] == 0o600
    assert (modes[bus.lake.redis_data], modes[bus.lake.redis_config]) == (0o700, 0o600)


def test_a_stricter_umask_of_the_operators_stays() -> None:
    before = os.umask(0o077)
    try:
        process.keep_others_out()
        assert os.umask(0) == 0o077
    finally:
        os.umask(before)


def test_every_way_to_start_a_process_keeps_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr(processes, "keep_others_out", lambda: called.append("one"))
    monkeypatch.setattr("bus.supervisor.keep_others_out", lambda: called.append("up"))
    monkeypatch.setattr(processes, "address", lambda *_: "somewhere")
    monkeypatch.setattr("os.execve", lambda *_: None)
    settings = Settings(lake=tmp_path)
    for run in (processes.run_worker, processes.run_writer, processes.run_beat):
        run(settings)
    processes.run_flower(settings)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bus.supervisor._only_one", stop)
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module("bus.supervisor").Supervisor(settings).run()
    assert called == ["one"] * 4 + ["up"]


# ── secrets ───────────────────────────────────────────────────────────────────────────────────

_SECRETS = {
    "password": "hunter2-a",
    "db": {"Passwd": "hunter2-b", "api_key": "hunter2-c", "list": [{"secret": "hunter2-d"}]},
    "private_key": "hunter2-e",
    "access_token": "hunter2-f",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "url": "https://x.test/?access_token=hunter2-g",
    "pem": "-----BEGIN RSA PRIVATE KEY-----\nhunter2-h",
}


def _submit_secrets(bus: Pipeline) -> None:
    for job_id, content in (("good", small_table()), ("bad", b"no Parquet")):
        manifest = manifest_of(job_id, ["a0.parquet"], meta=_SECRETS)
        put_job(bus.lake, job_id, {"a0.parquet": content}, manifest=manifest)
    broken = manifest_of("broken", ["a0.parquet"], meta=_SECRETS, password="hunter2-i")
    broken["artifacts"][0]["secret"] = "hunter2-j"
    put_job(bus.lake, "broken", manifest=broken)
    bus.run()


def test_secrets_in_meta_reach_no_log_no_answer_and_no_view(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bus = Pipeline(tmp_path / "lake")
    _submit_secrets(bus)

    leaks = [
        str(path.relative_to(bus.lake.root))
        for path in bus.lake.root.rglob("*")
        if path.is_file() and path.name != "manifest.json" and _has_secret(path.read_bytes())
    ]
    assert leaks == []
    assert not _has_secret(caplog.text.encode())
    kept = bus.lake.processed / "good" / "manifest.json"
    assert json.loads(kept.read_text())["meta"] == _SECRETS, "the producer's own words stay"


def _has_secret(data: bytes) -> bool:
    return b"hunter2" in data or b"AKIAIOSF" in data


@pytest.mark.parametrize(
    "command",
    [
        *("jobs", "rejected", "runs", "status", "show good", "show bad", "show broken"),
        *("show run-1", "query 'SELECT * FROM catalog.runs_d'", "jobs --json", "rejected --json"),
        *("show good --json", "show bad --json", "runs --json"),
    ],
)
def test_no_command_shows_a_secret_that_somebody_put_into_meta(
    command: str, shown_lake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.run([*shlex.split(command), "--lake", str(shown_lake)])
    said = capsys.readouterr()
    assert said.out + said.err
    assert not _has_secret((said.out + said.err).encode())


@pytest.fixture(scope="module")
def shown_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bus = Pipeline(tmp_path_factory.mktemp("secrets") / "lake")
    _submit_secrets(bus)
    return bus.lake.root


# ── versions ──────────────────────────────────────────────────────────────────────────────────


def _version(text: str) -> tuple[int, ...]:
    numbers = [int(number) for number in re.findall(r"\d+", text.partition(".post")[0])]
    return (*numbers, 0, 0, 0)[:4]


def _advisories() -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((OPS / "advisories.json").read_text())
    return found


def _open_holes(pins: dict[str, str]) -> list[str]:
    return [
        f"{known['package']} {pins[known['package']]}: {known['id']}"
        for known in _advisories()
        if _version(pins[known["package"]]) < _version(known["fixed_in"])
    ]


def test_no_pinned_version_has_a_hole_that_we_know_of() -> None:
    text = (REPOSITORY / "constraints.txt").read_text()
    pins = dict(line.split("==") for line in text.splitlines() if "==" in line)
    assert {known["package"] for known in _advisories()} <= set(pins)
    assert _open_holes(pins) == []


def test_an_old_pin_is_noticed() -> None:
    old = {known["package"]: "0.9.2" for known in _advisories()}
    assert len(_open_holes(old)) == len(_advisories())
    assert all(re.fullmatch(r"CVE-\d{4}-\d+", known["id"]) for known in _advisories())


def test_no_release_that_pyproject_allows_has_a_hole_that_we_know_of() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    lowest = dict(re.findall(r'^  "([\w-]+)(?:\[\w+\])?>=([\d.]+)', text, re.MULTILINE))
    assert (
        _open_holes({known["package"]: lowest[known["package"]] for known in _advisories()}) == []
    )
