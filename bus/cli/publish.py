"""The commands of the documents' `artifacts_cli`: init, publish-csv."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bus.cli.options import HERE, Everywhere, Many, Switch
from bus.cli.output import Block, Facts, Line, Part, Reply
from bus.cli.submit import json_object, pairs_of
from bus.errors import Code, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable


def init(
    *,
    manifest_db: Path | None = None,
    manifest_sql: Path | None = None,  # noqa: ARG001 - the schema is ours; the flag is accepted
    everywhere: Everywhere = HERE,
) -> Reply:
    """Create the directories of a lake, where they are missing.

    Nothing else is needed: `bus up` and `bus submit` do the same. The manifest is made by the
    writer, with its own schema, at the first commit.

    For example:

        bus init --lake data
        bus init --manifest-db data/manifest/manifest.sqlite

    Parameters
    ----------
    manifest_db
        The documents' way to name a lake: LAKE/manifest/manifest.sqlite.
    manifest_sql
        Accepted, as the documents give it, and not read.
    """
    from bus.lake import Lake

    settings = _lake_of(manifest_db, None, everywhere).settings()
    lake = Lake(settings.lake, settings.public_lake)
    lake.create()
    return Reply({"lake": str(lake.root)}, lambda: [Line(str(lake.root))])


def publish_csv(
    *,
    csv: Path,
    artifact_type: str,
    logical_key: str,
    schema_version: int = 1,
    manifest_db: Path | None = None,
    manifest_sql: Path | None = None,  # noqa: ARG001 - the schema is ours; the flag is accepted
    artifacts_root: Path | None = None,
    writer_name: str = "manual",
    writer_version: str | None = None,
    git_commit: str | None = None,
    git_dirty: Switch = False,
    params_json: str | None = None,
    tag: Many = (),
    input_artifact_id: Many = (),
    filename_hint: str | None = None,
    run_id: str | None = None,
    timeout: float = 600.0,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Publish a CSV file as an artifact, and wait for the answer.

    Columns get the types of the kind's contract; a cell that does not fit is reported with its line
    and column, and nothing is published. Prints what the documents' command printed.

    For example:

        bus publish-csv --csv slice.csv --artifact-type ohlcv_slice --logical-key token=SOL/res=1m
        bus publish-csv --csv a.csv --artifact-type signals --logical-key k=1 --tag res=1s --json

    Parameters
    ----------
    csv
        The file, with a header line.
    artifact_type
        The kind, such as ohlcv_slice.
    logical_key
        What the table is about.
    schema_version
        Version of the kind's contract.
    manifest_db
        The documents' way to name a lake: LAKE/manifest/manifest.sqlite.
    manifest_sql
        Accepted, as the documents give it, and not read.
    artifacts_root
        LAKE/artifacts; must be of the same lake.
    writer_name
        The program that made it; the job's producer.
    writer_version
        Its version.
    git_commit
        The commit it was made from. Default: what Git says of the current directory.
    git_dirty
        There were changes that are not committed.
    params_json
        Free data about the job: a JSON object, or @FILE.
    tag
        k=v; repeatable.
    input_artifact_id
        What it was made from; repeatable.
    filename_hint
        The artifact's name in its run. Default: the kind.
    run_id
        The run it belongs to. Default: made up.
    timeout
        Wait this many seconds at most; the job is safe all the same.
    """
    from bus.client import Bus
    from bus.producers.csv_files import read_csv
    from bus.specs import Registry

    settings = _lake_of(manifest_db, artifacts_root, everywhere).settings()
    said = {"writer_name": writer_name, "writer_version": writer_version}
    code = {"git_commit": git_commit, "git_dirty": git_dirty} if git_commit else {}
    bus = Bus(settings)
    job = bus.submit(
        read_csv(csv, Registry.load(settings).find(artifact_type, schema_version)),
        kind=artifact_type,
        producer=writer_name,
        run_id=run_id,
        name=filename_hint,
        schema_version=schema_version,
        logical_key=logical_key,
        tags=pairs_of(tag) or None,
        inputs=[*input_artifact_id],
        meta={"params": json_object("--params-json", params_json)} if params_json else None,
        provenance=said | code,
        required=True,
    )
    (artifact,) = job.wait(timeout).artifacts
    name = "existingArtifactId" if artifact.deduped else "artifactId"
    data = {
        "deduped": artifact.deduped,
        "mode": artifact.mode,
        name: artifact.artifact_id,
        "job_id": job.job_id,
        "path": artifact.path,
        "rows": artifact.rows,
    }

    def text() -> Iterable[Part]:
        yield Facts(f"{artifact_type} {logical_key}", data)
        if artifact.warnings:
            yield Block("warnings", artifact.warnings)

    return Reply(data, text)


def _lake_of(
    manifest_db: Path | None, artifacts_root: Path | None, everywhere: Everywhere
) -> Everywhere:
    """The lake that the documents' flags name. Raises `Refused` when they name two."""
    from bus.producers.artifact_store import lake_of

    if manifest_db is None and artifacts_root is None:
        return everywhere
    if everywhere.lake is not None:
        message = "--lake and --manifest-db or --artifacts-root name the same thing: give one"
        raise Refused(message, code=Code.E103)
    if manifest_db is None:
        return Everywhere(Path(str(artifacts_root)).resolve().parent, everywhere.json)
    return Everywhere(lake_of(manifest_db, artifacts_root), everywhere.json)
