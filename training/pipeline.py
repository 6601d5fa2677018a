"""A run from its data to its checkpoints: stage 1, stage 2, export. Every part resumes, and none is done twice.

Owns the order and where each part lies. Does not own the stages, the data or evaluation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from policy.vla import VLA
from training.corpus import Corpus, open_corpus
from training.export import export_checkpoint
from training.loop import saved_step, seconds_spent
from training.parallel import ALONE, Processes
from training.recipe import Recipe, RunDirectory
from training.stage1 import train_stage1
from training.stage2 import train_stage2


class UntrainedRunError(RuntimeError):
    """A run is asked for what only a trained one has; the message names the verb to run."""


def train(
    recipe: Recipe, run: RunDirectory, *, device: str | torch.device = "cpu", stage1_directory: Path | None = None
) -> None:
    """Train to the end: `run.checkpoint` and every snapshot of the recipe exist afterwards.

    `stage1_directory` is where stage 1 lies when runs share it; the run's own by default. Threads are the caller's.
    """
    corpus = open_corpus(recipe, run)
    stage1 = stage1_directory or run.stage1
    for step in (*recipe.stage2.snapshots, recipe.stage2.schedule.num_steps):
        last = step == recipe.stage2.schedule.num_steps
        directory = run.checkpoint if last else run.snapshot(step)
        if not directory.exists():
            directory.parent.mkdir(parents=True, exist_ok=True)
            vla = train_stages(corpus, run, device=device, until=step, stage1_directory=stage1)
            export(corpus, vla, run, directory, step=step, stage1_directory=stage1)


def train_stages(
    corpus: Corpus,
    run: RunDirectory,
    *,
    device: str | torch.device = "cpu",
    until: int | None = None,
    stage1_directory: Path | None = None,
    processes: Processes = ALONE,
) -> VLA:
    """The VLA at stage 2's end, or at its step `until`; what is already trained is only read."""
    recipe = corpus.recipe
    has_prior = recipe.stage1.schedule.num_steps and not recipe.stage2.start_from
    stage1 = stage1_directory or run.stage1
    prior = train_stage1(corpus, stage1, device=device, processes=processes) if has_prior else None
    return train_stage2(corpus, prior, run.stage2, device=device, until=until, processes=processes)


def open_trained(recipe: Recipe, run: RunDirectory, *, device: str | torch.device = "cpu") -> tuple[Corpus, VLA]:
    """A run whose stage 2 is done, only read; another is refused before its recordings are touched.

    Raises UntrainedRunError, and what open_corpus raises.
    """
    found, expected = saved_step(run.stage2), recipe.stage2.schedule.num_steps
    if found < expected:
        raise UntrainedRunError(
            f"stage 2 in {run.stage2} is at step {found} of {expected}; run the verb 'stage2' first, which resumes"
        )
    corpus = open_corpus(recipe, run)
    return corpus, train_stage2(corpus, None, run.stage2, device=device)


def export(
    corpus: Corpus,
    vla: VLA,
    run: RunDirectory,
    directory: Path,
    *,
    step: int,
    stage1_directory: Path | None = None,
    metrics: dict[str, Any] | None = None,
) -> str:
    """Write the checkpoint of a VLA at a step of stage 2; returns its revision."""
    training = {
        "stage1_steps": corpus.recipe.stage1.schedule.num_steps,
        "stage2_steps": step,
        "stage1_hours": round(seconds_spent(stage1_directory or run.stage1) / 3600, 3),
        "stage2_hours": round(seconds_spent(run.stage2) / 3600, 3),
        "started_from": corpus.parent_manifest,
        "seed": corpus.recipe.seed,
        "threads": torch.get_num_threads(),
    }
    return export_checkpoint(corpus, vla, directory, training=training, metrics=metrics or {})
