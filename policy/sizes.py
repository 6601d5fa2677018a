"""The named sizes: `tiny` (shipped), `tiny-vlm` (a toy SmolVLM, same path as a real one), `small`, `paper`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from policy.config import ConvolutionalSettings, ModelConfig, VlmSettings
from policy.embodiment import EmbodimentSpec
from policy.trunk import TrunkConfig

# Qwen3-0.6B's layers (its public config), of which paper A keeps an unstated number; 8 each by default.
_QWEN3_0_6B = TrunkConfig(width=1024, num_layers=8, num_heads=16, num_kv_heads=8, head_dim=128, mlp_width=3072)

# Pixels of a picture's side, where no pretrained model has its own.
IMAGE_SIZES = {"tiny": 96, "tiny-vlm": 64, "small": 128, "paper": 224}


def _trunk(width: int, num_layers: int) -> TrunkConfig:
    heads = width // 32
    return TrunkConfig(
        width=width,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=heads // 2,
        head_dim=32,
        mlp_width=64 * round(width * 8 / 3 / 64),
        rope_theta=1e4,
    )


def _shared(specs: Sequence[EmbodimentSpec]) -> dict[str, Any]:
    return {
        "num_embodiments": len(specs),
        "max_cameras": max(len(spec.cameras) for spec in specs),
        "max_state_dim": max(spec.state_dim for spec in specs),
        "max_action_dim": max(spec.action_dim for spec in specs),
        "action_horizon": 16,
        "execution_horizon": 8,
        "history_steps": 8,
        "num_inference_steps": 8,
        "max_inference_steps": 32,
        # Measured on the demo's tasks: experts are deterministic, so the noise that is left in a sample is error.
        "noise_scale": 0.2,
        "interpolation": "bilinear",
    }


def tiny(specs: Sequence[EmbodimentSpec], vocabulary: int) -> ModelConfig:
    """About 5 M parameters, 96 px: the shipped size, trained from nothing on two cores."""
    return ModelConfig(
        size="tiny",
        image_size=IMAGE_SIZES["tiny"],
        latent_dim=256,
        num_soft_tokens=2,
        encoder=_trunk(192, 3),
        decoder=_trunk(192, 3),
        backbone=ConvolutionalSettings(
            vocabulary=vocabulary, num_keypoints=32, channels=(32, 48, 96, 128), trunk=_trunk(192, 4)
        ),
        **_shared(specs),
    )


def tiny_vlm(specs: Sequence[EmbodimentSpec], vocabulary: int, hugging_face: Mapping[str, Any]) -> ModelConfig:
    """A few hundred thousand parameters around a toy model of any family."""
    return ModelConfig(
        size="tiny-vlm",
        image_size=IMAGE_SIZES["tiny-vlm"],
        latent_dim=64,
        num_soft_tokens=2,
        encoder=_trunk(64, 2),
        decoder=_trunk(64, 2),
        backbone=VlmSettings(hugging_face=hugging_face),
        **_shared(specs),
    )


def small(specs: Sequence[EmbodimentSpec], vocabulary: int) -> ModelConfig:
    """About 36 M parameters, 128 px: one GPU, minutes to hours."""
    return ModelConfig(
        size="small",
        image_size=IMAGE_SIZES["small"],
        latent_dim=512,
        num_soft_tokens=8,
        encoder=_trunk(384, 4),
        decoder=_trunk(384, 6),
        backbone=ConvolutionalSettings(
            vocabulary=vocabulary, num_keypoints=64, channels=(48, 96, 192, 256), trunk=_trunk(384, 8)
        ),
        **_shared(specs),
    )


def paper(specs: Sequence[EmbodimentSpec], vocabulary: int, hugging_face: Mapping[str, Any]) -> ModelConfig:
    """Qwen3-VL-2B with encoder and decoder of Qwen3-0.6B layers; `hugging_face` is the VLM's own config."""
    return ModelConfig(
        size="paper",
        image_size=IMAGE_SIZES["paper"],
        latent_dim=1024,
        num_soft_tokens=16,
        encoder=_QWEN3_0_6B,
        decoder=_QWEN3_0_6B,
        backbone=VlmSettings(hugging_face=hugging_face),
        **{
            **_shared(specs),
            "action_horizon": 15,
            "execution_horizon": 5,
            "interpolation": "bicubic",
            "noise_scale": 1.0,
        },
    )


SIZES: Mapping[str, Callable[..., ModelConfig]] = {"tiny": tiny, "tiny-vlm": tiny_vlm, "small": small, "paper": paper}
