"""A run's packed data, opened: packs in the recipe's order, embodiments, statistics, words. Where every verb starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from policy import sizes
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
from training.recipe import Recipe, RunDirectory

_SIZES = {"tiny": sizes.tiny, "small": sizes.small}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    recipe: Recipe
    packs: Sequence[Pack]
    specs: Sequence[EmbodimentSpec]  # in the order of their index in the model
    statistics: Sequence[Statistics]
    tokenizer: Tokenizer
    config: ModelConfig

    @property
    def normalizers(self) -> Mapping[str, Normalizer]:
        return {spec.name: Normalizer(spec, values) for spec, values in zip(self.specs, self.statistics, strict=True)}

    def mixture(self, *, landmarks: bool) -> Mixture:
        return Mixture(
            packs=self.packs,
            normalizers=self.normalizers,
            embodiments={spec.name: index for index, spec in enumerate(self.specs)},
            config=self.config,
            landmark_scales=landmark_scales(self.packs) if landmarks else (),
        )

    def sampler(self, batch_size: int, seed: int) -> TaskBalancedSampler:
        """Every task as often as every other, however long its episodes."""
        return TaskBalancedSampler([pack.num_frames for pack in self.packs], [1.0] * len(self.packs), batch_size, seed)

    def build_model(self) -> VLA:
        """Fresh weights, a function of the recipe's seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            return build_vla(self.config, self.tokenizer)

    def identity(self) -> dict[str, Any]:
        """What a resumed run must agree on: size, seed and the very bytes of the data."""
        return {
            "size": self.recipe.size,
            "config": {name: value for name, value in self.config.to_json().items() if name not in INFERENCE_ONLY},
            "data": {pack.task: pack.source_sha256 for pack in self.packs},
        }


def open_corpus(recipe: Recipe, run: RunDirectory) -> Corpus:
    """Pack what is not packed yet, then read specs, statistics and words. Raises when a task's dataset is missing."""
    missing = [task for task in recipe.data.tasks if not run.dataset(task).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"no demonstrations of {', '.join(missing)} in {run.datasets}; run the verb 'record' first"
        )
    image_size = {"tiny": 96, "small": 128, "tiny-vlm": 64}[recipe.size]
    packs = build_packs([run.dataset(task) for task in recipe.data.tasks], run.packs, image_size=image_size)
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
    statistics = read_statistics(packs, run, horizon=config.action_horizon)
    return Corpus(
        recipe=recipe,
        packs=packs,
        specs=ordered,
        statistics=[statistics[spec.name] for spec in ordered],
        tokenizer=tokenizer,
        config=config,
    )


def read_statistics(packs: Sequence[Pack], run: RunDirectory, *, horizon: int) -> Mapping[str, Statistics]:
    """statistics.json of this very data, computed when it is not there yet or was computed of other data."""
    source = {"horizon": horizon, "data": {pack.task: pack.source_sha256 for pack in packs}}
    if run.statistics.is_file():
        found = json.loads(run.statistics.read_text())
        if found["source"] == source:
            return found["embodiments"]
    embodiments = embodiment_statistics(packs, horizon=horizon)
    staged = run.statistics.with_suffix(".tmp")
    staged.write_text(json.dumps({"source": source, "embodiments": embodiments}, indent=2) + "\n")
    staged.replace(run.statistics)
    return embodiments
