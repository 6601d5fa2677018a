"""From what was probed and tested to results/NAME/results.json: figures, successes, intervals, costs, recipes.

Owns what is counted. A policy's results have the form of training/experiments/results.py, a probe's have `figures` in
place of checkpoints; `of` is "probes" or "policies". Only seeds of which every arm concerned is complete enter an
interval.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.experiments.outcomes import task_figures
from training.experiments.plan_of_jobs import Plan
from training.experiments.results import file_name, results_name, testing, versions
from training.experiments.statistics import (
    Estimate,
    Outcomes,
    difference_of_differences,
    mean_success,
    paired_difference,
)
from training.experiments.verdict import verdict
from training.experiments.video.compute import compute_of
from training.experiments.video.experiment import (
    FigureClaim,
    PolicyArm,
    PolicyClaim,
    PolicyExperiment,
    ProbedArm,
    ProbeExperiment,
    VideoExperiment,
)
from training.experiments.video.figures import FIGURES, estimate, sample_of
from training.experiments.video.finished_jobs import write_finished_jobs
from training.experiments.video.plan import Job, ProbeJob, from_nothing, key_where_done, measured, plan
from training.experiments.video.store import VideoStore
from training.json_file import write_json

PROBES, POLICIES = "probes", "policies"


def collect(experiment: VideoExperiment, store: VideoStore, seeds: Sequence[int]) -> dict[str, Any]:
    """Everything that a report of this experiment says; partial when jobs are left."""
    from training.export import git_commit, hardware

    budget, jobs = store.budget, plan([experiment], store, seeds)
    found = (
        _probed(experiment, store, seeds, jobs)
        if isinstance(experiment, ProbeExperiment)
        else _tested(experiment, store, seeds)
    )
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "question": experiment.question,
        "paper": experiment.paper,
        "notes": list(experiment.notes),
        "budget": {
            "name": budget.name,
            "what": budget.what,
            "size": budget.recipe.base.size,
            "seeds": list(budget.seeds),
            "num_workers": budget.num_workers,
            "episodes": budget.episodes,
            "clips": {name: budget.clips.number(name) for name in store.clips},
        },
        "seeds": list(seeds),
        "jobs": jobs.counts(),
        **found,
        "planned_hours": round(from_nothing(jobs, store).hours(budget.num_workers), 2),
        "seconds": {key_where_done(job, store): round(measured(job, store), 1) for job in jobs.jobs},
        "git_commits": sorted(
            {outcome["git_commit"] for job in jobs.jobs if (outcome := store.outcome(job.key)) is not None}
        ),
        "versions": {"python": platform.python_version(), **versions()},
        "hardware": hardware(),
        "git_commit": git_commit(),
    }


def write_results(
    experiment: VideoExperiment, values: Mapping[str, Any], results: Path, store: VideoStore, seeds: Sequence[int]
) -> Path:
    """results.json, jobs.json and the exact recipes of all arms; returns the directory."""
    directory = results / results_name(experiment.name, store.budget.name)
    for arm in experiment.arms:
        if isinstance(arm, ProbedArm):
            run = store.codes_run(arm.training, seeds[0])
            recipe = {"eyes": run.recipe.eyes.to_json(), "latent_actions": run.settings.to_json()}
        else:
            recipe = store.policy_run(arm.training, seeds[0]).recipe.to_json()
        write_json(directory / "recipes" / f"{file_name(arm.name)}.json", recipe)
    write_finished_jobs(experiment, store, seeds, directory)
    write_json(directory / "results.json", values)
    return directory


def _probed(experiment: ProbeExperiment, store: VideoStore, seeds: Sequence[int], jobs: Plan[Job]) -> dict[str, Any]:
    by_digest = {job.run.digest: job.key for job in jobs.jobs if isinstance(job, ProbeJob)}
    probes: dict[str, dict[int, Mapping[str, Any]]] = {}
    runs: dict[str, list[dict[str, Any]]] = {}
    for arm in experiment.arms:
        digests = {seed: store.codes_run(arm.training, seed).digest for seed in seeds}
        found = {seed: store.outcome(by_digest[digest]) for seed, digest in digests.items()}
        probes[arm.name] = {seed: probe for seed, probe in found.items() if probe is not None}
        runs[arm.name] = [
            {"seed": seed, "digest": digest, "told": store.is_told(by_digest[digest])}
            for seed, digest in digests.items()
        ]
    some = next((probe for of in probes.values() for probe in of.values()), None)
    return {
        "of": PROBES,
        "shown": list(experiment.shown),
        "drawn": list(experiment.drawn),
        "num_pairs": some["num_pairs"] if some else 0,
        "bodies": some["bodies"] if some else [],
        "matching": some["matching"] if some else [],
        "num_directions_removed": sorted(
            {number for of in probes.values() for probe in of.values() for number in probe["num_directions_removed"]}
        ),
        "arms": [_probed_arm(arm, experiment.shown, probes[arm.name], runs[arm.name]) for arm in experiment.arms],
        "claims": [_figure_claim(claim, probes, seeds) for claim in experiment.claims],
    }


def _probed_arm(
    arm: ProbedArm,
    shown: Sequence[str],
    probes: Mapping[int, Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    figures, by_seed = {}, {}
    for name in shown:
        sample = sample_of(name, list(probes.values()))
        if sample is not None:
            figures[name] = estimate(sample).to_json()
            by_seed[name] = [float(f"{value:.4g}") for value in sample.by_seed]
    return {
        "name": arm.name,
        "paper": dict(arm.paper),
        "figures": figures,
        "by_seed": by_seed,
        "runs": runs,
    }


def _figure_claim(
    claim: FigureClaim, probes: Mapping[str, Mapping[int, Mapping[str, Any]]], seeds: Sequence[int]
) -> dict[str, Any]:
    complete = [seed for seed in seeds if all(seed in probes[term.arm] for term in claim.terms)]
    samples = [sample_of(term.figure, [probes[term.arm][seed] for seed in complete]) for term in claim.terms]
    found: Estimate | None = None
    first, *second = samples
    if first is not None and all(sample is not None for sample in second):
        found = estimate(first, second[0] if second else None)
    return {
        "claim": claim.claim,
        "first": {"arm": claim.first.arm, "figure": claim.first.figure},
        "second": {"arm": claim.second.arm, "figure": claim.second.figure} if claim.second else None,
        "kind": FIGURES[claim.first.figure].kind,
        "than": claim.than,
        "expected": claim.expected,
        "paper": claim.paper,
        "estimate": found.to_json() if found else None,
        "verdict": verdict(found, claim.expected, neutral=claim.than),
    }


def _tested(experiment: PolicyExperiment, store: VideoStore, seeds: Sequence[int]) -> dict[str, Any]:
    budget = store.budget
    solved = {
        arm.name: {
            seed: [
                store.evaluation(store.policy_run(arm.training, seed), task).solved[: budget.episodes]
                for task in budget.tasks
            ]
            for seed in seeds
        }
        for arm in experiment.arms
    }
    return {
        "of": POLICIES,
        "figure": experiment.figure,
        "axis": experiment.axis,
        "testing": testing(
            (store.config(store.policy_run(arm.training, seeds[0])) for arm in experiment.arms),
            budget.recipe.base.evaluation.first_seed,
        ),
        "tasks": {task: {"body": budget.suite.tasks[task].body} for task in budget.tasks},
        "arms": [_tested_arm(arm, solved[arm.name], store) for arm in experiment.arms],
        "claims": [
            {
                **_policy_claim(claim, solved, budget.episodes),
                "compute": compute_of(claim, experiment, store, seeds),
            }
            for claim in experiment.claims
        ],
    }


def _tested_arm(arm: PolicyArm, solved: Mapping[int, Sequence[Sequence[bool]]], store: VideoStore) -> dict[str, Any]:
    seeds = _complete(solved, store.budget.episodes)
    runs, scores = [], []
    for seed in solved:
        run = store.policy_run(arm.training, seed)
        outcome, aligned = store.outcome(run.key) or {}, store.alignment_scores(run)
        scores += [aligned] if aligned.get("num_pairs") else []
        runs.append(
            {
                "seed": seed,
                "digest": store.trained_digest(run),
                "elsewhere": store.trained_digest(run) != run.digest,
                "revision": outcome.get("revision", ""),
            }
        )
    return {
        "name": arm.name,
        "family": arm.family,
        "position": arm.position,
        "success": mean_success(_stacked(solved, seeds)).to_json() if seeds else None,
        "tasks": {
            task: task_figures({seed: of[index] for seed, of in solved.items()})
            for index, task in enumerate(store.budget.tasks)
        },
        "alignment": [dict(each) for each in scores],
        "runs": runs,
    }


def _policy_claim(
    claim: PolicyClaim, solved: Mapping[str, Mapping[int, Sequence[Sequence[bool]]]], episodes: int
) -> dict[str, Any]:
    complete = [_complete(solved[arm], episodes) for arm in claim.arms]
    seeds = [seed for seed in complete[0] if all(seed in each for each in complete)]
    found: Estimate | None = None
    if seeds:
        arm, baseline, *than = (_stacked(solved[name], seeds) for name in claim.arms)
        found = (
            difference_of_differences((arm, baseline), (than[0], than[1])) if than else paired_difference(arm, baseline)
        )
    return {
        "claim": claim.claim,
        "arm": claim.arm,
        "baseline": claim.baseline,
        "than": list(claim.than or ()),
        "kind": "success",
        "expected": claim.expected,
        "paper": None if claim.paper_points is None else claim.paper_points / 100,
        "estimate": found.to_json() if found else None,
        "verdict": verdict(found, claim.expected),
    }


def _complete(solved: Mapping[int, Sequence[Sequence[bool]]], episodes: int) -> list[int]:
    return [seed for seed, tasks in solved.items() if all(len(each) >= episodes for each in tasks)]


def _stacked(solved: Mapping[int, Sequence[Sequence[bool]]], seeds: Sequence[int]) -> Outcomes:
    return np.array([solved[seed] for seed in seeds], np.float64)
