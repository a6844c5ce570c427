"""Every Redis key of the bus, a sentence each, and the limits that go with them."""

from __future__ import annotations

#: Celery's queues; kombu keeps each in a list of this name, behind the prefix.
INGEST = "ingest"
WRITER = "writer"

NOTIFY_MAX_BYTES = 4096
BAD_MAX = 1000
DOORBELL_TTL_S = 10
#: Receipts kept at one time, and their size: a server of 256 MB is never filled by answers.
RECEIPTS_MAX = 50_000
RECEIPT_MAX_BYTES = 4096


class Keys:
    """Every key of the bus in Redis. Kombu's own (queues, unacked …) carry the same prefix."""

    def __init__(self, prefix: str = "") -> None:
        #: What stands before every key: empty on the bundled server, the lake's on a shared one.
        self.prefix = prefix
        #: List. Producers LPUSH ``{"job_id": "…"}`` or a bare id; the pump takes from the right.
        self.notify = f"{prefix}bus:notify"
        #: List. Notifications the pump is working on; put back when a pump starts.
        self.processing = f"{prefix}bus:notify:processing"
        #: List, newest first, at most BAD_MAX. Notifications nobody understood, with the reason.
        self.bad = f"{prefix}bus:notify:bad"
        #: List, newest first, at most BAD_MAX. Entries of Celery's queues that no worker could use.
        self.dead = f"{prefix}bus:dead"
        #: String, SET NX EX. There is a bell for the writer that it has not answered yet.
        self.doorbell = f"{prefix}bus:doorbell"
        #: String, SET NX EX. A look at the exports is due and scheduled.
        self.export_bell = f"{prefix}bus:exports:due"
        #: Stream, MAXLEN ~ events_max. What happened: one entry a job, for whoever listens.
        self.events = f"{prefix}bus:events"
        #: List, at most RECEIPTS_MAX. Jobs whose receipts are kept; older ones go before their time.
        self.receipts = f"{prefix}bus:receipts"
        #: Hash process -> JSON. When each process last showed a sign of life.
        self.heartbeats = f"{prefix}bus:heartbeats"
        #: Hash name -> number. What the pump took (notify_moved) and refused (notify_bad).
        self.counters = f"{prefix}bus:counters"
        #: List. Celery's queue of `submit_artifact` and `verify_sample`.
        self.ingest = f"{prefix}{INGEST}"
        #: List. Celery's queue of `commit_ready`, `refresh_exports` and `publish_export`.
        self.writer = f"{prefix}{WRITER}"
        #: Hash. Celery's messages that were delivered and not yet acknowledged.
        self.unacked = f"{prefix}unacked"

    def receipt(self, job_id: str) -> str:
        """List of one entry, EXPIRE receipt_ttl_s: the answer; waiters BLMOVE it onto itself."""
        return f"{self.prefix}bus:receipt:{job_id}"

    def later(self, job_id: str) -> str:
        """String, SET NX PX: a look at this unfinished job is scheduled already."""
        return f"{self.prefix}bus:later:{job_id}"


#: The plain list, which producers of any language know, on a server that lakes share.
PLAIN_NOTIFY = Keys().notify
