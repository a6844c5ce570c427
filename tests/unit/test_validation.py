"""The judge: facts about good tables, contracts, warnings, and children that do not survive."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from bus import disk, intake as intake_module, second_reader, table as table_module, validation
from bus.attempt import AttemptEndedError, Limits
from bus.claims import MAX_ENDS, Record, claim_path
from bus.columns import Column
from bus.contract import Check, Spec
from bus.hashing import ContentHasher, UnhashableType, content_hash
from bus.intake import Intake
from bus.model import DUCKDB_UNREADABLE
from bus.settings import Settings
from bus.specs import Registry
from bus.table import TablePass
from bus.validation import NeedsChildError, NotYetError, OurFaultError, judge, judge_in_child
from tests.forks import exit_code_of
from tests.jobs import codes, manifest_of, new_lake, parquet_bytes, put_job, small_table, verdict_of
from tests.waiting import is_alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bus.lake import Lake
    from bus.model import ArtifactFacts, Verdict

TICKS = Spec(
    kind="ticks",
    columns=(
        Column.parse("ts", "timestamp[us, UTC]!"),
        Column.parse("price", "float64"),
        Column.parse("run", "string?", hashed=False),
    ),
    sort_by=("ts",),
    key=("ts",),
    time_column="ts",
    checks=(Check("price_is_positive", "price > 0"),),
)
DERIVED = Spec(kind="derived", columns=(Column.parse("x", "int64"),), derived=True)
START = datetime(2026, 1, 8, tzinfo=UTC)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return new_lake(tmp_path)


def registry() -> Registry:
    made = Registry.built_in()
    for spec in (TICKS, DERIVED):
        made.add(spec)
    return made


def ticks(rows: int = 3, **columns: Any) -> pa.Table:
    made = {
        "ts": pa.array(
            [START + timedelta(seconds=i) for i in range(rows)], pa.timestamp("ms", "UTC")
        ),
        "price": pa.array([1.0 + i for i in range(rows)]),
    }
    return pa.table(made | columns)


def judge_job(
    lake: Lake, table: pa.Table | bytes, settings: Settings | None = None, **entry: Any
) -> Verdict:
    """The verdict on a job with one artifact."""
    manifest = manifest_of("job", ["a.parquet"])
    manifest["artifacts"][0].update(entry)
    path = put_job(lake, "job", {"a.parquet": table}, manifest=manifest)
    return judge(path, lake, settings or Settings(lake=lake.root), registry()).verdict


def facts_of(lake: Lake, table: pa.Table, **entry: Any) -> ArtifactFacts:
    verdict = judge_job(lake, table, **entry)
    assert codes(verdict) == []
    return verdict.artifacts[0]


# ── facts ─────────────────────────────────────────────────────────────────────────────────────


def test_the_facts_of_a_table_of_no_known_kind(lake: Lake) -> None:
    table = pa.table({"n": pa.array([3, None, 1], pa.int32()), "s": ["b", "a", None]})

    facts = facts_of(lake, table, inputs=["x"], tags={"k": "v"}, supersedes="y")

    assert facts.rows == 3
    assert facts.content_hash == content_hash(table)
    assert facts.columns == [{"name": "n", "type": "int32"}, {"name": "s", "type": "string"}]
    assert [(c["name"], c["nulls"], c["min"], c["max"]) for c in facts.column_stats] == [
        ("n", 1, 1, 3),
        ("s", 1, "a", "b"),
    ]
    assert (facts.generic, facts.warnings) == (True, ["generic_kind"])
    assert (facts.inputs, facts.tags, facts.supersedes) == (["x"], {"k": ["v"]}, ["y"])
    assert facts.logical_key == "run=run-1/name=a0"
    assert (facts.min_ts, facts.max_ts) == (None, None)


def test_the_facts_of_a_table_under_a_contract(lake: Lake) -> None:
    table = ticks(run=pa.array(["r1", "r1", "r1"]))

    facts = facts_of(lake, table, kind="ticks", logical_key="token=X")

    assert (facts.generic, facts.warnings) == (False, [])
    assert (facts.min_ts, facts.max_ts) == (
        "2026-01-08T00:00:00.000000Z",
        "2026-01-08T00:00:02.000000Z",
    )
    assert (
        facts.content_hash == facts_of(lake_of(lake, "other"), ticks(), kind="ticks").content_hash
    )
    assert facts.logical_key == "token=X"


def lake_of(lake: Lake, name: str) -> Lake:
    return new_lake(lake.root.parent / name)


def test_times_outside_the_years_of_python_are_no_bounds_and_no_fault(lake: Lake) -> None:
    far = pa.array([-(2**62), 2**62], pa.timestamp("us", "UTC"))

    facts = facts_of(lake, pa.table({"ts": far, "price": [1.0, 2.0]}), kind="ticks")

    assert (facts.min_ts, facts.max_ts) == (None, None)


def test_an_empty_table_has_facts_too(lake: Lake) -> None:
    facts = facts_of(lake, ticks(0), kind="ticks")

    assert (facts.rows, facts.min_ts) == (0, None)
    assert facts.content_hash.startswith("ch1:")


def test_the_job_digest_is_that_of_the_content(lake: Lake) -> None:
    first = judge_job(lake, parquet_bytes(small_table(), compression="zstd"))
    second = judge_job(lake_of(lake, "b"), parquet_bytes(small_table(), compression="none"))
    third = judge_job(lake_of(lake, "c"), small_table(4))

    assert first.artifacts[0].file_hash != second.artifacts[0].file_hash
    assert first.job_digest == second.job_digest != third.job_digest


def test_judging_changes_nothing_but_the_right_to_write(lake: Lake) -> None:
    verdict = judge_job(lake, small_table())

    assert codes(verdict) == []
    assert list(lake.all_objects()) == []
    path = lake.inbox / "job" / "a.parquet"
    assert path.stat().st_mode & 0o777 == 0o444


def test_a_type_without_a_content_hash_is_accepted_by_its_bytes(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Parquet files hold no such type today; the next version of a reader may bring one.
    def unhashable(*_: object, **__: object) -> None:
        raise UnhashableType(pa.null(), "made up")

    monkeypatch.setattr("bus.table.ContentHasher", unhashable)

    facts = facts_of(lake, small_table())

    assert facts.content_hash == f"file:{facts.file_hash}"
    assert "unhashable_type" in facts.warnings


# ── contracts ─────────────────────────────────────────────────────────────────────────────────


def test_every_breach_of_a_contract_is_told_at_once(lake: Lake) -> None:
    table = pa.table({"ts": [START, START, None], "price": [1.0, -1.0, 2.0]})

    verdict = judge_job(lake, table, kind="ticks", rows=9)

    assert sorted(codes(verdict)) == ["E204", "E205", "E206", "E305"]
    assert verdict.artifacts == []


def test_a_missing_column_and_a_wrong_type_are_named(lake: Lake) -> None:
    verdict = judge_job(lake, pa.table({"price": ["1"]}), kind="ticks")

    assert sorted((p.code, p.where) for p in verdict.problems) == [
        ("E202", "a.parquet:ts"),
        ("E203", "a.parquet:price"),
    ]


def test_an_unknown_version_of_a_known_kind_is_refused(lake: Lake) -> None:
    verdict = judge_job(lake, ticks(), kind="ticks", schema_version=7)

    assert codes(verdict) == ["E207"]
    assert verdict.problems[0].where == "manifest.json.artifacts[0].schema_version"


def test_an_unknown_kind_is_refused_where_kinds_are_strict(lake: Lake) -> None:
    strict = Settings(lake=lake.root, strict_kinds=True)

    assert codes(judge_job(lake, small_table(), strict)) == ["E201"]


def test_an_open_kind_is_not_unknown(lake: Lake) -> None:
    strict = Settings(lake=lake.root, strict_kinds=True)
    specs = map(partial(Registry.built_in().find, version=1), Registry.built_in().kinds())
    kind = next(spec.kind for spec in specs if spec is not None and spec.open)

    verdict = judge_job(lake, small_table(), strict, kind=kind)

    assert codes(verdict) == []
    assert verdict.artifacts[0].warnings == []


def test_a_derived_kind_must_say_what_it_was_made_from(lake: Lake) -> None:
    table = pa.table({"x": [1]})

    assert codes(judge_job(lake, table, kind="derived")) == ["E103"]
    assert codes(judge_job(lake_of(lake, "b"), table, kind="derived", inputs=[])) == []


def test_a_hint_at_another_kind_is_a_warning(lake: Lake) -> None:
    facts = facts_of(lake, ticks(), kind="ticks", schema_hint="canon.alerts_std")

    assert facts.warnings == ["schema_hint_differs: canon.alerts_std for kind ticks"]


# ── what needs a child ────────────────────────────────────────────────────────────────────────

NESTED = pa.table({"l": [[1, 2], None, []]})


def test_nested_and_wide_tables_are_not_for_the_pools_process(lake: Lake) -> None:
    with pytest.raises(NeedsChildError):
        judge_job(lake, NESTED)
    with pytest.raises(NeedsChildError):
        judge_job(lake_of(lake, "wide"), pa.table({f"c{i}": [i] for i in range(501)}))


def test_a_child_judges_like_the_pools_process(lake: Lake) -> None:
    path = put_job(lake, "job")
    settings = Settings(lake=lake.root)
    here = judge(path, lake, settings, registry())
    there = judge_in_child(path, lake, settings, registry())

    differ = {"verdict_id", "judged_at_utc"}
    assert there.verdict.model_dump(exclude=differ) == here.verdict.model_dump(exclude=differ)
    assert there.files == here.files
    assert list(lake.run.iterdir()) == [], "the room for a sort is gone"


def test_of_a_kind_that_is_not_known_the_one_that_was_meant_is_told(lake: Lake) -> None:
    manifest = manifest_of("job", ["a0.parquet"], kind="ticksy")
    path = put_job(lake, "job", manifest=manifest)
    known = registry()

    free = judge(path, lake, Settings(lake=lake.root), known).verdict
    strict = judge(path, lake, Settings(lake=lake.root, strict_kinds=True), known).verdict

    assert free.artifacts[0].warnings == ["generic_kind: did you mean 'ticks'?"]
    assert (codes(strict), strict.problems[0].hint[:20]) == (["E201"], "Did you mean 'ticks'")


def test_a_later_verdict_has_a_later_id(lake: Lake) -> None:
    path = put_job(lake, "job")
    settings = Settings(lake=lake.root)
    begin_ms = time.time_ns() // 1_000_000
    ids = []
    for _ in range(3):
        ids.append(uuid.UUID(judge(path, lake, settings, registry()).verdict.verdict_id))
        time.sleep(0.002)  # the clock of the ids ticks in milliseconds
    end_ms = time.time_ns() // 1_000_000

    assert sorted(set(ids)) == ids
    assert {(found.version, found.variant) for found in ids} == {(7, uuid.RFC_4122)}
    assert all(begin_ms <= found.int >> 80 <= end_ms for found in ids)


def test_nested_tables_pass_through_the_intake(lake: Lake) -> None:
    put_job(lake, "nested", {"a.parquet": NESTED})

    result = Intake(lake, Settings(lake=lake.root), registry()).drain()

    assert result.judged == ["nested"]
    assert verdict_of(lake, "nested").artifacts[0].content_hash == content_hash(NESTED)


def test_a_large_unsorted_table_is_sorted_on_disk(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    sort, sorted_there = validation._sorted_hash, lake.root / "sorted"

    def sort_and_tell(*given: Any) -> str:
        sorted_there.touch()  # in the child: only the disk tells us
        return sort(*given)

    monkeypatch.setattr(validation, "_sorted_hash", sort_and_tell)
    monkeypatch.setattr(
        table_module, "ContentHasher", partial(ContentHasher, sort_limit_bytes=1000)
    )
    numbers = [(i * 7919) % 100_000 for i in range(200_000)]
    table = pa.table({"n": pa.array(numbers, pa.int64())})
    path = put_job(lake, "job", {"a.parquet": table})

    with pytest.raises(NeedsChildError):
        judge(path, lake, Settings(lake=lake.root), registry())
    verdict = judge_in_child(path, lake, Settings(lake=lake.root), registry()).verdict

    assert codes(verdict) == []
    assert verdict.artifacts[0].content_hash == content_hash(table)
    assert sorted_there.exists()
    assert list(lake.run.iterdir()) == []


# ── ends of children ──────────────────────────────────────────────────────────────────────────


def _segfault(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang(*_: object) -> None:
    time.sleep(60)


def _eat_memory(*_: object) -> None:
    held = []
    while True:
        held.append(bytes(64 << 20))


ENDS: dict[str, tuple[Callable[..., None], str]] = {
    "segfault": (_segfault, "SIGSEGV at a.parquet"),
    "hang": (_hang, "the wall limit of 0 s at a.parquet"),
    "memory": (_eat_memory, "the memory limit of 256 MiB at a.parquet"),
}


@pytest.mark.parametrize("case", ENDS)
def test_three_ends_that_a_parent_saw_are_a_rejection_and_good_jobs_go_on(
    case: str, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehave, how = ENDS[case]
    settings = Settings(lake=lake.root, validator_memory_bytes=256 << 20)
    intake = Intake(lake, settings, registry())
    run = TablePass.run
    child_only = os.getpid()

    def in_a_child(table_pass: TablePass) -> Any:
        if os.getpid() != child_only:
            misbehave()
        return run(table_pass)

    monkeypatch.setattr(TablePass, "run", in_a_child)
    monkeypatch.setattr(
        validation,
        "limits_for",
        lambda *_: Limits(256 << 20, 0.3 if case == "hang" else 30.0, 1 << 30),
    )
    put_job(lake, "poison", {"a.parquet": NESTED})
    for attempt in range(1, MAX_ENDS):
        put_job(lake, f"good-{attempt}")
        result = intake.drain("poison")
        assert result.judged == [f"good-{attempt}"]
        assert result.later["poison"] > 0
        assert result.faults == {}
        assert Record.parse(claim_path(lake, "poison").read_bytes()).ends == [how] * attempt
    result = intake.drain()

    assert result.judged == ["poison"]
    verdict = verdict_of(lake, "poison")
    assert codes(verdict) == ["E303"]
    assert verdict.problems[0].where == "a.parquet"
    assert verdict.problems[0].message == f"3 attempts ended: {how}; {how}; {how}"
    assert (verdict.run_id, verdict.submission_id is not None) == ("run-1", True)
    assert list(lake.all_objects()) != []
    assert list(lake.claims.iterdir()) == []


def _duckdb_does(monkeypatch: pytest.MonkeyPatch, misbehave: Callable[[], None]) -> None:
    """DuckDB starts, sees the file, and then this happens."""

    def reads(_fd: int, _dir: Path, _memory: int, started: Callable[[], object]) -> None:
        started()
        misbehave()

    monkeypatch.setattr(second_reader, "_reads", reads)


def test_a_file_that_ends_duckdb_is_left_out_of_its_views(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    _duckdb_does(monkeypatch, _segfault)
    path = put_job(lake, "job", {"a.parquet": NESTED})

    verdict = judge_in_child(path, lake, Settings(lake=lake.root), registry()).verdict

    assert codes(verdict) == []
    (artifact,) = verdict.artifacts
    assert artifact.warnings == ["generic_kind", f"{DUCKDB_UNREADABLE}: SIGSEGV ended DuckDB"]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_duckdb_that_ends_before_it_sees_the_file_is_not_the_jobs_fault(
    number: signal.Signals, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_reader, "_reads", lambda *_: os.kill(os.getpid(), number))
    path = put_job(lake, "job", {"a.parquet": NESTED})

    with pytest.raises(OurFaultError, match=f"{number.name} at the start of DuckDB"):
        judge_in_child(path, lake, Settings(lake=lake.root), registry())


def test_a_full_disk_under_duckdb_is_not_the_jobs_fault(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    _duckdb_does(monkeypatch, full)
    path = put_job(lake, "job", {"a.parquet": NESTED})

    with pytest.raises(OurFaultError, match="No space left"):
        judge_in_child(path, lake, Settings(lake=lake.root), registry())


DUCKDB_ENDS: dict[str, tuple[Callable[..., None], str]] = {
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL at a.parquet"),
    "hang": (_hang, "the wall limit of 1 s at a.parquet"),
    "memory": (_eat_memory, "the memory limit of 256 MiB at a.parquet"),
}


@pytest.mark.parametrize("case", DUCKDB_ENDS)
def test_another_end_of_duckdb_is_an_attempt_of_the_job(
    case: str, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehave, how = DUCKDB_ENDS[case]
    pid = lake.run / "pid"

    def noted() -> None:
        pid.write_text(str(os.getpid()))
        misbehave()

    _duckdb_does(monkeypatch, noted)
    wall_s = 1.0 if case == "hang" else 30.0
    monkeypatch.setattr(validation, "limits_for", lambda *_: Limits(256 << 20, wall_s, 1 << 30))
    path = put_job(lake, "job", {"a.parquet": NESTED})

    with pytest.raises(AttemptEndedError, match=how):
        judge_in_child(path, lake, Settings(lake=lake.root), registry())

    wait_until(lambda: not is_alive(int(pid.read_text())), what="DuckDB's process is gone")


def test_deaths_of_the_whole_worker_never_count(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_job(lake, "job")

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def drain() -> None:
        Intake(lake, Settings(lake=lake.root), registry()).drain()

    with monkeypatch.context() as patched:
        patched.setattr(intake_module, "judge", die)
        patched.setattr(intake_module, "judge_in_child", die)
        for _ in range(MAX_ENDS + 1):
            assert exit_code_of(drain) == -signal.SIGKILL
            assert (lake.work / "job").is_dir()
            assert Record.parse(claim_path(lake, "job").read_bytes()).ends == []

    assert exit_code_of(drain) == 0
    assert codes(verdict_of(lake, "job")) == []


def test_a_job_dropped_by_a_death_is_judged_in_a_child(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_job(lake, "job").rename(lake.work / "job")
    judged_here: list[str] = []
    monkeypatch.setattr("bus.intake.judge", lambda path, *_, **__: judged_here.append(path.name))

    result = Intake(lake, Settings(lake=lake.root), registry()).drain()

    assert result.judged == ["job"]
    assert judged_here == []
    assert codes(verdict_of(lake, "job")) == []


def test_memory_that_ran_out_here_is_tried_again_in_a_child(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_job(lake, "job")
    intake = Intake(lake, Settings(lake=lake.root), registry())

    def out_of_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("bus.intake.judge", out_of_memory)
    assert "MemoryError" in intake.drain().faults["job"]

    assert intake.drain().judged == ["job"]
    assert codes(verdict_of(lake, "job")) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE])
def test_a_fault_of_ours_in_a_child_is_not_the_jobs(
    number: int, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put_job(lake, "job")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk, "open_foreign", fail)
    with pytest.raises(OurFaultError, match=os.strerror(number)):
        judge_in_child(path, lake, Settings(lake=lake.root), registry())
    with pytest.raises(OSError, match=os.strerror(number)):
        judge(path, lake, Settings(lake=lake.root), registry())


def test_a_module_of_ours_that_a_child_cannot_load_is_not_the_jobs_fault(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put_job(lake, "job", {"a.parquet": NESTED})

    monkeypatch.delattr("bus.second_reader", raising=False)
    monkeypatch.setitem(sys.modules, "bus.second_reader", None)
    with pytest.raises(OurFaultError, match="second_reader"):
        judge_in_child(path, lake, Settings(lake=lake.root), registry())


@pytest.mark.parametrize("error", [KeyError("a defect"), ImportError("what its table asks for")])
def test_a_defect_in_a_child_names_itself(
    error: Exception, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put_job(lake, "job")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(TablePass, "run", fail)
    with pytest.raises(AttemptEndedError, match=f"{type(error).__name__}: "):
        judge_in_child(path, lake, Settings(lake=lake.root), registry())


def test_a_child_that_must_wait_says_so(lake: Lake) -> None:
    path = put_job(lake, "job")

    with (path / "a0.parquet").open("r+b"), pytest.raises(NotYetError):
        judge_in_child(path, lake, Settings(lake=lake.root), registry())


# ── the pool's process ────────────────────────────────────────────────────────────────────────

THREADS = """
import os, sys, pyarrow
from pathlib import Path
before = len(os.listdir('/proc/self/task'))
from bus.intake import Intake
from bus.lake import Lake
from bus.settings import Settings
from bus.specs import Registry
root = Path(sys.argv[1])
result = Intake(Lake(root), Settings(lake=root), Registry.built_in()).drain()
assert len(result.judged) == 3, result
after = len(os.listdir('/proc/self/task'))
print(before, after, 'duckdb' in sys.modules)
"""


def test_judging_starts_no_threads_so_that_a_fork_is_safe(lake: Lake) -> None:
    put_job(lake, "flat")
    put_job(lake, "many", {f"{i}.parquet": ticks(100 + i) for i in range(5)})
    put_job(lake, "nested", {"a.parquet": NESTED})

    run = subprocess.run(
        [sys.executable, "-c", THREADS, str(lake.root)], capture_output=True, text=True, check=True
    )
    before, after, has_duckdb = run.stdout.split()

    assert int(after) <= int(before)
    assert has_duckdb == "False"
