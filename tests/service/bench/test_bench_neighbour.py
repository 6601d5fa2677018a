"""What a busy neighbour costs a round trip, measured on a toy: that it is busy, and there only when it should be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil
import pytest

from service.bench.neighbour import (
    GOAL,
    NeighbourSettings,
    busy_neighbour,
    format_neighbour,
    measure_neighbour,
    missed_goals,
)
from service.model_settings import ModelSettings


def test_the_neighbour_is_busy_on_one_cpu_and_ends_with_its_block() -> None:
    cpu = min(os.sched_getaffinity(0))
    with busy_neighbour(cpu) as neighbour:
        assert neighbour.cpu_affinity() == [cpu]
        before_s = neighbour.cpu_times().user
        while neighbour.cpu_times().user < before_s + 0.05:
            assert neighbour.is_running()
    assert not psutil.pid_exists(neighbour.pid)


def test_round_trips_beside_a_neighbour_are_measured_over_those_without(toy_checkpoint: Path) -> None:
    result = measure_neighbour(
        NeighbourSettings(
            checkpoint=toy_checkpoint, rounds=2, calls_per_block=3, backend="local", model=ModelSettings()
        )
    )
    assert len(result["round_ratios"]) == 2
    low, high = result["p50_ratio_interval"]
    assert 0 < low <= result["p50_ratio"] <= high
    # Of its CPU time the system counts steps of 10 ms, as long as a toy's whole block.
    assert result["neighbour_cpu"] == min(os.sched_getaffinity(0))
    assert "goal at most 2.2" in format_neighbour(json.loads(json.dumps(result)))


def test_a_ratio_above_the_goal_is_a_missed_one() -> None:
    assert missed_goals({"p50_ratio": GOAL, "goal": GOAL}) == []
    assert missed_goals({"p50_ratio": 3.0, "goal": GOAL}) == [
        "p50 with a busy neighbour is 3.00 times that without, at most 2.2"
    ]


def test_a_measurement_needs_rounds_and_calls() -> None:
    with pytest.raises(ValueError, match="1 rounds of 20 calls"):
        NeighbourSettings(checkpoint=Path("a"), rounds=1, model=ModelSettings())
