"""Step 7: what becomes of each judged job. Pure: reads the manifest, changes nothing.

Everything decided here is written into the commit record, so replay never decides. Jobs of one
batch are decided in order, each seeing the ones before it as if they were committed already.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, assert_never

from bus.errors import Code, Problem, problem
from bus.model import (
    Alias,
    ArtifactRecord,
    JobRecord,
    MarkDamaged,
    Outcome,
    Pin,
    ProblemDoc,
    Restore,
    Supersede,
    Tag,
    Tombstone,
    Unpin,
    Untag,
    artifact_id_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bus.manifest import Manifest
    from bus.model import ArtifactFacts, Mutation, Verdict

    #: Edges by where they start: an artifact and its inputs, or what it supersedes.
    Graph = Mapping[str, Sequence[str]]

_UUID = re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


@dataclass(frozen=True, slots=True)
class Known:
    """An artifact that exists: the bytes it stands on, and whether it is tombstoned or damaged."""

    file_hash: str
    withdrawn: bool = False


@dataclass(slots=True)
class Decisions:
    """The outcome of a batch: records to commit, and jobs that wait for references."""

    records: list[JobRecord] = field(default_factory=list)
    waiting: dict[str, list[str]] = field(default_factory=dict)


class _MissingError(Exception):
    """A reference that is not there; `final` when it never can be."""

    def __init__(self, reference: str, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.reference = reference
        self.final = final


def decide(
    verdicts: Sequence[Verdict], manifest: Manifest, *, now: datetime, lineage_wait_s: float
) -> Decisions:
    """Decide `verdicts` in order. None of them may be in the journal already."""
    batch = _Batch(verdicts, manifest)
    decisions = Decisions()
    for verdict in verdicts:
        waited_s = (now - datetime.fromisoformat(verdict.judged_at_utc)).total_seconds()
        record = _JobDecider(batch, verdict, patient=waited_s < lineage_wait_s).decide()
        if isinstance(record, JobRecord):
            batch.remember(record)
            decisions.records.append(record)
        else:
            decisions.waiting[verdict.job_id] = record
    return decisions


class _Batch:
    """What holds now: the manifest, and on top of it the jobs decided so far in this batch."""

    def __init__(self, verdicts: Sequence[Verdict], manifest: Manifest) -> None:
        self._manifest = manifest
        accepted = [v for v in verdicts if v.accepted]
        self.committed: dict[str, tuple[str | None, int | None]] = {
            job_id: (digest, seq)
            for job_id, digest, seq in manifest.among(
                "committed_jobs", {j for v in accepted for j in (v.job_id, *v.after)}
            )
        }
        self._artifacts: dict[str, Known | None] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._aliases: dict[tuple[str, str], str | None] = {}
        self._inputs: dict[str, list[str]] = {}
        self._superseded: dict[str, list[str]] = {}
        self._damaged: set[str] = set()
        self._load(identity(facts) for verdict in accepted for facts in verdict.artifacts)

    def _load(self, artifact_ids: Iterable[str]) -> None:
        wanted = {a for a in artifact_ids if a not in self._artifacts}
        self._artifacts |= dict.fromkeys(wanted)
        for artifact_id, file_hash, withdrawn in self._manifest.among("known_artifacts", wanted):
            gone = withdrawn or file_hash in self._damaged
            self._artifacts[artifact_id] = Known(file_hash, bool(gone))

    def artifact(self, artifact_id: str) -> Known | None:
        self._load([artifact_id])
        return self._artifacts[artifact_id]

    def is_committed(self, job_id: str) -> bool:
        if job_id not in self.committed:
            found = self._manifest.among("committed_jobs", [job_id])
            self.committed |= {known: (digest, seq) for known, digest, seq in found}
        return job_id in self.committed

    def named(self, job_id: str, name: str) -> str | None:
        if (job_id, name) in self._names:
            return self._names[job_id, name]
        found = self._manifest.named("artifacts_of_job", (job_id, name))
        return found[0][0] if found else None

    def alias(self, kind: str, alias: str) -> str | None:
        if (kind, alias) in self._aliases:
            return self._aliases[kind, alias]
        found = self._manifest.rows(
            "SELECT artifact_id FROM aliases WHERE kind = ? AND alias = ?", (kind, alias)
        )
        return found[0][0] if found else None

    def descends(self, artifact_id: str, inputs: Sequence[str], own: Graph) -> bool:
        """Whether `artifact_id` is among `inputs` or their ancestors; `own`: this job's edges."""
        return self._reaches(artifact_id, inputs, "ancestors", (self._inputs, own))

    def superseded_by(self, new: str, old: str, own: Graph) -> bool:
        """Whether `old` supersedes `new` already, directly or not; `own`: this job's edges."""
        return self._reaches(new, [old], "superseded", (self._superseded, own))

    def _reaches(
        self, target: str, starts: Sequence[str], query: str, graphs: tuple[Graph, ...]
    ) -> bool:
        """Follow edges of the manifest and of `graphs`, in any mixture, from `starts`."""
        reached: set[str] = set()
        new = set(starts)
        while new and target not in reached:
            reached |= new
            further = {row[0] for row in self._manifest.among(query, new)}
            further.update(n for graph in graphs for at in new for n in graph.get(at, ()))
            new = further - reached
        return target in reached

    def remember(self, record: JobRecord) -> None:
        if record.outcome is not Outcome.COMMITTED:
            return
        self.committed[record.job_id] = (record.job_digest, None)
        for artifact in record.artifacts:
            self._names[record.job_id, artifact.name] = artifact.artifact_id
            _join(self._inputs, artifact.artifact_id, artifact.inputs)
            _join(self._superseded, artifact.artifact_id, artifact.supersedes)
            if artifact.decision != "deduped":
                self._artifacts[artifact.artifact_id] = Known(artifact.file_hash)
        for mutation in record.mutations:
            match mutation:
                case Tombstone(target=target):
                    if known := self.artifact(target):
                        self._artifacts[target] = Known(known.file_hash, withdrawn=True)
                case Supersede(target=old, by=new):
                    _join(self._superseded, new, [old])
                case Alias(kind=kind, alias=alias, target=aliased):
                    self._aliases[kind, alias] = aliased
                case MarkDamaged(object=sha256):
                    self._mark_damaged(f"sha256:{sha256}")
                case _:
                    pass

    def _mark_damaged(self, file_hash: str) -> None:
        self._damaged.add(file_hash)
        for artifact_id, known in self._artifacts.items():
            if known and known.file_hash == file_hash:
                self._artifacts[artifact_id] = Known(file_hash, withdrawn=True)


def _join(graph: dict[str, list[str]], start: str, ends: Sequence[str] | None) -> None:
    if ends:
        graph.setdefault(start, []).extend(ends)


def identity(facts: ArtifactFacts) -> str:
    """The artifact_id of judged facts."""
    return artifact_id_of(facts.kind, facts.schema_version, facts.logical_key, facts.content_hash)


class _JobDecider:
    """Decides one job; collects every problem and every missing reference on the way."""

    def __init__(self, batch: _Batch, verdict: Verdict, *, patient: bool) -> None:
        self._batch = batch
        self._verdict = verdict
        self._patient = patient
        self._siblings = {facts.name: identity(facts) for facts in verdict.artifacts}
        self._problems: list[Problem] = []
        self._waiting: list[str] = []
        self._made: dict[str, Known] = {}
        self._used: set[str] = set()
        self._inputs: dict[str, list[str]] = {}
        self._superseded: dict[str, list[str]] = {}
        self._aliases: dict[tuple[str, str], str | None] = {}

    def decide(self) -> JobRecord | list[str]:
        """The record to commit, or the references that the job waits for."""
        verdict = self._verdict
        if not verdict.accepted:
            return self._record(Outcome.REJECTED, problems=verdict.problems)
        if verdict.job_id in self._batch.committed:
            return self._seen_before()
        for job_id in verdict.after:
            if job_id not in self._batch.committed:
                self._miss(_MissingError(job_id, "not committed yet", final=False), "after")
        artifacts = [
            self._artifact(facts, f"manifest.json.artifacts[{index}]")
            for index, facts in enumerate(verdict.artifacts)
        ]
        mutations = [
            self._mutation(mutation, f"manifest.json.mutations[{index}]")
            for index, mutation in enumerate(verdict.mutations)
        ]
        if self._problems:
            found = [ProblemDoc(**p.as_dict()) for p in self._problems]
            return self._record(Outcome.REJECTED, problems=found)
        if self._waiting:
            return self._waiting
        return self._record(Outcome.COMMITTED, artifacts=artifacts, mutations=mutations)

    def _record(self, outcome: Outcome, **facts: Any) -> JobRecord:
        verdict = self._verdict
        return JobRecord(
            job_id=verdict.job_id,
            verdict_id=verdict.verdict_id,
            submission_id=verdict.submission_id,
            outcome=outcome,
            job_digest=verdict.job_digest,
            run_id=verdict.run_id,
            producer=verdict.producer,
            kind=verdict.kind,
            created_at_utc=verdict.created_at_utc,
            provenance=verdict.provenance,
            meta=verdict.meta,
            warnings=verdict.warnings,
            **facts,
        )

    def _seen_before(self) -> JobRecord:
        digest, seq = self._batch.committed[self._verdict.job_id]
        if digest == self._verdict.job_digest and seq is not None:
            return self._record(Outcome.REPEATED, first_seq=seq)
        found = problem(
            Code.E105,
            "manifest.json.job_id",
            f"job {self._verdict.job_id} was committed as commit {seq} with digest {digest}; "
            f"this submission has digest {self._verdict.job_digest}",
        )
        return self._record(Outcome.REJECTED, problems=[ProblemDoc(**found.as_dict())])

    # ── artifacts ─────────────────────────────────────────────────────────────────────────────

    def _artifact(self, facts: ArtifactFacts, where: str) -> ArtifactRecord:
        artifact_id = self._siblings[facts.name]
        known = self._made.get(artifact_id) or self._batch.artifact(artifact_id)
        inputs = self._resolve_all(facts.inputs or [], f"{where}.inputs")
        olds = self._resolve_all(facts.supersedes, f"{where}.supersedes")
        self._used.update(inputs)
        # An artifact that is new has no descendants but those that this job gives it.
        may_descend = known is not None or artifact_id in self._used
        if may_descend and self._batch.descends(artifact_id, inputs, self._inputs):
            self._problem(Code.E402, f"{where}.inputs", f"{facts.name} would descend from itself")
        _join(self._inputs, artifact_id, inputs)
        self._supersede(artifact_id, olds, f"{where}.supersedes")
        deduped = known is not None and not known.withdrawn
        if not deduped:
            self._made[artifact_id] = Known(facts.file_hash)
        content: dict[str, Any] = (
            {}
            if deduped
            else {
                "columns": facts.columns,
                "column_stats": facts.column_stats,
            }
        )
        return ArtifactRecord(
            name=facts.name,
            artifact_id=artifact_id,
            decision="deduped" if deduped else "created" if known is None else "revived",
            mode=_mode(known, facts) if deduped else None,
            kind=facts.kind,
            schema_version=facts.schema_version,
            logical_key=facts.logical_key,
            file_hash=known.file_hash if known is not None and deduped else facts.file_hash,
            content_hash=facts.content_hash,
            size_bytes=facts.size_bytes,
            rows=facts.rows,
            min_ts=facts.min_ts,
            max_ts=facts.max_ts,
            schema_hint=facts.schema_hint,
            inputs=None if facts.inputs is None else inputs,
            tags=facts.tags,
            supersedes=olds,
            warnings=facts.warnings,
            **content,
        )

    def _supersede(self, new: str, olds: list[str], where: str) -> None:
        for old in olds:
            if self._batch.superseded_by(new, old, self._superseded):
                self._problem(Code.E402, where, f"{old} already supersedes {new}")
        _join(self._superseded, new, olds)

    # ── mutations ─────────────────────────────────────────────────────────────────────────────

    def _mutation(self, mutation: Mutation, where: str) -> Mutation:
        match mutation:
            case Supersede():
                target = self._resolve(mutation.target, f"{where}.target", Code.E403)
                by = self._resolve(mutation.by, f"{where}.by", Code.E403)
                if target and by:
                    self._supersede(by, [target], where)
                self._expect_bytes(mutation.expect, target, where)
                return mutation.model_copy(update={"target": target, "by": by})
            case Tombstone():
                target = self._resolve(mutation.target, f"{where}.target", Code.E403)
                self._expect_bytes(mutation.expect, target, where)
                return mutation.model_copy(update={"target": target})
            case Alias():
                target = mutation.target and self._resolve(
                    mutation.target, f"{where}.target", Code.E403
                )
                self._expect_alias(mutation, where)
                self._aliases[mutation.kind, mutation.alias] = target
                return mutation.model_copy(update={"target": target})
            case Tag() | Untag() | Pin() | Unpin():
                target = self._resolve(mutation.target, f"{where}.target", Code.E403)
                return mutation.model_copy(update={"target": target})
            case MarkDamaged() | Restore():
                return mutation  # whether it is so, the writer sees by looking
            case _:
                assert_never(mutation)

    def _expect_alias(self, mutation: Alias, where: str) -> None:
        """`expect` of an alias is the artifact_id that it means now, or "" for none."""
        key = (mutation.kind, mutation.alias)
        present = self._aliases[key] if key in self._aliases else self._batch.alias(*key)
        if mutation.expect is not None and mutation.expect != (present or ""):
            self._problem(Code.E405, where, f"{mutation.kind}:{mutation.alias} is {present}")

    def _expect_bytes(self, expect: str | None, target: str | None, where: str) -> None:
        """`expect` of supersede and tombstone names the file hash that the target must have."""
        if expect is None or target is None:
            return
        known = self._batch.artifact(target)
        present = known.file_hash if known else None
        if present != expect:
            self._problem(Code.E405, where, f"{target} stands on {present}, not on {expect}")

    # ── references ────────────────────────────────────────────────────────────────────────────

    def _resolve_all(self, references: list[str], where: str) -> list[str]:
        found = [
            self._resolve(reference, f"{where}[{index}]", Code.E401)
            for index, reference in enumerate(references)
        ]
        return list(dict.fromkeys(artifact_id for artifact_id in found if artifact_id))

    def _resolve(self, reference: str, where: str, code: Code) -> str | None:
        try:
            return self._artifact_id(reference)
        except _MissingError as missing:
            self._miss(missing, where, code)
            return None

    def _artifact_id(self, reference: str) -> str:
        if reference.startswith("name:"):
            name = reference.removeprefix("name:")
            if name not in self._siblings:
                raise _MissingError(reference, f"no artifact {name!r} in this job", final=True)
            return self._siblings[name]
        if reference.startswith("job:"):
            job_id, _, name = reference.removeprefix("job:").partition("/")
            found = self._batch.named(job_id, name)
            if found is None:
                final = not (job_id and name) or self._batch.is_committed(job_id)
                raise _MissingError(reference, f"no {name!r} of job {job_id!r}", final=final)
            return found
        if not _UUID.match(reference):
            message = f"{reference[:160]!r} is no artifact_id, name:… or job:…/…"
            raise _MissingError(reference, message, final=True)
        if reference not in self._siblings.values() and self._batch.artifact(reference) is None:
            raise _MissingError(reference, f"no artifact {reference}", final=False)
        return reference

    def _miss(self, missing: _MissingError, where: str, code: Code = Code.E401) -> None:
        if self._patient and not missing.final:
            self._waiting.append(missing.reference)
        else:
            self._problem(code, where, str(missing))

    def _problem(self, code: Code, where: str, message: str) -> None:
        self._problems.append(problem(code, where, message))


def _mode(known: Known | None, facts: ArtifactFacts) -> Any:
    return "file_hash" if known and known.file_hash == facts.file_hash else "content_hash"


def revived(artifact: ArtifactRecord, facts: ArtifactFacts) -> ArtifactRecord:
    """A duplicate whose first object is gone: the artifact stands on the submitted bytes now."""
    submitted = {
        "decision": "revived",
        "mode": None,
        "file_hash": facts.file_hash,
        "size_bytes": facts.size_bytes,
        "columns": facts.columns,
        "column_stats": facts.column_stats,
    }
    return ArtifactRecord.model_validate(artifact.model_dump() | submitted)
