"""Work that may wait for those who are being served: what loads beside them uses the time that they leave.

Owns the thread that does it, on Linux at a lower priority of its own. Imports nothing heavy: importing a model's code
is the first of that work.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Result = TypeVar("_Result")

# About a quarter of the time beside somebody who is busy at the usual priority: at 10 a load took three times as long.
_NICENESS = 5


def in_background(work: Callable[[], _Result]) -> _Result:
    """What `work` returns, or raises, once it is done in a thread of low priority."""
    with ThreadPoolExecutor(1, thread_name_prefix="background", initializer=_yield_to_others) as executor:
        return executor.submit(work).result()


def _yield_to_others() -> None:
    # Elsewhere a priority is the whole process's, and could not be raised again.
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # Beyond what it has: a service that was started at a low priority may not raise its own.
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
