"""What every command has in common: exit codes, streams, JSON and text."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bus import cli
from bus.cli import output
from bus.lake import Lake
from bus.settings import last_lake_file
from tests.said import Said

if TYPE_CHECKING:
    from collections.abc import Callable

    from bus.settings import Settings
    from tests.pipeline import Pipeline

REPOSITORY = Path(__file__).parents[3]
COMMANDS = {name: made for group in cli.COMMANDS.values() for name, made in group.items()}
#: They run until they are stopped: tests/integration/test_cli_live.py starts them.
PROCESSES = {"up", "worker", "writer", "pump", "beat", "flower", "demo"}


ANSWERS: list[tuple[str, list[str], int]] = [
    ("status", [], 0),
    ("metrics", [], 0),
    ("health", [], 1),
    ("health", ["writer"], 1),
    ("jobs", [], 0),
    ("jobs", ["--state", "pending"], 0),
    ("jobs", ["--run-id", "nobody"], 0),
    ("rejected", [], 0),
    ("rejected", ["broken"], 0),
    ("rejected", ["job-1"], 1),
    ("runs", [], 0),
    ("show", ["job-1"], 0),
    ("show", ["run-1"], 0),
    ("show", ["run-1/alerts"], 0),
    ("show", ["job:job-1/alerts"], 0),
    ("show", ["--kind", "alerts_std"], 0),
    ("show", ["--kind", "nobody"], 1),
    ("show", ["nobody"], 1),
    ("show", [], 2),
    ("path", ["run-1/alerts"], 0),
    ("path", ["nobody"], 1),
    ("path", ["signals:latest", "--as-of", "1"], 0),
    ("path", ["signals:latest", "--as-of", "2026-01-08T05:12:33"], 2),
    ("show", ["signals:latest", "--as-of", "2"], 0),
    ("show", ["signals:latest", "--as-of", "99"], 1),
    ("show", ["signals:latest", "--as-of", "1999-01-01T00:00:00Z"], 1),
    ("find", [], 0),
    ("find", ["--kind", "signals", "--tag", "token=SOL", "--as-of", "1"], 0),
    ("find", ["--kind", "nobody"], 0),
    ("find", ["--tag", "token"], 2),
    ("find", ["--since", "yesterday"], 2),
    ("find", ["--status", "gone"], 2),
    ("changes", [], 0),
    ("changes", ["--since", "1", "--kind", "signals"], 0),
    ("changes", ["--since", "99"], 1),
    ("query", ["SELECT 1 AS one"], 0),
    ("query", ["DROP TABLE x"], 2),
    ("query", ["SELECT"], 2),
    ("diff", ["run-1/alerts", "run-2/alerts"], 0),
    ("diff", ["run-1/alerts", "nobody"], 2),
    ("diff", ["run-1/alerts"], 2),
    ("specs", [], 0),
    ("specs", ["diff", "ohlcv_slice"], 0),
    ("specs", ["diff", "nobody"], 1),
    ("specs", ["diff"], 2),
    ("specs", ["check"], 0),
    ("specs", ["chekc"], 2),
    ("supersede", ["run-1/alerts", "--by", "nobody"], 1),
    ("supersede", ["--by", "run-1/alerts"], 2),
    ("tombstone", ["nobody", "--reason", "wrong"], 1),
    ("tombstone", ["run-1/alerts"], 2),
    ("tombstone", ["run-1/alerts", "--reason", " "], 2),
    ("supersede", ["run-1/alerts", "--by", "run-1/alerts"], 2),
    ("tag", ["nobody", "k=v"], 1),
    ("tag", ["run-1/alerts", "k"], 2),
    ("untag", ["nobody", "k"], 1),
    ("untag", ["run-1/alerts"], 2),
    ("alias", ["--list"], 0),
    ("alias", ["signals:nobody"], 1),
    ("alias", ["signals:nobody", "--history"], 1),
    ("alias", ["signals:nobody", "nobody"], 1),
    ("alias", ["signals:nobody", "run-1/alerts", "--remove"], 2),
    ("alias", ["no-colon", "--remove"], 2),
    ("alias", [], 2),
    ("pin", ["paper", "nobody"], 1),
    ("pin", ["paper"], 2),
    ("unpin", ["paper", "nobody"], 1),
    ("unpin", ["paper", "run-1/alerts", "--all"], 2),
    ("unpin", ["paper"], 2),
    ("pins", [], 0),
    ("pins", ["nobody"], 1),
    ("lineage", ["run-1/alerts"], 0),
    ("lineage", ["run-1/alerts", "--up", "--mermaid", "--as-of", "1"], 0),
    ("lineage", ["run-1/alerts", "--as-of", "99"], 1),
    ("lineage", ["run-1/alerts", "--depth", "-1"], 2),
    ("lineage", ["nobody"], 1),
    ("impact", ["run-1/alerts"], 0),
    ("impact", ["nobody"], 1),
    ("stale", [], 0),
    ("orphans", [], 0),
    ("wait", ["job-1", "--timeout", "0"], 0),
    ("wait", ["broken", "--timeout", "0"], 1),
    ("wait", ["fresh", "--timeout", "0"], 1),
    ("wait", ["nobody"], 1),
    ("retry", ["job-1"], 1),
    ("retry", [], 2),
    ("submit", ["missing.parquet", "--kind", "x"], 2),
    ("submit", ["--kind", "x"], 2),
    ("publish-csv", ["--csv", "none.csv", "--artifact-type", "x", "--logical-key", "k"], 2),
    ("publish-csv", ["--csv", "none.csv"], 2),
    ("init", [], 0),
    ("init", ["--manifest-db", "m/manifest/manifest.sqlite"], 2),
    ("explain", ["E202"], 0),
    ("explain", [], 0),
    ("explain", ["E999"], 1),
    ("doctor", [], 0),
    ("doctor", ["--settings"], 0),
    ("redis", ["PING"], 2),
    ("redis", [], 2),
    ("down", [], 0),
    ("export", ["--list"], 0),
    ("export", ["nobody"], 1),
    ("export", ["nobody", "--list"], 1),
    ("export", ["--as-of", "1"], 2),
    ("export", ["--out", "then"], 2),
    ("verify", ["--quick"], 0),
    ("gc", [], 0),
    ("gc", ["--kept", "--grace-days", "0"], 0),
    ("gc", ["--undo", "nobody"], 1),
    ("gc", ["--undo", "run-1/alerts", "--apply"], 2),
    ("gc", ["--grace-days", "-1"], 2),
    ("gc", ["--grace-days", "inf"], 2),
    ("policy", [], 0),
    ("policy", ["alerts", "--show"], 0),
    ("policy", ["--keep-last", "3"], 2),
    ("policy", ["alerts", "--keep-last", "0"], 2),
    ("policy", ["alerts", "--remove", "--keep-last", "3"], 2),
    ("backup", ["nowhere", "--verify"], 2),
    ("restore", ["nowhere", "there"], 2),
    ("verify", ["--quick", "--from", "nowhere"], 2),
    ("jobs", ["--limit", "0"], 2),
    ("jobs", ["--what"], 2),
]
_IDS = [" ".join([command, *words]) for command, words, _ in ANSWERS]


@pytest.mark.parametrize(("command", "words", "status"), ANSWERS, ids=_IDS)
def test_with_json_stdout_is_one_document_and_the_exit_code_tells(
    command: str, words: list[str], status: int, filled: Pipeline, bus: Callable[..., Said]
) -> None:
    said = bus(command, *words, "--lake", filled.lake.root, "--json")
    assert said.status == status, said
    assert "Traceback" not in said.err
    if "error" in (document := said.json):
        assert status in {1, 2}
        assert document["error"]["code"]
        assert document["error"]["message"]
        assert document["error"]["hint"]


@pytest.mark.parametrize(("command", "words", "status"), ANSWERS, ids=_IDS)
def test_as_text_results_are_on_stdout_errors_on_stderr_and_nothing_is_coloured(
    command: str, words: list[str], status: int, filled: Pipeline, bus: Callable[..., Said]
) -> None:
    said = bus(command, *words, "--lake", filled.lake.root)
    assert said.status == status
    assert "Traceback" not in said.err
    assert "\x1b" not in said.out + said.err
    if status == 0:
        assert said.out.strip()
    if status == 2:
        assert said.out == ""
        assert said.err.strip()


def test_every_command_that_ends_by_itself_is_asked_above() -> None:
    assert {command for command, *_ in ANSWERS} | PROCESSES | {"rebuild"} == set(COMMANDS)


def test_where_there_is_no_lake_commands_say_so_and_make_none(
    tmp_path: Path, bus: Callable[..., Said]
) -> None:
    for command in (["status"], ["jobs"], ["runs"], ["path", "x"], ["verify"], ["retry", "x"]):
        said = bus(*command, "--lake", tmp_path / "nowhere")
        assert said.status == 2
        assert said.err.startswith("E507")
    assert not (tmp_path / "nowhere").exists()


def test_init_makes_a_lake_where_there_is_none(tmp_path: Path, bus: Callable[..., Said]) -> None:
    assert bus("init", "--lake", tmp_path / "one").status == 0
    named = tmp_path / "two" / "manifest" / "manifest.sqlite"
    assert bus("init", "--manifest-db", named).status == 0
    for name in ("one", "two"):
        assert bus("jobs", "--lake", tmp_path / name).status == 0


def test_options_of_every_command_may_stand_before_it(
    filled: Pipeline, bus: Callable[..., Said]
) -> None:
    behind = bus("runs", "--lake", filled.lake.root, "--json")
    assert bus("--lake", filled.lake.root, "--json", "runs") == behind
    assert bus(f"--lake={filled.lake.root}", "runs", "--json") == behind
    assert behind.json


def test_the_lake_may_come_from_the_environment(
    filled: Pipeline, bus: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUS_LAKE", str(filled.lake.root))
    assert bus("runs", "--json").json == bus("runs", "--json", "--lake", filled.lake.root).json


def test_interrupting_is_no_accident(
    filled: Pipeline, bus: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bus.lookup.runs", interrupted)
    assert bus("runs", "--lake", filled.lake.root) == Said(130, "", "")


@pytest.mark.parametrize(("number", "code"), [(28, "E504"), (13, "E505")])
def test_what_the_system_refuses_has_a_code_and_no_traceback(
    number: int,
    code: str,
    filled: Pipeline,
    bus: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setattr("bus.lookup.runs", refused)
    said = bus("runs", "--lake", filled.lake.root)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith(f"{code} /some/file")
    assert os.strerror(number) in said.err


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m bus explain | true; echo ${{PIPESTATUS[0]}}"
    run = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert run.stderr == ""
    assert run.stdout.strip() in {"0", "141"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", ["60", "200"])
def test_a_terminal_gets_colours_and_whole_ids(
    columns: str, filled: Pipeline, bus: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.delenv("NO_COLOR", raising=False)
    uses = bus("show", "run-1", "--lake", filled.lake.root, "--json").json["uses"]
    monkeypatch.setattr(sys, "stdout", screen)
    cli.run(["show", "run-1", "--lake", str(filled.lake.root)])
    cli.run(["status", "--lake", str(filled.lake.root)])
    drawn = screen.getvalue()
    assert "\x1b[" in drawn
    bare = re.sub(r"\x1b\[[0-9;]*m", "", drawn)
    assert "…" not in bare  # on a narrow screen the terminal breaks lines, nothing is cut
    assert uses[0]["artifact_id"] in bare


def test_every_kind_of_part_is_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", screen)
    parts: list[output.Part] = [
        output.Line("a line [bold]"),
        output.Facts("title", {"k": ["v", None], "on": True}),
        output.Table(("c",), [("x\ny",)], "a note"),
        output.Block("head", ["inside [red]"], "bad"),
    ]
    output.show(output.Reply({}, lambda: parts), as_json=False)
    drawn = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    for text in ("a line [bold]", "title", "v, -", "yes", "x y", "a note", "inside [red]"):
        assert text in drawn


@pytest.mark.parametrize(
    ("value_s", "text"),
    [
        (None, "-"),
        (0.25, "0.2 s"),
        (90, "90.0 s"),
        (180, "3 min"),
        (7_200, "2 h"),
        (200_000, "2 d"),
    ],
)
def test_spans_are_told_in_the_unit_that_fits(value_s: float | None, text: str) -> None:
    assert output.seconds(value_s) == text


def test_a_bus_is_started_in_the_named_or_the_default_lake_never_in_a_running_ones(
    tmp_path: Path, bus: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Path] = []

    class Started:
        def __init__(self, settings: Settings, **_: object) -> None:
            started.append(settings.lake)

        def run(self) -> int:
            return 0

    monkeypatch.setattr("bus.supervisor.Supervisor", Started)
    monkeypatch.setattr("bus.process.configure_logging", lambda *_: None)
    other = Lake(tmp_path / "other")
    other.create()
    other.endpoint.touch()
    last_lake_file().parent.mkdir(parents=True)
    last_lake_file().write_text(str(other.root))
    assert bus("runs").status == 0  # a client finds the bus that was started last
    assert bus("up").status == 0
    assert bus("up", "--lake", tmp_path / "named").status == 0
    assert started == [tmp_path / "data", tmp_path / "named"]


def test_the_tour_has_a_lake_of_its_own_unless_one_is_named(
    tmp_path: Path, bus: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    roots: list[Path] = []

    def run(root: Path, **_: object) -> int:
        roots.append(root)
        return 1

    monkeypatch.setattr("bus.demo.tour.run", run)
    assert bus("demo").status == 1
    monkeypatch.setenv("BUS_LAKE", str(tmp_path / "from-make"))
    assert bus("demo").status == 1
    assert bus("demo", "--lake", tmp_path / "named").status == 1
    assert roots == [Path("demo-lake"), tmp_path / "from-make", tmp_path / "named"]
