"""Real-time chunking: how a chunk is made to continue the one being played. Knows no network and no physical unit.

Guidance (arXiv 2506.07339) pulls the chunk towards the previous one at every Euler step; prefix (arXiv 2512.05964)
gives the actions that will be played meanwhile as they are, to a decoder that was trained for it. Either changes a
velocity field, nothing else, so that flow.integrate serves them all.

Noise that is scaled at inference (ModelConfig.noise_scale s) changes no formula. Actions that are normal given the
observation show why: starting at s * noise, the same field is the flow to the same mean with s times the spread, whose
estimate A = x + (1 - r) v is the same function of x, and whose weight is too, because s^2 stands above and below.

Guidance acts through the estimate's Jacobian, so only where the policy leaves something open: an estimate that does not
depend on x cannot be pulled, and a larger weight makes noise of it. Of such policies it is prefix that closes seams.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policy.flow import Velocity, integrate

# The paper's beta, for its 5 Euler steps (arXiv 2506.07339, section 4.2).
DEFAULT_MAX_GUIDANCE_WEIGHT = 5.0


@runtime_checkable
class VelocityField(Protocol):
    """Actions that are `given` are at flow time 1 whatever `time` is."""

    def __call__(
        self,
        x: Float[Tensor, "batch horizon dim"],
        time: Float[Tensor, " batch"],
        given: Bool[Tensor, "batch horizon"] | None = None,
        /,
    ) -> Float[Tensor, "batch horizon dim"]: ...


def soft_mask(
    *, action_horizon: int, inference_delay: int, execution_horizon: int, num_previous: int
) -> Float[Tensor, " action_horizon"]:
    """How strictly each new action follows the previous chunk: 1 within the delay, then less and less, then 0.

    W_i = c_i (e^c_i - 1) / (e - 1) with c_i = (H - s - i) / (H - s - d + 1) for d <= i < H - s (arXiv 2506.07339,
    equation 5; s the execution horizon). Rows that the previous chunk does not have are 0.
    """
    row = torch.arange(action_horizon)
    end = action_horizon - execution_horizon
    c = (end - row) / max(end - inference_delay + 1, 1)
    decaying = torch.where(row < end, c * torch.expm1(c) / (math.e - 1), 0.0)
    mask = torch.where(row < inference_delay, 1.0, decaying)
    return torch.where(row < num_previous, mask, 0.0)


def guidance_weight(time: Float[Tensor, " batch"], most: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """min(beta, (1 - r) / (r r2)) with r2 = (1 - r)^2 / (r^2 + (1 - r)^2); beta where r is 0 or 1.

    Equations 2 and 4 of arXiv 2506.07339, multiplied out so that no 0 / 0 is left.
    """
    return torch.minimum(most, (time**2 + (1 - time) ** 2) / (time * (1 - time)))


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Those samples of a batch that are guided, in model units. `rows` is known without asking the device."""

    rows: Sequence[int]
    previous: Float[Tensor, "batch horizon dim"]
    weights: Float[Tensor, "batch horizon"]
    max_weight: Float[Tensor, " batch"]

    def start(self, noise: Float[Tensor, "batch horizon dim"]) -> Float[Tensor, "batch horizon dim"]:
        return noise

    def velocity(self, field: VelocityField) -> Velocity:
        """v + w J^T W (Y - A): the gradient of how far the estimate A = x + (1 - r) v is off, through the decoder."""

        def guided(x: Tensor, time: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                v = field(x, time)
                estimate = x + (1 - time)[:, None, None] * v
            error = (self.previous - estimate.detach()) * self.weights[:, :, None]
            (correction,) = torch.autograd.grad(estimate, x, error)
            return v.detach() + guidance_weight(time, self.max_weight)[:, None, None] * correction

        return guided


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Those samples of a batch that continue a given prefix, in model units. `mask` is True where it is given."""

    rows: Sequence[int]
    previous: Float[Tensor, "batch horizon dim"]
    mask: Bool[Tensor, "batch horizon"]

    def start(self, noise: Float[Tensor, "batch horizon dim"]) -> Float[Tensor, "batch horizon dim"]:
        return torch.where(self.mask[:, :, None], self.previous, noise)

    def velocity(self, field: VelocityField) -> Velocity:
        """What is given is at flow time 1 and stays where it is."""

        def continuing(x: Tensor, time: Tensor) -> Tensor:
            return torch.where(self.mask[:, :, None], 0.0, field(x, time, self.mask))

        return continuing


Continuation = Guidance | Prefix


def sample_chunks(
    field: Callable[[Int[Tensor, " rows"] | None], VelocityField],
    noise: Float[Tensor, "batch horizon dim"],
    num_steps: Sequence[int],
    continuations: Sequence[Continuation],
) -> Float[Tensor, "batch horizon dim"]:
    """Chunks from noise; `field` gives the velocity of the samples it is told, of all for None.

    `continuations` are the samples that continue a previous chunk, a sample in at most one of them. They are
    integrated apart: only those that are guided pay for a gradient.
    """
    if not continuations:
        return integrate(field(None), noise, num_steps)
    chunks = torch.empty_like(noise)
    alone = set(range(len(noise))).difference(*(part.rows for part in continuations))
    for rows, part in [(sorted(alone), None), *((part.rows, part) for part in continuations)]:
        if rows:
            # What inference mode has made cannot be part of a gradient; a selection of it, made outside, can.
            with torch.inference_mode(False), torch.no_grad():
                own = torch.tensor(rows, device=noise.device)
                velocity, start = field(own), noise[own]
                if part is not None:
                    velocity, start = part.velocity(velocity), part.start(start)
                sampled = integrate(velocity, start, [num_steps[row] for row in rows])
            chunks[own] = sampled
    return chunks
