"""Carrying out a plan: worker processes take the next job whose needs are done; a job that is done is never repeated.

Owns the order of work and what is written when a job ends. How to train and to evaluate is `Work`'s, which work.py
does and tests fake. A job that fails leaves those that need it undone and the rest going; the failures are raised at
the end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol, TypeVar

from training.experiments.experiment import Condition
from training.experiments.plan import EvaluationJob, Job, Stage1Job, Stage2Job, is_done, lacks_log_alone
from training.experiments.plan_of_jobs import JobOfPlan, Plan
from training.experiments.store import Evaluation, Store
from training.recipe import Recipe, RunDirectory

_EPISODES_AT_ONCE = 25  # what a kill may cost of an evaluation


_Job = TypeVar("_Job", bound=JobOfPlan)


class ExperimentError(RuntimeError):
    """Some jobs failed; the message names each with its reason."""


class Work(Protocol):
    """Trains and tests. Each call resumes what it finds; the mappings are what is kept beside the weights."""

    def train_stage1(self, recipe: Recipe, directory: Path) -> Mapping[str, Any]:
        """Returns `seconds` and what else is to be known of it."""
        ...

    def train_stage2(
        self, recipe: Recipe, run: RunDirectory, stage1_directory: Path | None, until: int
    ) -> Mapping[str, Any]:
        """To step `until`; at the recipe's last step its checkpoint and all its snapshots exist. Returns `seconds`."""
        ...

    def evaluate(
        self, checkpoint: Path, condition: Condition, task: str, first_seed: int, num_episodes: int
    ) -> Mapping[str, Any]:
        """A row of training/evaluate.py with the checkpoint's `revision`, and the `git_commit` and the simulator's
        `versions` that made it.
        """
        ...


def perform(job: Job, store: Store, work: Work) -> None:
    """One job to its end, with its outcome written."""
    if isinstance(job, Stage1Job):
        directory = store.stage1_directory(job.run.stage1_digest)
        store.write_stage1_outcome(job.run.stage1_digest, job.run.recipe, work.train_stage1(job.run.recipe, directory))
    elif isinstance(job, Stage2Job):
        run = job.run
        stage1 = store.stage1_directory(run.stage1_digest) if run.stage1_digest else None
        if lacks_log_alone(job, store):
            work.train_stage2(run.recipe, store.run_directory(run), stage1, job.logged)
        else:
            outcome = work.train_stage2(run.recipe, store.run_directory(run), stage1, job.until)
            store.write_run_outcome(run, {"steps": job.until, **outcome})
    else:
        _evaluate(job, store, work)


def _evaluate(job: EvaluationJob, store: Store, work: Work) -> None:
    def keep(evaluation: Evaluation) -> None:
        store.write_evaluation(job.run, job.step, job.condition, job.task, evaluation)

    try_scenes(
        store.evaluation(job.run, job.step, job.condition, job.task),
        store.checkpoint(job.run, job.step),
        job.condition,
        job.task,
        range(job.run.recipe.evaluation.first_seed, job.run.recipe.evaluation.first_seed + job.num_episodes),
        work.evaluate,
        keep,
    )


def try_scenes(
    evaluation: Evaluation,
    checkpoint: Path,
    condition: Condition,
    task: str,
    seeds: range,
    evaluate: Callable[[Path, Condition, str, int, int], Mapping[str, Any]],
    keep: Callable[[Evaluation], None],
) -> None:
    """Try what `evaluation` lacks of these scenes, a few at a time; `keep` gets what there is after each few.

    `evaluate` is Work's. Raises ExperimentError when the checkpoint is not the one that was tested before.
    """
    while (tried := len(evaluation.seeds)) < len(seeds):
        started = time.monotonic()
        row = evaluate(checkpoint, condition, task, seeds[tried], min(_EPISODES_AT_ONCE, len(seeds) - tried))
        if evaluation.seeds and evaluation.revision != row["revision"]:
            raise ExperimentError(
                f"{checkpoint} is revision {row['revision']}, its first {tried} scenes were tried with "
                f"{evaluation.revision}; delete those results or the checkpoint"
            )
        evaluation = evaluation.plus(row, time.monotonic() - started)
        keep(evaluation)


def carry_out(plan: Plan[Job], store: Store, work: Work, executor: Executor, num_workers: int) -> None:
    """Do what is left of a plan. Raises ExperimentError when jobs failed, after the others are done."""

    def submit(job: Job) -> Future[None]:
        return executor.submit(perform, job, store, work)

    carry_out_jobs(plan.left, submit, lambda job: is_done(job, store), num_workers)


def carry_out_jobs(
    jobs: Sequence[_Job], submit: Callable[[_Job], Future[None]], is_done: Callable[[_Job], bool], num_workers: int
) -> None:
    """Do jobs in their order, each once those that it needs are done, at most `num_workers` at a time.

    Raises ExperimentError when jobs failed, after the others are done.
    """
    waiting = list(jobs)
    open_keys = {job.key for job in waiting}
    running: dict[Future[None], _Job] = {}
    failures: list[str] = []
    while waiting or running:
        while len(running) < num_workers and (job := _next(waiting, open_keys)) is not None:
            waiting.remove(job)
            running[submit(job)] = job
        if not running:
            break
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            error = future.exception()
            if isinstance(error, BrokenProcessPool) or (error is not None and not isinstance(error, Exception)):
                raise error
            if error is None and is_done(job):
                open_keys.remove(job.key)
                _report(f"done: {job.key} ({len(waiting) + len(running)} left)")
            else:
                reason = f"{type(error).__name__}: {error}" if error else "it ended and is not done"
                failures.append(f"{job.key}: {reason}")
                _report(f"failed: {failures[-1]}")
    if failures:
        skipped = f"; {len(waiting)} jobs that need them were not tried" if waiting else ""
        raise ExperimentError(f"{len(failures)} jobs failed{skipped}: " + "; ".join(failures))


def _next(waiting: Sequence[_Job], open_keys: set[str]) -> _Job | None:
    return next((job for job in waiting if not open_keys.intersection(job.needs)), None)


def _report(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
