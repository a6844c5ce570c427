"""Work in a fork of the test runner that may kill its process: fast, and it never comes back."""

from __future__ import annotations

import os
import traceback
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def exit_code_of(work: Callable[[], object]) -> int:
    """How a forked child that does `work` ended: 0, or minus the signal's number.

    An exception ends the child with 1 after printing it; it must not unwind into the test runner,
    of which the child is a copy.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the runner has threads, they idle
        child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - whatever it is, it ends here
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
