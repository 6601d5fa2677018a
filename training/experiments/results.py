"""From what was trained and tested to results/NAME/results.json: successes, intervals, differences, costs, recipes.

Owns what is counted and the rule that turns an interval into a verdict. Draws and phrases nothing. Only seeds of which
every arm concerned is complete enter an interval; what is missing is counted.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.experiments.experiment import Arm, Checkpoint, Comparison, Direction, Experiment, Ratio, TaskGroup
from training.experiments.plan import EvaluationJob, Stage1Job, Stage2Job, from_nothing, is_done, plan, tested_steps
from training.experiments.statistics import (
    Estimate,
    Outcomes,
    difference_of_differences,
    mean_success,
    paired_difference,
    paired_ratio,
)
from training.experiments.store import Run, Store
from training.json_file import write_json
from training.rollout import wilson_interval

HOLDS, NOT_SHOWN, OPPOSITE, NOT_RUN = "holds", "not shown", "the opposite", "not run"
_GROUPS: tuple[TaskGroup, ...] = ("all", "low-data", "rest")
_PACKAGES = ("torch", "numpy", "mujoco", "metaworld", "gym-aloha", "robosuite")
_LOG_BIN = 10  # steps that one point of a drawn log averages


def collect(experiment: Experiment, store: Store, seeds: Sequence[int]) -> dict[str, Any]:
    """Everything that a report of this experiment says; partial when jobs are left."""
    from training.export import git_commit, hardware

    budget = store.budget
    found = _Found(experiment, store, seeds)
    jobs = plan([experiment], store, seeds)
    left = {job.key for job in jobs.left}
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "question": experiment.question,
        "paper": experiment.paper,
        "notes": list(experiment.notes),
        "figure": experiment.figure,
        "axis": experiment.axis,
        "budget": {
            "name": budget.name,
            "what": budget.what,
            "size": budget.bases["all"].size,
            "seeds": list(budget.seeds),
            "num_workers": budget.num_workers,
            "episodes": budget.num_episodes(experiment.name),
            "curve_episodes": budget.curve_episodes,
        },
        "seeds": list(seeds),
        "jobs": {
            name: {
                "all": sum(isinstance(job, kind) for job in jobs.jobs),
                "left": sum(isinstance(job, kind) and job.key in left for job in jobs.jobs),
            }
            for name, kind in (("stage 1", Stage1Job), ("stage 2", Stage2Job), ("evaluation", EvaluationJob))
        },
        "tasks": {
            task: {
                "body": budget.suite.tasks[task].body,
                "low_data": task in budget.suite.low_data_group.tasks,
            }
            for task in found.tasks
        },
        "arms": [found.arm(arm) for arm in experiment.arms],
        "comparisons": [found.comparison(comparison) for comparison in experiment.comparisons],
        "ratios": [found.ratio(ratio) for ratio in experiment.ratios],
        "planned_hours": round(from_nothing(jobs, store).hours(budget.num_workers), 2),
        "costs": _costs(jobs.jobs, store),
        "versions": {"python": platform.python_version(), **versions()},
        "hardware": hardware(),
        "git_commit": git_commit(),
    }


def write_results(
    experiment: Experiment, values: Mapping[str, Any], results: Path, store: Store, seeds: Sequence[int]
) -> Path:
    """results.json and the exact recipes of all arms; returns the directory."""
    directory = results / results_name(experiment.name, store.budget.name)
    for arm in experiment.arms:
        recipe = store.run(arm.training, seeds[0]).recipe
        write_json(directory / "recipes" / f"{file_name(arm.name)}.json", recipe.to_json())
    write_json(directory / "results.json", values)
    return directory


def results_name(experiment: str, budget: str) -> str:
    """The directory below results/: the cpu budget's is the experiment's name alone."""
    return experiment if budget == "cpu" else f"{experiment}-{budget}"


def file_name(arm: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in arm).split())


def verdict(estimate: Estimate | None, expected: Direction, neutral: float = 0.0) -> str:
    """By rule: what the interval excludes. `neutral` is what no effect would be."""
    if estimate is None:
        return NOT_RUN
    if estimate.low <= neutral <= estimate.high or (neutral == 1.0 and estimate.num_seeds == 1):
        return NOT_SHOWN
    return HOLDS if (estimate.low > neutral) == (expected == "higher") else OPPOSITE


class _Found:
    """One experiment's outcomes, read from the store once."""

    def __init__(self, experiment: Experiment, store: Store, seeds: Sequence[int]) -> None:
        self._experiment, self._store, self._seeds = experiment, store, seeds
        self._runs = {arm.name: {seed: store.run(arm.training, seed) for seed in seeds} for arm in experiment.arms}
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
            "checkpoints": [self._checkpoint(arm, step, last=step == steps[-1]) for step in steps],
            "log": self._log(arm) if arm.until else {},
        }

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
        return {
            "claim": comparison.claim,
            "arm": comparison.arm,
            "baseline": comparison.baseline,
            "than": list(comparison.than or ()),
            "tasks": comparison.tasks,
            "checkpoint": comparison.checkpoint,
            "expected": comparison.expected,
            "paper_points": comparison.paper_points,
            "difference": estimate.to_json() if estimate else None,
            "verdict": verdict(estimate, comparison.expected),
        }

    def ratio(self, ratio: Ratio) -> dict[str, Any]:
        first, last = ratio.steps
        means = {
            name: {
                seed: float(np.exp(np.mean(np.log(rows[first : last + 1]))))
                for seed in self._seeds
                if len(rows := self._logged(name, seed, ratio.quantity)) > last
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
            "digest": run.digest,
            "stage1_digest": run.stage1_digest,
            "parent_digest": run.parent.digest if run.parent else "",
            "steps": outcome.get("steps", 0),
            "stage1_seconds": (stage1 or {}).get("seconds", 0.0),
            "stage2_seconds": outcome.get("seconds", 0.0),
            "revision": outcome.get("revision", ""),
            "git_commit": outcome.get("git_commit", ""),
        }

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
        solved = {seed: self._solved(arm, seed, step, task)[:episodes] for seed in self._seeds}
        successes, tried = sum(map(sum, solved.values())), sum(map(len, solved.values()))
        low, high = wilson_interval(successes, tried)
        return {
            "successes": successes,
            "episodes": tried,
            "low": low,
            "high": high,
            "outcomes": {str(seed): "".join("1" if each else "0" for each in of) for seed, of in solved.items()},
        }

    def _seconds(self, arm: Arm, seed: int, step: int) -> float:
        """Of all tests of a checkpoint, in the order of the seeds of training."""
        run = self._runs[arm.name][seed]
        tests = [self._store.evaluation(run, step, arm.condition, task) for task in self._tasks(arm, "all")]
        return round(sum(test.seconds for test in tests), 1)

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
        rows = _log_rows(self._store, self._runs[arm][seed], until)
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


def _log_rows(store: Store, run: Run, until: int) -> list[Mapping[str, Any]]:
    path = store.run_directory(run).stage2 / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [row for row in map(json.loads, lines[:until]) if row["step"] < until]


def _costs(jobs: Sequence[Any], store: Store) -> dict[str, float]:
    """Hours of one worker so far; what experiments share is counted in each."""
    seconds = {"stage1": 0.0, "stage2": 0.0, "evaluation": 0.0}
    for job in jobs:
        if isinstance(job, EvaluationJob):
            seconds["evaluation"] += store.evaluation(job.run, job.step, job.condition, job.task).seconds
        elif is_done(job, store):
            outcome = (
                store.stage1_outcome(job.run.stage1_digest)
                if isinstance(job, Stage1Job)
                else store.run_outcome(job.run)
            )
            seconds["stage1" if isinstance(job, Stage1Job) else "stage2"] += (outcome or {}).get("seconds", 0.0)
    return {f"{name}_hours": round(value / 3600, 3) for name, value in seconds.items()}


def versions() -> dict[str, str]:
    installed = {each.metadata["Name"] for each in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in _PACKAGES if name in installed}
