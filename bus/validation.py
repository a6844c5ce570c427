"""Step 4: a job directory is read in full and judged.

`judge` opens every listed file safely, takes away the right to write it, makes sure that nobody
still does, hashes the very bytes it reads, and holds them against manifest and contract. All
problems of all files are in the verdict. What goes wrong because of *us* (a full disk, no memory)
is raised, never a rejection.

Most files are judged in the calling process. One that is large or unusual, or that was dropped by
a death, is judged by `judge_in_child`: there it may crash, hang or eat memory without harm.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bus import disk
from bus.attempt import AttemptEndedError, Limits, run_limited
from bus.errors import Code, Problem, problem
from bus.lake import COMMIT, MANIFEST, OLD
from bus.model import ArtifactFacts, ProblemDoc, Verdict, iso, utc_now
from bus.objects import JudgedFile
from bus.readiness import lacks_its_end, quiet_for_s
from bus.submission import (
    Submission,
    entry_place,
    is_producers_fault,
    read_submission,
    relpath_fault,
)
