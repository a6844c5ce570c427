"""Whether DuckDB, which reads `canon.*` for everybody, can read a file that pyarrow can.

Most files need no asking. Those with nested columns, or columns of fixed-width bytes, are read by both;
one that only pyarrow reads is stored all the same, and left out of the views that DuckDB makes.
Only ever in a validator's child, and there in one more of its own: DuckDB 1.5.0 reads past a broken
VARIANT, and dies or does not die of it, by what lies there. Either way it cannot read the file.
"""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from bus.attempt import STARTS_DUCKDB, AttemptEndedError, run_limited

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bus.attempt import Limits

_BATCH_ROWS = 10_000
_REASON_CHARACTERS = 200
_OUR_FAULTS = tuple(os.strerror(number) for number in (errno.EMFILE, errno.ENFILE, errno.ENOSPC))
#: How a process ends that touched what it must not; being killed from outside is something else.
_CRASHES = {"SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL", "SIGTRAP"}


def duckdb_fault(
    fd: int, where: str, temp_dir: Path, memory_limit_bytes: int, limits: Limits
) -> str | None:
    """What DuckDB says when it cannot read all of a file, or how it died of it; None when it can.

    `where` names the file; `memory_limit_bytes` is DuckDB's own limit, `limits` are those of its
    process. Raises OSError where it is not the file that DuckDB complains about, and
    `AttemptEndedError` at a limit.
    """

    def work(note: Callable[[str], None]) -> bytes:
        note(STARTS_DUCKDB)
        try:
            fault = _reads(fd, temp_dir, memory_limit_bytes, lambda: note(where))
        except OSError as error:
            return json.dumps({"ours": str(error)}).encode()
        return json.dumps({"fault": fault}).encode()

    try:
        answer = json.loads(run_limited(work, limits))
    except AttemptEndedError as ended:
        if ended.is_ours:
            raise OSError(errno.EIO, str(ended)) from None
        if ended.how in _CRASHES:
            return f"{ended.how} ended DuckDB"
        raise
    if "ours" in answer:
        raise OSError(errno.EIO, answer["ours"])
    fault: str | None = answer["fault"]
    return fault


def _reads(
    fd: int, temp_dir: Path, memory_limit_bytes: int, started: Callable[[], object]
) -> str | None:
    """`duckdb_fault` in this process. `started`: DuckDB runs, and has not yet seen the file."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "threads": 1,
        "memory_limit": f"{memory_limit_bytes}B",
        "temp_directory": str(temp_dir),
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
    }
    try:
        with duckdb.connect(":memory:", config=config) as db:
            db.execute("SET enable_geoparquet_conversion = false")  # as readers of canon.* have it
            started()
            rows = f"FROM read_parquet('/proc/self/fd/{fd}', hive_partitioning = false)"
            for _ in db.sql(rows).to_arrow_reader(_BATCH_ROWS):
                pass
    except (duckdb.Error, pa.ArrowException, OSError, RuntimeError, UnicodeError) as error:
        reason = str(error).strip().split("\n")[0][:_REASON_CHARACTERS]
        if any(ours in reason for ours in _OUR_FAULTS):
            raise OSError(errno.EIO, reason) from error
        return reason
    return None
