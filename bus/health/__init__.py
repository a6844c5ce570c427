"""How a bus fares: depths, ages, who lives, how far behind the writer and the views are.

Everything is read from files, locks and, when it answers, Redis; so `status` works with no bus
running, and shows what Flower cannot: that there is no writer at all.
"""

from bus.health.facts import (
    Backlog,
    CatalogHealth,
    Check,
    DiskHealth,
    ExportHealth,
    Finding,
    Process,
    Queues,
    Status,
    WriterHealth,
)
from bus.health.look import alive, check, exports, status
from bus.health.metrics import prometheus
from bus.health.raw import command, prefix

__all__ = [
    "Backlog",
    "CatalogHealth",
    "Check",
    "DiskHealth",
    "ExportHealth",
    "Finding",
    "Process",
    "Queues",
    "Status",
    "WriterHealth",
    "alive",
    "check",
    "command",
    "exports",
    "prefix",
    "prometheus",
    "status",
]
