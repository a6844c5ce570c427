"""Handing in tables: submit, wait, retry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from bus.cli.options import HERE, Everywhere, Many, Switch, lake_of_bus_root
from bus.cli.output import Reply, say
from bus.cli.receipts import NO_WORKER, answer, bus_that_listens, receipt
from bus.errors import Code, Refused
from bus.producers.files import ParquetFile, names_for, submit_files

if TYPE_CHECKING:
    from collections.abc import Sequence


def submit(
    *files: Path,
    kind: str,
    parquet: Annotated[tuple[Path, ...], Parameter(negative="", show_default=False)] = (),
    job_id: str | None = None,
    run_id: str | None = None,
    producer: str = "manual",
    artifact_id: Many = (),
    logical_key: Many = (),
    schema_hint: str | None = None,
    schema_version: int = 1,
    rows: Annotated[tuple[int, ...], Parameter(negative="", show_default=False)] = (),
    tag: Many = (),
    input: Many = (),  # noqa: A002 - the flag is --input
    no_inputs: Switch = False,
    supersedes: Many = (),
    meta_json: str | None = None,
    after: Many = (),
    wait: Switch = False,
    timeout: float = 600.0,
    bus_root: Path | None = None,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Submit Parquet files as one job.

    The files are copied into the lake, durably, before this returns; then the bus is told. A bus
    that is not running is no error: the job waits in the inbox. Prints the job_id, or with --wait
    the receipt; a rejected job is exit code 1 with every problem.

    For example:

        bus submit alerts.parquet --kind alerts_std --run-id run-42 --wait
        bus submit trades.parquet fills.parquet --kind fills --producer backtest
        bus submit --parquet a.parquet --kind trades --tag token=SOL --json
        bus submit a.parquet --kind trades --meta-json '{"git_sha": "1f3a9c0"}'

    Parameters
    ----------
    files
        Parquet files; each becomes one artifact of the job.
    kind
        What sort of table it is, such as alerts_std; `bus show --kind KIND` shows its contract.
    parquet
        A Parquet file, the same as giving it without a flag; repeatable.
    job_id
        Idempotency key: the same job again gets the same receipt. Default: made up.
    run_id
        The run it belongs to. Default: made up.
    producer
        Who made it: baseline, backtest, ingestion ...
    artifact_id
        The artifact's name in its run, one for each file. Default: the kind; of several files, the
        file's name without extension.
    logical_key
        What the artifact is about, one for each file. Default: run=RUN/name=NAME.
    schema_hint
        The contract the producer had in mind, such as canon.alerts_std.
    schema_version
        Version of the kind's contract.
    rows
        Number of rows, checked, one for each file.
    tag
        k=v; repeatable.
    input
        What it was made from: an id or its beginning, RUN/NAME, KIND:ALIAS, job:JOB/NAME, pin:NAME,
        name:SIBLING; repeatable.
    no_inputs
        It was made from nothing that is in the lake; derived kinds must say so.
    supersedes
        The artifact that this one replaces; repeatable, for one file.
    meta_json
        Free data about the job: a JSON object, or @FILE.
    after
        A job that must be committed before this one; repeatable.
    wait
        Wait for the answer.
    timeout
        Wait this many seconds at most; the job is safe all the same.
    bus_root
        The documents' name for LAKE/bus.
    """
    settings = lake_of_bus_root(bus_root, everywhere).settings()
    sources = _sources(files, parquet)
    names = _one_each("--artifact-id", artifact_id, sources) or names_for(sources, kind)
    keys = _one_each("--logical-key", logical_key, sources)
    counts = _one_each("--rows", rows, sources)
    if supersedes and len(sources) > 1:
        raise _usage("--supersedes", "it speaks of one file, and there are several")
    if input and no_inputs:
        raise _usage("--no-inputs", "--input was given as well")
    shared = {
        "schema_hint": schema_hint,
        "schema_version": schema_version,
        "tags": pairs_of(tag) or None,
        "inputs": [*input] if input or no_inputs else None,
        "supersedes": [*supersedes] or None,
    }
    meta = json_object("--meta-json", meta_json)

    bus, heard = bus_that_listens(settings)
    job = submit_files(
        bus,
        [
            ParquetFile(path, names[i], keys[i] if keys else None, counts[i] if counts else None)
            for i, path in enumerate(sources)
        ],
        shared=shared,
        kind=kind,
        producer=producer,
        run_id=run_id,
        job_id=job_id,
        meta=meta,
        after=[*after] or None,
        required=True,
    )
    return answer(bus, job, rung=heard == [True], wait_s=timeout if wait else None)


def wait(
    job: str,
    /,
    *,
    timeout: float = 600.0,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Wait for a job's answer and print its receipt.

    Exit code 1 with every problem when the job was rejected, or when no answer came in time (the
    job is safe and goes on).

    For example:

        bus wait 2026-01-08T05-12-33Z__baseline__alerts --timeout 60
        bus wait my-job --json

    Parameters
    ----------
    job
        The job_id.
    timeout
        Wait this many seconds at most; 0 only looks.
    """
    from bus.client import Bus
    from bus.health import alive

    _, settings = everywhere.open()
    bus = Bus(settings)
    found = bus.find_job(job)
    if timeout > 0 and found.answer() is None and not alive("worker", bus.lake, settings):
        say(NO_WORKER)
    return receipt(found.wait(timeout))


def retry(
    *jobs: str,
    wait: Switch = False,
    timeout: float = 600.0,
    everywhere: Everywhere = HERE,
) -> Reply:
    """Send rejected jobs back to be judged afresh.

    Correct the files or the manifest in the job's directory first (`bus rejected JOB` names it), or
    the contract in bus.toml. The job moves back into the inbox as a new submission of its id.

    For example:

        bus retry 2026-01-08T05-12-33Z__baseline__alerts --wait
        bus retry job-1 job-2

    Parameters
    ----------
    jobs
        Job ids, or names of directories in rejected/.
    wait
        Wait for the answers.
    timeout
        Wait this many seconds for each, at most.
    """
    from bus.client import Bus, Job
    from bus.retry import retry as retry_job

    if not jobs:
        raise _usage("JOB", "no job was named", "See `bus rejected` for what can be retried.")
    lake, settings = everywhere.open()
    bus = Bus(settings)
    sent = [retry_job(lake, job_id) for job_id in jobs]
    heard = [bus.broker.ring(job.job_id) for job in sent]
    replies = [
        answer(
            bus,
            Job(bus, job.job_id, job.submission_id),
            rung=all(heard),
            wait_s=timeout if wait else None,
        )
        for job in sent
    ]
    if len(replies) == 1:
        return replies[0]
    return Reply([r.data for r in replies], lambda: [part for r in replies for part in r.text()])


# ── the flags of submit ───────────────────────────────────────────────────────────────────────


def _usage(where: str, message: str, hint: str = "See: bus submit --help") -> Refused:
    return Refused(message, code=Code.E103, where=where, hint=hint)


def _sources(files: Sequence[Path], parquet: Sequence[Path]) -> list[Path]:
    found = [*files, *parquet]
    if not found:
        raise _usage("--parquet", "no Parquet file was named")
    return found


def _one_each(flag: str, values: Sequence[Any], sources: Sequence[Path]) -> list[Any]:
    if values and len(values) != len(sources):
        raise _usage(flag, f"given {len(values)} times for {len(sources)} files: one for each")
    return [*values]


def pairs_of(pairs: Sequence[str], where: str = "--tag") -> dict[str, list[str]]:
    """Repeated k=v words as tags. Raises `Refused` (E103)."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            hint = "Write KEY=VALUE, for example token=SOL."
            raise _usage(where, f"{pair!r} is not k=v", hint)
        found.setdefault(key, []).append(value)
    return found


def json_object(flag: str, text: str | None) -> dict[str, Any]:
    """A flag's JSON object, or that of @FILE; empty without one. Raises `Refused` (E103)."""
    if text is None:
        return {}
    if text.startswith("@"):
        text = Path(text[1:]).read_text(encoding="utf-8")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise _usage(flag, f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise _usage(flag, "not a JSON object")
    return found
