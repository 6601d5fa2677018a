"""How sure a figure is: intervals of success rates, of paired differences and of ratios. Pure functions of arrays.

Every interval is a 95 % interval. Success of one task is Wilson's (training/rollout.py). Means over tasks resample
seeds of training first, then tasks, then the episodes of each seed and task; where there is only one seed or one task,
that level cannot vary and the estimate says so.
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
# Two-sided 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

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
        """What the interval cannot contain; empty when every level varied."""
        if self.num_seeds == 1 and self.num_tasks == 1:
            return "one seed of training and one task: episodes alone vary"
        if self.num_seeds == 1:
            return "one seed of training: no interval contains its variation"
        return "one task: the interval does not contain variation between tasks" if self.num_tasks == 1 else ""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "caveat": self.caveat}


def mean_success(outcomes: Outcomes, *, seed: int = 0, num_draws: int = NUM_DRAWS) -> Estimate:
    """The mean over tasks and seeds with its hierarchical bootstrap interval; the same for the same `seed`.

    The interval is at least Wilson's of all episodes together: where all of them fail, resampling sees no doubt.
    """
    found = _bootstrap(np.asarray(outcomes, np.float64), seed, num_draws)
    low, high = _pooled_wilson(outcomes)
    return replace(found, low=min(found.low, low), high=max(found.high, high))


def paired_difference(arm: Outcomes, baseline: Outcomes, *, seed: int = 0, num_draws: int = NUM_DRAWS) -> Estimate:
    """arm - baseline over the same seeds, tasks and scenes, position by position.

    Where no pair differs from another, resampling sees no doubt; the interval is then Newcombe's of all episodes
    together, which is wide because it does not know the pairs.
    """
    if np.shape(arm) != np.shape(baseline):
        raise ValueError(
            f"outcomes of the arm have shape {np.shape(arm)}, of the baseline {np.shape(baseline)}: pairs need the same"
        )
    difference = np.asarray(arm, np.float64) - np.asarray(baseline, np.float64)
    found = _bootstrap(difference, seed, num_draws)
    if np.ptp(difference) > 0:
        return found
    (arm_low, arm_high), (baseline_low, baseline_high) = _pooled_wilson(arm), _pooled_wilson(baseline)
    arm_rate, baseline_rate = float(np.mean(arm)), float(np.mean(baseline))
    return replace(
        found,
        low=found.value - math.hypot(arm_rate - arm_low, baseline_high - baseline_rate),
        high=found.value + math.hypot(arm_high - arm_rate, baseline_rate - baseline_low),
    )


def difference_of_differences(
    pair: tuple[Outcomes, Outcomes],
    than: tuple[Outcomes, Outcomes],
    *,
    seed: int = 0,
    num_draws: int = NUM_DRAWS,
) -> Estimate:
    """(arm - baseline) of the first pair less that of the second, all four over the same seeds and scenes."""
    first, second = (np.asarray(arm, np.float64) - np.asarray(baseline, np.float64) for arm, baseline in (pair, than))
    if first.shape != second.shape:
        raise ValueError(f"outcomes have shapes {first.shape} and {second.shape}: pairs need the same")
    return _bootstrap(first - second, seed, num_draws)


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Estimate:
    """The geometric mean over seeds of numerator / denominator, with Student's interval of its logarithm.

    One seed has no interval: low and high are then the value, as `caveat` says.
    """
    if len(numerator) != len(denominator) or not numerator:
        raise ValueError(f"ratio of {len(numerator)} to {len(denominator)} seeds, expected equally many and one")
    logs = np.log(numerator) - np.log(denominator)
    count, mean = len(logs), float(np.mean(logs))
    spread = 0.0
    if count > 1:
        quantile = _STUDENT_T[count - 2] if count - 2 < len(_STUDENT_T) else 1.96
        spread = quantile * float(np.std(logs, ddof=1)) / math.sqrt(count)
    return Estimate(
        value=math.exp(mean),
        low=math.exp(mean - spread),
        high=math.exp(mean + spread),
        num_seeds=count,
        num_tasks=0,
        num_episodes=0,
    )


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


def _pooled_wilson(outcomes: Outcomes) -> tuple[float, float]:
    return wilson_interval(int(np.sum(outcomes)), np.size(outcomes))


def _resampled_means(values: Outcomes, generator: np.random.Generator, num_draws: int) -> npt.NDArray[np.float64]:
    num_seeds, num_tasks, num_episodes = values.shape
    seeds = generator.integers(num_seeds, size=(num_draws, num_seeds, 1, 1))
    # Tasks are crossed with seeds, not nested in them: one draw has the same tasks for all of its seeds.
    tasks = generator.integers(num_tasks, size=(num_draws, 1, num_tasks, 1))
    episodes = generator.integers(num_episodes, size=(num_draws, num_seeds, num_tasks, num_episodes))
    return values[seeds, tasks, episodes].mean(axis=(1, 2, 3))
