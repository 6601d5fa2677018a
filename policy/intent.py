"""Intent and perception apart (paper B, arXiv 2606.18955, stage 3): what the backbone wants, and a decoder that sees.

`IntentHead` turns a query's output into intent tokens and the codes of the latent action that they mean.
`IntentDecoder` is a flow-matching velocity field over a chunk that reads intent tokens, features of frozen eyes and the
state. Works in model units. Owns no eyes (visual_features.py) and no backbone (intent_vla.py joins them).

The paper's backbone writes the codes one after another; here they come at once from one query, so that a chunk costs
one pass of the backbone, and are independent given it. The paper's decoder reads its context by cross-attention; here
context and chunk are one sequence of the shared trunk, as in paper A's decoder, whose weights may start it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from policy.config import ModelConfig
from policy.prior import EmbodimentLinear, time_features
from policy.real_time import Continuation, VelocityField, sample_chunks
from policy.trunk import Trunk

# Of a camera's features this many rows and columns of tokens are left.
VISUAL_SIDE = 4


@dataclass(frozen=True, kw_only=True)
class Intent:
    tokens: Float[Tensor, "batch tokens width"]
    logits: Float[Tensor, "batch tokens codes"]


class IntentHead(nn.Module):
    """A query's output to intent tokens of unit root mean square, and from each the logits of its code."""

    def __init__(self, query_width: int, width: int, num_tokens: int, num_codes: int) -> None:
        super().__init__()
        self.shape = (num_tokens, width)
        self.tokens = nn.Linear(query_width, num_tokens * width)
        self.code_out = nn.Parameter(torch.randn(num_tokens, width, num_codes) * width**-0.5)

    def forward(self, query: Float[Tensor, "batch query_width"]) -> Intent:
        tokens = F.rms_norm(self.tokens(query).unflatten(-1, self.shape).float(), self.shape[-1:], eps=1e-6)
        return Intent(tokens=tokens, logits=torch.einsum("bkw,kwc->bkc", tokens, self.code_out.to(tokens.dtype)))


@dataclass(frozen=True, kw_only=True)
class IntentContext:
    """What the decoder reads of each sample, in its own width; False hides a token."""

    tokens: Float[Tensor, "batch context width"]
    mask: Bool[Tensor, "batch context"]
    embodiment: Int[Tensor, " batch"]

    def rows(self, rows: Int[Tensor, " chosen"]) -> IntentContext:
        return IntentContext(tokens=self.tokens[rows], mask=self.mask[rows], embodiment=self.embodiment[rows])

    def repeat(self, times: int) -> IntentContext:
        """The whole batch `times` times, one after another."""
        return IntentContext(
            tokens=self.tokens.repeat(times, 1, 1),
            mask=self.mask.repeat(times, 1),
            embodiment=self.embodiment.repeat(times),
        )


class IntentDecoder(nn.Module):
    """Velocity of a noisy chunk at a flow time, given intent, sight and state: `[visual, state, intent, p_k, chunk]`.

    `visual_width` is that of a token of `fold_patches`, of which a camera has `num_visual`; without eyes both are 0.
    Time alone scales, shifts and gates the layers, as in the paper's code.

    Most of what frozen eyes say is the same whatever happens before a camera: read as it is, a decoder stays blind for
    long. So sight is what differs from the mean of a body's camera, as `standardize_sight` was told.
    """

    visual_mean: Tensor
    visual_scale: Tensor

    def __init__(self, config: ModelConfig, *, visual_width: int, num_visual: int) -> None:
        super().__init__()
        width, bodies = config.decoder.width, config.num_embodiments
        self.visual_in: nn.Linear | None = None
        if num_visual:
            self.visual_in = nn.Linear(visual_width, width)
            self.view = nn.Parameter(torch.randn(bodies, config.max_cameras, num_visual, width) * 0.02)
            self.register_buffer("visual_mean", torch.zeros(bodies, config.max_cameras, num_visual, visual_width))
            self.register_buffer("visual_scale", torch.ones(bodies, config.max_cameras))
        self.state_in = EmbodimentLinear(bodies, config.max_state_dim, width)
        self.no_state = nn.Parameter(torch.randn(width) * 0.02)
        self.soft_tokens = nn.Parameter(torch.randn(bodies, config.num_soft_tokens, width) * 0.02)
        self.noisy_in = EmbodimentLinear(bodies, config.max_action_dim, width)
        time_width = time_features(torch.zeros(1)).shape[-1]
        self.time = nn.Sequential(nn.Linear(time_width, width), nn.SiLU(), nn.Linear(width, width))
        self.trunk = Trunk(config.decoder, condition_width=width)
        self.velocity_out = EmbodimentLinear(bodies, width, config.max_action_dim)
        nn.init.zeros_(self.velocity_out.weight)

    @torch.no_grad()
    def standardize_sight(
        self,
        mean: Float[Tensor, "bodies cameras patches features"],
        root_mean_square: Float[Tensor, "bodies cameras"],
    ) -> None:
        """Of the folded features of each body's cameras over its training data, the second of what differs from mean.

        A camera whose pictures never differ, or that a body lacks, has 0 there.
        """
        self.visual_mean.copy_(mean)
        self.visual_scale.copy_(
            torch.where(root_mean_square > 1e-6, root_mean_square.clamp(min=1e-6).reciprocal(), 1.0)
        )

    def context(
        self,
        *,
        visual: Float[Tensor, "batch cameras patches features"] | None,
        camera_mask: Bool[Tensor, "batch cameras"],
        state: Float[Tensor, "batch max_state_dim"],
        state_mask: Bool[Tensor, " batch"],
        intent: Float[Tensor, "batch tokens width"] | None,
        embodiment: Int[Tensor, " batch"],
    ) -> IntentContext:
        """`visual` is the folded features of each camera; a camera that is masked is not read."""
        own = self.state_in(state[:, None], embodiment)
        own = torch.where(state_mask[:, None, None], own, self.no_state.to(own.dtype))
        tokens = [own, *([] if intent is None else [intent]), self.soft_tokens[embodiment]]
        mask = camera_mask.new_ones(len(state), sum(part.shape[1] for part in tokens))
        if self.visual_in is not None and visual is not None:
            cameras = visual.shape[1]
            differs = visual - self.visual_mean[embodiment, :cameras]
            differs = differs * self.visual_scale[embodiment, :cameras, None, None]
            seen = self.visual_in(differs) + self.view[embodiment, :cameras]
            tokens.insert(0, seen.flatten(1, 2))
            mask = torch.cat([camera_mask.repeat_interleave(visual.shape[2], dim=1), mask], 1)
        joined = torch.cat([part.to(state.dtype) for part in tokens], 1)
        return IntentContext(tokens=joined, mask=mask, embodiment=embodiment)

    def forward(
        self,
        noisy: Float[Tensor, "batch horizon max_action_dim"],
        time: Float[Tensor, " batch"],
        context: IntentContext,
        given: Bool[Tensor, "batch horizon"] | None = None,
    ) -> Float[Tensor, "batch horizon max_action_dim"]:
        """Actions that are `given` are at flow time 1 whatever `time` is; the tokens of the context never are."""
        num_context, horizon = context.tokens.shape[1], noisy.shape[1]
        chunk = self.noisy_in(noisy, context.embodiment).to(noisy.dtype)
        x = torch.cat([context.tokens.to(noisy.dtype), chunk], 1)
        readable = F.pad(context.mask, (0, horizon), value=True)
        condition, second = self._at(time, noisy.dtype), None
        if given is not None:
            condition = torch.stack([condition, self._at(torch.ones_like(time), noisy.dtype)], 1)
            second = F.pad(given, (num_context, 0))
        h = self.trunk(x, readable[:, None], condition=condition, second=second, wanted=slice(num_context, None))
        return self.velocity_out(h, context.embodiment)

    def sample(
        self,
        noise: Float[Tensor, "batch horizon max_action_dim"],
        context: IntentContext,
        action_mask: Bool[Tensor, "batch max_action_dim"],
        num_steps: Sequence[int],
        continuations: Sequence[Continuation] = (),
    ) -> Float[Tensor, "batch horizon max_action_dim"]:
        """Actions in model units; padded dimensions are 0 from noise to output, and continuations as in paper A's D."""

        def field(rows: Tensor | None) -> VelocityField:
            if rows is None:
                return self._field(context, action_mask)
            return self._field(context.rows(rows), action_mask[rows])

        return sample_chunks(field, torch.where(action_mask[:, None], noise, 0), num_steps, continuations)

    def _field(self, context: IntentContext, action_mask: Tensor) -> VelocityField:
        def velocity(x: Tensor, time: Tensor, given: Tensor | None = None, /) -> Tensor:
            return torch.where(action_mask[:, None], self(x, time, context, given).to(x.dtype), 0)

        return velocity

    def _at(self, time: Tensor, dtype: torch.dtype) -> Tensor:
        return F.silu(self.time(time_features(time).to(dtype)))


def fold_patches(features: Float[Tensor, "n patches width"]) -> Float[Tensor, "n tokens features"]:
    """At most 4 x 4 tokens of a square grid of patches, row by row.

    A token is its four quarters side by side, each a mean of patches: where something is within it stays readable.
    """
    side = math.isqrt(features.shape[1])
    if side**2 != features.shape[1]:
        raise ValueError(f"features have {features.shape[1]} patches, expected a square grid")
    kept = min(side, VISUAL_SIDE)
    cell = 2 if side >= 2 * kept else 1
    grid = features.transpose(1, 2).unflatten(2, (side, side))
    grid = F.adaptive_avg_pool2d(grid, kept * cell)
    return F.pixel_unshuffle(grid, cell).flatten(2).transpose(1, 2)


def folded_shape(num_patches: int, width: int) -> tuple[int, int]:
    """(tokens, features) of what `fold_patches` makes of a frame."""
    tokens, features = fold_patches(torch.zeros(1, num_patches, width)).shape[1:]
    return tokens, features
