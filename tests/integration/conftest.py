"""A whole bus for a session: real Valkey, real worker processes, gone for certain at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bus import app
from bus.client import Bus
from bus.producers import schemas
from bus.settings import Settings
from bus.supervisor import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bus.lake import Lake


@pytest.fixture(scope="session", autouse=True)
def _state_of_ones_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`bus up` notes the last lake for its user; that is not ours to overwrite."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def live_bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    """A running bus with two validators, seen by a client. Its processes die with this one."""
    lake = tmp_path_factory.mktemp("live") / "lake"
    settings = Settings(lake=lake, workers=2, sweep_interval_s=1.0, quiet_s=0.2)
    with running(settings):
        yield Bus(settings)
    assert processes_of(Bus(settings).lake) == {}


@pytest.fixture
def producer(live_bus: Bus) -> Bus:
    """The same, with this process's Celery app set to it, as a producer's program is."""
    app.use(live_bus.settings)
    app.app.conf.update(app.configuration(live_bus.settings, live_bus.broker.address))
    return live_bus


@pytest.fixture(scope="session")
def node_package() -> Path:
    """The TypeScript package, built; without Node or its modules a skip, but not in CI."""
    package = Path(schemas.__file__).parent / "typescript"
    if shutil.which("node") and (package / "node_modules" / ".installed").exists():
        subprocess.run(["npm", "run", "--silent", "build"], cwd=package, check=True, timeout=60)
        return package
    message = "no Node 20 with the package's modules: `make node`"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def processes_of(lake: Lake) -> dict[int, str]:
    """Every living process that serves the lake: pid and command line. They all inherit its name."""
    mark = f"BUS_LAKE={lake.root}".encode()
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(folder.name)] = command.decode(errors="replace")
        except OSError:
            continue
    return found
