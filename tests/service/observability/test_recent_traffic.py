"""The last hour in memory: percentiles that are right, a window that moves, and no more memory than at the start."""

from __future__ import annotations

import numpy as np
import pytest

from service.errors import Reason
from service.observability.recent import HISTORY_S, LARGEST_BATCH, PolicyTraffic, RecentTraffic, Stages


class Clock:
    def __init__(self) -> None:
        self.now_s = 50_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def traffic(clock) -> PolicyTraffic:
    return PolicyTraffic(now_s=clock)


def chunk(total_s: float) -> Stages:
    return Stages(0.001, 0.002, total_s / 2, total_s)


@pytest.mark.parametrize("scale_s", [0.0004, 0.03, 3.0])
def test_percentiles_are_within_5_percent_of_what_was_measured(traffic, scale_s):
    measured = scale_s * np.random.default_rng(5).lognormal(0.0, 0.5, 5000)
    for total_s in measured:
        traffic.note_chunk(chunk(total_s), 1)
    total = traffic.window(60).latency["total"]
    assert total.p50_s == pytest.approx(np.percentile(measured, 50), rel=0.05)
    assert total.p95_s == pytest.approx(np.percentile(measured, 95), rel=0.05)


def test_what_is_shorter_or_longer_than_any_bin_is_still_counted(traffic):
    for total_s in (0.0, 1e-9, 1e6):
        traffic.note_chunk(Stages(0.0, 0.0, 0.0, total_s), 1)
    assert traffic.window(60).num_chunks == 3
    assert traffic.window(60).latency["total"].p95_s > 60


def test_a_window_is_of_the_last_seconds_alone(traffic, clock):
    traffic.note_chunk(chunk(1.0), 4)
    clock.now_s += 30
    traffic.note_chunk(chunk(0.01), 1)
    traffic.note_error(Reason.REASON_EXPIRED)
    traffic.note_underruns(3)
    last = traffic.window(30)
    assert (last.num_chunks, last.batches, last.errors, last.num_underruns) == (1, {1: 1}, {"EXPIRED": 1}, 3)
    assert last.chunks_per_s == pytest.approx(1 / 30)
    both = traffic.window(31)
    assert (both.num_chunks, both.batches) == (2, {1: 1, 4: 1})


def test_after_an_hour_a_bucket_begins_anew(traffic, clock):
    for _ in range(3):
        traffic.note_chunk(chunk(0.05), LARGEST_BATCH + 10)
        traffic.note_error(Reason.REASON_FAILED)
        traffic.note_underruns(1)
        clock.now_s += HISTORY_S
    assert traffic.window(HISTORY_S).num_chunks == 0
    traffic.note_chunk(chunk(0.05), LARGEST_BATCH + 10)
    hour = traffic.window(HISTORY_S)
    assert (hour.num_chunks, hour.batches, hour.num_errors, hour.num_underruns) == (1, {LARGEST_BATCH: 1}, 0, 0)


def test_a_robot_that_asked_again_is_listed_and_is_no_error(traffic):
    for reason in (Reason.REASON_SUPERSEDED, Reason.REASON_SUPERSEDED, Reason.REASON_OVERLOADED):
        traffic.note_error(reason)
    window = traffic.window(60)
    assert list(window.errors.items()) == [("SUPERSEDED", 2), ("OVERLOADED", 1)]
    assert window.num_errors == 1
    assert sum(point.num_errors for point in traffic.curve(window_s=600, step_s=5)) == 1


def test_a_curve_is_made_of_stretches_at_whole_steps_with_gaps_where_nothing_was_sent(traffic, clock):
    clock.now_s = 60_003.0
    for age_s, total_s in ((3, 0.02), (4, 0.4), (40, 0.08)):
        now_s, clock.now_s = clock.now_s, clock.now_s - age_s
        for _ in range(10):
            traffic.note_chunk(chunk(total_s), 1)
        clock.now_s = now_s
    curve = traffic.curve(window_s=60, step_s=5)
    assert len(curve) == 12 and [point.num_chunks for point in curve] == [0] * 3 + [10] + [0] * 6 + [10, 10]
    assert [point.age_s for point in curve[-2:]] == [8.0, 3.0]
    assert curve[-1].latency.p50_s == pytest.approx(0.02, rel=0.05)
    assert curve[-2].latency.p50_s == pytest.approx(0.4, rel=0.05)
    assert curve[-3].latency is None


def test_a_curve_of_nothing_is_empty_stretches(traffic):
    assert {point.latency for point in traffic.curve(window_s=3600, step_s=30)} == {None}


def test_a_long_day_takes_no_more_than_the_first_second(traffic, clock):
    def held() -> int:
        return sum(each.nbytes for each in vars(traffic).values() if isinstance(each, np.ndarray))

    traffic.note_chunk(chunk(0.05), 1)
    before, names = held(), vars(traffic).keys()
    for _ in range(2 * HISTORY_S):
        traffic.note_chunk(chunk(0.05), 1)
        clock.now_s += 1
    assert (held(), vars(traffic).keys()) == (before, names)


def test_policies_are_kept_apart(clock):
    recent = RecentTraffic(now_s=clock)
    recent.of("tabletop").note_chunk(chunk(0.05), 1)
    assert recent.of("tabletop").window(60).num_chunks == 1
    assert recent.of("kitchen").window(60).num_chunks == 0
