"""Artifact Bus: an artifact store and ingest bus for quantitative research.

``bus.connect()`` gives the `Bus` of a lake; everything else here is what its methods take, return
and raise. Importing the package is cheap; the client comes with the first use of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bus.errors import (
    BusError,
    Code,
    Damaged,
    JobConflict,
    LakeBusy,
    NotFound,
    Problem,
    Refused,
    Rejected,
    Unavailable,
    WaitTimeout,
)

if TYPE_CHECKING:
    from bus.artifact import Artifact
    from bus.client import Bus, Job, connect
    from bus.model import JobState, Receipt
    from bus.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "Bus",
    "BusError",
    "Code",
    "Damaged",
    "Job",
    "JobConflict",
    "JobState",
    "LakeBusy",
    "NotFound",
    "Problem",
    "Receipt",
    "Refused",
    "Rejected",
    "Settings",
    "Unavailable",
    "WaitTimeout",
    "__version__",
    "connect",
]

_LATER = {
    "Artifact": "bus.artifact",
    "Bus": "bus.client",
    "Job": "bus.client",
    "JobState": "bus.model",
    "Receipt": "bus.model",
    "Settings": "bus.settings",
    "connect": "bus.client",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'bus' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER} - {"import_module", "Any"})
