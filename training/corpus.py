"""A run's packed data, opened: packs in the recipe's order, embodiments, statistics, words. Where every verb starts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from policy import sizes
from policy.checkpoint import CheckpointParts, read_checkpoint
from policy.config import INFERENCE_ONLY, ModelConfig
from policy.embodiment import EmbodimentSpec
from policy.normalization import Normalizer, Statistics
from policy.vla import VLA, build_vla
from policy.vlm_toy import toy_hugging_face
from policy.vocabulary import train_tokenizer
from training.batches import Mixture, landmark_scales
from training.data.pack import Pack, build_packs
from training.data.sampler import TaskBalancedSampler
from training.data.statistics import embodiment_statistics
from training.json_file import write_json
from training.recipe import Recipe, RunDirectory

_SIZES = {"tiny": sizes.tiny, "small": sizes.small}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    recipe: Recipe
    packs: Sequence[Pack]  # a task each, with the episodes that the recipe uses
    motion_packs: Sequence[Pack] = ()  # more of stage 1's tasks, without images
    specs: Sequence[EmbodimentSpec]  # in the order of their index in the model
    statistics: Sequence[Statistics]
    tokenizer: Tokenizer
    config: ModelConfig
    parent: CheckpointParts | None = None  # the checkpoint that stage 2 starts from

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
    def normalizers(self) -> Mapping[str, Normalizer]:
        return {spec.name: Normalizer(spec, values) for spec, values in zip(self.specs, self.statistics, strict=True)}

    @property
    def stage1_packs(self) -> Sequence[Pack]:
        return (*_of_tasks(self.packs, self.recipe.stage1.tasks), *self.motion_packs)

    @property
    def stage2_packs(self) -> Sequence[Pack]:
        return _of_tasks(self.packs, self.recipe.stage2.tasks)

    def mixture(self, packs: Sequence[Pack], *, landmarks: bool) -> Mixture:
        return Mixture(
            packs=packs,
            normalizers=self.normalizers,
            embodiments={spec.name: index for index, spec in enumerate(self.specs)},
            config=self.config,
            landmark_scales=landmark_scales(packs) if landmarks else (),
        )

    def sampler(self, packs: Sequence[Pack], batch_size: int, seed: int) -> TaskBalancedSampler:
        """Every task as often as its weight says, however long its episodes and in however many packs they are."""
        frames = Counter[str]()
        for pack in packs:
            frames[pack.task] += pack.num_frames
        weights = [self.recipe.data.weight(pack.task) * pack.num_frames / frames[pack.task] for pack in packs]
        return TaskBalancedSampler([pack.num_frames for pack in packs], weights, batch_size, seed)

    def build_model(self) -> VLA:
        """Fresh weights, a function of the recipe's seed alone, or those of the checkpoint that stage 2 starts from."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            vla = build_vla(self.config, self.tokenizer)
        if self.parent is not None:
            vla.load_state_dict(self.parent.vla.state_dict())
        return vla

    def identity(self, packs: Sequence[Pack]) -> dict[str, Any]:
        """What a resumed stage on `packs` must agree on: size, words and the very bytes of the data."""
        return {
            "size": self.recipe.size,
            "config": {name: value for name, value in self.config.to_json().items() if name not in INFERENCE_ONLY},
            "weights": dict(self.recipe.data.weights),
            "start_from": self.parent.revision if self.parent else "",
            "data": [[pack.task, pack.source_sha256, pack.num_episodes] for pack in packs],
        }


def open_corpus(recipe: Recipe, run: RunDirectory) -> Corpus:
    """Pack what is not packed yet, then read specs, statistics and words.

    Raises FileNotFoundError when a task's dataset is missing, ValueError when the checkpoint that stage 2 starts from
    knows other bodies, CheckpointError when it cannot be read.
    """
    missing = [task for task in recipe.data.tasks if not run.dataset(task).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"no demonstrations of {', '.join(missing)} in {run.datasets}; run the verb 'record' first"
        )
    image_size = {"tiny": 96, "small": 128, "tiny-vlm": 64}[recipe.size]
    recorded = build_packs([run.dataset(task) for task in recipe.data.tasks], run.packs, image_size=image_size)
    packs = [pack.first(recipe.data.num_episodes(pack.task)) for pack in recorded] if recipe.data.root else recorded
    if recipe.stage2.start_from:
        return _fine_tuned(recipe, packs, read_checkpoint(Path(recipe.stage2.start_from)))
    specs: dict[str, EmbodimentSpec] = {}
    for pack in packs:
        specs.setdefault(pack.spec.name, pack.spec)
    ordered = list(specs.values())
    tokenizer = train_tokenizer([instruction for pack in packs for instruction in pack.instructions])
    vocabulary = tokenizer.get_vocab_size()
    if recipe.size == "tiny-vlm":
        config = sizes.tiny_vlm(ordered, vocabulary, toy_hugging_face("smolvlm", tokenizer))
    else:
        config = _SIZES[recipe.size](ordered, vocabulary)
    config = replace(config, encoder_inputs=recipe.stage1.inputs)
    statistics = read_statistics(recorded, run, horizon=config.action_horizon)
    return Corpus(
        recipe=recipe,
        packs=packs,
        motion_packs=_motion_packs(recipe, run),
        specs=ordered,
        statistics=[statistics[spec.name] for spec in ordered],
        tokenizer=tokenizer,
        config=config,
    )


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
    """Weights mean what they meant only with the statistics, words and order of bodies they were trained with."""
    known = {spec.name: spec.digest for spec in parent.specs}
    for pack in packs:
        if known.get(pack.spec.name) != pack.spec.digest:
            raise ValueError(
                f"stage2.start_from {recipe.stage2.start_from}: embodiment {pack.spec.name!r} of task {pack.task!r} is "
                f"not the one it was trained on"
            )
    return Corpus(
        recipe=recipe,
        packs=packs,
        specs=parent.specs,
        statistics=parent.statistics,
        tokenizer=parent.tokenizer,
        config=parent.vla.config,
        parent=parent,
    )


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
