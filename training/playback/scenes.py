"""What became of the scenes of one cell, as frozen data, as JSON, and as one row of results.

Owns the figures of a row. Does not own jumps (training/seams.py) or what a row means (claims.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from policy.strict_json import build
from training.playback.cells import Cell
from training.rollout import wilson_interval
from training.seams import pooled

# A simulator that stands still for more of its steps than this measures itself, not how chunks are played.
MOST_STALLED_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class RealTimeCounts:
    """What the clock did to one scene, in control steps.

    `delays_steps` is of each chunk how many steps after its observation it could first be played. Held steps had no
    valid action and were commanded to stay; late ones went by in the world without a command; stalled ones are those
    that the simulator was too slow for; in skipped periods the player sent nothing. `methods` counts chunks by how they
    continue the one before.
    """

    delays_steps: Sequence[int]
    num_held_steps: int
    num_late_steps: int
    num_stalled_steps: int
    num_skipped_periods: int
    num_failures: int
    methods: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class PlayedScene:
    """`seams` are the figures of a SeamMeter that watched this scene alone."""

    seed: int
    succeeded: bool
    num_steps: int
    latencies_s: Sequence[float]
    seams: Mapping[str, Mapping[str, Any]]
    real_time: RealTimeCounts | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """All scenes of a cell, in the order of their seeds."""

    cell: Cell
    scenes: Sequence[PlayedScene]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Row:
        return cls(cell=build(Cell, values["cell"], "cell"), scenes=[_scene(scene) for scene in values["scenes"]])


def _scene(values: Mapping[str, Any]) -> PlayedScene:
    counts = values["real_time"]
    real_time = None if counts is None else build(RealTimeCounts, counts, "real_time")
    return build(PlayedScene, {**values, "real_time": real_time}, "scene")


def summary(row: Row) -> dict[str, Any]:
    """One row of results.json: success with Wilson's interval, jumps, latency, and what the clock did."""
    successes = sum(scene.succeeded for scene in row.scenes)
    low, high = wilson_interval(successes, len(row.scenes))
    latencies_ms = 1e3 * np.array([latency for scene in row.scenes for latency in scene.latencies_s])
    clocked = [scene.real_time for scene in row.scenes if scene.real_time is not None]
    return {
        **asdict(row.cell),
        "episodes": len(row.scenes),
        "successes": successes,
        "success_low": low,
        "success_high": high,
        "outcomes": "".join("1" if scene.succeeded else "0" for scene in row.scenes),
        "mean_steps": float(np.mean([scene.num_steps for scene in row.scenes])),
        "latency_p50_ms": _percentile(latencies_ms, 50),
        "latency_p99_ms": _percentile(latencies_ms, 99),
        "seams": pooled([scene.seams for scene in row.scenes]),
        "real_time": _clock_summary(clocked, sum(scene.num_steps for scene in row.scenes)) if clocked else None,
    }


def _clock_summary(counts: Sequence[RealTimeCounts], num_steps: int) -> dict[str, Any]:
    delays = np.array([delay for each in counts for delay in each.delays_steps])
    num_stalled = sum(each.num_stalled_steps for each in counts)
    stalled_share = num_stalled / max(num_steps + num_stalled, 1)
    methods: Counter[str] = Counter()
    for each in counts:
        methods.update(each.methods)
    return {
        "delay_steps_mean": float(delays.mean()) if len(delays) else None,
        "delay_steps_p50": _percentile(delays, 50),
        "delay_steps_p95": _percentile(delays, 95),
        "num_steps": num_steps,
        "num_held_steps": sum(each.num_held_steps for each in counts),
        "num_late_steps": sum(each.num_late_steps for each in counts),
        "num_stalled_steps": num_stalled,
        "num_skipped_periods": sum(each.num_skipped_periods for each in counts),
        "num_failures": sum(each.num_failures for each in counts),
        "methods": dict(methods),
        "stalled_share": stalled_share,
        "valid": stalled_share <= MOST_STALLED_SHARE,
    }


def is_valid(values: Mapping[str, Any]) -> bool:
    """Whether a row of results says anything about how chunks are played."""
    return values["real_time"] is None or values["real_time"]["valid"]


def _percentile(values: np.ndarray, percent: float) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None
