"""What can go wrong, who must act, and what to do about it.

The tree::

    BusError                    every error this package raises on purpose
    ├── Rejected                the bus refused a job: the producer must act; carries every problem
    │   └── JobConflict         this job_id stands for other content: choose another id
    ├── NotFound                no such job, run, artifact, kind, export, column
    ├── Refused                 a request the bus will not carry out (bad argument, unsafe SQL)
    ├── WaitTimeout             no answer yet: the job is safe, ask again later
    ├── Unavailable             infrastructure is away: broker, lake, disk; try again or start it
    │   └── LakeBusy            someone else holds the lake's lock (a second writer, a second bus)
    └── Damaged                 bytes of the lake are not what the journal says

A `Problem` is one finding about one place; a job is rejected with all of its problems at once.
The codes below are the only list: Python, TypeScript, CLI, REJECT_REASON.json, metrics and the
runbook use them. E1xx manifest · E2xx contract · E3xx integrity · E4xx lineage and references ·
E5xx infrastructure · E6xx source data.
"""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


_FULL = {errno.ENOSPC, errno.EDQUOT}


#: A job's problems that are told; a manifest of 1 MB has room for 200,000.
MAX_PROBLEMS = 1000


class Code(StrEnum):
    """One kind of problem. `Code.E202.label` names it, `Code.E202.hint` says what to do."""

    E101 = "E101"
    E102 = "E102"
    E103 = "E103"
    E104 = "E104"
    E105 = "E105"
    E106 = "E106"
    E107 = "E107"
    E108 = "E108"
    E109 = "E109"
    E110 = "E110"
    E111 = "E111"
    E112 = "E112"
    E201 = "E201"
    E202 = "E202"
    E203 = "E203"
    E204 = "E204"
    E205 = "E205"
    E206 = "E206"
    E207 = "E207"
    E208 = "E208"
    E209 = "E209"
    E210 = "E210"
    E211 = "E211"
    E301 = "E301"
    E302 = "E302"
    E303 = "E303"
    E304 = "E304"
    E305 = "E305"
    E306 = "E306"
    E307 = "E307"
    E308 = "E308"
    E309 = "E309"
    E310 = "E310"
    E311 = "E311"
    E312 = "E312"
    E313 = "E313"
    E314 = "E314"
    E315 = "E315"
    E316 = "E316"
    E401 = "E401"
    E402 = "E402"
    E403 = "E403"
    E404 = "E404"
    E405 = "E405"
    E406 = "E406"
    E407 = "E407"
    E501 = "E501"
    E502 = "E502"
    E503 = "E503"
    E504 = "E504"
    E505 = "E505"
    E506 = "E506"
    E507 = "E507"
    E508 = "E508"
    E509 = "E509"
    E510 = "E510"
    E511 = "E511"
    E512 = "E512"
    E513 = "E513"
    E601 = "E601"

    @property
    def label(self) -> str:
        """The code's name in words, e.g. ``missing column``."""
        return _CATALOGUE[self][0]

    @property
    def hint(self) -> str:
        """What a person does about it, in general."""
        return _CATALOGUE[self][1]


_CATALOGUE: dict[Code, tuple[str, str]] = {
    # E1xx: the job's manifest
    Code.E101: ("manifest missing", "Write manifest.json into the job directory before COMMIT."),
    Code.E102: (
        "manifest is not strict JSON",
        "Write UTF-8 JSON without NaN or Infinity, without repeated keys, and not truncated.",
    ),
    Code.E103: (
        "manifest field invalid",
        "Correct the named field; data of your own belongs in `meta`.",
    ),
    Code.E104: (
        "bad identifier",
        "Use 1 to 128 of A-Z a-z 0-9 . _ : + = @ ~ - and begin with a letter or a digit.",
    ),
    Code.E105: (
        "job id already used for other content",
        "Submit under a new job_id: a committed job is never changed.",
    ),
    Code.E106: ("job id differs from the directory", "Name the directory after `job_id`."),
    Code.E107: (
        "manifest exceeds a limit",
        "Split the job, or move bulky data from the manifest into an artifact.",
    ),
    Code.E108: (
        "relpath leaves the job directory",
        "Give a plain relative path below the job directory, such as trades.parquet.",
    ),
    Code.E109: ("artifact listed twice", "Give each artifact its own artifact_id and relpath."),
    Code.E110: ("unknown format", 'Write Parquet and say "format": "parquet".'),
    Code.E111: ("job has nothing to do", "List at least one artifact or one mutation."),
    Code.E112: (
        "COMMIT does not fit the manifest",
        "Create COMMIT last, and empty: nothing needs to stand in it.",
    ),
    # E2xx: the contract of a kind
    Code.E201: (
        "unknown kind",
        "Declare a spec for the kind in bus.toml, or turn `strict_kinds` off.",
    ),
    Code.E202: ("missing column", "Write the column; `bus show --kind KIND` lists the contract."),
    Code.E203: ("column has the wrong type", "Write the column with the contract's type."),
    Code.E204: ("check failed", "Correct the rows that break the named rule."),
    Code.E205: ("NULL where none may be", "Fill the column, or drop the rows without a value."),
    Code.E206: ("key not unique", "Write one row for each key."),
    Code.E207: (
        "unknown schema version",
        "Use a schema_version that the kind declares, or declare the new one.",
    ),
    Code.E208: (
        "value does not fit the contract's type",
        "Write values that convert without loss.",
    ),
    Code.E209: ("wrong number of rows for this kind", "Write as many rows as the contract says."),
    Code.E210: (
        "contract changed under its version",
        "Restore the contract in bus.toml, or declare the changed one as a new version.",
    ),
    Code.E211: (
        "versions of a contract do not follow",
        'Declare a migration in the new version: migrate_from_v1 = "SELECT … FROM old".',
    ),
    # E3xx: integrity of the bytes
    Code.E301: (
        "file missing",
        "Correct the path; in a job directory, the file lies under its relpath.",
    ),
    Code.E302: ("not a regular file", "Write plain files: no links, directories, FIFOs, devices."),
    Code.E303: (
        "the validator could not survive this file",
        "Rewrite the file with a current Parquet writer; keep the original for the bug report.",
    ),
    Code.E304: ("sha256 mismatch", "Submit the file again: its bytes changed after it was hashed."),
    Code.E305: ("row count mismatch", "Write the true number of rows, or leave `rows` out."),
    Code.E306: (
        "job incomplete",
        "Copy every listed file before COMMIT, then `bus retry JOB`.",
    ),
    Code.E307: ("not a Parquet file", "Write the table as Parquet."),
    Code.E308: ("Parquet file is corrupt", "Write or copy the file again."),
    Code.E309: ("Parquet file is encrypted", "Write the file without encryption."),
    Code.E310: (
        "declared or decoded size exceeds the limit",
        "Split the table, or raise the limit in bus.toml if the file is honest.",
    ),
    Code.E311: (
        "column names collide",
        "Rename columns so that they differ by more than case or Unicode form.",
    ),
    Code.E312: ("file has no columns", "Write at least one column."),
    Code.E313: ("columns nested too deeply", "Flatten the table."),
    Code.E314: ("bad column name", "Remove control characters from the column name."),
    Code.E315: ("object damaged", "Submit the same rows again, or restore the object from backup."),
    Code.E316: (
        "file still open for writing",
        "Close the file before COMMIT; the job is taken when it is closed.",
    ),
    # E4xx: lineage and references
    Code.E401: ("reference not found", "Submit the input first, or correct the reference."),
    Code.E402: ("reference cycle", "An artifact cannot descend from itself; drop one input."),
    Code.E403: ("mutation target not found", "Name an artifact that exists."),
    Code.E404: ("reference is ambiguous", "Give more characters of the id."),
    Code.E405: ("expectation not met", "Read the present value and submit again."),
    Code.E406: (
        "artifact is tombstoned",
        "Name another artifact; submitting the same rows again revives this one.",
    ),
    Code.E407: (
        "over a limit on tags or pins",
        "Take away what is not needed, or split it; bulky facts belong in an artifact.",
    ),
    # E5xx: infrastructure
    Code.E501: ("broker unavailable", "Start the bus with `bus up`; staged jobs are safe."),
    Code.E502: ("bus already running", "Use the running bus, or stop it with `bus down`."),
    Code.E503: ("another writer is at work", "Stop the other writer; one lake has one writer."),
    Code.E504: ("disk full", "Free space; nothing is lost and work goes on by itself."),
    Code.E505: ("input or output error", "Check the disk and its permissions."),
    Code.E506: ("no answer yet", "Look at `bus status`; the job is safe and `bus wait` resumes."),
    Code.E507: (
        "lake not usable",
        "Use one local file system that supports hard links and rename, owned by you.",
    ),
    Code.E508: ("catalog not available", "Run `bus rebuild`; the catalog is only a view."),
    Code.E509: ("export failed", "Correct the export's SQL in bus.toml; the old file stays."),
    Code.E510: ("query refused", "Write one SELECT over catalog.*, canon.* or the exports."),
    Code.E511: ("no such thing", "List what exists with `bus jobs`, `bus runs` or `bus show`."),
    Code.E512: (
        "written by a newer release",
        "Upgrade Artifact Bus here to the release that wrote it; nothing was changed.",
    ),
    Code.E513: (
        "backup or restore refused",
        "Name a backup to read from, and an empty place, or a backup of this lake, to write to.",
    ),
    # E6xx: source data
    Code.E601: ("source data unreadable", "Correct the named line of the source file."),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: `code` what, `where` in which place, `message` in detail, `hint` what to do."""

    code: Code
    where: str
    message: str
    hint: str

    def as_dict(self) -> dict[str, str]:
        """The JSON form used by REJECT_REASON.json, the journal and ``--json``."""
        return {key: str(value) for key, value in asdict(self).items()}


def problem(code: Code, where: str, message: str, hint: str | None = None) -> Problem:
    """A `Problem` whose hint defaults to the code's own."""
    return Problem(code, where, message, code.hint if hint is None else hint)


class BusError(Exception):
    """Base of all errors here: a code, a place, a message, a hint, and all problems found."""

    default_code = Code.E505

    def __init__(
        self,
        message: str,
        *,
        code: Code | None = None,
        where: str = "",
        hint: str | None = None,
        problems: Sequence[Problem] = (),
    ) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.message = message
        self.where = where
        self.hint = self.code.hint if hint is None else hint
        self.problems = tuple(problems) or (Problem(self.code, where, message, self.hint),)

    def __str__(self) -> str:
        place = f" at {self.where}" if self.where else ""
        more = (
            f", and {len(self.problems) - 1} more in `problems`" if len(self.problems) > 1 else ""
        )
        return f"{self.code}{place}: {self.message} ({self.hint}){more}"

    def as_dict(self) -> dict[str, Any]:
        """The JSON form that ``--json`` prints."""
        return {
            "code": str(self.code),
            "where": self.where,
            "message": self.message,
            "hint": self.hint,
            "problems": [p.as_dict() for p in self.problems],
        }

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> BusError:
        """An error of this class made from problems; the first one speaks for all."""
        found = list(problems)
        first = found[0]
        return cls(
            first.message, code=first.code, where=first.where, hint=first.hint, problems=found
        )


class Rejected(BusError):
    """The bus refused the job; `problems` lists every reason."""

    default_code = Code.E103


class JobConflict(Rejected):
    """The job_id stands for other content, committed already or waiting to be judged."""

    default_code = Code.E105


class NotFound(BusError):
    """Nothing of that name exists."""

    default_code = Code.E511


class Refused(BusError):
    """The request itself cannot be carried out."""

    default_code = Code.E510


class WaitTimeout(BusError, TimeoutError):
    """The answer did not come in time; the job itself is safe."""

    default_code = Code.E506


class Unavailable(BusError):
    """Infrastructure is away; nothing is lost."""

    default_code = Code.E501

    @classmethod
    def of_system(cls, error: OSError) -> Self:
        """What the operating system refused: E504 when the disk is full, otherwise E505."""
        code = Code.E504 if error.errno in _FULL else Code.E505
        message = error.strerror or str(error)
        return cls(message, code=code, where=str(error.filename or ""))


class LakeBusy(Unavailable):
    """Another process holds the lock of this lake."""

    default_code = Code.E503


class Damaged(BusError):
    """Bytes of the lake differ from what the journal says."""

    default_code = Code.E315
