"""A model with intent learns robots: flow on their actions, codes on their own frames (paper B, stage 3).

Owns where its weights start, which of them train, and the codes that go with a batch. Batches, landmarks and averages
are those of stage 2, so that either way of learning sees the same frames in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policy.intent import fold_patches
from policy.intent_vla import IntentVLA
from policy.prior import ActionPrior
from policy.visual_features import FrozenEyes
from training.corpus import Corpus
from training.data.pack import Pack
from training.latent_actions.label import Codes
from training.loop import run
from training.objective import VLABatch, to_device
from training.stage2 import build_landmark_head, rows_of_step
from training.video_prior.intent_pretraining import build_model, intent_path
from training.video_prior.objective import adaptation_losses
from training.video_prior.recipe import AdaptationRecipe

# The parameters of a vision-language model among those that train.
_PRETRAINED = "vla.backbone.vlm."
# Of each pack, to measure what its cameras see.
_SIGHT_FRAMES = 192


@dataclass(frozen=True)
class _Rows:
    robots: VLABatch
    codes: Tensor | None  # int64 [batch, K]


@dataclass(frozen=True, kw_only=True)
class Beginnings:
    """What adaptation starts from. None is at random: without `intent` it is the control, the same head alone.

    `made_by` says how each came to be, for a resumed run to agree on.
    """

    eyes: FrozenEyes | None
    intent: nn.ModuleDict | None = None  # of pretrain_intent
    prior: ActionPrior | None = None  # of paper A's stage 1
    made_by: Mapping[str, Any]


def adapt(
    corpus: Corpus,
    beginnings: Beginnings,
    codes: Sequence[Codes] | None,
    recipe: AdaptationRecipe,
    directory: Path,
    *,
    device: str | torch.device = "cpu",
    until: int | None = None,
) -> IntentVLA:
    """Train to the end of the corpus' stage 2 (or to step `until`), resuming what `directory` holds; averaged weights.

    `codes` [num_frames, K] are of each of corpus.stage2_packs, UNLABELLED where a frame has none; None trains flow
    alone.
    """
    stage2, backbone, packs = corpus.recipe.stage2, corpus.recipe.backbone, corpus.stage2_packs
    vla = _start(corpus, beginnings, recipe, device).to(device)
    modules: dict[str, nn.Module] = {"vla": vla}
    landmark_head = build_landmark_head(corpus, packs) if recipe.tuning != "frozen" else None
    if landmark_head is not None:
        modules["landmark_head"] = landmark_head.to(device)
    mixture = corpus.mixture(packs, landmarks=landmark_head is not None)
    sampler = corpus.sampler(packs, stage2.batch_size, corpus.recipe.seed + 2)

    def batch(step: int) -> _Rows:
        picks = sampler.batch(step)
        own = None
        if codes is not None:
            own = torch.from_numpy(np.concatenate([codes[index][frames] for index, frames in picks])).to(device)
        return _Rows(to_device(rows_of_step(corpus, mixture, picks, step), device), own)

    def loss(step: int, rows: _Rows, generator: torch.Generator) -> Mapping[str, Tensor]:
        return adaptation_losses(
            vla,
            rows.robots,
            rows.codes,
            generator,
            intent_weight=recipe.intent_weight,
            sight_dropout=recipe.sight_dropout,
            num_draws=stage2.num_draws,
            history_pass=stage2.history_pass,
            landmark_head=landmark_head,
            landmark_weight=stage2.landmark_weight,
            max_inference_delay=stage2.max_inference_delay,
        )

    settings = {
        name: value
        for name, value in asdict(stage2).items()
        if name not in ("schedule", "start_from", "tasks", "snapshots", "decay_steps")
    }
    averaged = run(
        directory=directory,
        modules=nn.ModuleDict(modules),
        averaged="vla",
        schedule=stage2.schedule,
        seed=corpus.recipe.seed + 2,
        batch=batch,
        loss=loss,
        identity={
            **corpus.identity(packs),
            **settings,
            "training": "adaptation",
            "adaptation": asdict(recipe),
            "learns_codes": codes is not None,
            "starts_from": dict(beginnings.made_by),
            "backbone": corpus.backbone_manifest,
        },
        device=device,
        autocast=corpus.recipe.autocast,
        until=until,
        rate_scales={_PRETRAINED: backbone.rate_scale} if backbone else {},
    )
    averaged.copy_to(vla)
    if recipe.tuning == "lora":
        from training.backbone import merge_lora

        merge_lora(vla)
    return vla


@torch.no_grad()
def measure_sight(vla: IntentVLA, packs: Sequence[Pack], bodies: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """What IntentDecoder.standardize_sight wants: of frames spread evenly over each pack, every body's packs alike."""
    shape = vla.decoder.visual_mean.shape
    device = vla.decoder.visual_mean.device
    mean, root_mean_square = torch.zeros(shape, device=device), torch.zeros(shape[:2], device=device)
    for name, body in bodies.items():
        own = [pack for pack in packs if pack.spec.name == name]
        for camera, camera_name in enumerate(own[0].spec.camera_names if own else ()):
            seen = torch.cat([_folded(vla, pack, camera_name) for pack in own])
            mean[body, camera] = seen.mean(0)
            root_mean_square[body, camera] = (seen - seen.mean(0)).square().mean().sqrt()
    return mean, root_mean_square


def _folded(vla: IntentVLA, pack: Pack, camera: str) -> Tensor:
    assert vla.eyes is not None
    frames = np.unique(np.linspace(0, pack.num_frames - 1, _SIGHT_FRAMES).astype(np.int64))
    pixels = torch.from_numpy(np.asarray(pack.images[camera][frames])).to(vla.decoder.visual_mean.device)
    return torch.cat([fold_patches(vla.eyes(part)) for part in pixels.split(64)])


def _start(corpus: Corpus, beginnings: Beginnings, recipe: AdaptationRecipe, device: str | torch.device) -> IntentVLA:
    """The model as it trains: with LoRA, or with its way to intent frozen, where the recipe says so."""
    vla = build_model(corpus, beginnings.eyes).to(device)
    if vla.eyes is not None:
        bodies = {spec.name: index for index, spec in enumerate(corpus.specs)}
        vla.decoder.standardize_sight(*measure_sight(vla, corpus.stage2_packs, bodies))
    if beginnings.intent is not None:
        intent_path(vla).load_state_dict(beginnings.intent.state_dict())
        vla.start_bodies_from_video()
    if beginnings.prior is not None:
        vla.start_from_prior(beginnings.prior)
    if recipe.tuning == "lora":
        from training.backbone import add_lora  # transformers takes seconds to import; only these recipes pay

        assert corpus.recipe.backbone is not None
        add_lora(vla, rank=corpus.recipe.backbone.lora_rank, seed=corpus.recipe.seed + 5)
    if recipe.tuning == "frozen":
        intent_path(vla).requires_grad_(False)
    return vla
