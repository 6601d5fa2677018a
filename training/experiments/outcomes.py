"""What the arms of one experiment did, read from the store once: successes, intervals, differences, logs, compute.

Owns what is counted. Only seeds of which every arm concerned is complete enter an interval; what is missing is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from training.experiments.compute import first_steps, seconds_a_step, to_json, training_steps
from training.experiments.experiment import Arm, Checkpoint, Comparison, Experiment, Ratio, TaskGroup
from training.experiments.markdown import whole_percent
from training.experiments.plan import tested_steps
from training.experiments.stage1_windows import stage1_windows
from training.experiments.statistics import (
    Outcomes,
    difference_of_differences,
    mean_success,
    paired_difference,
    paired_ratio,
)
from training.experiments.store import Store
from training.experiments.verdict import verdict
from training.rollout import wilson_interval

_GROUPS: tuple[TaskGroup, ...] = ("all", "low-data", "rest")
_LOG_BIN = 10  # steps that one point of a drawn log averages
_TREND_CHECKPOINTS = 3  # at a curve's end, whose slope is told
# A control with less than this share of an arm's compute is no control of all of it.
_LEAST_SHARE_OF_COMPUTE = 0.95


class ArmsFound:
    """Of one experiment and some seeds of training."""

    def __init__(self, experiment: Experiment, store: Store, seeds: Sequence[int]) -> None:
        self._experiment, self._store, self._seeds = experiment, store, seeds
        self._runs = {arm.name: {seed: store.run(arm.training, seed) for seed in seeds} for arm in experiment.arms}
        self._test_step_s = store.test_step_s()
        trained = [training_steps(run, store) for of_arm in self._runs.values() for run in of_arm.values()]
        self._seconds_a_step = seconds_a_step(steps for each in trained for steps in each)
        tested = {task for arm in experiment.arms if not arm.until for task in self._tasks(arm, "all")}
        self.tasks = [task for task in store.budget.suite.task_names if task in tested]

    def arm(self, arm: Arm) -> dict[str, Any]:
        first = self._runs[arm.name][self._seeds[0]]
        steps = tested_steps(self._experiment, arm, first)
        return {
            "name": arm.name,
            "family": arm.family,
            "position": arm.position,
            "condition": arm.condition.name,
            "paper": dict(arm.paper),
            "runs": [self._run(arm, seed) for seed in self._seeds],
            "stage1_windows": stage1_windows(first.recipe) if first.stage1_digest else None,
            "compute": self._compute(arm),
            "trend": self._trend(arm, steps[-_TREND_CHECKPOINTS:]) if self._experiment.figure == "curve" else None,
            "checkpoints": [self._checkpoint(arm, step, last=step == steps[-1]) for step in steps],
            "log": self._log(arm) if arm.until else {},
        }

    def config(self, arm: Arm) -> Mapping[str, Any] | None:
        """Of the policy of its first seed; None before that is trained."""
        return self._store.config(self._runs[arm.name][self._seeds[0]])

    def comparison(self, comparison: Comparison) -> dict[str, Any]:
        outcomes = self._paired(comparison)
        estimate = None
        if outcomes is not None:
            arm, baseline, *than = outcomes
            estimate = (
                difference_of_differences((arm, baseline), (than[0], than[1]))
                if than
                else paired_difference(arm, baseline)
            )
        claim = comparison.claim
        share = self._share_of_compute(comparison) if comparison.where_less_compute else None
        if share is not None and share < _LEAST_SHARE_OF_COMPUTE:
            claim = comparison.where_less_compute.format(share=whole_percent(share))
        return {
            "claim": claim,
            "share_of_compute": share,
            "arm": comparison.arm,
            "baseline": comparison.baseline,
            "than": list(comparison.than or ()),
            "tasks": comparison.tasks,
            "checkpoint": comparison.checkpoint,
            "expected": comparison.expected,
            "paper_points": comparison.paper_points,
            "note": comparison.note,
            "difference": estimate.to_json() if estimate else None,
            "verdict": verdict(estimate, comparison.expected),
        }

    def ratio(self, ratio: Ratio) -> dict[str, Any]:
        first, last = ratio.steps
        means = {
            name: {
                seed: float(np.exp(np.mean(np.log(rows[first - 1 : last]))))
                for seed in self._seeds
                if len(rows := self._logged(name, seed, ratio.quantity)) >= last
            }
            for name in (ratio.arm, ratio.baseline)
        }
        seeds = [seed for seed in self._seeds if all(seed in of for of in means.values())]
        estimate = (
            paired_ratio([means[ratio.baseline][s] for s in seeds], [means[ratio.arm][s] for s in seeds])
            if seeds
            else None
        )
        return {
            "claim": ratio.claim,
            "quantity": ratio.quantity,
            "arm": ratio.arm,
            "baseline": ratio.baseline,
            "steps": list(ratio.steps),
            "paper_ratio": ratio.paper_ratio,
            "note": ratio.note,
            "ratio": estimate.to_json() if estimate else None,
            "verdict": verdict(estimate, "higher", neutral=1.0),
        }

    def _tasks(self, arm: Arm, group: TaskGroup) -> tuple[str, ...]:
        budget = self._store.budget
        tested = budget.tasks(arm.training.base, arm.tasks)
        return tuple(task for task in budget.tasks(arm.training.base, group) if task in tested)

    def _run(self, arm: Arm, seed: int) -> dict[str, Any]:
        run = self._runs[arm.name][seed]
        outcome = self._store.run_outcome(run) or {}
        stage1 = self._store.stage1_outcome(run.stage1_digest) if run.stage1_digest else None
        return {
            "seed": seed,
            "digest": self._store.trained_digest(run),
            "elsewhere": self._store.trained_digest(run) != run.digest,
            "stage1_digest": (stage1 or {}).get("digest", run.stage1_digest),
            "parent_digest": self._store.trained_digest(run.parent) if run.parent else "",
            "steps": outcome.get("steps", 0),
            "stage1_seconds": (stage1 or {}).get("seconds", 0.0),
            "stage2_seconds": outcome.get("seconds", 0.0),
            "left_out_seconds": outcome.get("left_out_seconds", 0.0) + (stage1 or {}).get("left_out_seconds", 0.0),
            "revision": outcome.get("revision", ""),
            "git_commit": outcome.get("git_commit", ""),
        }

    def _compute(self, arm: Arm) -> dict[str, Any]:
        steps = training_steps(self._runs[arm.name][self._seeds[0]], self._store, arm.until)
        return to_json(steps, self._seconds_a_step)

    def _share_of_compute(self, comparison: Comparison) -> float | None:
        """The baseline's training, by what the arm's computes."""
        arm, baseline = (
            self._compute(self._experiment.arm(name))["seconds"] for name in (comparison.arm, comparison.baseline)
        )
        return baseline / arm if arm and baseline else None

    def _trend(self, arm: Arm, steps: Sequence[int]) -> dict[str, Any] | None:
        """How success changed over the last checkpoints, on the scenes that all of them were tested on."""
        tasks, episodes = self._tasks(arm, "all"), self._store.budget.curve_episodes
        seeds = [s for s in self._seeds if all(s in self._complete_seeds(arm, step, tasks, episodes) for step in steps)]
        before = self._outcomes(arm, steps[0], tasks, episodes, seeds)
        after = self._outcomes(arm, steps[-1], tasks, episodes, seeds)
        if before is None or after is None or len(steps) < 2:
            return None
        return {"first": steps[0], "last": steps[-1], "difference": paired_difference(after, before).to_json()}

    def _checkpoint(self, arm: Arm, step: int, *, last: bool) -> dict[str, Any]:
        episodes = self._episodes(last=last)
        return {
            "step": step,
            "last": last,
            "episodes": episodes,
            "seconds": [self._seconds(arm, seed, step) for seed in self._seeds],
            "tasks": {task: self._task(arm, step, task, episodes) for task in self._tasks(arm, "all")},
            "groups": {
                group: mean_success(outcomes).to_json()
                for group in _GROUPS
                if self._tasks(arm, group)
                and (outcomes := self._outcomes(arm, step, self._tasks(arm, group), episodes)) is not None
            },
        }

    def _task(self, arm: Arm, step: int, task: str, episodes: int) -> dict[str, Any]:
        return task_figures({seed: self._solved(arm, seed, step, task)[:episodes] for seed in self._seeds})

    def _seconds(self, arm: Arm, seed: int, step: int) -> float:
        """Of all tests of a checkpoint with one seed of training."""
        run, usual = self._runs[arm.name][seed], self._test_step_s
        tests = {task: self._store.evaluation(run, step, arm.condition, task) for task in self._tasks(arm, "all")}
        return round(sum(test.spent(usual.get(task, 0.0)).seconds for task, test in tests.items()), 1)

    def _episodes(self, *, last: bool) -> int:
        budget = self._store.budget
        return budget.num_episodes(self._experiment.name) if last else budget.curve_episodes

    def _solved(self, arm: Arm, seed: int, step: int, task: str) -> Sequence[bool]:
        return self._store.evaluation(self._runs[arm.name][seed], step, arm.condition, task).solved

    def _complete_seeds(self, arm: Arm, step: int, tasks: Sequence[str], episodes: int) -> list[int]:
        return [
            seed for seed in self._seeds if all(len(self._solved(arm, seed, step, task)) >= episodes for task in tasks)
        ]

    def _outcomes(
        self, arm: Arm, step: int, tasks: Sequence[str], episodes: int, seeds: Sequence[int] | None = None
    ) -> Outcomes | None:
        """Of these seeds, or of those that are complete; None without any."""
        chosen = self._complete_seeds(arm, step, tasks, episodes) if seeds is None else seeds
        if not chosen:
            return None
        return np.array(
            [[self._solved(arm, seed, step, task)[:episodes] for task in tasks] for seed in chosen], np.float64
        )

    def _paired(self, comparison: Comparison) -> list[Outcomes] | None:
        arms = [self._experiment.arm(name) for name in comparison.arms]
        steps = [self._step(arm, comparison.checkpoint) for arm in arms]
        episodes = self._episodes(last=comparison.checkpoint == "last")
        tasks = self._tasks(arms[0], comparison.tasks)
        pairs = list(zip(arms, steps, strict=True))
        seeds = [
            seed
            for seed in self._seeds
            if all(seed in self._complete_seeds(arm, step, tasks, episodes) for arm, step in pairs)
        ]
        if not seeds:
            return None
        found = [self._outcomes(arm, step, tasks, episodes, seeds) for arm, step in pairs]
        return [outcomes for outcomes in found if outcomes is not None]

    def _step(self, arm: Arm, checkpoint: Checkpoint) -> int:
        steps = tested_steps(self._experiment, arm, self._runs[arm.name][self._seeds[0]])
        return steps[0] if checkpoint == "first" else steps[-1]

    def _logged(self, arm: str, seed: int, quantity: str) -> list[float]:
        """A quantity at each step that the arm asks for; empty before they are all there."""
        until = self._experiment.arm(arm).until or 0
        rows = first_steps(self._runs[arm][seed], self._store, until)
        return [row[quantity] for row in rows] if len(rows) == until else []

    def _log(self, arm: Arm) -> dict[str, Any]:
        """Means over some steps each, by quantity and seed: what is drawn."""
        drawn: dict[str, Any] = {"steps_averaged": _LOG_BIN}
        for quantity in ("prediction", "gradient_norm"):
            drawn[quantity] = {
                str(seed): [
                    float(f"{np.mean(values[start : start + _LOG_BIN]):.4g}")
                    for start in range(0, len(values), _LOG_BIN)
                ]
                for seed in self._seeds
                if (values := self._logged(arm.name, seed, quantity))
            }
        return drawn


def task_figures(solved: Mapping[int, Sequence[bool]]) -> dict[str, Any]:
    """What results.json says of one task, of the outcomes of each seed of training."""
    successes, tried = sum(map(sum, solved.values())), sum(map(len, solved.values()))
    low, high = wilson_interval(successes, tried)
    return {
        "successes": successes,
        "episodes": tried,
        "low": low,
        "high": high,
        "outcomes": {str(seed): "".join("1" if each else "0" for each in of) for seed, of in solved.items()},
    }
