"""Whether DuckDB, which reads `canon.*` for everybody, can read a file that pyarrow can.

Most files need no asking. Those with nested columns, or columns of fixed-width bytes, are read by both;
one that only pyarrow reads is stored all the same, and left out of the views that DuckDB makes.
Only ever in a validator's child: this starts a DuckDB, and a file may be made to harm it.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_BATCH_ROWS = 10_000
_REASON_CHARACTERS = 200
_OUR_FAULTS = tuple(os.strerror(number) for number in (errno.EMFILE, errno.ENFILE, errno.ENOSPC))


def duckdb_fault(
    fd: int, temp_dir: Path, memory_limit_bytes: int, started: Callable[[], object] = lambda: None
) -> str | None:
    """What DuckDB says when it cannot read all of a file; None when it can.

    `started` is called when DuckDB runs and has not yet seen the file. Raises OSError where it is
    not the file that DuckDB complains about.
    """
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
