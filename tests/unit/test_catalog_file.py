"""How the catalog is brought forward commit by commit, mended, and published."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st

from bus import catalog as catalog_module, feed
from bus.catalog import Catalog, connect_snapshot, select
from bus.columns import Column
from bus.errors import Code, Unavailable
from bus.lake import Lake
from bus.model import Alias, Tombstone, Untag
from bus.specs import Registry, Spec
from tests.history import History, digest_of
from tests.shown import BUILT_IN, Shown, always

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bus.manifest import Manifest


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Shown]:
    shown = Shown(tmp_path / "lake")
    yield shown
    shown.close()


# ── catching up ───────────────────────────────────────────────────────────────────────────────


def test_catching_up_returns_the_commit_it_came_to(bus: Shown) -> None:
    assert bus.catalog.catch_up(bus.history.manifest) == 0
    for _ in range(3):
        bus.history.commit(bus.history.job(bus.history.artifact()))
    assert bus.catalog.catch_up(bus.history.manifest) == bus.catalog.applied_seq == 3
    assert bus.catalog.catch_up(bus.history.manifest) == 3


ACTIONS = ("new", "reuse", "supersede", "tombstone", "revive", "untag", "alias", "show", "reopen")


@given(actions=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9)), max_size=20))
@hypothesis_settings(
    max_examples=8,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_growing_commit_by_commit_equals_a_rebuild(
    actions: list[tuple[str, int]],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalog_module, "_FRESH_ROWS", 3)
    monkeypatch.setattr(catalog_module, "_FRESH_USES", 4)
    monkeypatch.setattr(feed, "WINDOW_ROWS", 2)
    bus = Shown(tmp_path_factory.mktemp("history") / "lake", Registry())
    steps = _Steps(bus)
    for action, number in actions:
        steps.take(action, number)
    bus.show()
    assert bus.rows("SELECT applied_seq FROM catalog.applied_v") == [(bus.history.seq,)]
    assert Catalog.digest(bus.lake) == bus.rebuilt_digest()
    bus.close()


class _Steps:
    """Random things that happen to a lake."""

    def __init__(self, bus: Shown) -> None:
        self._bus = bus
        self._made: list[Any] = []

    def take(self, action: str, number: int) -> None:
        history = self._bus.history
        if action == "show":
            self._bus.show()
        elif action == "reopen":
            self._bus.catalog.close()
            self._bus.catalog = self._bus.open()
        elif action == "new" or not self._made:
            columns = [{"name": f"c{number % 3}", "type": "int64" if number % 2 else "string"}]
            made = [
                history.artifact(
                    name=f"n{i}",
                    tags={"k": [str(number)]},
                    columns=columns,
                    inputs=[a.artifact_id for a in self._made[-1:]],
                )
                for i in range(number)
            ]
            history.commit(history.job(*made, run_id=f"run-{number % 2}"))
            self._made += made
        else:
            self._change(action, self._made[number % len(self._made)])

    def _change(self, action: str, old: Any) -> None:
        history, target = self._bus.history, old.artifact_id
        if action == "reuse":
            again = old.model_copy(update={"decision": "deduped", "mode": "file_hash"})
            history.commit(history.job(again, run_id="again"))
        elif action == "revive":
            bytes_now = f"sha256:{digest_of(str(history.seq))}"
            again = old.model_copy(update={"decision": "revived", "file_hash": bytes_now})
            history.commit(history.job(again))
        elif action == "supersede":
            history.commit(history.job(history.artifact(supersedes=[target])))
        elif action == "tombstone":
            gone = Tombstone(op="tombstone", target=target, reason="x")
            history.commit(history.change(gone))
        elif action == "untag":
            history.commit(history.change(Untag(op="untag", target=target, tags=old.tags)))
        else:
            alias = Alias(op="alias", kind="things", alias="a", target=target)
            history.commit(history.change(alias))


def test_a_digest_notices_a_single_changed_value(bus: Shown) -> None:
    bus.history.commit(bus.history.job(bus.history.artifact(), meta={"a": 1}))
    bus.show()
    before = Catalog.digest(bus.lake)
    with duckdb.connect(str(bus.lake.catalog_db)) as db:
        db.execute("UPDATE held.fresh SET data = replace(data, 'run-1', 'run-2')")
        db.execute("UPDATE held.uses SET run_id = 'run-2'")
    assert Catalog.digest(bus.lake) != before


def test_a_new_contract_makes_the_working_copy_anew(tmp_path: Path) -> None:
    bus = Shown(tmp_path / "lake")
    bus.history.commit_tables("things", pa.table({"n": [1], "m": ["x"]}))
    bus.show()
    bus.catalog.close()
    bus.registry = Registry([*BUILT_IN, Spec(kind="things", columns=(Column.parse("n", "int64"),))])
    bus.catalog = bus.open()
    assert bus.catalog.applied_seq == 0
    bus.show()
    assert select(bus.lake, None, "FROM canon.things") == (["n"], [(1,)])
    bus.close()


def garbage(path: Path) -> None:
    path.write_bytes(b"no database " * 1000)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(20_000, len(data), 4096):
        data[at] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [garbage, truncated, zeroed, flipped, Path.unlink])
def test_a_harmed_working_copy_is_made_anew(harm: Callable[[Path], None], bus: Shown) -> None:
    for number in range(3):
        bus.history.commit(bus.history.job(bus.history.artifact(number=number)))
        bus.show()
    before = Catalog.digest(bus.lake)
    bus.catalog.close()
    harm(bus.lake.catalog_work)
    bus.catalog = bus.open()
    bus.history.commit(bus.history.job(bus.history.artifact()))
    assert bus.shown("SELECT count(*) FROM catalog.artifacts_f") == [(4,)]
    grown = Catalog.digest(bus.lake)
    assert grown == bus.rebuilt_digest() != before


def test_a_working_copy_of_another_history_is_made_anew(bus: Shown, tmp_path: Path) -> None:
    bus.history.commit(bus.history.job(bus.history.artifact()))
    bus.show()
    bus.catalog.close()
    other, empty = History(tmp_path / "other"), History(tmp_path / "empty")
    other.commit(other.job(other.artifact(name="of another history")))
    for manifest in (empty.manifest, other.manifest):
        bus.catalog = Catalog.open(bus.lake, bus.settings, BUILT_IN, bus.history.manifest)
        bus.catalog.catch_up(bus.history.manifest)
        bus.catalog.publish(always)
        bus.catalog.close()
        unlike = Catalog.open(bus.lake, bus.settings, BUILT_IN, manifest)
        assert unlike.applied_seq == 0
        unlike.close()
        manifest.close()


def test_a_catalog_that_breaks_while_open_is_made_anew(
    bus: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus.history.commit(bus.history.job(bus.history.artifact()))
    bus.show()
    broken = iter([True])
    kept = Catalog._catch_up

    def once(self: Catalog, manifest: Manifest) -> int:
        if next(broken, False):
            raise duckdb.FatalException("database has been invalidated")
        return kept(self, manifest)

    monkeypatch.setattr(Catalog, "_catch_up", once)
    bus.history.commit(bus.history.job(bus.history.artifact()))
    assert bus.shown("SELECT count(*) FROM catalog.artifacts_f") == [(2,)]
    assert bus.rows("SELECT count(*) FROM canon.alerts_std") == [(0,)]


# ── publishing ────────────────────────────────────────────────────────────────────────────────


def test_readers_need_no_lock_and_keep_what_they_opened(bus: Shown) -> None:
    bus.history.commit(bus.history.job(bus.history.artifact()))
    bus.show()
    count = "SELECT count(*) FROM catalog.artifacts_f"
    with connect_snapshot(bus.lake) as early:
        bus.history.commit(bus.history.job(bus.history.artifact()))
        assert bus.shown(count) == [(2,)]
        assert early.execute(count).fetchall() == [(1,)]
    outside = (
        "import sys, duckdb; print(duckdb.connect(sys.argv[1], read_only=True).sql(sys.argv[2]))"
    )
    command = [sys.executable, "-c", outside, str(bus.lake.catalog_db), count]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "2" in answer.stdout


def test_the_file_can_be_opened_by_duckdb_1_5(bus: Shown) -> None:
    bus.show()
    with connect_snapshot(bus.lake) as db:
        ((tags,),) = db.execute(
            "SELECT tags FROM duckdb_databases() WHERE database_name = 'bus'"
        ).fetchall()
    assert tags["storage_version"].startswith("v1.5.0")


def test_nothing_is_published_twice_or_without_the_lock(bus: Shown) -> None:
    assert bus.show()
    before = bus.lake.catalog_db.stat()
    assert not bus.show()
    bus.history.commit(bus.history.job(bus.history.artifact()))
    bus.catalog.catch_up(bus.history.manifest)
    assert not bus.catalog.publish(lambda: False)
    assert bus.lake.catalog_db.stat() == before
    assert bus.catalog.publish(always)


def test_a_snapshot_of_a_later_commit_is_left_alone(bus: Shown, tmp_path: Path) -> None:
    bus.history.commit(bus.history.job(bus.history.artifact()))
    bus.show()
    ahead = Shown(tmp_path / "ahead")
    for _ in range(5):
        ahead.history.commit(ahead.history.job(ahead.history.artifact()))
    ahead.show()
    ahead.lake.catalog_db.replace(bus.lake.catalog_db)
    bus.history.commit(bus.history.job(bus.history.artifact()))
    assert not bus.show()
    assert bus.rows("SELECT applied_seq FROM catalog.applied_v") == [(5,)]
    ahead.close()


def test_a_rebuild_replaces_whatever_is_published_and_readers_never_miss_it(
    bus: Shown, tmp_path: Path
) -> None:
    ahead = Shown(tmp_path / "ahead")
    for _ in range(5):
        ahead.history.commit(ahead.history.job(ahead.history.artifact()))
    ahead.show()
    ahead.lake.catalog_db.rename(bus.lake.catalog_db)
    bus.catalog.close()
    Catalog.delete(bus.lake)
    assert bus.rows("SELECT applied_seq FROM catalog.applied_v") == [(5,)]
    bus.catalog = bus.open()
    bus.history.commit(bus.history.job(bus.history.artifact()))
    assert bus.shown("SELECT applied_seq FROM catalog.applied_v") == [(1,)]
    ahead.close()


def test_the_whole_directory_may_be_deleted_under_the_writer(bus: Shown) -> None:
    bus.history.commit(bus.history.job(bus.history.artifact()))
    bus.show()
    before = Catalog.digest(bus.lake)
    shutil.rmtree(bus.lake.catalog_db.parent)
    bus.history.commit(bus.history.job(bus.history.artifact()))
    try:
        bus.show()
    except Unavailable:  # the working copy could not be written: the next round begins anew
        bus.show()
    assert bus.rows("SELECT count(*) FROM catalog.artifacts_f") == [(2,)]
    assert before != Catalog.digest(bus.lake) == bus.rebuilt_digest()


@pytest.mark.parametrize("harm", [garbage, truncated, Path.unlink])
def test_a_harmed_snapshot_is_replaced_at_the_next_publication(
    harm: Callable[[Path], None], bus: Shown
) -> None:
    bus.show()
    harm(bus.lake.catalog_db)
    assert bus.shown("SELECT count(*) FROM catalog.artifacts_f") == [(0,)]


def test_no_snapshot_yet_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no catalog yet") as caught:
        select(Lake(tmp_path), None, "SELECT 1")
    assert caught.value.code is Code.E508


CRASHING = """
import sys
from pathlib import Path
from bus.specs import Registry
from tests.history import History
from bus.catalog import Catalog
history = History(Path(sys.argv[1]))
catalog = Catalog.open(history.lake, None, Registry.built_in(), history.manifest)
catalog.catch_up(history.manifest)
catalog.publish(lambda: True)
"""


def test_a_writer_killed_before_the_rename_leaves_the_old_snapshot(bus: Shown) -> None:
    bus.show()
    bus.history.commit(bus.history.job(bus.history.artifact()))
    bus.catalog.close()
    environment = os.environ | {"BUS_CRASH_AT": "views.built"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CRASHING, str(bus.lake.root)]
    killed = subprocess.run(command, cwd=root, env=environment, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert bus.rows("SELECT applied_seq FROM catalog.applied_v") == [(0,)]
    bus.catalog = bus.open()
    assert bus.shown("SELECT applied_seq FROM catalog.applied_v") == [(1,)]
    assert Catalog.digest(bus.lake) == bus.rebuilt_digest()
