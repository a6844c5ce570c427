"""Golden exports: when they are written, when they are not, and what readers are told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus import disk, exports
from bus.catalog import Catalog
from bus.errors import LakeBusy, NotFound, Unavailable
from bus.exports import BuiltExport
from bus.lake import Lake
from bus.model import Supersede
from bus.settings import Settings
from bus.snapshot import connect_snapshot
from bus.specs import Registry
from tests.history import History
from tests.waiting import is_alive

if TYPE_CHECKING:
    from collections.abc import Iterator


class Exporting:
    """A lake with a catalog and exports of its own."""

    def __init__(self, path: Path, **declared: str) -> None:
        self.history = History(path)
        self.lake = self.history.lake
        self.declare(**declared)
        self.catalog = Catalog.open(
            self.lake, self.settings, Registry.built_in(), self.history.manifest
        )
        self.show()

    def declare(self, **declared: str) -> None:
        values = {name: {"sql": sql} for name, sql in declared.items()}
        # A configuration of its own, so that none is looked for upward from the test's directory.
        config = self.lake.root / "bus.toml"
        config.touch()
        self.settings = Settings.load(self.lake.root, config, exports=values)

    def show(self) -> None:
        self.catalog.catch_up(self.history.manifest)
        self.catalog.publish(lambda: True)

    def export(self, *names: str, force: bool = False) -> dict[str, dict[str, Any]]:
        """Build and publish; the status, by name."""
        self.show()
        exports.build(self.lake, self.settings, names or None, force=force)
        exports.publish_pending(self.lake, self.settings)
        return {result["name"]: result for result in exports.status(self.lake)["results"]}

    def table(self, name: str) -> pa.Table:
        return pq.read_table(self.lake.export_path(name))

    def place(self, name: str) -> tuple[int, int]:
        found = self.lake.export_path(name).stat()
        return found.st_ino, found.st_mtime_ns

    def close(self) -> None:
        self.catalog.close()
        self.history.manifest.close()


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Exporting]:
    exporting = Exporting(
        tmp_path / "lake",
        things="SELECT n FROM canon.things ORDER BY n DESC",
        catalogued="SELECT count(*) AS artifacts FROM catalog.artifacts_f",
    )
    exporting.history.commit_tables("things", numbers(2, 3, 1))
    yield exporting
    exporting.close()


def numbers(*values: int) -> pa.Table:
    return pa.table({"n": list(values)})


def alerts(*ids: str, mint: str | None = "m", chain: str = "solana", text: str = "") -> pa.Table:
    rows = len(ids)
    return pa.table(
        {
            "alert_id": list(ids),
            "alert_ts_ms": pa.array(range(rows), pa.int64()),
            "mint": pa.array([mint] * rows, pa.string()),
            "chain": [chain] * rows,
            "alert_text": [text] * rows,
        }
    )


def test_an_export_tells_which_kinds_it_shows(bus: Exporting) -> None:
    bus.declare(
        things="SELECT n FROM canon.things",
        both="SELECT n FROM canon.Things JOIN canon.alerts_std_all ON alert_ts_ms = n",
        catalogued="SELECT count(*) AS artifacts FROM catalog.artifacts_f",
        broken="SELECT",
    )
    bus.show()
    with connect_snapshot(bus.lake) as db:
        shown = exports.kinds_shown(db, bus.settings)
    expected = {
        "things": {"things"},
        "both": {"things", "alerts_std"},
        "catalogued": set[str](),
        "alerts_std_tradable": {"alerts_std"},
    }
    assert shown == shown | expected
    assert "broken" not in shown


# ── what is written ───────────────────────────────────────────────────────────────────────────


def test_the_built_in_exports_are_plain_parquet(bus: Exporting) -> None:
    bus.history.commit_tables("alerts_std", alerts("b", "a"), alerts("c", mint=None))
    bus.history.commit_tables("alerts_std", alerts("d", chain="tron"))
    results = bus.export()
    assert all(result["ok"] for result in results.values())
    assert bus.table("alerts_std")["alert_id"].to_pylist() == ["b", "c", "d", "a"]
    assert bus.table("alerts_std").schema.names[0] == "alert_id"
    assert bus.table("alerts_std_tradable")["alert_id"].to_pylist() == ["b", "a"]
    columns = bus.table("schema_columns").to_pylist()
    assert {"catalog", "canon"} == {row["table_schema"] for row in columns}
    assert ("things", "n") in {(row["table_name"], row["column_name"]) for row in columns}
    assert "alerts_std" in bus.table("schema_views")["view_name"].to_pylist()
    assert "artifacts_f" in bus.table("schema_objects")["object_name"].to_pylist()


def test_rows_keep_the_order_of_the_select(bus: Exporting) -> None:
    bus.history.commit_tables("things", numbers(*range(10, 300_000)))
    bus.export("things")
    assert bus.table("things")["n"].to_pylist() == [*range(299_999, 9, -1), 3, 2, 1]


def test_pages_carry_checksums_and_rows_are_compressed(bus: Exporting) -> None:
    bus.export("things")
    path = bus.lake.export_path("things")
    assert pq.read_table(path, page_checksum_verification=True).num_rows == 3
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_the_status_says_what_happened(bus: Exporting) -> None:
    result = bus.export()["things"]
    assert result["ok"] is True
    assert result["path"] == str(bus.lake.export_path("things"))
    assert (result["rows"], result["seq"]) == (3, 1)
    assert result["seconds"] >= 0
    document = json.loads(bus.lake.export_status.read_bytes())
    assert document["ran_at_utc"].endswith("Z")
    assert document["ran_at_utc"] >= result["written_at_utc"]
    assert [r["name"] for r in document["results"]] == sorted(bus.settings.exports)


def test_only_what_is_asked_for_is_built(bus: Exporting) -> None:
    assert list(bus.export("things")) == ["things"]
    with pytest.raises(NotFound, match="no export 'thnigs'") as caught:
        bus.export("thnigs")
    assert "things" in caught.value.hint


def test_a_disabled_export_is_left_out_until_it_is_named(bus: Exporting) -> None:
    values = {"things": {"sql": "SELECT 1 AS n", "enabled": False}}
    bus.settings = Settings.load(bus.lake.root, exports=values)
    assert "things" not in bus.export()
    assert "things" in bus.export("things")


# ── what is not written again ─────────────────────────────────────────────────────────────────


def test_an_export_whose_inputs_did_not_change_keeps_its_file(bus: Exporting) -> None:
    bus.export()
    before = {name: bus.place(name) for name in bus.settings.exports}
    bus.history.commit_tables("run_metrics", metrics())
    results = bus.export()
    moved = {name for name in before if bus.place(name) != before[name]}
    assert moved == {"catalogued"}
    assert {result["seq"] for result in results.values()} == {2}
    assert bus.table("catalogued").to_pylist() == [{"artifacts": 2}]


def metrics() -> pa.Table:
    return pa.table({"run_id": ["r"], "metric_name": ["m"], "metric_value": [1.0]})


def test_a_new_kind_changes_the_schema_exports(bus: Exporting) -> None:
    bus.export()
    before = bus.place("schema_columns")
    bus.history.commit_tables("other", numbers(1))
    bus.export()
    assert bus.place("schema_columns") != before
    assert "other" in bus.table("schema_columns")["table_name"].to_pylist()


def test_superseding_an_input_writes_the_export_anew(bus: Exporting) -> None:
    bus.export()
    (old,) = bus.history.manifest.rows("SELECT artifact_id FROM artifacts")
    (new,) = bus.history.commit_tables("things", numbers(9))
    supersede = Supersede(op="supersede", target=old[0], by=new.artifact_id)
    bus.history.commit(bus.history.change(supersede))
    bus.export()
    assert bus.table("things").to_pylist() == [{"n": 9}]


def test_submitting_an_old_table_again_matters_only_where_the_newest_row_counts(
    bus: Exporting,
) -> None:
    (first,) = bus.history.commit_tables("alerts_std", alerts("a", text="first"))
    bus.history.commit_tables("alerts_std", alerts("a", text="second"))
    (thing,) = bus.history.commit_tables("things", numbers(7))
    bus.export()
    assert bus.table("alerts_std")["alert_text"].to_pylist() == ["second"]
    before = bus.place("things")
    again = {"decision": "deduped", "mode": "file_hash"}
    for artifact in (first, thing):
        bus.history.commit(bus.history.job(artifact.model_copy(update=again), run_id="again"))
    bus.export()
    assert bus.table("alerts_std")["alert_text"].to_pylist() == ["first"]
    assert bus.place("things") == before


def test_other_sql_force_and_a_missing_file_write_the_export_anew(bus: Exporting) -> None:
    bus.export("things")
    before = bus.place("things")
    bus.export("things", force=True)
    forced = bus.place("things")
    assert forced != before
    bus.lake.export_path("things").unlink()
    bus.export("things")
    assert bus.table("things").num_rows == 3
    bus.declare(things="SELECT n + 1 AS n FROM canon.things")
    bus.export("things")
    assert sorted(bus.table("things")["n"].to_pylist()) == [2, 3, 4]


def test_an_export_that_looks_at_the_clock_is_always_written(bus: Exporting) -> None:
    bus.declare(today="SELECT current_date AS today, 1 AS n", fixed="SELECT 1 AS n")
    bus.export("today", "fixed")
    before = bus.place("today"), bus.place("fixed")
    bus.export("today", "fixed")
    assert bus.place("today") != before[0]
    assert bus.place("fixed") == before[1]


def test_an_export_over_objects_by_path_follows_every_commit(bus: Exporting) -> None:
    glob = f"{bus.lake.objects}/*/*.parquet"
    bus.declare(raw=f"SELECT sum(n) AS n FROM read_parquet('{glob}')")
    bus.export("raw")
    bus.history.commit_tables("things", numbers(10))
    bus.export("raw")
    assert bus.table("raw").to_pylist() == [{"n": 16}]


# ── what goes wrong ───────────────────────────────────────────────────────────────────────────

BROKEN = {
    "no such column": ("SELECT no_such FROM canon.things", "no_such"),
    "an error in a row": (
        "SELECT CASE WHEN n > 2 THEN error('bad row') END FROM canon.things",
        "bad row",
    ),
    "a file of somebody else": ("SELECT * FROM read_text('/etc/hostname')", "not allowed"),
    "not a SELECT": ("DROP VIEW canon.things", "DROP is not a SELECT"),
    "writing by itself": ("WITH x AS (COPY (SELECT 1) TO '/tmp/x') SELECT 1", ""),
}


@pytest.mark.parametrize(("sql", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_failed_export_keeps_its_old_file_and_stops_no_other(
    sql: str, message: str, bus: Exporting
) -> None:
    bus.export()
    before = bus.place("things"), bus.table("things")
    bus.declare(things=sql, catalogued="SELECT count(*) AS artifacts FROM catalog.artifacts_f")
    bus.history.commit_tables("things", numbers(4))
    results = bus.export()
    failed = results["things"]
    assert failed["ok"] is False
    assert message in failed["error"]
    assert (failed["seq"], failed["failed_seq"], failed["rows"]) == (1, 2, 3)
    assert (bus.place("things"), bus.table("things")) == before
    assert results["catalogued"]["ok"]
    assert bus.table("catalogued").to_pylist() == [{"artifacts": 2}]


def test_an_export_that_works_again_is_told_well(bus: Exporting) -> None:
    good = bus.settings
    bus.export("things")
    bus.declare(things="SELECT broken")
    assert bus.export("things")["things"]["ok"] is False
    bus.settings = good
    result = bus.export("things")["things"]
    assert result["ok"] is True
    assert "error" not in result
    assert "failed_seq" not in result


def test_an_export_that_takes_too_long_fails(bus: Exporting) -> None:
    endless = "SELECT count(*) FROM range(10000000000) a, range(10000000000) b"
    bus.declare(things=endless)
    bus.settings = bus.settings.model_copy(update={"export_timeout_s": 0.2})
    result = bus.export("things")["things"]
    assert result["ok"] is False
    assert "longer than 0.2 s" in result["error"]
    assert not bus.lake.export_path("things").exists()


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden", "_status"])
def test_a_name_that_is_no_file_name_is_refused(name: str, bus: Exporting) -> None:
    bus.declare(**{name: "SELECT 1 AS n"})
    assert bus.export(name)[name]["ok"] is False
    assert list(bus.lake.root.rglob("*escape*")) == []


def test_without_a_catalog_there_is_nothing_to_export(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.create()
    with pytest.raises(Unavailable, match="no catalog yet"):
        exports.build(lake, Settings.load(lake.root))
    assert exports.status(lake) == {"ran_at_utc": None, "results": []}


# ── building and publishing apart ─────────────────────────────────────────────────────────────


def test_a_build_changes_nothing_that_readers_see(bus: Exporting) -> None:
    bus.show()
    exports.build(bus.lake, bus.settings)
    assert list(bus.lake.exports.glob("*")) == [bus.lake.export_builds]
    exports.publish_pending(bus.lake, bus.settings)
    assert bus.table("things").num_rows == 3
    assert list(bus.lake.export_builds.iterdir()) == []


def test_of_two_finished_builds_the_newer_one_stays(bus: Exporting) -> None:
    bus.show()
    old = exports.build(bus.lake, bus.settings, ["things"])
    bus.history.commit_tables("things", numbers(4))
    bus.show()
    new = exports.build(bus.lake, bus.settings, ["things"])
    exports.publish(bus.lake, new)
    (result,) = exports.publish(bus.lake, old)
    assert result["seq"] == 2
    assert bus.table("things").num_rows == 4


def test_one_build_at_a_time(bus: Exporting) -> None:
    bus.show()
    with disk.locked(bus.lake.export_lock), pytest.raises(LakeBusy):
        exports.build(bus.lake, bus.settings)
    with disk.locked(bus.lake.export_lock):
        assert exports.start_child(bus.settings).wait(60) == exports.BUSY


def test_what_a_killed_build_left_is_swept_by_the_next(bus: Exporting) -> None:
    left = bus.lake.export_builds / "1234-dead"
    left.mkdir(parents=True)
    (left / "things.parquet").write_bytes(b"half")
    bus.export("things")
    assert not left.exists()


def test_an_export_no_longer_declared_leaves_the_status(bus: Exporting) -> None:
    assert "things" in bus.export()
    bus.declare(other="SELECT 1 AS n")
    assert "things" not in bus.export()
    assert bus.lake.export_path("things").exists()


def test_a_broken_status_file_is_written_anew(bus: Exporting) -> None:
    bus.export()
    bus.lake.export_status.write_bytes(b"{half")
    assert bus.export()["things"]["ok"]


# ── the child process ─────────────────────────────────────────────────────────────────────────


def test_the_child_builds_with_the_settings_it_is_given(bus: Exporting) -> None:
    bus.show()
    assert exports.start_child(bus.settings, ["things"]).wait(60) == 0
    (result,) = exports.publish_pending(bus.lake, bus.settings)
    assert (result["name"], result["ok"], result["rows"]) == ("things", True, 3)


def test_the_child_says_why_it_could_not(bus: Exporting, capfd: pytest.CaptureFixture[str]) -> None:
    assert exports.start_child(bus.settings, ["nothing"]).wait(60) == 1
    assert "no export 'nothing'" in capfd.readouterr().err


PARENT = """
import os, sys
from bus import exports
from bus.settings import Settings
child = exports.start_child(Settings.model_validate_json(sys.argv[1]), ["endless"])
print(child.pid, flush=True)
os.read(0, 1)
"""


def test_the_child_dies_with_its_parent(bus: Exporting) -> None:
    bus.declare(endless="SELECT count(*) FROM range(10000000000) a, range(10000000000) b")
    bus.show()
    command = [sys.executable, "-c", PARENT, bus.settings.model_dump_json()]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_until(lambda: any(bus.lake.export_builds.glob("*/spill/..")) or building(bus))
        parent.kill()
    wait_until(lambda: not is_alive(child))


def building(bus: Exporting) -> bool:
    return bus.lake.export_builds.is_dir() and any(bus.lake.export_builds.iterdir())


def wait_until(condition: Any, timeout_s: float = 30) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


PUBLISHING = """
import sys
from pathlib import Path
from bus import exports
from bus.lake import Lake
from bus.settings import Settings
exports.publish_pending(Lake(Path(sys.argv[1])), Settings.model_validate_json(sys.argv[2]))
"""


def test_a_kill_before_the_rename_leaves_the_old_file_and_the_next_publishes(
    bus: Exporting,
) -> None:
    bus.export("things")
    before = bus.place("things")
    bus.history.commit_tables("things", numbers(4))
    bus.show()
    exports.build(bus.lake, bus.settings, ["things"])
    command = [sys.executable, "-c", PUBLISHING, str(bus.lake.root), bus.settings.model_dump_json()]
    environment = os.environ | {"BUS_CRASH_AT": "export.built"}
    root = Path(__file__).parents[2]
    killed = subprocess.run(command, cwd=root, env=environment, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert bus.place("things") == before
    (result,) = exports.publish_pending(bus.lake, bus.settings)
    assert (result["seq"], bus.table("things").num_rows) == (2, 4)


def test_a_crash_between_the_rename_and_the_status_is_mended(bus: Exporting) -> None:
    bus.show()
    (built,) = exports.build(bus.lake, bus.settings, ["things"])
    disk.publish_file(Path(str(built.path)), bus.lake.export_path("things"))
    (result,) = exports.publish_pending(bus.lake, bus.settings)
    assert result["ok"]
    assert bus.table("things").num_rows == 3


def test_results_survive_their_way_through_json(bus: Exporting) -> None:
    bus.show()
    built = exports.build(bus.lake, bus.settings)
    (folder,) = bus.lake.export_builds.iterdir()
    facts = json.loads((folder / "built.json").read_bytes())
    assert [BuiltExport(**fact) for fact in facts] == built
