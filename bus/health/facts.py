"""What a status is made of: frozen values, ages and sizes with their units in the name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

ExportState = Literal["ok", "stale", "error", "never"]
WriterState = Literal["alive", "dead", "silent", "busy elsewhere", "not started"]


@dataclass(frozen=True, slots=True)
class Backlog:
    """Jobs in one state: how many, and for how long the oldest has lain there."""

    count: int
    oldest_age_s: float | None


@dataclass(frozen=True, slots=True)
class Queues:
    """What waits in Redis: messages in Celery's queues, taken and unfinished ones, notifications.

    And what was laid aside: notifications nobody understood, entries no worker could use (`dead`).
    `answers` False: Redis is away, or no bus tells where one is; then the numbers are None.
    """

    answers: bool
    where: str | None = None
    prefix: str = ""
    ingest: int | None = None
    writer: int | None = None
    unacked: int | None = None
    notify: int | None = None
    notify_bad: int | None = None
    dead: int | None = None
    counters: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the bus: alive when its last sign is recent, or, without Redis, its pid lives."""

    name: str
    role: str
    pid: int
    alive: bool
    silent_s: float | None = None


@dataclass(frozen=True, slots=True)
class WriterHealth:
    """The writer. `lag_s`: age of the oldest judged job that waits for nothing but the writer.

    alive: it holds its seat and shows life. dead: jobs or a bus are there and it is not. silent: it
    holds its seat and shows no life. busy elsewhere: another process (`bus rebuild`) writes.
    not started: no bus runs.
    """

    state: WriterState
    says: str
    lag_s: float
    last_commit_age_s: float | None


@dataclass(frozen=True, slots=True)
class CatalogHealth:
    """How far the views are: the newest commit known to the manifest, and the snapshot's.

    damaged: artifacts whose bytes are gone or changed, ``kind logical_key (run/name, id)``; at most 20.
    """

    seq: int | None
    manifest_seq: int
    committed_at_utc: str | None
    journal_ahead: bool
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ExportHealth:
    """One golden export: its rows are as of commit `seq`, its file was written `at_utc`.

    state: ok; stale (newer commits were not looked at yet); error (the last build failed, the file
    is an older one); never (built).
    """

    name: str
    state: ExportState
    rows: int | None = None
    seq: int | None = None
    at_utc: str | None = None
    path: str | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class DiskHealth:
    """Room on the lake's file system."""

    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a person should know: `bad` needs a hand, else it is only odd."""

    bad: bool
    text: str
    hint: str


@dataclass(frozen=True, slots=True)
class Status:
    """Everything at one moment. `findings` is what to look at first; `ok` when none is bad."""

    lake: str
    at_utc: str
    running: bool
    started_at_utc: str | None
    jobs: dict[str, Backlog]
    writer: WriterHealth
    processes: list[Process]
    queues: Queues
    catalog: CatalogHealth
    exports: list[ExportHealth]
    disk: DiskHealth
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether nothing needs a hand."""
        return not any(finding.bad for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self) | {"ok": self.ok}


@dataclass(frozen=True, slots=True)
class Check:
    """The health of one process, for containers: `says` is one sentence."""

    process: str
    ok: bool
    says: str

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)
