"""Is the policy looking? Chunk error with true inputs, with images and with states shuffled within the task.

A policy can explain most of its loss by state and task alone and stay blind; then shuffled images cost it nothing. Owns
that measurement on held-back or training frames of packs; success in closed loop is evaluate.py's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from policy.backbone import ObservationBatch
from policy.models import Model
from policy.vla import HistoryBatch
from training.batches import Mixture
from training.objective import MotionBatch, to_device

_ROWS = 64


def inspect(
    vla: Model, mixture: Mixture, *, num_frames: int = 384, seed: int = 0, device: str | torch.device = "cpu"
) -> list[dict[str, Any]]:
    """Per pack: mean |error| of sampled chunks, model units, over real steps and dimensions; ratios to the true one.

    `error_history` is the error with the true history given; every other error is without history.
    """
    vla = vla.to(device).eval()
    rows = []
    for index, pack in enumerate(mixture.packs):
        generator = np.random.default_rng([seed, index])
        frames = generator.choice(pack.num_frames, min(num_frames, pack.num_frames), replace=False)
        batch = to_device(mixture.vla([(index, frames)], torch.ones(len(frames), dtype=torch.bool)), device)
        shuffled = torch.from_numpy(_derangement(len(frames), generator)).to(device)
        observation, motion = batch.observation, batch.motion
        true = chunk_error(vla, observation, None, motion)
        images = chunk_error(vla, replace(observation, images=observation.images[shuffled]), None, motion)
        state = chunk_error(vla, replace(observation, state=observation.state[shuffled]), None, motion)
        rows.append(
            {
                "task": pack.task,
                "num_frames": len(frames),
                "error": true,
                "error_images_shuffled": images,
                "error_state_shuffled": state,
                "error_history": chunk_error(vla, observation, batch.history, motion),
                "images_ratio": images / true,
                "state_ratio": state / true,
            }
        )
    return rows


def chunk_error(vla: Model, observation: ObservationBatch, history: HistoryBatch | None, motion: MotionBatch) -> float:
    """Mean |sampled - recorded| in model units, the same noise whatever the inputs."""
    noise = torch.randn(motion.actions.shape, generator=torch.Generator().manual_seed(0)).to(motion.actions.device)
    total = count = 0.0
    for start in range(0, len(noise), _ROWS):
        rows = slice(start, start + _ROWS)
        with torch.inference_mode():
            chunk = vla.sample(
                _rows(observation, rows),
                None if history is None else _rows(history, rows),
                noise[rows],
                motion.action_mask[rows],
                [vla.config.num_inference_steps] * len(noise[rows]),
            )
        real = motion.step_mask[rows, :, None] & motion.action_mask[rows, None]
        error = torch.where(real, (chunk - motion.actions[rows]).abs(), 0)
        total, count = total + error.sum().item(), count + real.sum().item()
    return total / count


def format_inspection(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'task':<14} {'error':>8} {'images shuffled':>16} {'state shuffled':>15} {'with history':>13} "
        f"{'images ratio':>13}"
    ]
    for row in rows:
        lines.append(
            f"{row['task']:<14} {row['error']:>8.4f} {row['error_images_shuffled']:>16.4f} "
            f"{row['error_state_shuffled']:>15.4f} {row['error_history']:>13.4f} {row['images_ratio']:>13.2f}"
        )
    return "\n".join(lines)


def _rows(batch: Any, rows: slice) -> Any:
    return type(batch)(**{name: values[rows] for name, values in vars(batch).items()})


def _derangement(count: int, generator: np.random.Generator) -> np.ndarray:
    """A shuffle that leaves nothing in its place."""
    order = generator.permutation(count)
    shuffled = np.empty(count, dtype=np.int64)
    shuffled[order] = np.roll(order, 1)
    return shuffled
