"""Five producers, one running bus: the examples, and a service that knows Redis and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import nbformat
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient

from tests.jobs import commit, manifest_of, small_table, write_file
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bus.client import Bus

pytestmark = pytest.mark.xdist_group("bus")

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"
KIND = "example_candles"
PATIENCE_S = 60.0

#: The one query by which all of them are found.
EVERYBODY = (
    f"SELECT producer, rows FROM catalog.artifacts_f WHERE kind = '{KIND}' ORDER BY producer"
)
EXPECTED = {
    "notebook-example": 60,
    "python-example": 60,
    "redis-cli": 3,
    "shell-example": 3,
    "typescript-example": 60,
}


def test_five_producers_meet_in_one_query(
    live_bus: Bus,
    node_package: Path,
    notify: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_python(live_bus)
    by_notebook(live_bus, tmp_path, monkeypatch)
    by_typescript(live_bus, node_package, tmp_path)
    by_shell(live_bus, tmp_path)
    by_redis_cli(live_bus, notify)

    def found() -> dict[str, int]:
        return {row["producer"]: row["rows"] for row in live_bus.query(EVERYBODY)}

    wait_until(lambda: found() == EXPECTED, what=f"{EXPECTED}, not {found()}")


def run(*words: object, **options: Any) -> str:
    command = [*map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout).strip()


def by_python(bus: Bus) -> None:
    path = run(sys.executable, EXAMPLES / "producer.py", bus.lake.root)
    assert pq.read_metadata(path).num_rows == 60


def by_notebook(bus: Bus, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in code] == [[]] * len(code), "it is kept without outputs"
    monkeypatch.setenv("BUS_LAKE", str(bus.lake.root))
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(folder / name))
    client = NotebookClient(notebook, timeout=PATIENCE_S, kernel_name="python3")
    client.execute(cwd=str(folder))
    shown = "".join(
        "".join(output.get("data", {}).get("text/html", ""))
        for cell in code
        for output in cell.outputs
    )
    assert "<b>job " in shown, "a Job shows itself"
    assert "<td>content_hash</td>" in shown, "the same rows in another order were recognised"


def by_typescript(bus: Bus, package: Path, folder: Path) -> None:
    """As a service would: the package installed, the source compiled with every check."""
    project = folder / "service"
    (project / "node_modules").mkdir(parents=True)
    (project / "node_modules" / "artifact-bus").symlink_to(package)
    (project / "node_modules" / "@types").symlink_to(package / "node_modules" / "@types")
    shutil.copy(EXAMPLES / "producer.mts", project)
    checks = ("--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes")
    tsc = package / "node_modules" / ".bin" / "tsc"
    run(tsc, "producer.mts", "--module", "nodenext", "--types", "node", *checks, cwd=project)
    path = run("node", "producer.mjs", bus.lake.root, cwd=project)
    assert pq.read_metadata(path).num_rows == 60


def by_shell(bus: Bus, folder: Path) -> None:
    own = folder / "candles.parquet"
    pq.write_table(small_table(), own)
    job_id = run("sh", EXAMPLES / "producer.sh", bus.lake.root, own)
    assert bus.wait(job_id, PATIENCE_S).artifacts[0].rows == 3


def by_redis_cli(bus: Bus, notify: Callable[[str], str]) -> None:
    """A job copied into the inbox by whatever means, and one line to Redis."""
    job_id = "2026-01-08T05-12-33Z__redis-cli__candles"
    directory = bus.lake.inbox / job_id
    directory.mkdir()
    write_file(directory / "candles.parquet", small_table(start=10))
    manifest = manifest_of(job_id, ["candles.parquet"], producer="redis-cli", kind=KIND)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    commit(directory, marker=False)
    assert int(notify(json.dumps({"job_id": job_id}))) >= 1
    assert bus.wait(job_id, PATIENCE_S).artifacts[0].rows == 3


# ── redis-cli ─────────────────────────────────────────────────────────────────────────────────

REDIS_CLI = shutil.which("redis-cli")


@pytest.fixture
def notify(live_bus: Bus, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """LPUSH to bus:notify: by redis-cli as a user who may do no more, or by `bus redis`."""
    if REDIS_CLI is not None:
        redis_cli = request.getfixturevalue("redis_cli")
        return lambda entry: redis_cli("LPUSH", "bus:notify", entry)
    print("no redis-cli on PATH: this line was sent by `bus redis`")  # noqa: T201 - shown with -rP
    command = [sys.executable, "-m", "bus", "redis", "--lake", live_bus.lake.root]
    return lambda entry: run(*command, "LPUSH", "bus:notify", entry)


@pytest.fixture
def redis_cli(live_bus: Bus) -> Iterator[Callable[..., str]]:
    """The real redis-cli, as the producer of ops/users.acl; what it prints."""
    if REDIS_CLI is None:
        pytest.skip("no redis-cli on PATH (Debian: apt install redis-tools)")
    password = "of-one-test"
    lines = (REPOSITORY / "ops" / "users.acl").read_text().splitlines()
    (rules,) = (line.split()[2:] for line in lines if line.startswith("user producer "))
    known = [rule.replace("${BUS_PRODUCER_PASSWORD}", password) for rule in rules]
    admin = live_bus.broker.client()
    admin.execute_command("ACL", "SETUSER", "producer", "reset", *known)  # type: ignore[no-untyped-call]
    where = urlsplit(live_bus.broker.address.url)
    command = [REDIS_CLI, "-h", where.hostname, "-p", where.port, "--user", "producer"]
    yield lambda *words: run(*command, *words, env=os.environ | {"REDISCLI_AUTH": password})
    admin.execute_command("ACL", "DELUSER", "producer")  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "bare id"])
def test_redis_cli_rings_for_a_job_as_a_user_who_may_do_nothing_else(
    live_bus: Bus, redis_cli: Callable[..., str], as_json: bool
) -> None:
    silent = type(live_bus)(live_bus.settings, ring=lambda _: False)
    job = silent.submit(small_table(), kind="things", producer="redis-cli")
    assert redis_cli("PING") == "PONG"
    redis_cli("LPUSH", "bus:notify", json.dumps({"job_id": job.job_id}) if as_json else job.job_id)
    assert job.wait(PATIENCE_S).status == "committed"


@pytest.mark.parametrize(
    "command",
    [
        "LPUSH bus:notify:bad x",
        "LPUSH ingest x",
        "LRANGE bus:notify 0 -1",
        "RPOP bus:notify",
        "DEL bus:notify",
        "KEYS *",
        "GET x",
        "FLUSHALL",
        "CONFIG GET requirepass",
        "ACL LIST",
        "EVAL return(1) 0",
        "SUBSCRIBE bus:events",
        "XREAD STREAMS bus:events 0",
    ],
)
def test_the_producers_user_is_refused_everything_else(
    redis_cli: Callable[..., str], command: str
) -> None:
    assert redis_cli(*command.split()).startswith(("NOPERM", "(error) NOPERM"))
