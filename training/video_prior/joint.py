"""Stage 2 of paper A on robots, and on clips without actions: z' of a clip's frame is pulled to z_v (ours).

Owns the model with a body more, the clips' rows and their term of the loss. Robots' rows and losses are stage 2's, the
same numbers in the same order: without clips this is paper A's stage 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from policy.backbone import ObservationBatch
from policy.prior import ActionPrior
from policy.vla import VLA, build_backbone, build_vla
from training.corpus import Corpus
from training.ego_video.pack import ClipPack
from training.latent_actions.label import Vectors
from training.loop import run, step_seed
from training.objective import VLABatch, prior_decay, stage2_losses, to_device
from training.stage2 import build_landmark_head, rows_of_step
from training.video_prior.alignment import StandardizedLatents, VideoHead
from training.video_prior.intent_pretraining import see_clips
from training.video_prior.joint_recipe import JointRecipe

# The parameters of a vision-language model among those that train.
_PRETRAINED = "vla.backbone.vlm."


@dataclass(frozen=True)
class ClipRows:
    """Frames that begin a pair, and the motion latent of the pair."""

    observation: ObservationBatch
    z: Tensor  # float32 [batch, latent_dim]


@dataclass(frozen=True)
class _Rows:
    robots: VLABatch
    clips: ClipRows | None


@dataclass(frozen=True, kw_only=True)
class LatentClips:
    """Every frame of some clip packs that has a frame a gap later, with V's z_v of the two."""

    packs: Sequence[ClipPack]
    z: Sequence[Vectors]  # per pack [num_frames, latent_dim]
    places: npt.NDArray[np.int64]  # (pack, frame) of each, [N, 2]

    @classmethod
    @torch.inference_mode()
    def of(cls, packs: Sequence[ClipPack], latents: StandardizedLatents, head: VideoHead) -> LatentClips:
        """Raises ValueError when no frame has a pair."""
        device = head.out.weight.device
        z = [head(torch.from_numpy(features).to(device)).cpu().numpy() for features in latents.features]
        paired = [np.flatnonzero(each) for each in latents.paired]
        places = np.concatenate(
            [np.stack([np.full_like(frames, index), frames], 1) for index, frames in enumerate(paired)]
        )
        if not len(places):
            raise ValueError("no frame of the clips has a second one: latent_actions.gap_s is longer than all of them")
        return cls(packs=packs, z=z, places=places)

    def batch(self, corpus: Corpus, batch_size: int, step: int) -> ClipRows:
        """A step's rows, a function of the recipe's seed and the step; pictures are shifted as stage 2's are."""
        draw = torch.Generator().manual_seed(step_seed(corpus.recipe.seed + 9, step))
        places = self.places[torch.randint(len(self.places), (batch_size,), generator=draw).numpy()]
        shift, shifts = corpus.recipe.stage2.image_shift, None
        if shift:
            shifts = torch.randint(-shift, shift + 1, (batch_size, corpus.config.max_cameras, 2), generator=draw)
        z = np.stack([self.z[index][frame] for index, frame in places])
        return ClipRows(see_clips(self.packs, places, corpus.config, shifts), torch.from_numpy(z))


def train_joint(
    corpus: Corpus,
    prior: ActionPrior | None,
    clips: LatentClips | None,
    recipe: JointRecipe,
    directory: Path,
    *,
    made_by: Mapping[str, Any],
    device: str | torch.device = "cpu",
    until: int | None = None,
) -> VLA:
    """Train to the end of the corpus' stage 2 (or to step `until`), resuming what `directory` holds; averaged weights.

    `prior` is stage 1's, None starts without one; `clips` None trains on robots alone. `made_by` says what made prior
    and latents, for a resumed run to agree on. What is returned is paper A's VLA: the place of video without a body is
    left behind.
    """
    stage2, backbone, packs = corpus.recipe.stage2, corpus.recipe.backbone, corpus.stage2_packs
    vla = _start(corpus, prior, with_video=clips is not None).to(device)
    modules: dict[str, nn.Module] = {"vla": vla}
    landmark_head = build_landmark_head(corpus, packs)
    if landmark_head is not None:
        modules["landmark_head"] = landmark_head.to(device)
    mixture = corpus.mixture(packs, landmarks=landmark_head is not None)
    sampler = corpus.sampler(packs, stage2.batch_size, corpus.recipe.seed + 2)

    def weight(step: int) -> float:
        return recipe.video_weight * prior_decay(step, recipe.video_decay_steps)

    def batch(step: int) -> _Rows:
        seen = clips.batch(corpus, recipe.video_batch_size, step) if clips is not None and weight(step) > 0 else None
        return to_device(_Rows(rows_of_step(corpus, mixture, sampler.batch(step), step), seen), device)

    def loss(step: int, rows: _Rows, generator: torch.Generator) -> Mapping[str, Tensor]:
        losses = stage2_losses(
            vla,
            rows.robots,
            generator,
            distillation=prior_decay(step, stage2.decay_steps),
            num_draws=stage2.num_draws,
            history_pass=stage2.history_pass,
            landmark_head=landmark_head,
            landmark_weight=stage2.landmark_weight,
            max_inference_delay=stage2.max_inference_delay,
        )
        if rows.clips is None:
            return losses
        video = video_loss(vla, rows.clips)
        return {**losses, "loss": losses["loss"] + weight(step) * video, "video": video}

    settings = {
        name: value
        for name, value in asdict(stage2).items()
        if name not in ("schedule", "start_from", "tasks", "snapshots")
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
            "training": "joint stage 2",
            "video": {name: value for name, value in asdict(recipe).items() if name != "alignment"},
            "clips": [pack.digest for pack in clips.packs] if clips is not None else [],
            "starts_from": dict(made_by),
            "backbone": corpus.backbone_manifest,
        },
        device=device,
        autocast=corpus.recipe.autocast,
        until=until,
        rate_scales={_PRETRAINED: backbone.rate_scale} if backbone else {},
    )
    averaged.copy_to(vla)
    if backbone is not None and backbone.tuning == "lora":
        from training.backbone import merge_lora

        merge_lora(vla)
    return without_video_body(corpus, vla).to(device) if clips is not None else vla


def video_loss(vla: VLA, clips: ClipRows) -> Tensor:
    """|| z' - sg(z_v) ||^2, mean over dimensions and frames, as L_align is; reaches neither E nor D."""
    latent = vla.to_latent(vla.observe(clips.observation).without_history)
    return (latent - clips.z.detach()).square().mean()


def with_video_body(corpus: Corpus, vla: VLA) -> VLA:
    """The same model, its backbone with one body more, the last: video without a body. E and D have none of it."""
    config = corpus.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(corpus.recipe.seed + 8)
        wide = VLA(
            config, build_backbone(replace(config, num_embodiments=config.num_embodiments + 1), corpus.tokenizer)
        )
    own = vla.state_dict()
    fresh = wide.state_dict()
    # A backbone's parameters that each body has its own of begin with the bodies.
    joined = {
        name: torch.cat([value, fresh[name][len(value) :]]) if value.shape != fresh[name].shape else value
        for name, value in own.items()
    }
    wide.load_state_dict(joined)
    return wide


def without_video_body(corpus: Corpus, vla: VLA) -> VLA:
    """What is served: nothing that it answers reads the place of video."""
    with torch.random.fork_rng(devices=[]):
        plain = build_vla(corpus.config, corpus.tokenizer)
    kept = plain.state_dict()
    plain.load_state_dict(
        {
            name: value[: len(kept[name])] if value.shape != kept[name].shape else value
            for name, value in vla.state_dict().items()
        }
    )
    return plain


def _start(corpus: Corpus, prior: ActionPrior | None, *, with_video: bool) -> VLA:
    """The model as it trains: with stage 1's prior, a place for video, and LoRA where the recipe says so."""
    vla, backbone = corpus.build_model(), corpus.recipe.backbone
    if prior is not None:
        vla.prior.load_state_dict(prior.state_dict())
    if with_video:
        vla = with_video_body(corpus, vla)
    if backbone is not None and backbone.tuning == "lora":
        from training.backbone import add_lora  # transformers takes seconds to import; only these recipes pay

        add_lora(vla, rank=backbone.lora_rank, seed=corpus.recipe.seed + 5)
    return vla
