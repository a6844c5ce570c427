"""A reader in a process of its own: it says when a job's row was there, and its file readable.

`python -m benchmarks.watcher LAKE [cold]` reads lines ``run_id rows`` and answers each with
nanoseconds: when a snapshot, opened and queried anew, had the run's row, and the Parquet file at the
row's path was opened and had that many rows; and when that snapshot was published. It looks through a
DuckDB that stays (`Snapshots`), or, `cold`, through one started for each look.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import pyarrow.parquet as pq

from bus.lake import Lake
from bus.snapshot import Snapshots, connect_snapshot

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    import duckdb

_POLL_S = 0.001
_GIVE_UP_S = 60.0
_QUERY = "SELECT canonical_path, rows FROM catalog.artifacts_f WHERE run_id = ?"


class Watcher:
    """The process, seen from the producer's side."""

    def __init__(self, lake: Lake, *, cold: bool = False) -> None:
        command = [sys.executable, "-m", "benchmarks.watcher", str(lake.root)]
        command += ["cold"] if cold else []
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        cast("IO[str]", self._child.stdin).close()
        self._child.wait(_GIVE_UP_S)

    def expect(self, run_id: str, rows: int) -> None:
        """Begin to look for a run."""
        stream = cast("IO[str]", self._child.stdin)
        stream.write(f"{run_id} {rows}\n")
        stream.flush()

    def seen_s(self) -> tuple[float, float]:
        """When what was expected was seen, and when the snapshot that shows it was published.

        Both as `time.time()`, the second only as exact as the file system's clock, some milliseconds.
        """
        stream = cast("IO[str]", self._child.stdout)
        seen_ns, published_ns = map(int, stream.readline().split())
        return seen_ns / 1e9, published_ns / 1e9


# ── the program ──────────────────────────────────────────────────────────────────────────────────


def _watch(lake: Lake, *, cold: bool) -> None:
    newest = partial(connect_snapshot, lake) if cold else Snapshots(lake).newest
    looked_at: tuple[int, int] | None = None  # it cannot hold what comes next
    for line in sys.stdin:
        run_id, rows = line.split()
        deadline_s = time.monotonic() + _GIVE_UP_S
        while time.monotonic() < deadline_s:
            published = _published(lake.catalog_db)
            if published is not None and published != looked_at:
                looked_at = published
                with newest() as db:
                    if is_there(db, run_id, int(rows)):
                        break
            time.sleep(_POLL_S)
        else:
            raise SystemExit(f"run {run_id} was not seen in {_GIVE_UP_S:g} s")
        print(time.time_ns(), published[1], flush=True)


def _published(catalog: Path) -> tuple[int, int] | None:
    """The snapshot's inode and when it got its name."""
    with suppress(FileNotFoundError):
        seen = catalog.stat()
        return seen.st_ino, seen.st_ctime_ns
    return None


def is_there(db: duckdb.DuckDBPyConnection, run_id: str, rows: int) -> bool:
    """Whether the run's row is in the catalog, and the file at its path has so many rows."""
    found = db.execute(_QUERY, [run_id]).fetchone()
    return found is not None and pq.read_metadata(found[0]).num_rows == rows == found[1]


if __name__ == "__main__":
    _watch(Lake(Path(sys.argv[1])), cold="cold" in sys.argv[2:])
