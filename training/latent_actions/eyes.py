"""Small eyes learn to see: a masked autoencoder on single frames (He et al., arXiv 2111.06377).

Owns the decoder that is thrown away afterwards and the loss. The encoder is policy/visual_features.py's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from policy.images import to_unit_range
from policy.trunk import Trunk
from policy.visual_features import SmallVit, VisualSettings, grid_position, small_trunk, to_patches


class MaskedAutoencoder(nn.Module):
    """Reads some patches of a frame and guesses the pixels of the others."""

    position: Tensor

    def __init__(self, settings: VisualSettings, decoder_layers: int) -> None:
        super().__init__()
        self.patch, self.num_tokens = settings.patch, settings.num_tokens
        self.vit = SmallVit(settings)
        self.hidden = nn.Parameter(torch.randn(settings.width) * 0.02)
        self.decoder = Trunk(small_trunk(settings.width, decoder_layers))
        self.pixels_out = nn.Linear(settings.width, 3 * settings.patch**2)
        side = settings.image_size // settings.patch
        self.register_buffer("position", grid_position(side, settings.width), persistent=False)

    def losses(
        self, frames: UInt8[Tensor, "batch size size 3"], generator: torch.Generator, masked_fraction: float
    ) -> Mapping[str, Float[Tensor, ""]]:
        """Mean squared error of hidden pixels in [-1, 1]."""
        planes = to_unit_range(frames)
        order = torch.rand(len(frames), self.num_tokens, generator=generator, device=frames.device).argsort(1)
        num_kept = max(1, round(self.num_tokens * (1 - masked_fraction)))
        kept, hidden = order[:, :num_kept], order[:, num_kept:]
        seen = self.vit(planes, kept)
        x = self.hidden.expand(len(frames), self.num_tokens, -1).scatter(1, _wide(kept, seen), seen) + self.position
        guessed = self.pixels_out(self.decoder(x))
        error = (guessed - to_patches(planes, self.patch)).square().mean(-1)
        return {"loss": error.gather(1, hidden).mean()}


def _wide(index: Tensor, like: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, like.shape[-1])
