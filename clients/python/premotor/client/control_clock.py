"""Monotonic time and the control steps it is cut into.

Owns the moments at which steps begin, and the count of those that went by. A clock is an argument wherever time is
read, so that tests need not wait.
"""

from __future__ import annotations

import math
import threading
import time
from typing import NamedTuple, Protocol


class Clock(Protocol):
    """Time that never jumps, in seconds from a moment of its own choice."""

    def now_s(self) -> float: ...

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Returns when the event is set, True, or after `timeout_s`, False."""
        ...


class MonotonicClock:
    """The computer's own."""

    def now_s(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        return event.wait(timeout_s)


class ControlStep(NamedTuple):
    """A step that has just begun, how many before it went by unused, and the moment that it began at."""

    step: int
    num_skipped: int
    begin_s: float


class ControlSteps:
    """Step k begins at t0 + k / rate. No step begins late in a burst: those that went by are skipped and counted."""

    def __init__(self, control_rate_hz: float, clock: Clock, *, num_steps: int | None = None) -> None:
        """Step 0 begins now. There are `num_steps`, used or not; None for no end."""
        self._rate_hz, self._clock, self._num_steps = control_rate_hz, clock, num_steps
        self._start_s = clock.now_s()
        self._next_step = 0

    def wait(self, stop: threading.Event) -> ControlStep | None:
        """Waits for the next step to begin; None once `stop` is set, and after the last step."""
        if self._next_step == self._num_steps:
            return None
        wait_s = self._start_s + self._next_step / self._rate_hz - self._clock.now_s()
        if self._clock.wait(stop, wait_s) if wait_s > 0 else stop.is_set():
            return None
        return self._newest(since=self._next_step)

    def catch_up(self) -> ControlStep | None:
        """The step that time has come to since the one that began last, and how many went by unused from that one on.

        It is that very one, and none, while its period lasts; None when the last step has gone by.
        """
        return self._newest(since=self._next_step - 1)

    def _newest(self, *, since: int) -> ControlStep | None:
        step = max(whole_periods(self._clock.now_s() - self._start_s, self._rate_hz), since)
        if self._num_steps is not None and step >= self._num_steps:
            self._next_step = self._num_steps
            return None
        self._next_step = step + 1
        return ControlStep(step, step - since, self._start_s + step / self._rate_hz)


def whole_periods(span_s: float, rate_hz: float) -> int:
    """How many have gone by; a step's own beginning does not fall to the step before by rounding."""
    return math.floor(span_s * rate_hz + 1e-6)
