"""A run's packed data, opened: packs in the recipe's order, embodiments, statistics, words. Where every verb starts."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer

from policy import sizes
from policy.checkpoint import CheckpointParts, read_checkpoint
from policy.config import INFERENCE_ONLY, ModelConfig, VlmSettings
from policy.embodiment import EmbodimentSpec
from policy.images import Interpolation
from policy.instructions import InstructionReader, InstructionTooLongError
from policy.normalization import Normalizer, Statistics
from policy.prior import ActionPrior
from policy.vla import VLA, build_vla, prior_config
from policy.vlm_toy import toy_hugging_face
from policy.vocabulary import train_tokenizer
from training.batches import Mixture, landmark_scales
from training.data.pack import Pack, build_packs
from training.data.sampler import TaskBalancedSampler
from training.data.statistics import embodiment_statistics
from training.json_file import write_json
from training.parallel import ALONE, Processes
from training.recipe import RECIPES, Recipe, RunDirectory
from training.suite import Suite

if TYPE_CHECKING:
    from policy.vlm_directory import VlmDirectory

# The suite that knows how long a demonstration takes.
_COSTS_OF = "cross13"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    recipe: Recipe
    packs: Sequence[Pack]  # a task each, with the episodes that the recipe uses
    motion_packs: Sequence[Pack] = ()  # more of stage 1's tasks, without images
    specs: Sequence[EmbodimentSpec]  # in the order of their index in the model
    statistics: Sequence[Statistics]
    tokenizer: Tokenizer
    config: ModelConfig
    pretrained: VlmDirectory | None = None  # the model that the backbone starts from
    parent: CheckpointParts | None = None  # the checkpoint that stage 2 starts from

    def __post_init__(self) -> None:
        """Raises ValueError for an instruction that is longer than a policy reads."""
        reader = InstructionReader(self.tokenizer)
        for pack in self.packs:
            for instruction in pack.instructions:
                try:
                    reader.tokens(instruction)
                except InstructionTooLongError as error:
                    raise ValueError(
                        f"pack {pack.directory} of task {pack.task!r}: {error}: {instruction[:60]!r}...; "
                        "shorten it in the data set, or import the data set with --instruction"
                    ) from None

    @property
    def parent_manifest(self) -> dict[str, Any] | None:
        """How the checkpoint was made that stage 2 starts from, and its revision; None when it starts from nothing."""
        if self.parent is None:
            return None
        manifest = self.parent.manifest
        return {
            "revision": self.parent.revision,
            **{key: manifest[key] for key in ("recipe", "training", "git_commit")},
        }

    @property
    def backbone_manifest(self) -> dict[str, Any] | None:
        """Which pretrained model stage 2 tunes, and how; None when the backbone is trained from nothing."""
        if self.recipe.backbone is None:
            return None
        from training.backbone import describe  # transformers takes seconds to import; only these recipes pay

        return describe(self.config, self.recipe.backbone, self.pretrained)

    @cached_property
    def layers_manifest(self) -> dict[str, Any]:
        """Which pretrained layers encoder and decoder start from; empty when they start at random."""
        if not self.recipe.layers_from:
            return {}
        from policy.qwen3_init import layers_sha256

        return {"layers_from": {"family": "qwen3", "sha256": layers_sha256(self.recipe.layers_from)}}

    @property
    def normalizers(self) -> Mapping[str, Normalizer]:
        return {spec.name: Normalizer(spec, values) for spec, values in zip(self.specs, self.statistics, strict=True)}

    @property
    def stage1_packs(self) -> Sequence[Pack]:
        return (*_of_tasks(self.packs, self.recipe.stage1.tasks), *self.motion_packs)

    @property
    def stage2_packs(self) -> Sequence[Pack]:
        return _of_tasks(self.packs, self.recipe.stage2.tasks)

    def check_bodies(self, packs: Sequence[Pack], where: str) -> None:
        """Raises ValueError for a pack whose body is not the one of that name that the model knows."""
        known = {spec.name: spec.digest for spec in self.specs}
        for pack in packs:
            if known.get(pack.spec.name) != pack.spec.digest:
                raise ValueError(
                    f"{where}: embodiment {pack.spec.name!r} of task {pack.task!r} is not the one it was trained on"
                )

    def mixture(self, packs: Sequence[Pack], *, landmarks: bool) -> Mixture:
        return Mixture(
            packs=packs,
            normalizers=self.normalizers,
            embodiments={spec.name: index for index, spec in enumerate(self.specs)},
            config=self.config,
            landmark_scales=landmark_scales(packs) if landmarks else (),
        )

    def sampler(
        self, packs: Sequence[Pack], batch_size: int, seed: int, processes: Processes = ALONE
    ) -> TaskBalancedSampler:
        """Every task as often as its weight says, however long its episodes and in however many packs they are."""
        frames = Counter[str]()
        for pack in packs:
            frames[pack.task] += pack.num_frames
        weights = [self.recipe.data.weight(pack.task) * pack.num_frames / frames[pack.task] for pack in packs]
        return TaskBalancedSampler(
            [pack.num_frames for pack in packs],
            weights,
            batch_size,
            seed,
            rank=processes.rank,
            world_size=processes.world_size,
        )

    def build_prior(self) -> ActionPrior:
        """Fresh weights, a function of the recipe's seed alone, but for the layers that the recipe names."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            prior = ActionPrior(prior_config(self.config))
        self._load_layers(prior)
        return prior

    def build_model(self) -> VLA:
        """Fresh weights, a function of the recipe's seed alone, or those of the checkpoint that stage 2 starts from.

        A pretrained backbone has its own, and so have encoder and decoder where the recipe names layers.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            vla = build_vla(self.config, self.tokenizer)
            if self.pretrained is not None:
                from training.backbone import load_pretrained

                load_pretrained(vla, self.pretrained)
        self._load_layers(vla.prior)
        if self.parent is not None:
            vla.load_state_dict(self.parent.vla.state_dict())
        return vla

    def _load_layers(self, prior: ActionPrior) -> None:
        if not self.recipe.layers_from:
            return
        from policy.qwen3_init import load_qwen3_layers

        for trunk in (prior.encoder.trunk, prior.decoder.trunk):
            load_qwen3_layers(trunk, self.recipe.layers_from)

    def identity(self, packs: Sequence[Pack]) -> dict[str, Any]:
        """What a resumed stage on `packs` must agree on: size, words and the very bytes of the data."""
        # What stage 2 alone does, and names itself: runs that differ in it share a stage 1.
        unnamed = (*INFERENCE_ONLY, "max_inference_delay")
        return {
            "size": self.recipe.size,
            "config": {name: value for name, value in self.config.to_json().items() if name not in unnamed},
            "weights": dict(self.recipe.data.weights),
            "start_from": self.parent.revision if self.parent else "",
            **self.layers_manifest,
            "data": [[pack.task, pack.source_sha256, pack.num_episodes] for pack in packs],
        }


def open_corpus(recipe: Recipe, run: RunDirectory, more_instructions: Iterable[str] = ()) -> Corpus:
    """Pack what is not packed yet, then read specs, statistics and words.

    `more_instructions` are words beyond the packs' own that a tokenizer trained here shall know.
    Raises FileNotFoundError when a task's dataset is missing, ValueError when the checkpoint that stage 2 starts from
    knows other bodies or an instruction is too long, CheckpointError when it cannot be read, OSError or ValueError when
    a pretrained model cannot be the backbone; so does building what layers of a Qwen3 do not fit.
    """
    _check_recorded(recipe, run)
    parent = read_checkpoint(Path(recipe.stage2.start_from)) if recipe.stage2.start_from else None
    pretrained = _pretrained(recipe)
    image_size, interpolation = _view(recipe, parent, pretrained)
    recorded = _recorded_packs(recipe, run, image_size, interpolation)
    packs = _used_packs(recipe, recorded)
    if parent is not None:
        return _fine_tuned(recipe, packs, parent)
    specs: dict[str, EmbodimentSpec] = {}
    for pack in packs:
        specs.setdefault(pack.spec.name, pack.spec)
    ordered = list(specs.values())
    if pretrained is None:
        instructions = [instruction for pack in packs for instruction in pack.instructions]
        tokenizer = train_tokenizer([*instructions, *more_instructions])
        config = _config(recipe, ordered, tokenizer)
    else:
        from training.backbone import config_around

        tokenizer, config = pretrained.tokenizer, config_around(recipe.size, ordered, pretrained, image_size)
    config = replace(config, encoder_inputs=recipe.stage1.inputs, max_inference_delay=recipe.stage2.max_inference_delay)
    statistics = read_statistics(recorded, run, horizon=config.action_horizon)
    return Corpus(
        recipe=recipe,
        packs=packs,
        motion_packs=_motion_packs(recipe, run),
        specs=ordered,
        statistics=[statistics[spec.name] for spec in ordered],
        tokenizer=tokenizer,
        config=config,
        pretrained=pretrained,
    )


def checkpoint_corpus(checkpoint: CheckpointParts, recipe: Recipe, run: RunDirectory) -> Corpus:
    """The recipe's recordings as a checkpoint sees them: with its view, words, statistics and bodies; to be looked at.

    Raises FileNotFoundError when a task's dataset is missing, ValueError when the checkpoint does not know its body.
    """
    _check_recorded(recipe, run)
    config = checkpoint.vla.config
    packs = _used_packs(recipe, _recorded_packs(recipe, run, config.image_size, config.interpolation))
    return _corpus_of(checkpoint, recipe, packs, where=f"checkpoint {checkpoint.revision}")


def unrecorded_corpus(checkpoint: CheckpointParts, recipe: Recipe) -> Corpus:
    """The same without recordings, for packs that the caller brings."""
    return _corpus_of(checkpoint, recipe, (), where=f"checkpoint {checkpoint.revision}")


def _check_recorded(recipe: Recipe, run: RunDirectory) -> None:
    missing = [task for task in recipe.data.tasks if not run.dataset(task).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"no demonstrations of {', '.join(missing)} in {run.datasets}; {_recording(recipe, run, missing)} first"
        )


def _recording(recipe: Recipe, run: RunDirectory, tasks: Sequence[str]) -> str:
    """The call that records tasks of a recipe, and about what it takes where a suite that is shipped knows it."""
    if run.recipe.is_file():
        call = f"run 'python -m training record --run {run.root}'"
    elif (RECIPES / f"{recipe.name}.json").is_file():
        where = "" if recipe.data.root else f" --run {run.root}"
        call = f"run 'python -m training record --recipe {recipe.name}{where}'"
    else:
        call = f"run the verb 'record' with --recipe, a file of recipe {recipe.name!r},"
    known = Suite.load(_COSTS_OF).tasks
    if any(task not in known for task in tasks):
        return call
    seconds = sum(recipe.data.num_recorded(task) * known[task].recording_s for task in tasks)
    return f"{call} (about {math.ceil(seconds / 60)} minutes of one core)"


def _recorded_packs(recipe: Recipe, run: RunDirectory, image_size: int, interpolation: Interpolation) -> Sequence[Pack]:
    return build_packs(
        [run.dataset(task) for task in recipe.data.tasks],
        _packs_directory(recipe, run, image_size, interpolation),
        image_size=image_size,
        interpolation=interpolation,
    )


def _used_packs(recipe: Recipe, recorded: Sequence[Pack]) -> Sequence[Pack]:
    """Shared recordings may hold more than a run uses."""
    return [pack.first(recipe.data.num_episodes(pack.task)) for pack in recorded] if recipe.data.root else recorded


def _config(recipe: Recipe, specs: Sequence[EmbodimentSpec], tokenizer: Tokenizer) -> ModelConfig:
    """Of a model that starts from nothing."""
    vocabulary = tokenizer.get_vocab_size()
    if recipe.size == "tiny-vlm":
        return sizes.tiny_vlm(specs, vocabulary, toy_hugging_face("smolvlm", tokenizer))
    return sizes.SIZES[recipe.size](specs, vocabulary)


def _pretrained(recipe: Recipe) -> VlmDirectory | None:
    if recipe.backbone is None or not recipe.backbone.directory:
        return None
    from policy.vlm_directory import read_directory

    return read_directory(recipe.backbone.directory)


def _view(recipe: Recipe, parent: CheckpointParts | None, pretrained: VlmDirectory | None) -> tuple[int, Interpolation]:
    """How frames are resized, for training as it will be for serving."""
    if parent is not None:
        return parent.vla.config.image_size, parent.vla.config.interpolation
    if recipe.backbone is not None and pretrained is not None:
        from training.backbone import image_size_of

        return image_size_of(pretrained, recipe.backbone, sizes.IMAGE_SIZES[recipe.size]), pretrained.interpolation
    return sizes.IMAGE_SIZES[recipe.size], "bilinear"


def _packs_directory(recipe: Recipe, run: RunDirectory, image_size: int, interpolation: Interpolation) -> Path:
    """Runs share packs of the size's own view; another view has packs of its own beside them."""
    if (image_size, interpolation) == (sizes.IMAGE_SIZES[recipe.size], "bilinear"):
        return run.packs
    return run.packs.with_name(f"{run.packs.name}-{image_size}px-{interpolation}")


def _motion_packs(recipe: Recipe, run: RunDirectory) -> list[Pack]:
    if not recipe.stage1.motion_episodes:
        return []
    datasets = [run.motion_datasets / task for task in recipe.stage1.tasks or recipe.data.tasks]
    if missing := [dataset.name for dataset in datasets if not dataset.is_dir()]:
        raise FileNotFoundError(
            f"no demonstrations without images of {', '.join(missing)} in {run.motion_datasets}, "
            f"and stage1.motion_episodes is {recipe.stage1.motion_episodes}; record them first"
        )
    packs = build_packs(datasets, run.motion_packs, image_size=None)
    return [pack.first(recipe.stage1.motion_episodes) for pack in packs]


def _of_tasks(packs: Sequence[Pack], tasks: Sequence[str]) -> Sequence[Pack]:
    return [pack for pack in packs if pack.task in tasks] if tasks else packs


def _fine_tuned(recipe: Recipe, packs: Sequence[Pack], parent: CheckpointParts) -> Corpus:
    if recipe.backbone is not None and not isinstance(parent.vla.config.backbone, VlmSettings):
        raise ValueError(
            f"stage2.start_from {recipe.stage2.start_from} has no vision-language model that the recipe's backbone "
            "could tune; leave backbone out"
        )
    if parent.vla.config.intent is not None:
        raise ValueError(
            f"stage2.start_from {recipe.stage2.start_from} has an intent, and stage 2 tunes models without; "
            "choose a checkpoint of paper A's model"
        )
    corpus = _corpus_of(parent, recipe, packs, where=f"stage2.start_from {recipe.stage2.start_from}")
    # Fine-tuned without given prefixes, a model forgets how to continue them.
    config = replace(corpus.config, max_inference_delay=recipe.stage2.max_inference_delay)
    return replace(corpus, config=config)


def _corpus_of(checkpoint: CheckpointParts, recipe: Recipe, packs: Sequence[Pack], *, where: str) -> Corpus:
    """Weights mean what they meant only with the statistics, words and order of bodies they were trained with."""
    corpus = Corpus(
        recipe=recipe,
        packs=packs,
        specs=checkpoint.specs,
        statistics=checkpoint.statistics,
        tokenizer=checkpoint.tokenizer,
        config=checkpoint.vla.config,
        parent=checkpoint,
    )
    corpus.check_bodies(packs, where)
    return corpus


def read_statistics(packs: Sequence[Pack], run: RunDirectory, *, horizon: int) -> Mapping[str, Statistics]:
    """statistics.json of this very data, computed when it is not there yet or was computed of other data."""
    source = {"horizon": horizon, "data": {pack.task: pack.source_sha256 for pack in packs}}
    if run.statistics.is_file():
        found = json.loads(run.statistics.read_text())
        if found["source"] == source:
            return found["embodiments"]
    embodiments = embodiment_statistics(packs, horizon=horizon)
    write_json(run.statistics, {"source": source, "embodiments": embodiments})
    return embodiments
