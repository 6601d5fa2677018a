"""A robot asks early enough for all but the slowest answers, from what answers took."""

from __future__ import annotations

import pytest

from premotor.client.latency import LatencyEstimate


def test_before_anything_is_measured_one_step_is_expected() -> None:
    estimate = LatencyEstimate(20.0)
    assert estimate.latency_s is None
    assert (estimate.delay_steps, estimate.threshold_steps) == (1, 2)


def test_the_threshold_is_a_high_quantile_in_steps_and_a_margin() -> None:
    estimate = LatencyEstimate(10.0, quantile=0.9, window=10, margin_steps=2)
    for milliseconds in (100, 110, 120, 130, 140, 150, 160, 170, 310, 900):
        estimate.add(milliseconds / 1000)
    assert estimate.latency_s == 0.31
    assert estimate.delay_steps == 4
    assert estimate.threshold_steps == 6


def test_the_estimate_follows_a_network_that_changed() -> None:
    estimate = LatencyEstimate(10.0, window=4)
    for latency_s in (1.0, 1.0, 0.1, 0.1, 0.1, 0.1):
        estimate.add(latency_s)
    assert estimate.delay_steps == 1


def test_a_delay_is_in_whole_steps_of_the_robots_own_rate() -> None:
    estimate = LatencyEstimate(20.0)
    estimate.add(0.5)
    assert estimate.delay_steps == 10


@pytest.mark.parametrize("wrong", [{"quantile": 0.0}, {"quantile": 1.1}, {"window": 0}, {"margin_steps": -1}])
def test_settings_that_mean_nothing_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LatencyEstimate(20.0, **wrong)
    with pytest.raises(ValueError, match="control_rate_hz"):
        LatencyEstimate(0.0)
