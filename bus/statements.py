"""SQL by name: the files of it that lie beside the modules, cut into their statements."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources


@cache
def statement(name: str, file: str = "manifest.sql") -> str:
    """One named statement (or script) of manifest.sql, or of another file of such."""
    text = resources.files("bus").joinpath(file).read_text(encoding="utf-8")
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[name]
