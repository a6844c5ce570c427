"""Every answer as of a commit equals what a manifest that ends with that commit says now."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from bus import references
from bus.catalog import Catalog
from bus.errors import NotFound
from bus.settings import Settings
from bus.snapshot import Snapshots
from bus.specs import Registry
from tests.any_history import ALIASES, COMMITS, KINDS, NAMES, PRODUCERS, RUNS, Story
from tests.ledger import in_memory_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from bus.artifact import Artifact, Status
    from bus.finding import Then
    from bus.manifest import Manifest
    from tests.campaign import Campaign

STATUSES: tuple[Status, ...] = ("active", "superseded", "tombstoned", "damaged", "purged")
#: Examples of hypothesis; and commits of the one history that a catalog is made of.
EXAMPLES, LONG = 40, 25


# ── the present, by the views that the documents describe ───────────────────────────────────────


def present_artifacts(now: Manifest) -> set[tuple[Any, ...]]:
    tags = defaultdict(list)
    for artifact_id, k, v in now.rows("SELECT artifact_id, k, v FROM artifact_tags ORDER BY k, v"):
        tags[artifact_id].append((k, v))
    rows = now.rows(
        "SELECT a.artifact_id, a.artifact_type, a.logical_key, status, a.file_hash, a.row_count, "
        "f.added_seq FROM artifacts a JOIN artifact_facts f USING (artifact_id) "
        "WHERE f.ended_seq IS NULL"
    )
    return {(*row, tuple(tags[row[0]])) for row in rows}


def seen(found: list[Artifact]) -> set[tuple[Any, ...]]:
    assert len({one.artifact_id for one in found}) == len(found)
    assert found == sorted(found, key=lambda one: -one.seq)
    return {
        (
            *(one.artifact_id, one.kind, one.logical_key, one.status, one.file_hash),
            *(one.rows, one.seq),
            tuple((k, v) for k, values in one.tags.items() for v in values),
        )
        for one in found
    }


def present_latest(now: Manifest, **asked: str) -> str | None:
    where = " AND ".join(f"u.{column} = :{column}" for column in asked)
    newest = (
        "SELECT artifact_id FROM run_artifacts u JOIN artifacts a USING (artifact_id) "
        f"WHERE {where} AND status = 'active' ORDER BY use_no DESC LIMIT 1"
    )
    found = now.rows(newest, asked)
    return found[0][0] if found else None


def present_reference(now: Manifest, reference: str) -> str | None:
    if ":" in reference and not reference.startswith("job:"):
        kind, alias = reference.split(":")
        sql = "SELECT artifact_id FROM aliases WHERE kind = ? AND alias = ?"
        found = now.rows(sql, (kind, alias))
        fallback = present_latest(now, kind=kind) if alias == "latest" else None
        return found[0][0] if found else fallback
    first, name = reference.split("/")
    column = "job_id" if first.startswith("job:") else "run_id"
    sql = f"SELECT artifact_id FROM run_artifacts WHERE {column} = ? AND name = ?"
    found = now.rows(f"{sql} ORDER BY use_no DESC LIMIT 1", (first.removeprefix("job:"), name))
    return found[0][0] if found else None


def meant(then: Then, reference: str) -> str | None:
    try:
        return references.artifact_id(then, reference)
    except NotFound:
        return None


def id_of(found: Artifact | None) -> str | None:
    return None if found is None else found.artifact_id


def assert_as_of_equals(then: Then, now: Manifest, story: Story) -> None:
    """`then` answers as `now` does, a manifest that ends with its commit."""
    expected = present_artifacts(now)
    assert seen(then.find()) == expected
    for status in STATUSES:
        wanted = {row for row in expected if row[3] == status}
        assert seen(then.find(status=status)) == wanted
    for colour in ("red", "blue"):
        wanted = {row for row in expected if ("colour", colour) in row[-1]}
        assert seen(then.find(tags={"colour": colour})) == wanted
    for kind in KINDS:
        wanted = {row for row in expected if row[1] == kind}
        assert seen(then.find(kind=kind)) == wanted
        assert id_of(then.latest(kind)) == present_latest(now, kind=kind)
        for producer in PRODUCERS:
            for name in NAMES:
                asked = {"kind": kind, "producer": producer, "name": name}
                assert id_of(then.latest(**asked)) == present_latest(now, **asked)
    for run_id in RUNS:
        sql = "SELECT DISTINCT artifact_id FROM run_artifacts WHERE run_id = ?"
        ids = {artifact_id for (artifact_id,) in now.rows(sql, (run_id,))}
        found = then.find(run_id=run_id)
        assert {one.artifact_id for one in found} == ids & {row[0] for row in expected}
    asked_for = [f"{kind}:{alias}" for kind in KINDS for alias in ALIASES]
    asked_for += [f"{run}/{name}" for run in RUNS for name in NAMES]
    asked_for += [f"job:{job_id}/{made.name}" for job_id, made in story.delivered]
    for reference in asked_for:
        assert meant(then, reference) == present_reference(now, reference), reference
    for artifact_id, *_ in expected:
        assert meant(then, artifact_id) == artifact_id
        related = set(then.named("relations_then", id=artifact_id))
        assert related == set(now.rows(_RELATED, {"id": artifact_id}))


_RELATED = """
SELECT 'inputs', input_artifact_id FROM artifact_lineage WHERE artifact_id = :id
UNION ALL SELECT 'used_by', artifact_id FROM artifact_lineage WHERE input_artifact_id = :id
UNION ALL SELECT 'supersedes', supersedes_artifact_id FROM artifact_supersedes
WHERE artifact_id = :id
UNION ALL SELECT 'superseded_by', artifact_id FROM artifact_supersedes
WHERE supersedes_artifact_id = :id
UNION ALL SELECT 'aliases', kind || ':' || alias FROM aliases WHERE artifact_id = :id
UNION ALL SELECT 'pins', pin FROM pins WHERE artifact_id = :id
UNION ALL SELECT 'tombstoned', reason FROM tombstone_facts
WHERE artifact_id = :id AND ended_seq IS NULL
UNION ALL SELECT 'purged', reason FROM artifacts JOIN purge_facts USING (file_hash)
WHERE artifact_id = :id AND ended_seq IS NULL
"""


@hypothesis.settings(max_examples=EXAMPLES)
@hypothesis.given(COMMITS)
def test_as_of_any_commit_of_any_history_equals_a_replay_up_to_it(
    commits: list[list[tuple[str, list[int]]]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        story = Story(folder)
        for jobs in commits:
            story.commit(jobs)
        replay = in_memory_manifest(story.lake)
        assert_as_of_equals(story.then(0), replay, story)
        for commit in story.ledger.commits:
            replay.apply([commit])
            assert_as_of_equals(story.then(commit.record.seq), replay, story)
        replay.close()
        story.close()


@pytest.mark.slow
def test_the_catalogs_macro_and_the_manifest_agree_about_every_commit_of_a_history(
    tmp_path: Path, campaign: Campaign
) -> None:
    story = Story(str(tmp_path))
    what = ["deliver"] * 5 + ["supersede", "tombstone", "damage", "restore", "purge"]
    for _ in range(campaign.size(short=LONG, long=20 * LONG)):
        story.commit(
            [
                (campaign.chance.choice(what), campaign.chance.choices(range(12), k=6))
                for _ in range(campaign.chance.randint(1, 3))
            ]
        )
    manifest, lake = story.ledger.manifest, story.lake
    lake.create()
    settings = Settings(lake=lake.root)
    catalog = Catalog.open(lake, settings, Registry.built_in(), manifest)
    catalog.catch_up(manifest)
    catalog.publish(lambda: True)
    catalog.close()
    columns = "artifact_id, kind, logical_key, status, file_hash, canonical_path"
    snapshots = Snapshots(lake)
    statuses = set()
    for seq in range(manifest.applied[0] + 1):
        sql = f"SELECT DISTINCT {columns} FROM catalog.artifacts_asof({seq})"
        found = story.then(seq).find()
        assert set(snapshots.select(sql)[1]) == {
            (one.artifact_id, one.kind, one.logical_key, one.status, one.file_hash, one.path)
            for one in found
        }
        statuses |= {one.status for one in found}
    assert statuses == set(STATUSES)
    listed = snapshots.select(f"SELECT {columns} FROM catalog.artifacts_d")[1]
    assert sorted(listed) == sorted(
        (one.artifact_id, one.kind, one.logical_key, one.status, one.file_hash, one.path)
        for one in found
    )
    snapshots.close()
    story.close()
