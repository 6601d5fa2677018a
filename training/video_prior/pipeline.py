"""The chain from clips to a checkpoint: eyes, codes, pretraining, adaptation, export. Every part resumes.

Owns the order, where each part lies and what the manifest says of it. Parts that another run below the same shared
directory has made of the same things are read, not made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from policy.checkpoint import verify_files
from policy.config import IntentSettings
from policy.models import Model
from policy.prior import ActionPrior
from policy.visual_features import FrozenEyes
from training.corpus import Corpus, open_corpus
from training.ego_video.pack import ClipPack
from training.export import export_checkpoint
from training.latent_actions.label import Codes, label_pack
from training.latent_actions.model import LatentActionModel
from training.latent_actions.train import eyes_digest, model_digest, read_eyes, train_eyes, train_latent_actions
from training.loop import seconds_spent
from training.stage1 import train_stage1
from training.video_prior.adaptation import Beginnings, adapt
from training.video_prior.foresight import Foresight, foresee
from training.video_prior.intent_pretraining import NEUTRAL, LabelledClips, pretrain_intent, pretraining_identity
from training.video_prior.recipe import VideoPriorRecipe, VideoPriorRun, check_made_of

METHOD = "motion-focused latent actions (arXiv 2606.18955)"


@dataclass(frozen=True, kw_only=True)
class VideoPrior:
    """One run of a recipe. A property makes its part and what that needs, or reads what is there.

    Raises ClipPackError for a directory of clips that is none, and what the parts raise.
    """

    recipe: VideoPriorRecipe
    run: VideoPriorRun
    device: str | torch.device = "cpu"

    @cached_property
    def clips(self) -> Sequence[ClipPack]:
        return [ClipPack.open(directory) for directory in self.recipe.clips]

    @cached_property
    def pictures(self) -> Sequence[ClipPack]:
        """What eyes learn from: the clips, and those that only they do."""
        return [*self.clips, *(ClipPack.open(directory) for directory in self.recipe.still_clips)]

    @cached_property
    def eyes_directory(self) -> Path:
        if self.recipe.eyes_directory:
            return Path(self.recipe.eyes_directory)
        seed = self.recipe.video_seed
        return self.run.part(
            "eyes", {"eyes": self.recipe.eyes.to_json(), "clips": _digests(self.pictures), "seed": seed}
        )

    @cached_property
    def eyes(self) -> FrozenEyes:
        if self.recipe.eyes_directory:
            return read_eyes(self.eyes_directory, self.recipe.eyes_image_size)
        seed = self.recipe.video_seed
        return train_eyes(self.pictures, self.recipe.eyes, self.eyes_directory, seed=seed, device=self.device)

    @cached_property
    def latent_actions_directory(self) -> Path:
        made_of = {
            "latent_actions": self.recipe.latent_actions.to_json(),
            "eyes": eyes_digest(self.eyes),
            "clips": _digests(self.clips),
            "seed": self.recipe.video_seed,
        }
        return self.run.part("latent-actions", made_of)

    @cached_property
    def latent_actions(self) -> LatentActionModel:
        return train_latent_actions(
            self.clips,
            self.eyes,
            self.recipe.latent_actions,
            self.latent_actions_directory,
            seed=self.recipe.video_seed,
            device=self.device,
        )

    @cached_property
    def corpus(self) -> Corpus:
        """The robots' data, its config with the recipe's intent and its words with those of the clips."""
        recipe, corpus = self.recipe, self._without_intent
        intent = IntentSettings(
            num_codes=recipe.latent_actions.num_codes,
            num_tokens=recipe.latent_actions.num_tokens,
            visual=self.eyes.settings.to_json() if recipe.intent.use_eyes else None,
            use_intent=recipe.intent.use_intent,
        )
        return replace(corpus, config=replace(corpus.config, intent=intent))

    @cached_property
    def labelled_clips(self) -> LabelledClips:
        gap_s = self.recipe.latent_actions.gap_s
        codes = [label_pack(self.latent_actions, pack, gap_s=gap_s).codes for pack in self.clips]
        return LabelledClips(packs=self.clips, codes=codes)

    @cached_property
    def pretraining_directory(self) -> Path | None:
        """None where the recipe has no pretraining."""
        recipe = self.recipe.pretraining
        if not recipe.schedule.num_steps:
            return None
        identity = pretraining_identity(self.corpus, self.labelled_clips, recipe, self._codes_made_by)
        return self.run.part(
            "pretraining", {**identity, "seed": self.corpus.recipe.seed, "schedule": asdict(recipe.schedule)}
        )

    @cached_property
    def intent(self) -> nn.ModuleDict | None:
        """Backbone and head pretrained on the clips' codes."""
        if self.pretraining_directory is None:
            return None
        return pretrain_intent(
            self.corpus,
            self.labelled_clips,
            self.recipe.pretraining,
            self.pretraining_directory,
            codes_made_by=self._codes_made_by,
            device=self.device,
        )

    def foresight(self, packs: Sequence[ClipPack]) -> Mapping[str, Foresight]:
        """How well the pretrained backbone, which the recipe must have, foresees the codes of clips, by body."""
        assert self.intent is not None
        gap_s = self.recipe.latent_actions.gap_s
        codes = [label_pack(self.latent_actions, pack, gap_s=gap_s).codes for pack in packs]
        return foresee(self.intent, LabelledClips(packs=packs, codes=codes), self.corpus.config, self.device)

    @cached_property
    def stage1_directory(self) -> Path | None:
        """None where the recipe has no stage 1."""
        recipe, plain = self.recipe.base, self._without_intent
        if not recipe.stage1.schedule.num_steps:
            return None
        made_of = {**plain.identity(plain.stage1_packs), "stage1": asdict(recipe.stage1), "seed": recipe.seed}
        return self.run.part("stage1", made_of)

    @cached_property
    def prior(self) -> ActionPrior | None:
        """Paper A's."""
        if self.stage1_directory is None:
            return None
        return train_stage1(self._without_intent, self.stage1_directory, device=self.device)

    @cached_property
    def beginnings(self) -> Beginnings:
        uses_eyes, learns_codes = self.recipe.intent.use_eyes, self.recipe.has_intent_loss
        # The name of a part's directory says all that it is made of.
        parts = {"pretraining": self.pretraining_directory, "stage1": self.stage1_directory}
        return Beginnings(
            eyes=self.eyes if uses_eyes else None,
            intent=self.intent,
            prior=self.prior,
            made_by={
                **{name: directory.name for name, directory in parts.items() if directory is not None},
                "eyes": eyes_digest(self.eyes) if uses_eyes else None,
                "latent_actions": model_digest(self.latent_actions) if learns_codes else None,
            },
        )

    @cached_property
    def robot_codes(self) -> Sequence[Codes] | None:
        """Of the robots' own frames, as their first camera sees them; None where adaptation learns none."""
        if not self.recipe.has_intent_loss:
            return None
        horizon, gap_s = self.corpus.config.action_horizon, self.recipe.adaptation.gap_s
        return [
            label_pack(self.latent_actions, pack, gap_s=gap_s or horizon / pack.spec.control_rate_hz).codes
            for pack in self.corpus.stage2_packs
        ]

    def aligned(self) -> Path | None:
        """Where the head lies that joins video to the motion latent; None where the recipe has none."""
        return None

    def adapted(self, until: int | None = None) -> Model:
        """The model at the end of adaptation, or at its step `until`."""
        return adapt(
            self.corpus,
            self.beginnings,
            self.robot_codes,
            self.recipe.adaptation,
            self.run.adaptation,
            device=self.device,
            until=until,
        )

    def export(self) -> Path:
        """The checkpoint, and one for every snapshot of the recipe, those that are not there yet.

        Raises ValueError, before anything is trained, when one is there that was made of something else.
        """
        stage2, robots = self.recipe.base.stage2, self.run.robots
        steps = (*stage2.snapshots, stage2.schedule.num_steps)
        places = {step: robots.snapshot(step) for step in steps} | {stage2.schedule.num_steps: robots.checkpoint}
        for directory in places.values():
            if directory.exists():
                check_made_of(verify_files(directory), self.recipe, _digests(self.pictures), directory)
        for step, directory in places.items():
            if not directory.exists():
                directory.parent.mkdir(parents=True, exist_ok=True)
                vla, made_by = self.adapted(step), self._made_by
                export_checkpoint(
                    self.corpus, vla, directory, training=self._training(step), metrics={}, made_by=made_by
                )
        return robots.checkpoint

    @property
    def _codes_made_by(self) -> dict[str, Any]:
        return {"latent_actions": model_digest(self.latent_actions), "gap_s": self.recipe.latent_actions.gap_s}

    @cached_property
    def _without_intent(self) -> Corpus:
        """What stage 1 knows: the same as in paper A's runs on this data and these words."""
        words = {clip.instruction or NEUTRAL for pack in self.pictures for clip in pack.clips}
        return open_corpus(self.recipe.base, self.run.robots, sorted(words))

    @property
    def _made_by(self) -> dict[str, Any]:
        """The manifest's part that is not paper A's."""
        recipe = self.recipe
        return {
            "method": METHOD,
            "variant": recipe.variant,
            "recipe": recipe.to_json(),
            "video": {
                "clips": [_described(pack) for pack in self.clips],
                "still_clips": [_described(pack) for pack in self.pictures[len(self.clips) :]],
                "eyes_sha256": eyes_digest(self.eyes) if recipe.needs_eyes else None,
                "latent_actions_sha256": model_digest(self.latent_actions) if recipe.needs_codes else None,
            },
        }

    def _training(self, step: int) -> dict[str, Any]:
        recipe = self.recipe
        parts = {
            "eyes": None if recipe.eyes_directory or not recipe.needs_eyes else self.eyes_directory,
            "latent_actions": self.latent_actions_directory if recipe.needs_codes else None,
            "pretraining": self.pretraining_directory,
            "stage1": self.stage1_directory,
            "adaptation": self.run.adaptation,
        }
        hours = {
            f"{name}_hours": round(seconds_spent(directory) / 3600, 3)
            for name, directory in parts.items()
            if directory is not None
        }
        return {
            "pretraining_steps": recipe.pretraining.schedule.num_steps,
            "stage1_steps": recipe.base.stage1.schedule.num_steps,
            "adaptation_steps": step,
            **hours,
            "started_from": None,
            "seed": recipe.base.seed,
            "threads": torch.get_num_threads(),
        }


def _digests(packs: Sequence[ClipPack]) -> list[str]:
    return [pack.digest for pack in packs]


def _described(pack: ClipPack) -> dict[str, Any]:
    return {
        "digest": pack.digest,
        "num_clips": len(pack.clips),
        "num_frames": pack.num_frames,
        "bodies": sorted({clip.body for clip in pack.clips}),
    }
