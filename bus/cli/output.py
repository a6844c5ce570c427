"""Two renderings of what a command returns: one JSON document, or text.

A command returns a `Reply`: data, and how that data reads as text, in a few kinds of parts. Parts
are drawn by rich on a terminal; into a pipe they go plain, uncut and without colour codes, so that
`grep` and `cut` work. Results go to stdout, talk goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rich.console import Console

Mood = Literal["good", "bad", "dim", "heading", "plain"]
_STYLES: dict[Mood, str] = {
    "good": "green",
    "bad": "bold red",
    "dim": "dim",
    "heading": "bold",
    "plain": "none",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence."""

    text: str
    mood: Mood = "plain"


@dataclass(frozen=True, slots=True)
class Facts:
    """A heading (or none) and named values below it."""

    title: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under column names. `note` stands below, e.g. that there is more."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """A heading and indented lines: for long texts, which a table would cut."""

    title: str
    lines: Sequence[str]
    mood: Mood = "plain"


_WIDEST = 10_000

Part = Line | Facts | Table | Block


def _no_text() -> Iterable[Part]:
    return ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a command found: `data` for ``--json``, `text` for people, `status` for the shell."""

    data: Any
    text: Callable[[], Iterable[Part]] = field(default=_no_text)
    status: int = 0


def show(reply: Reply, *, as_json: bool) -> None:
    """Print a reply on stdout."""
    if as_json:
        print_json(reply.data)
        return
    draw = _draw_rich if fancy(sys.stdout) else _draw_plain
    draw(list(reply.text()), sys.stdout)


def print_json(data: Any) -> None:
    """One JSON document on stdout: indented for people, on one line for programs."""
    indent = 2 if sys.stdout.isatty() else None
    print(json.dumps(data, indent=indent, ensure_ascii=False, default=_plain), flush=True)


def say(text: str, mood: Mood = "dim") -> None:
    """Talk: on stderr, so that it never mixes with results."""
    if fancy(sys.stderr):
        _console(sys.stderr).print(text, style=_STYLES[mood], markup=False, highlight=False)
    else:
        print(text, file=sys.stderr, flush=True)


def complain(parts: Iterable[Part]) -> None:
    """Draw parts on stderr: what went wrong."""
    draw = _draw_rich if fancy(sys.stderr) else _draw_plain
    draw(list(parts), sys.stderr)


def fancy(stream: IO[str]) -> bool:
    """Whether a person looks at the stream on a terminal that can draw."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def problem_blocks(problems: Iterable[Mapping[str, str]]) -> Iterable[Block]:
    """A block for each problem: code and place, message, hint. Long texts stay whole."""
    for found in problems:
        place = f" {found['where']}" if found["where"] else ""
        hint = [f"hint: {found['hint']}"] if found["hint"] else []
        yield Block(f"{found['code']}{place}", [found["message"], *hint], "bad")


def seconds(value: float | None) -> str:
    """A span for people: `4.2 s`, `3 min`, `5 h`, `2 d`."""
    if value is None:
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if value >= 2 * size:
            return f"{value / size:.0f} {unit}"
    return f"{value:.1f} s"


def size(value_bytes: float) -> str:
    """Bytes for people: `1.3 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if value_bytes < 1000:  # noqa: PLR2004 - SI units
            return f"{value_bytes:.0f} B" if unit == "B" else f"{value_bytes:.1f} {unit}"
        value_bytes /= 1000
    return f"{value_bytes:.1f} TB"


def _plain(value: Any) -> Any:
    """What JSON has no form for: times, decimals, bytes, paths as text."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def cell(value: Any) -> str:
    """A value as one line of text."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple | set):
        return ", ".join(cell(v) for v in value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{k}={cell(v)}" for k, v in value.items()) or "-"
    return str(_plain(value) if isinstance(value, bytes) else value).replace("\n", " ")


# ── plain ─────────────────────────────────────────────────────────────────────────────────────


def _draw_plain(parts: Sequence[Part], stream: IO[str]) -> None:
    for part in parts:
        for line in _plain_lines(part):
            print(line.rstrip(), file=stream)
    stream.flush()


def _plain_lines(part: Part) -> Iterable[str]:
    match part:
        case Line(text=text):
            yield text
        case Facts(title=title, values=values):
            if title:
                yield title
            width = max((len(name) for name in values), default=0)
            yield from (f"  {name:<{width}}  {cell(value)}" for name, value in values.items())
        case Block(title=title, lines=lines):
            yield title
            yield from (f"  {line}" for line in lines)
        case Table():
            yield from _plain_table(part)


def _plain_table(table: Table) -> Iterable[str]:
    rows = [[cell(value) for value in row] for row in table.rows]
    widths = [
        max([len(name), *(len(row[i]) for row in rows)]) for i, name in enumerate(table.columns)
    ]
    for row in ([*table.columns], *rows):
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
    if table.note:
        yield table.note


# ── rich ──────────────────────────────────────────────────────────────────────────────────────


def _console(stream: IO[str]) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, soft_wrap=True)


def _draw_rich(parts: Sequence[Part], stream: IO[str]) -> None:
    console = _console(stream)
    for part in parts:
        match part:
            case Line(text=text, mood=mood):
                console.print(text, style=_STYLES[mood], markup=False)
            case Facts(title=title, values=values):
                _rich_facts(console, title, values)
            case Block(title=title, lines=lines, mood=mood):
                console.print(title, style=_STYLES[mood], markup=False)
                for line in lines:
                    console.print(f"  {line}", markup=False)
            case Table():
                _rich_table(console, part)


def _rich_facts(console: Console, title: str, values: Mapping[str, Any]) -> None:
    if title:
        console.print(title, style="bold", markup=False)
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        console.print(f"  {name:<{width}}", style="dim", markup=False, end="  ")
        console.print(cell(value), markup=False)


def _rich_table(console: Console, table: Table) -> None:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in table.columns:
        drawn.add_column(Text(name), no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(Text(cell(value)) for value in row))
    # Too wide for the screen: let the terminal break lines. Ids are there to be copied, whole.
    natural = console.measure(drawn, options=console.options.update(width=_WIDEST)).maximum
    console.width = max(natural, console.width)
    console.print(drawn, crop=False, soft_wrap=False)
    if table.note:
        console.print(table.note, style="dim", markup=False)
