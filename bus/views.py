"""The file views: artifact links, sidecars, run trees. Each can be deleted and made again.

`artifacts/<kind>/v<N>/` must be right before a catalog snapshot is published, because `canon.*`
reads it. Sidecars and run trees follow in the background. Making what exists already costs one
failed link, so every step may be repeated after a crash. An object that is missing is passed over
and logged, unless it was purged: the rest of the lake must stay readable, and `bus verify` names
what is lost.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from pydantic_core import to_json

from bus import disk
from bus.hashing import file_hash
from bus.lake import DATA, META, SCHEMA
from bus.model import Outcome, Supersede, Tombstone

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bus.lake import Lake
    from bus.manifest import Manifest
    from bus.model import ArtifactRecord, CommitRecord, JobRecord

log = structlog.get_logger("bus.views")


def link_artifacts(lake: Lake, record: CommitRecord) -> None:
    """Make `artifacts/` show what this commit added."""
    for job in record.jobs:
        if job.outcome is not Outcome.COMMITTED:
            continue
        for artifact in job.artifacts:
            if artifact.decision != "deduped" and artifact.duckdb_readable:
                _link_artifact(lake, artifact)


def unlink_inactive(lake: Lake, record: CommitRecord, manifest: Manifest) -> None:
    """Take superseded and tombstoned artifacts of this commit out of `artifacts/`."""
    for job in record.jobs:
        gone = [old for artifact in job.artifacts for old in artifact.supersedes]
        gone += [a.artifact_id for a in job.artifacts if a.decision == "revived"]  # yet superseded
        gone += [m.target for m in job.mutations if isinstance(m, Supersede | Tombstone)]
        for artifact_id in gone:
            for kind, version, status in manifest.rows(
                "SELECT artifact_type, schema_version, status FROM artifacts WHERE artifact_id = ?",
                (artifact_id,),
            ):
                if status != "active":
                    disk.remove(lake.artifact_path(kind, version, artifact_id))


def _link_artifact(lake: Lake, artifact: ArtifactRecord) -> None:
    place = (artifact.kind, artifact.schema_version, artifact.artifact_id)
    directory, name = lake.artifact_place(*place)
    made = _link(lake.object_place(artifact.sha256), directory, name)
    if made is False and artifact.decision == "revived":  # it may still show the bytes from before
        replace_link(lake.object_path(artifact.sha256), lake.artifact_path(*place))


def _link(source: str, directory: str, name: str) -> bool | None:
    """Make `directory/name` show an object: False when it is there, None when the object is not."""
    target = f"{directory}/{name}"
    with suppress(FileNotFoundError):
        return disk.link_or_copy(source, target)
    if not os.path.exists(source):  # noqa: PTH110 - texts: a rebuild comes by for every artifact
        log.error("object_missing", path=source)
        return None
    os.makedirs(directory, exist_ok=True)  # noqa: PTH103 - as above
    return disk.link_or_copy(source, target)


def places(lake: Lake, manifest: Manifest, file_hash_text: str) -> Iterator[Path]:
    """Every link that shows an object to readers: in artifacts/ and in run trees."""
    for where, first, second, third in manifest.named("places_of_object", (file_hash_text,)):
        if where == "artifact":
            yield lake.artifact_path(first, second, third)
        else:
            yield lake.run_data_path(first, second)


def replace_link(source: Path, target: Path) -> None:
    """Let `target`, which may show other bytes or nothing, show `source`."""
    temporary = target.with_name(f".{target.name}.new")
    target.parent.mkdir(parents=True, exist_ok=True)
    disk.remove(temporary)
    disk.link_or_copy(source, temporary)
    disk.replace(temporary, target)


def build_trees(
    lake: Lake, record: CommitRecord, manifest: Manifest | None = None
) -> Iterator[None]:
    """Sidecars and run trees of one commit; yields after each file so that a caller may pause.

    What the manifest knows as purged by now is not shown any more.
    """
    for place, data in documents(lake, record):
        _write_document(place, data)
        yield
    delivered = _shown(_delivered(record))
    hashes = {artifact.file_hash for _, artifact in delivered}
    purged = {row[0] for row in manifest.among("still_purged", hashes)} if manifest else set()
    for job, artifact in delivered:
        if artifact.file_hash not in purged:
            _link_into_run(lake, job, artifact)
        yield


def documents(lake: Lake, record: CommitRecord) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of every document of sidecars and run trees as of one commit.

    A later commit may say otherwise of the same path.
    """
    jobs = [job for job in record.jobs if job.outcome is Outcome.COMMITTED]
    for job in {job.run_id: job for job in jobs}.values():
        yield f"{lake.run_tree(str(job.run_id))}/{META}", _run_meta(job)
    delivered = _delivered(record)
    for job, artifact in _new(delivered):
        place = lake.sidecar_place(artifact.artifact_id)
        yield place, _sidecar(lake, record, job, artifact)
    for job, artifact in _new(_shown(delivered)):
        yield f"{lake.run_place(str(job.run_id), artifact.name)}/{SCHEMA}", _schema(artifact)


_Delivered = list[tuple["JobRecord", "ArtifactRecord"]]


def _delivered(record: CommitRecord) -> _Delivered:
    jobs = (job for job in record.jobs if job.outcome is Outcome.COMMITTED)
    return [(job, artifact) for job in jobs for artifact in job.artifacts]


def _shown(delivered: _Delivered) -> _Delivered:
    """Where jobs of the commit give a run the same name, only the newest is made: it is what shows."""
    return list(
        {(job.run_id, artifact.name): (job, artifact) for job, artifact in delivered}.values()
    )


def _new(delivered: _Delivered) -> _Delivered:
    return [(job, artifact) for job, artifact in delivered if artifact.decision != "deduped"]


def _write_document(place: str, data: bytes) -> None:
    directory, name = os.path.split(place)
    # A run's own is written again as the run goes on, while people read it.
    write = (
        partial(disk.replace_view, Path(place))
        if name == META
        else partial(disk.write_plain, place)
    )
    try:
        write(data)
    except FileNotFoundError:
        os.makedirs(directory, exist_ok=True)  # noqa: PTH103 - texts: there may be a million
        write(data)


def _run_meta(job: JobRecord) -> bytes:
    facts = {
        "run_id": job.run_id,
        "producer": job.producer,
        "created_at_utc": job.created_at_utc,
        "provenance": job.provenance,
        "meta": job.meta,
    }
    return to_json(facts)


def _link_into_run(lake: Lake, job: JobRecord, artifact: ArtifactRecord) -> None:
    run_id, name = str(job.run_id), artifact.name
    directory = lake.run_place(run_id, name)
    made = _link(lake.object_place(artifact.sha256), directory, DATA)
    if made is None:
        return
    if not made:
        data, source = lake.run_data_path(run_id, name), lake.object_path(artifact.sha256)
        if not data.samefile(source):
            replace_link(source, data)  # the run delivered this name again: the newest is shown


def _schema(artifact: ArtifactRecord) -> bytes:
    facts = {
        "kind": artifact.kind,
        "schema_version": artifact.schema_version,
        "schema_hint": artifact.schema_hint,
    }
    return _joined(facts, columns=artifact.columns)


def _sidecar(lake: Lake, record: CommitRecord, job: JobRecord, artifact: ArtifactRecord) -> bytes:
    facts = {
        "artifact_id": artifact.artifact_id,
        "kind": artifact.kind,
        "schema_version": artifact.schema_version,
        "logical_key": artifact.logical_key,
        "provenance": {
            "run_id": job.run_id,
            "job_id": job.job_id,
            "producer": job.producer,
            "created_at_utc": job.created_at_utc,
            "writer": job.provenance,
            "meta": job.meta,
            "seq": record.seq,
            "committed_at_utc": record.committed_at_utc,
        },
        "lineage": {"inputs": artifact.inputs, "supersedes": artifact.supersedes},
        "tags": artifact.tags,
        "paths": {"parquet": lake.public(lake.object_place(artifact.sha256))},
    }
    identity = {
        "file_hash": artifact.file_hash,
        "content_hash": artifact.content_hash,
        "row_count": artifact.rows,
        "size_bytes": artifact.size_bytes,
        "min_ts": artifact.min_ts,
        "max_ts": artifact.max_ts,
    }
    whole = _joined(identity, columns=artifact.columns).decode()
    return _joined(facts, identity=whole)


def _joined(facts: dict[str, Any], **texts: str) -> bytes:
    """An object as JSON, with members whose values are JSON texts already."""
    members = "".join(f',"{name}":{text}' for name, text in texts.items())
    return to_json(facts)[:-1] + members.encode() + b"}"


def match_artifacts(lake: Lake, manifest: Manifest, *, whole: bool = False) -> tuple[int, int]:
    """Make `artifacts/` show the artifacts in good standing and no others: (made, removed).

    Lists the whole tree and looks at every artifact: for a rebuild, and for the first start after a
    power cut, which may take names away that were never synced. `whole`: a link that shows anything
    but its object counts as missing. Names of the catalog's own (those that do not look like an
    artifact_id) stay.
    """
    strays = listing(lake)
    none: set[str] = set()
    made = 0
    for rows in manifest.chunks(
        "SELECT artifact_type, schema_version, artifact_id, file_hash FROM linked"
    ):
        for kind, version, artifact_id, file_hash_text in rows:
            directory, name = lake.artifact_place(kind, version, artifact_id)
            names = strays.get(directory, none)
            is_there = name in names
            names.discard(name)
            if whole or not is_there:
                source = lake.object_place(file_hash_text.removeprefix("sha256:"))
                if is_there:
                    made += _mended(source, f"{directory}/{name}")
                else:
                    made += bool(_link(source, directory, name))
    for kind, version, artifact_id, file_hash_text in manifest.named("linked_anew", ()):
        source = lake.object_place(file_hash_text.removeprefix("sha256:"))
        made += _mended(source, "/".join(lake.artifact_place(kind, version, artifact_id)))
    removed = [
        f"{directory}/{name}"
        for directory, names in strays.items()
        for name in names
        if name.count("-") == 4  # noqa: PLR2004 - a UUID's dashes
    ]
    for place in removed:
        disk.remove(place)
    if made or removed:
        log.info("links_matched", made=made, removed=len(removed))
    return made, len(removed)


def listing(lake: Lake) -> dict[str, set[str]]:
    """The directories of `artifacts/`, and the names in each."""
    return {str(directory): set(os.listdir(directory)) for directory in lake.kind_dirs()}


def _mended(source: str, target: str) -> bool:
    """Let `target` show the object, if it shows anything else; whether it did."""
    with suppress(FileNotFoundError):  # an object that is missing was passed over
        if not shows(source, target):
            replace_link(Path(source), Path(target))
            return True
    return False


def shows(source: str, target: str, *, whole: bool = True) -> bool:
    """Whether a view's file is the object, or a copy of it; `whole`: with the same bytes.

    True also where the object is missing: then nothing better is to be had. Raises
    FileNotFoundError when only the view's file is.
    """
    try:
        wanted = os.stat(source)  # noqa: PTH116 - texts, as there may be a million
    except FileNotFoundError:
        return True
    found = os.stat(target)  # noqa: PTH116 - likewise
    if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
        return True
    if found.st_nlink > 1 or found.st_size != wanted.st_size:
        return False  # links run out before copies are made, and a copy has one name
    return not whole or file_hash(source) == file_hash(target)


def take(work: Iterator[None], steps: int) -> bool:
    """Advance `work` by up to `steps`; True while there may be more."""
    return sum(1 for _ in islice(work, steps)) == steps
