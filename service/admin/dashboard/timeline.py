"""A latency curve and the events over it, as numbers for an SVG.

Owns the geometry: places as percent of the drawing, so that text keeps its size whatever the width. Does not own the
counts (observability/recent.py), which events there are, or how it looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from service.admin.dashboard.rendering import milliseconds
from service.observability.recent import Point
from service.registry import AuditEntry

# By length of the window: of a stretch of the curve, and between marks of the time axis.
STEP_S = {600: 5, 3600: 30}
_TICK_S = {600: 120, 3600: 600}
# The path is drawn in this many units each way, and stretched.
_UNITS = 1000
_LEAST_TOP_S = 0.01
_MAX_MARKS = 12
# What the head of a mark takes of a phone's width.
_HEAD_PERCENT = 8.0
_LEAST_BAR_PERCENT = 2.5


@dataclass(frozen=True, kw_only=True)
class Tick:
    percent: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Events at one place of the curve, and their numbers in the list below it: "2", or "2–4"."""

    label: str
    percent: float
    entries: tuple[AuditEntry, ...]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A stretch in which requests got no chunk; it is as high as they were many among all."""

    percent: float
    width_percent: float
    height_percent: float


@dataclass(frozen=True, kw_only=True)
class Timeline:
    window_s: int
    # SVG path data; empty without chunks.
    p50: str
    p95: str
    between: str
    bars: tuple[Bar, ...]
    times: tuple[Tick, ...]
    latencies: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    # For whoever does not see the curve.
    summary: str


def timeline(points: Sequence[Point], events: Sequence[AuditEntry], *, window_s: int, now: datetime) -> Timeline:
    """`points` are stretches of STEP_S[window_s]; `events` are those of the window."""
    step_s = STEP_S[window_s]
    highest_s = max((point.latency.p95_s for point in points if point.latency), default=0.0)
    top_s = _round_up(max(highest_s, _LEAST_TOP_S))
    runs = _runs(points)
    lines = {
        name: [
            [(_x(point, window_s, step_s), _y(getattr(point.latency, name), top_s)) for point in run] for run in runs
        ]
        for name in ("p50_s", "p95_s")
    }
    return Timeline(
        window_s=window_s,
        p50=" ".join(map(_line, lines["p50_s"])),
        p95=" ".join(map(_line, lines["p95_s"])),
        between=" ".join(
            f"{_line([*upper, *reversed(lower)])} Z"
            for upper, lower in zip(lines["p95_s"], lines["p50_s"], strict=True)
            if len(upper) > 1
        ),
        bars=tuple(_bar(point, window_s, step_s) for point in points if point.num_errors),
        times=_times(window_s, now),
        latencies=tuple(Tick(percent=100 * (1 - share), label=_axis(share * top_s)) for share in (0.0, 0.5, 1.0)),
        marks=_marks(events, window_s, now),
        summary=_summary(points, window_s),
    )


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """Stretches with chunks that follow each other: between them there is nothing to draw."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if point.latency is not None:
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _x(point: Point, window_s: int, step_s: int) -> float:
    return _UNITS * (1 - max(0.0, point.age_s - step_s / 2) / window_s)


def _y(seconds: float, top_s: float) -> float:
    return _UNITS * (1 - seconds / top_s)


def _line(places: Sequence[tuple[float, float]]) -> str:
    """A single place is drawn as a dash, or it would not be seen."""
    if len(places) == 1:
        ((x, y),) = places
        places = (x - 2, y), (x + 2, y)
    return "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _bar(point: Point, window_s: int, step_s: int) -> Bar:
    share = point.num_errors / (point.num_errors + point.num_chunks)
    return Bar(
        percent=100 * (1 - point.age_s / window_s),
        # The last one is not over.
        width_percent=100 * min(step_s, max(point.age_s, 1.0)) / window_s,
        height_percent=max(_LEAST_BAR_PERCENT, 100 * share),
    )


def _marks(events: Sequence[AuditEntry], window_s: int, now: datetime) -> tuple[Mark, ...]:
    """The last of the events, those that could not be told apart under one head."""
    heads: list[tuple[float, list[AuditEntry]]] = []
    for event in sorted(events, key=lambda event: event.at)[-_MAX_MARKS:]:
        percent = 100 * (1 - (now - event.at).total_seconds() / window_s)
        if heads and percent - heads[-1][0] < _HEAD_PERCENT:
            heads[-1][1].append(event)
        else:
            heads.append((percent, [event]))
    marks, number = [], 1
    for percent, entries in heads:
        last = number + len(entries) - 1
        label = str(number) if last == number else f"{number}–{last}"
        marks.append(Mark(label=label, percent=percent, entries=tuple(entries)))
        number = last + 1
    return tuple(marks)


def _times(window_s: int, now: datetime) -> tuple[Tick, ...]:
    """At whole minutes, the first and last of which are away from the edges."""
    every_s = _TICK_S[window_s]
    last = datetime.fromtimestamp(now.timestamp() // every_s * every_s, UTC)
    ticks = []
    for back in range(window_s // every_s + 1):
        at = last - timedelta(seconds=every_s * back)
        percent = 100 * (1 - (now - at).total_seconds() / window_s)
        if 4 <= percent <= 96:
            ticks.append(Tick(percent=percent, label=at.strftime("%H:%M")))
    return tuple(ticks)


def _round_up(seconds: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    power = 1e-3
    while True:
        for factor in (1, 2, 5):
            if seconds <= factor * power * (1 + 1e-9):
                return factor * power
        power *= 10


def _axis(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{1000 * seconds:g} ms"


def _summary(points: Sequence[Point], window_s: int) -> str:
    latencies = [point.latency for point in points if point.latency is not None]
    if not latencies:
        return f"No chunk was sent in the last {window_s // 60} minutes."
    lowest, highest = min(each.p50_s for each in latencies), max(each.p95_s for each in latencies)
    return (
        f"Latency of chunks over the last {window_s // 60} minutes: the median was between {milliseconds(lowest)} and "
        f"{milliseconds(max(each.p50_s for each in latencies))}, the 95th percentile at most {milliseconds(highest)}."
    )
