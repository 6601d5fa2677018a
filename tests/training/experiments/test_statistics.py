"""Intervals against closed forms and against simulated truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from training.experiments.statistics import difference_of_differences, mean_success, paired_difference, paired_ratio
from training.rollout import wilson_interval


def outcomes(num_seeds: int, num_tasks: int, num_episodes: int, rate: float = 0.5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((num_seeds, num_tasks, num_episodes)) < rate


def test_the_estimate_is_the_mean_and_the_interval_holds_it() -> None:
    values = outcomes(3, 5, 20)
    estimate = mean_success(values)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low < estimate.value < estimate.high


def test_an_interval_is_a_function_of_its_seed() -> None:
    values = outcomes(3, 5, 20)
    assert mean_success(values, seed=1) == mean_success(values, seed=1)
    assert mean_success(values, seed=1) != mean_success(values, seed=2)


def test_where_all_episodes_end_alike_the_interval_is_wilson_s() -> None:
    estimate = mean_success(np.zeros((3, 5, 20)))
    assert (estimate.low, estimate.value, estimate.high) == (0.0, 0.0, wilson_interval(0, 300)[1])


def test_arms_that_both_always_fail_are_as_far_apart_as_newcombe_allows() -> None:
    nothing = np.zeros((3, 5, 20))
    estimate = paired_difference(nothing, nothing)
    bound = wilson_interval(0, 300)[1]
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((-bound, 0.0, bound))


def test_differences_of_arms_that_all_always_fail_are_no_surer_than_their_differences() -> None:
    nothing = np.zeros((3, 5, 20))
    estimate = difference_of_differences((nothing, nothing), (nothing, nothing))
    bound = math.sqrt(2) * wilson_interval(0, 300)[1]
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((-bound, 0.0, bound))


def test_pairs_that_differ_move_the_interval_a_little_each() -> None:
    found = {}
    for num_better in (0, 3, 6, 9):
        arm = np.zeros((3, 2, 50))
        for pair in range(num_better):
            arm[pair % 3, pair // 3 % 2, pair] = 1  # in each seed as many, on other scenes
        found[num_better] = paired_difference(arm, np.zeros((3, 2, 50)))
    bound = wilson_interval(0, 300)[1]
    assert (found[0].low, found[0].high) == pytest.approx((-bound, bound))
    lows = [estimate.low for estimate in found.values()]
    assert all(0 < later - earlier < 0.012 for earlier, later in itertools.pairwise(lows))
    # Three pairs of 300 for the arm and none against it are chance, six are not: McNemar's 1/4 and 1/32.
    assert lows[1] < 0 < lows[2]


@pytest.mark.parametrize("num_differ", [1, 2, 6])
def test_few_pairs_that_differ_leave_at_least_what_their_number_allows(num_differ: int) -> None:
    nothing = np.zeros((3, 2, 50))
    arm = nothing.copy()
    arm.reshape(-1)[:num_differ] = 1
    better, worse = wilson_interval(num_differ, 300), wilson_interval(0, 300)
    share = num_differ / 300
    least = share - math.hypot(share - better[0], worse[1])
    most = share + math.hypot(better[1] - share, 0.0)
    for estimate in (paired_difference(arm, nothing), difference_of_differences((arm, nothing), (nothing, nothing))):
        assert estimate.low <= least + 1e-12 and estimate.high >= most - 1e-12


def test_one_seed_and_one_task_leave_the_interval_of_a_binomial() -> None:
    values = np.arange(200).reshape(1, 1, 200) < 80
    estimate = mean_success(values)
    spread = 1.96 * math.sqrt(0.4 * 0.6 / 200)
    assert estimate.low == pytest.approx(0.4 - spread, abs=0.01)
    assert estimate.high == pytest.approx(0.4 + spread, abs=0.01)


@pytest.mark.parametrize(
    ("shape", "caveat"),
    [
        ((1, 5, 20), "one seed of training: no interval contains its variation"),
        ((3, 1, 20), "one task: the interval does not contain variation between tasks"),
        ((1, 1, 20), "one seed of training and one task: episodes alone vary"),
        ((2, 5, 20), "two seeds of training: their interval is 12.7 standard errors each way"),
        ((3, 5, 20), ""),
    ],
)
def test_a_level_that_cannot_vary_is_named(shape: tuple[int, int, int], caveat: str) -> None:
    assert mean_success(outcomes(*shape)).caveat == caveat


def test_seeds_that_differ_widen_the_interval_and_one_seed_hides_that() -> None:
    rates = np.array([0.2, 0.5, 0.8])[:, None, None]
    values = np.random.default_rng(0).random((3, 5, 50)) < rates
    together, alone = mean_success(values), mean_success(values[1:2])
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_identical_arms_differ_by_nothing() -> None:
    values = outcomes(3, 5, 20)
    estimate = paired_difference(values, values)
    assert estimate.value == 0.0
    assert estimate.low < 0.0 < estimate.high


def test_arms_of_equal_success_have_an_interval_around_0() -> None:
    estimate = paired_difference(outcomes(3, 5, 50, seed=1), outcomes(3, 5, 50, seed=2))
    assert estimate.low < 0 < estimate.high


def test_pairs_make_a_difference_surer_than_two_intervals() -> None:
    # Tasks from easy to hard, and an arm that solves what the baseline solves and a little more.
    scenes = np.random.default_rng(0).random((3, 5, 50))
    rates = np.linspace(0.1, 0.8, 5)[None, :, None]
    baseline, arm = scenes < rates, scenes < rates + 0.08
    estimate = paired_difference(arm, baseline)
    assert 0 < estimate.low < 0.08 < estimate.high
    assert mean_success(arm).low < mean_success(baseline).high


def test_a_difference_is_the_negative_of_its_reverse() -> None:
    arm, baseline = outcomes(3, 5, 20, 0.6, seed=1), outcomes(3, 5, 20, 0.5, seed=2)
    forth, back = paired_difference(arm, baseline), paired_difference(baseline, arm)
    assert forth.value == pytest.approx(-back.value)
    assert forth.low == pytest.approx(-back.high, abs=0.01)


def test_a_difference_of_differences_is_0_where_both_pairs_gain_alike() -> None:
    scenes = np.random.default_rng(0).random((3, 5, 50))
    low, middle, high = scenes < 0.3, scenes < 0.5, scenes < 0.7
    assert difference_of_differences((middle, low), (high, middle)).value == pytest.approx(0.0, abs=0.05)
    more = difference_of_differences((high, low), (middle, low))
    assert more.value == pytest.approx(paired_difference(high, middle).value)
    assert more.low > 0


def test_arms_of_other_shapes_are_no_pair() -> None:
    with pytest.raises(ValueError, match=r"shapes \(3, 5, 20\) and \(2, 5, 20\): pairs need the same"):
        paired_difference(outcomes(3, 5, 20), outcomes(2, 5, 20))


@pytest.mark.parametrize("shape", [(0, 5, 20), (3, 0, 20), (3, 5, 0)])
def test_no_outcomes_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="none of them 0"):
        mean_success(np.zeros(shape))


@pytest.mark.parametrize(
    ("seed_spread", "task_spread", "least"),
    [(0.0, 0.0, 0.95), (0.3, 0.5, 0.95), (0.3, 1.0, 0.90)],
    ids=["episodes alone", "small effects", "large effects"],
)
def test_intervals_hold_the_truth_about_as_often_as_they_say(
    seed_spread: float, task_spread: float, least: float
) -> None:
    """Three seeds and five tasks are few: of tasks that differ much it is a little too sure."""
    generator = np.random.default_rng(0)
    many = generator.normal(0, math.hypot(seed_spread, task_spread), 200_000)
    truth, trials, held = float(np.mean(_share(many))), 200, 0
    for _ in range(trials):
        seeds = generator.normal(0, seed_spread, (3, 1, 1))
        tasks = generator.normal(0, task_spread, (1, 5, 1))
        values = generator.random((3, 5, 20)) < _share(seeds + tasks)
        estimate = mean_success(values, num_draws=300)
        held += estimate.low <= truth <= estimate.high
    assert held / trials >= least


@pytest.mark.parametrize("num_tasks", [1, 2, 5])
@pytest.mark.parametrize(
    ("spread", "spread_by_task", "scenes"),
    [(0.0, 0.75, 0.0), (0.5, 0.3, 0.0), (0.0, 0.75, 1.5)],
    ids=["trainings differ task by task", "whole trainings differ", "scenes differ"],
)
def test_where_there_is_no_effect_one_interval_in_twenty_excludes_it(
    spread: float, spread_by_task: float, scenes: float, num_tasks: int
) -> None:
    """Three seeds; what each training finds hard, in logits, is drawn apart for both arms, hard scenes for all."""
    assert _share_excluding_0(0.0, spread, spread_by_task, scenes, num_tasks) <= 0.06


def test_a_large_effect_is_mostly_found() -> None:
    assert _share_excluding_0(1.0, 0.1, 0.4, 0.0, num_tasks=5) >= 0.6


def _share_excluding_0(effect: float, spread: float, spread_by_task: float, scenes: float, num_tasks: int) -> float:
    generator = np.random.default_rng(num_tasks)
    trials, excluded = 250, 0
    for _ in range(trials):
        common = generator.normal(0, 1, (1, num_tasks, 1)) + generator.normal(0, scenes, (1, num_tasks, 50))
        arm, baseline = (
            generator.random((3, num_tasks, 50))
            < _share(
                common
                + generator.normal(0, spread, (3, 1, 1))
                + generator.normal(0, spread_by_task, (3, num_tasks, 1))
                + gained
            )
            for gained in (effect, 0.0)
        )
        estimate = paired_difference(arm, baseline, num_draws=100)
        excluded += not estimate.low <= 0 <= estimate.high
    return excluded / trials


def _share(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def test_two_seeds_have_the_interval_of_two() -> None:
    arm, baseline = np.zeros((2, 1, 50)), np.zeros((2, 1, 50))
    arm[0, 0, :10] = arm[1, 0, :11] = 1
    estimate = paired_difference(arm, baseline)
    # Means of 0.20 and 0.22: 12.706 times 0.01.
    assert (estimate.low, estimate.high) == pytest.approx((0.21 - 0.12706, 0.21 + 0.12706), abs=1e-4)


def test_no_interval_leaves_what_is_possible() -> None:
    arm, baseline = np.zeros((2, 1, 50)), np.zeros((2, 1, 50))
    arm[0] = 1
    estimate = paired_difference(arm, baseline)
    assert (estimate.low, estimate.high) == (-1.0, 1.0)
    assert (mean_success(arm).low, mean_success(arm).high) == (0.0, 1.0)
    assert difference_of_differences((arm, baseline), (baseline, baseline)).high == 2.0


def test_scenes_are_resampled_for_all_seeds_together() -> None:
    """Half of the scenes are solved by every training: three of them know no more of the share than one."""
    solved = np.tile(np.arange(50) % 2, (3, 1, 1)).astype(float)
    estimate = mean_success(solved)
    spread = 1.96 * math.sqrt(0.25 / 50)
    assert (estimate.low, estimate.high) == pytest.approx((0.5 - spread, 0.5 + spread), abs=0.015)


def test_a_ratio_is_the_geometric_mean_over_seeds_with_students_interval() -> None:
    estimate = paired_ratio([4.0, 8.0, 16.0], [1.0, 1.0, 1.0])
    spread = 4.303 * math.log(2) / math.sqrt(3)
    assert estimate.value == pytest.approx(8.0)
    assert estimate.low == pytest.approx(8 * math.exp(-spread))
    assert estimate.high == pytest.approx(8 * math.exp(spread))


def test_a_ratio_of_one_seed_has_no_interval_and_says_so() -> None:
    estimate = paired_ratio([6.0], [2.0])
    assert estimate.low == estimate.high == pytest.approx(3.0)
    assert estimate.caveat == "one seed of training: no interval contains its variation"


def test_a_ratio_needs_as_many_seeds_above_as_below() -> None:
    with pytest.raises(ValueError, match="ratio of 2 to 1 seeds"):
        paired_ratio([1.0, 2.0], [1.0])
