"""What every command takes: which lake, and whether to answer in JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from bus.errors import Code, Refused, Unavailable

if TYPE_CHECKING:
    from bus.lake import Lake
    from bus.settings import Settings

#: How many rows a listing may have.
Limit = Annotated[int, Parameter(validator=Number(gte=1, lte=1_000_000))]
#: A flag that may be repeated.
Many = Annotated[tuple[str, ...], Parameter(negative="", show_default=False)]
#: A commit's number or a moment: how things stood then. See `bus.moments`.
AsOf = Annotated[str | None, Parameter(show_default=False)]
#: A switch that has no opposite.
Switch = Annotated[bool, Parameter(negative="", show_default=False)]

_GROUP = Group("With every command", sort_key=99)


@Parameter(name="*", group=_GROUP)
@dataclass(frozen=True)
class Everywhere:
    """Options that every command has."""

    lake: Annotated[Path | None, Parameter(show_default=False)] = None
    """The lake's root. Else: BUS_LAKE, bus.toml, the bus that runs, ./data."""

    json: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Answer with one JSON document on stdout."""

    def settings(self) -> Settings:
        """The settings of the lake that is meant. Raises `Refused` (E103)."""
        from bus.settings import Settings

        return Settings.load(self.lake)

    def open(self) -> tuple[Lake, Settings]:
        """A lake that exists, for commands that look at one. Raises `Unavailable` (E507)."""
        from bus.lake import Lake

        settings = self.settings()
        lake = Lake(settings.lake, settings.public_lake)
        if not lake.inbox.is_dir():
            raise Unavailable(
                "there is no lake here yet",
                code=Code.E507,
                where=str(lake.root),
                hint="Name one with --lake or BUS_LAKE; `bus up` and `bus submit` make one.",
            )
        return lake, settings


#: The default of a command's last parameter.
HERE = Everywhere()


def lake_of_bus_root(bus_root: Path | None, everywhere: Everywhere) -> Everywhere:
    """The source documents' `--bus-root` is `<lake>/bus`. Raises `Refused` when both are given."""
    if bus_root is None:
        return everywhere
    if everywhere.lake is not None:
        raise Refused("--bus-root and --lake name the same thing: give one", code=Code.E103)
    return Everywhere(bus_root.resolve().parent, everywhere.json)
