"""The `bus` command. One function a command, one module a group.

The list below is all that is read at start: a command's module is imported when that command is
asked for, and heavy packages inside the command, so that ``bus --help`` answers in a blink.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from inspect import getdoc
from typing import TYPE_CHECKING, NoReturn

from bus import __version__
from bus.cli import output
from bus.errors import BusError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from cyclopts import App

#: group -> command -> (module in this package, what it does: the first line of its docstring).
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Run a bus": {
        "up": ("processes", "Start a whole bus on this machine and keep it running."),
        "down": ("processes", "Stop the bus that `bus up` started."),
        "demo": ("processes", "Take the tour: a bus of its own, real jobs, every claim checked."),
    },
    "Hand in tables": {
        "submit": ("submit", "Submit Parquet files as one job."),
        "wait": ("submit", "Wait for a job's answer and print its receipt."),
        "retry": ("submit", "Send rejected jobs back to be judged afresh."),
        "publish-csv": ("publish", "Publish a CSV file as an artifact, and wait for the answer."),
        "init": ("publish", "Create the directories of a lake, where they are missing."),
    },
    "See what is going on": {
        "status": ("state", "Show queues, ages, consumers, writer lag, exports and disk."),
        "metrics": ("state", "Print the status as metrics, in Prometheus' text format."),
        "jobs": ("jobs", "List jobs, those on their way first, then the newest."),
        "rejected": ("jobs", "Show why jobs were rejected and where their files lie."),
        "explain": (
            "state",
            "Explain an error code, or a warning of a receipt, as the runbook does.",
        ),
        "doctor": ("state", "Check that this machine and this lake are fit for a bus."),
    },
    "Say something of artifacts": {
        "supersede": ("versions", "Let artifacts replace others; all stay readable."),
        "tombstone": ("versions", "Say that an artifact must not be used any more, and why."),
        "tag": ("versions", "Let an artifact carry tags as well."),
        "untag": ("versions", "Take tags off an artifact."),
        "alias": ("versions", "Let KIND:NAME mean an artifact, or show what it means and meant."),
        "pin": ("versions", "Put artifacts into a named set that gc keeps and jobs take as input."),
        "unpin": ("versions", "Take artifacts out of a pin."),
        "pins": ("versions", "List pins, or the artifacts of one."),
    },
    "Read the lake": {
        "find": ("finding", "Find artifacts by kind, key, tags, run, time, and as of when."),
        "changes": ("finding", "Show what each commit changed, or follow what comes."),
        "runs": ("reading", "List runs, the newest first."),
        "show": ("reading", "Show all that is known of an artifact, a job, a run or a kind."),
        "path": ("reading", "Print the absolute path of an artifact's Parquet file."),
        "query": ("reading", "Run one SELECT over the published catalog."),
        "lineage": ("lineage", "Show what an artifact was made from, and what was made from it."),
        "impact": (
            "lineage",
            "Show what is hit when an artifact is superseded, tombstoned or damaged.",
        ),
        "stale": ("lineage", "List artifacts made from something that was superseded since."),
        "orphans": (
            "lineage",
            "List active artifacts made from something tombstoned, damaged or missing.",
        ),
        "diff": ("comparing", "Show what differs between two artifacts: columns, rows, cells."),
        "specs": (
            "contracts",
            "List contracts, show what changed between two versions, or check them all.",
        ),
    },
    "Keep the lake": {
        "export": ("views", "Build golden exports now, or list them."),
        "rebuild": ("views", "Recreate every view from objects and journal."),
        "verify": ("views", "Check every invariant of the lake."),
        "gc": ("storage", "Show what may be deleted and why; with --apply, have it deleted."),
        "backup": (
            "storage",
            "Copy the truth of the lake elsewhere, while it works; only what is new.",
        ),
        "restore": (
            "storage",
            "Make a new lake of a backup, every byte checked, every view made anew.",
        ),
        "policy": ("storage", "Show or set how long replaced versions of a kind are kept."),
    },
    "Processes, for deployments of your own": {
        "worker": ("processes", "Run an ingest worker: validate and hash."),
        "writer": ("processes", "Run the writer: the only mutator."),
        "pump": ("processes", "Run the notify pump and the sweep."),
        "beat": ("processes", "Run beat: periodic exports and checks."),
        "flower": ("processes", "Run Flower on the bus's queues."),
        "health": ("state", "Check one process of this host, or the whole bus; for containers."),
        "redis": ("state", "Send a raw command to the bus's Redis."),
    },
}
_MODULES = {name: module for group in COMMANDS.values() for name, (module, _) in group.items()}
_HELP = {"--help", "-h", "help"}
#: Commands whose exit code 1 is an answer: what goes wrong with them is 2.
_ANSWER_BY_STATUS = {"diff"}
#: Options of every command that may also stand before it, and how many words they take.
_GLOBAL = {"--json": 1, "--lake": 2}


def main() -> NoReturn:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run one command line; the exit code."""
    tokens = _command_first(list(argv))
    if not tokens or tokens[0] in _HELP:
        _print_help()
        return 0
    if tokens[0] == "--version":
        print(__version__)
        return 0
    return _run_command(tokens)


def _command_first(tokens: list[str]) -> list[str]:
    """`--lake X status` as `status --lake X`."""
    ahead = 0
    while ahead < len(tokens):
        name, equals, _ = tokens[ahead].partition("=")
        if name not in _GLOBAL:
            break
        ahead += 1 if equals else _GLOBAL[name]
    if ahead >= len(tokens):
        return tokens[ahead:]
    return [tokens[ahead], *tokens[:ahead], *tokens[ahead + 1 :]]


def _run_command(tokens: list[str]) -> int:
    from cyclopts import CycloptsError

    from bus.cli import failures

    command = tokens[0]
    as_json = "--json" in tokens[: tokens.index("--") if "--" in tokens else None]
    logging.basicConfig(level=logging.ERROR, format="%(message)s")  # to stderr; errors only
    if command not in _MODULES:
        return failures.of_usage(_unknown(command), "bus", as_json=as_json)
    try:
        return _call(tokens, as_json=as_json)
    except CycloptsError as error:
        return failures.of_usage(str(error), f"bus {command}", as_json=as_json)
    except BusError as error:
        status = failures.of_bus(error, as_json=as_json)
        return failures.USAGE if command in _ANSWER_BY_STATUS else status
    except OSError as error:
        return failures.of_system(error, as_json=as_json)
    except KeyboardInterrupt:
        return failures.INTERRUPTED


def _call(tokens: list[str], *, as_json: bool) -> int:
    reply = app(tokens[0])(
        tokens, exit_on_error=False, print_error=False, result_action="return_value"
    )
    if not isinstance(reply, output.Reply):  # it printed for itself: `up`, `demo`, a help page
        return int(reply or 0)
    output.show(reply, as_json=as_json)
    return reply.status


def _unknown(command: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(command, _MODULES, n=1)
    meant = f' Did you mean "{near[0]}"?' if near else ""
    return f'Unknown command "{command[:80]}".{meant}'


def app(*commands: str) -> App:
    """The cyclopts application with these commands: each costs the import of its module."""
    from cyclopts import App

    application = App(
        name="bus",
        help_format="plaintext",
        version=__version__,
        suppress_keyboard_interrupt=False,
    )
    for command in commands:
        function = load(command)
        application.command(function, name=command, help=_page(function))
    return application


def _page(function: Callable[..., Any]) -> str:
    """A docstring as a help page: without its section on parameters, each paragraph one line.

    The terminal's width decides where lines break; indented examples stay as they are.
    """
    text = (getdoc(function) or "").split("\n\nParameters\n")[0]
    paragraphs = text.split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else " ".join(p.split()) for p in paragraphs)


def load(command: str) -> Callable[..., Any]:
    """The function behind a command."""
    module = import_module(f"{__name__}.{_MODULES[command]}")
    found: Callable[..., Any] = getattr(module, command.replace("-", "_"))
    return found


def _print_help() -> None:
    width = max(len(name) for name in _MODULES)
    parts: list[output.Part] = [
        output.Line("Artifact Bus: submit tables, query what everybody submitted."),
        output.Line(""),
        output.Line("Usage: bus COMMAND [--lake PATH] [--json] ..."),
    ]
    for group, commands in COMMANDS.items():
        lines = [f"{name:<{width}}  {summary}" for name, (_, summary) in commands.items()]
        parts += [output.Line(""), output.Block(group, lines, "heading")]
    parts += [
        output.Line(""),
        output.Line("Examples: bus COMMAND --help. A tour: bus demo. Version: bus --version."),
    ]
    output.show(output.Reply({}, lambda: parts), as_json=False)
