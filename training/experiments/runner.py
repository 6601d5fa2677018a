"""Carrying out a plan: worker processes take the next job whose needs are done; a job that is done is never repeated.

Owns the order of work and what is written when a job ends. How to train and to evaluate is `Work`'s, which work.py
does and tests fake. A job that fails leaves those that need it undone and the rest going; the failures are raised at
the end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

from training.experiments.experiment import Condition
from training.experiments.plan import EvaluationJob, Job, Plan, Stage1Job, Stage2Job, is_done
from training.experiments.store import Store
from training.recipe import Recipe, RunDirectory

_EPISODES_AT_ONCE = 25  # what a kill may cost of an evaluation


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
        """A row of training/evaluate.py with the checkpoint's `revision`."""
        ...


def perform(job: Job, store: Store, work: Work) -> None:
    """One job to its end, with its outcome written."""
    if isinstance(job, Stage1Job):
        directory = store.stage1_directory(job.run.stage1_digest)
        store.write_stage1_outcome(job.run.stage1_digest, job.run.recipe, work.train_stage1(job.run.recipe, directory))
    elif isinstance(job, Stage2Job):
        run = job.run
        stage1 = store.stage1_directory(run.stage1_digest) if run.stage1_digest else None
        outcome = work.train_stage2(run.recipe, store.run_directory(run), stage1, job.until)
        store.write_run_outcome(run, {"steps": job.until, **outcome})
    else:
        _evaluate(job, store, work)


def _evaluate(job: EvaluationJob, store: Store, work: Work) -> None:
    checkpoint = store.checkpoint(job.run, job.step)
    evaluation = store.evaluation(job.run, job.step, job.condition, job.task)
    while (tried := len(evaluation.seeds)) < job.num_episodes:
        started = time.monotonic()
        row = work.evaluate(
            checkpoint,
            job.condition,
            job.task,
            job.run.recipe.evaluation.first_seed + tried,
            min(_EPISODES_AT_ONCE, job.num_episodes - tried),
        )
        if evaluation.seeds and evaluation.revision != row["revision"]:
            raise ExperimentError(
                f"{checkpoint} is revision {row['revision']}, its first {tried} scenes were tried with "
                f"{evaluation.revision}; delete those results or the checkpoint"
            )
        evaluation = evaluation.plus(row, time.monotonic() - started)
        store.write_evaluation(job.run, job.step, job.condition, job.task, evaluation)


def carry_out(plan: Plan, store: Store, work: Work, executor: Executor, num_workers: int) -> None:
    """Do what is left of a plan. Raises ExperimentError when jobs failed, after the others are done."""
    waiting = list(plan.left)
    open_keys = {job.key for job in waiting}
    running: dict[Future[None], Job] = {}
    failures: list[str] = []
    while waiting or running:
        while len(running) < num_workers and (job := _next(waiting, open_keys)) is not None:
            waiting.remove(job)
            running[executor.submit(perform, job, store, work)] = job
        if not running:
            break
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            error = future.exception()
            if isinstance(error, BrokenProcessPool) or (error is not None and not isinstance(error, Exception)):
                raise error
            if error is None and is_done(job, store):
                open_keys.remove(job.key)
                _report(f"done: {job.key} ({len(waiting) + len(running)} left)")
            else:
                failures.append(f"{job.key}: {type(error).__name__}: {error}")
                _report(f"failed: {failures[-1]}")
    if failures:
        skipped = f"; {len(waiting)} jobs that need them were not tried" if waiting else ""
        raise ExperimentError(f"{len(failures)} jobs failed{skipped}: " + "; ".join(failures))


def _next(waiting: Sequence[Job], open_keys: set[str]) -> Job | None:
    return next((job for job in waiting if not open_keys.intersection(job.needs)), None)


def _report(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
