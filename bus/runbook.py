"""The runbook's paragraphs on error codes and warnings, for `bus explain`.

The one source is ops/RUNBOOK.md: a checkout is read there, an installed package brings a copy.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path

from bus.errors import Code

_HEADING = re.compile(
    r"^### (E\d{3}|[a-z_]+)\b[^\n]*\n(.*?)(?=^#{1,3} |\Z)", re.MULTILINE | re.DOTALL
)


def paragraph(code: Code) -> str:
    """What the code means, how it looks, what to do: Markdown; the hint when nothing is written."""
    return _paragraphs().get(code) or code.hint


def on_warning(name: str) -> str | None:
    """The same of a warning in a receipt, by its name; None where there is none of that name."""
    return None if name in set(Code) else _paragraphs().get(name)


@cache
def _paragraphs() -> dict[str, str]:
    return {code: text.strip() for code, text in _HEADING.findall(_text())}


def _text() -> str:
    package = resources.files("bus")
    for place in (package.joinpath("RUNBOOK.md"), _of_a_checkout()):
        try:
            return place.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
    return ""


def _of_a_checkout() -> Path:
    return Path(__file__).parents[1] / "ops" / "RUNBOOK.md"
