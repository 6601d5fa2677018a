"""Stage 1: the action prior learns to move from state-action trajectories alone; no image and no text is touched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from policy.prior import ActionPrior
from policy.vla import prior_config
from training.corpus import Corpus
from training.loop import run
from training.objective import MotionBatch, stage1_losses, to_device
from training.parallel import ALONE, Processes


def train_stage1(
    corpus: Corpus,
    directory: Path,
    *,
    device: str | torch.device = "cpu",
    until: int | None = None,
    processes: Processes = ALONE,
) -> ActionPrior:
    """Train to the recipe's end (or to step `until`), resuming what `directory` holds; returns averaged weights."""
    recipe = corpus.recipe.stage1
    prior = corpus.build_prior().to(device)
    if not recipe.schedule.num_steps:
        return prior
    packs = corpus.stage1_packs
    mixture = corpus.mixture(packs, landmarks=False)
    sampler = corpus.sampler(packs, recipe.batch_size, corpus.recipe.seed + 1, processes)

    def batch(step: int) -> MotionBatch:
        return to_device(mixture.motion(sampler.batch(step)), device)

    def loss(step: int, motion: MotionBatch, generator: torch.Generator) -> Mapping[str, Tensor]:
        return stage1_losses(prior, motion, generator, recipe.num_draws, processes)

    averaged = run(
        directory=directory,
        modules=nn.ModuleDict({"prior": prior}),
        averaged="prior",
        schedule=recipe.schedule,
        seed=corpus.recipe.seed + 1,
        batch=batch,
        loss=loss,
        identity={**corpus.identity(packs), "stage": 1, "batch_size": recipe.batch_size, "num_draws": recipe.num_draws},
        device=device,
        autocast=corpus.recipe.autocast,
        until=until,
        processes=processes,
    )
    averaged.copy_to(prior)
    return processes.whole(prior, lambda: ActionPrior(prior_config(corpus.config)).to(device))
