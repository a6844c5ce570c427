"""A status in Prometheus' text format, for a textfile collector or a scrape through a small server.

Names follow its conventions: base units, `_total` for what only grows.
Source: prometheus.io/docs/instrumenting/exposition_formats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bus.health.facts import Status

#: (labels, value)
_Sample = tuple[dict[str, str], float | None]


def prometheus(found: Status) -> str:
    """Every figure of a status. What is unknown is left out."""
    lines: list[str] = []
    for name, kind, text, samples in _families(found):
        known = [(labels, value) for labels, value in samples if value is not None]
        if known:
            lines += [f"# HELP bus_{name} {text}", f"# TYPE bus_{name} {kind}"]
            lines += [f"bus_{name}{_labels(labels)} {value:g}" for labels, value in known]
    return "\n".join(lines) + "\n"


def _families(found: Status) -> Iterator[tuple[str, str, str, list[_Sample]]]:
    """(name, type, help, samples)."""
    queues, catalog, disk = found.queues, found.catalog, found.disk
    depths = {
        "ingest": queues.ingest,
        "writer": queues.writer,
        "unacked": queues.unacked,
        "notify": queues.notify,
        "notify_bad": queues.notify_bad,
        "dead": queues.dead,
    }
    yield "up", "gauge", "1 when nothing needs a hand.", [({}, float(found.ok))]
    yield (
        *("jobs", "gauge", "Jobs by state."),
        [({"state": state}, float(b.count)) for state, b in found.jobs.items()],
    )
    yield (
        *("oldest_job_age_seconds", "gauge", "Age of the oldest job by state."),
        [({"state": state}, b.oldest_age_s) for state, b in found.jobs.items()],
    )
    yield (
        "queue_depth",
        "gauge",
        "Entries that wait in Redis.",
        [({"queue": name}, depth) for name, depth in depths.items()],
    )
    yield "redis_up", "gauge", "1 when Redis answers.", [({}, float(queues.answers))]
    yield (
        "events_total",
        "counter",
        "What the bus counted since its Redis began.",
        [({"event": name}, float(count)) for name, count in sorted(queues.counters.items())],
    )
    yield (
        "process_up",
        "gauge",
        "1 for a process that shows life.",
        [
            ({"process": process.name, "role": process.role}, float(process.alive))
            for process in found.processes
        ],
    )
    alive = float(found.writer.state == "alive")
    yield "writer_up", "gauge", "1 when the writer shows life.", [({}, alive)]
    yield "writer_lag_seconds", "gauge", "Age of the oldest judged job.", [({}, found.writer.lag_s)]
    yield (
        *("last_commit_age_seconds", "gauge", "Time since the newest commit."),
        [({}, found.writer.last_commit_age_s)],
    )
    yield (
        "commit_seq",
        "gauge",
        "The newest commit that each view knows.",
        [
            ({"view": "manifest"}, catalog.manifest_seq),
            ({"view": "catalog"}, catalog.seq),
        ],
    )
    yield (
        *("damaged_artifacts", "gauge", "Artifacts whose bytes are gone or changed; 20 at most."),
        [({}, float(len(catalog.damaged)))],
    )
    yield (
        "export_ok",
        "gauge",
        "1 for an export that is up to date.",
        [({"export": export.name}, float(export.state == "ok")) for export in found.exports],
    )
    yield "disk_free_bytes", "gauge", "Room on the lake's file system.", [({}, disk.free_bytes)]
    yield "disk_size_bytes", "gauge", "Size of the lake's file system.", [({}, disk.total_bytes)]


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
