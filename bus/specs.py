"""All contracts a lake knows: the built-in kinds, yours from bus.toml, and installed packages'.

In bus.toml::

    [kinds.my_signals]
    version = 1
    columns = { ts = "timestamp[us, UTC]!", mint = "string!", score = "float64", note = "string?" }
    key = ["ts", "mint"]
    sort_by = ["ts", "mint"]
    time_column = "ts"
    checks = { score_is_a_share = "score between 0 and 1" }

A second version stands beside the first as ``[kinds.my_signals.v2]`` (and the first as ``.v1``).
Where the second is not compatible with the first (`bus.evolution`), it says how tables of the first
are read: ``migrate_from_v1 = "SELECT ts, mint, score::DOUBLE / 100 AS score FROM old"``.
A column may also be a table: ``{ type = "string", nullable = true, optional = true, hashed =
false }``. A package offers contracts through the entry point group ``artifact_bus.specs``: a
`Spec`, several of them, or a function that returns them.

A changed contract is a new version, never an edit: tables that were accepted under one keep their
identity only if its types stay.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bus.columns import Column, parse_type
from bus.contract import Check, Checker, Spec
from bus.errors import BusError, Code, Problem, Refused, problem
from bus.kinds import BUILT_IN, OPEN_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from bus.settings import Settings

__all__ = ["Check", "Checker", "Column", "Registry", "Spec"]

ENTRY_POINTS = "artifact_bus.specs"
#: How much of a name must be the same for a hint (of 1, as difflib counts).
_NEAR = 0.8
_VERSION_TABLE = re.compile(r"v([1-9]\d*)")
_MIGRATION = re.compile(r"migrate_from_v([1-9]\d*)")


class Registry:
    """Contracts by kind and version. Iterating gives every one that has columns, in order."""

    def __init__(self, specs: Iterable[Spec] = (), open_kinds: Iterable[str] = ()) -> None:
        self._specs: dict[tuple[str, int], Spec] = {}
        self._open = set(open_kinds)
        for spec in specs:
            self.add(spec)

    @classmethod
    def built_in(cls) -> Self:
        """Only what the package brings along."""
        return cls(BUILT_IN, OPEN_KINDS)

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """Built-in, then installed packages', then bus.toml's. Raises `Refused` (E103), all told."""
        registry = cls.built_in()
        found: list[Problem] = []
        for declare in (_from_packages, lambda: _from_settings(settings.kinds)):
            try:
                for spec in declare():
                    registry.add(spec)
            except Refused as error:
                found += error.problems
        if found:
            raise Refused.of(found)
        return registry

    def add(self, spec: Spec) -> None:
        """Declare one more. Raises `Refused` (E103) where it contradicts one that is known."""
        if spec.open:
            self._open.add(spec.kind)
            return
        known = self._specs.setdefault((spec.kind, spec.version), spec)
        if known.fingerprint != spec.fingerprint:
            raise Refused(
                f"{spec.kind} v{spec.version} is declared already, and differently",
                code=Code.E103,
                where=spec.where,
                hint="A changed spec is a new schema_version, never an edit.",
            )

    def find(self, kind: str, version: int) -> Spec | None:
        """The contract of a table; None when the kind, or that version of it, is unknown.

        A kind that is open has one for every version, until someone declares one with columns.
        """
        spec = self._specs.get((kind, version))
        if spec is None and kind in self._open and not self.versions(kind):
            return Spec(kind=kind, version=version, open=True)
        return spec

    def versions(self, kind: str) -> list[int]:
        """The declared versions of a kind, ascending; empty for open and unknown kinds."""
        return sorted(version for known, version in self._specs if known == kind)

    def kinds(self) -> list[str]:
        """Every kind that is known, open ones included."""
        return sorted({kind for kind, _ in self._specs} | self._open)

    def near(self, kind: str) -> str | None:
        """The known kind that was probably meant by one that is not known."""
        return _near(kind, tuple(self.kinds()))

    def __iter__(self) -> Iterator[Spec]:
        return (self._specs[key] for key in sorted(self._specs))


@lru_cache(maxsize=1024)
def _near(kind: str, known: tuple[str, ...]) -> str | None:
    found = difflib.get_close_matches(kind, known, n=1, cutoff=_NEAR)
    return found[0] if found else None


# ── declarations ──────────────────────────────────────────────────────────────────────────────


def _from_packages() -> Iterable[Spec]:
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            found = entry.load()
            if callable(found) and not isinstance(found, Spec):
                found = found()
            yield from [found] if isinstance(found, Spec) else found
        except BusError:
            raise
        except Exception as error:
            raise Refused(
                f"{type(error).__name__}: {error}",
                code=Code.E103,
                where=f"entry point {entry.name} ({entry.value})",
                hint="Repair or uninstall the package that offers it.",
            ) from error


class _ColumnTable(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: str
    nullable: bool = True
    optional: bool = False
    hashed: bool = True


class _KindTable(BaseModel):
    """[kinds.<kind>] of bus.toml."""

    model_config = ConfigDict(extra="forbid")
    version: int = Field(1, ge=1)
    columns: dict[str, str | _ColumnTable] = Field(min_length=1)
    sort_by: list[str] = []
    key: list[str] = []
    row_key: str | None = None
    time_column: str | None = None
    checks: dict[str, str] = {}
    rows: int | None = Field(None, ge=0)
    derived: bool = False
    extensible: bool = False
    description: str = ""


def _from_settings(kinds: Mapping[str, Mapping[str, Any]]) -> list[Spec]:
    specs: list[Spec] = []
    found: list[Problem] = []
    for kind, table in kinds.items():
        for where, declared in _versions(kind, table):
            try:
                specs.append(_from_table(kind, where, declared))
            except Refused as error:
                found += error.problems
    if found:
        raise Refused.of(found)
    return specs


def _versions(kind: str, table: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables of one kind: itself, or `v1`, `v2` … within it."""
    if not table or not all(_VERSION_TABLE.fullmatch(name) for name in table):
        yield f"kinds.{kind}", dict(table)
        return
    for name, declared in table.items():
        yield f"kinds.{kind}.{name}", {"version": int(name[1:])} | dict(declared)


def _from_table(kind: str, where: str, declared: dict[str, Any]) -> Spec:
    migrations = {name: _MIGRATION.fullmatch(name) for name in declared}
    try:
        table = _KindTable.model_validate(
            {name: value for name, value in declared.items() if not migrations[name]}
        )
    except ValidationError as error:
        raise Refused.of(
            problem(Code.E103, ".".join([where, *map(str, item["loc"])]), item["msg"])
            for item in error.errors(include_url=False)
        ) from None
    keys = {*table.key, *([table.row_key] if table.row_key else [])}
    return Spec(
        kind=kind,
        version=table.version,
        columns=tuple(
            _column(name, text, where, is_key=name in keys) for name, text in table.columns.items()
        ),
        sort_by=tuple(table.sort_by or table.key),
        key=tuple(table.key),
        row_key=table.row_key,
        time_column=table.time_column,
        checks=tuple(Check(name, rule) for name, rule in table.checks.items()),
        rows=table.rows,
        derived=table.derived,
        extensible=table.extensible,
        description=table.description,
        migrations={int(m[1]): declared[name] for name, m in migrations.items() if m},
    )


def _column(name: str, declared: str | _ColumnTable, where: str, *, is_key: bool) -> Column:
    try:
        if isinstance(declared, str):
            column = Column.parse(name, declared)
        else:
            nullable = declared.nullable or declared.optional
            column = Column(
                name, parse_type(declared.type), nullable, declared.optional, declared.hashed
            )
    except ValueError as error:
        raise Refused(str(error), code=Code.E103, where=f"{where}.columns.{name}") from None
    return replace(column, nullable=False) if is_key and not column.optional else column
