"""The lake: every path, and every move of a job between its states. Nobody else knows the layout.

A job's state is the directory it lies in, so a move between states is one rename; who may make
which move is `bus.model.TRANSITIONS`. The layout is drawn in DESIGN section 4 and ARCHITECTURE.md.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from bus import disk
from bus.errors import Code, JobConflict, Refused, Unavailable
from bus.model import ID_PATTERN, JobState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

MANIFEST = "manifest.json"
COMMIT = "COMMIT"
VERDICT = "verdict.json"
RECEIPT = "receipt.json"
REJECT_REASON = "REJECT_REASON.json"
CHECKPOINT = "checkpoint.json"
DATA = "data.parquet"
SCHEMA = "schema.json"
META = "meta.json"
OLD = ".bus-old"
#: Names in a job directory that belong to the bus; a producer's own are moved aside unread.
OUR_NAMES = (VERDICT, RECEIPT, REJECT_REASON)

#: Staging that nobody touched for so long is abandoned.
STALE_STAGING_S = 24 * 3600.0

_STATE_DIRECTORIES = {
    JobState.STAGED: "inbox",
    JobState.VALIDATING: "work",
    JobState.READY: "ready",
    JobState.COMMITTED: "processed",
    JobState.REJECTED: "rejected",
}
_STAGING = ".staging-"
_ID = re.compile(ID_PATTERN)
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_DAY = re.compile(r"^\d{4}-\d{2}-\d{2}$")


class Remake(IntEnum):
    """What the writer may be asked to make again; each is more than the one before."""

    LINKS = 1
    VIEWS = 2
    FROM_JOURNAL = 3

    @property
    def words(self) -> str:
        """As people say it."""
        return _REMAKES[self]


_REMAKES = {
    Remake.LINKS: "make links and trees again",
    Remake.VIEWS: "rebuild every view",
    Remake.FROM_JOURNAL: "rebuild every view from record 1 of the journal",
}


@dataclass(frozen=True, slots=True)
class Waiting:
    """A directory in a state directory: its name, and its age as the time of its last change."""

    name: str
    changed_at_s: float


class Lake:
    """Paths below one root. Creating the object touches nothing; `create()` makes the tree."""

    def __init__(self, root: Path, public_root: Path | None = None) -> None:
        self.root = root.resolve()
        self.public_root = public_root or self.root
        self.bus = self.root / "bus"
        self.inbox = self.bus / "inbox"
        self.work = self.bus / "work"
        self.ready = self.bus / "ready"
        self.processed = self.bus / "processed"
        self.rejected = self.bus / "rejected"
        self.claims = self.bus / "claims"
        self.run = self.bus / "run"  # locks, logs and data of processes
        self.logs = self.run / "logs"
        self.redis_data = self.run / "redis"  # the bundled Valkey: its append-only files …
        self.redis_config = self.redis_data / "valkey.conf"  # … its settings, with the password …
        self.redis_lock = self.redis_data / "lock"  # … held while a server lives
        self.up_lock = self.run / "up.lock"  # held by `bus up`; holds its pid
        self.seat_lock = self.run / "writer-seat.lock"  # held by whoever reads the writer's queue
        self.endpoint = self.bus / "endpoint.json"
        self.store = self.bus / "store"
        self.objects = self.store / "objects"
        self.journal = self.store / "journal"
        self.checkpoints = self.store / "checkpoints"
        self.quarantine = self.store / "quarantine"
        self.trash = self.store / "trash"  # a directory for each day on which something went there
        self.sidecars = self.store / "sidecars"
        self.run_trees = self.store / "runs"
        self.artifacts = self.root / "artifacts"
        self.manifest_db = self.root / "manifest" / "manifest.sqlite"
        self.manifest_begun = self.root / "manifest" / ".manifest.sqlite.begun"  # by a rebuild
        self.catalog_db = self.root / "catalog" / "bus.duckdb"
        self.catalog_work = self.root / "catalog" / ".work" / "bus.duckdb"
        self.exports = self.root / "exports"
        self.export_status = self.exports / "_export_status.json"
        self.export_builds = self.exports / ".builds"  # finished, waiting to be published
        self.export_lock = self.run / "exports.lock"  # held by whoever builds exports
        self.export_status_lock = self.run / "export-status.lock"
        self.backup_note = self.root / "backup.json"  # in a backup: up to which commit it goes
        self.backup_lock = self.root / ".backup.lock"  # held by whoever writes to it
        self.cache = self.root / "cache"
        self.structured_runs = self.root / "runs"
        self.coverage = self.root / "coverage"

    # ── the tree ──────────────────────────────────────────────────────────────────────────────

    def directories(self) -> list[Path]:
        """Every directory that must exist."""
        return [
            *(self.bus / name for name in _STATE_DIRECTORIES.values()),
            self.claims,
            self.run,
            self.objects,
            self.journal,
            self.quarantine,
            self.trash,
            self.sidecars,
            self.run_trees,
            self.artifacts,
            self.manifest_db.parent,
            self.catalog_work.parent,
            self.exports,
            self.cache,
            self.structured_runs,
            self.coverage,
        ]

    def create(self) -> None:
        """Make the whole tree, durably; what exists stays. Raises `Unavailable` (E507)."""
        if "?" in str(self.root):
            message = "a path with a question mark: DuckDB takes what follows for options"
            raise Unavailable(message, code=Code.E507, where=str(self.root))
        *most, last = self.directories()
        if last.is_dir() and all(d.is_dir() for d in most):
            return
        above = [d for d in (self.root, *self.root.parents) if not d.is_dir()]
        try:
            for directory in most:
                directory.mkdir(parents=True, exist_ok=True)
            for parent in {d.parent for d in [*most, *above]}:
                disk.sync_dir(parent)
            last.mkdir(exist_ok=True)  # whoever finds it relies on the others
        except OSError as error:
            raise Unavailable(str(error), code=Code.E507, where=str(self.root)) from error

    def probe(self) -> None:
        """Rename and link between the directories that need it. Raises `Unavailable` (E507).

        Two bind mounts of one file system refuse both although their device numbers are equal, so
        only trying tells.
        """
        token = f"{_STAGING}probe-{secrets.token_hex(4)}"
        pairs = [(self.inbox, d) for d in (self.work, self.ready, self.processed, self.rejected)]
        pairs += [(self.inbox, d) for d in (self.objects, self.artifacts, self.run_trees)]
        pairs += [(self.run, self.journal), (self.objects, self.quarantine)]
        pairs += [(self.objects, self.trash)]
        for source, target in pairs:
            first, second = source / token, target / token
            try:
                disk.write_plain(first, b"")
                disk.link_new(first, second)
                disk.move(second, first)
            except OSError as error:
                raise Unavailable(
                    f"no link or rename from {source} to {target}: {error.strerror}",
                    code=Code.E507,
                    where=str(self.root),
                ) from error
            finally:
                disk.remove(first)
                disk.remove(second)

    @property
    def identity(self) -> str:
        """Eight hex digits that tell this lake from others on the same Redis."""
        return hashlib.sha256(str(self.public_root).encode()).hexdigest()[:8]

    def public(self, path: Path | str) -> str:
        """An absolute path within the lake as readers see it (`BUS_PUBLIC_ROOT`)."""
        within = str(path).removeprefix(str(self.root))
        if not within.startswith("/"):
            raise ValueError(f"{path} is not in {self.root}")
        return f"{self.public_root}{within}"

    def beside(self, folder: Path, exports: Path) -> Lake:
        """A lake of views in `folder`, and exports in `exports`, over this one's objects and journal."""
        return _Beside(self, folder, exports)

    def relative(self, path: Path) -> str:
        """A path relative to the lake, as views store it."""
        return str(path.relative_to(self.root))

    # ── jobs ──────────────────────────────────────────────────────────────────────────────────

    def state_dir(self, state: JobState) -> Path:
        """The directory whose entries are the jobs in `state`."""
        return self.bus / _STATE_DIRECTORIES[state]

    def state_of(self, job_id: str) -> JobState:
        """Where the job is now; the youngest submission wins (a rejected id may come again)."""
        if not _ID.fullmatch(job_id):
            return JobState.UNKNOWN
        for state in _STATE_DIRECTORIES:
            if (self.state_dir(state) / job_id).is_dir():
                return state
        return JobState.UNKNOWN

    def listing(self, state: JobState) -> list[Waiting]:
        """The jobs in `state`, oldest first. One scandir and one stat each."""
        found = []
        with os.scandir(self.state_dir(state)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                try:
                    if entry.is_dir(follow_symlinks=False):
                        found.append(
                            Waiting(entry.name, entry.stat(follow_symlinks=False).st_ctime)
                        )
                except FileNotFoundError:
                    continue  # moved on since the directory was read
        found.sort(key=lambda w: (w.changed_at_s, w.name))
        return found

    def names(self, state: JobState) -> list[str]:
        """The jobs in `state`, in no order; there may be a million."""
        return [name for name in os.listdir(self.state_dir(state)) if name[0] != "."]

    def count(self, state: JobState) -> int:
        """How many jobs are in `state`."""
        return len(self.names(state))

    def has_any(self, state: JobState) -> bool:
        """Whether any job is in `state`; looks no further than the first."""
        with os.scandir(self.state_dir(state)) as entries:
            return any(not entry.name.startswith(".") for entry in entries)

    def new_staging(self, job_id: str) -> Path:
        """A fresh directory in which a producer builds a job. Raises `Refused` (E104)."""
        if not _ID.fullmatch(job_id):
            raise Refused(f"{job_id[:160]!r} is not a job id", code=Code.E104, where="job_id")
        path = self.inbox / f"{_STAGING}{job_id[:80]}-{secrets.token_hex(6)}"
        path.mkdir()
        return path

    def publish_staged(self, staging: Path, job_id: str) -> None:
        """Step 1, its last move: staging becomes inbox/<job>; durable on return.

        Raises `JobConflict` when a job of that id waits in the inbox (nothing is overwritten).
        """
        disk.sync_dir(staging)
        try:
            disk.move(staging, self.inbox / job_id)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise
            raise JobConflict(f"{job_id} waits in the inbox already", where=job_id) from None
        disk.crash_point("stage.renamed")
        disk.sync_dir(self.inbox)
        disk.crash_point("stage.done")

    def stale_staging(self, older_than_s: float, now_s: float) -> Iterator[Path]:
        """Staging directories that nobody has touched for `older_than_s`."""
        for path in self.inbox.glob(f"{_STAGING}*"):
            try:
                newest = max(p.lstat().st_ctime for p in (path, *path.iterdir()))
            except (FileNotFoundError, NotADirectoryError):
                continue
            if now_s - newest > older_than_s:
                yield path

    def free_place(self, state: JobState, job_id: str) -> str:
        """`<job>`, or `<job>~2`, `~3` … when earlier submissions of that id lie there; as text."""
        place = first = f"{self.bus}/{_STATE_DIRECTORIES[state]}/{job_id}"
        number = 2
        while os.path.lexists(place):
            place = f"{first}~{number}"
            number += 1
        return place

    def submissions(self, state: JobState, job_id: str) -> list[Path]:
        """Every directory of that id in `state`, oldest first: `<job>`, then `<job>~2` and so on."""
        base = self.state_dir(state)
        found = [base / job_id] if (base / job_id).is_dir() else []
        number = 2
        while (again := base / f"{job_id}~{number}").is_dir():
            found.append(again)
            number += 1
        return found

    # ── objects ───────────────────────────────────────────────────────────────────────────────

    def object_path(self, sha256: str) -> Path:
        """`objects/<ab>/<sha256>.parquet`."""
        return self.objects / f"{sha256[:2]}/{sha256}.parquet"

    def object_place(self, sha256: str) -> str:
        """The same as text: a rebuild looks at every one."""
        return f"{self.objects}/{sha256[:2]}/{sha256}.parquet"

    def all_objects(self) -> Iterator[Path]:
        """Every object file, in no order."""
        for prefix in sorted(self.objects.iterdir()):
            if prefix.is_dir():
                yield from (p for p in prefix.iterdir() if _SHA256.match(p.stem))

    def object_names(self) -> Iterator[str]:
        """The SHA-256 of every object file, in no order; as texts, for there may be a million."""
        for prefix in os.listdir(self.objects):
            with suppress(NotADirectoryError):
                names = os.listdir(f"{self.objects}/{prefix}")
                stems = (name.removesuffix(".parquet") for name in names)
                yield from (stem for stem in stems if _SHA256.match(stem))

    # ── the trash ─────────────────────────────────────────────────────────────────────────────

    def trash_day(self, day: date) -> Path:
        """`trash/<YYYY-MM-DD>`: what went there on that day (UTC)."""
        return self.trash / day.isoformat()

    def trash_days(self) -> list[Path]:
        """Every day's directory, the oldest first."""
        with suppress(FileNotFoundError):  # a lake from before there was one
            return sorted(self.trash / name for name in os.listdir(self.trash) if _DAY.match(name))
        return []

    def trashed_object(self, name: str) -> str | None:
        """The SHA-256 of an object in the trash, by its file's name; None for anything else."""
        stem = name.removesuffix(".parquet")
        return stem if _SHA256.match(stem) else None

    def trash_before(self, day: date) -> list[Path]:
        """The directories of days up to and including `day`, the oldest first."""
        return [path for path in self.trash_days() if path.name <= day.isoformat()]

    def in_trash(self, sha256: str) -> Path | None:
        """Where an object lies in the trash, if it does; the newest of several."""
        places = (day / f"{sha256}.parquet" for day in reversed(self.trash_days()))
        return next((path for path in places if path.exists()), None)

    def job_in_trash(self, day: Path, state: JobState, name: str) -> Path:
        """A free name for the directory of an answered job; the same job may come there again."""
        return day / f"{_STATE_DIRECTORIES[state]}.{name}.{secrets.token_hex(4)}"

    # ── the journal, and views ────────────────────────────────────────────────────────────────

    def record_path(self, seq: int) -> Path:
        """`journal/000000000042.json`."""
        return self.journal / f"{seq:012d}.json"

    def record_names(self) -> list[str]:
        """The name of every record, in no order; there may be a million."""
        names = os.listdir(self.journal)
        return [name for name in names if name[0].isdigit() and name.endswith(".json")]

    def record_draft(self, token: str) -> Path:
        """Where a record is written before it has its number, away from the many that have one."""
        return self.run / f"record-{token}.tmp"

    def record_drafts(self) -> Iterator[Path]:
        """Every draft there is."""
        return self.run.glob("record-*.tmp")

    def checkpoint_path(self, seq: int) -> Path:
        """`checkpoints/000000000042/`: a view of the journal up to that commit."""
        return self.checkpoints / f"{seq:012d}"

    def checkpoint_seqs(self) -> list[int]:
        """The commits of which there are checkpoints, newest first."""
        return sorted((int(p.name) for p in self.checkpoints.glob("[0-9]*")), reverse=True)

    def checkpoint_draft(self, token: str) -> Path:
        """Where one is made."""
        return self.checkpoints / f".{token}.tmp"

    def checkpoint_drafts(self) -> Iterator[Path]:
        """Every draft there is."""
        return self.checkpoints.glob(".*.tmp")

    def kind_dir(self, kind: str, schema_version: int) -> Path:
        """`artifacts/<kind>/v<N>`: what one branch of `canon.<kind>` reads."""
        return self.artifacts / f"{kind}/v{schema_version}"

    def artifact_path(self, kind: str, schema_version: int, artifact_id: str) -> Path:
        """The link that `canon.<kind>` reads."""
        return self.artifacts / f"{kind}/v{schema_version}/{artifact_id}.parquet"

    def artifact_place(self, kind: str, schema_version: int, artifact_id: str) -> tuple[str, str]:
        """Directory and name of that link as texts: a rebuild looks at every one."""
        return f"{self.artifacts}/{kind}/v{schema_version}", f"{artifact_id}.parquet"

    def kind_dirs(self) -> Iterator[Path]:
        """Every `artifacts/<kind>/v<N>` that there is."""
        return self.artifacts.glob("*/v*")

    def artifact_links(self) -> Iterator[Path]:
        """Everything in them that may be a link, in no order."""
        return self.artifacts.glob("*/v*/*.parquet")

    def empty_path(self, kind: str, schema_version: int) -> Path:
        """A table without rows beside the links, so that the glob is never empty."""
        return self.kind_dir(kind, schema_version) / "_empty.parquet"

    def sidecar_path(self, artifact_id: str) -> Path:
        """Identity, provenance and lineage of one artifact as JSON."""
        return Path(self.sidecar_place(artifact_id))

    def sidecar_place(self, artifact_id: str) -> str:
        """The same as text."""
        return f"{self.sidecars}/{artifact_id}.json"

    def run_tree(self, run_id: str) -> Path:
        """`store/runs/<run_id>`."""
        return self.run_trees / run_id

    def run_meta_path(self, run_id: str) -> Path:
        """`store/runs/<run_id>/meta.json`."""
        return self.run_tree(run_id) / META

    def run_data_path(self, run_id: str, name: str) -> Path:
        """`store/runs/<run_id>/artifacts/<name>/data.parquet`."""
        return Path(self.run_place(run_id, name)) / DATA

    def run_place(self, run_id: str, name: str) -> str:
        """The directory of what a run delivered under one name, as text."""
        return f"{self.run_trees}/{run_id}/artifacts/{name}"

    def run_schema_path(self, run_id: str, name: str) -> Path:
        """`schema.json` beside the data."""
        return self.run_data_path(run_id, name).with_name(SCHEMA)

    def export_path(self, name: str) -> Path:
        """`exports/<name>.parquet`."""
        return self.exports / f"{name}.parquet"

    def claim_path(self, job_id: str) -> Path:
        """Lock file and attempt record of a job being validated."""
        return self.claims / job_id

    def log_path(self, process: str) -> Path:
        """`run/logs/<process>.log`: what a process started by `bus up` says."""
        return self.logs / f"{process}.log"

    @property
    def writer_lock(self) -> Path:
        """The flock that makes one writer the writer."""
        return self.run / "writer.lock"

    @property
    def verify_cursor(self) -> Path:
        """Holds the hash of the object that the last sampled verification ended with."""
        return self.run / "verify.cursor"

    def heavy_slot(self, number: int) -> Path:
        """Held while a validator's child is at work: there are fewer than there are workers."""
        return self.run / f"heavy-{number}.lock"

    @property
    def boot_mark(self) -> Path:
        """Since which start of the machine links and trees are known to be whole."""
        return self.run / "boot"

    def boot_of_views(self) -> str | None:
        """What the mark says; None without one."""
        try:
            return self.boot_mark.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return None

    @property
    def restored_mark(self) -> Path:
        """When the lake was restored: directories of jobs answered before are not in a backup."""
        return self.run / "restored"

    def restored_at(self) -> str:
        """What the mark says, an ISO moment; empty where the lake was not restored."""
        try:
            return self.restored_mark.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return ""

    @property
    def rebuild_request(self) -> Path:
        """A file whose presence asks the running writer to rebuild every view."""
        return self.run / "rebuild.request"

    def ask_for(self, what: Remake) -> None:
        """Leave a request; one for more that lies there stays."""
        if (asked := self.asked_for()) is None or asked < what:
            disk.replace_view(self.rebuild_request, what.name.encode())

    def asked_for(self) -> Remake | None:
        """What the request says (every view, when it says nothing); None without one."""
        try:
            asked = self.rebuild_request.read_bytes()
        except FileNotFoundError:
            return None
        return next((what for what in Remake if what.name.encode() == asked), Remake.VIEWS)


class _Beside(Lake):
    """Other views of a lake: what they name is that lake's, what they are made of is here."""

    def __init__(self, other: Lake, folder: Path, exports: Path) -> None:
        super().__init__(folder)
        self._other = other
        self.objects, self.journal = other.objects, other.journal
        self.exports = exports.resolve()
        self.export_status = self.exports / other.export_status.name
        self.export_builds = self.exports / other.export_builds.name

    def public(self, path: Path | str) -> str:
        text = str(path)
        ours = any(text.startswith(f"{place}/") for place in (self.root, self.exports))
        return text if ours or text == str(self.exports) else self._other.public(text)
