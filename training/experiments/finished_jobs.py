"""What finished jobs left behind, weights and most of the logs apart: results/NAME/jobs.json, to go on from elsewhere.

Owns that file's form and which of it a store takes up: by recipe, whatever machine recorded the data, and whole runs
alone. Weights are not in it: more test episodes of a policy that was trained elsewhere need its training again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.experiments.compute import first_steps, training_steps, usual_seconds
from training.experiments.jobs_file import (
    FILE,
    PLAYED,
    Fields,
    Values,
    check_tests,
    checked,
    has_scenes,
    longest_tests,
    read_jobs_files,
)
from training.experiments.plan import EvaluationJob, Job, Stage1Job, Stage2Job, is_done
from training.experiments.store import Evaluation, Run, Store
from training.json_file import write_json, write_text

_LOGGED = ("prediction", "gradient_norm")
_TRAINING: Fields = {"digest": "text", "revision": "text", "steps": "a whole number"}


def write_finished_jobs(jobs: Sequence[Job], store: Store, directory: Path) -> None:
    """Of those of one experiment that are done, tests that are done in part among them."""
    found: dict[str, dict[str, Any]] = {"stage1": {}, "runs": {}}
    for job in jobs:
        if isinstance(job, EvaluationJob):
            evaluation = store.evaluation(job.run, job.step, job.condition, job.task)
            if evaluation.seeds and job.run.recipe_digest in found["runs"]:
                found["runs"][job.run.recipe_digest]["tests"][_test(job)] = evaluation.to_json()
        elif not is_done(job, store):
            continue
        elif isinstance(job, Stage1Job):
            found["stage1"][job.run.stage1_recipe_digest] = _prior(job, store)
        else:
            found["runs"][job.run.recipe_digest] = {**_policy(job, store), "tests": {}}
    write_json(directory / FILE, found)


def take_up_finished_jobs(jobs: Sequence[Job], store: Store, results: Path) -> int:
    """Note in the store that those of `jobs` are done which a jobs.json below `results` has; returns how many were.

    A policy is taken up when that leaves nothing of it to do but to log its first steps, for its weights are not there,
    and when none that was trained to its end is here; a prior, or a policy that others start from, when all that need
    it are. Raises ValueError that names a file of another form.
    """
    left = [job for job in jobs if not is_done(job, store)]
    told = _read(results)
    policies = _whole_policies(left, told, store)
    # Its tests last: a kill then leaves no test without the policy that it is of.
    for job in sorted(left, key=lambda job: isinstance(job, EvaluationJob)):
        if isinstance(job, Stage1Job) or job.run.digest not in policies:
            continue
        policy = policies[job.run.digest]
        if isinstance(job, Stage2Job):
            _take_log(job, told.logs.get(job.run.recipe_digest, ()), store)
            store.write_run_outcome(job.run, policy.outcome)
        else:
            test = Evaluation.from_json(policy.tests[_test(job)])
            store.write_evaluation(job.run, job.step, job.condition, job.task, test)
    needed = {key for job in left if not is_done(job, store) for key in job.needs}
    for job in left:
        if isinstance(job, Stage1Job) and job.key not in needed and job.run.stage1_recipe_digest in told.priors:
            store.write_stage1_outcome(job.run.stage1_digest, job.run.recipe, told.priors[job.run.stage1_recipe_digest])
    return sum(is_done(job, store) for job in left)


@dataclass(kw_only=True)
class _Policy:
    """One training of a recipe, and the tests of what came of it by their names."""

    outcome: Values
    tests: dict[str, Values] = field(default_factory=dict)

    def has(self, job: Stage2Job | EvaluationJob) -> bool:
        if isinstance(job, Stage2Job):
            return self.outcome["steps"] >= job.until
        return has_scenes(self.tests.get(_test(job)), job.run.recipe.evaluation.first_seed, job.num_episodes)


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What all the files say, by the digest of a recipe; a log of first steps may be any training's."""

    priors: dict[str, Values] = field(default_factory=dict)
    policies: dict[str, list[_Policy]] = field(default_factory=dict)
    logs: dict[str, Sequence[Values]] = field(default_factory=dict)

    def add(self, values: Values) -> None:
        for recipe, prior in values["stage1"].items():
            self.priors.setdefault(recipe, prior)
        for recipe, run in values["runs"].items():
            self.logs[recipe] = max(self.logs.get(recipe, ()), run["log"], key=len)
            known = self.policies.setdefault(recipe, [])
            same = [policy for policy in known if _training(policy.outcome) == _training(run["outcome"])]
            if not same:
                same = [_Policy(outcome=run["outcome"])]
                known += same
            same[0].tests = longest_tests(same[0].tests, run["tests"])


def _whole_policies(left: Iterable[Job], told: _Told, store: Store) -> Mapping[str, _Policy]:
    """By the digests of runs: of the trainings of its recipe the longest that leaves nothing to do, or the first."""
    of_run: dict[str, list[Stage2Job | EvaluationJob]] = {}
    for job in left:
        if not isinstance(job, Stage1Job):
            of_run.setdefault(job.run.digest, []).append(job)
    whole = {}
    for digest, jobs in of_run.items():
        run = jobs[0].run
        fit = [
            policy
            for policy in told.policies.get(run.recipe_digest, ())
            if _may_be_taken(policy, run, store) and all(policy.has(job) for job in jobs)
        ]
        if fit:
            whole[digest] = max(fit, key=lambda policy: policy.outcome["steps"])
    for digest, jobs in of_run.items():
        parent = jobs[0].run.parent
        if parent and digest not in whole and any(isinstance(job, Stage2Job) for job in jobs):
            whole.pop(parent.digest, None)
    return whole


def _may_be_taken(policy: _Policy, run: Run, store: Store) -> bool:
    """Whether none of another training that is trained to its end is here: what is tested may be tested already."""
    outcome = store.run_outcome(run)
    if outcome is None or outcome["steps"] < run.recipe.stage2.schedule.num_steps:
        return True
    return store.is_told(run) and _training(outcome) == _training(policy.outcome)


def _take_log(job: Stage2Job, log: Sequence[Values], store: Store) -> None:
    if len(log) > len(first_steps(job.run, store, len(log))):
        path = store.run_directory(job.run).stage2 / "metrics.jsonl"
        write_text(path, "".join(json.dumps(row) + "\n" for row in log))


def _prior(job: Stage1Job, store: Store) -> Values:
    (steps,) = (each for each in training_steps(job.run, store) if each.kind.phase == "stage 1")
    outcome = store.stage1_outcome(job.run.stage1_digest) or {}
    return {"digest": job.run.stage1_digest, **outcome, "step_s": {"stage 1": usual_seconds(steps)}}


def _policy(job: Stage2Job, store: Store) -> Values:
    run, directory = job.run, store.run_directory(job.run).stage2
    steps = (each for each in training_steps(run, store) if each.directory == directory)
    config = store.config(run) or {}
    outcome = {
        "digest": run.digest,
        "revision": "",
        **(store.run_outcome(run) or {}),
        "config": {name: config.get(name) for name in PLAYED},
    }
    return {
        "outcome": {**outcome, "step_s": {each.kind.phase: usual_seconds(each) for each in steps}},
        # The log of these steps is all that is wanted of it.
        "log": [
            {"step": row["step"], **{name: row[name] for name in _LOGGED}}
            for row in first_steps(run, store, job.logged)
        ],
    }


def _test(job: EvaluationJob) -> str:
    return f"step {job.step} {job.condition.name} {job.task}"


def _training(outcome: Values) -> tuple[Any, ...]:
    return tuple(outcome[name] for name in _TRAINING)


def _read(results: Path) -> _Told:
    told = _Told()
    for values in read_jobs_files(results, None, _check):
        told.add(values)
    return told


def _check(values: Values) -> None:
    checked(values, "it", {"stage1": "an object", "runs": "an object"})
    for digest, prior in values["stage1"].items():
        checked(prior, f"stage1.{digest}", {"digest": "text", "seconds": "a number"})
    for digest, run in values["runs"].items():
        checked(run, f"runs.{digest}", {"outcome": "an object", "log": "a list", "tests": "an object"})
        checked(run["outcome"], f"runs.{digest}.outcome", _TRAINING)
        check_tests(run["tests"], f"runs.{digest}.tests")
