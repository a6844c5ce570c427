"""Tens of thousands of broken files and manifests before the judge: a typed answer each time.

The mutants are judged in expendable children (`bus.attempt.run_limited`, as validators use it), so
that one which ends its process is named, and memory is bounded as in production.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from bus import validation
from bus.attempt import Limits, run_limited
from bus.errors import Code
from bus.intake import Intake
from bus.lake import COMMIT, MANIFEST
from bus.model import JobState, Verdict
from bus.parquet import source
from bus.settings import Settings
from bus.specs import Registry
from bus.validation import Judgement, NeedsChildError, judge, judge_in_child
from bus.verify import verify
from tests.hostile.mutants import Mutant, changed_manifest, is_covered, mutant, originals
from tests.jobs import codes, manifest_of, new_lake, parquet_bytes, put_job, small_table
from tests.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from bus.lake import Lake
    from tests.campaign import Campaign

_CHUNK = 500
_MEMORY_BYTES = 2 << 30
#: No mutant of files this small may keep a validator longer: children, and a busy machine.
_SLOW_S = 20.0
_FILE_CODES = {"E304", "E305", "E306", "E307", "E308", "E309", *(f"E3{n}" for n in range(10, 16))}


@dataclass
class Tally:
    """What became of a chunk of mutants; `wrong`: sentences about those that broke a promise."""

    tried: int = 0
    same: int = 0
    other: int = 0
    refused: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    peak_mib: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, more: Tally) -> None:
        self.tried += more.tried
        self.same += more.same
        self.other += more.other
        self.refused += more.refused
        self.codes.update(more.codes)
        self.slowest_s = max(self.slowest_s, more.slowest_s)
        self.peak_mib = max(self.peak_mib, more.peak_mib)
        self.wrong += more.wrong


Work: TypeAlias = "Callable[[random.Random, int, Tally], None]"


class Bench:
    """A job directory in work/ that is filled anew for each mutant."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self.settings = Settings(lake=lake.root, quiet_s=0.0)
        self.registry = Registry.built_in()
        self.path = lake.work / "job"
        self.path.mkdir()

    def put(self, files: dict[str, bytes], manifest: bytes) -> None:
        for old in self.path.iterdir():
            old.unlink()
        for name, data in files.items():
            (self.path / name).write_bytes(data)
        (self.path / MANIFEST).write_bytes(manifest)
        digest = hashlib.sha256(manifest).hexdigest()
        (self.path / COMMIT).write_text(
            json.dumps({"manifest_sha256": digest, "submission_id": "s-1"})
        )

    def judged(self) -> Judgement:
        """As `Intake` has it judged."""
        try:
            return judge(self.path, self.lake, self.settings, self.registry)
        except NeedsChildError:
            return judge_in_child(self.path, self.lake, self.settings, self.registry)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(new_lake(tmp_path))


def in_chunks(campaign: Campaign, count: int, work: Work) -> Tally:
    """`work` for `count` mutants, in children with a validator's limits; what they found."""
    total = Tally()
    limits = Limits(memory_bytes=_MEMORY_BYTES, wall_s=600.0, file_bytes=1 << 30)
    while total.tried < count:
        size, seed = min(_CHUNK, count - total.tried), campaign.chance.getrandbits(32)

        def chunk(note: Callable[[str], None], size: int = size, seed: int = seed) -> bytes:
            tally = Tally()
            for number in range(size):
                name = f"{seed}:{number}"
                note(name)  # should it end the process, the error tells which it was
                _one(work, name, tally)
            tally.peak_mib = _peak_mib()
            return json.dumps(vars(tally)).encode()

        found = json.loads(run_limited(chunk, limits))
        total.add(Tally(**(found | {"codes": Counter(found["codes"])})))
        assert total.wrong == []
    return total


def _one(work: Work, name: str, tally: Tally) -> None:
    started_s = time.monotonic()
    try:
        work(random.Random(name), tally.tried, tally)
    except Exception as error:  # noqa: BLE001 - any exception is the finding
        tally.wrong.append(f"{name}: {type(error).__name__}: {error}"[:500])
    took_s = time.monotonic() - started_s
    tally.slowest_s = max(tally.slowest_s, took_s)
    if took_s > _SLOW_S:
        tally.wrong.append(f"{name}: {took_s:.1f} s")
    tally.tried += 1


def _peak_mib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


# ── files ─────────────────────────────────────────────────────────────────────────────────────


def contents(bench: Bench) -> dict[str, tuple[int, str]]:
    """(rows, content hash) of each original, as the judge has it."""
    found = {}
    for name, data in originals().items():
        bench.put({"a.parquet": data}, json.dumps(manifest_of("job", ["a.parquet"])).encode())
        verdict = bench.judged().verdict
        assert codes(verdict) == [], name
        found[name] = (verdict.artifacts[0].rows, verdict.artifacts[0].content_hash)
    return found


def file_work(bench: Bench, how: str | None = None) -> Work:
    """Judge a mutant; every second one's manifest carries the original's SHA-256."""
    known = contents(bench)

    def work(chance: random.Random, number: int, tally: Tally) -> None:
        found = mutant(chance, how)
        manifest = manifest_of("job", ["a.parquet"])
        if declared := number % 2 == 0:
            digest = hashlib.sha256(originals()[found.original]).hexdigest()
            manifest["artifacts"][0]["sha256"] = digest
        bench.put({"a.parquet": found.data}, json.dumps(manifest).encode())
        verdict = bench.judged().verdict
        _note_file(found, verdict, known[found.original], tally, declared=declared)

    return work


def _note_file(
    found: Mutant, verdict: Verdict, known: tuple[int, str], tally: Tally, *, declared: bool
) -> None:
    told = set(codes(verdict))  # asserts that each problem is complete
    tally.codes.update(told)
    what = f"{found.how} of {found.original!r}"
    if told:
        tally.refused += 1
        if not told <= _FILE_CODES or not told <= {str(code) for code in Code}:
            tally.wrong.append(f"{what}: refused as {told}")
        return
    if declared:
        tally.wrong.append(f"{what}: accepted although the manifest has another SHA-256")
    facts = verdict.artifacts[0]
    if (facts.rows, facts.content_hash) == known:
        tally.same += 1
        return
    # A footer has no checksum: what it says may change unnoticed. What lies in pages may not.
    tally.other += 1
    if is_covered(found):
        tally.wrong.append(f"{what}: pages changed, and accepted as other rows")


def test_a_broken_file_is_refused_with_a_reason_or_holds_what_it_held(
    bench: Bench, campaign: Campaign
) -> None:
    total = in_chunks(campaign, campaign.size(short=250, long=40_000), file_work(bench))

    campaign.record(
        mutants=total.tried,
        refused=total.refused,
        unharmed=total.same,
        other_footer=total.other,
        slowest_s=round(total.slowest_s, 2),
        peak_mib=total.peak_mib,
        codes=dict(total.codes.most_common()),
        violations=len(total.wrong),
    )
    assert total.peak_mib < _MEMORY_BYTES >> 20
    assert {"E304", "E308"} <= set(total.codes)
    assert total.same > 0, "some mutations are harmless; else nothing showed that those pass"
    assert total.refused > 0.7 * total.tried


@pytest.mark.parametrize("hole", ["no checksums", "no look at the manifest's hash", "an exception"])
def test_the_campaign_notices_a_judge_that_lets_damage_pass(
    hole: str, bench: Bench, campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    footer = hole == "no look at the manifest's hash"  # some changes to a footer do no harm
    work = file_work(bench, "a bit in the footer" if footer else "a bit in the pages")
    match hole:
        case "no checksums":
            monkeypatch.setitem(source._OPTIONS, "page_checksum_verification", False)  # noqa: FBT003
        case "no look at the manifest's hash":
            monkeypatch.setattr(validation, "_claim_problems", lambda *_: ())
        case _:
            monkeypatch.setattr(source, "problem_of", lambda *_: None)

    with pytest.raises(AssertionError, match=r"accepted|Error|Invalid"):
        in_chunks(campaign, 60, work)


# ── manifests ─────────────────────────────────────────────────────────────────────────────────

_TABLES = {"a0.parquet": small_table(), "b/c.parquet": small_table(5)}
_RICH: dict[str, Any] = manifest_of("job", [*_TABLES]) | {
    "after": ["job-0"],
    "meta": {"params": {"interval": "1m", "list": [1, 2.5, None, True]}, "note": "x"},
    "provenance": {"writer_name": "w", "git_dirty": False},
    "mutations": [
        {"op": "tag", "target": "name:a0", "tags": {"k": ["v"]}},
        {"op": "alias", "kind": "things", "alias": "newest", "target": "name:a0"},
        {"op": "supersede", "target": "job:job-0/a0", "by": "name:a0", "expect": "x"},
    ],
}
_RICH["artifacts"][0] |= {
    "kind": "things",
    "schema_version": 1,
    "logical_key": "token=SOL/res=1m",
    "rows": 3,
    "inputs": ["job:job-0/a0"],
    "tags": {"token": "SOL", "all": ["a", "b"]},
    "supersedes": "job:job-0/a0",
}


def manifest_work(bench: Bench) -> Work:
    """Judge the good files under a changed manifest."""
    files = {name: parquet_bytes(table) for name, table in _TABLES.items()}
    hashes: set[str] = set()
    (bench.path / "b").mkdir()
    for name, data in files.items():
        (bench.path / name).write_bytes(data)

    def put(manifest: bytes) -> Verdict:
        (bench.path / MANIFEST).write_bytes(manifest)
        digest = hashlib.sha256(manifest).hexdigest()
        marker = {"manifest_sha256": digest, "submission_id": "s-1"}
        (bench.path / COMMIT).write_text(json.dumps(marker))
        return bench.judged().verdict

    whole = put(json.dumps(_RICH).encode())
    assert codes(whole) == []
    hashes |= {facts.content_hash for facts in whole.artifacts}

    def work(chance: random.Random, _: int, tally: Tally) -> None:
        verdict = put(changed_manifest(chance, _RICH))
        told = codes(verdict)
        tally.codes.update(set(told))
        # What the judge says must be fit for the journal, whatever the manifest said.
        again = Verdict.from_bytes(verdict.to_bytes())
        if again != verdict:
            tally.wrong.append(f"{verdict!r:.300} does not survive being written")
        if told:
            tally.refused += 1
        elif {facts.content_hash for facts in verdict.artifacts} <= hashes:
            tally.same += 1
        else:
            tally.wrong.append("accepted with rows that no file holds")

    return work


def test_a_changed_manifest_is_refused_with_a_reason_or_still_says_what_the_files_hold(
    bench: Bench, campaign: Campaign, tmp_path: Path
) -> None:
    (tmp_path / "x").write_text("not theirs")
    before = _everything(tmp_path, but=bench.path)

    total = in_chunks(campaign, campaign.size(short=100, long=15_000), manifest_work(bench))

    campaign.record(
        mutants=total.tried,
        refused=total.refused,
        accepted=total.same,
        slowest_s=round(total.slowest_s, 2),
        codes=dict(total.codes.most_common()),
        violations=len(total.wrong),
    )
    assert {"E102", "E103", "E104", "E107"} <= set(total.codes)
    assert total.same > 0
    assert total.refused > 0.5 * total.tried
    assert _everything(tmp_path, but=bench.path) == before, "a manifest reached outside its job"


def _everything(folder: Path, but: Path) -> dict[str, tuple[int, int, int]]:
    found = (path for path in folder.rglob("*") if path.is_file() and but not in path.parents)
    seen = {path: path.lstat() for path in found}
    return {str(p): (s.st_mode, s.st_size, s.st_mtime_ns) for p, s in seen.items()}


# ── the whole pipeline ────────────────────────────────────────────────────────────────────────


def test_a_pipeline_fed_with_mutants_answers_every_job_and_keeps_every_invariant(
    tmp_path: Path, campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # durability is not what this is about
    bus = Pipeline(tmp_path / "lake", incomplete_after_s=0.001)
    good = set()
    count = campaign.size(short=40, long=1000)
    for number in range(count):
        job_id = f"m{number:05d}"
        put_job(bus.lake, job_id, {"a0.parquet": mutant(campaign.chance).data})
        if number % 4 == 0:
            good.add(f"good-{number:05d}")
            put_job(bus.lake, f"good-{number:05d}", {"a0.parquet": small_table(3, number)})
    intake = Intake(bus.lake, bus.settings, bus.registry)
    while bus.lake.has_any(JobState.STAGED) or bus.lake.has_any(JobState.VALIDATING):
        result = intake.drain(budget_s=60)
        assert result.faults == {}
        assert result.judged
    bus.commit()

    states = Counter(bus.state(f"m{number:05d}") for number in range(count))
    assert set(states) <= {JobState.COMMITTED, JobState.REJECTED}
    assert {bus.state(job_id) for job_id in good} == {JobState.COMMITTED}
    assert states[JobState.REJECTED] > count // 2
    assert verify(bus.lake, bus.settings, bus.registry).findings == []
    campaign.record(jobs=count + len(good), rejected=states[JobState.REJECTED])
