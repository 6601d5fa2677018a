"""Pixels on their way to the model: one resize for training, serving and tests. Does not decode files."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

Interpolation = Literal["bilinear", "bicubic"]


def resize_frames(
    frames: UInt8[Tensor, "n height width 3"], size: int, interpolation: Interpolation = "bilinear"
) -> UInt8[Tensor, "n size size 3"]:
    """Antialiased resize to a square, rounded back to uint8 so that stored and live frames are the same numbers."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
        raise ValueError(f"frames are {frames.dtype} {tuple(frames.shape)}, expected uint8 [n, height, width, 3]")
    if frames.shape[1] == size and frames.shape[2] == size:
        return frames
    planes = frames.permute(0, 3, 1, 2).float()
    planes = F.interpolate(planes, (size, size), mode=interpolation, antialias=True, align_corners=False)
    return planes.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def to_unit_range(frames: UInt8[Tensor, "*batch height width 3"]) -> Float[Tensor, "*batch 3 height width"]:
    """uint8 pixels to [-1, 1], channels first."""
    return frames.movedim(-1, -3).float().div_(127.5).sub_(1.0)
