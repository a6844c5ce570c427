"""For a fork server, imported last: what it has imported is no business of its children's collector.

Else each child walks, and so copies, all of it at some moment, which takes a busy machine a second.
"""

from __future__ import annotations

import atexit
import gc

gc.collect()
gc.freeze()
atexit.register(gc.unfreeze)  # the server itself ends as any process, and leaves nothing behind
