"""The curve's geometry: where points, events and gaps end up, and what is said of it in words."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from service.admin.dashboard.timeline import timeline
from service.observability.recent import Latency, Point
from service.registry import AuditEntry

NOW = datetime(2026, 11, 21, 10, 45, 30, tzinfo=UTC)


def point(age_s: float, p50_s: float | None, *, num_errors: int = 0) -> Point:
    latency = None if p50_s is None else Latency(p50_s=p50_s, p95_s=2 * p50_s)
    return Point(age_s=age_s, num_chunks=10 if latency else 0, num_errors=num_errors, latency=latency)


def event(age_s: float, action: str = "promote") -> AuditEntry:
    return AuditEntry(
        number=1,
        at=NOW - timedelta(seconds=age_s),
        actor="operator",
        action=action,
        policy="tabletop",
        from_revision="a",
        to_revision="b",
        outcome="succeeded",
        detail={},
    )


def places(path: str) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in re.findall(r"([\d.-]+) ([\d.-]+)", run)] for run in path.split("M") if run
    ]


def test_time_runs_to_the_right_and_latency_upwards_to_a_round_top():
    drawn = timeline([point(600, 0.02), point(300, 0.03), point(5, 0.04)], [], window_s=600, now=NOW)
    assert [tick.label for tick in drawn.latencies] == ["0 ms", "50 ms", "100 ms"]
    ((first, middle, last),) = places(drawn.p50)
    assert first == (pytest.approx(4.2, abs=0.1), 800)
    assert middle == (pytest.approx(504.2, abs=0.1), 700)
    assert last == (pytest.approx(995.8, abs=0.1), 600)
    assert [y for _, y in places(drawn.p95)[0]] == [600, 400, 200]


def test_where_nothing_was_sent_there_is_a_gap_and_a_lone_point_is_still_seen():
    points = [point(600, 0.02), point(595, 0.02), point(590, None), point(585, 0.02), point(580, None)]
    drawn = timeline(points, [], window_s=600, now=NOW)
    first, alone = places(drawn.p50)
    assert len(first) == 2 and len(alone) == 2 and alone[0] != alone[1]
    assert drawn.between.count("M") == 1


def test_failures_are_as_high_as_their_share_and_never_too_small_to_see():
    points = [point(300, None, num_errors=3), point(200, 0.02, num_errors=10), point(100, 0.02)]
    whole, half = timeline(points, [], window_s=600, now=NOW).bars
    assert (whole.percent, whole.height_percent) == (50, 100)
    assert half.height_percent == 50
    few = [Point(age_s=5, num_chunks=10_000, num_errors=1, latency=Latency(p50_s=0.1, p95_s=0.1))]
    assert timeline(few, [], window_s=600, now=NOW).bars[0].height_percent > 2


def test_events_are_numbered_as_they_happened_and_close_ones_share_a_head():
    events = [event(30), event(40), event(500, "split"), event(300)]
    marks = timeline([], events, window_s=600, now=NOW).marks
    assert [(mark.label, round(mark.percent)) for mark in marks] == [("1", 17), ("2", 50), ("3–4", 93)]
    assert [entry.action for entry in marks[0].entries] == ["split"]


def test_times_are_whole_minutes_and_stay_inside():
    assert [tick.label for tick in timeline([], [], window_s=600, now=NOW).times] == [
        "10:44", "10:42", "10:40", "10:38", "10:36",
    ]  # fmt: skip
    assert all(0 < tick.percent < 100 for tick in timeline([], [], window_s=3600, now=NOW).times)


def test_the_curve_is_told_in_words_too():
    drawn = timeline([point(300, 0.02), point(200, 0.03)], [], window_s=600, now=NOW)
    assert drawn.summary == (
        "Latency of chunks over the last 10 minutes: the median was between 20 ms and 30 ms, the 95th percentile at "
        "most 60 ms."
    )
    assert timeline([], [], window_s=3600, now=NOW).summary == "No chunk was sent in the last 60 minutes."
