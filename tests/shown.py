"""A lake with a history and the catalog that follows it, as the writer would keep it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bus.catalog import Catalog, select
from bus.settings import Settings
from bus.specs import Registry
from tests.history import History

if TYPE_CHECKING:
    from pathlib import Path

BUILT_IN = Registry.built_in()


def always() -> bool:
    return True


class Shown:
    """A history and the catalog that follows it."""

    def __init__(self, path: Path, registry: Registry = BUILT_IN) -> None:
        self.history = History(path)
        self.lake = self.history.lake
        self.settings = Settings(lake=self.lake.root)
        self.registry = registry
        self.catalog = self.open()

    def open(self) -> Catalog:
        return Catalog.open(self.lake, self.settings, self.registry, self.history.manifest)

    def show(self) -> bool:
        self.catalog.catch_up(self.history.manifest)
        return self.catalog.publish(always)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return select(self.lake, self.settings, sql)[1]

    def shown(self, sql: str) -> list[tuple[Any, ...]]:
        """What readers see after publication."""
        self.show()
        return self.rows(sql)

    def rebuilt_digest(self) -> str:
        self.catalog.close()
        Catalog.delete(self.lake)
        self.catalog = self.open()
        self.show()
        return Catalog.digest(self.lake)

    def close(self) -> None:
        self.catalog.close()
        self.history.manifest.close()
