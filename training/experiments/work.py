"""Training and testing for real: the training pipeline and closed-loop evaluation, one torch thread a process.

Owns what `runner.Work` asks for and which recordings a recipe reads. Trains nothing itself.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from training.experiments.experiment import EULER_STEPS, Condition
from training.recipe import Recipe, RunDirectory
from training.suite import Suite
from training.time_spent import time_of_log

UNRECORDED = "not recorded"
_JOBS_PER_PROCESS = 25  # simulators leak a little
_WITHOUT_IMAGES = " without images"


@dataclass(frozen=True, kw_only=True)
class TrainingWork:
    device: str

    def train_stage1(self, recipe: Recipe, directory: Path) -> Mapping[str, Any]:
        from training.corpus import open_corpus
        from training.export import git_commit
        from training.stage1 import train_stage1

        run = RunDirectory.of(recipe, directory)
        with logged(directory):
            train_stage1(open_corpus(recipe, run), run.stage1, device=self.device)
        return {**time_of_log(run.stage1 / "metrics.jsonl").to_json(), "git_commit": git_commit()}

    def train_stage2(
        self, recipe: Recipe, run: RunDirectory, stage1_directory: Path | None, until: int
    ) -> Mapping[str, Any]:
        from policy.checkpoint import revision_of
        from training.corpus import open_corpus
        from training.export import git_commit
        from training.pipeline import train, train_stages

        if recipe.stage2.start_from:
            _check_here(Path(recipe.stage2.start_from), "a policy that starts from it is")
        stage1 = RunDirectory.of(recipe, stage1_directory).stage1 if stage1_directory else None
        ended = until == recipe.stage2.schedule.num_steps
        with logged(run.root):
            if ended:
                train(recipe, run, device=self.device, stage1_directory=stage1)
            else:
                corpus = open_corpus(recipe, run)
                train_stages(corpus, run, device=self.device, until=until, stage1_directory=stage1)
        outcome = {**time_of_log(run.stage2 / "metrics.jsonl").to_json(), "git_commit": git_commit()}
        if not ended:
            return outcome
        # Four times the checkpoint, and nothing resumes a run that has ended.
        shutil.rmtree(run.stage2 / "state", ignore_errors=True)
        return {**outcome, "revision": revision_of(run.checkpoint)}

    def evaluate(
        self, checkpoint: Path, condition: Condition, task: str, first_seed: int, num_episodes: int
    ) -> Mapping[str, Any]:
        from policy.checkpoint import revision_of
        from training.evaluate import Target, evaluate
        from training.export import git_commit
        from training.simulation.registry import simulator_versions

        _check_here(checkpoint, "more scenes are")
        target = Target(
            checkpoint=checkpoint,
            history=condition.history,
            history_mode=condition.history_mode,
            history_delay=condition.history_delay,
            inference_delay=condition.inference_delay,
            num_inference_steps=EULER_STEPS,
        )
        with logged(checkpoint.parent):
            (row,) = evaluate(target, tasks=[task], num_episodes=num_episodes, first_seed=first_seed)
        return {
            **row,
            "revision": revision_of(checkpoint),
            "git_commit": git_commit(),
            "versions": simulator_versions(task),
        }


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """The sha256 of every dataset that a recipe reads; `UNRECORDED` where there is none yet."""

    known: dict[Path, str] = field(default_factory=dict)

    def __call__(self, recipe: Recipe) -> Mapping[str, str]:
        return {name: self._sha256(dataset) for name, dataset in _datasets(recipe).items()}

    def _sha256(self, dataset: Path) -> str:
        from training.data.registration import source_sha256

        if dataset not in self.known:
            self.known[dataset] = source_sha256(dataset) if dataset.is_dir() else UNRECORDED
        return self.known[dataset]


def _check_here(checkpoint: Path, wanted: str) -> None:
    """Raises FileNotFoundError for weights that were deleted or never were here, as those of finished_jobs.py."""
    if not checkpoint.is_dir():
        raise FileNotFoundError(
            f"{checkpoint} is not here and {wanted} asked for; delete the rest of its run too, to train it here"
        )


def check_recorded(recipes: Iterable[Recipe], suite: Suite) -> None:
    """Raises FileNotFoundError that names every dataset that recipes lack, and the command that records them."""
    missing: dict[Path, list[str]] = {}  # root of recordings -> names
    for recipe in recipes:
        for name, dataset in _datasets(recipe).items():
            names = missing.setdefault(dataset.parent.parent, [])
            if not dataset.is_dir() and name not in names:
                names.append(name)
    for root, names in missing.items():
        if names:
            command = f"python -m training bench-data --suite {suite.name}"
            command += f" --directory {root}" if root != Path("build/bench") / suite.name else ""
            command += " --motion" if any(name.endswith(_WITHOUT_IMAGES) for name in names) else ""
            raise FileNotFoundError(f"no demonstrations of {', '.join(names)} in {root}; record them with `{command}`")


def _datasets(recipe: Recipe) -> dict[str, Path]:
    run = RunDirectory.of(recipe, Path())
    datasets = {task: run.dataset(task) for task in recipe.data.tasks}
    if recipe.stage1.motion_episodes:
        tasks = recipe.stage1.tasks or recipe.data.tasks
        datasets |= {task + _WITHOUT_IMAGES: run.motion_datasets / task for task in tasks}
    return datasets


def worker_processes(num_workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a forked GL context is broken.
    return ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        max_tasks_per_child=_JOBS_PER_PROCESS,
    )


def _start_worker() -> None:
    """One thread, and an end with the process that started it: a killed parent leaves no orphan."""
    import torch

    # Mesa's software renderer: its threads cost a tenth of an evaluation where every core has a worker.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    torch.set_num_threads(1)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def logged(directory: Path) -> Iterator[None]:
    """Progress of every step goes to a file: two processes share one terminal."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "log.txt").open("a", buffering=1) as file, redirect_stderr(file):
        try:
            yield
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            raise
