"""Steps 3 to 6 of a job's life, on real directories: claim, judge, store, verdict.

`Intake.drain` takes jobs in groups, so that the syncs of a group are shared: all files first, then
each directory once, then all verdicts. A job is isolated from its neighbours: whatever happens to
one, the others go on. Every step may be repeated after a crash at any point.

While a job is looked at its claim is locked, and the kernel frees the lock when we die. What a
claim file holds is `bus.claims.Record`: how earlier attempts ended.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import ValidationError

from bus import disk
from bus.claims import Claim, claim_name, job_name
from bus.errors import Unavailable
from bus.lake import COMMIT, OUR_NAMES, VERDICT
from bus.model import JobState, Verdict
from bus.objects import ChangedError, Shelf, SyncError, synced
from bus.readiness import is_committed, wait_s
from bus.submission import read_submission
from bus.validation import (
    Judgement,
    NeedsChildError,
    NotYetError,
    judge,
    judge_in_child,
    rejection,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bus.lake import Lake
    from bus.settings import Settings
    from bus.specs import Registry
