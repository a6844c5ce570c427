"""What a command of the command line said, and with which exit code it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from bus.model import ProblemDoc

#: Why the rejected job of the command line's test lake was rejected.
BOTH_PROBLEMS = [
    ProblemDoc(code="E307", where="x.parquet", message="not Parquet at all", hint="Write Parquet."),
    ProblemDoc(code="E202", where="x.parquet:ts", message="needs ts", hint="Write the column."),
]


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.out)
