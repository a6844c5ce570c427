"""What the soak's producers submit: everything about a job follows from its id.

So what must lie in the lake can be said without asking anyone who was killed. What a producer was
told (that a job is accepted) it writes down before it goes on; that file is held against the lake.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from bus.errors import JobConflict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bus.client import Bus

KIND = "soaked"
#: Tables that many jobs deliver again and again, under the same logical key.
_COMMON = 300
_OTHER = 1 << 40


@dataclass(frozen=True)
class File:
    """One artifact: its name in the job, its rows, and the SHA-256 of its bytes."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Ack:
    """A submission that its producer was told is safe.

    `rejected_as`: the code that it must come to; None when it must be committed. `other`: the same
    job_id was accepted before with other content.
    """

    job_id: str
    submission_id: str
    files: list[File]
    rejected_as: str | None = None
    other: bool = False


@dataclass(frozen=True)
class Plan:
    """What a job holds: numbers of tables, and what is wrong with it."""

    job_id: str
    numbers: tuple[int, ...]
    rejected_as: str | None = None
    other: bool = False

    @classmethod
    def of(cls, job_id: str) -> Plan:
        chance = random.Random(job_id)
        own = int(hashlib.sha256(job_id.encode()).hexdigest()[:9], 16) << 2
        numbers = [
            chance.randrange(_COMMON) if chance.random() < 0.2 else own + i
            for i in range(chance.choice([1, 1, 2, 3]))
        ]
        wrong = chance.choices([None, "E308", "E401"], [95, 4, 1])[0]
        return cls(job_id, tuple(dict.fromkeys(numbers)), wrong)

    def with_other_content(self) -> Plan:
        """Another job under the same id: it must never be committed."""
        return Plan(self.job_id, tuple(n + _OTHER for n in self.numbers), "E105", other=True)

    def files(self) -> list[File]:
        found = [parquet(number) for number in self.numbers]
        return [
            File(f"t{i}", rows_of(number), hashlib.sha256(data).hexdigest())
            for i, (number, data) in enumerate(zip(self.numbers, found, strict=True))
        ]

    def submit(self, bus: Bus, path: Path) -> Ack | None:
        """Hand it in, each file by way of `path`; None when another job of its id waits."""
        inputs = ["job:no-such-job/t0"] if self.rejected_as == "E401" else None
        try:
            with bus.job(kind=KIND, producer="soak", job_id=self.job_id, required=True) as draft:
                for i, number in enumerate(self.numbers):
                    data = parquet(number)
                    if self.rejected_as == "E308" and i == 0:
                        data = data[:-20] + b"x" * 20
                    path.write_bytes(data)
                    draft.add(path, name=f"t{i}", logical_key=f"n={number}", inputs=inputs)
        except JobConflict:
            return None
        job = draft.job
        assert job.submission_id is not None
        return Ack(self.job_id, job.submission_id, self.files(), self.rejected_as, self.other)


def rows_of(number: int) -> int:
    return number % 5 + 1


@cache
def _common(number: int) -> bytes:
    return _written(number)


def parquet(number: int) -> bytes:
    """A tiny table as a file, always the same for a number."""
    return _common(number) if number < _COMMON else _written(number)


def _written(number: int) -> bytes:
    rows = rows_of(number)
    sink = io.BytesIO()
    table = pa.table({"n": range(number, number + rows), "text": [f"{number}"] * rows})
    pq.write_table(table, sink, write_page_checksum=True)
    return sink.getvalue()


# ── what producers were told ────────────────────────────────────────────────────────────────────


def note(path: Path, ack: Ack) -> None:
    """Write an acknowledgement down, on a line of its own.

    Whoever is killed while writing may leave the beginning of a line: a write ends between two pages.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, b"\n" + json.dumps(asdict(ack)).encode() + b"\n")
    finally:
        os.close(fd)


def noted(folder: Path) -> Iterator[Ack]:
    """Every acknowledgement in a folder that was written down whole."""
    for path in sorted(folder.glob("acks-*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue  # empty, or only its beginning: nobody was told
            yield Ack(**(found | {"files": [File(**file) for file in found["files"]]}))
