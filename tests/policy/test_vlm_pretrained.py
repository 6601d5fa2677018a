from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForImageTextToText

from policy.backbone import ObservationBatch
from policy.config import ModelConfig, VlmSettings
from policy.embodiment import EmbodimentSpec
from policy.sizes import tiny_vlm
from policy.vla import build_vla
from policy.vlm import VlmBackbone, read_pretrained
from policy.vlm_toy import toy_hugging_face
from policy.vocabulary import IMAGE_MARKERS, RESERVED

Observe = Callable[..., ObservationBatch]


@pytest.fixture(scope="module")
def foreign_tokenizer() -> Tokenizer:
    """A tokenizer of someone else's: image markers, and none of our reserved tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", *IMAGE_MARKERS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["close the drawer", "press the red button"], trainer)
    return tokenizer


@pytest.fixture
def save(foreign_tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., Path]:
    """Saves a random model with large weights as Hugging Face would; `text` changes its text config."""

    def build(family: str, *, image_size: int = 64, **text: Any) -> Path:
        values = toy_hugging_face(family, foreign_tokenizer, image_size)
        values["text_config"] |= text
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**values))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.5)
        model.save_pretrained(tmp_path)
        foreign_tokenizer.save(str(tmp_path / "tokenizer.json"))
        return tmp_path

    return build


def _config(settings: VlmSettings, specs: tuple[EmbodimentSpec, ...], tokenizer: Tokenizer) -> ModelConfig:
    return tiny_vlm(specs, tokenizer.get_vocab_size(), settings.hugging_face)


@pytest.mark.parametrize("family", ["smolvlm", "qwen3_vl"])
def test_a_saved_model_becomes_the_backbone(
    family: str, save: Callable[..., Path], specs: tuple[EmbodimentSpec, ...], observe: Observe
) -> None:
    directory = save(family)
    settings, tokenizer = read_pretrained(directory)
    config = ModelConfig.from_json(json.loads(json.dumps(_config(settings, specs, tokenizer).to_json())))
    torch.manual_seed(0)
    backbone = build_vla(config, tokenizer).eval().backbone
    assert isinstance(backbone, VlmBackbone)
    observation = observe(config)
    fresh = backbone(observation).without_history
    backbone.load_pretrained(directory)

    saved = load_file(directory / "model.safetensors")
    for name, value in backbone.vlm.state_dict().items():
        expected = saved["model." + name]
        assert torch.equal(value[: len(expected)], expected), name
    answer = backbone(observation, torch.ones(3, config.latent_dim))
    assert (answer.without_history - fresh).abs().max() > 1e-2
    answer.without_history.sum().backward()
    assert backbone.query.grad is not None and backbone.query.grad.any()


@torch.no_grad()
def test_tokens_that_are_no_words_start_at_the_scale_of_words(
    save: Callable[..., Path], specs: tuple[EmbodimentSpec, ...]
) -> None:
    directory = save("qwen3_vl")
    settings, tokenizer = read_pretrained(directory)
    backbone = build_vla(_config(settings, specs, tokenizer), tokenizer).backbone
    assert isinstance(backbone, VlmBackbone)
    backbone.load_pretrained(directory)
    words = backbone.vlm.get_input_embeddings()(torch.arange(1, 250)).std()
    states = backbone.state_in(torch.randn(200, 1, 5), torch.zeros(200, dtype=torch.long))
    for tokens in (backbone.soft_tokens, states, backbone.history_in(torch.randn(200, 64))):
        assert 0.5 < tokens.std() / words < 2


def test_reserved_tokens_take_free_rows_of_the_embedding_or_new_ones(
    save: Callable[..., Path], foreign_tokenizer: Tokenizer
) -> None:
    num_words = foreign_tokenizer.get_vocab_size()
    settings, tokenizer = read_pretrained(save("smolvlm"))
    assert [tokenizer.token_to_id(name) for name in RESERVED] == list(range(num_words, num_words + 4))
    assert settings.hugging_face["text_config"]["vocab_size"] == -(-(num_words + 4) // 64) * 64
    settings, tokenizer = read_pretrained(save("smolvlm", vocab_size=num_words + 4))
    assert settings.hugging_face["text_config"]["vocab_size"] == num_words + 4


def test_settings_do_not_tell_where_they_were_read(save: Callable[..., Path]) -> None:
    directory = save("qwen3_vl")
    settings, _ = read_pretrained(directory)
    text = json.dumps(settings.hugging_face)
    assert str(directory) not in text
    assert "_name_or_path" not in text


def test_other_pixel_statistics_than_the_familys_are_refused(save: Callable[..., Path]) -> None:
    directory = save("qwen3_vl")
    path = directory / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}))
    read_pretrained(directory)
    path.write_text(json.dumps({"image_mean": [0.48, 0.45, 0.4], "image_std": [0.5, 0.5, 0.5]}))
    with pytest.raises(ValueError, match=r"image_mean is \[0.48, 0.45, 0.4\], expected \[0.5, 0.5, 0.5\]"):
        read_pretrained(directory)


def test_a_directory_without_a_tokenizer_or_of_another_family_is_refused(save: Callable[..., Path]) -> None:
    directory = save("smolvlm")
    (directory / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(ValueError, match="model_type is 'llava', expected one of"):
        read_pretrained(directory)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(OSError, match=r"holds no tokenizer.json"):
        read_pretrained(directory)


def test_weights_that_are_no_safetensors_are_not_opened(
    save: Callable[..., Path], specs: tuple[EmbodimentSpec, ...]
) -> None:
    directory = save("smolvlm")
    settings, tokenizer = read_pretrained(directory)
    backbone = build_vla(replace(_config(settings, specs, tokenizer)), tokenizer).backbone
    assert isinstance(backbone, VlmBackbone)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model.safetensors"):
        backbone.load_pretrained(directory)
