"""A comparison as tables, for a terminal.

Owns the words and columns. What a reader must know before the figures, what is missing and what failed, comes first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

_BOUNDS = {"": "", "at least": ">=", "at most": "<="}
_NOT_SATURATED = "not saturated"
_AT_END = "at the grid's end"


def compare_lines(result: dict[str, Any]) -> Iterable[str]:
    """The result, finished or not, as lines."""
    for mark in result["marks"]:
        yield f"MARK {mark}"
    for way, reason in result["missing"].items():
        yield f"MISSING {way}: {_first_line(reason)}"
    for way, reason in result["failed"].items():
        yield f"FAILED {way}: {_first_line(reason)}"
    yield from _latency_lines(result["latency"])
    if result["fleet"] is not None:
        yield from _fleet_lines(result["fleet"])
    if result["capacity"] is not None:
        yield from _capacity_lines(result["capacity"])


def _latency_lines(latency: dict[str, Any]) -> Iterable[str]:
    yield f"one robot   {'p50 ms':>8} {'over bare (95 %)':>24} {'server CPU us':>14} {'actions off by':>15}"
    for way, found in latency["ways"].items():
        yield (
            f"{way:<15}{_median(found['p50_ms']):>5} {_interval(found['over_bare']):>24} "
            f"{_median(found['server_cpu_us_per_request'], 0):>14} {_difference(found):>15}"
        )
    for way, found in latency["ways"].items():
        if found["driver_pipe_ms"] is not None:
            yield f"of {way}'s p50 {found['driver_pipe_ms']:.2f} ms is the pipe to its driver, measured empty"


def _fleet_lines(fleet: dict[str, Any]) -> Iterable[str]:
    yield (
        f"{fleet['num_robots']} robots at {fleet['rate_hz']:.2f} Hz ask for {fleet['offered_per_s']:.1f} chunks/s, "
        f"{fleet['offered_over_bare']:.2f} times the bare forward's {fleet['bare_per_s']:.1f}; "
        f"played at {fleet['control_rate_hz']:.1f} Hz"
    )
    yield (
        f"{'':<15}{'asked/s':>8} {'chunks/s':>9} {'supplied %':>10} {'p50 ms':>8} {'p99 ms':>8} "
        f"{'CPU us a chunk':>14} {'actions off by':>15} {'chunks/s over openpi':>26} {'over lerobot':>26}"
    )
    for way, found in fleet["ways"].items():
        over = found["over"]
        notes = "" if found["saturated"] else f"  {_NOT_SATURATED}"
        notes += f"  {found['invalid_rounds']} rounds INVALID, left out" if found["invalid_rounds"] else ""
        yield (
            f"{way:<15}{_median(found['offered_per_s'], 1):>8} {_median(found['chunks_per_s']):>9} "
            f"{_median(found['supplied_share'], 1, 100):>10} "
            f"{_median(found['latency_p50_ms'], 1):>8} {_median(found['latency_p99_ms'], 1):>8} "
            f"{_median(found['server_cpu_us_per_chunk'], 0):>14} {_difference(found):>15} "
            f"{_bounded(over.get('openpi', {}).get('chunks_per_s'), _NOT_SATURATED):>26} "
            f"{_bounded(over.get('lerobot', {}).get('chunks_per_s'), _NOT_SATURATED):>26}{notes}"
        )
    for way, found in fleet["ways"].items():
        if failures := found["failures_by_kind"]:
            counts = ", ".join(f"{kind} {count}" for kind, count in sorted(failures.items()))
            yield f"questions of {way} that failed: {counts}"


def _capacity_lines(capacity: dict[str, Any]) -> Iterable[str]:
    yield (
        f"robots at {capacity['rate_hz']:.2f} Hz with {100 * capacity['supplied_goal']:.0f} % of their control steps "
        "supplied"
    )
    for way, found in capacity["ways"].items():
        at_end = f"  {_AT_END} in {found['rounds_at_the_end']} rounds" if found["rounds_at_the_end"] else ""
        invalid = f"  {found['invalid_rounds']} rounds INVALID, left out" if found["invalid_rounds"] else ""
        yield (
            f"{way:<15}{_median(found['robots'], 1):>5}   over openpi "
            f"{_bounded(found['over'].get('openpi'), _AT_END)}{at_end}{invalid}"
        )


def _first_line(reason: str) -> str:
    return (reason.splitlines() or [""])[0]


def _difference(found: dict[str, Any]) -> str:
    """Infinite where shapes differ or a value is not finite."""
    unequal = " UNEQUAL" if found["actions_equal"] is False else ""
    return f"{found['max_action_difference']:.1e}{unequal}"


def _median(interval: dict[str, Any] | None, digits: int = 2, factor: float = 1.0) -> str:
    return "-" if interval is None else f"{factor * interval['median']:.{digits}f}"


def _bounded(interval: dict[str, Any] | None, open_text: str) -> str:
    """A ratio that is only a bound says so; one of two figures that both could have been more is none."""
    if interval is None:
        return "-"
    return open_text if interval["bound"] == "open" else f"{_BOUNDS[interval['bound']]}{_interval(interval)}"


def _interval(interval: dict[str, Any] | None) -> str:
    if interval is None:
        return "-"
    infinite = sum(math.isinf(value) for value in interval["rounds"])
    against_nothing = f", {infinite} rounds over nothing" if infinite else ""
    return f"{interval['median']:.3f} ({interval['low']:.3f} to {interval['high']:.3f}{against_nothing})"
