"""What damage means to people: which artifacts are on it, and what was made from them.

An object, or a record of the journal, is a hash or a number to most people. What they know is the
kind, the run and the name under which it was delivered, and the logical key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bus.manifest import Manifest

#: Spelled out of each list at most; all are counted.
_LISTED = 20
_SAID = 3


@dataclass(frozen=True, slots=True)
class Artifact:
    """One artifact, as it was delivered last."""

    artifact_id: str
    kind: str
    logical_key: str
    run_id: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.logical_key} ({self.run_id}/{self.name}, {self.artifact_id})"


@dataclass(frozen=True, slots=True)
class Affected:
    """Artifacts that stand on something, and those that were made from them, near and far.

    Of each list the first few, and the number of all.
    """

    artifacts: tuple[Artifact, ...] = ()
    artifacts_total: int = 0
    downstream: tuple[Artifact, ...] = ()
    downstream_total: int = 0

    def __str__(self) -> str:
        if not self.artifacts_total:
            return "no artifact stands on it"
        said = f"on it: {_listed(self.artifacts, self.artifacts_total)}"
        if self.downstream_total:
            said += f"; made from that: {_listed(self.downstream, self.downstream_total)}"
        return said


def _listed(artifacts: Sequence[Artifact], total: int) -> str:
    more = total - len(artifacts[:_SAID])
    named = ", ".join(map(str, artifacts[:_SAID]))
    return f"{named} and {more:,} more" if more else named


def on_object(facts: Manifest, file_hash_text: str) -> Affected:
    """What stands on an object."""
    return _affected(facts, "a.file_hash = ?1 AND a.ended_seq IS NULL", file_hash_text)


def in_record(facts: Manifest, seq: int) -> Affected:
    """What was committed by one record of the journal."""
    return _affected(facts, "a.added_seq = ?1", seq)


def known(facts: Manifest) -> Affected:
    """What stands on objects that are marked as damaged."""
    return _affected(
        facts,
        "a.ended_seq IS NULL AND a.file_hash IN "
        "(SELECT file_hash FROM damage_facts WHERE ended_seq IS NULL)",
    )


def _affected(facts: Manifest, condition: str, *values: Any) -> Affected:
    ids = f"SELECT artifact_id AS id FROM artifact_facts a WHERE {condition}"  # noqa: S608 - our own conditions
    below = _DOWNSTREAM.format(condition=condition)
    return Affected(*_few(facts, ids, values), *_few(facts, below, values))


def _few(facts: Manifest, ids: str, values: Sequence[Any]) -> tuple[tuple[Artifact, ...], int]:
    ((total,),) = facts.rows(f"SELECT count(*) FROM ({ids})", values)  # noqa: S608 - likewise
    rows = facts.rows(_DELIVERED.format(ids=ids, limit=_LISTED), values) if total else []
    return tuple(Artifact(*row) for row in rows), total


_DOWNSTREAM = """
WITH RECURSIVE down(node) AS (
  SELECT e.node FROM artifact_facts a CROSS JOIN lineage_edges e ON e.input = a.node
  WHERE {condition}
  UNION SELECT e.node FROM down d CROSS JOIN lineage_edges e ON e.input = d.node)
SELECT artifact_id AS id FROM down CROSS JOIN nodes USING (node)
"""
_DELIVERED = """
SELECT u.artifact_id, u.kind, f.logical_key, u.run_id, u.name
FROM (SELECT DISTINCT id FROM ({ids}) LIMIT {limit}) i
JOIN artifact_facts f ON f.artifact_no = (
  SELECT max(artifact_no) FROM artifact_facts n WHERE n.artifact_id = i.id)
JOIN run_artifacts u ON u.use_no = (
  SELECT max(use_no) FROM run_artifacts n WHERE n.node = f.node)
ORDER BY u.use_no
"""
