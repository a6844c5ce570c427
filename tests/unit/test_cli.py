"""The command line in this process: what it prints, where, in which form, and with which exit code."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from bus import cli
from bus.cli import output
from bus.errors import Code
from bus.lake import COMMIT, MANIFEST, OUR_NAMES, Lake
from bus.model import CommitMarker, JobManifest, JobState, ProblemDoc
from tests.pipeline import Pipeline, facts, table, verdict

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).parents[2]
COMMANDS = {name: made for group in cli.COMMANDS.values() for name, made in group.items()}
#: They run until they are stopped: tests/integration/test_cli_live.py starts them.
PROCESSES = {"up", "worker", "writer", "pump", "beat", "flower", "demo"}
BOTH_PROBLEMS = [
    ProblemDoc(code="E307", where="x.parquet", message="not Parquet at all", hint="Write Parquet."),
    ProblemDoc(code="E202", where="x.parquet:ts", message="needs ts", hint="Write the column."),
]


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def _nobody_elses_lake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bus(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def run(*argv: object) -> Said:
        capsys.readouterr()
        status = cli.run([str(word) for word in argv])
        out, err = capsys.readouterr()
        return Said(status, out, err)

    return run


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A lake with something in every state; tests only look at it."""
    made = Pipeline(tmp_path_factory.mktemp("cli") / "lake", lineage_wait_s=600)
    fill(made)
    return made


def fill(made: Pipeline) -> None:
    tagged = facts("alerts", 1, tags={"token": ["SOL"]})
    made.judged(verdict("job-1", tagged, meta={"note": "x"}))
    made.commit()
    made.judged(verdict("job-2", tagged, run_id="run-2", producer="others"))
    made.commit()
    refused = verdict("broken", accepted=False, problems=BOTH_PROBLEMS, job_digest=None)
    made.judged(refused, files={"x.parquet": b"no"})
    made.judged(verdict("waits", facts("late", 2, inputs=["job:later/x"])))
    made.commit()
    made.stage("fresh", table(3), run_id="run-3", kind="other")


@pytest.fixture
def own(tmp_path: Path) -> Pipeline:
    """The same, for tests that change it."""
    made = Pipeline(tmp_path / "lake", lineage_wait_s=600)
    fill(made)
    return made


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "trades.parquet"
    pq.write_table(table(7), path)
    return path


# ── the list of commands, and their help ──────────────────────────────────────────────────────


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_in_its_docstring_what_the_list_says(name: str) -> None:
    _, summary = COMMANDS[name]
    assert (inspect.getdoc(cli.load(name)) or "").splitlines()[0] == summary


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_a_lake_and_answers_in_json_if_asked(name: str) -> None:
    assert "everywhere" in inspect.signature(cli.load(name)).parameters


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_page_has_worked_examples_that_parse(name: str, bus: Callable[..., Said]) -> None:
    page = bus(name, "--help")
    assert page.status == 0
    assert "--lake" in page.out
    assert "--json" in page.out
    found = re.findall(
        r"^ {4}(?:.*\| )?bus (.*?)(?: \| .*)?$", inspect.getdoc(cli.load(name)), re.MULTILINE
    )
    assert found, "no example"
    for example in found:
        command, *words = shlex.split(example)
        assert command == name
        cli.app(name).parse_args([command, *words], exit_on_error=False, print_error=False)


def test_the_list_of_commands_names_each_with_what_it_does(bus: Callable[..., Said]) -> None:
    for argv in ([], ["--help"], ["-h"], ["help"], ["--json"]):
        page = bus(*argv)
        assert page.status == 0
        for name, (_, summary) in COMMANDS.items():
            assert re.search(rf"^  {name} +{re.escape(summary)}$", page.out, re.MULTILINE)


def test_help_answers_in_a_blink() -> None:
    def once() -> float:
        started_s = time.perf_counter()
        command = [sys.executable, "-m", "bus", "--help"]
        subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)
        return time.perf_counter() - started_s

    assert min(once() for _ in range(5)) < 0.2


def test_a_misspelled_command_flag_or_choice_is_guessed(bus: Callable[..., Said]) -> None:
    for argv, meant in (
        (["sumbit"], '"submit"'),
        (["jobs", "--limt", "3"], "--limit"),
        (["health", "wroker"], '"worker"'),
        (["jobs", "--state", "comitted"], '"committed"'),
        (["explain", "E2O2"], "E202"),
        (["show", "--kind", "alert_std"], "'alerts_std'"),
    ):
        said = bus(*argv)
        assert said.status in {1, 2}
        assert "did you mean" in said.err.lower()
        assert meant in said.err
        assert said.out == ""


def test_the_version_is_the_packages(bus: Callable[..., Said]) -> None:
    assert bus("--version").out.strip() == cli.__version__


# ── exit codes, streams, forms ────────────────────────────────────────────────────────────────


ANSWERS: list[tuple[str, list[str], int]] = [
    ("status", [], 0),
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
    ("query", ["SELECT 1 AS one"], 0),
    ("query", ["DROP TABLE x"], 2),
    ("query", ["SELECT"], 2),
    ("wait", ["job-1", "--timeout", "0"], 0),
    ("wait", ["broken", "--timeout", "0"], 1),
    ("wait", ["fresh", "--timeout", "0"], 1),
    ("wait", ["nobody"], 1),
    ("retry", ["job-1"], 1),
    ("retry", [], 2),
    ("submit", ["missing.parquet", "--kind", "x"], 2),
    ("submit", ["--kind", "x"], 2),
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
    ("verify", ["--quick"], 0),
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
    assert "…" not in bare  # narrow columns are folded, nothing is cut
    assert (uses[0]["artifact_id"] in bare) is (columns == "200")


def test_every_kind_of_part_is_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", screen)
    parts = [
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


# ── submit ────────────────────────────────────────────────────────────────────────────────────


def staged(lake: Lake, job_id: str) -> JobManifest:
    return JobManifest.from_bytes((lake.inbox / job_id / MANIFEST).read_bytes())


def test_with_no_bus_a_submission_waits_in_the_inbox_and_says_so(
    tmp_path: Path, parquet: Path, bus: Callable[..., Said]
) -> None:
    said = bus("submit", parquet, "--kind", "trades", "--lake", tmp_path / "new")
    assert said.status == 0
    assert "No bus answers" in said.err
    assert "inbox" in said.err
    job_id = said.out.strip()
    lake = Lake(tmp_path / "new")
    assert lake.state_of(job_id) is JobState.STAGED
    found = staged(lake, job_id)
    assert (found.producer, found.kind, len(found.artifacts)) == ("manual", "trades", 1)
    assert found.artifacts[0].artifact_id == "trades"


def test_the_documents_flags_reach_the_manifest(
    tmp_path: Path, parquet: Path, bus: Callable[..., Said]
) -> None:
    said = bus(
        *("submit", "--bus-root", tmp_path / "data" / "bus", "--parquet", parquet, "--json"),
        *("--job-id", "2026-01-08T05-12-33Z__baseline__alerts", "--run-id", "run-9"),
        *("--producer", "baseline", "--kind", "alerts_std", "--artifact-id", "alerts_std"),
        *("--schema-hint", "canon.alerts_std", "--rows", "3", "--meta-json", '{"git_sha": "1f3"}'),
    )
    assert said.json["job_id"] == "2026-01-08T05-12-33Z__baseline__alerts"
    assert said.json["rung"] is False
    found = staged(Lake(tmp_path / "data"), said.json["job_id"])
    assert (found.run_id, found.producer, found.kind) == ("run-9", "baseline", "alerts_std")
    assert found.meta == {"git_sha": "1f3"}
    (artifact,) = found.artifacts
    assert (artifact.artifact_id, artifact.schema_hint) == ("alerts_std", "canon.alerts_std")
    assert artifact.rows == 3


def test_the_other_flags_reach_the_manifest(
    tmp_path: Path, parquet: Path, bus: Callable[..., Said]
) -> None:
    said = bus(
        *("submit", parquet, "--kind", "x", "--lake", tmp_path / "l", "--job-id", "j"),
        *("--tag", "token=SOL", "--tag", "token=WIF", "--tag", "k=a=b", "--schema-version", "2"),
        *("--logical-key", "token=SOL", "--input", "name:other", "--input", "job:j/x"),
        *("--supersedes", "job:old/x", "--after", "job-0"),
    )
    assert said.status == 0
    found = staged(Lake(tmp_path / "l"), "j")
    (artifact,) = found.artifacts
    assert artifact.tags == {"token": ["SOL", "WIF"], "k": ["a=b"]}
    assert (artifact.schema_version, artifact.logical_key) == (2, "token=SOL")
    assert artifact.inputs == ["name:other", "job:j/x"]
    assert artifact.supersedes == ["job:old/x"]
    assert found.after == ["job-0"]


def test_made_from_nothing_differs_from_not_said(
    tmp_path: Path, parquet: Path, bus: Callable[..., Said]
) -> None:
    lake = Lake(tmp_path / "l")
    for job_id, flags in (("silent", []), ("said", ["--no-inputs"])):
        bus("submit", parquet, "--kind", "x", "--lake", lake.root, "--job-id", job_id, *flags)
    assert staged(lake, "silent").artifacts[0].inputs is None
    assert staged(lake, "said").artifacts[0].inputs == []


def test_several_files_make_one_job(
    tmp_path: Path, parquet: Path, bus: Callable[..., Said]
) -> None:
    other = tmp_path / "fills.parquet"
    pq.write_table(table(9), other)
    lake = Lake(tmp_path / "l")
    base = ["--kind", "x", "--lake", lake.root]
    bus("submit", parquet, other, *base, "--job-id", "by-file")
    bus("submit", "--parquet", parquet, "--parquet", other, *base, "--job-id", "by-name",
        "--artifact-id", "t", "--artifact-id", "f", "--rows", "3", "--rows", "3")  # fmt: skip
    assert [a.artifact_id for a in staged(lake, "by-file").artifacts] == ["trades", "fills"]
    assert [a.artifact_id for a in staged(lake, "by-name").artifacts] == ["t", "f"]


def test_metadata_may_come_from_a_file(
    tmp_path: Path, parquet: Path, bus: Callable[..., Said]
) -> None:
    (tmp_path / "meta.json").write_text('{"params": {"interval": "1m"}}')
    flags = ["--meta-json", f"@{tmp_path / 'meta.json'}", "--job-id", "j"]
    assert bus("submit", parquet, "--kind", "x", "--lake", tmp_path / "l", *flags).status == 0
    assert staged(Lake(tmp_path / "l"), "j").meta == {"params": {"interval": "1m"}}


@pytest.mark.parametrize(
    ("flags", "place", "text"),
    [
        (["--meta-json", "{"], "--meta-json", "not JSON"),
        (["--meta-json", "[1]"], "--meta-json", "not a JSON object"),
        (["--tag", "token"], "--tag", "'token' is not k=v"),
        (["--artifact-id", "a", "--artifact-id", "b"], "--artifact-id", "2 times for 1 files"),
        (["--no-inputs", "--input", "name:x"], "--no-inputs", "--input was given"),
        (["--bus-root", "x/bus"], "", "name the same thing"),
        (["--artifact-id", "no/slash"], "artifact_id", "not an identifier"),
        (["--job-id", "../up"], "job_id", "not a job id"),
    ],
)
def test_a_bad_flag_of_submit_stages_nothing(
    flags: list[str],
    place: str,
    text: str,
    tmp_path: Path,
    parquet: Path,
    bus: Callable[..., Said],
) -> None:
    said = bus("submit", parquet, "--kind", "x", "--lake", tmp_path / "l", *flags)
    assert (said.status, said.out) == (2, "")
    assert place in said.err
    assert text in said.err
    assert list((tmp_path / "l").glob("bus/inbox/*")) == []


def test_one_artifact_to_supersede_and_several_files_contradict_each_other(
    parquet: Path, bus: Callable[..., Said]
) -> None:
    said = bus("submit", parquet, parquet, "--kind", "x", "--supersedes", "y")
    assert said.status == 2
    assert "--supersedes" in said.err


def test_waiting_with_no_bus_ends_in_time_and_the_job_is_safe(
    tmp_path: Path, parquet: Path, bus: Callable[..., Said]
) -> None:
    flags = ["--wait", "--timeout", "0.1", "--job-id", "j"]
    said = bus("submit", parquet, "--kind", "x", "--lake", tmp_path / "l", *flags)
    assert said.status == 1
    assert "E506" in said.err
    assert Lake(tmp_path / "l").state_of("j") is JobState.STAGED


# ── looking ───────────────────────────────────────────────────────────────────────────────────


def test_jobs_shows_those_on_their_way_first_then_the_newest(
    filled: Pipeline, bus: Callable[..., Said]
) -> None:
    rows = bus("jobs", "--lake", filled.lake.root, "--json").json
    assert [(r["job_id"], r["state"]) for r in rows] == [
        ("fresh", "staged"),
        ("waits", "ready"),
        ("broken", "rejected"),
        ("job-2", "committed"),
        ("job-1", "committed"),
    ]
    by_id = {row["job_id"]: row for row in rows}
    assert by_id["fresh"]["run_id"] == "run-3"
    assert by_id["waits"]["waiting_for"] == ["job:later/x"]
    assert by_id["broken"]["codes"] == ["E307", "E202"]
    assert by_id["job-1"]["seq"] == 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--state", "pending"], ["fresh", "waits"]),
        (["--state", "staged"], ["fresh"]),
        (["--state", "ready"], ["waits"]),
        (["--state", "committed"], ["job-2", "job-1"]),
        (["--state", "rejected"], ["broken"]),
        (["--run-id", "run-2"], ["job-2"]),
        (["--kind", "other"], ["fresh"]),
        (["--limit", "3"], ["fresh", "waits", "broken"]),
        (["--run-id", "run-1", "--state", "committed"], ["job-1"]),
    ],
)
def test_jobs_can_be_filtered(
    flags: list[str], expected: list[str], filled: Pipeline, bus: Callable[..., Said]
) -> None:
    rows = bus("jobs", "--lake", filled.lake.root, "--json", *flags).json
    assert [row["job_id"] for row in rows] == expected


def test_rejected_shows_every_problem_with_code_place_hint_and_where_the_files_lie(
    filled: Pipeline, bus: Callable[..., Said]
) -> None:
    text = bus("rejected", "--lake", filled.lake.root).out
    for problem in BOTH_PROBLEMS:
        assert f"{problem.code} {problem.where}" in text
        assert problem.message in text
        assert f"hint: {problem.hint}" in text
    directory = filled.lake.rejected / "broken"
    assert f"files: {directory}" in text
    assert (directory / "x.parquet").read_bytes() == b"no"
    (found,) = bus("rejected", "broken", "--lake", filled.lake.root, "--json").json
    assert [p["code"] for p in found["problems"]] == ["E307", "E202"]
    assert found["path"] == str(directory)


def test_show_tells_what_a_job_waits_for(filled: Pipeline, bus: Callable[..., Said]) -> None:
    assert "job:later/x" in bus("show", "waits", "--lake", filled.lake.root).out


def test_show_finds_one_artifact_by_each_kind_of_reference(
    filled: Pipeline, bus: Callable[..., Said]
) -> None:
    whole = bus("show", "run-1/alerts", "--lake", filled.lake.root, "--json").json
    artifact_id = whole["artifact_id"]
    for reference in (artifact_id, artifact_id[:6], "job:job-1/alerts", f"artifact:{artifact_id}"):
        again = bus("show", reference, "--lake", filled.lake.root, "--json").json
        assert again["artifact_id"] == artifact_id
    assert whole["tags"] == {"token": ["SOL"]}
    assert whole["rows"] == 2
    assert [use["run_id"] for use in whole["uses"]] == ["run-2", "run-1"]
    assert [column["name"] for column in whole["columns"]] == ["x"]


def test_a_job_and_a_run_of_one_name_can_be_told_apart(
    own: Pipeline, bus: Callable[..., Said]
) -> None:
    own.judged(verdict("run-1", facts("more", 5)))
    own.commit()
    at = ["--lake", own.lake.root, "--json"]
    assert bus("show", "run-1", *at).json["type"] == "job"
    assert bus("show", "job:run-1", *at).json["type"] == "job"
    assert bus("show", "run:run-1", *at).json["type"] == "run"


def test_the_beginning_of_an_id_that_fits_several_is_not_guessed(
    own: Pipeline, bus: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.lookup._meant", lambda *_: ["aaaa-1", "aaaa-2"])
    said = bus("path", "aaaa", "--lake", own.lake.root)
    assert said.status == 2
    assert "E404" in said.err
    assert "aaaa-1, aaaa-2" in said.err


def test_path_prints_the_path_of_the_bytes_and_nothing_else(
    filled: Pipeline, bus: Callable[..., Said]
) -> None:
    said = bus("path", "run-2/alerts", "--lake", filled.lake.root)
    path = Path(said.out.strip())
    assert path.is_absolute()
    assert pq.read_table(path).to_pydict() == {"x": [1, 2]}
    assert said.err == ""


def test_the_contract_of_a_kind_lists_its_columns(bus: Callable[..., Said]) -> None:
    (spec,) = bus("show", "--kind", "run_metrics", "--json").json
    assert [c["name"] for c in spec["columns"]] == ["run_id", "metric_name", "metric_value", "ts"]
    assert "metric_name" in bus("show", "--kind", "run_metrics").out
    assert "open: any columns" in bus("show", "--kind", "fills").out


def test_a_query_reads_the_published_catalog(filled: Pipeline, bus: Callable[..., Said]) -> None:
    sql = "SELECT run_id, name, rows FROM catalog.artifacts_f ORDER BY run_id"
    found = bus("query", sql, "--lake", filled.lake.root, "--json").json
    assert found["columns"] == ["run_id", "name", "rows"]
    assert found["rows"] == [
        {"run_id": "run-1", "name": "alerts", "rows": 2},
        {"run_id": "run-2", "name": "alerts", "rows": 2},
    ]
    limited = bus("query", sql, "--lake", filled.lake.root, "--limit", "1").out
    assert "run-1" in limited
    assert "The first 1 rows" in limited


def test_a_query_may_come_from_stdin(
    filled: Pipeline, bus: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT 42 AS answer"))
    said = bus("query", "-", "--lake", filled.lake.root, "--json")
    assert said.json["rows"] == [{"answer": 42}]


@pytest.mark.parametrize("code", list(Code))
def test_every_code_is_explained_with_more_than_its_hint(
    code: Code, bus: Callable[..., Said]
) -> None:
    found = bus("explain", str(code).lower(), "--json").json
    assert (found["code"], found["title"]) == (str(code), code.label)
    assert len(found["text"]) > 100
    assert "### " not in found["text"]


def test_without_a_runbook_explain_falls_back_to_the_hint(
    bus: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.runbook._paragraphs", dict)
    assert bus("explain", "E202", "--json").json["text"] == Code.E202.hint


def test_status_names_what_needs_a_hand_first(filled: Pipeline, bus: Callable[..., Said]) -> None:
    said = bus("status", "--lake", filled.lake.root)
    lines = said.out.splitlines()
    assert "no bus runs" in lines[0]
    assert "writer: not started" in said.out
    document = bus("status", "--lake", filled.lake.root, "--json").json
    assert document["writer"]["state"] == "not started"
    assert document["jobs"]["ready"]["count"] == 1
    assert document["catalog"]["seq"] == document["catalog"]["manifest_seq"] == 3


def test_the_doctor_lists_every_setting_without_the_password(
    bus: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUS_REDIS_URL", "redis://u:secret-word@h:1/0")
    for form in ([], ["--json"]):
        said = bus("doctor", "--settings", *form)
        assert "lineage_wait_s" in said.out
        assert "secret-word" not in said.out


# ── changing ──────────────────────────────────────────────────────────────────────────────────


def test_retry_sends_a_rejected_job_back_clean_under_a_new_submission(
    own: Pipeline, bus: Callable[..., Said]
) -> None:
    said = bus("retry", "broken", "--lake", own.lake.root, "--json")
    assert said.status == 0
    there = own.lake.inbox / "broken"
    assert own.lake.state_of("broken") is JobState.STAGED
    assert [name for name in OUR_NAMES if (there / name).exists()] == []
    assert (there / "x.parquet").read_bytes() == b"no"
    marker = CommitMarker.from_bytes((there / COMMIT).read_bytes())
    assert marker.submission_id == said.json["submission_id"]
    assert bus("rejected", "--lake", own.lake.root, "--json").json == []
    again = bus("retry", "broken", "--lake", own.lake.root)
    assert again.status == 1
    assert "E511" in again.err


def test_rebuild_with_no_bus_makes_deleted_views_again(
    own: Pipeline, bus: Callable[..., Said]
) -> None:
    at = ["--lake", own.lake.root, "--json"]
    before = bus("jobs", *at, "--state", "committed").json
    for path in (own.lake.manifest_db, own.lake.catalog_db, *own.lake.run_trees.rglob("*.parquet")):
        path.unlink()
    said = bus("rebuild", *at)
    assert said.status == 0
    assert said.json["seq"] == 3
    assert bus("jobs", *at, "--state", "committed").json == before
    rows = bus("query", "SELECT count(*) AS n FROM catalog.artifacts_f", *at).json["rows"]
    assert rows == [{"n": 2}]
    assert own.lake.run_data_path("run-1", "alerts").exists()


def test_rebuild_does_not_touch_what_another_writer_holds(
    own: Pipeline, bus: Callable[..., Said]
) -> None:
    with own.writer():
        said = bus("rebuild", "--lake", own.lake.root, "--timeout", "0.1")
    assert said.status == 2
    assert "E503" in said.err


def test_verify_finds_a_damaged_object_and_says_where(
    own: Pipeline, bus: Callable[..., Said]
) -> None:
    assert bus("verify", "--lake", own.lake.root).status == 0
    path = Path(bus("path", "run-1/alerts", "--lake", own.lake.root).out.strip())
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    said = bus("verify", "--lake", own.lake.root, "--json")
    assert said.status == 1
    assert said.json["ok"] is False
    assert any(path.stem in json.dumps(finding) for finding in said.json["findings"])


def test_an_export_by_hand_writes_the_file(own: Pipeline, bus: Callable[..., Said]) -> None:
    at = ["--lake", own.lake.root, "--json"]
    said = bus("export", "schema_columns", *at)
    assert said.status == 0, said
    assert own.lake.export_path("schema_columns").exists()
    states = {e["name"]: e["state"] for e in bus("export", "--list", *at).json}
    assert states["schema_columns"] == "ok"
    assert states["alerts_std"] == "never"
