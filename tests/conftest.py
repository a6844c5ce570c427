"""What every test stands on: a clean environment, repeatable examples, visible skips."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.campaign import Campaign

if TYPE_CHECKING:
    from collections.abc import Generator

REPOSITORY = Path(__file__).parents[1]
REAL_DATA = REPOSITORY.parent / "shared" / "data"

# A lake, a Redis or a crash point named in the caller's environment is not ours to touch.
for _name in [name for name in os.environ if name.startswith(("BUS_", "FLOWER_"))]:
    del os.environ[_name]

# No deadline: the machine is shared, and a slow example is not a wrong one. In CI the examples are
# the same on every run, so that a red build is red for the next person too.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

_SKIPS = {
    "needs_root": (os.geteuid() != 0, "only root may do what this test asserts"),
    "needs_user": (os.geteuid() == 0, "root is exempt from the permissions this test asserts"),
    "needs_data": (not REAL_DATA.is_dir(), "no real data in ../shared/data"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, saying why, what this user or this machine cannot show."""
    for item in items:
        for marker, (absent, reason) in _SKIPS.items():
            if absent and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


# ── campaigns ───────────────────────────────────────────────────────────────────────────────────


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--seed`, `--long`, `--results`: see `tests/campaign.py`."""
    group = parser.getgroup("campaigns")
    group.addoption("--seed", type=int, default=1, help="what a campaign tries follows from it")
    group.addoption(
        "--long", action="store_true", help="campaigns in full, as `make soak` runs them"
    )
    group.addoption("--results", type=Path, help="append what campaigns counted to this file")


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Campaign:
    """The size and the randomness of this test's campaign."""
    option = request.config.getoption
    return Campaign(request.node.nodeid, option("seed"), option("long"), option("results"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A campaign that fails says how to repeat it."""
    report = yield
    if report.failed and "campaign" in getattr(item, "fixturenames", ()):
        seed = item.config.getoption("seed")
        long = " --long" if item.config.getoption("long") else ""
        line = f"python -m pytest -n0 --seed {seed}{long} {item.nodeid!r}"
        report.sections.append(("repeat it", line))
    return report
