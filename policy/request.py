"""The question a robot asks a policy, in physical units. Plain data; checked where it is answered (policy.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ChunkRequest:
    """One robot's question. Tensors may live on any device.

    images: camera name -> uint8 [height, width, 3], any resolution. state: float32 [state_dim]. history_*: float32
    [n, state_dim] and [n, action_dim], oldest first, ending with the step before the observation, n at most
    `history_steps`; None or n = 0 is no history. seed draws the initial noise.
    """

    embodiment: str
    images: Mapping[str, Tensor]
    state: Tensor
    instruction: str
    history_states: Tensor | None = None
    history_actions: Tensor | None = None
    seed: int = 0
    num_inference_steps: int | None = None
