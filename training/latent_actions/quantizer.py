"""A codebook: latents to their nearest codes and straight through back, with revival of codes that nobody uses.

Written here rather than taken from vector-quantize-pytorch, which draws its revivals from torch's global generator (a
run here is a function of seed and step, resumed or not) and brings five more packages for what these lines do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

_SHARE_DECAY = 0.98  # of the running mean over steps of a code's share of the assignments
DEAD_BELOW = 0.1  # of an equal share


@dataclass(frozen=True)
class Quantized:
    latents: Float[Tensor, "batch tokens dim"]  # the codes' vectors; gradients pass straight to the encoder
    codes: Int[Tensor, "batch tokens"]
    loss: Float[Tensor, ""]  # of the codebook, and beta times the commitment


class Codebook(nn.Module):
    """One for all tokens. Until its first revival all its codes count as dead, so it starts at latents of a batch."""

    share: Tensor

    def __init__(self, num_codes: int, dim: int, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.vectors = nn.Parameter(torch.empty(num_codes, dim).uniform_(-1 / num_codes, 1 / num_codes))
        self.register_buffer("share", torch.zeros(num_codes))

    def forward(self, latents: Float[Tensor, "batch tokens dim"]) -> Quantized:
        codes = self.nearest(latents)
        chosen = self.vectors[codes]
        loss = F.mse_loss(chosen, latents.detach()) + self.beta * F.mse_loss(latents, chosen.detach())
        return Quantized(latents + (chosen - latents).detach(), codes, loss)

    @torch.no_grad()
    def nearest(self, latents: Float[Tensor, "*batch dim"]) -> Int[Tensor, "*batch"]:
        return torch.cdist(latents.float().flatten(0, -2), self.vectors.float()).argmin(-1).view(latents.shape[:-1])

    @torch.no_grad()
    def revive(self, latents: Float[Tensor, "*batch dim"], generator: torch.Generator) -> None:
        """Move every dead code to a latent drawn from these and count it as used like any other."""
        equal = 1 / len(self.share)
        dead = self.share < DEAD_BELOW * equal
        rows = latents.flatten(0, -2)
        # Drawn for all codes, dead or not: no value is read from the device, and a step always draws as many.
        drawn = torch.randint(len(rows), (len(dead),), generator=generator, device=rows.device)
        self.vectors.copy_(torch.where(dead[:, None], rows[drawn].to(self.vectors.dtype), self.vectors))
        self.share.masked_fill_(dead, equal)

    @torch.no_grad()
    def count(self, codes: Int[Tensor, "batch tokens"]) -> None:
        self.share.lerp_(shares(codes, len(self.share)), 1 - _SHARE_DECAY)


def shares(codes: Int[Tensor, "*batch"], num_codes: int) -> Float[Tensor, " num_codes"]:
    """What part of the assignments each code has."""
    counts = torch.zeros(num_codes, device=codes.device)
    counts.scatter_add_(0, codes.flatten(), torch.ones_like(codes.flatten(), dtype=counts.dtype))
    return counts / max(1, codes.numel())


def usage(share: Float[Tensor, " num_codes"]) -> Float[Tensor, ""]:
    """The fraction of codes that are not dead: of many pairs one of a code's, or a few, are no use of it."""
    return (share >= DEAD_BELOW / len(share)).float().mean()


def perplexity(share: Float[Tensor, " num_codes"]) -> Float[Tensor, ""]:
    """As many codes in equal use would be as hard to guess."""
    return torch.special.entr(share).sum().exp()
