"""Figures of codes and their intervals, against closed forms and known noise."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch

from training.experiments.video.figures import FIGURES, Sample, estimate, sample_of
from training.latent_actions.quantizer import usage


def r2(values: np.ndarray) -> Sample:
    """R2 of each seed and clip [S, C], clips of equal weight."""
    return Sample("R2", np.stack([1 - values, np.ones_like(values)], -1))


def test_r2_is_of_all_clips_together_not_the_mean_of_theirs() -> None:
    sums = np.array([[[0.0, 1.0], [9.0, 9.0]]])
    assert estimate(Sample("R2", sums)).value == pytest.approx(1 - 9 / 10)


def test_usage_and_perplexity_are_those_of_all_clips() -> None:
    counts = np.array([[[4, 0, 0, 0], [0, 4, 0, 0]]], float)
    assert estimate(Sample("usage", counts)).value == 0.5
    assert estimate(Sample("perplexity", counts)).value == pytest.approx(2.0)
    even = np.full((1, 3, 16), 5.0)
    assert estimate(Sample("perplexity", even)).value == pytest.approx(16.0)


def test_a_code_that_a_few_of_many_pairs_have_is_not_used_as_the_quantizer_counts_it() -> None:
    counts = np.array([[[990.0, 8.0, 250.0, 0.0]]])
    assert estimate(Sample("usage", counts)).value == 0.5
    share = torch.from_numpy(counts[0, 0] / counts.sum())
    assert usage(share).item() == 0.5


def test_the_interval_of_usage_contains_it_though_resampling_loses_codes() -> None:
    found = estimate(Sample("usage", np.eye(8)[None]))
    assert found.value == 1.0 and found.high == 1.0 and found.low < 0.8


def test_the_interval_of_many_clips_is_that_of_their_mean() -> None:
    noise = np.random.default_rng(0).normal(0.5, 0.2, (1, 400))
    found = estimate(r2(noise))
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.2 / math.sqrt(400), rel=0.15)
    assert found.caveat == "one seed of training: no interval contains its variation"


def test_seeds_that_differ_widen_the_interval_beyond_that_of_clips() -> None:
    generator = np.random.default_rng(0)
    clips = generator.normal(0.5, 0.1, (1, 100)).repeat(3, 0)
    apart = clips + np.array([[-0.2], [0.0], [0.2]])
    alike, differing = estimate(r2(clips)), estimate(r2(apart))
    assert differing.high - differing.low > 3 * (alike.high - alike.low)
    assert differing.value == pytest.approx(alike.value)


def test_a_difference_is_paired_by_seed_and_clip() -> None:
    hard = np.random.default_rng(1).normal(0.0, 0.5, (3, 50))
    found = estimate(r2(hard + 0.1), r2(hard))
    assert (found.low, found.value, found.high) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match=r"figures are of \(3, 50\) and \(3, 40\) seeds and clips"):
        estimate(r2(hard), r2(hard[:, :40]))


@pytest.mark.parametrize("kind", ["CKA", "error"])
def test_figures_of_matched_clips_are_the_mean_of_bodies_and_paired_by_draw(kind: Literal["CKA", "error"]) -> None:
    draws = np.random.default_rng(2).uniform(0.4, 0.6, (3, 2, 51))
    draws[:, :, 0] = 0.5
    found = estimate(Sample(kind, draws))
    assert found.value == pytest.approx(0.5)
    assert 0.4 < found.low < found.value < found.high < 0.6
    gap = estimate(Sample(kind, draws + 0.05), Sample(kind, draws))
    assert (gap.low, gap.high) == pytest.approx((0.05, 0.05))


def test_draws_of_fewer_clips_that_are_all_higher_widen_an_interval_around_the_figure_of_all() -> None:
    draws = np.random.default_rng(3).normal(0.7, 0.02, (3, 2, 201))
    draws[:, :, 0] = 0.5
    found = estimate(Sample("CKA", draws))
    assert found.value == pytest.approx(0.5)
    assert found.high - found.value == pytest.approx(found.value - found.low, rel=0.3)


def test_continuous_latents_have_no_codes_to_count() -> None:
    probe: dict[str, Any] = {"sums": {FIGURES["effector, action"].part: [[0.0, 1.0]]}}
    assert sample_of("usage", [probe]) is None
    assert sample_of("effector, action", [probe]) is not None
    assert sample_of("effector, action", []) is None


def test_the_same_seed_gives_the_same_interval() -> None:
    sample = r2(np.random.default_rng(0).normal(0.5, 0.2, (1, 20)))
    assert estimate(sample) == estimate(sample)
    assert estimate(sample) != estimate(sample, seed=1)


def test_no_interval_reaches_further_than_its_figure_can() -> None:
    # Two seeds of which one uses all codes and one half of them: Student's interval alone would reach from -2.4 to 3.9.
    counts = np.stack([np.ones((4, 8)), np.tile([2.0, 0.0], (4, 4))])
    found = estimate(Sample("usage", counts))
    assert (found.value, found.low, found.high) == (0.75, 0.0, 1.0)
    gap = estimate(Sample("usage", counts), Sample("usage", counts[::-1].copy()))
    assert (gap.value, gap.low, gap.high) == (0.0, -1.0, 1.0)
    even = estimate(Sample("perplexity", counts))
    assert even.low == 1.0 and even.high > 8.0
    varied = estimate(r2(np.array([[0.9, 0.9], [0.1, 0.1]])))
    assert varied.high == 1.0 and varied.low < -1.0
