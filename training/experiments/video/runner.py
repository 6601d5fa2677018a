"""Carrying out a plan of experiments on video, in the order and with the failures of training/experiments/runner.py.

Owns what is written when a job ends. How to film, train, probe and evaluate is `VideoWork`'s, which work.py does and
tests fake.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, Protocol

from training.experiments.experiment import Condition
from training.experiments.plan_of_jobs import Plan
from training.experiments.runner import carry_out_jobs, try_scenes
from training.experiments.video.budget import ClipBudget
from training.experiments.video.plan import (
    ClipsJob,
    CodesJob,
    EyesJob,
    Job,
    PartJob,
    PartKind,
    PolicyJob,
    ProbeJob,
    TestJob,
    is_done,
)
from training.experiments.video.store import VideoStore
from training.latent_actions.settings import LatentActionSettings
from training.video_prior.recipe import VideoPriorRecipe, VideoPriorRun

CONDITION = Condition()  # no history: no recipe of these experiments trains any


class VideoWork(Protocol):
    """Each call resumes what it finds; the mappings are what is kept of it."""

    def film(self, name: str, clips: ClipBudget, directory: Path) -> Mapping[str, Any]: ...

    def train_eyes(self, recipe: VideoPriorRecipe, run: VideoPriorRun) -> Mapping[str, Any]: ...

    def train_codes(
        self, recipe: VideoPriorRecipe, settings: LatentActionSettings, run: VideoPriorRun
    ) -> Mapping[str, Any]: ...

    def probe(
        self,
        recipe: VideoPriorRecipe,
        settings: LatentActionSettings,
        run: VideoPriorRun,
        hands: Path,
        robots: Path,
    ) -> Mapping[str, Any]:
        """What probing.probe_by_clip says of trained codes."""
        ...

    def make_part(self, kind: PartKind, recipe: VideoPriorRecipe, run: VideoPriorRun) -> Mapping[str, Any]: ...

    def train_policy(self, recipe: VideoPriorRecipe, run: VideoPriorRun) -> Mapping[str, Any]:
        """Its checkpoint exists afterwards. Returns its `revision`."""
        ...

    def evaluate(
        self, checkpoint: Path, condition: Condition, task: str, first_seed: int, num_episodes: int
    ) -> Mapping[str, Any]:
        """As runner.Work's."""
        ...


def carry_out(plan: Plan[Job], store: VideoStore, work: VideoWork, executor: Executor, num_workers: int) -> None:
    """Do what is left of a plan. Raises ExperimentError when jobs failed, after the others are done."""

    def submit(job: Job) -> Future[None]:
        return executor.submit(perform, job, store, work)

    carry_out_jobs(plan.left, submit, lambda job: is_done(job, store), num_workers)


def perform(job: Job, store: VideoStore, work: VideoWork) -> None:
    """One job to its end, with its outcome written."""
    from training.export import git_commit

    if isinstance(job, TestJob):
        _test(job, store, work)
        return
    started = time.monotonic()
    found = _carried_out(job, store, work)
    # Of this sitting: what a job that was killed had done before is not counted.
    seconds = round(time.monotonic() - started, 1)
    store.write_outcome(job.key, {"seconds": seconds, "git_commit": git_commit(), **found})


def _carried_out(job: Job, store: VideoStore, work: VideoWork) -> Mapping[str, Any]:
    if isinstance(job, ClipsJob):
        return work.film(job.name, store.budget.clips, Path(store.clips[job.name]))
    name = job.key.replace(" ", "-")
    if isinstance(job, EyesJob):
        return work.train_eyes(job.run.recipe, store.prior_run(job.run.recipe, name))
    if isinstance(job, CodesJob):
        return work.train_codes(job.run.recipe, job.run.settings, store.prior_run(job.run.recipe, name))
    if isinstance(job, ProbeJob):
        hands, robots = (Path(store.clips[each]) for each in ("hands-testing", "robots-testing"))
        return work.probe(job.run.recipe, job.run.settings, store.prior_run(job.run.recipe, name), hands, robots)
    if isinstance(job, PartJob):
        return work.make_part(job.kind, job.run.recipe, store.prior_run(job.run.recipe, name))
    assert isinstance(job, PolicyJob)
    return work.train_policy(job.run.recipe, store.prior_run(job.run.recipe, job.run.digest))


def _test(job: TestJob, store: VideoStore, work: VideoWork) -> None:
    try_scenes(
        store.evaluation(job.run, job.task),
        store.checkpoint(job.run),
        CONDITION,
        job.task,
        range(job.run.first_seed, job.run.first_seed + job.num_episodes),
        work.evaluate,
        lambda evaluation: store.write_evaluation(job.run, job.task, evaluation),
    )
