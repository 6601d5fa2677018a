"""Stage 2: the VLA learns to look, with stage 1's decoder as its head and a decaying pull towards stage 1's latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policy.config import ConvolutionalSettings
from policy.prior import ActionPrior
from policy.vla import VLA
from training.batches import Mixture
from training.corpus import Corpus
from training.data.pack import Pack
from training.loop import run, step_seed
from training.objective import LandmarkHead, VLABatch, prior_decay, stage2_losses, to_device
from training.parallel import ALONE, Processes

# The parameters of a vision-language model among those that train; tokens that are no words are not its own.
_PRETRAINED = "vla.backbone.vlm."


def train_stage2(
    corpus: Corpus,
    prior: ActionPrior | None,
    directory: Path,
    *,
    device: str | torch.device = "cpu",
    until: int | None = None,
    processes: Processes = ALONE,
) -> VLA:
    """Train to the recipe's end (or to step `until`), resuming what `directory` holds; returns averaged weights.

    `prior` None leaves encoder and decoder at random, the no-prior arm. Raises ValueError for a recipe that cannot be
    trained by `processes`.
    """
    recipe, backbone = corpus.recipe.stage2, corpus.recipe.backbone
    if recipe.history and recipe.history_pass == "sampled" and processes.sharing == "fsdp":
        # A process whose coins all fall on one side would gather shards once while the others do it twice.
        raise ValueError("stage2.history_pass is 'sampled', which cannot be sharded: use 'both', or --parallel ddp")
    vla = _build(corpus).to(device)
    if prior is not None:
        vla.prior.load_state_dict(prior.state_dict())
    modules: dict[str, nn.Module] = {"vla": vla}
    packs = corpus.stage2_packs
    landmark_head = build_landmark_head(corpus, packs)
    if landmark_head is not None:
        modules["landmark_head"] = landmark_head.to(device)
    mixture = corpus.mixture(packs, landmarks=landmark_head is not None)
    sampler = corpus.sampler(packs, recipe.batch_size, corpus.recipe.seed + 2, processes)

    def batch(step: int) -> VLABatch:
        return to_device(rows_of_step(corpus, mixture, sampler.batch(step), step, processes), device)

    def loss(step: int, rows: VLABatch, generator: torch.Generator) -> Mapping[str, Tensor]:
        return stage2_losses(
            vla,
            rows,
            generator,
            distillation=prior_decay(step, recipe.decay_steps),
            num_draws=recipe.num_draws,
            history_pass=recipe.history_pass,
            landmark_head=landmark_head,
            landmark_weight=recipe.landmark_weight,
            landmarks_move_eyes=step >= recipe.landmark_delay_steps,
            max_inference_delay=recipe.max_inference_delay,
            processes=processes,
        )

    # What came later is named where it is not the default, so that runs from before it resume.
    later = {"history_pass", "image_shift", "max_inference_delay", "landmark_delay_steps"}
    unnamed = {field.name for field in fields(recipe) if getattr(recipe, field.name) == field.default} & later
    settings: dict[str, Any] = {
        name: value
        for name, value in asdict(recipe).items()
        if name not in {"schedule", "start_from", "tasks", "snapshots", *unnamed}
    }
    averaged = run(
        directory=directory,
        modules=nn.ModuleDict(modules),
        averaged="vla",
        schedule=recipe.schedule,
        seed=corpus.recipe.seed + 2,
        batch=batch,
        loss=loss,
        identity={**corpus.identity(packs), "stage": 2, **settings, "backbone": corpus.backbone_manifest},
        device=device,
        autocast=corpus.recipe.autocast,
        until=until,
        processes=processes,
        rate_scales={_PRETRAINED: backbone.rate_scale} if backbone else {},
    )
    averaged.copy_to(vla)
    vla = processes.whole(vla, lambda: _build(corpus).to(device))
    if backbone is not None and backbone.tuning == "lora":
        from training.backbone import merge_lora

        merge_lora(vla)
    return vla


def rows_of_step(
    corpus: Corpus,
    mixture: Mixture,
    picks: Sequence[tuple[int, np.ndarray]],
    step: int,
    processes: Processes = ALONE,
) -> VLABatch:
    """What a step trains on of the frames picked for it; hidden states and shifts are functions of seed and step."""
    recipe = corpus.recipe.stage2
    coins = torch.Generator().manual_seed(step_seed(corpus.recipe.seed + 3, step))
    state_mask = processes.rows(torch.rand(recipe.batch_size, generator=coins) >= recipe.state_dropout)
    shifts = None
    if recipe.image_shift:
        drawn = (recipe.batch_size, corpus.config.max_cameras, 2)
        shifts = torch.randint(-recipe.image_shift, recipe.image_shift + 1, drawn, generator=coins)
        shifts = processes.rows(shifts)
    return mixture.vla(picks, state_mask, history=recipe.history, shifts=shifts)


def _build(corpus: Corpus) -> VLA:
    """The model as it trains: with LoRA where the recipe says so."""
    vla, backbone = corpus.build_model(), corpus.recipe.backbone
    if backbone is not None and backbone.tuning == "lora":
        from training.backbone import add_lora  # transformers takes seconds to import; only these recipes pay

        add_lora(vla, rank=backbone.lora_rank, seed=corpus.recipe.seed + 5)
    return vla


def build_landmark_head(corpus: Corpus, packs: Sequence[Pack]) -> LandmarkHead | None:
    """Only for eyes that report keypoints; its own seed keeps the model's weights independent of it."""
    backbone = corpus.config.backbone
    if not corpus.recipe.stage2.landmark_weight or not isinstance(backbone, ConvolutionalSettings):
        return None
    visual_dim = corpus.config.max_cameras * backbone.num_keypoints * 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(corpus.recipe.seed + 4)
        max_landmarks = max(len(pack.environment_state_names) for pack in packs)
        return LandmarkHead(visual_dim, len(packs), max_landmarks)
