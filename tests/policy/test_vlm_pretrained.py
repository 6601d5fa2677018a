"""A model saved by Hugging Face becomes the backbone with all of its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForImageTextToText

from policy.backbone import ObservationBatch
from policy.config import ModelConfig, VlmSettings
from policy.embodiment import EmbodimentSpec
from policy.sizes import tiny_vlm
from policy.vla import build_vla
from policy.vlm import VlmBackbone
from policy.vlm_directory import read_directory

Observe = Callable[..., ObservationBatch]


@pytest.fixture
def save(save_vlm: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    return partial(save_vlm, tmp_path)


def _config(settings: VlmSettings, specs: tuple[EmbodimentSpec, ...], tokenizer: Tokenizer) -> ModelConfig:
    return tiny_vlm(specs, tokenizer.get_vocab_size(), settings.hugging_face)


@pytest.mark.parametrize("max_shard_size", ["50GB", "300KB"], ids=["whole", "sharded"])
@pytest.mark.parametrize("family", ["smolvlm", "qwen3_vl", "paligemma"])
def test_a_saved_model_becomes_the_backbone(
    family: str,
    max_shard_size: str,
    save: Callable[..., Path],
    specs: tuple[EmbodimentSpec, ...],
    observe: Observe,
) -> None:
    directory = save(family, max_shard_size=max_shard_size)
    assert (directory / "model.safetensors").exists() == (max_shard_size == "50GB")
    model = read_directory(directory)
    settings, tokenizer = model.settings, model.tokenizer
    config = ModelConfig.from_json(json.loads(json.dumps(_config(settings, specs, tokenizer).to_json())))
    torch.manual_seed(0)
    backbone = build_vla(config, tokenizer).eval().backbone
    assert isinstance(backbone, VlmBackbone)
    observation = observe(config)
    fresh = backbone(observation).without_history
    backbone.load_pretrained(directory)

    theirs = AutoModelForImageTextToText.from_pretrained(directory, local_files_only=True).model.state_dict()
    for name, value in backbone.vlm.state_dict().items():
        assert torch.equal(value[: len(theirs[name])], theirs[name]), name
    answer = backbone(observation, torch.ones(3, config.latent_dim))
    assert (answer.without_history - fresh).abs().max() > 1e-2
    answer.without_history.sum().backward()
    assert backbone.query.grad is not None and backbone.query.grad.any()


@torch.no_grad()
def test_pixels_are_normalised_as_the_directory_says(
    save: Callable[..., Path], specs: tuple[EmbodimentSpec, ...], observe: Observe
) -> None:
    directory = save("smolvlm")
    path = directory / "preprocessor_config.json"
    own = {**json.loads(path.read_text()), "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    path.write_text(json.dumps(own))
    model = read_directory(directory)
    config = replace(_config(model.settings, specs, model.tokenizer), backbone=model.settings)
    backbone = build_vla(ModelConfig.from_json(config.to_json()), model.tokenizer).backbone
    assert isinstance(backbone, VlmBackbone)
    observation = observe(config)
    frames = observation.images.movedim(-1, -3) / 255
    mean, std = torch.tensor([own["image_mean"], own["image_std"]])[:, :, None, None]
    torch.testing.assert_close(backbone._pixels(observation)["pixel_values"], (frames - mean) / std)


def test_weights_that_lack_some_of_the_model_are_refused(
    save: Callable[..., Path], specs: tuple[EmbodimentSpec, ...]
) -> None:
    directory = save("paligemma")
    weights = load_file(directory / "model.safetensors")
    del weights["language_model.model.norm.weight"]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    model = read_directory(directory)
    backbone = build_vla(_config(model.settings, specs, model.tokenizer), model.tokenizer).backbone
    assert isinstance(backbone, VlmBackbone)
    with pytest.raises(ValueError, match=r"lacks 1 weights of its paligemma, model.language_model.norm.weight first"):
        backbone.load_pretrained(directory)


@torch.no_grad()
def test_tokens_that_are_no_words_start_at_the_scale_of_words(
    save: Callable[..., Path], specs: tuple[EmbodimentSpec, ...]
) -> None:
    directory = save("qwen3_vl")
    model = read_directory(directory)
    settings, tokenizer = model.settings, model.tokenizer
    backbone = build_vla(_config(settings, specs, tokenizer), tokenizer).backbone
    assert isinstance(backbone, VlmBackbone)
    backbone.load_pretrained(directory)
    words = backbone.vlm.get_input_embeddings()(torch.arange(1, 250)).std()
    states = backbone.state_in(torch.randn(200, 1, 5), torch.zeros(200, dtype=torch.long))
    for tokens in (backbone.soft_tokens, states, backbone.history_in(torch.randn(200, 64))):
        assert 0.5 < tokens.std() / words < 2


def test_weights_that_are_no_safetensors_are_not_opened(
    save: Callable[..., Path], specs: tuple[EmbodimentSpec, ...]
) -> None:
    directory = save("smolvlm")
    model = read_directory(directory)
    settings, tokenizer = model.settings, model.tokenizer
    backbone = build_vla(replace(_config(settings, specs, tokenizer)), tokenizer).backbone
    assert isinstance(backbone, VlmBackbone)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model.safetensors"):
        backbone.load_pretrained(directory)
