"""What the documents promise, checked against the code: names, codes, commands, settings, versions."""

from __future__ import annotations

import inspect
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import bus
from bus.errors import Code
from bus.settings import Settings
from tests.help_page import commands_in_help

REPOSITORY = Path(__file__).parents[1]
RUNBOOK = REPOSITORY / "ops" / "RUNBOOK.md"
README = REPOSITORY / "README.md"


def test_the_public_api_is_exactly_what_all_lists() -> None:
    public = {
        name
        for name in dir(bus)
        if not name.startswith("_")
        and not inspect.ismodule(getattr(bus, name))
        and name not in {"annotations", "TYPE_CHECKING"}
    }
    assert len(bus.__all__) == len(set(bus.__all__))
    assert set(bus.__all__) - {"__version__"} == public
    assert len(public) <= 20


def test_one_version_number_everywhere() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    newest = re.search(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == project["version"]
    assert bus.__version__ == project["version"]


def test_every_error_code_has_its_paragraph_in_the_runbook_and_no_other_has() -> None:
    text = RUNBOOK.read_text()
    starts = list(re.finditer(r"^[#*\-|` ]*(E[1-6]\d\d)\b(.*)$", text, re.MULTILINE))
    titles = {match[1]: match[2] for match in starts}
    assert set(titles) == {str(code) for code in Code}
    assert [code for code in Code if code.label not in titles[code]] == []
    ends = [match.start() for match in starts[1:]] + [len(text)]
    sections = {m[1]: text[m.start() : end] for m, end in zip(starts, ends, strict=True)}
    # A heading alone helps nobody at three in the morning.
    assert [code for code, section in sections.items() if len(section) < 120] == []


def test_every_command_is_in_the_readme_and_every_command_in_the_readme_exists() -> None:
    commands = commands_in_help()
    text = README.read_text()
    shown = set(
        re.findall(r"(?:^|[`$ (/])bus ([a-z][a-z-]*)(?=[\s`)]|$)", _code_in(text), re.MULTILINE)
    )
    assert commands - shown == set()
    assert shown - commands == set()


def _code_in(markdown: str) -> str:
    """Only fenced blocks and `inline code`, where `bus up` is a command and not a sentence."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*fenced, *re.findall(r"`([^`\n]+)`", prose)])


def test_what_the_documents_import_exists() -> None:
    package = REPOSITORY / "bus" / "producers" / "typescript"
    exported = set(re.findall(r"\w+", (package / "src" / "index.ts").read_text()))
    documents = [README, package / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    for code in (_code_in(path.read_text()) for path in documents):
        for names in re.findall(r'(?:import|export) {([^}]+)} from "artifact-bus"', code):
            assert set(re.findall(r"\w+", names)) - {"type"} <= exported
        for module, names in re.findall(r"from (bus[\w.]*) import ([\w, ]+)", code):
            found = import_module(module)
            assert [name for name in names.split(", ") if not hasattr(found, name)] == []


def test_every_setting_says_what_it_is_and_stands_in_the_readme_or_the_runbook() -> None:
    text = README.read_text() + RUNBOOK.read_text()
    fields = Settings.model_fields
    assert [name for name, field in fields.items() if not field.description] == []
    assert [name for name in fields if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("target", ["demo", "test", "lint", "types", "bench", "up", "clean"])
def test_make_has_the_target_and_says_what_it_does(target: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    assert re.search(rf"^{target}:.*## \S", makefile, re.MULTILINE)
