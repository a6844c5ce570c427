"""What a process does about itself."""

from __future__ import annotations

import subprocess
import sys

_SETTLED = """
import gc, weakref
import duckdb  # tells on stderr of what is left behind at the end
from bus.process import settle_heap

class Knot:
    def __init__(self):
        self.me = self

old = Knot()
settle_heap()
assert gc.is_tracked(old) and not any(found is old for found in gc.get_objects())

young = Knot()
gone = weakref.ref(young)
del young
gc.collect()
assert gone() is None

old_gone = weakref.ref(old)
del old
gc.collect()
assert old_gone() is not None
print("settled")
"""


def test_the_collector_passes_over_what_was_there_and_nothing_else() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _SETTLED], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout == "settled\n"
    assert ran.stderr == ""
