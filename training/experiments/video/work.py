"""Filming, training and probing for real, one torch thread a process: training/video_prior's chain, part by part.

Owns what `runner.VideoWork` asks for. Parts that jobs share are opened under a lock, for opening a part that is trained
rewrites its log; each is trained by one job alone, outside of it.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.experiments.experiment import Condition
from training.experiments.video.budget import ClipBudget
from training.experiments.video.plan import PartKind
from training.experiments.work import TrainingWork, logged
from training.latent_actions.settings import LatentActionSettings
from training.video_prior.recipe import VideoPriorRecipe, VideoPriorRun

if TYPE_CHECKING:
    from training.ego_video.pack import ClipPackWriter
    from training.latent_actions.model import LatentActionModel
    from training.simulation.hand_clips import FilmedClip
    from training.simulation.robot_clips import RobotClip
    from training.video_prior.pipeline import VideoPrior

LOCK_DEADLINE_S = 600.0


@dataclass(frozen=True, kw_only=True)
class ChainWork:
    device: str

    def film(self, name: str, clips: ClipBudget, directory: Path) -> Mapping[str, Any]:
        """Clips with flow masks and all that is privileged. What was not finished is filmed again."""
        from training.ego_video.pack import ClipPackWriter

        if not directory.is_dir():
            with logged(directory.parent), ClipPackWriter(directory, clips.image_size) as writer:
                (_film_hands if name.startswith("hands") else _film_robots)(name, clips, writer)
        return {}

    def train_eyes(self, recipe: VideoPriorRecipe, run: VideoPriorRun) -> Mapping[str, Any]:
        prior = self._prior(recipe, run)
        with logged(run.shared):
            _ = prior.eyes
        return {}

    def train_codes(
        self, recipe: VideoPriorRecipe, settings: LatentActionSettings, run: VideoPriorRun
    ) -> Mapping[str, Any]:
        with logged(run.shared):
            self._codes(recipe, settings, run)
        return {}

    def probe(
        self,
        recipe: VideoPriorRecipe,
        settings: LatentActionSettings,
        run: VideoPriorRun,
        hands: Path,
        robots: Path,
    ) -> Mapping[str, Any]:
        from training.ego_video.pack import ClipPack
        from training.experiments.video.probing import probe_by_clip

        with logged(run.shared):
            model = self._codes(recipe, settings, run, trained=True)
            return probe_by_clip(model, ClipPack.open(hands), ClipPack.open(robots))

    def make_part(self, kind: PartKind, recipe: VideoPriorRecipe, run: VideoPriorRun) -> Mapping[str, Any]:
        from training.video_prior.joint_pipeline import JointPrior

        prior = self._prior(recipe, run)
        with logged(run.robots.root):
            if kind == "prior":
                with opening(run.shared):
                    _ = prior.corpus, prior.stage1_directory
                _ = prior.prior
            elif kind == "pretraining":
                with opening(run.shared):
                    _ = prior.corpus, prior.labelled_clips
                _ = prior.intent
            elif kind == "labels":
                with opening(run.shared):
                    _ = prior.corpus, prior.latent_actions
                _ = prior.pairs if isinstance(prior, JointPrior) else prior.robot_codes
            elif isinstance(prior, JointPrior):
                with opening(run.shared):
                    _ = prior.pairs, prior.prior
                return {"scores": dict(prior.alignment_scores)}
        return {}

    def train_policy(self, recipe: VideoPriorRecipe, run: VideoPriorRun) -> Mapping[str, Any]:
        """To the checkpoint."""
        import shutil

        from policy.checkpoint import revision_of
        from training.video_prior.joint_pipeline import JointPrior

        prior = self._prior(recipe, run)
        with logged(run.robots.root):
            if not run.robots.checkpoint.is_dir():
                with opening(run.shared):
                    if isinstance(prior, JointPrior):
                        _ = prior.prior, prior.latent_clips, prior.alignment_scores
                    else:
                        _ = prior.beginnings, prior.robot_codes
                prior.export()
        # Four times the checkpoint, and nothing resumes a run that has ended.
        shutil.rmtree(run.adaptation / "state", ignore_errors=True)
        return {"revision": revision_of(run.robots.checkpoint)}

    def evaluate(
        self, checkpoint: Path, condition: Condition, task: str, first_seed: int, num_episodes: int
    ) -> Mapping[str, Any]:
        return TrainingWork(device=self.device).evaluate(checkpoint, condition, task, first_seed, num_episodes)

    def _prior(self, recipe: VideoPriorRecipe, run: VideoPriorRun) -> VideoPrior:
        from training.video_prior.joint_pipeline import prior_of

        return prior_of(recipe, run, self.device)

    def _codes(
        self, recipe: VideoPriorRecipe, settings: LatentActionSettings, run: VideoPriorRun, *, trained: bool = False
    ) -> LatentActionModel:
        """Where policies look for theirs; beside it those with continuous latents, which no recipe of intent has."""
        from training.latent_actions.train import eyes_digest, train_latent_actions

        same = replace(recipe, latent_actions=settings) if settings.num_codes else recipe
        prior = self._prior(same, run)
        with opening(run.shared):
            eyes = prior.eyes
            if trained and settings.num_codes:
                return prior.latent_actions
        if settings.num_codes:
            return prior.latent_actions
        made_of = {
            "latent_actions": settings.to_json(),
            "eyes": eyes_digest(eyes),
            "clips": [pack.digest for pack in prior.clips],
            "seed": recipe.video_seed,
        }
        return train_latent_actions(
            prior.clips,
            eyes,
            settings,
            run.part("continuous-latent-actions", made_of),
            seed=recipe.video_seed,
            device=self.device,
        )


@contextmanager
def opening(shared: Path) -> Iterator[None]:
    """One process at a time is inside. Raises TimeoutError when another does not come out."""
    shared.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_DEADLINE_S
    with (shared / "lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process holds {shared / 'lock'} for {LOCK_DEADLINE_S:g} s") from None
                time.sleep(0.2)
        yield


def _film_hands(name: str, clips: ClipBudget, writer: ClipPackWriter) -> None:
    from training.simulation.hand_clips import FilmSettings, ImpossibleClipError, clip_name, film

    settings = FilmSettings(image_size=clips.image_size, rate_hz=clips.rate_hz)
    for seed in clips.hand_seeds(name):
        try:
            filmed = film(seed, settings)
        except ImpossibleClipError as error:
            writer.skip(clip_name(seed), str(error))
            continue
        _add(filmed, clips, writer)


def _film_robots(name: str, clips: ClipBudget, writer: ClipPackWriter) -> None:
    from training.simulation.robot_clips import film_robot

    training = name.endswith("training")
    first = clips.first_robot_training if training else clips.first_robot_testing
    seeds = range(first, first + (clips.robots_training if training else clips.robots_testing))
    for task in clips.robot_tasks:
        filmed = film_robot(
            task,
            seeds,
            image_size=clips.image_size,
            steps_per_frame=clips.robot_steps_per_frame,
            rate_hz=clips.rate_hz,
        )
        for clip in filmed:
            _add(clip, clips, writer)


def _add(filmed: FilmedClip | RobotClip, clips: ClipBudget, writer: ClipPackWriter) -> None:
    """With flow's masks and the simulator's, and how the flow inside each goes on."""
    from training.ego_video.flow_masks import flow_masks
    from training.ego_video.motion_moments import flow_steps

    masks = flow_masks(filmed.frames, clips.rate_hz)
    writer.add(
        filmed.clip,
        filmed.frames,
        masks=masks,
        truth=filmed.truth,
        effector=filmed.effector,
        scenery=filmed.scenery,
        flow_steps=flow_steps(filmed.frames, masks),
        truth_steps=flow_steps(filmed.frames, filmed.truth),
    )
