"""`bus up` for a soak: who is killed again and again comes back soon, not after ten seconds."""

from __future__ import annotations

import sys

from bus import supervisor
from bus.supervisor.__main__ import main

if __name__ == "__main__":
    supervisor._LAST_PAUSE_S = 0.5
    sys.exit(main())
