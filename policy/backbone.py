"""What turns an observation into one query output: the interface of every backbone, and the batch it reads.

A backbone owns its eyes, its words and its context; it knows nothing of actions. Two live beside this file:
convolutional.py (small, trained from nothing) and vlm.py (any Hugging Face image-text-to-text model).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from policy.instructions import InstructionReader


@dataclass(frozen=True, kw_only=True)
class ObservationBatch:
    """Observations of any mix of embodiments, padded to the model's widths; masks are True where real."""

    images: UInt8[Tensor, "batch cameras size size 3"]
    camera_mask: Bool[Tensor, "batch cameras"]
    state: Float[Tensor, "batch max_state_dim"]  # model units
    state_mask: Bool[Tensor, " batch"]  # False hides the whole state (state dropout in training)
    instructions: tuple[str, ...]
    embodiment: Int[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True)
class BackboneOutput:
    """Query outputs of one pass whose prefix (images, text, state) is computed once."""

    without_history: Float[Tensor, "batch width"]
    with_history: Float[Tensor, "batch width"] | None  # None when no history latent came in
    visual: Float[Tensor, "batch features"] | None = None  # what the eyes alone say; for auxiliary losses


class Backbone(nn.Module, ABC):
    """`[p_k, images, text, state, (z_hist), query]` to the query's output: paper A's order, and our state."""

    width: int
    instructions: InstructionReader

    @abstractmethod
    def forward(
        self, observation: ObservationBatch, history: Float[Tensor, "batch latent_dim"] | None = None
    ) -> BackboneOutput:
        """Raises InstructionTooLongError."""

    @abstractmethod
    def save_tokenizer(self, directory: str) -> None:
        """Write tokenizer.json, and what else loading needs, into an existing directory."""


def select_query(output: BackboneOutput, has_history: Bool[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
    """Per sample the output with history where there is one, without otherwise."""
    if output.with_history is None:
        return output.without_history
    return torch.where(has_history[:, None], output.with_history, output.without_history)
