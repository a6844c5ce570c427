"""The bus that lives through every fault; a plugin, so that two directories of tests share one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bus.settings import Settings
from tests.faults.field import Field, Server, up
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def shared_field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    folder = tmp_path_factory.mktemp("field")
    with Server(folder) as server, Proxy(server.port) as proxy:
        settings = Settings(
            lake=folder / "lake",
            workers=2,
            sweep_interval_s=1.0,
            redis_url=f"redis://127.0.0.1:{proxy.port}/0",
        )
        with up(settings, folder) as bus:
            found = Field(bus, server, proxy)
            yield found
            found.assert_sound()


@pytest.fixture
def field(shared_field: Field, request: pytest.FixtureRequest) -> Iterator[Field]:
    """A healthy bus behind a good network; whatever the test does to it ends with the test.

    Then the same processes do a job, and the lake is verified: in full where there is time.
    """
    before = shared_field.workers()
    yield shared_field
    shared_field.proxy.behave()
    with shared_field.server.client() as client:
        client.config_set("maxmemory", 0)
        client.client_unpause()
    shared_field.assert_each_done_once([shared_field.submit()])
    left = shared_field.workers()
    assert left == before, "a process of the bus did not live through it"
    shared_field.assert_sound("full" if request.config.getoption("long") else "quick")
