"""Bus and Job: submitting without a broker, waiting by files, by Redis, and by neither."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bus.client
from bus import broker
from bus.broker import Endpoint
from bus.client import Bus, Job
from bus.errors import JobConflict, NotFound, Refused, Rejected, WaitTimeout
from bus.lake import COMMIT, MANIFEST, RECEIPT, REJECT_REASON, VERDICT, Lake
from bus.model import JobState, Receipt
from bus.settings import Settings
from bus.supervisor import valkey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TABLE = pa.table({"n": [1, 2, 3]})


@pytest.fixture
def client(tmp_path: Path) -> Bus:
    """A bus nobody runs: the lake is there, Redis and workers are not."""
    Lake(tmp_path / "lake").create()
    return Bus(Settings(lake=tmp_path / "lake"))


def submit(client: Bus, data: Any = TABLE, **fields: Any) -> Job:
    return client.submit(data, **({"kind": "things", "producer": "tester"} | fields))


def manifest_of(job: Job) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((job.bus.lake.inbox / job.job_id / MANIFEST).read_bytes())
    return document


def receipt(job_id: str, submission_id: str | None, seq: int = 1) -> bytes:
    return Receipt(
        job_id=job_id,
        submission_id=submission_id,
        seq=seq,
        status="committed",
        artifacts=[],
        committed_at_utc="2026-01-08T05:12:33Z",
    ).to_bytes()


def reason(job_id: str, submission_id: str | None, seq: int = 1) -> bytes:
    first = {"code": "E202", "where": "a.mint", "message": "no column mint", "hint": "write it"}
    second = {"code": "E305", "where": "a", "message": "3 rows, not 4", "hint": "count"}
    document = {
        "code": "E202",
        "message": "no column mint",
        "hint": "write it",
        "problems": [first, second],
        "job_id": job_id,
        "submission_id": submission_id,
        "rejected_at_utc": "2026-01-08T05:12:33Z",
        "seq": seq,
    }
    return json.dumps(document).encode()


def answer(
    job: Job,
    document: bytes,
    state: JobState = JobState.COMMITTED,
    *,
    submission_id: str | None = None,
) -> None:
    """Do what workers and writer do with a job: on to its last directory, with its answer."""
    lake = job.bus.lake
    target = lake.free_place(state, job.job_id)
    source = lake.inbox / job.job_id
    name = RECEIPT if state is JobState.COMMITTED else REJECT_REASON
    (source / VERDICT).write_text(json.dumps({"submission_id": submission_id}))
    (source / name).write_bytes(document)
    source.rename(target)


# ── submitting ────────────────────────────────────────────────────────────────────────────────


def test_without_a_running_bus_a_job_is_staged_whole(client: Bus) -> None:
    job = submit(client, name="mine", logical_key="token=x", tags={"set": "a"}, meta={"p": 1})
    assert job.status is JobState.STAGED
    document = manifest_of(job)
    entry = document["artifacts"][0]
    assert (document["kind"], document["producer"], document["meta"]) == (
        "things",
        "tester",
        {"p": 1},
    )
    assert (entry["artifact_id"], entry["logical_key"], entry["tags"], entry["rows"]) == (
        "mine",
        "token=x",
        {"set": ["a"]},
        3,
    )
    staged = client.lake.inbox / job.job_id
    assert pq.read_table(staged / entry["relpath"]) == TABLE
    assert (staged / COMMIT).exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda _: TABLE,
        lambda _: pd.DataFrame({"n": [1, 2, 3]}),
        lambda _: pl.DataFrame({"n": [1, 2, 3]}),
        lambda _: pa.RecordBatchReader.from_batches(TABLE.schema, TABLE.to_batches()),
        lambda _: [{"n": 1}, {"n": 2}, {"n": 3}],
        lambda path: path,
        str,
    ],
    ids=["pyarrow", "pandas", "polars", "stream", "dicts", "path", "text"],
)
def test_whatever_holds_a_table_can_be_submitted(
    client: Bus, tmp_path: Path, make: Callable[[Path], Any]
) -> None:
    pq.write_table(TABLE, tmp_path / "mine.parquet")
    job = submit(client, make(tmp_path / "mine.parquet"))
    relpath = manifest_of(job)["artifacts"][0]["relpath"]
    stored = pq.read_table(client.lake.inbox / job.job_id / relpath)
    assert stored.column("n").to_pylist() == [1, 2, 3]


def test_a_job_may_hold_several_artifacts(client: Bus) -> None:
    with client.job(kind="trades", producer="tester", run_id="run-7") as job:
        job.add(TABLE, name="trades")
        job.add(TABLE, name="fills", kind="fills", inputs=["name:trades"])
    document = manifest_of(job.job)
    assert document["run_id"] == "run-7"
    assert [(a["artifact_id"], a.get("inputs")) for a in document["artifacts"]] == [
        ("trades", None),
        ("fills", ["name:trades"]),
    ]


def test_an_exception_in_the_block_leaves_nothing_behind(client: Bus) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: SIM117 - the block is what is tested
        with client.job(kind="trades", producer="tester") as job:
            job.add(TABLE)
            raise ZeroDivisionError
    assert list(client.lake.inbox.iterdir()) == []
    with pytest.raises(RuntimeError, match="when its block ends"):
        _ = job.job


def test_the_same_job_again_is_acknowledged_and_other_content_is_a_conflict(client: Bus) -> None:
    first = submit(client, job_id="job-1")
    assert submit(client, job_id="job-1").submission_id == first.submission_id
    with pytest.raises(JobConflict) as caught:
        submit(client, pa.table({"n": [9]}), job_id="job-1")
    assert caught.value.code == "E105"


def test_jobs_without_a_run_share_the_one_of_their_bus(client: Bus) -> None:
    runs = {manifest_of(submit(client))["run_id"] for _ in range(2)}
    assert runs == {client.run_id}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"kind": "no spaces"}, "E104"),
        ({"job_id": "../up"}, "E104"),
        ({"schema_version": 0}, "E103"),
        ({"kind": "bt_trades"}, "E103"),  # a derived kind, and nothing said of inputs
        ({"data": 42}, "E601"),
        ({"data": "/no/such/file.parquet"}, "E301"),
    ],
)
def test_a_submission_that_cannot_be_is_refused_at_once(
    client: Bus, fields: dict[str, Any], code: str
) -> None:
    with pytest.raises(Refused) as caught:
        submit(client, fields.pop("data", TABLE), **fields)
    assert caught.value.code == code
    assert list(client.lake.inbox.iterdir()) == []


def test_the_bell_of_ones_own_is_rung_after_the_job_is_safe(client: Bus) -> None:
    seen: list[JobState] = []
    mine = Bus(client.settings, ring=lambda job_id: seen.append(client.lake.state_of(job_id)))
    submit(mine)
    assert seen == [JobState.STAGED]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("bus", {"celery", "duckdb", "kombu", "numpy", "pyarrow", "pydantic", "redis"}),
        ("bus.client", {"celery", "duckdb", "kombu", "numpy", "pyarrow"}),
    ],
)
def test_a_program_pays_for_what_it_uses(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({absent!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


# ── waiting, with nothing but files ───────────────────────────────────────────────────────────


def test_the_receipt_in_the_directory_is_the_answer(client: Bus) -> None:
    job = submit(client)
    answer(job, receipt(job.job_id, job.submission_id, seq=42))
    assert job.wait(1).seq == 42
    assert (job.id, job.get(timeout=1).seq) == (job.job_id, 42)
    assert client.wait(job.job_id, 1).seq == 42


def test_a_rejection_raises_with_every_problem(client: Bus) -> None:
    job = submit(client)
    answer(job, reason(job.job_id, job.submission_id), JobState.REJECTED)
    with pytest.raises(Rejected) as caught:
        job.wait(1)
    assert [(p.code, p.where) for p in caught.value.problems] == [
        ("E202", "a.mint"),
        ("E305", "a"),
    ]


def test_an_id_that_was_committed_with_other_content_is_a_conflict(client: Bus) -> None:
    job = submit(client)
    document = reason(job.job_id, job.submission_id).replace(b"E202", b"E105")
    answer(job, document, JobState.REJECTED)
    with pytest.raises(JobConflict):
        job.wait(1)


def test_an_answer_that_comes_while_waiting_is_found_without_redis(client: Bus) -> None:
    job = submit(client)
    document = receipt(job.job_id, job.submission_id)
    threading.Timer(0.1, answer, [job, document]).start()
    assert job.wait(10).job_id == job.job_id


def test_no_answer_in_time_says_where_the_job_is(client: Bus) -> None:
    job = submit(client)
    started_s = time.monotonic()
    with pytest.raises(WaitTimeout, match="staged") as caught:
        job.wait(0.05)
    assert caught.value.code == "E506"
    assert isinstance(caught.value, TimeoutError)
    assert time.monotonic() - started_s < 1.0


def test_the_answer_to_an_earlier_submission_is_not_mine(client: Bus) -> None:
    first = submit(client, job_id="job-1")
    answer(first, reason("job-1", first.submission_id), JobState.REJECTED)
    second = submit(client, job_id="job-1")
    with pytest.raises(WaitTimeout):
        second.wait(0.05)
    with pytest.raises(WaitTimeout):
        client.wait("job-1", 0.05)  # whoever asks by id means the one that waits
    answer(second, receipt("job-1", second.submission_id, seq=2))
    assert second.wait(1).seq == 2
    assert client.wait("job-1", 1).seq == 2
    with pytest.raises(Rejected):
        first.wait(1)


def test_a_repeated_job_finds_the_first_receipt_beside_its_own_verdict(client: Bus) -> None:
    first = submit(client, job_id="job-1")
    answer(first, receipt("job-1", first.submission_id))
    again = submit(client, job_id="job-1")
    answer(again, receipt("job-1", first.submission_id), submission_id=again.submission_id)
    assert again.wait(1).seq == 1


def test_a_job_nobody_knows_is_not_found(client: Bus) -> None:
    for unknown in ("nobody", "../../etc"):
        with pytest.raises(NotFound):
            client.wait(unknown, 0.05)


# ── waiting with Redis ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def redis_of(client: Bus) -> Iterator[subprocess.Popen[bytes]]:
    """A real server for the client's lake, and nothing else of a bus."""
    server = valkey.prepare(client.lake)
    process = subprocess.Popen(
        server.command, cwd=client.lake.redis_data, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 10
    while not valkey.answers(server.url):
        assert time.monotonic() < deadline, "no server"
        time.sleep(0.005)
    made = Endpoint(server.url, "", os.getpid(), "2026-01-08T05:12:33Z")
    broker.write_endpoint(client.lake, made)
    yield process
    process.kill()
    process.wait()


class Announced:
    def __init__(self, job_id: str, document: bytes) -> None:
        self.job_id = job_id
        self.document = document
        self.event = {"job_id": job_id}


def test_an_announcement_ends_the_wait_at_once(
    client: Bus, redis_of: subprocess.Popen[bytes]
) -> None:
    assert redis_of.poll() is None
    job = submit(client)
    assert client.broker.client().llen("bus:notify") == 1
    told_s: list[float] = []

    def announce() -> None:
        told_s.append(time.monotonic())
        document = receipt(job.job_id, job.submission_id, seq=5)
        client.broker.announce([Announced(job.job_id, document)])

    threading.Timer(0.6, announce).start()
    assert job.wait(10).seq == 5
    assert time.monotonic() - told_s[0] < 0.2, "the files were polled, the bell not heard"


def test_an_announcement_for_an_earlier_submission_is_passed_over(
    client: Bus, redis_of: subprocess.Popen[bytes]
) -> None:
    assert redis_of.poll() is None
    job = submit(client)
    client.broker.announce([Announced(job.job_id, receipt(job.job_id, "another"))])
    with pytest.raises(WaitTimeout):
        job.wait(0.3)


def test_an_answer_too_large_for_redis_is_read_from_its_file(
    client: Bus, redis_of: subprocess.Popen[bytes]
) -> None:
    assert redis_of.poll() is None
    job = submit(client)
    document = receipt(job.job_id, job.submission_id, seq=8)
    large = document[:-1] + b',"warnings":["' + b"w" * 9000 + b'"]}'
    large = large.replace(b'"warnings":[],', b"")

    def finish() -> None:
        answer(job, large)
        client.broker.announce([Announced(job.job_id, large)])

    threading.Timer(0.2, finish).start()
    assert job.wait(10).warnings == ["w" * 9000]


def test_a_redis_that_dies_while_we_wait_does_not_matter(
    client: Bus, redis_of: subprocess.Popen[bytes]
) -> None:
    job = submit(client)
    threading.Timer(0.1, redis_of.kill).start()
    threading.Timer(0.3, answer, [job, receipt(job.job_id, job.submission_id)]).start()
    assert job.wait(10).seq == 1


def test_connect_finds_the_lake_by_argument(tmp_path: Path) -> None:
    assert bus.client.connect(tmp_path / "there").lake.root == tmp_path / "there"
