"""The list of commands and their help: complete, exampled, quick, forgiving."""

from __future__ import annotations

import inspect
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bus import __version__, cli

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.said import Said

REPOSITORY = Path(__file__).parents[3]
COMMANDS = {name: made for group in cli.COMMANDS.values() for name, made in group.items()}


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
    text = inspect.getdoc(cli.load(name)) or ""
    found = re.findall(r"^ {4}(?:.*\| )?bus (.*?)(?: \| .*)?$", text, re.MULTILINE)
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
    """Measured as CPU time: the machine may be busy with other tests."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "bus", "--help"]
        subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

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
    assert bus("--version").out.strip() == __version__
