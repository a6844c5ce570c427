"""The calls of the documents' `artifact_store`, for code that migrates: the same names and results.

Where that library opened the manifest and wrote to it, these submit a job and wait for its receipt:
the manifest is written by the writer alone.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bus.client import Bus
from bus.errors import Code, Refused
from bus.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bus.lake import Lake

_TIMEOUT_S = 60.0
#: Sidecars are written in the background, some moments after the receipt.
_SIDECAR_S = 2.0
_LOOK_S = 0.02


def lake_of(manifest_db: Path | str, artifacts_root: Path | str | None = None) -> Path:
    """The lake that ``<lake>/manifest/manifest.sqlite`` and ``<lake>/artifacts`` belong to.

    Raises `Refused` (E103) where the two are not of one lake.
    """
    root = Path(manifest_db).resolve().parent.parent
    if artifacts_root is not None and Path(artifacts_root).resolve().parent != root:
        raise Refused(
            f"{manifest_db} and {artifacts_root} are not of one lake",
            code=Code.E103,
            where="artifacts_root",
            hint="Give LAKE/manifest/manifest.sqlite and LAKE/artifacts, or neither.",
        )
    return root


def publish_dataframe(  # noqa: PLR0913, PLR0917 - the documents' parameters
    manifest_db: Path | str,
    artifacts_root: Path | str,
    artifact_type: str,
    schema_version: int,
    logical_key: str,
    df: Any,
    tags: Iterable[tuple[str, str]] = (),
    input_artifact_ids: Iterable[str] = (),
    writer_name: str = "manual",
    writer_version: str | None = None,
    git_commit: str | None = None,
    git_dirty: bool | None = None,  # noqa: FBT001 - as above
    params: dict[str, Any] | None = None,
    *,
    timeout_s: float = _TIMEOUT_S,
) -> dict[str, Any]:
    """Publish one table and wait for the receipt.

    `df`: anything that `Bus.submit` takes. Returns ``{"deduped": bool, "mode": "file_hash" |
    "content_hash" | None, "existingArtifactId" | "artifactId": str, "sidecar": dict | None}``.
    Raises `Rejected` with every problem, `WaitTimeout` (E506; the job is safe) and `Refused`.
    """
    bus = Bus(Settings.load(lake_of(manifest_db, artifacts_root)))
    grouped: dict[str, list[str]] = {}
    for key, value in tags:
        grouped.setdefault(key, []).append(value)
    provenance = {
        "writer_name": writer_name,
        "writer_version": writer_version,
        "git_commit": git_commit,
        "git_dirty": git_dirty,
    }
    job = bus.submit(
        df,
        kind=artifact_type,
        producer=writer_name,
        schema_version=schema_version,
        logical_key=logical_key,
        tags=grouped,
        inputs=list(input_artifact_ids),
        meta={"params": params} if params else None,
        provenance=provenance,
        required=True,
    )
    (artifact,) = job.wait(timeout_s).artifacts
    name = "existingArtifactId" if artifact.deduped else "artifactId"
    return {
        "deduped": artifact.deduped,
        "mode": artifact.mode,
        name: artifact.artifact_id,
        "sidecar": _sidecar(bus.lake, artifact.artifact_id),
    }


def _sidecar(lake: Lake, artifact_id: str) -> dict[str, Any] | None:
    """The sidecar's document, as soon as it is there; None where it takes longer than that."""
    deadline = time.monotonic() + _SIDECAR_S
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError, ValueError):
            found: dict[str, Any] = json.loads(lake.sidecar_path(artifact_id).read_bytes())
            return found
        time.sleep(_LOOK_S)
    return None
