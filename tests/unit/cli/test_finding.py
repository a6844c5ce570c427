"""Commands that find artifacts, look into the past, and tell what changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from tests.pipeline import Pipeline, facts, id_of, verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.said import Said

ALERTS = id_of(facts("alerts", 1))


def test_find_lists_artifacts_by_every_filter(own: Pipeline, bus: Callable[..., Said]) -> None:
    gone = {"op": "tombstone", "target": ALERTS, "reason": "wrong"}
    with own.writer() as writer:
        own.judged(verdict("more", facts("more", 5, kind="more", tags={"token": ["ETH"]})))
        writer.drain()
        own.judged(verdict("gone", mutations=[gone]))
        writer.drain()
    at = ["--lake", own.lake.root, "--json"]

    def found(*flags: str) -> list[str]:
        return [one["logical_key"] for one in bus("find", *flags, *at).json]

    assert found() == ["name=more"]
    assert found("--status", "any") == ["name=more", "name=alerts"]
    assert found("--status", "tombstoned") == ["name=alerts"]
    assert found("--as-of", "3") == ["name=alerts"]
    assert found("--as-of", "4") == ["name=more", "name=alerts"]
    assert found("--as-of", "4", "--limit", "1") == ["name=more"]
    assert found("--as-of", "4", "--tag", "token=SOL") == ["name=alerts"]
    assert found("--as-of", "4", "--run-id", "run-2", "--producer", "others") == ["name=alerts"]
    assert found("--kind", "more", "--logical-key", "name=more") == ["name=more"]
    assert found("--since", "2026-01-01T00:00:00Z") == []
    text = bus("find", "--status", "any", "--lake", own.lake.root).out
    assert ALERTS in text
    assert "token=ETH" in text
    assert "The newest 1;" in bus("find", "--limit", "1", "--lake", own.lake.root).out


def test_show_and_path_look_into_the_past(own: Pipeline, bus: Callable[..., Said]) -> None:
    again = facts("alerts", 1, codec="zstd")
    gone = {"op": "tombstone", "target": ALERTS, "reason": "wrong"}
    with own.writer() as writer:
        for job in (verdict("gone", mutations=[gone]), verdict("back", again, run_id="run-9")):
            own.judged(job)
            writer.drain()
    at = ["--lake", own.lake.root, "--json"]
    then, now = (bus("show", ALERTS, "--as-of", seq, *at).json for seq in ("4", "5"))
    assert (then["status"], then["tombstoned_because"]) == ("tombstoned", "wrong")
    assert (now["status"], now["tombstoned_because"]) == ("active", None)
    assert then["file_hash"] != now["file_hash"]
    assert [use["run_id"] for use in then["uses"]] == ["run-2", "run-1"]
    assert [use["status"] for use in then["uses"]] == ["tombstoned", "tombstoned"]
    assert [use["run_id"] for use in now["uses"]] == ["run-9", "run-2", "run-1"]
    assert [column["name"] for column in now["columns"]] == ["x"]
    for document in (then, now):
        path = bus("path", ALERTS, "--as-of", str(document["uses"][0]["seq"]), *at).json["path"]
        assert pq.read_table(path).num_rows == 2
    assert bus("path", "signals:latest", *at).json["path"] == now["path"]
    Path(now["path"]).unlink()
    said = bus("path", "signals:latest", "--lake", own.lake.root)
    assert (said.status, said.out) == (1, "")
    assert "E315" in said.err


def test_changes_tell_what_each_commit_changed(filled: Pipeline, bus: Callable[..., Said]) -> None:
    at = ["--lake", filled.lake.root]
    told = bus("changes", *at, "--json").json
    assert [(one["seq"], one["change"]) for one in told] == [
        *((1, "committed"), (1, "created"), (1, "tagged")),
        *((2, "committed"), (2, "deduped"), (3, "rejected")),
    ]
    assert told[1]["artifact_id"] == ALERTS
    assert told[-1]["details"]["codes"] == ["E307", "E202"]
    later = bus("changes", "--since", "2", *at, "--json").json
    assert later == told[-1:]
    text = bus("changes", "--kind", "signals", *at).out
    assert f"deduped    signals  {ALERTS}" in text
    assert "Nothing changed." in bus("changes", "--since", "3", *at).out


def test_a_follower_prints_each_change_as_a_line_when_it_comes(own: Pipeline) -> None:
    command = [sys.executable, "-m", "bus", "changes", "--since", "2", "--follow", "--json"]
    at = ["--lake", str(own.lake.root)]
    with subprocess.Popen([*command, *at], stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert json.loads(follower.stdout.readline())["change"] == "rejected"
        own.judged(verdict("new", facts("new", 9)))
        own.commit()
        told = [json.loads(follower.stdout.readline()) for _ in range(2)]
        follower.terminate()
    assert [(one["seq"], one["change"]) for one in told] == [(4, "committed"), (4, "created")]
    assert told[1]["details"]["name"] == "new"


def test_exports_of_the_past_go_where_they_are_told(
    filled: Pipeline, bus: Callable[..., Said], tmp_path: Path
) -> None:
    at = ["--lake", filled.lake.root, "--json"]
    said = bus("export", "schema_objects", "--as-of", "1", "--out", tmp_path / "then", *at)
    (result,) = said.json
    assert (said.status, result["ok"], result["seq"]) == (0, True, 1)
    assert pq.read_table(result["path"]).num_rows == result["rows"]
    text = bus("export", "--as-of", "1", "--out", tmp_path / "then", "--lake", filled.lake.root)
    assert "alerts_std_tradable" in text.out
    inside = bus("export", "--as-of", "1", "--out", filled.lake.exports, *at)
    assert (inside.status, inside.json["error"]["code"]) == (2, "E103")
