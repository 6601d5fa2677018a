"""The backbone learns intent from video: a frame and words in, the codes of what moves next out (paper B, stage 2).

Owns the frames it learns from and the model that intent goes through. The codes are training/latent_actions'.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from policy.backbone import ObservationBatch
from policy.config import INFERENCE_ONLY, ModelConfig
from policy.images import resize_frames
from policy.intent_vla import IntentVLA, build_intent_vla
from policy.visual_features import FrozenEyes
from training.batches import shift_images
from training.corpus import Corpus
from training.ego_video.pack import ClipPack
from training.latent_actions.label import UNLABELLED, Codes
from training.loop import run, step_seed
from training.objective import to_device
from training.recipe import BackboneRecipe
from training.video_prior.objective import code_losses
from training.video_prior.recipe import PretrainingRecipe

# What a clip without words is told.
NEUTRAL = "do what comes next"


@dataclass(frozen=True)
class _Rows:
    observation: ObservationBatch
    codes: Tensor  # int64 [batch, K]


@dataclass(frozen=True, kw_only=True)
class LabelledClips:
    """Every frame of some clip packs that has a code; `codes` [num_frames, K] of each pack, UNLABELLED where none."""

    packs: Sequence[ClipPack]
    codes: Sequence[Codes]

    @cached_property
    def places(self) -> npt.NDArray[np.int64]:
        """(pack, frame) of each, [N, 2]. Raises ValueError when there is none."""
        labelled = [np.flatnonzero((codes != UNLABELLED).all(1)) for codes in self.codes]
        places = np.concatenate([np.stack([np.full_like(at, pack), at], 1) for pack, at in enumerate(labelled)])
        if not len(places):
            raise ValueError("no frame of the clips has a code: latent_actions.gap_s is longer than all of them")
        return places

    def batch(
        self, places: npt.NDArray[np.int64], config: ModelConfig, shifts: Tensor | None
    ) -> tuple[ObservationBatch, Tensor]:
        """Frames as see_clips shows them, and their codes."""
        codes = np.stack([self.codes[index][frame] for index, frame in places])
        return see_clips(self.packs, places, config, shifts), torch.from_numpy(codes)


def see_clips(
    packs: Sequence[ClipPack], places: npt.NDArray[np.int64], config: ModelConfig, shifts: Tensor | None
) -> ObservationBatch:
    """Frames at `places` (pack, frame) as camera 0 of the body without a body, its state hidden. `shifts` as in
    Mixture."""
    count, size = len(places), config.image_size
    images = torch.zeros(count, config.max_cameras, size, size, 3, dtype=torch.uint8)
    instructions = [""] * count
    for index, pack in enumerate(packs):
        rows = np.flatnonzero(places[:, 0] == index)
        if not len(rows):
            continue
        frames = places[rows, 1]
        pixels = torch.from_numpy(np.asarray(pack.frames[frames]))
        images[rows, 0] = resize_frames(pixels, size, config.interpolation)
        for row, words in zip(rows, _instructions(pack, frames), strict=True):
            instructions[row] = words
    camera_mask = torch.zeros(count, config.max_cameras, dtype=torch.bool)
    camera_mask[:, 0] = True
    return ObservationBatch(
        images=images if shifts is None else shift_images(images, shifts),
        camera_mask=camera_mask,
        state=torch.zeros(count, config.max_state_dim),
        state_mask=torch.zeros(count, dtype=torch.bool),
        instructions=tuple(instructions),
        embodiment=torch.full((count,), config.num_embodiments),
    )


def build_model(corpus: Corpus, eyes: FrozenEyes | None) -> IntentVLA:
    """Fresh weights, a function of the recipe's seed alone; eyes and a pretrained backbone have their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(corpus.recipe.seed)
        vla = build_intent_vla(corpus.config, corpus.tokenizer)
        if corpus.pretrained is not None:
            from training.backbone import load_pretrained  # transformers takes seconds to import; only these pay

            load_pretrained(vla, corpus.pretrained)
    if vla.eyes is not None and eyes is not None:
        vla.eyes.load_state_dict(eyes.state_dict())
    return vla


def intent_path(vla: IntentVLA) -> nn.ModuleDict:
    """What pretraining trains and adaptation goes on with."""
    return nn.ModuleDict({"backbone": vla.backbone, "head": vla.head})


def pretraining_identity(
    corpus: Corpus, clips: LabelledClips, recipe: PretrainingRecipe, codes_made_by: Mapping[str, Any]
) -> dict[str, Any]:
    """What a resumed pretraining must agree on, and what names its directory. What the decoder reads is not in it."""
    unnamed = (*INFERENCE_ONLY, "max_inference_delay")
    return {
        "training": "intent",
        "config": {name: value for name, value in _blind(corpus.config).to_json().items() if name not in unnamed},
        "words": hashlib.sha256(corpus.tokenizer.to_str().encode()).hexdigest(),
        "backbone": corpus.backbone_manifest,
        "clips": [pack.digest for pack in clips.packs],
        "codes": dict(codes_made_by),
        "batch_size": recipe.batch_size,
        "image_shift": recipe.image_shift,
    }


def pretrain_intent(
    corpus: Corpus,
    clips: LabelledClips,
    recipe: PretrainingRecipe,
    directory: Path,
    *,
    codes_made_by: Mapping[str, Any],
    device: str | torch.device = "cpu",
    until: int | None = None,
) -> nn.ModuleDict:
    """Train to the recipe's end (or to step `until`), resuming what `directory` holds; averaged weights of intent_path.

    `codes_made_by` says what made the codes, for a resumed run to agree on. Raises ValueError when no frame has a code.
    """
    config, seed, backbone = corpus.config, corpus.recipe.seed + 6, corpus.recipe.backbone
    trained = intent_path(build_model(replace(corpus, config=_blind(config)), None)).to(device)
    places = clips.places

    def batch(step: int) -> _Rows:
        draw = torch.Generator().manual_seed(step_seed(seed, step))
        picks = places[torch.randint(len(places), (recipe.batch_size,), generator=draw).numpy()]
        shifts = None
        if recipe.image_shift:
            drawn = (recipe.batch_size, config.max_cameras, 2)
            shifts = torch.randint(-recipe.image_shift, recipe.image_shift + 1, drawn, generator=draw)
        return to_device(_Rows(*clips.batch(picks, config, shifts)), device)

    def loss(step: int, rows: _Rows, generator: torch.Generator) -> Mapping[str, Tensor]:
        query = trained["backbone"](rows.observation).without_history
        losses = code_losses(trained["head"](query).logits, rows.codes)
        return {"loss": losses["intent"], **losses}

    averaged = run(
        directory=directory,
        modules=nn.ModuleDict({"intent": trained}),
        averaged="intent",
        schedule=recipe.schedule,
        seed=seed,
        batch=batch,
        loss=loss,
        identity=pretraining_identity(corpus, clips, recipe, codes_made_by),
        device=device,
        autocast=corpus.recipe.autocast,
        until=until,
        rate_scales={"intent.backbone.vlm.": _full_rate_scale(backbone)} if backbone else {},
    )
    averaged.copy_to(trained)
    return trained


def _full_rate_scale(backbone: BackboneRecipe) -> float:
    """Here the whole model learns, as in the paper, also where LoRA adapts it: LoRA's rate is none for it."""
    own = backbone if backbone.tuning == "full" else replace(backbone, tuning="full", learning_rate_scale=None)
    return own.rate_scale


def _blind(config: ModelConfig) -> ModelConfig:
    """The same model whose decoder has no eyes: they are no part of intent, which runs with and without them share."""
    assert config.intent is not None
    return replace(config, intent=replace(config.intent, visual=None, use_intent=True))


def _instructions(pack: ClipPack, frames: npt.NDArray[np.int64]) -> list[str]:
    starts = np.array([clip.first_frame for clip in pack.clips])
    return [pack.clips[index].instruction or NEUTRAL for index in np.searchsorted(starts, frames, side="right") - 1]
