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
    return found[:2]


def caught_up(steps: ControlSteps) -> tuple[int, int]:
    found = steps.catch_up()
    assert found is not None
    return found[:2]


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


def test_a_step_knows_the_moment_that_it_began_at_however_late_it_is_taken() -> None:
    clock = FakeClock()
    steps = ControlSteps(10.0, clock)
    steps.wait(threading.Event())
    clock.time_s += 0.37
    found, again = steps.wait(threading.Event()), steps.catch_up()
    assert found is not None and again is not None
    assert abs(found.begin_s - 1000.3) < 1e-9 and abs(again.begin_s - 1000.3) < 1e-9


def test_what_took_longer_than_its_step_is_told_which_step_it_is_by_then() -> None:
    clock = FakeClock()
    steps = ControlSteps(10.0, clock)
    assert begun(steps) == (0, 0)
    clock.time_s += 0.05
    assert caught_up(steps) == (0, 0)
    clock.time_s += 0.21
    assert caught_up(steps) == (2, 2)
    assert caught_up(steps) == (2, 0)
    assert begun(steps) == (3, 0)


def test_there_are_as_many_steps_as_was_said_used_or_not() -> None:
    clock, never = FakeClock(), threading.Event()
    steps = ControlSteps(10.0, clock, num_steps=5)
    assert [begun(steps) for _ in range(3)] == [(0, 0), (1, 0), (2, 0)]
    clock.time_s += 0.15
    assert caught_up(steps) == (3, 1)
    clock.time_s += 0.25
    assert steps.catch_up() is None
    assert steps.wait(never) is None
    whole = ControlSteps(10.0, clock, num_steps=2)
    assert (begun(whole), begun(whole)) == ((0, 0), (1, 0))
    waits = len(clock.waits_s)
    assert whole.wait(never) is None
    assert len(clock.waits_s) == waits, "nothing is waited for after the last one"
    late = ControlSteps(10.0, clock, num_steps=2)
    clock.time_s += 1.0
    assert late.wait(never) is None
