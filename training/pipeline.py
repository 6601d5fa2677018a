"""A run from its data to its checkpoints: stage 1, stage 2, export. Every part resumes, and none is done twice.

Owns the order, where each part lies, and the snapshots on the way. Does not own the stages, the data or evaluation.
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


class PassedSnapshotError(RuntimeError):
    """A snapshot is missing whose step a run has passed: its weights are gone; the message says what to delete."""


def train(
    recipe: Recipe, run: RunDirectory, *, device: str | torch.device = "cpu", stage1_directory: Path | None = None
) -> None:
    """Train to the end: `run.checkpoint` and every snapshot of the recipe exist afterwards.

    `stage1_directory` is where stage 1 lies when runs share it; the run's own by default. Threads are the caller's.
    Raises PassedSnapshotError, and what open_corpus raises.
    """
    end = recipe.stage2.schedule.num_steps
    trained = end if run.checkpoint.exists() else saved_step(run.stage2)
    for step in recipe.stage2.snapshots:
        if step < trained and not run.snapshot(step).exists():
            raise PassedSnapshotError(
                f"stage 2 in {run.stage2} is at step {trained}, and {run.snapshot(step)} is not there: "
                f"delete {run.root} to train it again, or take the step out of stage2.snapshots"
            )
    if run.checkpoint.exists():
        return
    corpus = open_corpus(recipe, run)
    vla = train_stages(corpus, run, device=device, stage1_directory=stage1_directory)
    export(corpus, vla, run, run.checkpoint, step=end, stage1_directory=stage1_directory)


def train_stages(
    corpus: Corpus,
    run: RunDirectory,
    *,
    device: str | torch.device = "cpu",
    until: int | None = None,
    stage1_directory: Path | None = None,
    processes: Processes = ALONE,
) -> VLA:
    """The VLA at stage 2's end, or at its step `until`; what is already trained is only read.

    The recipe's snapshots on the way there are written, but for those whose step was passed before.
    """
    recipe = corpus.recipe
    stage1 = stage1_directory or run.stage1
    prior = train_stage1(corpus, stage1, device=device, processes=processes) if recipe.trains_prior else None
    for step in recipe.stage2.snapshots:
        is_ahead = saved_step(run.stage2) <= step and (until is None or step <= until)
        # Asked by every process before any can save or export: between the two they wait for one another.
        if is_ahead and not run.snapshot(step).exists():
            vla = train_stage2(corpus, prior, run.stage2, device=device, until=step, processes=processes)
            if processes.writes:
                export(corpus, vla, run, run.snapshot(step), step=step, stage1_directory=stage1)
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
        "stage1_steps": corpus.recipe.stage1.schedule.num_steps if corpus.recipe.trains_prior else 0,
        "stage2_steps": step,
        "stage1_hours": round(seconds_spent(stage1_directory or run.stage1) / 3600, 3),
        "stage2_hours": round(seconds_spent(run.stage2) / 3600, 3),
        "started_from": corpus.parent_manifest,
        "seed": corpus.recipe.seed,
        "threads": torch.get_num_threads(),
    }
    return export_checkpoint(corpus, vla, directory, training=training, metrics=metrics or {})
