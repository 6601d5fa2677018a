"""A budget of the experiments on video: clips, steps, demonstrations and what they cost. Frozen data in budgets/*.json.

Owns its strict JSON form and the one place where an arm becomes a recipe. Does not own the experiments or any run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from policy.strict_json import build
from training.experiments.budget import check_numbers, seeds_of_json
from training.experiments.experiment import DEFAULT_DECAY
from training.experiments.video.experiment import CodesTraining, PolicyTraining
from training.latent_actions.settings import LatentActionSettings
from training.names import shipped_json
from training.recipe import Recipe
from training.simulation.hand_seeds import TESTING_SEEDS, TRAINING_SEEDS
from training.suite import Suite
from training.video_prior.joint_recipe import JointRecipe
from training.video_prior.recipe import AdaptationRecipe, IntentRecipe, VideoPriorRecipe

BUDGETS = Path(__file__).parent / "budgets"
CLIPS = ("hands-training", "robots-training", "hands-testing", "robots-testing")
TRAINING_CLIPS = CLIPS[:2]
# Paper B's loss and nothing else: masked errors of three paths, and the codebooks'. Widths stay the budget's.
PAPER_LOSS: Mapping[str, Any] = {
    "masked_frames": "last",
    "elsewhere": "anything",
    "motion_weight": 0.0,
    "mask_weight": 0.0,
    "continuous_part": 0.0,
    "vary": False,
}


@dataclass(frozen=True, kw_only=True)
class ClipBudget:
    """What is filmed. `robot_tasks` are of different bodies and none that a policy is tested on.

    Hands are of hand_seeds.TRAINING_SEEDS from their first on, and of TESTING_SEEDS from number `first_hand_testing`
    on: on some before it our losses were developed (docs/methods.md). `robots_*` are scenes of each task from
    `first_robot_*` on. A robot's frame is every `robot_steps_per_frame` control steps and counts as one of `rate_hz`:
    in cpu.json a robot's own codes, which span its chunk of 16 steps, span 0.8 s at that pace, those of clips `gap_s`,
    1.0 s.
    """

    image_size: int
    rate_hz: float
    hands_training: int
    hands_testing: int
    first_hand_testing: int
    robot_tasks: tuple[str, ...]
    robots_training: int
    robots_testing: int
    first_robot_training: int
    first_robot_testing: int
    robot_steps_per_frame: int

    def __post_init__(self) -> None:
        if self.first_robot_testing < self.first_robot_training + self.robots_training:
            raise ValueError(
                f"clips.first_robot_testing is {self.first_robot_testing}, expected at least "
                f"{self.first_robot_training + self.robots_training}: no scene may be for both"
            )
        most = len(TESTING_SEEDS) - self.hands_testing
        if not 0 <= self.first_hand_testing <= most:
            raise ValueError(
                f"clips.first_hand_testing is {self.first_hand_testing}, expected 0 to {most}: there are "
                f"{len(TESTING_SEEDS)} seeds for testing, and {self.hands_testing} are asked for"
            )

    def hand_seeds(self, name: str) -> range:
        """Of "hands-training" or "hands-testing"."""
        first = self.first_hand_testing
        return {
            "hands-training": TRAINING_SEEDS[: self.hands_training],
            "hands-testing": TESTING_SEEDS[first : first + self.hands_testing],
        }[name]

    def number(self, name: str) -> int:
        """How many scenes one of CLIPS has."""
        kind, purpose = name.split("-")
        number = {
            ("hands", "training"): self.hands_training,
            ("hands", "testing"): self.hands_testing,
            ("robots", "training"): self.robots_training * len(self.robot_tasks),
            ("robots", "testing"): self.robots_testing * len(self.robot_tasks),
        }
        return number[kind, purpose]


@dataclass(frozen=True, kw_only=True)
class VideoCosts:
    """Seconds of one worker: of a step, of filming a scene, of a probe, and of a job's start."""

    hand_clip_s: float
    robot_clip_s: float
    eyes_step_s: float
    codes_step_s: float
    probe_s: float
    pretraining_step_s: float
    stage1_step_s: float
    labels_s: float
    alignment_step_s: float
    policy_step_s: float
    joint_step_s: float
    motion_step_s: float  # of the joint arms' head without clips
    start_s: float
    evaluation_start_s: float
    episode_s: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class VideoBudget:
    """`recipe` is the whole chain: each arm leaves out of it what it has not. `added_steps` of stage 2 take as long as
    its pretraining.
    """

    name: str
    what: str
    device: str
    num_workers: int
    hours: float
    seeds: tuple[int, ...]
    suite: Suite
    clips: ClipBudget
    recipe: VideoPriorRecipe
    joint: JointRecipe
    added_steps: int
    episodes: int
    costs: VideoCosts

    def __post_init__(self) -> None:
        check_numbers(self.name, self.seeds, num_workers=self.num_workers, episodes=self.episodes)
        tasks = self.tasks
        if unknown := sorted(set(tasks) - set(self.suite.tasks)):
            raise ValueError(f"budget {self.name}: base.data.tasks names {unknown}, expected tasks of the suite")
        if missing := sorted(set(tasks) - set(self.costs.episode_s)):
            raise ValueError(f"budget {self.name}: costs.episode_s says nothing of {missing}")
        if shared := sorted(set(tasks) & set(self.clips.robot_tasks)):
            raise ValueError(f"budget {self.name}: clips.robot_tasks names {shared}, which policies are tested on")
        shifts = self.recipe.pretraining.image_shift, self.recipe.base.stage2.image_shift
        if shifts[0] != shifts[1]:
            raise ValueError(
                f"budget {self.name}: image_shift is {shifts[0]} in pretraining and {shifts[1]} in base.stage2, "
                "expected the same: arms with pretraining would have seen pictures moved about and the others not"
            )
        if weight := self.recipe.base.stage2.landmark_weight:
            raise ValueError(
                f"budget {self.name}: base.stage2.landmark_weight is {weight}, expected 0: a frozen model and one "
                "without intent learn no landmarks, so arms would differ in them too"
            )
        undigested = {
            "eyes_directory": self.recipe.eyes_directory,
            "eyes_image_size": self.recipe.eyes_image_size,
            "base.backbone": self.recipe.base.backbone,
            "base.layers_from": self.recipe.base.layers_from,
        }
        if given := [name for name, value in undigested.items() if value]:
            raise ValueError(
                f"budget {self.name}: recipe has {' and '.join(given)}, expected none: no digest of a run has them, so "
                "another model's results would be taken for this one's"
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """What policies are trained and tested on."""
        return self.recipe.base.data.tasks

    def latent_actions(self, training: CodesTraining) -> LatentActionSettings:
        settings, without = self.recipe.latent_actions, PAPER_LOSS if training.paper_loss else {}
        if training.no_motion_loss:
            without = {"motion_weight": 0.0}
        latent_dim = training.latent_dim or settings.latent_dim
        return replace(settings, masks=training.masks, num_codes=training.num_codes, latent_dim=latent_dim, **without)

    def codes_recipe(self, seed: int, clips: Mapping[str, str], *, hands_only: bool = False) -> VideoPriorRecipe:
        """Of eyes and of the codes that policies learn: no policy is trained by it. `clips` has directories by name."""
        hands, robots = (clips[name] for name in TRAINING_CLIPS)
        return replace(
            self.recipe,
            clips=(hands,) if hands_only else (hands, robots),
            still_clips=(robots,) if hands_only else (),
            video_seed=seed,
            base=self._base(seed),
        )

    def policy_recipe(self, training: PolicyTraining, seed: int, clips: Mapping[str, str]) -> VideoPriorRecipe:
        """The exact recipe of a policy."""
        whole = self.codes_recipe(seed, clips, hands_only=training.hands_only)
        base = whole.base
        stage1, stage2 = base.stage1, base.stage2
        if not training.state_prior:
            stage1 = replace(stage1, schedule=replace(stage1.schedule, num_steps=0))
        num_steps = stage2.schedule.num_steps + (self.added_steps if training.added_compute else 0)
        distils = training.head == "motion" and training.state_prior
        base = replace(
            base,
            data=replace(base.data, episodes=dict.fromkeys(self.tasks, training.demonstrations)),
            stage1=stage1,
            stage2=replace(
                stage2,
                schedule=replace(stage2.schedule, num_steps=num_steps),
                decay_steps=round(Fraction(num_steps) * DEFAULT_DECAY) if distils else 0,
            ),
        )
        name = f"{self.name}-{_words(training)}-seed-{seed}"
        base = replace(base, name=name)
        no_pretraining = replace(whole.pretraining, schedule=replace(whole.pretraining.schedule, num_steps=0))
        if training.head == "motion":
            if training.joint is None:
                joint = replace(self.joint, video_weight=0.0)
                variant = "state-prior" if training.state_prior else "no-prior"
            else:
                joint = replace(self.joint, alignment=replace(self.joint.alignment, loss=training.joint))
                variant = "joint-prior"
            return replace(
                whole,
                name=name,
                variant=variant,
                intent=IntentRecipe(),
                pretraining=no_pretraining,
                adaptation=AdaptationRecipe(),
                joint=joint,
                base=base,
            )
        eyes = whole.eyes
        if training.untrained_eyes:
            eyes = replace(eyes, schedule=replace(eyes.schedule, num_steps=0))
        return replace(
            whole,
            name=name,
            eyes=eyes,
            intent=IntentRecipe(use_intent=training.use_intent, use_eyes=training.use_eyes),
            pretraining=whole.pretraining if training.pretraining else no_pretraining,
            adaptation=AdaptationRecipe(
                tuning="frozen" if training.frozen else "full",
                intent_weight=whole.adaptation.intent_weight if training.learns_codes else 0.0,
                gap_s=whole.adaptation.gap_s,
                sight_dropout=training.sight_dropout,
            ),
            base=base,
        )

    def _base(self, seed: int) -> Recipe:
        base = self.recipe.base
        return replace(base, seed=seed, evaluation=replace(base.evaluation, num_episodes=self.episodes))

    @classmethod
    def load(cls, name_or_path: str) -> VideoBudget:
        """A budget shipped in training/experiments/video/budgets by its name, or any JSON file by its path.

        Raises UnknownNameError, or ValueError that names an unknown or missing key.
        """
        return cls.from_json(shipped_json("budget", name_or_path, BUDGETS))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> VideoBudget:
        parts = dict(values)
        parts["suite"] = Suite.load(str(parts.get("suite", "")))
        clips = dict(parts.get("clips", {}))
        parts["clips"] = build(
            ClipBudget, {**clips, "robot_tasks": tuple(clips.get("robot_tasks", ()))}, "budget.clips"
        )
        parts["recipe"] = VideoPriorRecipe.from_json(
            {"name": parts.get("name"), "clips": list(TRAINING_CLIPS), **parts.get("recipe", {})}
        )
        parts["joint"] = JointRecipe.from_json(parts.get("joint", {}))
        parts["costs"] = build(VideoCosts, parts.get("costs", {}), "budget.costs")
        parts["seeds"] = seeds_of_json(parts.get("seeds"))
        return build(cls, parts, "budget")


def _words(training: PolicyTraining) -> str:
    words = [f"{training.demonstrations}-demonstrations"]
    words += ["pretraining"] if training.pretraining else []
    words += ["hands-only"] if training.hands_only else []
    words += ["codes"] if training.learns_codes else []
    words += ["added-compute"] if training.added_compute else []
    words += ["state-prior"] if training.state_prior else []
    words += [] if training.use_intent else ["no-intent"]
    words += [] if training.use_eyes else ["no-eyes"]
    words += ["untrained-eyes"] if training.untrained_eyes else []
    words += [f"sight-dropout-{training.sight_dropout:g}"] if training.sight_dropout else []
    words += ["frozen"] if training.frozen else []
    words += ["motion-head"] if training.head == "motion" else []
    words += [f"joint-{training.joint}"] if training.joint else []
    return "-".join(words)
