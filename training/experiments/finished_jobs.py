"""What finished jobs left behind, weights and most of the logs apart: results/NAME/jobs.json, to go on from elsewhere.

Owns that file's form and which of it a store takes up: by recipe, whatever machine recorded the data, and whole runs
alone. Weights are not in it: more test episodes of a policy that was trained elsewhere need its training again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.experiments.compute import read_log, training_steps, usual_seconds
from training.experiments.plan import EvaluationJob, Job, Stage1Job, Stage2Job, is_done
from training.experiments.store import Evaluation, Store, read_json
from training.json_file import append_line, write_json

_FILE = "jobs.json"
_LOGGED = ("prediction", "gradient_norm")

Values = Mapping[str, Any]


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
    write_json(directory / _FILE, found)


def take_up_finished_jobs(jobs: Sequence[Job], store: Store, results: Path) -> int:
    """Note in the store that those of `jobs` are done which a jobs.json below `results` has; returns how many were.

    A policy is taken up when that leaves nothing of it to do, for its weights are not there, and when it was not begun
    here; a prior, or a policy that others start from, when all that need it are. Raises ValueError that names a file of
    another form.
    """
    left = [job for job in jobs if not is_done(job, store)]
    priors, policies = _read(sorted(results.glob(f"*/{_FILE}")))
    missing = _not_whole(left, policies, store)
    needed = {job.run.stage1_recipe_digest for job in left if job.run.recipe_digest in missing}
    # A policy's tests first: what a kill leaves is then not begun.
    for job in sorted(left, key=lambda job: isinstance(job, Stage2Job)):
        run = job.run
        if isinstance(job, Stage1Job):
            if run.stage1_recipe_digest in priors and run.stage1_recipe_digest not in needed:
                store.write_stage1_outcome(run.stage1_digest, run.recipe, priors[run.stage1_recipe_digest])
        elif run.recipe_digest in missing:
            continue
        elif isinstance(job, EvaluationJob):
            test = Evaluation.from_json(policies[run.recipe_digest]["tests"][_test(job)])
            store.write_evaluation(run, job.step, job.condition, job.task, test)
        else:
            policy = policies[run.recipe_digest]
            for row in policy["log"]:
                append_line(store.run_directory(run).stage2 / "metrics.jsonl", row)
            store.write_run_outcome(run, policy["outcome"])
    return sum(is_done(job, store) for job in left)


def _not_whole(left: Sequence[Job], policies: Mapping[str, Values], store: Store) -> set[str]:
    """The recipes' digests of which something is still to be done here."""
    of_policies = [job for job in left if not isinstance(job, Stage1Job)]
    missing = {
        job.run.recipe_digest
        for job in of_policies
        if store.is_begun(job.run) or not _holds(policies.get(job.run.recipe_digest), job)
    }
    parents = {
        job.run.parent.recipe_digest for job in of_policies if job.run.parent and job.run.recipe_digest in missing
    }
    return missing | parents


def _holds(policy: Values | None, job: Stage2Job | EvaluationJob) -> bool:
    if policy is None:
        return False
    if isinstance(job, EvaluationJob):
        return len(policy["tests"].get(_test(job), {"outcomes": ""})["outcomes"]) >= job.num_episodes
    ends = job.until == job.run.recipe.stage2.schedule.num_steps
    return policy["outcome"]["steps"] >= job.until and (ends or len(policy["log"]) >= job.until)


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
        "config": {name: config.get(name) for name in ("execution_horizon", "action_horizon")},
    }
    log = []
    if job.until < run.recipe.stage2.schedule.num_steps:
        # The log of these steps is all that is wanted of it.
        rows = [row for row in read_log(directory) if row["step"] < job.until]
        log = [{"step": row["step"], **{name: row[name] for name in _LOGGED}} for row in rows]
    return {"outcome": {**outcome, "step_s": {each.kind.phase: usual_seconds(each) for each in steps}}, "log": log}


def _test(job: EvaluationJob) -> str:
    return f"step {job.step} {job.condition.name} {job.task}"


def _read(paths: Iterable[Path]) -> tuple[Mapping[str, Values], Mapping[str, Values]]:
    """Priors and policies by the digest of their recipe.

    Of two trainings of one recipe the longer one is taken, or the first; a log of first steps may be the other's.
    """
    priors: dict[str, Values] = {}
    policies: dict[str, Values] = {}
    for path in paths:
        values = read_json(path)
        if not isinstance(values, Mapping) or set(values) != {"stage1", "runs"}:
            raise ValueError(f"{path} is not what `experiment NAME --collect` writes: an object of stage1 and runs")
        priors = {**values["stage1"], **priors}
        for digest, policy in values["runs"].items():
            policies[digest] = _of_both(policies[digest], policy) if digest in policies else policy
    return priors, policies


def _of_both(known: Values, other: Values) -> dict[str, Any]:
    outcome = max(known["outcome"], other["outcome"], key=lambda outcome: outcome["steps"])
    tests: dict[str, Values] = {}
    for policy in (known, other):
        if _training(policy["outcome"]) == _training(outcome):
            for name, test in policy["tests"].items():
                tests[name] = max(tests.get(name, test), test, key=lambda test: len(test["outcomes"]))
    return {"outcome": outcome, "log": max(known["log"], other["log"], key=len), "tests": tests}


def _training(outcome: Values) -> tuple[Any, ...]:
    return tuple(outcome[name] for name in ("digest", "revision", "steps"))
