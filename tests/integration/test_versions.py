"""Many who say the same at once, and many who disagree: through real workers and the real writer."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus import cli
from bus.errors import Rejected
from bus.manifest import Manifest
from tests.jobs import small_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bus.client import Bus, Job
    from bus.model import Receipt

pytestmark = pytest.mark.xdist_group("bus")

PATIENCE_S = 30.0
MINE: dict[str, Any] = {"kind": "things", "producer": "tester"}


def rows(bus: Bus, sql: str, *params: Any) -> list[tuple[Any, ...]]:
    """A query of manifest.sqlite, while the writer works."""
    with closing(Manifest.read(bus.lake)) as manifest:
        return manifest.rows(sql, params)


def at_once(submit: Callable[[int], Job], count: int) -> list[Receipt]:
    """So many submissions from threads that begin together, and their receipts."""
    together = threading.Barrier(count)

    def one(number: int) -> Job:
        together.wait()
        return submit(number)

    with ThreadPoolExecutor(count) as pool:
        return [job.wait(PATIENCE_S) for job in pool.map(one, range(count))]


def other_bytes(path: Path, number: int) -> Path:
    """The same 5,000 rows as another program would write them: order, codec, row groups."""
    order = list(range(5_000))
    random.Random(number).shuffle(order)
    table = pa.table({"n": order, "text": [f"row {n}" for n in order]})
    target = path / f"{number}.parquet"
    codec = ("zstd", "snappy", "none")[number % 3]
    pq.write_table(table, target, compression=codec, row_group_size=100 + 500 * number)
    return target


# ── duplicates ────────────────────────────────────────────────────────────────────────────────


def test_of_many_equal_submissions_at_once_exactly_one_creates_the_artifact(
    live_bus: Bus, tmp_path: Path
) -> None:
    files = [other_bytes(tmp_path, number) for number in range(6)]

    def submit(number: int) -> Job:
        who = f"worker-{number}"
        return live_bus.submit(
            files[number // 2],
            **MINE,
            run_id=f"same-{number}",
            name="same",
            logical_key="about=the same",
            tags={"who": who},
            inputs=[],
        )

    receipts = at_once(submit, 12)
    artifacts = [artifact for receipt in receipts for artifact in receipt.artifacts]
    (artifact_id,) = {artifact.artifact_id for artifact in artifacts}
    assert sorted(artifact.deduped for artifact in artifacts) == [False] + [True] * 11
    assert {a.mode for a in artifacts} == {None, "file_hash", "content_hash"}
    assert len({(a.path, a.file_hash, a.content_hash) for a in artifacts}) == 1

    uses = "SELECT run_id, deduped FROM run_artifacts WHERE artifact_id = ?"
    used_by = dict(rows(live_bus, uses, artifact_id))
    assert used_by.keys() == {f"same-{number}" for number in range(12)}
    assert sorted(used_by.values()) == [0] + [1] * 11
    held = "SELECT v FROM artifact_tags WHERE artifact_id = ? AND k = 'who'"
    assert {v for (v,) in rows(live_bus, held, artifact_id)} == {f"worker-{n}" for n in range(12)}
    known = "SELECT count(*) FROM artifact_facts WHERE logical_key = 'about=the same'"
    assert rows(live_bus, known) == [(1,)]


def test_empty_slices_of_many_tokens_are_as_many_artifacts_over_one_object(live_bus: Bus) -> None:
    nothing = small_table(0)
    receipts = at_once(
        lambda n: live_bus.submit(nothing, **MINE, logical_key=f"token=T{n}/day=1", name="slice"), 4
    )
    artifacts = [receipt.artifacts[0] for receipt in receipts]
    assert [artifact.deduped for artifact in artifacts] == [False] * 4
    assert len({artifact.artifact_id for artifact in artifacts}) == 4
    assert len({artifact.path for artifact in artifacts}) == 1


def test_a_duplicate_is_a_use_of_what_was_superseded_and_revives_what_was_tombstoned(
    live_bus: Bus, tmp_path: Path
) -> None:
    key: dict[str, Any] = {"logical_key": "about=fates", "name": "fate"}
    old, new, wrong = (
        live_bus.submit(small_table(3, start), **MINE, **key).wait(PATIENCE_S).artifacts[0]
        for start in (7_000, 7_100, 7_200)
    )
    with live_bus.changes() as change:
        change.supersede(old.artifact_id, by=new.artifact_id)
        change.tombstone(wrong.artifact_id, "wrong venue")
    change.job.wait(PATIENCE_S)
    other = tmp_path / "other.parquet"
    pq.write_table(small_table(3, 7_200), other, compression="none")

    again = live_bus.submit(small_table(3, 7_000), **MINE, **key).wait(PATIENCE_S).artifacts[0]
    back = live_bus.submit(other, **MINE, **key).wait(PATIENCE_S).artifacts[0]
    assert (again.artifact_id, again.deduped) == (old.artifact_id, True)
    assert (back.artifact_id, back.deduped) == (wrong.artifact_id, False)
    assert back.file_hash != wrong.file_hash
    found = dict(rows(live_bus, "SELECT artifact_id, status FROM artifacts"))
    assert (found[old.artifact_id], found[wrong.artifact_id]) == ("superseded", "active")


# ── compare and set ───────────────────────────────────────────────────────────────────────────


def test_of_many_who_move_an_alias_from_the_same_place_one_wins_each_round(live_bus: Bus) -> None:
    count, rounds = 5, 4
    with live_bus.job(**MINE) as job:
        for number in range(count):
            job.add(small_table(2, 8_000 + number), name=f"candidate-{number}")
    candidates = [artifact.artifact_id for artifact in job.job.wait(PATIENCE_S).artifacts]
    present = ""
    won: list[str] = []
    for _ in range(rounds):
        others = [candidate for candidate in candidates if candidate != present]
        together = threading.Barrier(len(others))

        def move(
            target: str, together: threading.Barrier = together, expect: str = present
        ) -> tuple[str, str]:
            together.wait()
            try:
                live_bus.alias("things:champion", target, expect=expect).wait(PATIENCE_S)
            except Rejected as refused:
                return target, str(refused.code)
            return target, "won"

        with ThreadPoolExecutor(len(others)) as pool:
            results = list(pool.map(move, others))
        assert sorted(result for _, result in results) == ["E405"] * (len(others) - 1) + ["won"]
        (present,) = (target for target, result in results if result == "won")
        won.append(present)
    history = live_bus.alias_history("things:champion")
    assert [move["to"] for move in reversed(history)] == won
    assert [move["from"] for move in reversed(history)] == [None, *won[:-1]]


# ── the command line ──────────────────────────────────────────────────────────────────────────


def test_a_change_from_the_shell_waits_for_its_receipt(
    live_bus: Bus, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt = live_bus.submit(small_table(2, 9_000), **MINE, run_id="sh", name="it").wait(
        PATIENCE_S
    )
    capsys.readouterr()

    def said(*words: str) -> tuple[int, Any]:
        status = cli.run([*words, "--lake", str(live_bus.lake.root), "--json"])
        return status, json.loads(capsys.readouterr().out)

    status, answer = said("alias", "things:shell", "sh/it", "--producer", "ada")
    assert (status, answer["status"], answer["artifacts"]) == (0, "committed", [])
    status, answer = said("alias", "things:shell", "sh/it")
    assert (status, len(answer["warnings"])) == (0, 1)
    status, answer = said("alias", "things:shell", "sh/it", "--expect", "")
    assert (status, answer["error"]["code"]) == (1, "E405")
    status, answer = said("supersede", "sh/it", "--by", "things:shell")
    assert (status, answer["error"]["code"]) == (2, "E402"), "seen before anything is submitted"
    itself = receipt.artifacts[0].artifact_id
    assert f"{itself} → {itself}" in answer["error"]["message"]
    status, answer = said("pin", "shell", "sh/it", "--no-wait")
    assert (status, answer["rung"]) == (0, True)
    live_bus.wait(answer["job_id"], PATIENCE_S)
    assert [row["artifact_id"] for row in said("pins", "shell")[1]] == [itself]
