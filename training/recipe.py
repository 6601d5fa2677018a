"""What a training run is, as frozen data read from JSON: which demonstrations, which size, how long each stage.

Owns the recipe, its strict JSON form and the layout of a run's directory. Reads no data and builds no model.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from policy.bounds import check_number, check_one_of, check_positive, check_whole
from policy.prior import EncoderInputs
from policy.strict_json import build, frozen
from training.loop import Schedule
from training.names import shipped_json
from training.objective import HistoryPass

Tuning = Literal["full", "lora"]
Size = Literal["tiny", "tiny-vlm", "small", "paper"]
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Demonstrations: successes only, the first `episodes_per_task` that succeed from `first_seed` on.

    `episodes` and `weights` name tasks that differ: in how many episodes they get, and in how often a batch draws them.
    `root` holds recordings that several runs share; they may hold more episodes than a run uses. Empty is the run's own
    directory. Statistics are always those of whole recordings, so that runs on fewer episodes stay comparable.
    """

    root: str = ""
    tasks: tuple[str, ...]
    episodes_per_task: int
    episodes: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    disturbed_fraction: float = 0.5
    first_seed: int = 0

    def __post_init__(self) -> None:
        _check_tasks("data.tasks", self.tasks)
        if not self.tasks:
            raise ValueError("data.tasks are empty, expected at least one task")
        for name, table in (("episodes", self.episodes), ("weights", self.weights)):
            if not isinstance(table, Mapping):
                raise ValueError(f"data.{name} is {table!r}, expected a number for each of some tasks")
            if unknown := sorted(set(table) - set(self.tasks)):
                raise ValueError(f"data.{name} names {unknown}, expected some of {sorted(self.tasks)}")
        check_whole("data.episodes_per_task", self.episodes_per_task, 1)
        for task in self.tasks:
            check_whole(f"data.episodes of {task!r}", self.num_episodes(task), 1)
            check_positive(f"data.weights of {task!r}", self.weight(task))
        check_number("data.disturbed_fraction", self.disturbed_fraction, 0, 1)
        check_whole("data.first_seed", self.first_seed, 0)

    def num_episodes(self, task: str) -> int:
        return self.episodes.get(task, self.episodes_per_task)

    def num_recorded(self, task: str) -> int:
        """What a recording holds: shared ones the same of every task, whatever a run uses of them."""
        return max(self.episodes_per_task, self.num_episodes(task)) if self.root else self.num_episodes(task)

    def weight(self, task: str) -> float:
        return self.weights.get(task, 1.0)


@dataclass(frozen=True, kw_only=True)
class Stage1Recipe:
    """The action prior. `num_steps` 0 in its schedule means none: stage 2 starts from a random decoder.

    `tasks` empty means all of data.tasks. `motion_episodes` of each come on top, recorded without images.
    """

    schedule: Schedule
    batch_size: int = 128
    num_draws: int = 1
    inputs: EncoderInputs = "state-action"
    tasks: tuple[str, ...] = ()
    motion_episodes: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("num_draws", 1), ("motion_episodes", 0)):
            check_whole(f"stage1.{name}", getattr(self, name), least)
        check_one_of("stage1.inputs", self.inputs, get_args(EncoderInputs))
        _check_tasks("stage1.tasks", self.tasks)


@dataclass(frozen=True, kw_only=True)
class Stage2Recipe:
    """The VLA. `decay_steps` is N_decay of lambda(k); 0 turns distillation off, null never lets go.

    `history_pass` says how samples are trained with and without their history (objective.observe_passes). `tasks` empty
    means all of data.tasks; a body left out keeps its place in the model. At the steps of `snapshots` a checkpoint is
    written beside the run's. `start_from` is a checkpoint to fine-tune: its weights, words and statistics, in place of
    stage 1's prior. `image_shift` moves every picture by up to so many pixels each way, its edge repeated: eyes that
    saw few scenes learn them by heart less (random crops of robomimic, arXiv 2108.03298). With `max_inference_delay`
    the decoder also learns to continue a chunk whose first 1 to so many actions are given (arXiv 2512.05964).
    A checkpoint has no landmark head: for the first `landmark_delay_steps` the new one learns from eyes that it does
    not move, so that what it does not know yet unlearns nothing.
    """

    schedule: Schedule
    batch_size: int = 64
    num_draws: int = 1
    decay_steps: int | None
    history: bool = True
    history_pass: HistoryPass = "both"
    state_dropout: float = 0.3
    landmark_weight: float = 1.0
    landmark_delay_steps: int = 0
    image_shift: int = 0
    max_inference_delay: int = 0
    tasks: tuple[str, ...] = ()
    snapshots: tuple[int, ...] = ()
    start_from: str = ""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("num_draws", 1)):
            check_whole(f"stage2.{name}", getattr(self, name), least)
        if self.decay_steps is not None:
            check_whole("stage2.decay_steps", self.decay_steps, 0)
        check_one_of("stage2.history", self.history, (True, False))
        check_one_of("stage2.history_pass", self.history_pass, get_args(HistoryPass))
        check_number("stage2.state_dropout", self.state_dropout, 0, 1)
        check_number("stage2.landmark_weight", self.landmark_weight, 0)
        _check_tasks("stage2.tasks", self.tasks)
        for step in self.snapshots:
            check_whole("stage2.snapshots' step", step, 1)
        steps = [0, *self.snapshots, self.schedule.num_steps]
        if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
            raise ValueError(
                f"stage2.snapshots are {list(self.snapshots)}, expected rising steps between 0 and "
                f"{self.schedule.num_steps}, the last step"
            )
        for name in ("image_shift", "landmark_delay_steps", "max_inference_delay"):
            check_whole(f"stage2.{name}", getattr(self, name), 0)


@dataclass(frozen=True, kw_only=True)
class BackboneRecipe:
    """A pretrained vision-language model in place of the size's own backbone, and how stage 2 tunes it.

    `directory` holds it as Hugging Face saves it; empty means the one of stage2.start_from. `image_size` null is what
    it was trained on. `learning_rate_scale` is a factor of stage 2's learning rate for what trains inside of it; null
    is 0.1 for full tuning (paper A: 1e-5 where actions have 1e-4) and 1 for LoRA, whose weights are new.
    """

    directory: str = ""
    tuning: Tuning = "full"
    lora_rank: int = 16
    image_size: int | None = None
    learning_rate_scale: float | None = None

    def __post_init__(self) -> None:
        check_one_of("backbone.tuning", self.tuning, get_args(Tuning))
        check_whole("backbone.lora_rank", self.lora_rank, 1)
        if self.image_size is not None:
            check_whole("backbone.image_size", self.image_size, 1)
        if self.learning_rate_scale is not None:
            check_positive("backbone.learning_rate_scale", self.learning_rate_scale)

    @property
    def rate_scale(self) -> float:
        if self.learning_rate_scale is None:
            return 0.1 if self.tuning == "full" else 1.0
        return self.learning_rate_scale


@dataclass(frozen=True, kw_only=True)
class EvaluationRecipe:
    """Held-out scenes: seeds from `first_seed` on, disjoint from every training seed."""

    num_episodes: int = 50
    first_seed: int = 100_000
    history: bool = False

    def __post_init__(self) -> None:
        check_whole("evaluation.num_episodes", self.num_episodes, 1)
        check_whole("evaluation.first_seed", self.first_seed, 0)
        check_one_of("evaluation.history", self.history, (True, False))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`layers_from` is the directory of a Qwen3 whose first layers encoder and decoder start from, with a prior or
    without; "" starts them at random.
    """

    name: str
    size: Size
    seed: int = 0
    autocast: bool = True
    data: DataRecipe
    stage1: Stage1Recipe
    stage2: Stage2Recipe
    backbone: BackboneRecipe | None = None
    layers_from: str = ""
    evaluation: EvaluationRecipe = EvaluationRecipe()

    def __post_init__(self) -> None:
        check_one_of("size", self.size, get_args(Size))
        check_whole("seed", self.seed, 0)
        check_one_of("autocast", self.autocast, (True, False))
        _check_backbone(self)
        if not isinstance(self.layers_from, str):
            raise ValueError(f"layers_from is {self.layers_from!r}, expected the directory of a Qwen3 or an empty text")
        if self.layers_from and self.stage2.start_from:
            raise ValueError(
                f"layers_from is {self.layers_from!r} and stage2.start_from {self.stage2.start_from!r}, "
                "expected one of them: a checkpoint brings its own layers"
            )
        for name, tasks in (("stage1", self.stage1.tasks), ("stage2", self.stage2.tasks)):
            if unknown := sorted(set(tasks) - set(self.data.tasks)):
                raise ValueError(f"{name}.tasks names {unknown}, expected some of {sorted(self.data.tasks)}")
        # The expert may fail on some scenes, so more seeds are tried than episodes are kept.
        training = range(
            self.data.first_seed, self.data.first_seed + 100 * max(map(self.data.num_episodes, self.data.tasks))
        )
        first = self.evaluation.first_seed
        if first < training.stop and first + self.evaluation.num_episodes > training.start:
            raise ValueError(
                f"evaluation.first_seed is {first}, expected at least {training.stop}: "
                "held-out scenes must not be training scenes"
            )

    @property
    def trains_prior(self) -> bool:
        """Whether stage 2 starts from a prior of the run's own: neither from a random decoder nor from a checkpoint."""
        return bool(self.stage1.schedule.num_steps) and not self.stage2.start_from

    @property
    def variant(self) -> str:
        """The name of this combination of prior and history."""
        if not self.stage1.schedule.num_steps:
            return "no-prior-history" if self.stage2.history else "no-prior"
        if self.stage2.history:
            return "history" if self.stage1.inputs == "state-action" else "action-prior-history"
        if self.stage1.motion_episodes:
            return "scaled-prior"
        return "state-prior" if self.stage1.inputs == "state-action" else "action-prior"

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """Raises ValueError that names an unknown or missing key, or a value that cannot be."""
        if not isinstance(values, Mapping):
            raise ValueError(f"recipe is {type(values).__name__}, expected an object")
        parts = dict(values)
        parts["data"] = build(DataRecipe, frozen(parts.get("data", {}), "data"), "data")
        for name, kind in (("stage1", Stage1Recipe), ("stage2", Stage2Recipe)):
            stage = parts.get(name, {})
            lists = frozen(stage, name)
            parts[name] = build(kind, {**lists, "schedule": build(Schedule, stage.get("schedule", {}), name)}, name)
        if parts.get("backbone") is not None:
            parts["backbone"] = build(BackboneRecipe, parts["backbone"], "backbone")
        if "evaluation" in parts:
            parts["evaluation"] = build(EvaluationRecipe, parts["evaluation"], "evaluation")
        return build(cls, parts, "recipe")

    @classmethod
    def of_checkpoint(cls, manifest: Mapping[str, Any], revision: str) -> Recipe:
        """What a checkpoint was trained as; of one from video the robots' side. Raises ValueError with the remedy."""
        try:
            values = manifest["recipe"]
            return cls.from_json(values.get("base", values))
        except (KeyError, AttributeError, ValueError) as error:
            raise ValueError(
                f"checkpoint {revision} does not say on what it was trained as a recipe does ({error}); "
                "name one with --recipe"
            ) from None

    @classmethod
    def load(cls, name_or_path: str) -> Recipe:
        """A recipe shipped in training/recipes by its name, or any JSON file by its path.

        Raises UnknownNameError, or ValueError as from_json does.
        """
        return cls.from_json(shipped_json("recipe", name_or_path, RECIPES))


@dataclass(frozen=True, kw_only=True)
class RunDirectory:
    """Where each verb of a run reads and writes. `shared` holds recordings that are not the run's own."""

    root: Path
    shared: Path | None = None

    @classmethod
    def of(cls, recipe: Recipe, root: Path) -> RunDirectory:
        return cls(root=root, shared=Path(recipe.data.root) if recipe.data.root else None)

    def dataset(self, task: str) -> Path:
        return self.datasets / task

    @property
    def datasets(self) -> Path:
        return (self.shared or self.root) / "data"

    @property
    def packs(self) -> Path:
        return (self.shared or self.root) / "packs"

    @property
    def motion_datasets(self) -> Path:
        """Demonstrations without images, for stage 1 alone."""
        return (self.shared or self.root) / "motion"

    @property
    def motion_packs(self) -> Path:
        return (self.shared or self.root) / "motion-packs"

    @property
    def recipe(self) -> Path:
        """The run's own recipe, where it has one: an imported data set's is in none that is shipped."""
        return self.root / "recipe.json"

    @property
    def statistics(self) -> Path:
        return self.root / "statistics.json"

    @property
    def stage1(self) -> Path:
        return self.root / "stage1"

    @property
    def stage2(self) -> Path:
        return self.root / "stage2"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    def snapshot(self, step: int) -> Path:
        """The checkpoint of one of stage 2's `snapshots`."""
        return self.root / "snapshots" / f"step_{step:06d}"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"

    @property
    def held_out(self) -> Path:
        """What `inspect` records for itself, on scenes that no training sees."""
        return self.root / "held-out"


def _check_backbone(recipe: Recipe) -> None:
    backbone, parent = recipe.backbone, recipe.stage2.start_from
    if backbone is None:
        if recipe.size == "paper" and not parent:
            raise ValueError("size is 'paper' and backbone is not given, expected the directory of a pretrained model")
    elif parent and backbone.image_size is not None:
        raise ValueError(f"backbone.image_size is {backbone.image_size}, expected null: stage2.start_from has its own")
    elif backbone.directory and parent:
        raise ValueError(
            f"backbone.directory is {backbone.directory!r} and stage2.start_from {parent!r}, expected one of them: "
            "a checkpoint brings its own backbone"
        )
    elif not backbone.directory and not parent:
        raise ValueError("backbone.directory is empty, expected the directory of a pretrained model")


def _check_tasks(name: str, tasks: Any) -> None:
    if not isinstance(tasks, tuple) or not all(isinstance(task, str) for task in tasks) or len({*tasks}) != len(tasks):
        raise ValueError(f"{name} is {tasks!r}, expected a list of names, each once")
