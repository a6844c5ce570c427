"""One of many producers: `python -m tests.integration.crowd LAKE WHO THREADS COUNT`.

Each thread submits `COUNT` tables that nobody else submits, and all of them together one job that
everybody submits. Prints a JSON list of `[job_id, submission_id]`.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import pyarrow as pa

from bus.client import Bus
from bus.settings import Settings

KIND = "crowd"
SHARED_JOB = "crowd-shared"


def main(lake: str, who: str, threads: int, count: int) -> None:
    bus = Bus(Settings.load(lake))

    def submit(thread: int) -> list[tuple[str, str | None]]:
        shared: dict[str, Any] = {"kind": KIND, "producer": "crowd", "run_id": "crowd"}
        made = []
        for number in range(count):
            key = f"{who}/{thread}/{number}"
            table = pa.table({"who": [key], "n": [number]})
            job = bus.submit(table, name=f"n{number}", logical_key=key, **shared)
            made.append((job.job_id, job.submission_id))
        again = bus.submit(pa.table({"n": [0]}), job_id=SHARED_JOB, **shared)
        return [*made, (again.job_id, again.submission_id)]

    with ThreadPoolExecutor(threads) as pool:
        json.dump([*chain.from_iterable(pool.map(submit, range(threads)))], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
