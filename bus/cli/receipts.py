"""What a command says of a job that it handed in: where it is, or its receipt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bus.cli.output import Block, Facts, Line, Part, Reply, Table, say

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bus.client import Bus, Job
    from bus.model import Receipt
    from bus.settings import Settings

NOBODY = "No bus answers on this lake: the job waits in the inbox, safe, until one runs (bus up)."
NO_WORKER = "Nobody validates on this lake right now: see bus status. The job is safe."


def bus_that_listens(settings: Settings) -> tuple[Bus, list[bool]]:
    """A bus, and for each job that it hands in whether the bell was heard."""
    from bus.client import Bus

    heard: list[bool] = []
    bus = Bus(settings, ring=lambda job_id: heard.append(bus.broker.ring(job_id)))
    return bus, heard


def is_looked_at(bus: Bus, *, rung: bool) -> bool:
    """Whether somebody works on what was handed in; says so where not."""
    from bus.health import alive

    if not rung:
        say(NOBODY)
        return False
    if not alive("worker", bus.lake, bus.settings):
        say(NO_WORKER)
        return False
    return True


def answer(bus: Bus, job: Job, *, rung: bool, wait_s: float | None) -> Reply:
    """What to say of a job that lies in the inbox: its id, or with `wait_s` its receipt."""
    is_looked_at(bus, rung=rung)
    return handed_in(job, rung=rung) if wait_s is None else receipt(job.wait(wait_s))


def handed_in(job: Job, *, rung: bool) -> Reply:
    """Where a job is that nobody waits for."""
    facts = {"job_id": job.job_id, "submission_id": job.submission_id, "rung": rung}
    return Reply(facts | {"state": str(job.status)}, lambda: [Line(job.job_id)])


def receipt(found: Receipt) -> Reply:
    """A receipt, with its artifacts and warnings."""

    def text() -> Iterable[Part]:
        facts = {"seq": found.seq, "committed": found.committed_at_utc}
        yield Facts(f"{found.job_id}: {found.status}", facts)
        if found.artifacts:
            yield Table(
                ("name", "artifact_id", "rows", "stored", "path"),
                [
                    (
                        a.name,
                        a.artifact_id,
                        a.rows,
                        f"deduped ({a.mode})" if a.deduped else "new",
                        a.path,
                    )
                    for a in found.artifacts
                ],
            )
        warnings = [*found.warnings, *(w for a in found.artifacts for w in a.warnings)]
        if warnings:
            yield Block("warnings", warnings)

    return Reply(found.model_dump(mode="json"), text)
