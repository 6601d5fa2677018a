"""The jobs of some experiments, which of them are done, and what the rest will take.

Owns what a job is, what it waits for and its estimated seconds. Carries nothing out: that is runner.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from training.experiments.budget import Budget
from training.experiments.compute import first_steps
from training.experiments.experiment import Arm, BaseName, Condition, Experiment
from training.experiments.plan_of_jobs import Plan, measured_factor
from training.experiments.store import Run, Store

Kind = Literal["stage 1", "stage 2", "evaluation"]
Part = Literal["all", "done", "left"]
KINDS: tuple[Kind, ...] = ("stage 1", "stage 2", "evaluation")


@dataclass(frozen=True, kw_only=True)
class Stage1Job:
    run: Run  # any run whose stage 1 this is

    @property
    def key(self) -> str:
        return f"stage 1 {self.run.stage1_digest}"

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    @property
    def kind(self) -> Kind:
        return "stage 1"


@dataclass(frozen=True, kw_only=True)
class Stage2Job:
    """Train to step `until`; of its first `logged` steps the log is wanted too."""

    run: Run
    until: int
    logged: int = 0

    @property
    def key(self) -> str:
        return f"stage 2 {self.run.digest}"

    @property
    def needs(self) -> tuple[str, ...]:
        stage1 = (f"stage 1 {self.run.stage1_digest}",) if self.run.stage1_digest else ()
        parent = (f"stage 2 {self.run.parent.digest}",) if self.run.parent else ()
        return stage1 + parent

    @property
    def kind(self) -> Kind:
        return "stage 2"


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    run: Run
    step: int
    condition: Condition
    task: str
    num_episodes: int

    @property
    def key(self) -> str:
        return f"evaluation {self.run.digest} step {self.step} {self.condition.name} {self.task}"

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"stage 2 {self.run.digest}",)

    @property
    def kind(self) -> Kind:
        return "evaluation"


Job = Stage1Job | Stage2Job | EvaluationJob


def checkpoint_steps(arm: Arm, run: Run) -> tuple[int, ...]:
    """The steps at which an arm is tested: its snapshots, then its end; none when it stops early."""
    return () if arm.until else (*run.recipe.stage2.snapshots, run.recipe.stage2.schedule.num_steps)


def tested_steps(experiment: Experiment, arm: Arm, run: Run) -> tuple[int, ...]:
    """Those of `checkpoint_steps` that this experiment asks for: all for a curve, else the end."""
    return checkpoint_steps(arm, run) if experiment.figure == "curve" else checkpoint_steps(arm, run)[-1:]


def plan(experiments: Sequence[Experiment], store: Store, seeds: Sequence[int]) -> Plan[Job]:
    """All jobs and those left, at the budget's costs times what the costs of done jobs were off by."""
    jobs = _jobs(experiments, store, seeds)
    left = _left(jobs, store)
    factors = _measured_factors(jobs, store)
    seconds = {job.key: factors[job.kind] * _estimate(job, store, "left") for job in left}
    return Plan(kinds=KINDS, jobs=jobs, left=left, seconds=seconds)


def plan_from_nothing(experiments: Sequence[Experiment], store: Store, seeds: Sequence[int]) -> Plan[Job]:
    """The same jobs as if none was done, at the budget's own costs."""
    jobs = _jobs(experiments, store, seeds)
    return Plan(kinds=KINDS, jobs=jobs, left=jobs, seconds={job.key: _estimate(job, store, "all") for job in jobs})


def is_done(job: Job, store: Store) -> bool:
    if isinstance(job, Stage1Job):
        return store.stage1_outcome(job.run.stage1_digest) is not None
    if isinstance(job, Stage2Job):
        return store.trained_steps(job.run) >= job.until and not _lacks_log(job, store)
    return len(store.evaluation(job.run, job.step, job.condition, job.task).seeds) >= job.num_episodes


def lacks_log_alone(job: Stage2Job, store: Store) -> bool:
    """Whether its policy was trained elsewhere, and all that is left is to log its first steps here."""
    return store.trained_steps(job.run) >= job.until and _lacks_log(job, store)


def _lacks_log(job: Stage2Job, store: Store) -> bool:
    """Only what was told has none: a training writes its own."""
    return bool(job.logged) and store.is_told(job.run) and len(first_steps(job.run, store, job.logged)) < job.logged


def _left(jobs: Sequence[Job], store: Store) -> tuple[Job, ...]:
    """Those not done, and priors that only were told of and whose weights these need."""
    left = {job.key: job for job in jobs if not is_done(job, store)}
    needed = {key for job in left.values() for key in job.needs}
    for job in jobs:
        if isinstance(job, Stage1Job) and job.key in needed and store.is_told_stage1(job.run.stage1_digest):
            left[job.key] = job
    return tuple(job for job in jobs if job.key in left)


def _jobs(experiments: Sequence[Experiment], store: Store, seeds: Sequence[int]) -> tuple[Job, ...]:
    """Seed by seed, so that what there is after any time has all arms; what is wanted twice is one job."""
    jobs: dict[str, Job] = {}
    for seed in seeds:
        for experiment in experiments:
            for arm in experiment.arms:
                for job in _jobs_of(experiment, arm, store, seed):
                    jobs[job.key] = _greater(jobs.get(job.key), job)
    return tuple(jobs.values())


def _jobs_of(experiment: Experiment, arm: Arm, store: Store, seed: int) -> list[Job]:
    run = store.run(arm.training, seed)
    jobs: list[Job] = []
    for each in ([run.parent] if run.parent else []) + [run]:
        end = each.recipe.stage2.schedule.num_steps
        jobs += [Stage1Job(run=each)] if each.stage1_digest else []
        logged = min(arm.until, end) if arm.until and each is run else 0
        jobs.append(Stage2Job(run=each, until=logged or end, logged=logged))
    end = run.recipe.stage2.schedule.num_steps
    for step in reversed(tested_steps(experiment, arm, run)):
        wanted = store.budget.num_episodes(experiment.name) if step == end else store.budget.curve_episodes
        jobs += [
            EvaluationJob(run=run, step=step, condition=arm.condition, task=task, num_episodes=wanted)
            for task in store.budget.tasks(arm.training.base, arm.tasks)
        ]
    return jobs


def _greater(known: Job | None, job: Job) -> Job:
    """Of two wishes for the same thing, the one that contains both."""
    if isinstance(known, Stage2Job) and isinstance(job, Stage2Job):
        return replace(known, until=max(known.until, job.until), logged=max(known.logged, job.logged))
    if isinstance(known, EvaluationJob) and isinstance(job, EvaluationJob):
        return known if known.num_episodes >= job.num_episodes else job
    return known or job


def _estimate(job: Job, store: Store, part: Part) -> float:
    """The budget's seconds for a part of a job."""
    budget = store.budget
    if isinstance(job, EvaluationJob):
        tried = len(store.evaluation(job.run, job.step, job.condition, job.task).seeds)
        episodes = {"all": job.num_episodes, "done": tried, "left": job.num_episodes - tried}[part]
        return budget.evaluation_start_s + budget.episode_s[job.task] * episodes
    costs = budget.step_costs[_base(job.run, budget)]
    if isinstance(job, Stage1Job):
        return costs.start_s + costs.stage1_s * job.run.recipe.stage1.schedule.num_steps
    recipe, trained = job.run.recipe.stage2, store.trained_steps(job.run)
    left = (0, job.logged) if trained >= job.until else (trained, job.until)
    first, last = {"all": (0, job.until), "done": (0, trained), "left": left}[part]
    distilled = last if recipe.decay_steps is None else min(recipe.decay_steps, last)
    steps = (last - first) + (costs.distillation_factor - 1) * max(0, distilled - first)
    return costs.start_s + costs.stage2_s * (costs.history_factor if recipe.history else 1) * steps


def _base(run: Run, budget: Budget) -> BaseName:
    if run.parent is not None:
        return "adaptation"
    return "all" if run.recipe.data.tasks == budget.bases["all"].data.tasks else "subset"


def _measured_factors(jobs: Sequence[Job], store: Store) -> dict[Kind, float]:
    test_step_s = store.test_step_s()
    done = [job for job in jobs if is_done(job, store)]
    return {
        kind: measured_factor(
            [(_estimate(job, store, "done"), _measured(job, store, test_step_s)) for job in done if job.kind == kind]
        )
        for kind in KINDS
    }


def _measured(job: Job, store: Store, test_step_s: Mapping[str, float]) -> float:
    if isinstance(job, Stage1Job):
        return (store.stage1_outcome(job.run.stage1_digest) or {"seconds": 0.0})["seconds"]
    if isinstance(job, Stage2Job):
        return (store.run_outcome(job.run) or {"seconds": 0.0})["seconds"]
    evaluation = store.evaluation(job.run, job.step, job.condition, job.task)
    return evaluation.spent(test_step_s.get(job.task, 0.0)).seconds
