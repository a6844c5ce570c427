"""Redis: every key, where the server is, bells, answers, events, heartbeats.

Nothing here is the truth. Jobs are files; Redis holds bells that say "look", answers for those who
wait, and signs of life. `FLUSHALL` costs latency, never a job; a server that is down or hung costs
a producer at most a fifth of a second, and never an exception from `Broker.ring`.
"""

from bus.broker.endpoint import (
    PRODUCER_TIMEOUT_S,
    WORKER_TIMEOUT_S,
    Address,
    Endpoint,
    address,
    connect,
    default_prefix,
    endpoint,
    open_redis,
    write_endpoint,
)
from bus.broker.keys import (
    BAD_MAX,
    DOORBELL_TTL_S,
    INGEST,
    NOTIFY_MAX_BYTES,
    PLAIN_NOTIFY,
    WRITER,
    Keys,
)
from bus.broker.link import (
    HEARTBEAT_S,
    PAUSE_AFTER_FAILURE_S,
    SILENT_AFTER_S,
    Answered,
    Broker,
    Heartbeat,
)
from bus.broker.notifications import Notifications

__all__ = [
    "BAD_MAX",
    "DOORBELL_TTL_S",
    "HEARTBEAT_S",
    "INGEST",
    "NOTIFY_MAX_BYTES",
    "PAUSE_AFTER_FAILURE_S",
    "PLAIN_NOTIFY",
    "PRODUCER_TIMEOUT_S",
    "SILENT_AFTER_S",
    "WORKER_TIMEOUT_S",
    "WRITER",
    "Address",
    "Answered",
    "Broker",
    "Endpoint",
    "Heartbeat",
    "Keys",
    "Notifications",
    "address",
    "connect",
    "default_prefix",
    "endpoint",
    "open_redis",
    "write_endpoint",
]
