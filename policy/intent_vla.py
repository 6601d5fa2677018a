"""Paper B's VLA (arXiv 2606.18955): the backbone gives intent, frozen eyes and the state go straight to the decoder.

Beside vla.py, with its outer interface. The backbone reads `[p_k, images, text, (z_hist), query]` and no state;
history is compressed by paper A's encoder. The backbone has one body more than the model: the last is video without a
body, by which it learns intent where no action was recorded. Works in model units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from tokenizers import Tokenizer
from torch import Tensor, nn

from policy.backbone import Backbone, BackboneOutput, ObservationBatch, select_query
from policy.config import IntentSettings, ModelConfig
from policy.intent import Intent, IntentContext, IntentDecoder, IntentHead, fold_patches, folded_shape
from policy.prior import ActionPrior, MotionEncoder
from policy.real_time import Continuation
from policy.visual_features import FrozenEyes, VisualSettings, build_eyes
from policy.vla import HistoryBatch, build_backbone, prior_config

# A backbone's parameters that each body has its own of, the body first, and that a picture and words are enough to
# train; of views each camera of a body has its own, the camera second.
_OF_BODIES, _OF_CAMERAS = ("soft_tokens",), ("keypoint_view", "grid_view")


class IntentVLA(nn.Module):
    def __init__(self, config: ModelConfig, backbone: Backbone, eyes: FrozenEyes | None) -> None:
        super().__init__()
        settings = settings_of(config)
        self.config = config
        self.backbone = backbone
        self.encoder = MotionEncoder(prior_config(config))
        self.head = IntentHead(backbone.width, config.decoder.width, settings.num_tokens, settings.num_codes)
        num_visual, visual_width = folded_shape(eyes.num_tokens, eyes.width) if eyes is not None else (0, 0)
        self.decoder = IntentDecoder(config, visual_width=visual_width, num_visual=num_visual)
        self.eyes = eyes
        self.uses_intent = settings.use_intent

    @property
    def video_body(self) -> int:
        """The backbone's body index of pictures that show no body of the model."""
        return self.config.num_embodiments

    def observe(self, observation: ObservationBatch, history: HistoryBatch | None = None) -> BackboneOutput:
        """Query outputs without and with history; the state is the decoder's alone."""
        stateless = replace(observation, state_mask=torch.zeros_like(observation.state_mask))
        if history is None:
            return self.backbone(stateless)
        z_history = self.encoder(history.states, history.actions, history.step_mask, observation.embodiment)
        return self.backbone(stateless, z_history)

    def to_intent(self, query: Float[Tensor, "batch width"]) -> Intent:
        return self.head(query)

    def look(self, observation: ObservationBatch) -> Float[Tensor, "batch cameras patches features"] | None:
        """What the frozen eyes see, folded; None without eyes."""
        if self.eyes is None:
            return None
        features = fold_patches(self.eyes(observation.images.flatten(0, 1)))
        return features.unflatten(0, observation.camera_mask.shape)

    def context(
        self,
        observation: ObservationBatch,
        visual: Float[Tensor, "batch cameras patches features"] | None,
        intent: Intent | None,
    ) -> IntentContext:
        """What the decoder reads; `intent` None is for a model that does not use it."""
        return self.decoder.context(
            visual=visual,
            camera_mask=observation.camera_mask,
            state=observation.state,
            state_mask=observation.state_mask,
            intent=None if intent is None else intent.tokens,
            embodiment=observation.embodiment,
        )

    def sample(
        self,
        observation: ObservationBatch,
        history: HistoryBatch | None,
        noise: Float[Tensor, "batch horizon max_action_dim"],
        action_mask: Bool[Tensor, "batch max_action_dim"],
        num_steps: Sequence[int],
        continuations: Sequence[Continuation] = (),
    ) -> Float[Tensor, "batch horizon max_action_dim"]:
        """As VLA.sample."""
        intent = self.foresee(observation, history)
        return self.act(observation, intent, noise, action_mask, num_steps, continuations)

    def foresee(self, observation: ObservationBatch, history: HistoryBatch | None) -> Intent | None:
        """Intent, with history where a sample has one; None for a model that does not use it."""
        if not self.uses_intent:
            return None
        output = self.observe(observation, history)
        return self.to_intent(
            output.without_history if history is None else select_query(output, history.step_mask.any(1))
        )

    def act(
        self,
        observation: ObservationBatch,
        intent: Intent | None,
        noise: Float[Tensor, "batch horizon max_action_dim"],
        action_mask: Bool[Tensor, "batch max_action_dim"],
        num_steps: Sequence[int],
        continuations: Sequence[Continuation] = (),
    ) -> Float[Tensor, "batch horizon max_action_dim"]:
        """What `sample` answers where the backbone has foreseen `intent`: sight and state are the observation's."""
        context = self.context(observation, self.look(observation), intent)
        return self.decoder.sample(noise * self.config.noise_scale, context, action_mask, num_steps, continuations)

    @torch.no_grad()
    def start_from_prior(self, prior: ActionPrior) -> None:
        """E as paper A's stage 1 left it, and of D all that this decoder has as well."""
        self.encoder.load_state_dict(prior.encoder.state_dict())
        own = self.decoder.state_dict()
        shared = {name: value for name, value in prior.decoder.state_dict().items() if name in own}
        self.decoder.load_state_dict({**own, **shared})

    @torch.no_grad()
    def start_bodies_from_video(self) -> None:
        """Every body sees as video taught the backbone to, with each of its cameras, until it learns its own.

        Video has one camera: what the others' views of it are was never trained.
        """
        for name, parameter in self.backbone.named_parameters(recurse=False):
            if name in _OF_BODIES:
                parameter[:-1] = parameter[-1:].clone()
            elif name in _OF_CAMERAS:
                parameter[:-1] = parameter[-1:, :1].clone()


def settings_of(config: ModelConfig) -> IntentSettings:
    if config.intent is None:
        raise ValueError("config has no intent, expected that of paper B's model; paper A's is built by build_vla")
    return config.intent


def build_intent_vla(config: ModelConfig, tokenizer: Tokenizer) -> IntentVLA:
    """Fresh weights, the eyes' too, from torch's default generator. Raises ValueError for settings of no eyes."""
    visual, eyes = settings_of(config).visual, None
    if visual is not None:
        # Theirs are loaded later; what they draw here must not make other weights differ from a model without eyes.
        with torch.random.fork_rng(devices=[]):
            eyes = build_eyes(VisualSettings.from_json(visual))
    backbone = build_backbone(replace(config, num_embodiments=config.num_embodiments + 1), tokenizer)
    return IntentVLA(config, backbone, eyes)
