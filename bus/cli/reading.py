"""Reading the lake: runs, show, path, query. What finds artifacts is in `finding`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from bus.cli.options import HERE, AsOf, Everywhere, Limit
from bus.cli.output import Block, Facts, Line, Part, Reply, Table, problem_blocks, size
from bus.errors import Code, NotFound, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bus.lake import Lake
    from bus.settings import Settings
    from bus.specs import Registry


def runs(
    *,
    producer: str | None = None,
    kind: str | None = None,
    limit: Limit = 50,
    everywhere: Everywhere = HERE,
) -> Reply:
    """List runs, the newest first.

    For example:

        bus runs --producer backtest --limit 10
        bus runs --kind ohlcv_slice --json

    Parameters
    ----------
    producer
        Only runs that this producer began.
    kind
        Only runs with an artifact of this kind.
    limit
        At most so many.
    """
    from bus import lookup

    lake, _ = everywhere.open()
    found = lookup.runs(lake, producer=producer, kind=kind, limit=limit)

    def text() -> Iterable[Part]:
        if not found:
            yield Line("No runs.", "dim")
            return
        columns = ("run_id", "producer", "created_at_utc", "last_seq", "artifacts", "rows")
        note = f"The newest {limit}; more with --limit." if len(found) == limit else ""
        yield Table(columns, [[run[c] for c in columns] for run in found], note)

    return Reply(found, text)


# ── show ──────────────────────────────────────────────────────────────────────────────────────


def show(
    ref: str | None = None,
    /,
    *,
    kind: str | None = None,
    schema_version: int | None = None,
    as_of: AsOf = None,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Show all that is known of an artifact, a job, a run or a kind.

    A reference is a job_id, a run_id, an artifact_id (its beginning is enough), RUN/NAME,
    job:JOB/NAME, KIND:ALIAS (KIND:latest always works) or KIND@VERSION/BEGINNING. Where a job and a
    run have one name, `job:NAME` and `run:NAME` tell them apart. Works with no bus running.

    For example:

        bus show 6f1f1a0e
        bus show run-42/alerts_std --json
        bus show 2026-01-08T05-12-33Z__baseline__alerts
        bus show trades:latest --as-of 2026-01-08T12:00:00Z
        bus show --kind alerts_std

    Parameters
    ----------
    ref
        What to show.
    kind
        Show the contract of this kind instead: columns, keys, checks.
    schema_version
        With --kind: only this version.
    as_of
        Show an artifact as it stood after this commit, or at this moment (with a zone).
    """
    if (ref is None) == (kind is None):
        hint = "For example: bus show run-42, or bus show --kind trades."
        raise Refused("name either a REF or a --kind", code=Code.E103, where="REF", hint=hint)
    if kind is not None:
        return _show_kind(kind, schema_version, everywhere.settings())
    lake, _ = everywhere.open()
    assert ref is not None  # noqa: S101 - one of the two is there
    for look in _LOOKS if as_of is None else ():
        if (found := look(lake, ref)) is not None:
            return found
    return _show_artifact(lake, ref, as_of)


def _show_job(lake: Lake, ref: str) -> Reply | None:
    from bus import lookup

    job_id = ref.removeprefix("job:")
    if "/" in job_id or not (rows := lookup.job(lake, job_id)):
        return None
    uses = lookup.uses(lake, job_id=job_id)
    rejections = lookup.rejections(lake, job_id)
    data = {
        "job_id": job_id,
        "state": rows[0].state,
        "submissions": [row.as_dict() for row in rows],
        "artifacts": uses,
        "rejections": [rejection.as_dict() for rejection in rejections],
    }

    def text() -> Iterable[Part]:
        newest = rows[0]
        facts = {"run": newest.run_id, "producer": newest.producer, "kind": newest.kind}
        if newest.waiting_for:
            facts["waits for"] = ", ".join(newest.waiting_for)
        yield Facts(f"job {job_id}: {newest.state}", facts)
        columns = ("state", "seq", "at_utc", "artifacts", "codes")
        yield Table(columns, [[getattr(row, c) for c in columns] for row in rows])
        if uses:
            yield _use_table(uses)
        for rejection in rejections:
            yield Line(f"files: {rejection.path}")
            yield from problem_blocks(p.model_dump() for p in rejection.reason.problems)

    return Reply({"type": "job", **data}, text)


def _show_run(lake: Lake, ref: str) -> Reply | None:
    from bus import lookup

    run_id = ref.removeprefix("run:")
    if not (found := lookup.runs(lake, run_id=run_id, limit=1)):
        return None
    uses = lookup.uses(lake, run_id=run_id)

    def text() -> Iterable[Part]:
        yield Facts(f"run {run_id}", {k: v for k, v in found[0].items() if k != "run_id"})
        yield _use_table(uses)

    return Reply({"type": "run", **found[0], "uses": uses}, text)


_LOOKS: tuple[Callable[[Lake, str], Reply | None], ...] = (_show_job, _show_run)


def _use_table(uses: list[dict[str, Any]]) -> Table:
    columns = ("run_id", "name", "artifact_id", "kind", "seq", "rows", "deduped", "status")
    return Table(columns, [[use[c] for c in columns] for use in uses])


def _show_artifact(lake: Lake, ref: str, as_of: str | None) -> Reply:
    from bus import lookup

    seq = lookup.commit(lake, as_of)
    facts = lookup.artifact(lake, lookup.find_artifact(lake, ref, as_of=seq), as_of=seq)

    def text() -> Iterable[Part]:
        lists = {"columns", "uses"}
        plain = {k: v for k, v in facts.items() if k not in lists and v not in (None, [], {})}
        title = f"artifact {facts['artifact_id']}: {facts['status']}"
        yield Facts(title, plain | {"size_bytes": size(facts["size_bytes"])})
        names = ("name", "type", "nulls", "min", "max")
        yield Table(names, [[column[n] for n in names] for column in facts["columns"]])
        yield _use_table(facts["uses"])

    return Reply({"type": "artifact", **facts}, text)


def _show_kind(kind: str, version: int | None, settings: Settings) -> Reply:
    from bus.specs import Registry

    registry = Registry.load(settings)
    versions = registry.versions(kind)
    specs = [registry.find(kind, v) for v in (versions or [version or 1])]
    found = [s for s in specs if s is not None and version in {None, s.version}]
    if not found:
        raise _no_such_kind(kind, version, registry)

    def text() -> Iterable[Part]:
        for spec in found:
            yield from _contract(spec)

    return Reply([_spec_facts(spec) for spec in found], text)


def _no_such_kind(kind: str, version: int | None, registry: Registry) -> NotFound:
    if versions := registry.versions(kind):
        message = f"no contract of kind {kind!r} in version {version}"
        hint = f"Declared versions: {', '.join(map(str, versions))}."
    else:
        near = registry.near(kind)
        message = f"no contract of kind {kind!r}"
        meant = f"Did you mean {near!r}? " if near else ""
        hint = f"{meant}Declared kinds: {', '.join(registry.kinds())}."
    return NotFound(message, where="--kind", hint=hint)


def _spec_facts(spec: Any) -> dict[str, Any]:
    return {
        "kind": spec.kind,
        "schema_version": spec.version,
        "open": spec.open,
        "description": spec.description,
        "columns": [
            {
                "name": c.name,
                "type": str(c.type),
                "nullable": c.nullable,
                "optional": c.optional,
                "hashed": c.hashed,
            }
            for c in spec.columns
        ],
        "sort_by": list(spec.sort_by),
        "key": list(spec.key),
        "row_key": spec.row_key,
        "time_column": spec.time_column,
        "checks": {check.name: str(check.rule) for check in spec.checks},
        "rows": spec.rows,
        "derived": spec.derived,
        "migrations": {f"v{version}": sql for version, sql in spec.migrations.items()},
    }


def _contract(spec: Any) -> Iterable[Part]:
    facts = _spec_facts(spec)
    title = f"{spec.kind} v{spec.version}"
    if spec.open:
        yield Block(title, ["open: any columns, no checks, until you declare it in bus.toml"])
        return
    names = (
        *("description", "key", "sort_by", "row_key", "time_column", "checks", "rows", "derived"),
        "migrations",
    )
    yield Facts(title, {n: facts[n] for n in names if facts[n] not in (None, [], {}, "", False)})
    columns = ("name", "type", "nullable", "optional")
    yield Table(columns, [[c[n] for n in columns] for c in facts["columns"]])


# ── path and query ────────────────────────────────────────────────────────────────────────────


def path(ref: str, /, *, as_of: AsOf = None, everywhere: Everywhere = HERE) -> Reply:
    """Print the absolute path of an artifact's Parquet file.

    The file is there, with its full length; else exit code 1. Works with no bus running.

    For example:

        bus path 6f1f1a0e
        bus path trades:latest --as-of 1200
        duckdb -c "FROM '$(bus path run-42/alerts_std)'"

    Parameters
    ----------
    ref
        An artifact_id (its beginning is enough), RUN/NAME, job:JOB/NAME, KIND:ALIAS (KIND:latest
        always works) or KIND@VERSION/BEGINNING.
    as_of
        What REF meant after this commit, or at this moment (with a zone).
    """
    from bus.reader import Reader

    _, settings = everywhere.open()
    found = Reader(settings).get(ref, as_of=as_of)
    found.check()
    data = {name: getattr(found, name) for name in ("artifact_id", "path", "status", "file_hash")}
    return Reply(data, lambda: [Line(found.path)])


def query(
    sql: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    limit: Limit = 1000,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Run one SELECT over the published catalog.

    The snapshot holds catalog.runs_d, catalog.artifacts_f, catalog.latest_artifacts_v,
    catalog.jobs_f and one canon.KIND for each kind. Reading only: no files outside the lake, no
    settings. Works with no bus running.

    For example:

        bus query "SELECT kind, count(*) FROM catalog.artifacts_f GROUP BY kind"
        bus query "FROM canon.alerts_std" --limit 10 --json
        echo "SELECT 1" | bus query -

    Parameters
    ----------
    sql
        One SELECT; `-` reads it from stdin.
    limit
        At most so many rows.
    """
    from bus.catalog import select

    lake, settings = everywhere.open()
    columns, rows = select(lake, settings, sys.stdin.read() if sql == "-" else sql, limit)
    data = {"columns": [*columns], "rows": [dict(zip(columns, row, strict=True)) for row in rows]}
    note = f"The first {limit} rows; more with --limit." if len(rows) == limit else ""
    return Reply(data, lambda: [Table(columns, rows, note)])
