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
from training.objective import stage1_losses, to_device


def train_stage1(
    corpus: Corpus, directory: Path, *, device: str | torch.device = "cpu", until: int | None = None
) -> ActionPrior:
    """Train to the recipe's end (or to step `until`), resuming what `directory` holds; returns averaged weights."""
    recipe = corpus.recipe.stage1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(corpus.recipe.seed)
        prior = ActionPrior(prior_config(corpus.config)).to(device)
    if not recipe.schedule.num_steps:
        return prior
    packs = corpus.stage1_packs
    mixture = corpus.mixture(packs, landmarks=False)
    sampler = corpus.sampler(packs, recipe.batch_size, corpus.recipe.seed + 1)

    def loss(step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        motion = to_device(mixture.motion(sampler.batch(step)), device)
        return stage1_losses(prior, motion, generator, recipe.num_draws)

    averaged = run(
        directory=directory,
        modules=nn.ModuleDict({"prior": prior}),
        averaged="prior",
        schedule=recipe.schedule,
        seed=corpus.recipe.seed + 1,
        loss=loss,
        identity={**corpus.identity(packs), "stage": 1, "batch_size": recipe.batch_size, "num_draws": recipe.num_draws},
        device=device,
        autocast=corpus.recipe.autocast,
        until=until,
    )
    averaged.copy_to(prior)
    return prior
