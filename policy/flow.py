"""Flow matching between noise and action chunks: path, target, time, solver. Knows no network.

Flow time runs from 0 (noise) to 1 (actions): x_r = (1 - r) noise + r actions, velocity = actions - noise
(paper A, section 1.1; arXiv 2606.26095).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Velocity = Callable[[Float[Tensor, "batch horizon dim"], Float[Tensor, " batch"]], Float[Tensor, "batch horizon dim"]]


def sample_time(batch: int, generator: torch.Generator | None = None, device: str | torch.device = "cpu") -> Tensor:
    """r = sigmoid(u), u ~ N(0, 1): float32 [batch], most weight around the middle of the path."""
    return torch.randn(batch, generator=generator, device=device).sigmoid()


def interpolate(
    noise: Float[Tensor, "batch horizon dim"],
    actions: Float[Tensor, "batch horizon dim"],
    time: Float[Tensor, " batch"],
) -> Float[Tensor, "batch horizon dim"]:
    r = time[:, None, None]
    return (1 - r) * noise + r * actions


def masked_mean(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean over the real entries alone; 0 when there are none."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def integrate(
    velocity: Velocity, noise: Float[Tensor, "batch horizon dim"], num_steps: Sequence[int]
) -> Float[Tensor, "batch horizon dim"]:
    """Euler from noise to actions, each sample with its own number of steps; one velocity call serves all."""
    x = noise
    counts = torch.tensor(num_steps, device=noise.device)
    step_size = 1.0 / counts.to(noise.dtype)
    for k in range(max(num_steps)):
        time = (k * step_size).clamp(max=1.0)
        moving = (k < counts)[:, None, None]
        x = torch.where(moving, x + step_size[:, None, None] * velocity(x, time), x)
    return x
