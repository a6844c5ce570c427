"""Parquet files as one job: what `bus submit` and scripts around it do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bus.client import Bus, Job


@dataclass(frozen=True, slots=True)
class ParquetFile:
    """One file of a job: its artifact's name, and what is known of it (None: nothing)."""

    path: Path
    name: str
    logical_key: str | None = None
    rows: int | None = None


def names_for(paths: Sequence[Path], kind: str) -> list[str]:
    """Artifact names where none were given: the kind for one file, else the files' stems.

    Stems that several files share get a number: ``trades``, ``trades-2``.
    """
    if len(paths) == 1:
        return [kind]
    seen: Counter[str] = Counter()
    names = []
    for path in paths:
        seen[path.stem] += 1
        number = seen[path.stem]
        names.append(path.stem if number == 1 else f"{path.stem}-{number}")
    return names


def submit_files(
    bus: Bus, files: Sequence[ParquetFile], *, shared: dict[str, Any], **job: Any
) -> Job:
    """Hand in `files` as one job; durable on return.

    `shared` are `bus.model.ArtifactEntry` fields that all of them have, `job` the arguments of
    `Bus.job`. Raises as `Bus.submit` does.
    """
    with bus.job(**job) as draft:
        for file in files:
            own: dict[str, Any] = {"logical_key": file.logical_key, "rows": file.rows}
            draft.add(file.path, name=file.name, **own, **shared)
    return draft.job
