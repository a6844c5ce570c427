"""What status says of a lake: with a bus, without one, with a dead one, with and without Redis."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import fakeredis
import pytest

from bus import disk, health
from bus.broker import Broker, Endpoint, Keys, link, write_endpoint
from bus.errors import Refused, Unavailable
from bus.health import raw
from bus.lake import Lake
from bus.settings import Settings
from tests.pipeline import Pipeline, facts, table, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE = os.uname().nodename
GONE = 2**22 + 1  # no process has a pid like that
ROLES = ("ingest", "writer", "pump", "beat")


@pytest.fixture
def made(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path / "lake", lineage_wait_s=600)


def look(made: Pipeline) -> health.Status:
    return health.status(made.lake, made.settings)


def findings(status: health.Status) -> str:
    return "\n".join(finding.text for finding in status.findings)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Somebody alive holds the lock."""
    with disk.locked(path) as lock:
        assert lock is not None
        lock.write(f"{os.getpid()}\n".encode())
        yield


@contextmanager
def up(made: Pipeline, **processes: int) -> Iterator[None]:
    """A `bus up`, as far as files and locks tell."""
    endpoint = Endpoint(
        "redis://bus:pw@127.0.0.1:1/0", "", os.getpid(), "2026-01-08T05:12:33Z", processes
    )
    write_endpoint(made.lake, endpoint)
    with held(made.lake.up_lock):
        yield
    disk.remove(made.lake.endpoint)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> fakeredis.FakeServer:
    """A Redis in this process, for whoever asks at the endpoint."""
    server = fakeredis.FakeServer()

    def connect(*_: object, **__: object) -> fakeredis.FakeRedis:
        return fakeredis.FakeRedis(server=server, protocol=2)

    for module in (link, raw):
        monkeypatch.setattr(module, "open_redis", connect)
    return server


def signs(made: Pipeline, age_s: float = 0.0, pid: int = 1, host: str = HERE) -> None:
    """Each process of a bus showed life that long ago."""
    client = Broker(made.settings).client()
    for role in ROLES:
        sign = {"role": role, "pid": pid, "at_s": time.time() - age_s, "at_utc": "…"}
        client.hset(Keys().heartbeats, f"{role}-{pid}@{host}", json.dumps(sign))


# ── no bus ────────────────────────────────────────────────────────────────────────────────────


def test_a_fresh_lake_is_well_and_no_bus_runs(made: Pipeline) -> None:
    status = look(made)
    assert not status.running
    assert status.ok
    assert status.writer.state == "not started"
    assert {state: b.count for state, b in status.jobs.items()} == dict.fromkeys(
        ["staged", "validating", "ready", "rejected"], 0
    )
    assert (status.catalog.manifest_seq, status.catalog.seq) == (0, None)
    assert not status.queues.answers
    assert json.loads(json.dumps(status.as_dict()))["ok"] is True


def test_where_there_is_no_lake_there_is_no_status(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="E507"):
        health.status(Lake(tmp_path / "none"), Settings(lake=tmp_path / "none"))


def test_waiting_jobs_are_counted_with_the_age_of_the_oldest(made: Pipeline) -> None:
    made.stage("a", table(1))
    made.stage("b", table(2))
    staged = look(made).jobs["staged"]
    assert staged.count == 2
    assert staged.oldest_age_s is not None
    assert 0 <= staged.oldest_age_s < 60
    assert "2 jobs wait" in findings(look(made))


def test_the_newest_commit_and_the_snapshot_are_told(made: Pipeline) -> None:
    made.judged(verdict("j", facts("a", 1)))
    made.commit()
    status = look(made)
    assert (status.catalog.manifest_seq, status.catalog.seq) == (1, 1)
    assert not status.catalog.journal_ahead
    assert status.writer.last_commit_age_s is not None
    assert 0 <= status.writer.last_commit_age_s < 60


def test_a_journal_that_is_ahead_of_the_manifest_is_told(made: Pipeline) -> None:
    made.judged(verdict("j", facts("a", 1)))
    made.commit()
    disk.remove(made.lake.manifest_db)
    status = look(made)
    assert status.catalog.journal_ahead
    assert "journal is ahead" in findings(status)


def test_a_damaged_manifest_does_not_stop_a_status(made: Pipeline) -> None:
    made.judged(verdict("j", facts("a", 1)))
    made.commit()
    disk.write_plain(made.lake.manifest_db, b"not a database at all" * 100)
    assert look(made).catalog.manifest_seq == 0


# ── the writer ────────────────────────────────────────────────────────────────────────────────


def test_a_writer_that_holds_its_seat_is_alive(made: Pipeline) -> None:
    with up(made), held(made.lake.seat_lock):
        writer = look(made).writer
    assert writer.state == "alive"
    assert str(os.getpid()) in writer.says


def test_a_bus_without_a_writer_is_unmistakable(made: Pipeline) -> None:
    made.judged(verdict("j", facts("a", 1)))
    with up(made):
        status = look(made)
    assert status.writer.state == "dead"
    assert not status.ok
    assert status.findings[0].bad
    assert status.findings[0].text == "the writer is dead, 1 judged jobs wait for it"


def test_another_process_that_writes_is_told_from_our_writer(made: Pipeline) -> None:
    with held(made.lake.writer_lock):
        assert look(made).writer.state == "busy elsewhere"


def test_a_writer_that_shows_no_life_is_silent(
    made: Pipeline, server: fakeredis.FakeServer
) -> None:
    assert server is not None
    with up(made), held(made.lake.seat_lock):
        signs(made, age_s=40, pid=os.getpid())
        status = look(made)
    assert status.writer.state == "silent"
    assert "no life for 40 s" in status.writer.says
    assert not status.ok


def test_its_lag_is_the_age_of_the_oldest_judged_job(
    made: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.judged(verdict("j", facts("a", 1)))
    with up(made), held(made.lake.seat_lock):
        now_s = time.time()
        monkeypatch.setattr(time, "time", lambda: now_s + 100)
        status = look(made)
    assert 99 < status.writer.lag_s < 110
    assert "committed nothing" in findings(status)


def test_a_job_that_waits_for_a_reference_is_no_lag(
    made: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.judged(verdict("first", facts("a", 1)))
    made.commit()
    made.judged(verdict("waits", facts("b", 2, inputs=["job:later/x"])))
    with up(made), held(made.lake.seat_lock):
        now_s = time.time()
        monkeypatch.setattr(time, "time", lambda: now_s + 100)
        status = look(made)
    assert status.jobs["ready"].count == 1
    assert status.writer.lag_s == 0
    assert "committed nothing" not in findings(status)


# ── processes and queues ──────────────────────────────────────────────────────────────────────


def test_a_whole_bus_is_ok(made: Pipeline, server: fakeredis.FakeServer) -> None:
    assert server is not None
    with up(made, redis=os.getpid()), held(made.lake.seat_lock):
        signs(made)
        status = look(made)
    assert status.running
    assert status.ok
    assert status.findings == []
    assert {p.role for p in status.processes if p.alive} == {*ROLES, "redis"}


def test_what_waits_in_redis_is_counted(made: Pipeline, server: fakeredis.FakeServer) -> None:
    keys = Keys()
    client = fakeredis.FakeRedis(server=server)
    client.lpush(keys.ingest, "m", "m")
    client.lpush(keys.writer, "m")
    client.hset(keys.unacked, "tag", "m")
    client.lpush(keys.notify, "j")
    client.lpush(keys.bad, "what")
    client.hset(keys.counters, "notify_moved", 7)
    with up(made):
        queues = look(made).queues
    assert (queues.ingest, queues.writer, queues.unacked) == (2, 1, 1)
    assert (queues.notify, queues.notify_bad) == (1, 1)
    assert queues.counters == {"notify_moved": 7}
    assert queues.where == "redis://127.0.0.1:1/0"


def test_without_redis_locks_and_pids_still_tell(made: Pipeline) -> None:
    with up(made, ingest=os.getpid(), beat=GONE), held(made.lake.seat_lock):
        status = look(made)
    assert status.writer.state == "alive"
    assert {p.name: p.alive for p in status.processes} == {"ingest": True, "beat": False}
    assert "Redis does not answer" in findings(status)
    assert not status.ok


def test_a_process_that_was_replaced_is_not_mourned(
    made: Pipeline, server: fakeredis.FakeServer
) -> None:
    assert server is not None
    with up(made), held(made.lake.seat_lock):
        signs(made, age_s=60, pid=1)
        silent = look(made)
        signs(made, pid=os.getpid())
        status = look(made)
    assert {p.pid for p in silent.processes} == {1}
    assert "no ingest worker is alive" in findings(silent)
    assert "pump is dead" in findings(silent)
    assert {p.pid for p in status.processes} == {os.getpid()}
    assert status.ok


def test_a_process_that_just_died_is_not_called_alive_for_its_last_sign(
    made: Pipeline, server: fakeredis.FakeServer
) -> None:
    assert server is not None
    with up(made):
        signs(made, pid=GONE)
        status = look(made)
        assert {p.role for p in status.processes if p.alive} == set()
        assert status.writer.state == "dead"
        found = health.check("writer", made.lake, made.settings)
        assert not found.ok
        assert found.says.endswith("has died since")
        signs(made, pid=GONE, host="elsewhere")  # of another host only the sign can be known
        assert health.alive("writer", made.lake, made.settings)


def test_little_room_is_told(made: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 100 << 20, "total": 1 << 40})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    status = look(made)
    assert "nearly full: 0.1 GB" in findings(status)
    assert not status.ok


# ── one process ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("process", ["worker", "writer", "pump", "beat"])
def test_a_process_is_healthy_while_it_shows_life_on_this_host(
    process: str, made: Pipeline, server: fakeredis.FakeServer
) -> None:
    assert server is not None
    with up(made):
        assert not health.check(process, made.lake, made.settings).ok
        signs(made, host="elsewhere")
        found = health.check(process, made.lake, made.settings)
        assert (found.ok, found.says) == (False, f"no {process} has shown life on {HERE}")
        assert health.alive(process, made.lake, made.settings)
        signs(made, age_s=60)
        assert not health.check(process, made.lake, made.settings).ok
        signs(made)
        assert health.check(process, made.lake, made.settings).ok


def test_without_redis_no_process_is_called_healthy(made: Pipeline) -> None:
    found = health.check("worker", made.lake, made.settings)
    assert not found.ok
    assert "Redis does not answer" in found.says


def test_an_unknown_process_is_refused(made: Pipeline) -> None:
    with pytest.raises(Refused, match="worker, writer, pump, beat"):
        health.check("cook", made.lake, made.settings)


# ── a raw command ─────────────────────────────────────────────────────────────────────────────


def test_a_raw_command_reaches_redis_and_its_answer_is_json(
    made: Pipeline, server: fakeredis.FakeServer
) -> None:
    assert server is not None
    with up(made):
        assert health.command(made.settings, ["LPUSH", "list", "a", "b"]) == 2
        assert health.command(made.settings, ["LRANGE", "list", "0", "-1"]) == ["b", "a"]
        assert health.command(made.settings, ["GET", "nothing"]) is None


def test_without_a_bus_there_is_no_redis_to_ask(made: Pipeline) -> None:
    with pytest.raises(Unavailable, match="E501"):
        health.command(made.settings, ["PING"])
    with up(made), pytest.raises(Unavailable, match="E501"):
        health.command(made.settings, ["PING"])
