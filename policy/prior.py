"""The action prior: motion encoder E, action decoder D (paper A, section 1.1; arXiv 2606.26095).

E reads a window of states and actions and returns one motion latent; D is a flow-matching velocity field over a chunk
of action tokens given that latent. Both work in model units (normalised, zero-padded) and read no image or text. Every
embodiment has its own projections in and out and its own soft tokens; the trunks are shared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from policy.real_time import Continuation, VelocityField, sample_chunks
from policy.trunk import Trunk, TrunkConfig

_TIME_FEATURES = 64

# What E reads of a window; without states it is the action-only prior of paper A's Table IV.
EncoderInputs = Literal["state-action", "action"]


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    num_embodiments: int
    max_state_dim: int
    max_action_dim: int
    latent_dim: int
    num_soft_tokens: int
    encoder: TrunkConfig
    decoder: TrunkConfig
    encoder_inputs: EncoderInputs = "state-action"


class EmbodimentLinear(nn.Module):
    """One affine map per embodiment."""

    def __init__(self, num_embodiments: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_embodiments, in_dim, out_dim) * in_dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(num_embodiments, out_dim))

    def forward(
        self, x: Float[Tensor, "batch length in_dim"], embodiment: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch length out_dim"]:
        return torch.bmm(x, self.weight[embodiment].to(x.dtype)) + self.bias[embodiment].to(x.dtype)[:, None]


def normalize_latent(z: Float[Tensor, "*batch latent_dim"]) -> Float[Tensor, "*batch latent_dim"]:
    """Unit root mean square, so that z of the encoder and z' of the VLM live on one sphere."""
    return F.rms_norm(z.float(), (z.shape[-1],), eps=1e-6)


class MotionEncoder(nn.Module):
    """E: `[cls, p_k, s_1, a_1, ..., s_T, a_T]` with bidirectional attention; z is the normalised output at cls."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        width = config.encoder.width
        self.num_soft_tokens = config.num_soft_tokens
        self.reads_states = config.encoder_inputs == "state-action"
        self.cls = nn.Parameter(torch.randn(width) * 0.02)
        self.soft_tokens = nn.Parameter(torch.randn(config.num_embodiments, config.num_soft_tokens, width) * 0.02)
        self.kind = nn.Parameter(torch.randn(2, width) * 0.02)  # state, action
        self.state_in = EmbodimentLinear(config.num_embodiments, config.max_state_dim, width)
        self.action_in = EmbodimentLinear(config.num_embodiments, config.max_action_dim, width)
        self.trunk = Trunk(config.encoder)
        self.latent = nn.Linear(width, config.latent_dim)

    def forward(
        self,
        states: Float[Tensor, "batch steps max_state_dim"],
        actions: Float[Tensor, "batch steps max_action_dim"],
        step_mask: Bool[Tensor, "batch steps"],
        embodiment: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch latent_dim"]:
        """Steps with a False mask are not read."""
        batch = len(step_mask)
        state_tokens = self.state_in(states, embodiment) + self.kind[0]
        action_tokens = self.action_in(actions, embodiment) + self.kind[1]
        pairs = torch.stack([state_tokens, action_tokens], 2).flatten(1, 2)  # B 2T D
        head = torch.cat([self.cls.expand(batch, 1, -1), self.soft_tokens[embodiment]], 1)
        x = torch.cat([head.to(pairs.dtype), pairs], 1)
        pair_mask = torch.stack([step_mask & self.reads_states, step_mask], 2).flatten(1, 2)
        readable = torch.cat([step_mask.new_ones(batch, 1 + self.num_soft_tokens), pair_mask], 1)
        h = self.trunk(x, readable[:, None], wanted=slice(1))
        return normalize_latent(self.latent(h[:, 0]))


class ActionDecoder(nn.Module):
    """D: velocity of a noisy chunk at a flow time, given one latent. Sees no state and no image (paper A, Figure 1)."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        width = config.decoder.width
        self.max_action_dim = config.max_action_dim
        self.num_context = 1 + config.num_soft_tokens
        self.latent_in = nn.Linear(config.latent_dim, width)
        self.soft_tokens = nn.Parameter(torch.randn(config.num_embodiments, config.num_soft_tokens, width) * 0.02)
        self.noisy_in = EmbodimentLinear(config.num_embodiments, config.max_action_dim, width)
        self.time = nn.Sequential(nn.Linear(_TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Linear(config.latent_dim, width)
        self.trunk = Trunk(config.decoder, condition_width=width)
        self.velocity_out = EmbodimentLinear(config.num_embodiments, width, config.max_action_dim)
        nn.init.zeros_(self.velocity_out.weight)

    def forward(
        self,
        noisy: Float[Tensor, "batch horizon max_action_dim"],
        time: Float[Tensor, " batch"],
        latent: Float[Tensor, "batch latent_dim"],
        embodiment: Int[Tensor, " batch"],
        given: Bool[Tensor, "batch horizon"] | None = None,
    ) -> Float[Tensor, "batch horizon max_action_dim"]:
        """Actions that are `given` are at flow time 1 whatever `time` is; the tokens of the context never are."""
        context = torch.cat([self.latent_in(latent)[:, None], self.soft_tokens[embodiment].to(noisy.dtype)], 1)
        x = torch.cat([context.to(noisy.dtype), self.noisy_in(noisy, embodiment).to(noisy.dtype)], 1)
        condition, second = F.silu(self._at(time, latent)), None
        if given is not None:
            condition = torch.stack([condition, F.silu(self._at(torch.ones_like(time), latent))], 1)
            second = F.pad(given, (self.num_context, 0))
        h = self.trunk(x, condition=condition, second=second, wanted=slice(self.num_context, None))
        return self.velocity_out(h, embodiment)

    def sample(
        self,
        noise: Float[Tensor, "batch horizon max_action_dim"],
        latent: Float[Tensor, "batch latent_dim"],
        embodiment: Int[Tensor, " batch"],
        action_mask: Bool[Tensor, "batch max_action_dim"],
        num_steps: Sequence[int],
        continuations: Sequence[Continuation] = (),
    ) -> Float[Tensor, "batch horizon max_action_dim"]:
        """Actions in model units; padded dimensions are 0 from noise to output.

        `continuations` are the samples that continue a previous chunk (real_time.sample_chunks).
        """

        def field(rows: Tensor | None) -> VelocityField:
            if rows is None:
                return self._field(latent, embodiment, action_mask)
            return self._field(latent[rows], embodiment[rows], action_mask[rows])

        return sample_chunks(field, _masked(noise, action_mask), num_steps, continuations)

    def _field(self, latent: Tensor, embodiment: Tensor, action_mask: Tensor) -> VelocityField:
        return lambda x, time, given=None: _masked(self(x, time, latent, embodiment, given).to(x.dtype), action_mask)

    def _at(self, time: Tensor, latent: Tensor) -> Tensor:
        return self.time(time_features(time).to(latent.dtype)) + self.condition(latent)


def _masked(x: Float[Tensor, "batch horizon dim"], real: Bool[Tensor, "batch dim"]) -> Tensor:
    return torch.where(real[:, None], x, 0)


class ActionPrior(nn.Module):
    """E and D together: what stage 1 trains and stage 2 reuses."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = MotionEncoder(config)
        self.decoder = ActionDecoder(config)


def time_features(time: Float[Tensor, " batch"]) -> Float[Tensor, "batch features"]:
    """Sines and cosines of flow time, periods from about 6 down to about 0.006."""
    frequencies = torch.exp(torch.linspace(0, math.log(1000.0), _TIME_FEATURES // 2, device=time.device))
    angles = time.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)
