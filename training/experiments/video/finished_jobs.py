"""What finished jobs on video left behind, clips and weights apart: results/NAME/jobs.json, to go on from elsewhere.

Owns that file's form and which of it a store takes up: by what a job's key is whatever machine recorded the data. Each
outcome has the `key` of its job where it was done; a policy's has its tests, and of its checkpoint, alignment and logs
what reports say. It is one file in a store: a kill leaves no part of it there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.experiments.jobs_file import (
    FILE,
    PLAYED,
    VIDEO,
    Fields,
    Values,
    check_tests,
    checked,
    has_scenes,
    longest_tests,
    read_jobs_files,
)
from training.experiments.plan_of_jobs import Plan
from training.experiments.video.compute import step_seconds
from training.experiments.video.experiment import VideoExperiment
from training.experiments.video.plan import Job, PolicyJob, TestJob, plan, wanted
from training.experiments.video.store import PolicyRun, VideoStore
from training.json_file import write_text
from training.recipe import Recipe

_OUTCOME: Fields = {"key": "text", "seconds": "a number", "git_commit": "text"}
_OF_KIND: Mapping[str, Fields] = {
    "probe": {
        "num_pairs": "a whole number",
        "bodies": "a list",
        "matching": "a list",
        "num_directions_removed": "a list",
        "sums": "an object",
    },
    "policy": {"revision": "text", "tests": "an object"},
}
_OPTIONAL: Fields = {"config": "an object", "scores": "an object", "step_s": "an object"}

# By the key of a job for the recipe alone: its outcomes, of each training one.
_Told = Mapping[str, Sequence[Values]]


def write_finished_jobs(experiment: VideoExperiment, store: VideoStore, seeds: Sequence[int], directory: Path) -> None:
    """Of those of one experiment that are done, tests that are done in part among them; a job on a line."""
    keys = _keys_of_recipes([experiment], store, seeds)
    found: dict[str, Values] = {}
    for job in plan([experiment], store, seeds).jobs:
        outcome = store.outcome(job.key)
        if outcome is not None:
            more = _policy(job.run, store) if isinstance(job, PolicyJob) else {}
            found[keys[job.key]] = {"key": store.key_where_done(job.key), **outcome, **more}
    # A probe is thousands of numbers, each of which would have a line of its own.
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(outcome)}" for key, outcome in found.items())
    write_text(directory / FILE, f'{{"about": "{VIDEO}", "jobs": {{\n{lines}\n}}}}\n')


def take_up_finished_jobs(
    experiments: Sequence[VideoExperiment], store: VideoStore, seeds: Sequence[int], results: Path
) -> int:
    """Note in the store that those jobs are done which a jobs.json below `results` has; returns how many were.

    A policy is taken up when that leaves nothing of it to do and when none that was trained here is there; clips and
    parts, which are not there, when all that need them are done. Raises ValueError that names a file of another form.
    """
    told, keys = _read(results), _keys_of_recipes(experiments, store, seeds)
    planned = plan(experiments, store, seeds)
    policies = _whole_policies(planned, told, keys)
    taken: dict[str, Values] = {}
    needed: set[str] = set()
    for job in reversed(planned.left):
        if isinstance(job, PolicyJob | TestJob):
            outcome = policies.get(job.run.key)
        else:
            outcome = next(iter(told.get(keys[job.key], ())), None)
        if outcome is None or job.key in needed:
            needed.update(job.needs)
        elif not isinstance(job, TestJob):
            taken[job.key] = outcome
    # What is needed comes first: after a kill no part is left to make that nothing needs.
    for key in reversed(taken):
        store.write_outcome(key, taken[key])
    return len(planned.left) - len(plan(experiments, store, seeds).left)


def _whole_policies(planned: Plan[Job], told: _Told, keys: Mapping[str, str]) -> Mapping[str, Values]:
    """Of each policy that is left, so none that was trained here, the first told training that leaves nothing of it."""
    tests: dict[str, list[TestJob]] = {}
    for job in planned.jobs:
        if isinstance(job, TestJob):
            tests.setdefault(job.run.key, []).append(job)
    whole = {}
    for job in planned.left:
        if isinstance(job, PolicyJob):
            trainings = told.get(keys[job.key], ())
            fit = [outcome for outcome in trainings if all(_has(outcome, test) for test in tests[job.key])]
            if fit:
                whole[job.key] = fit[0]
    return whole


def _has(outcome: Values, job: TestJob) -> bool:
    return has_scenes(outcome["tests"].get(job.task), job.run.first_seed, job.num_episodes)


def _keys_of_recipes(
    experiments: Sequence[VideoExperiment], store: VideoStore, seeds: Sequence[int]
) -> Mapping[str, str]:
    """By a job's key what it would be if recordings had no digests: what is wanted, whatever recordings it reads."""
    jobs = wanted(experiments, store, seeds)
    of_recipes = wanted(experiments, replace(store, data_identity=_no_recordings), seeds)
    return {job.key: of_recipe.key for job, of_recipe in zip(jobs, of_recipes, strict=True)}


def _no_recordings(recipe: Recipe) -> Mapping[str, str]:
    return {}


def _policy(run: PolicyRun, store: VideoStore) -> Values:
    config, scores, step_s = store.config(run), store.alignment_scores(run), step_seconds(run, store)
    tests = {task: store.evaluation(run, task) for task in store.budget.tasks}
    return {
        **({"config": {name: config.get(name) for name in PLAYED}} if config is not None else {}),
        **({"scores": scores} if scores else {}),
        **({"step_s": step_s} if step_s else {}),
        "tests": {task: evaluation.to_json() for task, evaluation in tests.items() if evaluation.seeds},
    }


def _read(results: Path) -> _Told:
    told: dict[str, list[dict[str, Any]]] = {}
    for values in read_jobs_files(results, VIDEO, _check):
        for key, outcome in values["jobs"].items():
            known = told.setdefault(key, [])
            same = next((each for each in known if _training(each) == _training(outcome)), None)
            if same is None:
                known.append(dict(outcome))
            elif "tests" in same:
                same["tests"] = longest_tests(same["tests"], outcome["tests"])
    return told


def _training(outcome: Values) -> tuple[str, str | None]:
    return outcome["key"], outcome.get("revision")


def _check(values: Values) -> None:
    checked(values, "it", {"jobs": "an object"})
    for key, outcome in values["jobs"].items():
        here, kind = f"jobs[{key!r}]", key.partition(" ")[0]
        there: Fields = {name: what for name, what in _OPTIONAL.items() if name in checked(outcome, here)}
        checked(outcome, here, {**_OUTCOME, **_OF_KIND.get(kind, {}), **there})
        if kind == "probe":
            checked(outcome["sums"], f"{here}.sums", dict.fromkeys(outcome["sums"], "a list"))
        if kind == "policy":
            check_tests(outcome["tests"], f"{here}.tests")
        for name in ("scores", "step_s"):
            checked(outcome.get(name, {}), f"{here}.{name}", dict.fromkeys(outcome.get(name, ()), "a number"))
