"""From what was trained and tested to results/NAME/results.json: successes, intervals, differences, costs, recipes.

Owns the form of results.json and where results lie. What arms did is outcomes.py's; draws and phrases nothing.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.experiments.definitions.catalogue import EXPERIMENTS
from training.experiments.experiment import EULER_STEPS, Experiment
from training.experiments.finished_jobs import write_finished_jobs
from training.experiments.outcomes import ArmsFound
from training.experiments.plan import EvaluationJob, Job, Stage1Job, is_done, plan, plan_from_nothing
from training.experiments.store import Run, Store
from training.json_file import write_json
from training.recipe import Recipe

_PACKAGES = ("torch", "numpy", "mujoco", "metaworld", "gym-aloha", "robosuite")


def collect(experiment: Experiment, store: Store, seeds: Sequence[int]) -> dict[str, Any]:
    """Everything that a report of this experiment says; partial when jobs are left."""
    from training.export import git_commit, hardware

    budget = store.budget
    found = ArmsFound(experiment, store, seeds)
    jobs = plan([experiment], store, seeds)
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "question": experiment.question,
        "paper": experiment.paper,
        "notes": list(experiment.notes),
        "figure": experiment.figure,
        "axis": experiment.axis,
        "goal": experiment.goal,
        "references": list(experiment.references),
        "budget": {
            "name": budget.name,
            "what": budget.what,
            "size": budget.bases["all"].size,
            "seeds": list(budget.seeds),
            "num_workers": budget.num_workers,
            "episodes": budget.num_episodes(experiment.name),
            "curve_episodes": budget.curve_episodes,
        },
        "testing": testing(
            (found.config(arm) for arm in experiment.arms if not arm.until),
            budget.bases["all"].evaluation.first_seed,
        ),
        "seeds": list(seeds),
        "jobs": jobs.counts(),
        "tasks": {
            task: {
                "body": budget.suite.tasks[task].body,
                "low_data": task in budget.suite.low_data_group.tasks,
            }
            for task in found.tasks
        },
        "low_data_group": list(budget.suite.low_data_group.tasks),
        "arms": [found.arm(arm) for arm in experiment.arms],
        "comparisons": [found.comparison(comparison) for comparison in experiment.comparisons],
        "ratios": [found.ratio(ratio) for ratio in experiment.ratios],
        "planned_hours": _planned_hours([experiment], store, seeds),
        "planned_hours_of_all": _planned_hours(list(EXPERIMENTS.values()), store, seeds),
        "costs": _costs(jobs.jobs, store),
        "tested_at": _tested_at(jobs.jobs, store),
        "collected_at": {
            "git_commit": git_commit(),
            "versions": {"python": platform.python_version(), **versions()},
        },
        "hardware": hardware(),
    }


def write_results(
    experiment: Experiment, values: Mapping[str, Any], results: Path, store: Store, seeds: Sequence[int]
) -> Path:
    """results.json, jobs.json and the exact recipes of all arms with the first seed; returns the directory."""
    directory = results / results_name(experiment.name, store.budget.name)
    runs = {arm.name: store.run(arm.training, seeds[0]) for arm in experiment.arms}
    for name, run in runs.items():
        recipe = _without_path(run.recipe, run.parent, runs, store) if run.parent else run.recipe
        write_json(directory / "recipes" / f"{file_name(name)}.json", recipe.to_json())
    write_finished_jobs(plan([experiment], store, seeds).jobs, store, directory)
    write_json(directory / "results.json", values)
    return directory


def results_name(experiment: str, budget: str) -> str:
    """The directory below results/: the cpu budget's is the experiment's name alone."""
    return experiment if budget == "cpu" else f"{experiment}-{budget}"


def file_name(arm: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in arm).split())


def testing(configs: Iterable[Mapping[str, Any] | None], first_seed: int) -> dict[str, Any]:
    """How policies are asked and played in every test, by the first checkpoint's config that there is.

    `execution_horizon` is None before any is trained.
    """
    from training.evaluate import Target

    config = next((config for config in configs if config is not None), {})
    return {
        "num_inference_steps": EULER_STEPS,
        "rule": Target.rule,
        "execution_horizon": config.get("execution_horizon"),
        "action_horizon": config.get("action_horizon"),
        "first_seed": first_seed,
    }


def _without_path(recipe: Recipe, parent: Run, runs: Mapping[str, Run], store: Store) -> Recipe:
    """A recipe that starts from another's checkpoint, which it names by arm and digest: where it lay is no recipe."""
    arm = next((name for name, each in runs.items() if each.digest == parent.digest), "a run that is no arm")
    start_from = f"{arm} ({store.trained_digest(parent)})"
    return replace(recipe, stage2=replace(recipe.stage2, start_from=start_from))


def _planned_hours(experiments: Sequence[Experiment], store: Store, seeds: Sequence[int]) -> float:
    return round(plan_from_nothing(experiments, store, seeds).hours(store.budget.num_workers), 2)


def _tested_at(jobs: Sequence[Job], store: Store) -> dict[str, Any]:
    """Commit, or UNKNOWN_COMMIT -> how many tests ran at it, and with which versions of the simulators' packages."""
    found: dict[str, Any] = {}
    for job in jobs:
        if isinstance(job, EvaluationJob):
            for made in store.evaluation(job.run, job.step, job.condition, job.task).made_with:
                of_commit = found.setdefault(made.git_commit, {"tests": 0, "versions": {}})
                of_commit["tests"] += 1
                for package, version in made.versions.items():
                    known = of_commit["versions"].setdefault(package, [])
                    known += [version] if version not in known else []
    return found


def _costs(jobs: Sequence[Job], store: Store) -> dict[str, float]:
    """Hours of one worker so far; what experiments share is counted in each, standstills of the machine apart."""
    seconds = {"stage1": 0.0, "stage2": 0.0, "evaluation": 0.0, "left_out": 0.0}
    test_step_s = store.test_step_s()
    for job in jobs:
        if isinstance(job, EvaluationJob):
            tested = store.evaluation(job.run, job.step, job.condition, job.task)
            name, spent = "evaluation", tested.spent(test_step_s.get(job.task, 0.0)).to_json()
        elif is_done(job, store):
            name = "stage1" if isinstance(job, Stage1Job) else "stage2"
            spent = (
                store.stage1_outcome(job.run.stage1_digest) if name == "stage1" else store.run_outcome(job.run)
            ) or {}
        else:
            continue
        seconds[name] += spent.get("seconds", 0.0)
        seconds["left_out"] += spent.get("left_out_seconds", 0.0)
    return {f"{name}_hours": round(value / 3600, 3) for name, value in seconds.items()}


def versions() -> dict[str, str]:
    installed = {each.metadata["Name"] for each in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in _PACKAGES if name in installed}
