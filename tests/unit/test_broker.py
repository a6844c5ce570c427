"""Redis as the bus uses it: keys, addresses, bells, answers; and what happens when it is away."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import fakeredis
import pytest
import redis

from bus import broker
from bus.broker import (
    Address,
    Broker,
    Endpoint,
    Keys,
    Notifications,
    link,
    notifications as notify_list,
)
from bus.errors import Unavailable
from bus.lake import Lake
from bus.settings import Settings
from bus.supervisor import valkey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

URL = "redis://bus:secret@127.0.0.1:6400/0"


@dataclass(frozen=True)
class Answer:
    job_id: str
    document: bytes = b'{"job_id": "a"}'
    event: dict[str, Any] = field(default_factory=lambda: {"job_id": "a", "seq": 3})


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path / "lake")
    lake.create()
    return lake


@pytest.fixture
def settings(lake: Lake) -> Settings:
    return Settings(lake=lake.root)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> fakeredis.FakeServer:
    """A Redis in this process, which every connection of the broker reaches."""
    server = fakeredis.FakeServer()
    for module in (link, notify_list):
        monkeypatch.setattr(module, "open_redis", lambda *_, **__: fake(server))
    return server


@pytest.fixture
def live(lake: Lake, settings: Settings, server: fakeredis.FakeServer) -> Broker:
    assert server is not None
    publish(lake)
    return Broker(settings)


def publish(lake: Lake, url: str = URL, prefix: str = "") -> None:
    broker.write_endpoint(lake, Endpoint(url, prefix, os.getpid(), "2026-01-08T05:12:33Z"))


def fake(server: fakeredis.FakeServer) -> Any:
    return fakeredis.FakeRedis(server=server, protocol=2)


# ── keys and addresses ────────────────────────────────────────────────────────────────────────


def test_the_keys_that_other_programs_use_keep_their_names() -> None:
    keys = Keys()
    assert keys.notify == "bus:notify"
    assert keys.bad == "bus:notify:bad"
    assert keys.events == "bus:events"
    assert keys.doorbell == "bus:doorbell"
    assert keys.receipt("job-1") == "bus:receipt:job-1"


def test_every_key_carries_the_prefix() -> None:
    keys = Keys("bus-1a2b3c4d:")
    made = [value for name, value in vars(keys).items() if name != "prefix"]
    made += [keys.receipt("job"), keys.later("job")]
    assert len(made) > 8
    assert {key for key in made if not key.startswith("bus-1a2b3c4d:")} == set()


def test_an_endpoint_is_private_and_spells_out_the_parts_of_its_url(lake: Lake) -> None:
    written = Endpoint(URL, "p:", 7, "2026-01-08T05:12:33Z", {"redis": 8}, {"url": "http://x"})
    broker.write_endpoint(lake, written)
    assert stat.S_IMODE(lake.endpoint.stat().st_mode) == 0o600
    document = json.loads(lake.endpoint.read_bytes())
    parts = {name: document[name] for name in ("host", "port", "username", "password", "url")}
    assert parts == {
        "host": "127.0.0.1",
        "port": 6400,
        "username": "bus",
        "password": "secret",
        "url": URL,
    }
    assert broker.endpoint(lake) == written


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"url": "redis://x"}'])
def test_a_damaged_endpoint_reads_as_no_running_bus(lake: Lake, damage: bytes) -> None:
    lake.endpoint.write_bytes(damage)
    assert broker.endpoint(lake) is None


def test_without_a_url_the_running_bus_is_the_address(lake: Lake, settings: Settings) -> None:
    assert broker.address(settings) is None
    publish(lake, prefix="p:")
    assert broker.address(settings) == Address(URL, "p:")


def test_on_a_redis_of_ones_own_the_prefix_comes_from_the_lake(lake: Lake) -> None:
    settings = Settings(lake=lake.root, redis_url="redis://elsewhere/0")
    publish(lake)
    where = broker.address(settings)
    assert where == Address("redis://elsewhere/0", f"bus-{lake.identity}:")
    assert where.shared


def test_a_prefix_that_is_set_wins_even_when_it_is_empty(lake: Lake) -> None:
    settings = Settings(lake=lake.root, redis_url="redis://elsewhere/0", redis_prefix="")
    assert broker.address(settings) == Address("redis://elsewhere/0", "")


def test_two_lakes_have_two_prefixes(tmp_path: Path) -> None:
    prefixes = {broker.default_prefix(Lake(tmp_path / name)) for name in ("one", "two")}
    assert len(prefixes) == 2


# ── bells ─────────────────────────────────────────────────────────────────────────────────────


def test_a_ring_is_an_entry_that_any_language_could_have_pushed(
    live: Broker, server: fakeredis.FakeServer
) -> None:
    assert live.ring("job-1")
    assert [json.loads(e) for e in fake(server).lrange("bus:notify", 0, -1)] == [
        {"job_id": "job-1"}
    ]


def test_one_bell_to_the_writer_is_pending_at_most(
    live: Broker, server: fakeredis.FakeServer
) -> None:
    assert [live.take_doorbell() for _ in range(3)] == [True, False, False]
    assert 0 < fake(server).ttl("bus:doorbell") <= broker.DOORBELL_TTL_S
    live.clear_doorbell()
    assert live.take_doorbell()


def test_an_unfinished_job_is_scheduled_once_at_a_time(live: Broker) -> None:
    assert [live.take_later("a", 5.0), live.take_later("a", 5.0)] == [True, False]
    assert live.take_later("b", 5.0)


# ── answers and signs of life ─────────────────────────────────────────────────────────────────


def test_an_answer_reaches_any_number_of_waiters_and_expires(
    live: Broker, server: fakeredis.FakeServer
) -> None:
    live.announce([Answer("a", b"first"), Answer("b", b"other")])
    live.announce([Answer("a", b"second")])
    assert [live.await_answer("a", 0.1) for _ in range(3)] == [b"second"] * 3
    assert fake(server).llen("bus:receipt:a") == 1
    assert 0 < fake(server).ttl("bus:receipt:a") <= live.settings.receipt_ttl_s


def test_answers_never_fill_the_server(
    live: Broker, server: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "RECEIPTS_MAX", 150)
    for start in range(0, 400, 100):
        live.announce([Answer(f"job-{n}", b"x" * 9000) for n in range(start, start + 100)])
    kept = {name.decode() for name in fake(server).keys("bus:receipt:*")}
    assert kept == {f"bus:receipt:job-{n}" for n in range(250, 400)}
    assert fake(server).llen("bus:receipts") == 150
    assert live.await_answer("job-399", 0.1) == b"{}", "the waiter reads the file"


def test_no_answer_is_none_after_the_time_asked_for(live: Broker) -> None:
    started_s = time.monotonic()
    assert live.await_answer("nobody", 0.05) is None
    assert time.monotonic() - started_s < 1.0


def test_events_are_kept_in_order_and_their_number_is_bounded(
    lake: Lake, server: fakeredis.FakeServer
) -> None:
    publish(lake)
    small = Broker(Settings(lake=lake.root, events_max=5))
    small.announce([Answer(f"job-{n}", event={"seq": n, "job_id": "x"}) for n in range(300)])
    events = fake(server).xrange("bus:events")
    assert events[-1][1] == {b"seq": b"299", b"job_id": b"x"}
    assert len(events) < 300


def test_a_process_shows_life_until_it_retires(live: Broker) -> None:
    live.beat("ingest-1@host", "ingest", judged=3)
    sign = live.heartbeats()[0]
    assert (sign.process, sign.role, sign.pid, sign.facts["judged"], sign.alive) == (
        "ingest-1@host",
        "ingest",
        os.getpid(),
        3,
        True,
    )
    live.retire("ingest-1@host")
    assert live.heartbeats() == []


def test_a_silent_process_is_not_alive_and_is_forgotten_after_an_hour(
    live: Broker, server: fakeredis.FakeServer
) -> None:
    for process, age_s in {"silent": 60.0, "gone": 7200.0}.items():
        sign = {"role": "pump", "pid": 1, "at_s": time.time() - age_s}
        fake(server).hset("bus:heartbeats", process, json.dumps(sign))
    assert [(sign.process, sign.alive) for sign in live.heartbeats()] == [("silent", False)]
    assert fake(server).hkeys("bus:heartbeats") == [b"silent"]


# ── the notify list ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
def notifications(server: fakeredis.FakeServer) -> Notifications:
    assert server is not None
    return Notifications(Address(URL, ""), "bus:notify")


def test_entries_are_taken_oldest_first_and_many_at_once(
    notifications: Notifications, server: fakeredis.FakeServer
) -> None:
    for number in range(600):
        fake(server).lpush("bus:notify", number)
    fake(server).lpush("ingest", "a message", "another")
    taken, queued = notifications.take()
    assert queued == 2
    assert taken == [str(number).encode() for number in range(500)]
    assert fake(server).llen("bus:notify:processing") == 500
    notifications.settle(taken)
    assert fake(server).llen("bus:notify:processing") == 0
    assert len(notifications.take()[0]) == 100


def test_what_a_dead_pump_was_working_on_is_found_again(
    notifications: Notifications, server: fakeredis.FakeServer
) -> None:
    fake(server).lpush("bus:notify", "a", "b")
    notifications.take()
    successor = Notifications(Address(URL, ""), "bus:notify")
    successor.recover()
    assert successor.take()[0] == [b"a", b"b"]


def test_a_bad_entry_is_kept_with_its_reason_and_counted(
    notifications: Notifications, server: fakeredis.FakeServer
) -> None:
    entry = b"\xff\x00" + b"x" * 9000
    fake(server).lpush("bus:notify", entry)
    taken, _ = notifications.take()
    notifications.settle(taken, [(taken[0], "not UTF-8")])
    kept = json.loads(fake(server).lindex("bus:notify:bad", 0))
    assert (kept["reason"], kept["size_bytes"]) == ("not UTF-8", 9002)
    assert len(kept["entry"]) < 1000
    assert fake(server).hget("bus:counters", "notify_bad") == b"1"
    assert fake(server).llen("bus:notify:processing") == 0


def test_the_list_of_bad_entries_is_bounded(
    notifications: Notifications, server: fakeredis.FakeServer
) -> None:
    notifications.settle([], [(b"x", f"reason {n}") for n in range(broker.BAD_MAX + 10)])
    assert fake(server).llen("bus:notify:bad") == broker.BAD_MAX
    newest = json.loads(fake(server).lindex("bus:notify:bad", 0))
    assert newest["reason"] == f"reason {broker.BAD_MAX + 9}"


# ── Redis away, hung, restarted ───────────────────────────────────────────────────────────────


@pytest.fixture
def valkey_server(lake: Lake) -> Iterator[subprocess.Popen[bytes]]:
    """A real server of this lake, with its endpoint."""
    server = valkey.prepare(lake)
    process = start(lake, server)
    publish(lake, server.url)
    yield process
    process.kill()
    process.wait()


def start(lake: Lake, server: valkey.Bundled) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(server.command, cwd=lake.redis_data, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while not valkey.answers(server.url):
        assert time.monotonic() < deadline, "no server"
        time.sleep(0.005)
    return process


def assert_quick_and_false(settings: Settings, *, limit_s: float = 0.2) -> Broker:
    client = Broker(settings)
    started_s = time.monotonic()
    assert client.ring("job") is False
    assert time.monotonic() - started_s < limit_s
    return client


def test_without_a_bus_a_ring_says_so_at_once(settings: Settings) -> None:
    client = assert_quick_and_false(settings, limit_s=0.05)
    with pytest.raises(Unavailable) as caught:
        client.client()
    assert caught.value.code == "E501"
    assert broker.connect(settings) is None


def test_a_server_that_is_gone_costs_a_ring_no_time_and_no_exception(
    lake: Lake, settings: Settings
) -> None:
    publish(lake, f"redis://bus:x@127.0.0.1:{valkey.free_port()}/0")
    assert_quick_and_false(settings)


def test_a_port_that_never_answers_costs_a_ring_a_fifth_of_a_second_at_most(
    lake: Lake, settings: Settings
) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        publish(lake, f"redis://bus:x@127.0.0.1:{deaf.getsockname()[1]}/0")
        client = assert_quick_and_false(settings)
        started_s = time.monotonic()
        assert not any(client.ring("job") for _ in range(100))
        assert time.monotonic() - started_s < 0.1, "each ring of a burst paid for the hung server"


def test_a_hung_server_costs_a_connected_producer_a_fifth_of_a_second_at_most(
    settings: Settings, valkey_server: subprocess.Popen[bytes]
) -> None:
    client = Broker(settings)
    assert client.ring("job")
    os.kill(valkey_server.pid, signal.SIGSTOP)
    started_s = time.monotonic()
    assert client.ring("job") is False
    assert time.monotonic() - started_s < 0.2
    os.kill(valkey_server.pid, signal.SIGCONT)


def test_a_server_that_was_restarted_elsewhere_is_found_by_the_next_ring(
    lake: Lake, settings: Settings, valkey_server: subprocess.Popen[bytes]
) -> None:
    client = Broker(settings)
    assert client.ring("job")
    valkey_server.kill()
    valkey_server.wait()
    valkey.set_data_aside(lake)
    successor = valkey.prepare(lake)
    process = start(lake, successor)
    try:
        publish(lake, successor.url)
        assert client.ring("job")
    finally:
        process.kill()
        process.wait()


def test_an_answer_cannot_be_awaited_from_a_server_that_is_away(settings: Settings) -> None:
    with pytest.raises(Unavailable):
        Broker(settings).await_answer("job", 0.1)


def test_every_waiter_is_woken_by_the_announcement(
    settings: Settings, valkey_server: subprocess.Popen[bytes]
) -> None:
    assert valkey_server.poll() is None
    heard: list[bytes | None] = []
    waiters = [
        threading.Thread(target=lambda: heard.append(Broker(settings).await_answer("a", 1.0)))
        for _ in range(3)
    ]
    for waiter in waiters:
        waiter.start()
    assert Broker(settings).announce([Answer("a", b"done")])
    for waiter in waiters:
        waiter.join(5)
    assert heard == [b"done"] * 3


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_threads_and_forked_children_share_a_broker(
    settings: Settings, valkey_server: subprocess.Popen[bytes]
) -> None:
    assert valkey_server.poll() is None
    shared = Broker(settings)
    assert shared.ring("parent")
    threads = [
        threading.Thread(target=lambda: [shared.ring(f"thread-{n}") for n in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    child = os.fork()
    if child == 0:
        rung = all(shared.ring(f"child-{n}") for n in range(50))
        os._exit(0 if rung else 1)
    for thread in threads:
        thread.join(20)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    client = shared.client()
    assert isinstance(client, redis.Redis)
    assert client.llen("bus:notify") == 1 + 4 * 50 + 50
