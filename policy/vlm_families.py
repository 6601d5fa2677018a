"""What differs between families of Hugging Face image-text-to-text models, and nothing else.

Owns, per family: the markers around an image's placeholders, pixel statistics and layout, how many placeholders an
image takes, and how positions and attention run over the prefix. Frames arrive resized; no file is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Pixels = Callable[[Any, Float[Tensor, "batch cameras 3 size size"]], dict[str, Tensor]]

_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class Family:
    """`stride` is the side in pixels of the square that one placeholder stands for, given the model's config."""

    before_image: tuple[str, ...]
    after_image: tuple[str, ...]
    mean_std: tuple[tuple[float, float, float], tuple[float, float, float]]
    stride: Callable[[Any], int]
    pixels: Pixels
    fixed_image_size: bool = False
    spatial_positions: bool = False  # M-RoPE: time, height and width of each image token
    prefix_reads_all: bool = False  # images and text read each other both ways


def _images(config: Any, frames: Tensor) -> dict[str, Tensor]:
    return {"pixel_values": frames.flatten(0, 1)}


def _images_per_sample(config: Any, frames: Tensor) -> dict[str, Tensor]:
    batch, cameras, _, size, _ = frames.shape
    mask = torch.ones(batch, cameras, size, size, dtype=torch.bool, device=frames.device)
    return {"pixel_values": frames, "pixel_attention_mask": mask}


def _qwen_patches(config: Any, frames: Tensor) -> dict[str, Tensor]:
    """Flat patches, those of one placeholder beside each other; a still image is one temporal patch of itself."""
    vision = config.vision_config
    patch, merge, temporal = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    images, side = frames.shape[0] * frames.shape[1], frames.shape[-1] // patch
    x = frames.flatten(0, 1)[:, None].expand(-1, temporal, -1, -1, -1)  # N t 3 S S
    x = x.reshape(images, temporal, 3, side // merge, merge, patch, side // merge, merge, patch)
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # N, rows, columns, merged rows, merged columns, 3, t, patch, patch
    grid = torch.tensor([[1, side, side]], device=frames.device).repeat(images, 1)
    return {"pixel_values": x.reshape(images * side * side, -1), "image_grid_thw": grid}


def _idefics_stride(config: Any) -> int:
    return config.vision_config.patch_size * config.scale_factor


def _qwen_stride(config: Any) -> int:
    return config.vision_config.patch_size * config.vision_config.spatial_merge_size


_IDEFICS = Family(
    before_image=("<fake_token_around_image>", "<global-img>"),
    after_image=("<fake_token_around_image>",),
    mean_std=_HALF,
    stride=_idefics_stride,
    pixels=_images_per_sample,
)


def _qwen(mean_std: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Family:
    return Family(
        before_image=("<|vision_start|>",),
        after_image=("<|vision_end|>",),
        mean_std=mean_std,
        stride=_qwen_stride,
        pixels=_qwen_patches,
        spatial_positions=True,
    )


FAMILIES: dict[str, Family] = {
    "smolvlm": _IDEFICS,
    "idefics3": _IDEFICS,
    "qwen2_5_vl": _qwen(_CLIP),
    "qwen3_vl": _qwen(_HALF),
    "paligemma": Family(
        before_image=(),
        after_image=(),
        mean_std=_HALF,
        stride=lambda config: config.vision_config.patch_size,
        pixels=_images,
        fixed_image_size=True,
        prefix_reads_all=True,
    ),
    "internvl": Family(
        before_image=("<img>",),
        after_image=("</img>",),
        mean_std=_IMAGENET,
        stride=lambda config: round(config.vision_config.patch_size[0] / config.downsample_ratio),
        pixels=_images,
        fixed_image_size=True,
    ),
}


def family_of(hugging_face: Mapping[str, Any]) -> Family:
    """The family of a model, by its config. Raises ValueError that names the families there are."""
    model_type = hugging_face.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(f"model_type is {model_type!r}, expected one of {sorted(FAMILIES)}")
    return FAMILIES[model_type]


def placeholders_per_side(family: Family, config: Any, image_size: int) -> int:
    """Image placeholders form a square of this side. Raises ValueError for an image_size that the model cannot take."""
    stride = family.stride(config)
    if image_size % stride:
        raise ValueError(f"image_size is {image_size}, {config.model_type} expects a multiple of {stride}")
    own_size = config.vision_config.image_size if family.fixed_image_size else image_size
    own_size = own_size if isinstance(own_size, int) else own_size[0]
    if image_size != own_size:
        raise ValueError(f"image_size is {image_size}, this {config.model_type} takes {own_size} alone")
    return image_size // stride
