"""Settings: where the lake is, how to reach Redis, and every limit that a user may change.

Each value comes from, in order: an explicit argument, a ``BUS_*`` environment variable, `bus.toml`
(or the source documents' `bus_config.json`), the default written here. Nothing is read at import.
"""

from __future__ import annotations

import json
import os
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bus.errors import Code, Refused, problem

CONFIG_NAMES = ("bus.toml", "bus_config.json", "scripts/bus_config.json")

_TRADABLE = "mint IS NOT NULL AND chain IN ('solana', 'evm')"
BUILT_IN_EXPORTS: dict[str, str] = {
    "alerts_std": "SELECT * FROM canon.alerts_std ORDER BY alert_ts_ms, alert_id",
    "alerts_std_tradable": (
        f"SELECT * FROM canon.alerts_std WHERE {_TRADABLE} ORDER BY alert_ts_ms, alert_id"  # noqa: S608 - a constant
    ),
    "schema_columns": (
        "SELECT table_schema, table_name, column_name, ordinal_position, data_type, is_nullable "
        "FROM information_schema.columns WHERE table_schema IN ('catalog', 'canon') "
        "ORDER BY table_schema, table_name, ordinal_position"
    ),
    "schema_views": (
        "SELECT schema_name, view_name, sql FROM duckdb_views() "
        "WHERE schema_name IN ('catalog', 'canon') ORDER BY schema_name, view_name"
    ),
    "schema_objects": (
        "SELECT table_schema AS schema_name, table_name AS object_name, table_type AS object_type "
        "FROM information_schema.tables WHERE table_schema IN ('catalog', 'canon') "
        "ORDER BY schema_name, object_name"
    ),
}


class ExportSettings(BaseModel):
    """One golden export: a name (the table key in bus.toml) and one SELECT."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sql: str
    enabled: bool = True


class Settings(BaseModel):
    """All settings, resolved. Build with `Settings.load()`; every field is documented below."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lake: Path = Field(Path("data"), description="root directory of everything the bus keeps")
    public_root: Path | None = Field(
        None, description="absolute path under which readers see the lake; default: the lake"
    )
    redis_url: str | None = Field(
        None, description="Redis to use instead of the bundled Valkey, e.g. redis://host:6379/0"
    )
    redis_prefix: str | None = Field(
        None,
        description="prefix of every Redis key; default: empty on the bundled server, derived "
        "from the lake on a shared one",
    )
    workers: int = Field(
        default_factory=lambda: max(1, min(8, os.cpu_count() or 1)),
        ge=1,
        le=256,
        description="processes that validate and hash",
    )
    strict_kinds: bool = Field(False, description="reject kinds without a spec (E201)")
    lineage_wait_s: float = Field(
        600.0, ge=0, description="how long a job waits for a reference before E401"
    )
    sweep_interval_s: float = Field(5.0, gt=0, description="how often lost bells are rung again")
    quiet_s: float = Field(
        2.0, ge=0, description="an empty COMMIT counts after this long without a change"
    )
    incomplete_after_s: float = Field(
        600.0, gt=0, description="a listed file missing for this long is E306"
    )
    lock_timeout_s: float = Field(
        120.0, ge=0, description="how long a second writer waits for the lock"
    )
    batch_max_jobs: int = Field(1000, ge=1, description="jobs in one commit, at most")
    commit_pace_s: float = Field(
        0.03, ge=0, description="under load, at least this long from commit to commit"
    )
    publish_share: float = Field(
        0.25, gt=0, le=1, description="share of the busy writer's time for catalog snapshots"
    )
    checkpoint_every: int = Field(
        10_000,
        ge=1,
        description="jobs and artifacts from one checkpoint to the next; at least a twentieth of all",
    )
    export_quiet_s: float = Field(
        1.0, ge=0, description="exports are rebuilt when no commit came for this long …"
    )
    export_max_wait_s: float = Field(
        10.0, gt=0, description="… or when they have been stale for this long"
    )
    export_timeout_s: float = Field(3600.0, gt=0, description="an export slower than this fails")
    export_refresh_s: float = Field(300.0, gt=0, description="beat's period for exports")
    verify_sample_s: float = Field(900.0, gt=0, description="beat's period for re-hashing objects")
    verify_sample_size: int = Field(20, ge=1, description="objects re-hashed each time")
    gc_grace_days: float = Field(
        7.0,
        ge=0,
        le=100_000,
        description="what became unneeded more recently is not collected by `bus gc`",
    )
    trash_days: int = Field(
        7,
        ge=0,
        le=100_000,
        description="how long what was collected lies in the trash, to be taken back",
    )
    keep_processed_days: float = Field(
        30.0,
        ge=0,
        le=100_000,
        description="receipts older than this are collected; the journal has them too",
    )
    keep_rejected_days: float = Field(
        90.0,
        ge=0,
        le=100_000,
        description="files of jobs rejected longer ago than this are collected",
    )
    receipt_ttl_s: int = Field(3600, ge=1, description="how long Redis keeps an answer")
    events_max: int = Field(10_000, ge=1, description="entries kept in the event stream")
    validator_memory_bytes: int = Field(
        2 << 30, ge=256 << 20, description="address space of a validator working on one file"
    )
    max_decoded_bytes: int = Field(
        64 << 30, ge=1 << 20, description="largest table, decoded, that is read"
    )
    flower_port: int = Field(5555, ge=0, le=65535, description="port of Flower on loopback")
    exports: dict[str, ExportSettings] = Field({}, description="golden exports: name -> SELECT")
    kinds: dict[str, dict[str, Any]] = Field(
        {}, description="specs of your own kinds, see bus/specs.py"
    )
    config_path: Path | None = Field(None, description="the file these settings came from")

    @classmethod
    def load(
        cls,
        lake: Path | str | None = None,
        config: Path | str | None = None,
        *,
        find: bool = True,
        **values: Any,
    ) -> Self:
        """Settings for a lake. Raises `Refused` (E103) that lists every bad value.

        `lake` and `values` win over everything; `config` names a bus.toml or bus_config.json. Where
        nobody names a lake, `find` looks for a bus that runs already.
        """
        path = _find_config(config, lake)
        merged = _read_config(path) | _from_environment(cls) | values
        if lake is not None:
            merged["lake"] = lake
        if find and "lake" not in merged and (found := _find_lake()) is not None:
            merged["lake"] = found
        exports = {name: {"sql": sql} for name, sql in BUILT_IN_EXPORTS.items()}
        merged["exports"] = exports | merged.get("exports", {})
        try:
            settings = cls.model_validate(merged | {"config_path": path})
        except ValidationError as error:
            found_problems = [
                problem(Code.E103, ".".join(str(p) for p in e["loc"]), e["msg"], "See README.")
                for e in error.errors()
            ]
            raise Refused.of(found_problems) from None
        return settings.model_copy(update={"lake": settings.lake.expanduser().resolve()})

    @cached_property
    def public_lake(self) -> Path:
        """The lake as readers name it: `public_root`, or the lake itself."""
        return self.public_root or self.lake

    def environment(self) -> dict[str, str]:
        """Variables that give a child process the same lake and configuration file."""
        found = {"BUS_LAKE": str(self.lake)}
        if self.config_path is not None:
            found["BUS_CONFIG"] = str(self.config_path)
        return found


def _from_environment(cls: type[Settings]) -> dict[str, Any]:
    simple = cls.model_fields.keys() - {"exports", "kinds", "config_path"}
    found = {name: os.environ.get(f"BUS_{name.upper()}") for name in simple}
    return {name: value for name, value in found.items() if value is not None}


def _find_config(config: Path | str | None, lake: Path | str | None) -> Path | None:
    explicit = config or os.environ.get("BUS_CONFIG")
    if explicit:
        return Path(explicit).expanduser().resolve()
    roots = [Path(r).expanduser() for r in (lake, os.environ.get("BUS_LAKE")) if r]
    folders = [*roots, Path.cwd(), *Path.cwd().parents]
    for folder in folders:
        for name in CONFIG_NAMES:
            if (folder / name).is_file():
                return (folder / name).resolve()
    return None


def _read_config(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        if path.suffix == ".json":
            return _from_documents_config(json.loads(path.read_text()), path)
        values = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Refused(str(error), code=Code.E103, where=str(path)) from None
    if "lake" in values:
        values["lake"] = path.parent / values["lake"]
    return values


def _from_documents_config(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The source documents' bus_config.json in our words (`duckdb_path` names an old database).

    They keep it in scripts/, and name paths from the directory above that.
    """
    found: dict[str, Any] = {}
    folder = path.parent.parent if path.parent.name == "scripts" else path.parent
    if "bus_root" in values:
        found["lake"] = folder / Path(values["bus_root"]).parent
    if "poll_interval_s" in values:
        found["sweep_interval_s"] = values["poll_interval_s"]
    if "lock_timeout_s" in values:
        found["lock_timeout_s"] = values["lock_timeout_s"]
    export = values.get("export", {})
    enabled = export.get("enabled", True)
    jobs = {j["name"]: {"sql": j["sql"], "enabled": enabled} for j in export.get("jobs", [])}
    return found | ({"exports": jobs} if jobs else {})


def _find_lake() -> Path | None:
    """The nearest `data/` with a running bus, upward; else that of the bus this user runs.

    Of several that run at once it is the one that was started first.
    """
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "data" / "bus" / "endpoint.json").is_file():
            return folder / "data"
    try:
        last = Path(last_lake_file().read_text().strip())
    except OSError:
        return None
    return last if (last / "bus" / "endpoint.json").is_file() else None


def last_lake_file() -> Path:
    """Where `bus up` notes the lake it serves, for clients of the same user."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "artifact-bus" / "last-lake"
