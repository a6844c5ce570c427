"""Objects as small HTML tables, for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def facts_html(title: str, facts: Mapping[str, Any], more: str = "") -> str:
    """A heading and a table of names and values; `more` is HTML already."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td>{_text(value)}</td></tr>"
        for name, value in facts.items()
        if value not in (None, "", [])
    )
    return f"<div><b>{escape(title)}</b><table>{rows}</table>{more}</div>"


def rows_html(names: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table with a heading."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr>{''.join(f'<td>{_text(value)}</td>' for value in row)}</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "<br>".join(escape(str(item)) for item in value)
    return escape(f"{value:,}" if isinstance(value, int) else str(value))
