"""The hybrid disentangled VQ-VAE of paper B (arXiv 2606.18955, its stage 1), on frozen features.

A patch of the last frame is read together with the same patch of the first, and learnable queries beside them all go
through one transformer. (Paper B's code alternates attention within a frame and causal attention between frames at one
place; of two frames its last layer for the codes is read at the last frame alone, so that joining the two at each place
first loses nothing that is asked for and halves the tokens.) What the action queries and the background queries return
becomes two sets of K codes from two codebooks. One decoder turns the first frame's patches and any of the codes into
the last frame's features. Owns no loss (objective.py does).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from policy.prior import normalize_latent
from policy.trunk import Trunk
from policy.visual_features import FrozenEyes, grid_position, small_trunk
from training.latent_actions.moments import NUM_MOTIONS
from training.latent_actions.quantizer import Codebook
from training.latent_actions.settings import LatentActionSettings


@dataclass(frozen=True)
class Latents:
    """Before quantisation."""

    action: Float[Tensor, "batch num_tokens latent_dim"]
    background: Float[Tensor, "batch num_tokens latent_dim"]


@dataclass(frozen=True)
class Encoded:
    """All that the encoder returns of two frames."""

    latents: Latents
    patches: Float[Tensor, "batch patches width"]


class LatentActionModel(nn.Module):
    """Owns its eyes, which stay frozen: a model and the features it was trained on are one thing."""

    feature_mean: Tensor
    feature_scale: Tensor
    position: Tensor

    def __init__(self, settings: LatentActionSettings, eyes: FrozenEyes) -> None:
        super().__init__()
        self.settings = settings
        self.eyes = eyes
        width, num_tokens, patches = settings.width, settings.num_tokens, eyes.num_tokens
        self.features_in = nn.Linear(2 * eyes.width, width)  # first, last
        self.action_query = nn.Parameter(torch.randn(num_tokens, width))
        self.background_query = nn.Parameter(torch.randn(num_tokens, width))
        self.encoder = Trunk(small_trunk(width, settings.encoder_layers))
        self.action_latent = nn.Linear(width, settings.latent_dim)
        self.background_latent = nn.Linear(width, settings.latent_dim)
        self.action_codebook = self._codebook()
        self.background_codebook = self._codebook()
        self.action_in = nn.Linear(settings.latent_dim, width)
        self.background_in = nn.Linear(settings.latent_dim, width)
        self.code_token = nn.Parameter(torch.randn(2 * num_tokens, width))
        self.patches_in = nn.Linear(eyes.width, width)
        self.decoder = Trunk(small_trunk(width, settings.decoder_layers))
        self.features_out = nn.Linear(width, eyes.width)
        nn.init.zeros_(self.features_out.weight)
        nn.init.zeros_(self.features_out.bias)
        # Both are read in training alone. The first sees no frame: what it needs must be in the codes. The second says
        # of each patch how much of it moves in the first and in the last frame.
        self.motion_out = nn.Linear(num_tokens * settings.latent_dim, NUM_MOTIONS)
        self.masks_out = nn.Linear(width, 2) if settings.mask_weight else None
        self.register_buffer("feature_mean", torch.zeros(patches, eyes.width))
        self.register_buffer("feature_scale", torch.ones(()))
        self.register_buffer("position", grid_position(round(patches**0.5), width), persistent=False)

    @torch.no_grad()
    def measure(self, features: Float[Tensor, "frames patches features"]) -> None:
        """Learn what `see` takes off: most of what eyes say of a patch is where it is, and the same in all frames."""
        self.feature_mean.copy_(features.mean(0))
        self.feature_scale.copy_((features - self.feature_mean).square().mean().sqrt().clamp(min=1e-6))

    def see(
        self, frames: UInt8[Tensor, "batch size size 3"], eyes: FrozenEyes | None = None
    ) -> Float[Tensor, "batch patches features"]:
        """What this model reads and predicts: the eyes' features, of mean 0 at each patch and of variance 1 overall.

        `eyes` are the same in another precision.
        """
        return ((eyes or self.eyes)(frames) - self.feature_mean) / self.feature_scale

    def encode(
        self, first: Float[Tensor, "batch patches features"], last: Float[Tensor, "batch patches features"]
    ) -> Latents:
        """From two frames as `see` gives them."""
        return self.encode_all(first, last).latents

    def encode_all(
        self, first: Float[Tensor, "batch patches features"], last: Float[Tensor, "batch patches features"]
    ) -> Encoded:
        """The latents, and what was made of each patch on the way to them."""
        num_tokens = self.settings.num_tokens
        queries = torch.cat([self.action_query, self.background_query]).expand(len(first), -1, -1)
        seen = self.features_in(torch.cat([first, last], -1)) + self.position
        read = self.encoder(torch.cat([seen, queries.to(seen.dtype)], 1))
        patches, h = read[:, : -2 * num_tokens], read[:, -2 * num_tokens :]
        # On one sphere: without a bound latents outgrow codes that follow them by gradient.
        action, background = self.action_latent(h[:, :num_tokens]), self.background_latent(h[:, num_tokens:])
        return Encoded(Latents(normalize_latent(action), normalize_latent(background)), patches)

    def decode(
        self,
        first: Float[Tensor, "batch patches features"],
        action: Float[Tensor, "batch num_tokens latent_dim"],
        background: Float[Tensor, "batch num_tokens latent_dim"],
    ) -> Float[Tensor, "batch patches features"]:
        """Features of the last frame: those of the first and a change. Codes that are withheld are zeros."""
        patches = first.shape[1]
        codes = torch.cat([self.action_in(action), self.background_in(background)], 1) + self.code_token
        x = torch.cat([self.patches_in(first) + self.position, codes], 1)
        return first + self.features_out(self.decoder(x, wanted=slice(patches)))

    def _codebook(self) -> Codebook | None:
        settings = self.settings
        return Codebook(settings.num_codes, settings.latent_dim, settings.beta) if settings.num_codes else None
