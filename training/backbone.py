"""A pretrained vision-language model as a run's backbone: the size's config around it, and how stage 2 tunes it.

Owns which of its weights train, and LoRA while they do: it is merged before anyone gets the VLA, so that no checkpoint
knows of it. Reading the model's directory belongs to policy/vlm_directory.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from policy.config import ModelConfig
from policy.embodiment import EmbodimentSpec
from policy.models import Model
from policy.sizes import SIZES
from policy.vlm import VlmBackbone
from policy.vlm_directory import VlmDirectory
from training.recipe import BackboneRecipe

_NAMED_BY_A_VLM = ("tiny-vlm", "paper")
# What LoRA adds counts twice (alpha is twice the rank), as is usual.
_LORA_SCALE = 2


def image_size_of(model: VlmDirectory, recipe: BackboneRecipe, size_default: int) -> int:
    """The recipe's, or else the one nearest to the size's that the model was trained on."""
    if recipe.image_size is None:
        return model.image_size(size_default)
    if recipe.image_size % model.stride:
        raise ValueError(f"backbone.image_size is {recipe.image_size}, {model.path} takes a multiple of {model.stride}")
    return recipe.image_size


def config_around(size: str, specs: Sequence[EmbodimentSpec], model: VlmDirectory, image_size: int) -> ModelConfig:
    """The size's encoder and decoder, with the model where its own backbone would be."""
    vocabulary = model.tokenizer.get_vocab_size()
    arguments = (vocabulary, model.settings.hugging_face) if size in _NAMED_BY_A_VLM else (vocabulary,)
    return replace(
        SIZES[size](specs, *arguments),
        backbone=model.settings,
        image_size=image_size,
        interpolation=model.interpolation,
    )


def load_pretrained(vla: Model, model: VlmDirectory) -> None:
    """Draws new tokens from torch's default generator."""
    _backbone(vla).load_pretrained(model.path)


def describe(vla_config: ModelConfig, recipe: BackboneRecipe, model: VlmDirectory | None) -> dict[str, Any]:
    """How a backbone was tuned, and of what model; None is the one of the checkpoint that stage 2 starts from."""
    backbone = vla_config.to_json()["backbone"]
    return {
        "family": backbone["hugging_face"]["model_type"],
        "sha256": model.sha256 if model else None,
        "tuning": recipe.tuning,
        "lora_rank": recipe.lora_rank if recipe.tuning == "lora" else None,
        "learning_rate_scale": recipe.rate_scale,
    }


def add_lora(vla: Model, *, rank: int, seed: int) -> None:
    """Freezes the model and gives every linear layer of its language part an addition that trains and starts as none.

    What is not the model's (tokens that are no words, the prior, the latent) trains as before.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError(
            f"backbone.tuning is 'lora', which needs peft ({error}); install it, or set backbone.tuning to 'full'"
        ) from None
    vlm = _vlm(vla)
    language = set(vlm.get_decoder().modules())
    layers = [name for name, layer in vlm.named_modules() if isinstance(layer, nn.Linear) and layer in language]
    settings = LoraConfig(r=rank, lora_alpha=_LORA_SCALE * rank, target_modules=layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, vlm)


def merge_lora(vla: Model) -> None:
    """The same model with what LoRA learned in its weights, under the names that they had before."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    vlm = _vlm(vla)
    for name, layer in list(vlm.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            vlm.set_submodule(name, layer.get_base_layer())
    vlm.requires_grad_(True)


def _backbone(vla: Model) -> VlmBackbone:
    if not isinstance(vla.backbone, VlmBackbone):
        raise ValueError(
            f"backbone is {type(vla.backbone).__name__}, and the recipe's backbone tunes vision-language models alone"
        )
    return vla.backbone


def _vlm(vla: Model) -> PreTrainedModel:
    return _backbone(vla).vlm
