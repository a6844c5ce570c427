"""What holds while jobs are decided: the manifest, and on top of it what was decided since.

Three layers: the manifest, the accepted jobs of the batch, and the job in hand. Each shows the one
below it until something is set in it, so a job that is refused takes nothing along but its layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from bus.graph import levels, trace

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from bus.manifest import Manifest

_K = TypeVar("_K")
_V = TypeVar("_V")
Pair = tuple[str, str]
Version = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Known:
    """An artifact that exists: the bytes it stands on; why it is tombstoned.

    `damaged`: its bytes are damaged, or were given up.
    """

    file_hash: str
    tombstoned: str | None = None
    damaged: bool = False

    @property
    def withdrawn(self) -> bool:
        """Whether a submission of the same rows revives it."""
        return self.damaged or self.tombstoned is not None


class Layer(dict[_K, _V], Generic[_K, _V]):
    """What was set in this layer; for every other key what the one below says."""

    def __init__(self, below: dict[_K, _V]) -> None:
        super().__init__()
        self._below = below

    def __missing__(self, key: _K) -> _V:
        return self._below[key]


class _Stored(dict[_K, _V], Generic[_K, _V]):
    """The lowest layer: what the manifest says, asked once for each key. `load` knows every key."""

    def __init__(self, load: Callable[[Collection[_K]], dict[_K, _V]]) -> None:
        super().__init__()
        self._load = load

    def want(self, keys: Iterable[_K]) -> None:
        """Ask for these in one query."""
        if missing := {key for key in keys if key not in self}:
            self.update(self._load(missing))

    def __missing__(self, key: _K) -> _V:
        self.want([key])
        return super().__getitem__(key)


class _Manifest:
    """Loads the lowest layer. `damaged`: objects that jobs of the batch have told of."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.damaged: set[str] = set()
        self.artifacts = _Stored(self._artifacts)
        self.tags = _Stored(self._tags)
        self.superseders = _Stored(lambda ids: self._sets("superseders", ids))
        self.pins = _Stored(lambda pins: self._sets("pinned", pins))
        self.aliases = _Stored(self._aliases)
        self.contracts = _Stored(self._contracts)

    def _artifacts(self, ids: Collection[str]) -> dict[str, Known | None]:
        found: dict[str, Known | None] = dict.fromkeys(ids)
        rows = self._manifest.among("known_artifacts", ids)
        for artifact_id, file_hash, tombstoned, damaged in rows:
            is_damaged = bool(damaged) or file_hash in self.damaged
            found[artifact_id] = Known(file_hash, tombstoned, is_damaged)
        return found

    def _tags(self, ids: Collection[str]) -> dict[str, frozenset[Pair]]:
        rows = self._manifest.among("tags", ids)
        return _gathered(ids, ((artifact_id, (key, value)) for artifact_id, key, value in rows))

    def _sets(self, query: str, keys: Collection[str]) -> dict[str, frozenset[str]]:
        return _gathered(keys, self._manifest.among(query, keys))

    def _aliases(self, names: Collection[Pair]) -> dict[Pair, str | None]:
        found = {name: self._manifest.named("aliased", name) for name in names}
        return {name: rows[0][0] if rows else None for name, rows in found.items()}

    def _contracts(self, kinds: Collection[Version]) -> dict[Version, str | None]:
        found = {kind: self._manifest.named("known_contracts", kind) for kind in kinds}
        return {kind: rows[0][0] if rows else None for kind, rows in found.items()}


def _gathered(keys: Collection[str], rows: Iterable[tuple[str, _V]]) -> dict[str, frozenset[_V]]:
    """The second column of rows by the first; empty sets for keys without rows."""
    found: dict[str, set[_V]] = {key: set() for key in keys}
    for key, value in rows:
        found[key].add(value)
    return {key: frozenset(values) for key, values in found.items()}


@dataclass(frozen=True, slots=True)
class Present:
    """One layer: mappings to read by [] and to set, in which every key has a value.

    `artifacts`: what is known of an artifact_id, or None; `tags`: the (key, value) pairs of an
    artifact; `superseders`: who supersedes it; `pins`: the members of a pin; `aliases`: what
    (kind, alias) means, or None; `contracts`: the fingerprint of the contract that tables of (kind,
    schema_version) are held to, or None.
    """

    artifacts: Layer[str, Known | None]
    tags: Layer[str, frozenset[Pair]]
    superseders: Layer[str, frozenset[str]]
    pins: Layer[str, frozenset[str]]
    aliases: Layer[Pair, str | None]
    contracts: Layer[Version, str | None]
    _stored: _Manifest

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """The layer of a batch."""
        stored = _Manifest(manifest)
        return cls(
            Layer(stored.artifacts),
            Layer(stored.tags),
            Layer(stored.superseders),
            Layer(stored.pins),
            Layer(stored.aliases),
            Layer(stored.contracts),
            stored,
        )

    def layer(self) -> Present:
        """The layer of a job, on top of this one."""
        return Present(
            Layer(self.artifacts),
            Layer(self.tags),
            Layer(self.superseders),
            Layer(self.pins),
            Layer(self.aliases),
            Layer(self.contracts),
            self._stored,
        )

    def take(self, above: Present) -> None:
        """What was set in the layer above holds here from now on."""
        self.artifacts.update(above.artifacts)
        self.tags.update(above.tags)
        self.superseders.update(above.superseders)
        self.pins.update(above.pins)
        self.aliases.update(above.aliases)
        self.contracts.update(above.contracts)

    def want(self, artifacts: Iterable[str], tags: Iterable[str] = ()) -> None:
        """Look these up in the manifest at once, instead of one by one when they are asked for."""
        self._stored.artifacts.want(artifacts)
        self._stored.tags.want(tags)

    def mark_damaged(self, file_hash: str) -> None:
        """Everything on this object is damaged from now on."""
        self._stored.damaged.add(file_hash)
        for layer in (self.artifacts, self._stored.artifacts):
            for artifact_id, known in layer.items():
                if known is not None and known.file_hash == file_hash:
                    layer[artifact_id] = replace(known, damaged=True)

    def superseded_by(self, start: str, end: str) -> list[str]:
        """The shortest way from `start` to an `end` that supersedes it, over those between.

        Both are on it; empty when there is none. Looks upwards, because what is newest (which most
        often supersedes something) is superseded by nobody.
        """

        def step(nodes: list[str]) -> Iterator[tuple[str, str]]:
            self._stored.superseders.want(nodes)
            return ((at, above) for at in nodes for above in sorted(self.superseders[at]))

        came_from: dict[str, str | None] = {}
        for level in levels([start], step, came_from):
            if end in level:
                return trace(came_from, end)
        return []
