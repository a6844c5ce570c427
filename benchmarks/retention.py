"""What `bus gc` costs: a plan over a grown lake, and what the writer needs to let go.

Every artifact stands on an object of its own; every key has ten versions, each superseding the one
before it and made from an artifact of another kind. One in ten is tombstoned, some have aliases, and
one of the two kinds has a policy. One job in ten still has its directory.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks import lakes
from bus import disk, retention
from bus.intake import Intake
from bus.journal import GENESIS, Journal
from bus.lake import MANIFEST, RECEIPT, VERDICT, Lake
from bus.model import (
    Alias,
    ArtifactRecord,
    CommitRecord,
    JobRecord,
    JobState,
    Outcome,
    SetPolicy,
    Tombstone,
    artifact_id_of,
)
from bus.settings import Settings
from bus.specs import Registry
from bus.writer import Writer

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.rounds import Lap
    from benchmarks.workshop import Workshop
    from bus.model import Mutation

_RAW, _MADE = "candles", "features"
_VERSIONS = 10
_ARTIFACTS_A_COMMIT = 1000
_DOCUMENT = b"x" * 3000
_THEN = "2020-01-08T05:12:33.000000Z"


def measure(shop: Workshop) -> None:
    """A plan over 100,000 artifacts; then the purge of some."""
    artifacts = shop.size(100_000, 5_000)
    lake = _grown_lake(shop.room("retention") / "lake", artifacts)
    settings = Settings.load(lake.root)
    Writer.open(lake, settings, Registry.load(settings)).close()  # makes the manifest
    rounds = shop.plan().run({"plan": partial(_plan, lake, settings)})
    going = len(retention.plan(lake, settings).going)
    shop.show(
        "retention.plan",
        rounds.wall_s("plan"),
        "s",
        at_most=5,
        rounds=rounds,
        remark=f"{artifacts:,} artifacts and {artifacts // 10:,} answered jobs, {going:,} may go",
    )
    _purge(shop, lake, settings, shop.size(5_000, 500))


def _plan(lake: Lake, settings: Settings, lap: Lap) -> None:
    with lap.measured():
        found = retention.plan(lake, settings)
    assert {piece.goes for piece in found.pieces} == {True, False}


def _purge(shop: Workshop, lake: Lake, settings: Settings, count: int) -> None:
    """From judged jobs to objects in the trash; once, for each object goes only once."""
    found = retention.plan(lake, settings)
    found.discards.clear()
    found.pieces = [p for p in found.going if p.object][:count]
    retention.apply(lake, found)
    registry = Registry.load(settings)
    Intake(lake, settings, registry).drain(budget_s=60)
    with Writer.open(lake, settings, registry) as writer:

        def drain(lap: Lap) -> None:
            with lap.measured():
                while writer.drain().more:
                    pass

        rounds = shop.plan(1).run({"purge": drain})
    assert all(lake.in_trash(str(piece.object)) for piece in found.pieces)
    shop.show(
        "retention.purge",
        count / rounds.wall_s("purge"),
        "objects/s",
        rounds=rounds,
        remark="decided, committed, moved to the trash; once",
    )


# ── the lake ─────────────────────────────────────────────────────────────────────────────────────


def _grown_lake(root: Path, artifacts: int) -> Lake:
    lake = lakes.new_lake(root)
    journal, prev = Journal(lake), GENESIS
    for seq, first in enumerate(range(0, artifacts, _ARTIFACTS_A_COMMIT), start=1):
        numbers = range(first, min(first + _ARTIFACTS_A_COMMIT, artifacts))
        jobs = [_job(lake, number) for number in numbers]
        record = CommitRecord(seq=seq, prev=prev, committed_at_utc=_THEN, writer="bench", jobs=jobs)
        prev = journal.append(record).sha256
    for number in range(0, artifacts, 10):
        directory = lake.state_dir(JobState.COMMITTED) / f"job-{number}"
        directory.mkdir()
        for name in (MANIFEST, VERDICT, RECEIPT):
            disk.write_plain(directory / name, _DOCUMENT)
    return lake


def _job(lake: Lake, number: int) -> JobRecord:
    """One artifact, and what becomes of those before it."""
    mutations: list[Mutation] = []
    if number == 0:
        mutations.append(SetPolicy(op="set_policy", kind=_MADE, keep_last=3))
    if number % 10 == 9:
        mutations.append(Tombstone(op="tombstone", target=_id(number), reason="wrong"))
    if number % 50 == 20:
        alias = Alias(op="alias", kind=_kind(number), alias=f"alias-{number}", target=_id(number))
        mutations.append(alias)
    return JobRecord(
        job_id=f"job-{number}",
        verdict_id=f"verdict-{number}",
        submission_id=f"submission-{number}",
        outcome=Outcome.COMMITTED,
        job_digest=f"{number:064x}",
        run_id=f"run-{number // 50}",
        producer="bench",
        kind=_kind(number),
        created_at_utc=_THEN,
        artifacts=[_artifact(lake, number)],
        mutations=mutations,
    )


def _artifact(lake: Lake, number: int) -> ArtifactRecord:
    """Pairs of raw and made; the tenth version of a key follows the ninth, twenty numbers later."""
    data = f"object {number}".encode()
    sha256 = disk.sha256_of(data)
    path = lake.object_path(sha256)
    path.parent.mkdir(exist_ok=True)
    disk.write_plain(path, data, 0o444)
    before = number - 2
    is_first = number // 2 % _VERSIONS == 0
    return ArtifactRecord(
        name=f"table-{number}",
        artifact_id=_id(number),
        decision="created",
        kind=_kind(number),
        schema_version=1,
        logical_key=_key(number),
        file_hash=f"sha256:{sha256}",
        content_hash=_content_hash(number),
        size_bytes=len(data),
        rows=1,
        columns='[{"name": "x", "type": "int64"}]',
        inputs=[_id(number - 1)] if number % 2 else None,
        supersedes=[] if is_first else [_id(before)],
    )


def _kind(number: int) -> str:
    return _MADE if number % 2 else _RAW


def _key(number: int) -> str:
    return f"token={number // 2 // _VERSIONS}/res=1m"


def _content_hash(number: int) -> str:
    return f"ch1:{number:064x}"


def _id(number: int) -> str:
    return artifact_id_of(_kind(number), 1, _key(number), _content_hash(number))
