"""Finding artifacts in the manifest: by what they are, by who delivered them, and as of when."""

from __future__ import annotations

import json
import unicodedata
from contextlib import closing, contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self, get_args

from bus.artifact import Artifact, Status
from bus.errors import Code, Refused
from bus.manifest import Manifest, reading
from bus.model import artifact_id_of, iso
from bus.moments import moment, seq_of
from bus.statements import statement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from bus.lake import Lake
    from bus.moments import AsOf, Moment

#: So many artifacts of one kind are sorted by age; of a kind with more, the newest are soon met.
_RARE = 5_000
_NO_LIMIT = -1

#: What `artifacts_then` lists.
_COLUMNS = (
    *("artifact_id", "kind", "schema_version", "logical_key", "status", "file_hash"),
    *("content_hash", "rows", "size_bytes", "min_ts", "max_ts", "created_at", "seq", "tags"),
)

# Conditions on an artifact `a`. The + keeps SQLite from walking through a whole kind where another
# condition tells artifacts apart much better, or where the newest few of many are wanted.
_OF_KIND = "a.artifact_type = :kind"
_AMONG_KINDS = "+a.artifact_type = :kind"
_OF_ANY_KIND = "a.artifact_type IN ({kinds})"
_OF_KEY = "a.logical_key = :logical_key"
_OF_RAREST_TAG = """a.artifact_id IN (
  SELECT artifact_id FROM tag_facts WHERE k = :k AND v = :v
    AND added_seq <= :as_of AND ifnull(ended_seq > :as_of, 1))"""
_OF_EVERY_TAG = """NOT EXISTS (
  SELECT 1 FROM json_each(:tags) j WHERE NOT EXISTS (
    SELECT 1 FROM tag_marks t WHERE t.node = a.node
      AND t.k = json_extract(j.value, '$[0]') AND t.v = json_extract(j.value, '$[1]')
      AND t.added_seq <= :as_of AND ifnull(t.ended_seq > :as_of, 1)))"""
_OF_RUN = """a.artifact_id IN (
  SELECT artifact_id FROM run_artifacts WHERE run_id = :run_id
    AND (:producer IS NULL OR producer = :producer) AND seq <= :as_of)"""
_OF_PRODUCER = """EXISTS (
  SELECT 1 FROM run_artifacts u WHERE u.node = a.node
    AND u.producer = :producer AND u.seq <= :as_of)"""
_SINCE = "a.max_ts >= :since"
_UNTIL = "a.min_ts < :until"
_OF_FILE = "a.file_hash = :file_hash"
_OF_IDS = "a.artifact_id IN (SELECT value FROM json_each(:ids))"


#: What an artifact is that may be started from.
_HOLDING: tuple[Status, ...] = ("active", "superseded")


class Then:
    """A lake as it stood after commit `seq`; of the newest commit that is the present.

    All that is asked of one object fits together, whatever is committed meanwhile.
    """

    def __init__(self, manifest: Manifest, lake: Lake, seq: int) -> None:
        self.seq = seq
        self._manifest = manifest
        self._lake = lake

    @classmethod
    @contextmanager
    def of(cls, lake: Lake, as_of: AsOf = None) -> Iterator[Self]:
        """Open the manifest for some questions.

        Raises `NotFound` (E511) and `Refused` (E103) as `seq_of` does, `Unavailable` (E508, E512)
        when the manifest cannot be read. Before the first commit nothing is there.
        """
        with reading(lake) as manifest:
            if manifest is not None:
                yield cls(manifest, lake, seq_of(manifest, as_of))
                return
        with closing(Manifest.empty(lake)) as empty:
            yield cls(empty, lake, seq_of(empty, as_of))

    def named(self, name: str, **params: Any) -> list[tuple[Any, ...]]:
        """The rows of a named statement of manifest.sql that asks `:as_of`."""
        return self._manifest.named(name, params | {"as_of": self.seq})

    def find(  # noqa: PLR0913 - a filter each
        self,
        *,
        kind: str | None = None,
        logical_key: str | None = None,
        tags: Mapping[str, str | Sequence[str]] | None = None,
        run_id: str | None = None,
        producer: str | None = None,
        status: Status | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        limit: int | None = None,
    ) -> list[Artifact]:
        """Artifacts that fit every filter, the newest first: see `bus.reader.Reader.find`.

        Raises `Refused` (E103) for a status or a moment that is none.
        """
        _check(status)
        asked: dict[str, Any] = {
            "kind": kind,
            "logical_key": None if logical_key is None else _text(logical_key),
            "run_id": run_id,
            "producer": producer,
            "status": status,
            "since": None if since is None else iso(moment(since, "since")),
            "until": None if until is None else iso(moment(until, "until")),
            "limit": _NO_LIMIT if limit is None else limit,
        }
        where = [
            *self._of_tags(tags or {}, asked),
            *([_OF_RUN] if run_id is not None else [_OF_PRODUCER] if producer is not None else []),
        ]
        are_few = bool(tags) or run_id is not None
        where += self._of_kind_and_key(asked, are_few=are_few)
        where += [bound for bound in (_SINCE, _UNTIL) if asked[bound.rpartition(":")[2]]]
        return self._listed(where, asked)

    def by_id(self, ids: Iterable[str]) -> list[Artifact]:
        """Those of the ids' artifacts that were there, the newest first."""
        asked = {"ids": json.dumps(list(ids)), "status": None, "limit": _NO_LIMIT}
        return self._listed([_OF_IDS], asked)

    def latest(
        self, kind: str, producer: str | None = None, name: str | None = None
    ) -> Artifact | None:
        """The active artifact of a kind that was delivered last.

        Delivered, not made: a run that comes to the same table as an earlier one makes that the
        latest.
        """
        asked = {"kind": kind, "name": name, "producer": producer}
        given = [column for column in asked if asked[column] is not None]
        where = " AND ".join(f"u.{column} = :{column}" for column in given)
        sql = statement("latest").format(where=where, status=statement("status_then"))
        found = self._manifest.rows(sql, asked | {"as_of": self.seq})
        return self.by_id(found[0])[0] if found else None

    def holds(self, kind: str, schema_version: int, logical_key: str, content_hash: str) -> bool:
        """Whether the artifact of this identity was there, neither tombstoned nor damaged."""
        artifact_id = artifact_id_of(kind, schema_version, _text(logical_key), content_hash)
        return any(found.status in _HOLDING for found in self.by_id([artifact_id]))

    def holds_file(self, file_hash: str) -> bool:
        """Whether such an artifact stood on these bytes."""
        asked = {"file_hash": f"sha256:{file_hash.removeprefix('sha256:')}", "limit": 1}
        return any(self._listed([_OF_FILE], asked | {"status": status}) for status in _HOLDING)

    # ── conditions ────────────────────────────────────────────────────────────────────────────

    def _of_tags(self, tags: Mapping[str, str | Sequence[str]], asked: dict[str, Any]) -> list[str]:
        """That all tags are carried; artifacts are looked up by the rarest of them."""
        pairs = [
            (_text(key), _text(value))
            for key, values in tags.items()
            for value in ([values] if isinstance(values, str) else values)
        ]
        if not pairs:
            return []
        asked["tags"] = json.dumps(pairs)
        ((asked["k"], asked["v"]),) = self.named("rarest_tag", tags=asked["tags"], rare=_RARE)
        return [_OF_RAREST_TAG, _OF_EVERY_TAG]

    def _of_kind_and_key(self, asked: Mapping[str, Any], *, are_few: bool) -> list[str]:
        """By kind and key; `are_few`: other conditions leave only few artifacts."""
        key = [_OF_KEY] if asked["logical_key"] is not None else []
        if asked["kind"] is not None:
            by_kind = key or asked["limit"] == _NO_LIMIT or self._is_rare(asked["kind"])
            return [*key, _OF_KIND if by_kind and not are_few else _AMONG_KINDS]
        any_kind = [_OF_ANY_KIND.format(kinds=statement("kinds"))] if key and not are_few else []
        return key + any_kind

    def _is_rare(self, kind: str) -> bool:
        return bool(self.named("is_rare", kind=kind, rare=_RARE)[0][0])

    def _listed(self, where: Sequence[str], asked: Mapping[str, Any]) -> list[Artifact]:
        sql = statement("artifacts_then").format(
            where=" AND ".join(where) or "true", status=statement("status_then")
        )
        rows = self._manifest.rows(sql, {**asked, "as_of": self.seq})
        return [_artifact(self._lake, row) for row in rows]


def _check(status: str | None) -> None:
    if status not in {None, *get_args(Status)}:
        message = f"no status {status!r}; there are {', '.join(get_args(Status))}"
        raise Refused(message, code=Code.E103, where="status", hint="None takes all of them.")


def _text(value: str) -> str:
    """In the form in which texts of producers are kept."""
    return unicodedata.normalize("NFC", value)


def _artifact(lake: Lake, row: tuple[Any, ...]) -> Artifact:
    facts = dict(zip(_COLUMNS, row, strict=True))
    place = lake.object_place(facts["file_hash"].removeprefix("sha256:"))
    tags: dict[str, list[str]] = {}
    for key, value in sorted(json.loads(facts["tags"])):
        tags.setdefault(key, []).append(value)
    for name in ("min_ts", "max_ts", "created_at"):
        facts[name] = facts[name] and datetime.fromisoformat(facts[name])
    facts["tags"] = tags
    return Artifact(
        path=lake.public(place),
        sidecar=lake.public(lake.sidecar_place(facts["artifact_id"])),
        _place=place,
        **facts,
    )
