"""What the two stages minimise (paper A; arXiv 2606.26095). Pure functions of model, batch and generator.

Stage 1: L_recon on trajectories alone. Stage 2: L_pred + lambda(k) (||z' - sg(z)||^2 + L_recon), averaged over a pass
with and a pass without history that share the prefix. Losses count real dimensions and real steps only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from policy.backbone import ObservationBatch
from policy.flow import interpolate, sample_time
from policy.models import Model
from policy.prior import ActionDecoder, ActionPrior
from policy.vla import VLA, HistoryBatch
from training.parallel import ALONE, Processes

_Batch = TypeVar("_Batch")
HistoryPass = Literal["both", "sampled"]


def to_device(batch: _Batch, device: str | torch.device) -> _Batch:
    """The same batch with every tensor on `device`; nested batches too."""
    on_accelerator = torch.device(device).type == "cuda"
    moved: dict[str, Any] = {}
    for field in fields(batch):  # type: ignore[arg-type]
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            # Only a copy from pinned memory does not wait for the device.
            value = (value.pin_memory() if on_accelerator else value).to(device, non_blocking=True)
        elif is_dataclass(value):
            value = to_device(value, device)
        moved[field.name] = value
    return type(batch)(**moved)


def take_rows(batch: _Batch, rows: Tensor) -> _Batch:
    """Samples `rows` (int64) of a batch whose fields are tensors or tuples with one entry per sample."""
    taken: dict[str, Any] = {}
    for field in fields(batch):  # type: ignore[arg-type]
        value = getattr(batch, field.name)
        taken[field.name] = value[rows] if isinstance(value, Tensor) else tuple(value[i] for i in rows.tolist())
    return type(batch)(**taken)


@dataclass(frozen=True, kw_only=True)
class MotionBatch:
    """Windows of future motion in model units: what stage 1 reads, and stage 2's target."""

    states: Tensor  # float32 [batch, horizon, max_state_dim]
    actions: Tensor  # float32 [batch, horizon, max_action_dim]
    step_mask: Tensor  # bool [batch, horizon]
    action_mask: Tensor  # bool [batch, max_action_dim]
    embodiment: Tensor  # int64 [batch]


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """Privileged positions of objects and goals, standardised per task: only ever a training signal for the eyes."""

    values: Tensor  # float32 [batch, max_landmarks]
    mask: Tensor  # bool [batch, max_landmarks]
    task: Tensor  # int64 [batch]


@dataclass(frozen=True, kw_only=True)
class VLABatch:
    observation: ObservationBatch
    history: HistoryBatch | None
    motion: MotionBatch
    landmarks: Landmarks | None


class LandmarkHead(nn.Module):
    """From what the eyes alone report to where things are, one output map per task. Not part of the checkpoint."""

    def __init__(self, visual_dim: int, num_tasks: int, max_landmarks: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(visual_dim, 256)
        self.out = nn.Parameter(torch.randn(num_tasks, 256, max_landmarks) * 256**-0.5)

    def forward(self, visual: Tensor, task: Tensor) -> Tensor:
        h = nn.functional.silu(self.hidden(visual))
        return torch.bmm(h[:, None], self.out[task].to(h.dtype))[:, 0]


def prior_decay(step: int, decay_steps: int | None) -> float:
    """lambda(k) = max(0, 1 - k / N_decay); 0 steps means no distillation at all, None that it stays 1."""
    if decay_steps is None:
        return 1.0
    return max(0.0, 1.0 - step / decay_steps) if decay_steps > 0 else 0.0


def flow_loss(
    decoder: ActionDecoder,
    latent: Tensor,
    motion: MotionBatch,
    generator: torch.Generator,
    num_draws: int = 1,
    processes: Processes = ALONE,
    max_inference_delay: int = 0,
) -> Tensor:
    """velocity_loss of D given one latent a chunk."""

    def velocity(x: Tensor, time: Tensor, given: Tensor | None) -> Tensor:
        return decoder(x, time, latent.repeat(num_draws, 1), motion.embodiment.repeat(num_draws), given)

    return velocity_loss(velocity, motion, generator, num_draws, processes, max_inference_delay)


def velocity_loss(
    velocity: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    motion: MotionBatch,
    generator: torch.Generator,
    num_draws: int = 1,
    processes: Processes = ALONE,
    max_inference_delay: int = 0,
) -> Tensor:
    """E ||v(x_r, r) - (actions - noise)||^2 over `num_draws` draws of noise and time per chunk.

    `velocity` gets noisy chunks, times and what is given of all draws, one whole batch after another. With
    `max_inference_delay` every other draw gives the first 1 to so many actions, all as likely, as they are: the decoder
    learns to continue them, and they do not count (arXiv 2512.05964). The others give none, for most chunks are asked
    for without.
    """
    device = motion.actions.device
    actions = motion.actions.repeat(num_draws, 1, 1)
    mask = (motion.step_mask[:, :, None] & motion.action_mask[:, None]).repeat(num_draws, 1, 1)
    real_dims = motion.action_mask[:, None].repeat(num_draws, 1, 1)
    total = len(actions) * processes.world_size
    noise = torch.randn(total, *actions.shape[1:], generator=generator, device=device)
    noise = _own_rows(noise, num_draws, processes) * real_dims
    time = _own_rows(sample_time(total, generator, device), num_draws, processes)
    x, given = interpolate(noise, actions, time), None
    if max_inference_delay:
        least, most = -max_inference_delay, max_inference_delay
        delays = torch.randint(least, most + 1, (total,), generator=generator, device=device).clamp(min=0)
        delays = _own_rows(delays, num_draws, processes)
        given = torch.arange(actions.shape[1], device=device) < delays[:, None]
        x, mask = torch.where(given[:, :, None], actions, x), mask & ~given[:, :, None]
    return processes.mean((velocity(x, time, given).float() - (actions - noise)).square(), mask)


def _own_rows(drawn: Tensor, num_draws: int, processes: Processes) -> Tensor:
    """Of `num_draws` draws for the whole batch, one after another, this process's rows of each."""
    return processes.rows(drawn.unflatten(0, (num_draws, -1)), dim=1).flatten(0, 1)


def encode_motion(prior: ActionPrior, motion: MotionBatch) -> Tensor:
    return prior.encoder(motion.states, motion.actions, motion.step_mask, motion.embodiment)


def stage1_losses(
    prior: ActionPrior,
    motion: MotionBatch,
    generator: torch.Generator,
    num_draws: int,
    processes: Processes = ALONE,
) -> dict[str, Tensor]:
    """ "loss" is what to minimise."""
    reconstruction = flow_loss(prior.decoder, encode_motion(prior, motion), motion, generator, num_draws, processes)
    return {"loss": reconstruction, "reconstruction": reconstruction}


def observe_sampled(
    vla: Model, observation: ObservationBatch, history: HistoryBatch, with_history: Tensor
) -> tuple[list[Tensor], Tensor | None]:
    """One query output per sample, with its history where `with_history` [batch] is True, and what the eyes say."""
    told, untold = with_history.nonzero()[:, 0], (~with_history).nonzero()[:, 0]
    parts = []
    if len(told):
        output = vla.observe(take_rows(observation, told), take_rows(history, told))
        assert output.with_history is not None
        parts.append((output.with_history, output.visual))
    if len(untold):
        output = vla.observe(take_rows(observation, untold))
        parts.append((output.without_history, output.visual))
    back = torch.cat([told, untold]).argsort()
    visual = [eyes for _, eyes in parts if eyes is not None]
    return [torch.cat([query for query, _ in parts])[back]], torch.cat(visual)[back] if visual else None


def observe_passes(
    vla: Model, batch: VLABatch, generator: torch.Generator, history_pass: HistoryPass, processes: Processes = ALONE
) -> tuple[list[Tensor], Tensor | None]:
    """Query outputs of each pass over the batch, and what the eyes say.

    With `history_pass` "both" every sample counts with and without its history, half each (paper A). "sampled" tosses
    a coin for each sample instead: the same loss in expectation, for little more than a pass without history.
    """
    if batch.history is not None and history_pass == "sampled":
        coins = torch.rand(
            len(batch.motion.actions) * processes.world_size, generator=generator, device=batch.motion.actions.device
        )
        return observe_sampled(vla, batch.observation, batch.history, processes.rows(coins) < 0.5)
    output = vla.observe(batch.observation, batch.history)
    if output.with_history is None:
        return [output.without_history], output.visual
    return [output.without_history, output.with_history], output.visual


def stage2_losses(
    vla: VLA,
    batch: VLABatch,
    generator: torch.Generator,
    *,
    distillation: float,
    num_draws: int,
    history_pass: HistoryPass = "both",
    landmark_head: LandmarkHead | None = None,
    landmark_weight: float = 0.0,
    landmarks_move_eyes: bool = True,
    max_inference_delay: int = 0,
    processes: Processes = ALONE,
) -> dict[str, Tensor]:
    """ "loss" is what to minimise; `distillation` is lambda(k), at 0 of which E's pass over the future is skipped.
    `history_pass` is as observe_passes says, `max_inference_delay` of the prediction's flow_loss. Without
    `landmarks_move_eyes` the landmarks teach their head alone.
    """
    queries, visual = observe_passes(vla, batch, generator, history_pass, processes)
    latents = [vla.to_latent(query) for query in queries]
    losses = {
        "prediction": torch.stack(
            [
                flow_loss(vla.prior.decoder, latent, batch.motion, generator, num_draws, processes, max_inference_delay)
                for latent in latents
            ]
        ).mean()
    }
    loss = losses["prediction"]
    if distillation > 0:
        z = encode_motion(vla.prior, batch.motion)
        losses["alignment"] = torch.stack([(latent - z.detach()).square().mean() for latent in latents]).mean()
        losses["reconstruction"] = flow_loss(vla.prior.decoder, z, batch.motion, generator, processes=processes)
        loss = loss + distillation * (losses["alignment"] + losses["reconstruction"])
    if landmark_head is not None and batch.landmarks is not None and visual is not None:
        seen = visual if landmarks_move_eyes else visual.detach()
        predicted = landmark_head(seen, batch.landmarks.task).float()
        losses["landmarks"] = processes.mean((predicted - batch.landmarks.values).square(), batch.landmarks.mask)
        loss = loss + landmark_weight * losses["landmarks"]
    return {"loss": loss, **losses}
