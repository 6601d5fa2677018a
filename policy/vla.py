"""The VLA: a backbone that looks and reads, and the action prior that moves.

z' = norm(W f(p_k, o, l, (z_hist), q)); D, conditioned on z', is the action head; E compresses history into z_hist
(paper A; arXiv 2606.26095). Works in model units; physical units belong to normalization.py and policy.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from tokenizers import Tokenizer
from torch import Tensor, nn

from policy.backbone import Backbone, BackboneOutput, ObservationBatch, select_query
from policy.config import ConvolutionalSettings, ModelConfig
from policy.convolutional import ConvolutionalBackbone, ConvolutionalConfig
from policy.prior import ActionPrior, PriorConfig, normalize_latent
from policy.real_time import Continuation


@dataclass(frozen=True, kw_only=True)
class HistoryBatch:
    """Past windows in model units, oldest first; padding steps have a False mask."""

    states: Float[Tensor, "batch steps max_state_dim"]
    actions: Float[Tensor, "batch steps max_action_dim"]
    step_mask: Bool[Tensor, "batch steps"]


class VLA(nn.Module):
    def __init__(self, config: ModelConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.prior = ActionPrior(prior_config(config))
        self.latent = nn.Linear(backbone.width, config.latent_dim)

    def observe(self, observation: ObservationBatch, history: HistoryBatch | None = None) -> BackboneOutput:
        """Query outputs without and with history; the history's latent is E's."""
        if history is None:
            return self.backbone(observation)
        z_history = self.prior.encoder(history.states, history.actions, history.step_mask, observation.embodiment)
        return self.backbone(observation, z_history)

    def to_latent(self, query: Float[Tensor, "batch width"]) -> Float[Tensor, "batch latent_dim"]:
        """z': on the same sphere as E's z."""
        return normalize_latent(self.latent(query))

    def sample(
        self,
        observation: ObservationBatch,
        history: HistoryBatch | None,
        noise: Float[Tensor, "batch horizon max_action_dim"],
        action_mask: Bool[Tensor, "batch max_action_dim"],
        num_steps: Sequence[int],
        continuations: Sequence[Continuation] = (),
    ) -> Float[Tensor, "batch horizon max_action_dim"]:
        """Chunks in model units from unit noise; a sample whose history is empty is answered as if it had none.

        What `continuations` hold is in model units too (ActionDecoder.sample).
        """
        output = self.observe(observation, history)
        has_history = (
            torch.zeros(len(noise), dtype=torch.bool, device=noise.device)
            if history is None
            else history.step_mask.any(1)
        )
        latent = self.to_latent(select_query(output, has_history))
        start = noise * self.config.noise_scale
        return self.prior.decoder.sample(
            start, latent.to(noise.dtype), observation.embodiment, action_mask, num_steps, continuations
        )


def prior_config(config: ModelConfig) -> PriorConfig:
    return PriorConfig(
        num_embodiments=config.num_embodiments,
        max_state_dim=config.max_state_dim,
        max_action_dim=config.max_action_dim,
        latent_dim=config.latent_dim,
        num_soft_tokens=config.num_soft_tokens,
        encoder=config.encoder,
        decoder=config.decoder,
        encoder_inputs=config.encoder_inputs,
    )


def build_vla(config: ModelConfig, tokenizer: Tokenizer) -> VLA:
    """A VLA with fresh weights; draws them from torch's default generator."""
    return VLA(config, build_backbone(config, tokenizer))


def build_backbone(config: ModelConfig, tokenizer: Tokenizer) -> Backbone:
    """As build_vla does."""
    settings = config.backbone
    if isinstance(settings, ConvolutionalSettings):
        return ConvolutionalBackbone(_convolutional(config, settings), tokenizer)
    from policy.vlm import VlmBackbone  # transformers takes seconds to import; only this kind pays

    return VlmBackbone(config, settings, tokenizer)


def _convolutional(config: ModelConfig, settings: ConvolutionalSettings) -> ConvolutionalConfig:
    return ConvolutionalConfig(
        num_embodiments=config.num_embodiments,
        max_cameras=config.max_cameras,
        max_state_dim=config.max_state_dim,
        latent_dim=config.latent_dim,
        vocabulary=settings.vocabulary,
        num_soft_tokens=config.num_soft_tokens,
        num_keypoints=settings.num_keypoints,
        channels=settings.channels,
        trunk=settings.trunk,
    )
