"""What intent pretraining and adaptation minimise (paper B, arXiv 2606.18955). Pure functions of model and batch.

Pretraining: cross-entropy of the codes of (t, t + gap) given the frame at t and words. Adaptation: L_flow +
lambda_intent times that cross-entropy on robots' own frames, averaged over a pass with and one without history.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from policy.flow import masked_mean
from policy.intent_vla import IntentVLA
from training.latent_actions.label import UNLABELLED
from training.objective import HistoryPass, LandmarkHead, VLABatch, observe_passes, velocity_loss


def code_losses(logits: Tensor, codes: Tensor) -> dict[str, Tensor]:
    """Of logits [batch, K, codes] and codes int64 [batch, K]: mean cross-entropy over frames that are labelled, 0 when
    none is, and the part of their codes that is most likely."""
    labelled = codes != UNLABELLED
    count = labelled.sum().clamp(min=1)
    error = F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten(), ignore_index=UNLABELLED, reduction="sum")
    right = (logits.argmax(-1) == codes) & labelled
    return {"intent": error / count, "intent_accuracy": right.sum() / count}


def adaptation_losses(
    vla: IntentVLA,
    batch: VLABatch,
    codes: Tensor | None,
    generator: torch.Generator,
    *,
    intent_weight: float,
    sight_dropout: float = 0.0,
    num_draws: int = 1,
    history_pass: HistoryPass = "both",
    landmark_head: LandmarkHead | None = None,
    landmark_weight: float = 0.0,
    max_inference_delay: int = 0,
) -> dict[str, Tensor]:
    """ "loss" is what to minimise. `codes` int64 [batch, K] are the robots'; None leaves flow alone.

    In `sight_dropout` of the samples the decoder reads no camera. `history_pass` and `max_inference_delay` are as in
    training/objective.py.
    """
    queries, seen = ([], None)
    if vla.uses_intent:
        queries, seen = observe_passes(vla, batch, generator, history_pass)
    visual, observation = vla.look(batch.observation), batch.observation
    if sight_dropout:
        sees = torch.rand(len(observation.state), generator=generator, device=generator.device) >= sight_dropout
        observation = replace(observation, camera_mask=observation.camera_mask & sees[:, None])
    intents = [vla.to_intent(query) for query in queries] or [None]
    predictions = []
    for intent in intents:
        context = vla.context(observation, visual, intent).repeat(num_draws)

        def velocity(x: Tensor, time: Tensor, given: Tensor | None, context=context) -> Tensor:
            return vla.decoder(x, time, context, given)

        predictions.append(
            velocity_loss(velocity, batch.motion, generator, num_draws, max_inference_delay=max_inference_delay)
        )
    losses = {"prediction": torch.stack(predictions).mean()}
    loss = losses["prediction"]
    if codes is not None:
        each = [code_losses(intent.logits, codes) for intent in intents if intent is not None]
        losses |= {name: torch.stack([one[name] for one in each]).mean() for name in each[0]}
        loss = loss + intent_weight * losses["intent"]
    if landmark_head is not None and batch.landmarks is not None and seen is not None:
        error = (landmark_head(seen, batch.landmarks.task).float() - batch.landmarks.values).square()
        losses["landmarks"] = masked_mean(error, batch.landmarks.mask)
        loss = loss + landmark_weight * losses["landmarks"]
    return {"loss": loss, **losses}
