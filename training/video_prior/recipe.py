"""What a policy from video is made of, as frozen data read from JSON: clips, codes, pretraining, adaptation.

Owns the recipe, its strict JSON form and where the parts of a run lie. Trains nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from policy.strict_json import build
from training.json_file import write_json
from training.latent_actions.settings import EyesSettings, LatentActionSettings
from training.loop import Schedule
from training.names import shipped_json
from training.recipe import Recipe, RunDirectory
from training.video_prior.joint_recipe import JointRecipe

Tuning = Literal["full", "frozen", "lora"]
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class IntentRecipe:
    """What the decoder reads beside the state: intent tokens of the backbone, features of the frozen eyes."""

    use_intent: bool = True
    use_eyes: bool = True


@dataclass(frozen=True, kw_only=True)
class PretrainingRecipe:
    """Backbone and intent head learn the codes of clips. `num_steps` 0 in its schedule means none: the control."""

    schedule: Schedule
    batch_size: int = 64
    image_shift: int = 0  # as Stage2Recipe's

    def __post_init__(self) -> None:
        if self.image_shift < 0:
            raise ValueError(f"pretraining.image_shift is {self.image_shift}, expected at least 0 pixels")


@dataclass(frozen=True, kw_only=True)
class AdaptationRecipe:
    """How robots are learned, beside what base.stage2 says of schedule, batches and history.

    `tuning` is of backbone and intent head: "frozen" leaves them as pretrained, and the loss is the flow's alone, as in
    paper B's code; "lora" is for a pretrained vision-language model. `intent_weight` is lambda_intent, 0.1 in paper B's
    code. `gap_s` is between the two frames of a robot's code; null is the length of its chunk, as in paper B's code:
    bodies that move at another pace have codes of as much motion. In `sight_dropout` of the samples the decoder does
    not read the frozen eyes, so that it cannot do without intent; paper B has nothing of the kind, 0.
    """

    tuning: Tuning = "full"
    intent_weight: float = 0.1
    gap_s: float | None = None
    sight_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.tuning not in get_args(Tuning):
            raise ValueError(f"adaptation.tuning is {self.tuning!r}, expected one of {list(get_args(Tuning))}")
        if not self.intent_weight >= 0:
            raise ValueError(f"adaptation.intent_weight is {self.intent_weight}, expected at least 0")
        if not 0 <= self.sight_dropout < 1:
            raise ValueError(f"adaptation.sight_dropout is {self.sight_dropout}, expected 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class VideoPriorRecipe:
    """`base` is the robots' side: data, size, seed, backbone; its stage 2 says how adaptation runs.

    A stage 1 in `base` starts the decoder and the encoder of history from paper A's prior. `clips` are directories of
    clip packs; of `still_clips` the eyes alone learn, picture by picture, and no code does. `eyes_directory` is a
    vision model as Hugging Face saves it, in place of training `eyes`; it reads pictures of `eyes_image_size` pixels,
    null is its own. `video_seed` is of eyes and codes, which runs of different seeds share. With `joint` the model is
    paper A's, and what is learned from clips is its motion latent: pretraining, intent and adaptation then stay out of
    the recipe. Without a stage 1 it is paper A's head alone, which no prior and no clip has taught.
    """

    name: str
    variant: str = "video-prior"
    clips: tuple[str, ...]
    still_clips: tuple[str, ...] = ()
    video_seed: int = 0
    eyes: EyesSettings = field(default_factory=EyesSettings)
    eyes_directory: str = ""
    eyes_image_size: int | None = None
    latent_actions: LatentActionSettings = field(default_factory=LatentActionSettings)
    intent: IntentRecipe = IntentRecipe()
    pretraining: PretrainingRecipe = PretrainingRecipe(schedule=Schedule(num_steps=0))
    adaptation: AdaptationRecipe = AdaptationRecipe()
    joint: JointRecipe | None = None
    base: Recipe

    def __post_init__(self) -> None:
        if not self.clips:
            raise ValueError("clips are empty, expected the directories of one or more clip packs")
        if self.eyes_image_size is not None and not (self.eyes_directory and self.eyes_image_size >= 1):
            raise ValueError(
                f"eyes_image_size is {self.eyes_image_size}, expected pixels and an eyes_directory; eyes that are "
                "trained here have eyes.visual.image_size"
            )
        if self.joint is not None:
            _check_joint(self)
            return
        if not self.latent_actions.num_codes:
            raise ValueError("latent_actions.num_codes is 0, and intent is learned from codes; expected at least 2")
        if not (self.intent.use_intent or self.intent.use_eyes):
            raise ValueError("intent.use_intent and intent.use_eyes are both false, expected one of them")
        if self.adaptation.sight_dropout and not (self.intent.use_intent and self.intent.use_eyes):
            raise ValueError(
                f"adaptation.sight_dropout is {self.adaptation.sight_dropout}, expected 0 for a decoder that does not "
                "read both intent and eyes"
            )
        _check_base(self)

    @property
    def has_intent_loss(self) -> bool:
        """Whether adaptation learns codes of the robots' own frames."""
        learns = self.intent.use_intent and self.adaptation.intent_weight > 0 and self.adaptation.tuning != "frozen"
        return learns and self.joint is None

    @property
    def needs_codes(self) -> bool:
        sees_clips = self.joint is not None and self.joint.sees_clips
        return sees_clips or bool(self.pretraining.schedule.num_steps) or self.has_intent_loss

    @property
    def needs_eyes(self) -> bool:
        return self.needs_codes or (self.joint is None and self.intent.use_eyes)

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> VideoPriorRecipe:
        """Raises ValueError that names an unknown, missing or impossible key."""
        if not isinstance(values, Mapping):
            raise ValueError(f"recipe is {type(values).__name__}, expected an object")
        parts = dict(values)
        for name in ("clips", "still_clips"):
            if isinstance(parts.get(name), list):
                parts[name] = tuple(parts[name])
        if "eyes" in parts:
            parts["eyes"] = EyesSettings.from_json(parts["eyes"])
        if "latent_actions" in parts:
            parts["latent_actions"] = LatentActionSettings.from_json(parts["latent_actions"])
        if "intent" in parts:
            parts["intent"] = build(IntentRecipe, parts["intent"], "intent")
        if parts.get("joint") is not None:
            parts["joint"] = JointRecipe.from_json(parts["joint"])
        if "pretraining" in parts or parts.get("joint") is None:
            pretraining = dict(parts.get("pretraining", {}))
            pretraining["schedule"] = build(Schedule, pretraining.get("schedule", {}), "pretraining")
            parts["pretraining"] = build(PretrainingRecipe, pretraining, "pretraining")
        if "adaptation" in parts:
            parts["adaptation"] = build(AdaptationRecipe, parts["adaptation"], "adaptation")
        parts["base"] = Recipe.from_json({"name": parts.get("name"), **parts.get("base", {})})
        return build(cls, parts, "recipe")

    @classmethod
    def load(cls, name_or_path: str) -> VideoPriorRecipe:
        """A recipe shipped in training/video_prior/recipes by its name, or any JSON file; or UnknownNameError."""
        return cls.from_json(shipped_json("recipe", name_or_path, RECIPES))


@dataclass(frozen=True, kw_only=True)
class VideoPriorRun:
    """Where the parts of a run lie. Below `shared` a part's directory is named by all that it is made of, so that runs
    which agree on a part find it there; one process at a time trains below it.
    """

    robots: RunDirectory
    shared: Path

    @classmethod
    def of(cls, recipe: VideoPriorRecipe, root: Path, shared: Path | None = None) -> VideoPriorRun:
        return cls(robots=RunDirectory.of(recipe.base, root), shared=shared or root / "parts")

    def part(self, name: str, made_of: Mapping[str, Any]) -> Path:
        canonical = json.dumps(made_of, sort_keys=True)
        return self.shared / f"{name}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"

    def keep_recipe(self, recipe: VideoPriorRecipe) -> None:
        """Write the robots' side where a run's verbs look for a recipe. Raises ValueError when another is there."""
        path, values = self.robots.recipe, recipe.base.to_json()
        if not path.is_file():
            write_json(path, values)
        elif different := differences(json.loads(path.read_text()), values):
            raise ValueError(
                f"{path} is the recipe of another run: {', '.join(different)} differ; choose another directory for "
                "this one"
            )

    @property
    def adaptation(self) -> Path:
        return self.robots.root / "adaptation"


def check_made_of(manifest: Mapping[str, Any], recipe: VideoPriorRecipe, clips: Sequence[str], where: Path) -> None:
    """Raises ValueError that names what differs when a checkpoint's manifest is not of this recipe on these clips.

    `clips` are digests of all packs: where they lie does not matter. Snapshots do: a step that is past cannot be had
    again.
    """
    kept = dict(manifest.get("recipe") or {})
    with suppress(ValueError):  # one of another kind, or of what is no longer known, stays as it is and differs
        kept = VideoPriorRecipe.from_json(kept).to_json()  # what it did not know has its default
    paths = ("clips", "still_clips")
    different = [name for name in differences(kept, recipe.to_json()) if name not in paths]
    video = manifest.get("video", {})
    if [pack["digest"] for name in paths for pack in video.get(name, ())] != list(clips):
        different.insert(0, "clips")
    if different:
        raise ValueError(
            f"{where} is of another recipe: {', '.join(different)} differ; choose another directory for this one or "
            "delete it"
        )


def differences(kept: Any, asked: Any, where: str = "") -> list[str]:
    """The dotted names of what is not the same in two objects of JSON; a key that one of them lacks is among them."""
    if not (isinstance(kept, Mapping) and isinstance(asked, Mapping)):
        return [] if kept == asked else [where or "all"]
    names = list(dict.fromkeys((*kept, *asked)))
    missing = object()
    return [
        found
        for name in names
        for found in differences(kept.get(name, missing), asked.get(name, missing), f"{where}.{name}".lstrip("."))
    ]


def _check_joint(recipe: VideoPriorRecipe) -> None:
    base = recipe.base
    assert recipe.joint is not None
    if recipe.pretraining.schedule.num_steps or (recipe.intent, recipe.adaptation) != (
        IntentRecipe(),
        AdaptationRecipe(),
    ):
        raise ValueError("joint learns no codes: leave pretraining, intent and adaptation out of the recipe")
    if not base.stage1.schedule.num_steps and (recipe.joint.sees_clips or base.stage2.decay_steps != 0):
        raise ValueError(
            "base.stage1.schedule.num_steps is 0, and joint aligns video to stage 1's motion latent; without a stage 1 "
            "joint.video_weight and base.stage2.decay_steps are 0, which is paper A's head alone"
        )
    if base.stage2.start_from:
        raise ValueError(f"base.stage2.start_from is {base.stage2.start_from!r}, expected none: joint starts anew")


def _check_base(recipe: VideoPriorRecipe) -> None:
    base, tuning = recipe.base, recipe.adaptation.tuning
    if base.stage2.start_from:
        raise ValueError(f"base.stage2.start_from is {base.stage2.start_from!r}, expected none: intent starts anew")
    if base.stage2.decay_steps != 0:
        raise ValueError(
            f"base.stage2.decay_steps is {base.stage2.decay_steps}, expected 0: adaptation pulls towards no latent"
        )
    if tuning == "frozen" and base.stage2.history:
        raise ValueError(
            "adaptation.tuning is 'frozen' and base.stage2.history true: frozen, it cannot learn to read it"
        )
    lora = base.backbone is not None and base.backbone.tuning == "lora"
    if tuning != "frozen" and lora != (tuning == "lora"):
        raise ValueError(
            f"adaptation.tuning is {tuning!r}, expected what base.backbone.tuning says of a pretrained model"
        )
