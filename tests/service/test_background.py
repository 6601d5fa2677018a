"""Loading yields to serving."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from service.background import in_background


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_what_is_done_in_the_background_has_a_low_priority_and_leaves_that_of_the_caller_alone() -> None:
    def own() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = own()
    assert in_background(own) >= min(19, before + 1)
    assert own() == before


def test_what_fails_in_the_background_fails_for_the_caller() -> None:
    def fail() -> None:
        raise LookupError("no such checkpoint")

    with pytest.raises(LookupError, match="no such checkpoint"):
        in_background(fail)
