"""From a producer to a receipt, through the real queue and the real processes."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus import exports
from bus.client import Bus
from bus.errors import Refused, Rejected
from bus.lake import RECEIPT
from bus.model import JobState, Receipt
from bus.tasks.ingest import submit_artifact
from tests.jobs import put_job, small_table
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("bus")

PATIENCE_S = 30.0
MINE: dict[str, Any] = {"kind": "things", "producer": "tester"}


def staged(bus: Bus, table: pa.Table | None = None, **fields: Any) -> str:
    """A job that lies in the inbox and of which nobody was told."""
    silent = Bus(bus.settings, ring=lambda _: False)
    return silent.submit(small_table() if table is None else table, **(MINE | fields)).job_id


def push(bus: Bus, *entries: bytes | str) -> None:
    """What a foreign producer does: it knows Redis, and the list's name."""
    bus.broker.client().lpush("bus:notify", *entries)


# ── submit_artifact.delay ─────────────────────────────────────────────────────────────────────


def test_a_job_that_lies_in_the_inbox_is_delivered_by_its_id(producer: Bus) -> None:
    job_id = staged(producer)
    result = submit_artifact.delay(job_id)
    receipt = result.get(timeout=PATIENCE_S)
    assert isinstance(receipt, Receipt)
    assert (result.id, receipt.job_id, receipt.status) == (job_id, job_id, "committed")
    assert pq.read_table(receipt.artifacts[0].path) == small_table()


@pytest.mark.parametrize(
    "make",
    [
        lambda _: small_table(start=100),
        lambda _: pd.DataFrame({"n": [1, 2], "text": ["a", "b"]}),
        lambda _: pl.DataFrame({"n": [3, 4], "text": ["a", "b"]}),
        lambda path: path,
        str,
    ],
    ids=["pyarrow", "pandas", "polars", "path", "text"],
)
def test_a_table_is_staged_by_the_caller_and_delivered(
    producer: Bus, tmp_path: Path, make: Callable[[Path], Any]
) -> None:
    pq.write_table(small_table(start=200), tmp_path / "mine.parquet")
    result = submit_artifact.delay(
        make(tmp_path / "mine.parquet"),
        run_id="run-delay",
        name="mine",
        logical_key="about=this",
        tags={"purpose": "test"},
        meta={"note": "x"},
        **MINE,
    )
    receipt = result.get(timeout=PATIENCE_S)
    assert [a.name for a in receipt.artifacts] == ["mine"]
    assert producer.lake.state_of(result.job_id) is JobState.COMMITTED


def test_a_rejected_job_raises_with_every_problem(producer: Bus) -> None:
    result = submit_artifact.delay(
        small_table(), kind="alerts_std", producer="tester", rows=4, schema_version=99
    )
    with pytest.raises(Rejected) as caught:
        result.get(timeout=PATIENCE_S)
    codes = {str(problem.code) for problem in caught.value.problems}
    assert {"E207", "E305"} <= codes
    assert all(p.where and p.message and p.hint for p in caught.value.problems)
    assert producer.lake.state_of(result.job_id) is JobState.REJECTED


@pytest.mark.usefixtures("producer")
def test_what_is_no_job_id_is_refused_by_the_caller() -> None:
    for wrong in ("../../etc/passwd", "", 7):
        with pytest.raises(Refused) as caught:
            submit_artifact.delay(wrong)
        assert caught.value.code == "E104"


# ── the notify list ───────────────────────────────────────────────────────────────────────────

MALFORMED = (
    b"",
    b"   ",
    b"{",
    b"[]",
    b"null",
    b'{"job_id": 7}',
    b'{"id": "job"}',
    b'{"job_id": "../../etc/passwd"}',
    b"\xff\xfe\x00",
    b"x" * 5000,
)


def test_anybody_may_push_a_job_as_json_or_as_a_bare_id(live_bus: Bus) -> None:
    as_json, bare = staged(live_bus), staged(live_bus)
    push(live_bus, json.dumps({"job_id": as_json, "from": "typescript"}), bare)
    for job_id in (as_json, bare):
        assert live_bus.wait(job_id, PATIENCE_S).job_id == job_id


def test_malformed_notifications_are_kept_aside_and_good_jobs_go_on(live_bus: Bus) -> None:
    client = live_bus.broker.client()
    client.delete("bus:notify:bad")
    first, last = staged(live_bus), staged(live_bus)
    push(live_bus, first, *MALFORMED, last)
    for job_id in (first, last):
        assert live_bus.wait(job_id, PATIENCE_S).job_id == job_id
    wait_until(lambda: client.llen("bus:notify:bad") >= len(MALFORMED))
    kept = [json.loads(entry) for entry in client.lrange("bus:notify:bad", 0, -1)]
    assert len(kept) == len(MALFORMED)
    assert all(entry["reason"] for entry in kept)
    assert sorted(entry["size_bytes"] for entry in kept) == sorted(map(len, MALFORMED))
    assert client.llen("bus:notify:processing") == 0


# ── lost bells ────────────────────────────────────────────────────────────────────────────────


def test_a_job_of_which_nobody_was_told_is_found_by_the_sweep(live_bus: Bus) -> None:
    job_id = staged(live_bus)
    assert live_bus.wait(job_id, PATIENCE_S).job_id == job_id


def test_an_emptied_redis_loses_no_job(live_bus: Bus) -> None:
    jobs = [live_bus.submit(small_table(start=n), **MINE) for n in range(20)]
    live_bus.broker.client().flushall()
    jobs += [live_bus.submit(small_table(start=n), **MINE) for n in range(20, 25)]
    live_bus.broker.client().flushall()
    assert {job.wait(PATIENCE_S).status for job in jobs} == {"committed"}


def test_a_job_made_by_a_shell_script_is_taken_when_it_has_been_quiet(live_bus: Bus) -> None:
    put_job(live_bus.lake, "by-hand", marker=False)
    push(live_bus, "by-hand")
    assert live_bus.wait("by-hand", PATIENCE_S).artifacts[0].rows == 3


# ── many ──────────────────────────────────────────────────────────────────────────────────────


def test_a_burst_from_many_threads_is_delivered_once_each(live_bus: Bus) -> None:
    jobs: list[Any] = []

    def produce(thread: int) -> None:
        for number in range(15):
            table = small_table(start=1000 * thread + number)
            jobs.append(live_bus.submit(table, run_id=f"burst-{thread}", **MINE))

    threads = [threading.Thread(target=produce, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    receipts = [job.wait(PATIENCE_S) for job in jobs]
    assert len({receipt.job_id for receipt in receipts}) == 60
    for receipt in receipts:
        assert len(live_bus.lake.submissions(JobState.COMMITTED, receipt.job_id)) == 1


def test_every_answer_is_an_event_too(live_bus: Bus) -> None:
    job = live_bus.submit(small_table(), **MINE)
    job.wait(PATIENCE_S)
    client: Any = live_bus.broker.client()
    mine = job.job_id.encode()
    told = wait_until(
        lambda: [e for _, e in client.xrevrange("bus:events", count=50) if e[b"job_id"] == mine]
    )
    assert len(told) == 1


def test_what_has_a_receipt_can_be_queried_soon(live_bus: Bus) -> None:
    job = live_bus.submit(small_table(rows=5), name="seen", **MINE)
    artifact = job.wait(PATIENCE_S).artifacts[0]
    sql = "SELECT artifact_id, name, rows FROM catalog.artifacts_f"
    rows = wait_until(lambda: [r for r in live_bus.query(sql) if r["name"] == "seen"])
    assert [(r["artifact_id"], r["rows"]) for r in rows] == [(artifact.artifact_id, 5)]


def test_what_has_a_receipt_is_found_and_told_at_once(live_bus: Bus) -> None:
    before = next(iter(live_bus.find(limit=1)), None)
    job = live_bus.submit(small_table(rows=7), name="found", tags={"test": "found"}, **MINE)
    receipt = job.wait(PATIENCE_S)
    found = live_bus.get(f"job:{job.job_id}/found")
    assert found.artifact_id == receipt.artifacts[0].artifact_id
    assert found.arrow().num_rows == 7
    assert live_bus.find(tags={"test": "found"}) == [found]
    assert live_bus.latest(found.kind, name="found") == found
    assert live_bus.exists(found.file_hash)
    told = live_bus.change_feed(0 if before is None else before.seq)
    assert "created" in {one.change for one in told if one.artifact_id == found.artifact_id}
    assert live_bus.find(tags={"test": "found"}, as_of=receipt.seq - 1) == []


def test_receipts_agree_in_redis_and_on_disk(live_bus: Bus) -> None:
    job = live_bus.submit(small_table(), **MINE)
    receipt = job.wait(PATIENCE_S)
    on_disk = live_bus.lake.processed / job.job_id / RECEIPT
    in_redis = live_bus.broker.await_answer(job.job_id, 1.0)
    assert in_redis == on_disk.read_bytes() == receipt.to_bytes()


def test_exports_follow_a_commit_without_being_asked(live_bus: Bus) -> None:
    seq = live_bus.submit(small_table(), **MINE).wait(PATIENCE_S).seq

    def covered() -> bool:
        results = exports.status(live_bus.lake)["results"]
        return bool(results) and all(r["ok"] and r["seq"] >= seq for r in results)

    wait_until(covered, 30, what="every export covers the commit")
    names = {path.stem for path in live_bus.lake.exports.glob("*.parquet")}
    assert {"alerts_std", "alerts_std_tradable", "schema_columns"} <= names
