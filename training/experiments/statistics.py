"""How sure a figure is: intervals of success rates, of paired differences and of ratios. Pure functions of arrays.

Every interval is a 95 % interval. Success of one task is Wilson's (training/rollout.py). A mean over seeds, tasks and
episodes has the widest of three, each of which is too sure where another is not: a bootstrap over seeds of training,
tasks and scenes, which three seeds make too narrow; Student's over the seeds' means, which knows nothing of tasks; and
Wilson's of all episodes together, for where outcomes hardly vary. Where there is only one seed or one task, that level
cannot vary and the estimate says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from training.rollout import wilson_interval

NUM_DRAWS = 4000
_DRAWS_AT_ONCE = 250
# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; the last also for more, which is a little wide.
_STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

_SEEDS_CAVEATS = {
    1: "one seed of training: no interval contains its variation",
    2: f"two seeds of training: their interval is {_STUDENT_T[0]:.1f} standard errors each way",
}

Interval = tuple[float, float]
Outcomes = npt.NDArray[Any]  # bool or number [num_seeds, num_tasks, num_episodes]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval, and how many of each level stand behind it."""

    value: float
    low: float
    high: float
    num_seeds: int
    num_tasks: int
    num_episodes: int  # of each seed and task

    @property
    def caveat(self) -> str:
        """What the interval cannot contain, or hardly can; empty when every level varied."""
        if self.num_seeds == 1 and self.num_tasks == 1:
            return "one seed of training and one task: episodes alone vary"
        return "; ".join(
            said
            for said in (
                _SEEDS_CAVEATS.get(self.num_seeds, ""),
                "one task: the interval does not contain variation between tasks" if self.num_tasks == 1 else "",
            )
            if said
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "caveat": self.caveat}


def mean_success(outcomes: Outcomes, *, seed: int = 0, num_draws: int = NUM_DRAWS) -> Estimate:
    """The mean over tasks and seeds with its interval, which is the same for the same `seed`."""
    values = np.asarray(outcomes, np.float64)
    found = at_least_students(_bootstrap(values, seed, num_draws), values.mean((1, 2)))
    return _widened(found, wilson_interval(int(values.sum()), values.size), within=(0.0, 1.0))


def paired_difference(arm: Outcomes, baseline: Outcomes, *, seed: int = 0, num_draws: int = NUM_DRAWS) -> Estimate:
    """arm - baseline over the same seeds, tasks and scenes, position by position."""
    values = _difference(arm, baseline)
    found = at_least_students(_bootstrap(values, seed, num_draws), values.mean((1, 2)))
    return _widened(found, _discordance_interval(values), within=(-1.0, 1.0))


def difference_of_differences(
    pair: tuple[Outcomes, Outcomes],
    than: tuple[Outcomes, Outcomes],
    *,
    seed: int = 0,
    num_draws: int = NUM_DRAWS,
) -> Estimate:
    """(arm - baseline) of the first pair less that of the second, all four over the same seeds and scenes."""
    first, second = _difference(*pair), _difference(*than)
    values = _difference(first, second)
    found = at_least_students(_bootstrap(values, seed, num_draws), values.mean((1, 2)))
    pooled = _less(_discordance_interval(first), _discordance_interval(second), first.mean(), second.mean())
    return _widened(found, pooled, within=(-2.0, 2.0))


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Estimate:
    """The geometric mean over seeds of numerator / denominator, with Student's interval of its logarithm.

    One seed has no interval: low and high are then the value, as `caveat` says.
    """
    if len(numerator) != len(denominator) or not numerator:
        raise ValueError(f"ratio of {len(numerator)} to {len(denominator)} seeds, expected equally many and one")
    logs = np.log(numerator) - np.log(denominator)
    low, high = _students_interval(logs)
    return Estimate(
        value=math.exp(float(np.mean(logs))),
        low=math.exp(low),
        high=math.exp(high),
        num_seeds=len(logs),
        num_tasks=0,
        num_episodes=0,
    )


def at_least_students(found: Estimate, by_seed: Sequence[float] | npt.NDArray[np.float64]) -> Estimate:
    """`found`, at least as wide as Student's interval of the seeds' own figures.

    Three seeds drawn with replacement from three vary too little: of one task's differences without effect, a bootstrap
    alone takes one in seven for an effect.
    """
    return _widened(found, _students_interval(by_seed))


def _students_interval(by_seed: Sequence[float] | npt.NDArray[np.float64]) -> Interval:
    count, mean = len(by_seed), float(np.mean(by_seed))
    if count == 1:
        return mean, mean
    quantile = _STUDENT_T[min(count - 2, len(_STUDENT_T) - 1)]
    spread = quantile * float(np.std(by_seed, ddof=1)) / math.sqrt(count)
    return mean - spread, mean + spread


def _discordance_interval(differences: Outcomes) -> Interval:
    """Of the mean of paired differences of successes, from how many pairs differ each way.

    Both shares' Wilson intervals, squared and added as Newcombe does for two rates: no pair that differs leaves the
    doubt of the rule of three, and each one more moves it a little, where resampling knows no doubt at first.
    """
    num_better, num_worse, total = int((differences > 0).sum()), int((differences < 0).sum()), differences.size
    better, worse = wilson_interval(num_better, total), wilson_interval(num_worse, total)
    return _less(better, worse, num_better / total, num_worse / total)


def _less(first: Interval, second: Interval, first_value: float, second_value: float) -> Interval:
    """Of `first_value` less `second_value`, from the interval of each: distances to their ends squared and added."""
    value = first_value - second_value
    return (
        value - math.hypot(first_value - first[0], second[1] - second_value),
        value + math.hypot(first[1] - first_value, second_value - second[0]),
    )


def _widened(found: Estimate, interval: Interval, within: Interval = (-math.inf, math.inf)) -> Estimate:
    low, high = min(found.low, interval[0]), max(found.high, interval[1])
    return replace(found, low=max(low, within[0]), high=min(high, within[1]))


def _difference(first: Outcomes, second: Outcomes) -> Outcomes:
    if np.shape(first) != np.shape(second):
        raise ValueError(f"outcomes have shapes {np.shape(first)} and {np.shape(second)}: pairs need the same")
    return np.asarray(first, np.float64) - np.asarray(second, np.float64)


def _bootstrap(values: Outcomes, seed: int, num_draws: int) -> Estimate:
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(f"outcomes have shape {values.shape}, expected [seeds, tasks, episodes], none of them 0")
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            _resampled_means(values, generator, min(_DRAWS_AT_ONCE, num_draws - first))
            for first in range(0, num_draws, _DRAWS_AT_ONCE)
        ]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    num_seeds, num_tasks, num_episodes = values.shape
    return Estimate(
        value=float(values.mean()),
        low=float(low),
        high=float(high),
        num_seeds=num_seeds,
        num_tasks=num_tasks,
        num_episodes=num_episodes,
    )


def _resampled_means(values: Outcomes, generator: np.random.Generator, num_draws: int) -> npt.NDArray[np.float64]:
    num_seeds, num_tasks, num_episodes = values.shape
    seeds = generator.integers(num_seeds, size=(num_draws, num_seeds, 1, 1))
    # Tasks are crossed with seeds, not nested in them: one draw has the same tasks for all of its seeds.
    tasks = generator.integers(num_tasks, size=(num_draws, 1, num_tasks, 1))
    # So are scenes: every seed is tested on the same ones, and what one finds hard others do.
    episodes = generator.integers(num_episodes, size=(num_draws, 1, num_tasks, num_episodes))
    return values[seeds, tasks, episodes].mean(axis=(1, 2, 3))
