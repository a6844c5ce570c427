"""An ingest worker with a fault of its own: ``FAULT=… celery -A tests.faults.worker worker …``.

`impatient`: takes a message for lost after one second, whoever works on it. `dies`: is killed with
a message popped and not yet noted as unacknowledged, which kombu can never make up for.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from celery import signals

from bus.app import app
from bus.broker import guard

__all__ = ["app"]

_IMPATIENT = {"visibility_timeout": 1, "unacked_restore_interval": 0.2}


@signals.celeryd_init.connect
def _begin(conf: Any, **_: Any) -> None:
    if os.environ["FAULT"] == "impatient":
        conf.broker_transport_options = dict(conf.broker_transport_options) | _IMPATIENT
    else:
        guard.QoS.append = _die


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
