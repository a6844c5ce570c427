"""The tour that `make demo` runs, as it is run."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("bus")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_claim_of_the_demo_holds(tmp_path: Path) -> None:
    mine = {"BUS_LAKE": str(tmp_path / "demo-lake"), "XDG_STATE_HOME": str(tmp_path / "state")}
    done = subprocess.run(
        [sys.executable, "-m", "bus", "demo"],
        env=os.environ | mine,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill" in done.stdout
