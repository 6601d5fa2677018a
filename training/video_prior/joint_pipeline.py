"""The chain to one motion latent of trajectories and video: eyes, latent actions, stage 1, V, stage 2, export.

Owns what differs from the chain of paper B: V, the clips' z_v, stage 2 with them, and what the manifest says of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from policy.vla import VLA
from training.corpus import Corpus
from training.ego_video.pack import ClipPack
from training.latent_actions.label import label_pack
from training.latent_actions.train import model_digest
from training.loop import seconds_spent
from training.video_prior.alignment import (
    MotionPairs,
    VideoHead,
    align,
    alignment_identity,
    score_alignment,
    standardized,
)
from training.video_prior.joint import LatentClips, train_joint
from training.video_prior.joint_recipe import JointRecipe
from training.video_prior.pipeline import VideoPrior
from training.video_prior.recipe import VideoPriorRecipe, VideoPriorRun

_PRIOR_METHOD = "action prior from state-action trajectories (arXiv 2606.26095)"  # the control's, which is paper A's
JOINT_METHOD = (
    f"{_PRIOR_METHOD}, its motion latent joined with that of motion-focused latent actions (arXiv 2606.18955)"
)


@dataclass(frozen=True, kw_only=True)
class JointPrior(VideoPrior):
    """One run of a recipe with `joint`."""

    @cached_property
    def corpus(self) -> Corpus:
        """Paper A's model on the robots' data, its words with those of the clips."""
        return self._without_intent

    @cached_property
    def pairs(self) -> MotionPairs:
        """Robots' frames, as their first camera sees them, with latent actions of the frame a gap later."""
        corpus, alignment = self.corpus, self._joint.alignment
        packs, horizon = corpus.stage2_packs, corpus.config.action_horizon
        latents = [
            label_pack(self.latent_actions, pack, gap_s=alignment.gap_s or horizon / pack.spec.control_rate_hz).latents
            for pack in packs
        ]
        bodies = [np.full(pack.num_frames, pack.spec.name) for pack in packs]
        mixture, prior = corpus.mixture(packs, landmarks=False), self.prior
        assert prior is not None
        return MotionPairs.of(
            mixture,
            standardized(latents, bodies),
            prior,
            held_out_fraction=alignment.held_out_fraction,
            held_out_body=alignment.held_out_body,
        )

    @cached_property
    def alignment_directory(self) -> Path:
        alignment = self._joint.alignment
        identity = alignment_identity(self.corpus, alignment, self._latents_made_by)
        return self.run.part(
            "alignment", {**identity, "seed": self.corpus.recipe.seed, "schedule": asdict(alignment.schedule)}
        )

    @cached_property
    def head(self) -> VideoHead:
        """V, aligned to E of stage 1."""
        return align(
            self.corpus,
            self.pairs,
            self._joint.alignment,
            self.alignment_directory,
            made_by=self._latents_made_by,
            device=self.device,
        )

    @cached_property
    def alignment_scores(self) -> Mapping[str, float]:
        """V against E on held-out episodes, as alignment.score_alignment says; nothing for the control."""
        return score_alignment(self.head, self.pairs) if self._joint.sees_clips else {}

    @cached_property
    def latent_clips(self) -> LatentClips | None:
        """None for the control, whose stage 2 sees no clip."""
        if not self._joint.sees_clips:
            return None
        gap_s = self.recipe.latent_actions.gap_s
        latents = [label_pack(self.latent_actions, pack, gap_s=gap_s).latents for pack in self.clips]
        return LatentClips.of(self.clips, standardized(latents, [_bodies(pack) for pack in self.clips]), self.head)

    def aligned(self) -> Path | None:
        """Where V lies, trained; None for the control."""
        if not self._joint.sees_clips:
            return None
        _ = self.head
        return self.alignment_directory

    def adapted(self, until: int | None = None) -> VLA:
        """The model at the end of stage 2, or at its step `until`."""
        return train_joint(
            self.corpus,
            self.prior,
            self.latent_clips,
            self._joint,
            self.run.adaptation,
            made_by={**self._latents_made_by, "alignment": self.alignment_directory.name}
            if self._joint.sees_clips
            else self._stage1_made_by,
            device=self.device,
            until=until,
        )

    @property
    def _joint(self) -> JointRecipe:
        assert self.recipe.joint is not None
        return self.recipe.joint

    @property
    def _stage1_made_by(self) -> dict[str, Any]:
        # The name of a part's directory says all that it is made of.
        return {"stage1": self.stage1_directory.name if self.stage1_directory else None}

    @property
    def _latents_made_by(self) -> dict[str, Any]:
        return {**self._stage1_made_by, "latent_actions": model_digest(self.latent_actions)}

    @property
    def _made_by(self) -> dict[str, Any]:
        method = JOINT_METHOD if self._joint.sees_clips else _PRIOR_METHOD
        return {**super()._made_by, "method": method, "alignment": dict(self.alignment_scores)}

    def _training(self, step: int) -> dict[str, Any]:
        if not self._joint.sees_clips:
            return super()._training(step)
        return {
            **super()._training(step),
            "alignment_steps": self._joint.alignment.schedule.num_steps,
            "alignment_hours": round(seconds_spent(self.alignment_directory) / 3600, 3),
        }


def prior_of(recipe: VideoPriorRecipe, run: VideoPriorRun, device: str = "cpu") -> VideoPrior:
    """The chain that a recipe means."""
    kind = VideoPrior if recipe.joint is None else JointPrior
    return kind(recipe=recipe, run=run, device=device)


def _bodies(pack: ClipPack) -> npt.NDArray[np.str_]:
    """Who moves in each frame."""
    return np.repeat(np.array([clip.body for clip in pack.clips]), [clip.num_frames for clip in pack.clips])
