"""Golden exports: named SELECTs over the catalog, kept as Parquet files for readers without SQL.

A build (in a killable child process) reads the published snapshot and writes what changed into a
directory of its own below exports/; a publication (by the writer's process) moves those files into
place and says so in _export_status.json. An export whose fingerprint (its SQL, the artifacts it
reads, the engine) did not change is not written again. One that fails keeps its old file, and the
status says which commit that file covers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from bus import disk
from bus.errors import BusError, Code, Damaged, LakeBusy, NotFound, Refused
from bus.lake import Lake
from bus.model import ID_PATTERN, iso, utc_now
from bus.process import die_with_parent
from bus.settings import Settings
from bus.snapshot import PURE, VOLATILE, asking, connect_snapshot, read, time_limit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from bus.snapshot import Reading

_MEMORY_LIMIT = "1GB"
_NICE = 10
_BATCH_ROWS = 100_000
_STATUS_WAIT_S = 10.0
_STATUS_POLL_S = 0.01
_RESULT = "built.json"
#: Exit code of a child that found another build at work.
BUSY = 75
#: What describes the catalog rather than its rows.
_ABOUT_SCHEMA = {
    *("duckdb_columns", "duckdb_constraints", "duckdb_functions", "duckdb_schemas"),
    *("duckdb_tables", "duckdb_types", "duckdb_views", "pragma_table_info"),
}


@dataclass(frozen=True, slots=True)
class BuiltExport:
    """What became of one export: a finished file to publish, nothing to do, or an error.

    `seq` is the commit its inputs were read at; `path` the temporary file, None when `unchanged`
    or failed. `left_out_damaged`: artifacts of the kinds it reads that are damaged.
    """

    name: str
    seq: int
    seconds: float
    fingerprint: str = ""
    rows: int = 0
    path: str | None = None
    unchanged: bool = False
    error: str | None = None
    left_out_damaged: int = 0


# ── what is there ─────────────────────────────────────────────────────────────────────────────


def status(lake: Lake) -> dict[str, Any]:
    """_export_status.json: ``{ran_at_utc, results: [{name, ok, path, …}]}``; empty before the first.

    A result holds `rows`, `seq` (its rows are as of that commit), `seconds`, `fingerprint` and
    `written_at_utc` of the file; where `ok` is false also `error` and `failed_seq`;
    `left_out_damaged` artifacts of the kinds it reads are damaged, so that their rows are missing.
    """
    try:
        found: dict[str, Any] = json.loads(lake.export_status.read_bytes())
    except (FileNotFoundError, ValueError):
        return {"ran_at_utc": None, "results": []}
    return found


def _results(lake: Lake) -> dict[str, dict[str, Any]]:
    return {result["name"]: result for result in status(lake)["results"]}


def chosen(settings: Settings, names: Iterable[str] | None = None) -> list[str]:
    """The exports to build: those named, or every one that is enabled. Raises `NotFound`."""
    if names is None:
        return [name for name, export in settings.exports.items() if export.enabled]
    listed = list(names)
    unknown = [name for name in listed if name not in settings.exports]
    if unknown:
        known = ", ".join(settings.exports)
        raise NotFound(f"no export {unknown[0]!r}", where="exports", hint=f"There are: {known}.")
    return listed


def kinds_shown(db: duckdb.DuckDBPyConnection, settings: Settings) -> dict[str, set[str]]:
    """The kinds whose tables each enabled export reads, through canon.*; `db`: the catalog.

    An export that cannot be read is left out, and so is what it reads of the catalog itself.
    """
    found = {}
    for name in chosen(settings):
        with suppress(Refused):
            tables = read(db, settings.exports[name].sql).tables
            found[name] = {kind for table in tables for kind in _kinds_of(db, table)}
    return found


def _kinds_of(db: duckdb.DuckDBPyConnection, table: str) -> list[str]:
    """The kind that a view of schema canon shows; none for other tables."""
    schema, _, name = table.rpartition(".")
    if schema != "canon":
        return []
    kinds = "SELECT DISTINCT kind FROM catalog.views_d WHERE lower(view_name) = ?"
    return [kind for (kind,) in db.execute(kinds, [name]).fetchall()]


# ── building ──────────────────────────────────────────────────────────────────────────────────


def build(
    lake: Lake,
    settings: Settings,
    names: Iterable[str] | None = None,
    *,
    force: bool = False,
    gone: Mapping[str, str] | None = None,
) -> list[BuiltExport]:
    """Run the exports over the published snapshot; files that changed wait to be published.

    One build at a time: raises `LakeBusy` (E503) while another is at work. Raises `NotFound` for a
    name that is not in the settings and `Unavailable` (E508) without a catalog; what is wrong with
    one export is in its result and stops no other. `force` writes also what did not change. `gone`
    says of a kind what is missing of it: an export that reads it fails.
    """
    wanted = chosen(settings, names)
    with disk.locked(lake.export_lock) as lock:
        if lock is None:
            raise LakeBusy("exports are being built already", where=str(lake.export_lock))
        _sweep(lake)
        folder = lake.export_builds / f"{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        with connect_snapshot(
            lake, threads=1, memory_limit=_MEMORY_LIMIT, spill=folder / "spill"
        ) as db:
            builder = _Builder(lake, settings, db, folder, force=force, gone=gone or {})
            built = [builder.build(name) for name in wanted]
        disk.remove_tree(folder / "spill")
        results = json.dumps([asdict(export) for export in built]).encode()
        disk.replace_view(folder / _RESULT, results)
    return built


def _sweep(lake: Lake) -> None:
    """Remove what builds left that were killed; the caller holds the lock, so none is at work."""
    if lake.export_builds.is_dir():
        for folder in lake.export_builds.iterdir():
            if not (folder / _RESULT).exists():
                disk.remove_tree(folder)


def _check_name(name: str) -> None:
    if not re.match(ID_PATTERN, name):
        raise BusError("not a name for an export", code=Code.E509, where=name[:80])


class _Builder:
    """Runs exports one by one over one snapshot."""

    def __init__(
        self,
        lake: Lake,
        settings: Settings,
        db: duckdb.DuckDBPyConnection,
        folder: Path,
        *,
        force: bool,
        gone: Mapping[str, str],
    ) -> None:
        self._lake = lake
        self._settings = settings
        self._db = db
        self._folder = folder
        self._force = force
        self._gone = gone
        self._before = _results(lake)
        ((seq,),) = db.execute("SELECT applied_seq FROM catalog.applied_v").fetchall()
        self._seq = int(seq)
        self._kinds: set[str] = set()

    def build(self, name: str) -> BuiltExport:
        started_s = time.monotonic()
        fingerprint = ""
        self._kinds = set()
        try:
            _check_name(name)
            sql = self._settings.exports[name].sql
            fingerprint = self._fingerprint(sql)
            if missing := [self._gone[kind] for kind in sorted(self._kinds & self._gone.keys())]:
                raise Damaged("; ".join(missing), where=name)
            if self._is_current(name, fingerprint):
                return self._done(name, started_s, fingerprint, unchanged=True)
            path = self._folder / f"{name}.parquet"
            with time_limit(self._db, self._settings.export_timeout_s), asking(sql):
                rows = self._write(sql, path)
        except (BusError, OSError) as error:
            message = error.message if isinstance(error, BusError) else str(error)
            return self._done(name, started_s, fingerprint, error=message)
        return self._done(name, started_s, fingerprint, rows=rows, path=str(path))

    def _done(self, name: str, started_s: float, fingerprint: str, **facts: Any) -> BuiltExport:
        seconds = round(time.monotonic() - started_s, 4)
        facts["left_out_damaged"] = self._damaged()
        return BuiltExport(name, self._seq, seconds, fingerprint, **facts)

    def _is_current(self, name: str, fingerprint: str) -> bool:
        before = self._before.get(name, {})
        same = before.get("fingerprint") == fingerprint and self._lake.export_path(name).exists()
        return same and not self._force

    def _write(self, sql: str, path: Path) -> int:
        """Stream the rows, in their order, into a Parquet file; DuckDB itself writes nothing."""
        reader = self._db.sql(sql).to_arrow_reader(_BATCH_ROWS)
        rows = 0
        try:
            with pq.ParquetWriter(
                path, reader.schema, compression="zstd", write_page_checksum=True
            ) as writer:
                for batch in reader:
                    writer.write_batch(batch)
                    rows += batch.num_rows
        except BaseException:
            disk.remove(path)  # on a full disk, its room is needed to say so
            raise
        return rows

    # ── fingerprints ──────────────────────────────────────────────────────────────────────────

    def _fingerprint(self, sql: str) -> str:
        """SHA-256 over the SQL, the engine, and the state of everything the SQL reads."""
        reading = read(self._db, sql)
        self._kinds = {kind for table in reading.tables for kind in _kinds_of(self._db, table)}
        inputs = [self._state(table) for table in sorted(reading.tables)]
        inputs += self._function_states(reading)
        text = json.dumps([sql, duckdb.__version__, pa.__version__, inputs])
        return hashlib.sha256(text.encode()).hexdigest()

    def _state(self, table: str) -> str:
        """What a table's rows depend on: artifacts, the schema, or any commit at all."""
        if table.startswith("information_schema."):
            return self._schema_state()
        kinds = _kinds_of(self._db, table)
        return self._artifacts_state(kinds[0]) if kinds else f"seq={self._seq}"

    def _damaged(self) -> int:
        """Artifacts of the kinds that the export at hand reads, whose rows are therefore missing."""
        count = "SELECT count(*) FROM catalog.damaged_v WHERE list_contains(?, kind)"
        found = self._db.execute(count, [sorted(self._kinds)]).fetchall() if self._kinds else []
        return int(found[0][0]) if found else 0

    def _artifacts_state(self, kind: str) -> str:
        """The kind's artifacts in good standing, and the text of its views.

        Where canon shows one row a key, the order counts in which they were submitted last.
        """
        texts = self._db.execute(
            "SELECT sql FROM catalog.views_d WHERE kind = ? ORDER BY view_name", [kind]
        ).fetchall()
        order = "use_no" if len(texts) > 1 else "artifact_id"
        ids = self._db.execute(
            f"SELECT string_agg(artifact_id::VARCHAR, ',' ORDER BY {order}) "  # noqa: S608 - our own names
            "FROM catalog.active_v WHERE kind = ?",
            [kind],
        ).fetchall()
        return f"{kind}={hashlib.sha256(repr([texts, ids]).encode()).hexdigest()}"

    def _schema_state(self) -> str:
        found = self._db.execute(
            "SELECT schema_name, view_name, sql FROM duckdb_views() "
            "WHERE schema_name IN ('catalog', 'canon') ORDER BY ALL"
        ).fetchall()
        return f"schema={hashlib.sha256(repr(found).encode()).hexdigest()}"

    def _function_states(self, reading: Reading) -> list[str]:
        states = []
        if reading.words & VOLATILE:
            states.append(iso(utc_now()))
        if reading.table_functions & _ABOUT_SCHEMA:
            states.append(self._schema_state())
        if reading.table_functions - _ABOUT_SCHEMA - PURE:
            states.append(f"seq={self._seq}")
        return states


# ── publishing ────────────────────────────────────────────────────────────────────────────────


def publish(lake: Lake, built: Iterable[BuiltExport]) -> list[dict[str, Any]]:
    """Move finished files into place and note every result; returns the status' results.

    A build that saw an earlier commit than what is published changes nothing, and a file whose
    fingerprint is published already is not moved, so that its inode and mtime stay. Raises
    `LakeBusy` (E503) when someone else publishes for more than ten seconds.
    """
    with _status_lock(lake):
        results = _results(lake)
        for export in built:
            before = results.get(export.name, {})
            if export.seq < max(before.get("seq", 0), before.get("failed_seq", 0)):
                continue
            results[export.name] = _published(lake, export, before)
        ordered = [results[name] for name in sorted(results)]
        document = {"ran_at_utc": iso(utc_now()), "results": ordered}
        disk.replace_view(lake.export_status, json.dumps(document, indent=1).encode())
    return ordered


def publish_pending(lake: Lake, settings: Settings) -> list[dict[str, Any]]:
    """Publish every finished build, oldest first; forget results of exports no longer declared."""
    results: list[dict[str, Any]] = status(lake)["results"]
    for folder in _finished(lake):
        built = [BuiltExport(**facts) for facts in json.loads((folder / _RESULT).read_bytes())]
        results = publish(lake, built)
        disk.remove_tree(folder)
    if any(result["name"] not in settings.exports for result in results):
        results = _forget(lake, settings)
    return results


def _finished(lake: Lake) -> list[Path]:
    if not lake.export_builds.is_dir():
        return []
    found = [f for f in lake.export_builds.iterdir() if (f / _RESULT).exists()]
    return sorted(found, key=lambda folder: (folder / _RESULT).stat().st_mtime_ns)


def _forget(lake: Lake, settings: Settings) -> list[dict[str, Any]]:
    with _status_lock(lake):
        document = status(lake)
        document["results"] = [r for r in document["results"] if r["name"] in settings.exports]
        disk.replace_view(lake.export_status, json.dumps(document, indent=1).encode())
    results: list[dict[str, Any]] = document["results"]
    return results


def _published(lake: Lake, export: BuiltExport, before: dict[str, Any]) -> dict[str, Any]:
    final = lake.export_path(export.name)
    common: dict[str, Any] = {"name": export.name, "path": lake.public(final)}
    common["left_out_damaged"] = export.left_out_damaged
    kept = {
        key: before[key]
        for key in ("rows", "seq", "fingerprint", "written_at_utc")
        if key in before
    }
    if export.error is not None:
        failure = {"ok": False, "error": export.error, "failed_seq": export.seq}
        return common | kept | failure | {"seconds": export.seconds}
    is_there = kept.get("fingerprint") == export.fingerprint and final.exists()
    done = {"ok": True, "seq": export.seq, "seconds": export.seconds}
    if export.unchanged or (is_there and export.path is None):
        return common | kept | done
    disk.crash_point("export.built")
    temporary = Path(str(export.path))
    if temporary.exists() or not final.exists():  # else it was renamed just before a crash
        disk.publish_file(temporary, final)
    written = {"rows": export.rows, "fingerprint": export.fingerprint}
    return common | written | done | {"written_at_utc": iso(utc_now())}


@contextmanager
def _status_lock(lake: Lake) -> Iterator[None]:
    """Whoever rewrites the status holds this, for milliseconds."""
    deadline_s = time.monotonic() + _STATUS_WAIT_S
    while (lock := disk.Lock.try_acquire(lake.export_status_lock)) is None:
        if time.monotonic() > deadline_s:
            raise LakeBusy("someone else publishes exports", where=str(lake.export_status_lock))
        time.sleep(_STATUS_POLL_S)
    try:
        yield
    finally:
        lock.release()


# ── the child process ─────────────────────────────────────────────────────────────────────────


def start_child(
    settings: Settings, names: Sequence[str] | None = None, *, force: bool = False
) -> subprocess.Popen[bytes]:
    """Start a build in a process of its own, which dies with this one.

    It ends with 0 when its results wait to be published (`publish_pending`), with `BUSY` when
    another build is at work, otherwise with a message on stderr. It is killed by its own alarm
    when it takes much longer than every export together may.
    """
    command = [sys.executable, "-m", "bus.exports", "--parent", str(os.getpid())]
    command += ["--force"] if force else []
    command += ["--names", *names] if names is not None else []
    child = subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603 - our own interpreter
    request = settings.model_dump_json().encode()
    if child.stdin is not None:
        child.stdin.write(request)
        child.stdin.close()
    return child


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m bus.exports``: read the settings as JSON on stdin and build."""
    parser = argparse.ArgumentParser(prog="bus.exports")
    parser.add_argument("--parent", type=int)
    parser.add_argument("--names", nargs="*")
    parser.add_argument("--force", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.parent is not None:
        die_with_parent(asked.parent)
    settings = Settings.model_validate_json(sys.stdin.read())
    os.nice(_NICE)
    wanted = chosen(settings, asked.names)
    signal.alarm(int(settings.export_timeout_s * max(1, len(wanted))) + 60)
    try:
        build(Lake(settings.lake, settings.public_root), settings, wanted, force=asked.force)
    except LakeBusy:
        return BUSY
    except BusError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
