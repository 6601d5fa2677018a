"""What a change costs beside the code before it: what is added to Triton's time counts by itself."""

from __future__ import annotations

import pytest

from service.bench.against import (
    GOAL,
    compared,
    format_against,
    missed_goals,
    total,
)


def test_what_is_added_to_triton_s_time_is_compared_by_itself() -> None:
    result = compared(
        latencies_s=([[0.025] * 3] * 4, [[0.026] * 3] * 4), cpu_s=([0.001] * 4,) * 2, triton_s=([0.02] * 4,) * 2
    )
    assert result["latency_ratio"]["ratio"] == pytest.approx(1.04)
    assert result["added_ratio"]["ratio"] == pytest.approx(1.2)
    assert result["added_p50_ms"] == pytest.approx({"before": 5.0, "after": 6.0})
    # A round trip 4 % longer hides that a fifth more is added.
    (missed,) = missed_goals({**result, "goal": GOAL})
    assert "added to Triton's is 1.20 times" in missed
    assert "p50 added to Triton's" in format_against({**result, "goal": GOAL})


@pytest.mark.parametrize(("ratio", "num_missed"), [(GOAL, 0), (1.2, 2), (float("nan"), 2)])
def test_a_ratio_above_the_goal_is_a_missed_one(ratio: float, num_missed: int) -> None:
    found = {"ratio": ratio, "low": ratio, "high": ratio}
    result = {"cpu_ratio": found, "latency_ratio": found, "added_ratio": found, "goal": GOAL}
    assert len(missed_goals(result)) == num_missed


def test_a_counter_is_summed_over_its_models() -> None:
    text = '# TYPE a counter\na{model="x",version="1"} 3\na{model="y"} 4.5\nab 100\na_total{model="x"} 7\n'
    assert total(text, "a") == 7.5
