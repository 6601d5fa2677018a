"""How long trainings and tests took, without the time in which the machine stood still. Measures nothing itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from training.json_file import read_lines

# A suspended machine makes an interval take hundreds of times the others; the slowest that was work took eight times.
STANDSTILL_FACTOR = 10.0


@dataclass(frozen=True, kw_only=True)
class TimeSpent:
    """Wall clock. `left_out_seconds` were measured too, and are not in `seconds`."""

    seconds: float
    left_out_seconds: float

    def to_json(self) -> dict[str, float]:
        return {name: round(value, 1) for name, value in asdict(self).items()}


def without_standstill(intervals: Iterable[tuple[float, float]], step_s: float) -> TimeSpent:
    """The sum of intervals, each its seconds and its steps: none counts more than STANDSTILL_FACTOR times `step_s`."""
    seconds = left_out = 0.0
    for measured, num_steps in intervals:
        counted = min(measured, STANDSTILL_FACTOR * step_s * num_steps)
        seconds += counted
        left_out += measured - counted
    return TimeSpent(seconds=seconds, left_out_seconds=left_out)


def usual_step_s(intervals: Sequence[tuple[float, float]]) -> float:
    """The median over intervals of their seconds a step; without any, 0."""
    return median(seconds / num_steps for seconds, num_steps in intervals) if intervals else 0.0


def time_of_log(path: Path) -> TimeSpent:
    """Of all sittings of a training so far, by its metrics.jsonl; restarts' repeated steps are not counted twice."""
    rows = [row for row in read_lines(path) if row.get("seconds", 0.0) > 0]
    intervals = [(row["seconds"], row["seconds"] * row["steps_per_s"]) for row in rows]
    return without_standstill(intervals, usual_step_s(intervals))
