"""Step 7: what becomes of each judged job. Pure: reads the manifest, changes nothing.

Everything decided here is written into the commit record, so replay never decides. Jobs of one
batch are decided in order, each seeing the ones before it as if they were committed already.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Any

from bus import retention
from bus.errors import Code, Problem, problem
from bus.graph import Edges, way
from bus.model import (
    ArtifactRecord,
    JobRecord,
    MarkDamaged,
    Outcome,
    Pin,
    ProblemDoc,
    Purge,
    artifact_id_of,
)
from bus.mutations import Mutations, cycle
from bus.present import Known, Present

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from bus.manifest import Manifest
    from bus.model import ArtifactFacts, Mutation, Verdict

#: Inputs that the pins of one job may come to; each artifact that names a pin has them all.
MAX_FROM_PINS = 200_000
_UUID = re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


@dataclass(slots=True)
class Decisions:
    """The outcome of a batch: records to commit, and jobs that wait for references."""

    records: list[JobRecord] = field(default_factory=list)
    waiting: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Lack:
    """What a job waits for; `refusal` is what becomes of it if its time is over."""

    verdict: Verdict
    references: set[str]
    refusal: JobRecord | None


class _MissingError(Exception):
    """A reference that is not there; `final` when it never can be."""

    def __init__(self, reference: str, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.reference = reference
        self.final = final


def decide(
    verdicts: Sequence[Verdict],
    manifest: Manifest,
    *,
    now: datetime,
    lineage_wait_s: float,
    spoken_of: Callable[[], Collection[str]] = tuple,
) -> Decisions:
    """Decide `verdicts` in order. None of them may be in the journal already.

    One that lacks references is decided again when later ones have brought them all, and refused
    only when its time is over and the batch did not bring them. One that purges is decided by
    itself, for what keeps an object is seen by what is committed: it, or those after it, are left
    for the next time. `spoken_of`: what jobs on their way speak of (`retention.spoken_of`).
    """
    verdicts, purged = _up_to_a_purge(verdicts)
    kept = retention.kept(manifest, purged, now, spoken_of) if purged else {}
    batch = _Batch(verdicts, manifest)
    decisions = Decisions()
    lacking: dict[str, _Lack] = {}
    lacked_by: dict[str, list[_Lack]] = {}
    to_decide = deque(verdicts)
    while to_decide:
        verdict = to_decide.popleft()
        waited_s = (now - datetime.fromisoformat(verdict.judged_at_utc)).total_seconds()
        decider = _JobDecider(batch, verdict, now, kept, patient=waited_s < lineage_wait_s)
        decided = decider.decide()
        if isinstance(decided, _Lack):
            lacking[verdict.job_id] = decided
            for reference in decided.references:
                lacked_by.setdefault(reference, []).append(decided)
            continue
        batch.remember(decided, decider.present)
        decisions.records.append(decided)
        for reference in sorted(brought(decided) & lacked_by.keys()) if lacked_by else ():
            for lack in lacked_by.pop(reference):
                lack.references.discard(reference)
                if not lack.references:
                    to_decide.append(lacking.pop(lack.verdict.job_id).verdict)
    for job_id, lack in lacking.items():
        if lack.refusal is None:
            decisions.waiting[job_id] = sorted(lack.references)
        else:
            decisions.records.append(lack.refusal)
    return decisions


def _up_to_a_purge(verdicts: Sequence[Verdict]) -> tuple[Sequence[Verdict], list[str]]:
    """The first job and what it purges, or those before one that purges."""
    for number, verdict in enumerate(verdicts):
        if purged := [m.object for m in verdict.mutations if isinstance(m, Purge)]:
            return (verdicts[:number], []) if number else ([verdict], purged)
    return verdicts, []


def brought(record: JobRecord) -> set[str]:
    """The references that a job makes good, as others may have written them."""
    if record.outcome is not Outcome.COMMITTED:
        return set()
    found = {record.job_id}
    for artifact in record.artifacts:
        found |= {artifact.artifact_id, f"job:{record.job_id}/{artifact.name}"}
    return found | {f"pin:{m.pin}" for m in record.mutations if isinstance(m, Pin)}


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
        self._names: dict[tuple[str, str], str] = {}
        self._inputs = Edges()
        self.present = Present.of(manifest)
        known = {identity(facts): facts.tags for v in accepted for facts in v.artifacts}
        named = (name for v in accepted for facts in v.artifacts for name in facts.inputs or ())
        self.present.want(
            artifacts={*known, *filter(_UUID.match, named)},
            tags=[id_ for id_, tags in known.items() if tags],
        )

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

    def inputs(self, artifact_id: str) -> set[str]:
        """What an artifact is known to have been made from."""
        stored = self._manifest.among("inputs_of", [artifact_id])
        return {source for _, source in chain(stored, self._inputs.ahead([artifact_id]))}

    def descent(self, artifact_id: str, inputs: Iterable[str], own: Edges) -> list[str] | None:
        """The way from one of `inputs` to `artifact_id` among their ancestors; `own`: this job's.

        Edges of the manifest, of the batch and of the job are followed in any mixture.
        """

        def step(nodes: list[str]) -> Iterator[tuple[Any, ...]]:
            stored = self._manifest.among("inputs_of", nodes)
            return chain(stored, self._inputs.ahead(nodes), own.ahead(nodes))

        def step_back(nodes: list[str]) -> Iterator[tuple[Any, ...]]:
            stored = self._manifest.among("users_of", nodes)
            return chain(stored, self._inputs.behind(nodes), own.behind(nodes))

        return way(inputs, artifact_id, step, step_back)

    def words_for(self, artifact_ids: Iterable[str]) -> dict[str, str]:
        """What people call artifacts that are in the manifest, each with its id."""
        found = self._manifest.among("words_for", artifact_ids)
        return {artifact_id: f"{kind} {key} ({artifact_id})" for artifact_id, kind, key in found}

    def remember(self, record: JobRecord, layer: Present) -> None:
        if record.outcome is not Outcome.COMMITTED:
            return
        self.committed[record.job_id] = (record.job_digest, None)
        self.present.take(layer)
        for artifact in record.artifacts:
            self._names[record.job_id, artifact.name] = artifact.artifact_id
            self._inputs.add(artifact.artifact_id, artifact.inputs or ())
        for mutation in record.mutations:
            if isinstance(mutation, MarkDamaged):
                self.present.mark_damaged(f"sha256:{mutation.object}")


def identity(facts: ArtifactFacts) -> str:
    """The artifact_id of judged facts."""
    return artifact_id_of(facts.kind, facts.schema_version, facts.logical_key, facts.content_hash)


class _JobDecider:
    """Decides one job; collects every problem and every missing reference on the way."""

    def __init__(
        self,
        batch: _Batch,
        verdict: Verdict,
        now: datetime,
        kept: Mapping[str, str],
        *,
        patient: bool,
    ) -> None:
        self._batch = batch
        self._verdict = verdict
        self._patient = patient
        self._siblings = {facts.name: identity(facts) for facts in verdict.artifacts}
        self._problems: list[Problem] = []
        self._lacks: set[str] = set()
        self._is_hopeless = False
        self._from_pins = 0
        self._used: set[str] = set()
        self._inputs = Edges()
        self.present = batch.present.layer()
        self._mutations = Mutations(self.present, self._problem, now, kept)

    def decide(self) -> JobRecord | _Lack:
        """The record to commit, or what the job lacks."""
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
            decided
            for index, mutation in enumerate(verdict.mutations)
            for decided in self._mutation(mutation, f"manifest.json.mutations[{index}]")
        ]
        refusal = None
        if self._problems:
            found = [ProblemDoc(**p.as_dict()) for p in self._problems]
            refusal = self._record(Outcome.REJECTED, problems=found)
        if self._lacks and not self._is_hopeless:
            return _Lack(verdict, self._lacks, refusal)
        return refusal or self._record(Outcome.COMMITTED, artifacts=artifacts, mutations=mutations)

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
            warnings=[*verdict.warnings, *self._mutations.warnings],
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
        known = self.present.artifacts[artifact_id]
        inputs = self._resolve_inputs(facts.inputs or [], f"{where}.inputs")
        olds = self._resolve_all(facts.supersedes, f"{where}.supersedes", Code.E401)
        self._used.update(inputs)
        self._check_contract(facts, where)
        # An artifact that is new has no descendants but those that this job gives it.
        if known is not None or artifact_id in self._used:
            self._check_descent(artifact_id, inputs, f"{where}.inputs")
        self._inputs.add(artifact_id, inputs)
        deduped = known is not None and not known.withdrawn
        if not deduped:
            self.present.artifacts[artifact_id] = Known(facts.file_hash)
        for old in olds:
            self._mutations.supersede(artifact_id, old, f"{where}.supersedes")
        if facts.tags:
            self._mutations.add_tags(artifact_id, facts.tags, where)
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
            contract=facts.contract,
            warnings=facts.warnings,
            **content,
        )

    def _check_descent(self, artifact_id: str, inputs: list[str], where: str) -> None:
        # What it was made from before closes no circle now: the same job again costs no walk.
        known = self._batch.inputs(artifact_id)
        new = [source for source in inputs if source not in known]
        if new and (found := self._batch.descent(artifact_id, new, self._inputs)):
            words = self._batch.words_for(found)
            words |= {id_: f"name:{name}" for name, id_ in self._siblings.items()}
            circle = cycle([words.get(node, node) for node in [artifact_id, *found]])
            message = f"{words[artifact_id]} would descend from itself: {circle}"
            self._problem(Code.E402, where, message)

    def _check_contract(self, facts: ArtifactFacts, where: str) -> None:
        """A table was held to the contract that others of its kind and version were held to.

        Else somebody has edited or removed it, or runs a worker with another configuration.
        """
        kind_version = facts.kind, facts.schema_version
        known = self.present.contracts[kind_version]
        if known is None and facts.contract:
            self.present.contracts[kind_version] = facts.contract
        if known is None or facts.contract in {None, known}:
            return
        held = f"one that begins {facts.contract[:12]}" if facts.contract else "none"
        message = (
            f"tables of {facts.kind} v{facts.schema_version} are held to the contract that begins "
            f"{known[:12]}, this one was held to {held}"
        )
        self._problem(Code.E210, f"{where}.kind", message)

    def _mutation(self, mutation: Mutation, where: str) -> list[Mutation]:
        """What of a mutation is to be recorded, its references resolved."""
        found_before = len(self._problems)
        resolved: dict[str, Any] = {}
        for name in ("target", "by"):
            match getattr(mutation, name, None):
                case str(reference):
                    resolved[name] = self._resolve(reference, f"{where}.{name}", Code.E403)
                case list(references):
                    self.present.want(artifacts=references)
                    resolved[name] = self._resolve_all(references, f"{where}.{name}", Code.E403)
        if self._lacks or len(self._problems) > found_before:
            return []
        return self._mutations.decide(mutation.model_copy(update=resolved), where)

    # ── references ────────────────────────────────────────────────────────────────────────────

    def _resolve_inputs(self, references: list[str], where: str) -> list[str]:
        """Inputs as artifact ids; a pin stands for its members of this moment."""
        found: list[str] = []
        for index, reference in enumerate(references):
            place = f"{where}[{index}]"
            if reference.startswith("pin:"):
                found += self._pinned(reference, place)
            elif artifact_id := self._resolve(reference, place, Code.E401):
                found.append(artifact_id)
        return list(dict.fromkeys(found))

    def _pinned(self, reference: str, where: str) -> list[str]:
        pin = reference.removeprefix("pin:")
        members = self.present.pins[pin]
        if not members:
            self._miss(_MissingError(reference, f"no pin {pin!r}", final=not pin), where)
        self._from_pins += len(members)
        if self._from_pins > MAX_FROM_PINS:
            message = f"the pins of this job come to more than {MAX_FROM_PINS:,} inputs"
            self._problem(Code.E407, where, message)
            return []
        return sorted(members)

    def _resolve_all(self, references: list[str], where: str, code: Code) -> list[str]:
        found = [
            self._resolve(reference, f"{where}[{index}]", code)
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
        if reference.startswith(("name:", own := f"job:{self._verdict.job_id}/")):
            name = reference.removeprefix("name:").removeprefix(own)
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
            message = f"{reference[:160]!r} is no artifact_id, name:…, job:…/… or pin:…"
            raise _MissingError(reference, message, final=True)
        if reference not in self._siblings.values() and self.present.artifacts[reference] is None:
            raise _MissingError(reference, f"no artifact {reference}", final=False)
        return reference

    def _miss(self, missing: _MissingError, where: str, code: Code = Code.E401) -> None:
        if missing.final:
            self._problem(code, where, str(missing))
            return
        self._lacks.add(missing.reference)
        if not self._patient:
            self._problems.append(problem(code, where, str(missing)))

    def _problem(self, code: Code, where: str, message: str) -> None:
        self._is_hopeless = True
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
