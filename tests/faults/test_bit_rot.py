"""Bytes that change by themselves: found, named, set aside, left out of every view, and mended."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from bus import exports, health, standing
from bus.catalog import Catalog, select
from bus.repair import tell_of_damage
from bus.verify import sample, verify
from tests.pipeline import Pipeline, table

if TYPE_CHECKING:
    from pathlib import Path

EXPORTS = {"all": {"sql": "SELECT x FROM canon.signals ORDER BY x"}}


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    """A lake with two artifacts, each of three rows, and a third on the bytes of the first."""
    pipe = Pipeline(tmp_path / "lake", exports=EXPORTS)
    pipe.stage("one", table(10), keys=["k1"], run_id="run-1")
    pipe.stage("two", table(20), keys=["k2"], run_id="run-2")
    pipe.stage("one-too", table(10), keys=["k3"], run_id="run-3")
    settle(pipe)
    return pipe


def settle(pipe: Pipeline) -> None:
    """All that waits, and the trees."""
    pipe.judge()
    with pipe.writer() as writer:
        while writer.drain().more:
            pass


def object_of(pipe: Pipeline, job_id: str) -> Path:
    return pipe.lake.object_path(pipe.receipt(job_id).artifacts[0].file_hash[-64:])


def flip(path: Path, bit: int) -> None:
    """One bit, as a disk would do it: the mode does not tell."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(data)
    path.chmod(0o444)


def look(pipe: Pipeline) -> str | None:
    """What beat has done from time to time: a sample, and a job that tells the writer."""
    return tell_of_damage(pipe.lake, sample(pipe.lake, pipe.settings))


def statuses(pipe: Pipeline) -> dict[str, str]:
    return dict(pipe.rows("SELECT logical_key, status FROM artifacts ORDER BY 1"))


def shown(pipe: Pipeline) -> list[int]:
    """What readers of canon.* see."""
    rows = select(pipe.lake, pipe.settings, "SELECT x FROM canon.signals ORDER BY x")[1]
    return [x for (x,) in rows]


def problems(pipe: Pipeline) -> list[Any]:
    return verify(pipe.lake, pipe.settings, pipe.registry).findings


def damage(pipe: Pipeline) -> Path:
    """The object of two artifacts rots, and the bus hears of it."""
    path = object_of(pipe, "one")
    flip(path, 8 * 20 + 3)
    assert look(pipe) is not None
    settle(pipe)
    return path


def test_rot_is_found_set_aside_and_left_out_of_every_view(pipe: Pipeline) -> None:
    exports.publish(pipe.lake, exports.build(pipe.lake, pipe.settings))
    path = damage(pipe)
    assert statuses(pipe) == {"k1": "damaged", "k2": "active", "k3": "damaged"}
    assert shown(pipe) == [20, 21, 22]
    assert not path.exists()
    (kept,) = pipe.lake.quarantine.iterdir()
    assert kept.name.startswith(path.stem)
    trees = [pipe.lake.run_data_path(f"run-{n}", "t0").exists() for n in (1, 2, 3)]
    assert trees == [False, True, False]
    rotten = "SELECT count(*) FROM catalog.damaged_v"
    assert select(pipe.lake, pipe.settings, rotten)[1] == [(2,)]
    exports.publish(pipe.lake, exports.build(pipe.lake, pipe.settings))
    assert pq.read_table(pipe.lake.export_path("all"))["x"].to_pylist() == [20, 21, 22]
    told = {r["name"]: r["left_out_damaged"] for r in exports.status(pipe.lake)["results"]}
    assert told.pop("all") == 2
    assert not any(told.values())
    assert problems(pipe) == []


def test_status_names_what_is_damaged_until_it_is_whole_again(pipe: Pipeline) -> None:
    def told() -> list[tuple[bool, str]]:
        found = health.status(pipe.lake, pipe.settings).findings
        return [(f.bad, f.text) for f in found if "damaged" in f.text]

    assert told() == []
    damage(pipe)
    ((bad, text),) = told()
    assert bad
    assert "signals k1" in text
    pipe.stage("again", table(10), keys=["k1"])
    settle(pipe)
    assert told() == []


def test_the_same_rows_submitted_again_mend_it(pipe: Pipeline) -> None:
    before = pipe.receipt("one").artifacts[0].artifact_id
    path = damage(pipe)
    pipe.stage("again", table(10), keys=["k1"])
    settle(pipe)
    assert pipe.receipt("again").artifacts[0].artifact_id == before
    assert path.exists()
    assert statuses(pipe) == {"k1": "active", "k2": "active", "k3": "active"}
    assert shown(pipe) == [10, 10, 11, 11, 12, 12, 20, 21, 22]
    assert problems(pipe) == []


def test_a_file_brought_back_from_a_backup_mends_it(pipe: Pipeline, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    shutil.copy(object_of(pipe, "one"), backup)
    path = damage(pipe)
    assert look(pipe) is None, "nothing is back, and nothing new is damaged"
    shutil.copy(backup, path)
    path.chmod(0o444)
    assert look(pipe) is not None
    settle(pipe)
    assert set(statuses(pipe).values()) == {"active"}
    assert shown(pipe) == [10, 10, 11, 11, 12, 12, 20, 21, 22]
    assert problems(pipe) == []


def test_an_object_that_vanished_is_damage_too(pipe: Pipeline) -> None:
    object_of(pipe, "two").unlink()
    report = verify(pipe.lake, pipe.settings, pipe.registry)
    assert any(finding.invariant == 1 for finding in report.findings)
    assert tell_of_damage(pipe.lake, report) is not None
    settle(pipe)
    assert statuses(pipe)["k2"] == "damaged"
    assert shown(pipe) == [10, 10, 11, 11, 12, 12]
    assert problems(pipe) == []


def test_a_false_alarm_changes_nothing_and_says_so(pipe: Pipeline) -> None:
    sha256 = object_of(pipe, "one").stem
    claims = [
        {"op": "mark_damaged", "object": sha256, "found": "a rumour"},
        {"op": "restore", "object": "0" * 64},
    ]
    pipe.stage("alarm", mutations=claims)
    settle(pipe)
    assert set(statuses(pipe).values()) == {"active"}
    assert len(pipe.receipt("alarm").warnings) == 2
    assert problems(pipe) == []


def test_views_made_anew_agree(pipe: Pipeline) -> None:
    damage(pipe)
    before = Catalog.digest(pipe.lake)
    with pipe.writer() as writer:
        writer.rebuild()
        while writer.drain().more:
            pass
    assert Catalog.digest(pipe.lake) == before
    assert statuses(pipe)["k1"] == "damaged"
    assert shown(pipe) == [20, 21, 22]
    assert problems(pipe) == []


def test_whoever_dies_between_the_commit_and_the_quarantine_is_followed_by_one_who_does_it(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise SystemExit

    path = object_of(pipe, "one")
    flip(path, 90)
    look(pipe)
    pipe.judge()
    with monkeypatch.context() as patch:
        patch.setattr(standing, "follow", die)
        writer = pipe.writer()
        with pytest.raises(SystemExit):
            writer.drain()
        writer._catalog.close()  # as the kernel does for the dead
        writer._lock.release()
    assert path.exists()
    settle(pipe)
    assert not path.exists()
    assert problems(pipe) == []
