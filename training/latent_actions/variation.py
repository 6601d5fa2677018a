"""The same motion in other pictures: mirrored, in other colours. Few clips are many pictures that way.

Owns what is done to pixels, and that both frames and masks of a pair get the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

_ORDERS = torch.tensor(list(permutations(range(3))))
_GAIN = 0.3


@dataclass(frozen=True)
class Variation:
    mirrored: Bool[Tensor, " batch"]
    channels: Int[Tensor, "batch 3"]  # which channel becomes each
    gain: Float[Tensor, "batch 3"]

    @classmethod
    def draw(cls, count: int, generator: torch.Generator) -> Variation:
        mirrored = torch.rand(count, generator=generator) < 0.5
        order = torch.randint(len(_ORDERS), (count,), generator=generator)
        gain = 1 + _GAIN * (2 * torch.rand(count, 3, generator=generator) - 1)
        return cls(mirrored, _ORDERS[order], gain)

    def of_frames(self, frames: UInt8[Tensor, "batch size size 3"]) -> UInt8[Tensor, "batch size size 3"]:
        permuted = frames.gather(3, self.channels[:, None, None].expand_as(frames)).float()
        painted = (permuted * self.gain[:, None, None]).round_().clamp_(0, 255).to(torch.uint8)
        return torch.where(self.mirrored[:, None, None, None], painted.flip(2), painted)

    def of_masks(self, masks: Float[Tensor, "batch size size"]) -> Float[Tensor, "batch size size"]:
        return torch.where(self.mirrored[:, None, None], masks.flip(2), masks)
