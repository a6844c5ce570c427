"""The documents of the bus and the words they are made of.

A producer writes `JobManifest` (manifest.json) and `CommitMarker` (COMMIT). A validator answers
with `Verdict` (verdict.json). The writer appends `CommitRecord` (journal/<seq>.json) and answers
the producer with `Receipt` (receipt.json) or `RejectReason` (REJECT_REASON.json).

All times are UTC; texts in documents are ISO 8601 with a trailing Z.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
import uuid
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError, to_json

from bus.shown import facts_html, rows_html

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:+=@~-]{0,127}$"
MAX_ARTIFACTS = 1000
MAX_TEXT_BYTES = 1024
#: Tags (k=v pairs) that one artifact may carry, over all its uses, and the length of a key.
MAX_TAGS = 200
MAX_TAG_KEY_BYTES = 128


class JobState(StrEnum):
    """Where a job is; the directory it lies in."""

    STAGED = "staged"  # inbox/: acknowledged, nobody has looked at it
    VALIDATING = "validating"  # work/: claimed by an ingest worker
    READY = "ready"  # ready/: judged, waiting for the writer
    COMMITTED = "committed"  # processed/: in the journal, with a receipt
    REJECTED = "rejected"  # rejected/: in the journal, with every reason
    UNKNOWN = "unknown"  # nowhere


#: The only moves between states, and who makes them (DESIGN section 5).
TRANSITIONS: dict[tuple[JobState, JobState], str] = {
    (JobState.STAGED, JobState.VALIDATING): "ingest worker, step 3",
    (JobState.VALIDATING, JobState.READY): "ingest worker, step 6",
    (JobState.READY, JobState.VALIDATING): "writer, step 7: the verdict judged another manifest",
    (JobState.READY, JobState.COMMITTED): "writer, step 10",
    (JobState.READY, JobState.REJECTED): "writer, step 10",
    (JobState.REJECTED, JobState.STAGED): "bus retry",
}


def utc_now() -> datetime:
    """The present moment, aware."""
    return datetime.now(UTC)


def iso(moment: datetime) -> str:
    """`2026-01-08T05:12:33.123456Z`."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# ── words ─────────────────────────────────────────────────────────────────────────────────────


def _plain_text(value: str) -> str:
    if len(value.encode()) > MAX_TEXT_BYTES:
        raise PydanticCustomError("text_too_long", f"longer than {MAX_TEXT_BYTES} bytes")
    if any(unicodedata.category(c) == "Cc" for c in value):
        raise PydanticCustomError("control_character", "holds a control character")
    return unicodedata.normalize("NFC", value)


def _utc(value: datetime) -> datetime:
    return value.astimezone(UTC)


Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
Text = Annotated[str, AfterValidator(_plain_text)]
Utc = Annotated[AwareDatetime, AfterValidator(_utc), PlainSerializer(iso, return_type=str)]


def _values(value: Any) -> Any:
    return (
        {k: [v] if isinstance(v, str) else v for k, v in value.items()}
        if isinstance(value, dict)
        else value
    )


def _listed(value: Any) -> Any:
    return [] if value is None else [value] if isinstance(value, str) else value


Tags = Annotated[dict[Text, list[Text]], BeforeValidator(_values)]
Refs = Annotated[list[Text], BeforeValidator(_listed)]
Sha256 = Annotated[
    str,
    BeforeValidator(lambda v: v.removeprefix("sha256:").lower() if isinstance(v, str) else v),
    StringConstraints(pattern=r"^[0-9a-f]{64}$"),
]


def _json_text(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return to_json(value, inf_nan_mode="strings").decode()


#: JSON within JSON: facts that are only passed on. Read as one text they cost a third of the time,
#: which is what a rebuild from the journal spends most of. Lists and dicts are taken too.
JsonText = Annotated[str, BeforeValidator(_json_text)]


class Document(BaseModel):
    """A JSON document or a part of one: immutable, strict, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def to_bytes(self) -> bytes:
        """The document as UTF-8 JSON; fields that are None are left out."""
        return to_json(self, exclude_none=True)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a document that the bus itself wrote (ValidationError when it is damaged)."""
        return cls.model_validate_json(data)


# ── what producers write ──────────────────────────────────────────────────────────────────────


class ArtifactEntry(Document):
    """One table of a job, as its producer describes it. `artifact_id` is its name in the run."""

    artifact_id: Id
    kind: Id | None = None
    format: str = "parquet"
    relpath: str
    schema_hint: Text | None = None
    schema_version: int = Field(1, ge=1, le=1_000_000)
    logical_key: Text | None = None
    rows: int | None = Field(None, ge=0)
    size_bytes: int | None = Field(None, ge=0)
    sha256: Sha256 | None = None
    inputs: list[Text] | None = None
    tags: Tags = {}
    supersedes: Refs = []


class Supersede(Document):
    """`target` is replaced by `by`; both stay readable."""

    op: Literal["supersede"]
    target: Text
    by: Text
    expect: Text | None = None


class Tombstone(Document):
    """`target` must not be used any more, because of `reason` (the newest counts); its bytes stay."""

    op: Literal["tombstone"]
    target: Text
    reason: Text
    expect: Text | None = None


class Tag(Document):
    """`target` carries these tags as well."""

    op: Literal["tag"]
    target: Text
    tags: Tags


class Untag(Document):
    """`target` no longer carries these tags; a key without values stands for all that it has."""

    op: Literal["untag"]
    target: Text
    tags: Tags


class Alias(Document):
    """`kind:alias` means `target` from now on; a null target removes it."""

    op: Literal["alias"]
    kind: Id
    alias: Id
    target: Text | None = None
    expect: Text | None = None


class Pin(Document):
    """These artifacts belong to the named frozen set `pin`; `target` is one reference or many."""

    op: Literal["pin"]
    pin: Id
    target: Refs


class Unpin(Document):
    """These artifacts leave the set `pin`; a null target empties it."""

    op: Literal["unpin"]
    pin: Id
    target: Annotated[list[Text] | None, BeforeValidator(lambda v: v and _listed(v))] = None


class MarkDamaged(Document):
    """The object's bytes are gone or changed, `found` says how; nobody shall start from them.

    The writer looks again before it takes anyone's word. Every artifact on the object is damaged.
    """

    op: Literal["mark_damaged"]
    object: Sha256
    found: Text


class Restore(Document):
    """The object's bytes are what they were again (from a backup, or out of the trash)."""

    op: Literal["restore"]
    object: Sha256


class Purge(Document):
    """The object's bytes may go, because of `reason`; what stood on them keeps its facts.

    The writer looks again: an object that must be kept stays. Comes in a job with nothing else.
    """

    op: Literal["purge"]
    object: Sha256
    reason: Text


class SetPolicy(Document):
    """How long withdrawn versions of `kind` keep their bytes; neither: as without a policy.

    `keep_last` newest versions of each logical key, and all for `keep_days` after their end.
    """

    op: Literal["set_policy"]
    kind: Id
    keep_last: int | None = Field(None, ge=1, le=1_000_000)
    keep_days: int | None = Field(None, ge=0, le=100_000)


class Discard(Document):
    """Directories of jobs that ended so, and were answered `before` then, may go.

    The journal keeps what they said.
    """

    op: Literal["discard"]
    jobs: Literal["committed", "rejected"]
    before: Annotated[Utc, Field(strict=False)]


_OfArtifacts = Supersede | Tombstone | Tag | Untag | Alias | Pin | Unpin
_OfBytes = MarkDamaged | Restore | Purge | SetPolicy | Discard
Mutation = Annotated[_OfArtifacts | _OfBytes, Field(discriminator="op")]


class Provenance(Document):
    """Which program wrote the job, from which commit."""

    writer_name: Text | None = None
    writer_version: Text | None = None
    git_commit: Text | None = None
    git_branch: Text | None = None
    git_dirty: bool | None = None
    git_diff_sha256: Sha256 | None = None


class JobManifest(Document):
    """manifest.json: what a producer submits."""

    version: Literal[1] = 1
    job_id: Id
    run_id: Id
    producer: Id
    kind: Id
    created_at_utc: Annotated[Utc, Field(strict=False)]
    artifacts: list[ArtifactEntry] = Field([], max_length=MAX_ARTIFACTS)
    mutations: list[Mutation] = Field([], max_length=MAX_ARTIFACTS)
    after: list[Id] = []
    provenance: Provenance | None = None
    meta: dict[str, Any] = {}

    @model_validator(mode="after")
    def _has_something_to_do(self) -> Self:
        if not self.artifacts and not self.mutations:
            raise PydanticCustomError("nothing_to_do", "neither artifacts nor mutations")
        return self

    @model_validator(mode="after")
    def _purges_nothing_by_the_way(self) -> Self:
        """Whether an object may go is seen by what holds before the job: it must change nothing else."""
        others = [m for m in self.mutations if not isinstance(m, Purge)]
        if len(others) < len(self.mutations) and (others or self.artifacts):
            raise PydanticCustomError("purge", "purge comes in a job with nothing else")
        return self

    def kind_of(self, entry: ArtifactEntry) -> str:
        """The entry's own kind, or the job's."""
        return entry.kind or self.kind

    def key_of(self, entry: ArtifactEntry) -> str:
        """The entry's logical key; default ``run=<run_id>/name=<name>``."""
        return entry.logical_key or f"run={self.run_id}/name={entry.artifact_id}"

    def digest(self, content_hashes: dict[str, str]) -> str:
        """What makes two submissions of one job_id the same job (DESIGN section 6).

        The manifest without what a restarted program writes anew, and with each artifact's
        content hash, by name, in place of its file's facts.
        """
        core = self.model_dump(
            mode="json",
            exclude={
                "created_at_utc": True,
                "provenance": True,
                "artifacts": {"__all__": {"rows", "sha256", "size_bytes"}},
            },
        )
        for entry in core["artifacts"]:
            entry["content_hash"] = content_hashes.get(entry["artifact_id"])
        return hashlib.sha256(canonical_json(core)).hexdigest()


class CommitMarker(Document):
    """COMMIT as our own clients write it; other producers leave the file empty."""

    version: Literal[1] = 1
    manifest_sha256: Sha256
    submission_id: Id


#: Namespace of artifact ids (a constant of the format; never change it).
ARTIFACT_NAMESPACE = uuid.UUID("6f1f1a0e-6b8b-5d0c-9a52-0d6b6a7c3c11")


def artifact_id_of(kind: str, schema_version: int, logical_key: str, content_hash: str) -> str:
    """The global id: UUIDv5 of the four parts of an identity, as a canonical JSON list."""
    name = canonical_json([kind, schema_version, logical_key, content_hash]).decode()
    return str(uuid.uuid5(ARTIFACT_NAMESPACE, name))


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# ── what validators and the writer write ──────────────────────────────────────────────────────


class ProblemDoc(Document):
    """A `bus.errors.Problem` inside a document."""

    code: str
    where: str
    message: str
    hint: str


#: How the warning begins of an artifact that DuckDB cannot read: its views leave it out.
DUCKDB_UNREADABLE = "duckdb_unreadable"


class ArtifactFacts(Document):
    """What a validator found out about one accepted table.

    `columns` is ``[{name, type}]`` (Arrow type names); `column_stats` is
    ``[{name, nulls, min?, max?, nans?, truncated?}]``; `inputs` None means not declared.
    `min_ts`/`max_ts` bound the spec's time column (ISO 8601); `contract` is its fingerprint, or "".
    """

    name: Id
    kind: Id
    schema_version: int
    logical_key: str
    relpath: str
    file_hash: str
    content_hash: str
    size_bytes: int
    rows: int
    columns: list[dict[str, Any]]
    column_stats: list[dict[str, Any]]
    min_ts: str | None = None
    max_ts: str | None = None
    schema_hint: str | None = None
    inputs: list[str] | None = None
    tags: dict[str, list[str]] = {}
    supersedes: list[str] = []
    generic: bool = False
    contract: str | None = None
    warnings: list[str] = []

    @property
    def sha256(self) -> str:
        """The object's name: the file hash without its prefix."""
        return self.file_hash.removeprefix("sha256:")


class Verdict(Document):
    """verdict.json: a validator's judgement of one submission, all the writer needs to decide.

    `verdict_id` is fresh for each judged directory and is what the journal records once.
    """

    version: Literal[1] = 1
    verdict_id: str
    job_id: str
    submission_id: str | None = None
    manifest_sha256: str | None = None
    job_digest: str | None = None
    accepted: bool
    judged_at_utc: str
    run_id: str | None = None
    producer: str | None = None
    kind: str | None = None
    created_at_utc: str | None = None
    artifacts: list[ArtifactFacts] = []
    mutations: list[Mutation] = []
    after: list[str] = []
    provenance: dict[str, Any] | None = None
    meta: dict[str, Any] = {}
    problems: list[ProblemDoc] = []
    warnings: list[str] = []

    @model_validator(mode="after")
    def _can_be_answered(self) -> Self:
        """The writer commits first and answers then: what it cannot answer, it must not read."""
        if self.accepted == bool(self.problems):
            raise PydanticCustomError("verdict", "accepted with problems, or rejected without")
        whose = (self.run_id, self.producer, self.kind, self.created_at_utc, self.job_digest)
        if self.accepted and None in whose:
            raise PydanticCustomError("verdict", "accepted without saying whose job it is")
        return self


class Outcome(StrEnum):
    """How a submission ended; in the journal for good."""

    COMMITTED = "committed"  # its artifacts are in the store
    REJECTED = "rejected"  # nothing of it is in the store
    REPEATED = "repeated"  # the same job again: it got the first receipt


class ArtifactRecord(Document):
    """One artifact of a committed job, with the writer's decision.

    `decision`: created (new identity), deduped (it existed; `mode` says by which hash), revived
    (it had been tombstoned or damaged). `inputs` and `supersedes` are resolved artifact ids.
    `columns` and `column_stats` are those of `ArtifactFacts`, as JSON texts.
    """

    name: str
    artifact_id: str
    decision: Literal["created", "deduped", "revived"]
    mode: Literal["file_hash", "content_hash"] | None = None
    kind: str
    schema_version: int
    logical_key: str
    file_hash: str
    content_hash: str
    size_bytes: int
    rows: int
    min_ts: str | None = None
    max_ts: str | None = None
    schema_hint: str | None = None
    columns: JsonText = "[]"
    column_stats: JsonText = "[]"
    inputs: list[str] | None = None
    tags: dict[str, list[str]] = {}
    supersedes: list[str] = []
    contract: str | None = None
    warnings: list[str] = []

    @property
    def sha256(self) -> str:
        """The object's name: the file hash without its prefix."""
        return self.file_hash.removeprefix("sha256:")

    @property
    def duckdb_readable(self) -> bool:
        """Whether views that DuckDB makes may show it."""
        return not any(text.startswith(DUCKDB_UNREADABLE) for text in self.warnings)


class JobRecord(Document):
    """One submission's outcome in a commit."""

    job_id: str
    verdict_id: str
    submission_id: str | None = None
    outcome: Outcome
    job_digest: str | None = None
    first_seq: int | None = None
    run_id: str | None = None
    producer: str | None = None
    kind: str | None = None
    created_at_utc: str | None = None
    artifacts: list[ArtifactRecord] = []
    mutations: list[Mutation] = []
    provenance: dict[str, Any] | None = None
    meta: dict[str, Any] = {}
    problems: list[ProblemDoc] = []
    warnings: list[str] = []


class CommitRecord(Document):
    """journal/<seq>.json. `prev` is the SHA-256 of the previous record's bytes: the chain."""

    version: Literal[1] = 1
    seq: int
    prev: str
    committed_at_utc: str
    writer: str
    jobs: list[JobRecord]


class ReceiptArtifact(Document):
    """One artifact in a receipt; `path` is absolute and readable at once."""

    name: str
    artifact_id: str
    deduped: bool
    mode: str | None = None
    file_hash: str
    content_hash: str
    rows: int
    path: str
    warnings: list[str] = []

    def _repr_html_(self) -> str:
        return facts_html(f"artifact {self.name}", self.model_dump(exclude={"name"}))


class Receipt(Document):
    """receipt.json: the job is committed as `seq`."""

    job_id: str
    submission_id: str | None = None
    job_digest: str | None = None
    seq: int
    status: str
    artifacts: list[ReceiptArtifact]
    committed_at_utc: str
    warnings: list[str] = []

    def _repr_html_(self) -> str:
        shown = ("job_id", "seq", "committed_at_utc", "warnings")
        names = ("name", "artifact_id", "rows", "deduped", "path")
        rows = ([getattr(artifact, name) for name in names] for artifact in self.artifacts)
        return facts_html(
            f"receipt: {self.status}", self.model_dump(include=set(shown)), rows_html(names, rows)
        )


class RejectReason(Document):
    """REJECT_REASON.json: why, in full; the first problem speaks for all at the top."""

    code: str
    message: str
    hint: str
    problems: list[ProblemDoc]
    job_id: str
    submission_id: str | None = None
    rejected_at_utc: str
    seq: int

    def _repr_html_(self) -> str:
        names = ("code", "where", "message", "hint")
        rows = ([getattr(found, name) for name in names] for found in self.problems)
        return facts_html("rejected", {"job_id": self.job_id}, rows_html(names, rows))
