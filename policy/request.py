"""The question a robot asks a policy, in physical units. Plain data; checked where it is answered (policy.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from policy.real_time import DEFAULT_MAX_GUIDANCE_WEIGHT

Method = Literal["guidance", "prefix"]


@dataclass(frozen=True, kw_only=True)
class RealTimeChunking:
    """The chunk being played, for the new one to continue by `method` (real_time.py).

    previous_actions: float32 [n, action_dim], its unplayed actions, row 0 for the instant of the observation, n at most
    `action_horizon`. inference_delay: how many of them will have been played when the new chunk takes over.
    execution_horizon: how many actions are played before the next question. max_guidance_weight: of guidance alone.
    """

    previous_actions: Tensor
    inference_delay: int
    execution_horizon: int
    method: Method
    max_guidance_weight: float = DEFAULT_MAX_GUIDANCE_WEIGHT


@dataclass(frozen=True, kw_only=True)
class ChunkRequest:
    """One robot's question. Tensors may live on any device.

    images: camera name -> uint8 [height, width, 3], any resolution. state: float32 [state_dim]. history_*: float32
    [n, state_dim] and [n, action_dim], oldest first, ending with the step before the observation, n at most
    `history_steps`; None or n = 0 is no history. seed draws the initial noise. real_time_chunking None asks for a chunk
    of its own.
    """

    embodiment: str
    images: Mapping[str, Tensor]
    state: Tensor
    instruction: str
    history_states: Tensor | None = None
    history_actions: Tensor | None = None
    seed: int = 0
    num_inference_steps: int | None = None
    real_time_chunking: RealTimeChunking | None = None
