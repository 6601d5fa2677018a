"""Control steps begin on a grid of absolute moments; those that went by are skipped, never caught up."""

from __future__ import annotations

import threading

from premotor.client.control_clock import ControlSteps, MonotonicClock


class FakeClock:
    """Time passes where it is waited for, or where a test says so."""

    def __init__(self) -> None:
        self.time_s = 1000.0
        self.waits_s: list[float] = []

    def now_s(self) -> float:
        return self.time_s

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        self.waits_s.append(timeout_s)
        if not event.is_set():
            self.time_s += timeout_s
        return event.is_set()


def begun(steps: ControlSteps) -> tuple[int, int]:
    found = steps.wait(threading.Event())
    assert found is not None
    return found


def test_steps_begin_at_their_own_moments_without_drift() -> None:
    clock = FakeClock()
    steps = ControlSteps(30.0, clock)
    for step in range(3000):
        assert begun(steps) == (step, 0)
        assert abs(clock.time_s - (1000.0 + step / 30.0)) < 1e-9
        clock.time_s += 0.011


def test_a_late_step_is_not_followed_by_a_burst() -> None:
    clock = FakeClock()
    steps = ControlSteps(10.0, clock)
    assert begun(steps) == (0, 0)
    clock.time_s += 0.37
    assert begun(steps) == (3, 2)
    assert begun(steps) == (4, 0)
    assert abs(clock.time_s - 1000.4) < 1e-9


def test_a_step_that_takes_less_than_two_periods_skips_none() -> None:
    clock = FakeClock()
    steps = ControlSteps(10.0, clock)
    assert begun(steps) == (0, 0)
    clock.time_s += 0.15
    assert begun(steps) == (1, 0)
    assert begun(steps) == (2, 0)


def test_no_step_begins_once_it_is_stopped() -> None:
    steps, stop = ControlSteps(10.0, FakeClock()), threading.Event()
    stop.set()
    assert steps.wait(stop) is None
    assert ControlSteps(10.0, MonotonicClock()).wait(stop) is None
