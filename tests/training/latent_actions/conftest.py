"""Toy clips: a bright square that moves by its own before a texture that a camera shifts, all of it known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from policy.visual_features import FrozenEyes, VisualSettings
from training.ego_video.pack import Clip, ClipPack, ClipPackWriter
from training.latent_actions.model import LatentActionModel
from training.latent_actions.settings import EyesSettings, LatentActionSettings
from training.latent_actions.train import train_eyes, train_latent_actions
from training.loop import Schedule

SIZE = 32
MakeClips = Callable[..., ClipPack]


def write_clips(
    directory: Path,
    *,
    num_clips: int = 6,
    num_frames: int = 8,
    size: int = SIZE,
    seed: int = 0,
    masks: bool = True,
    bodies: tuple[str, ...] = ("hand",),
) -> ClipPack:
    """Clips at 4 Hz. The square's colour is its body's; it and the camera move at a constant velocity of the clip."""
    generator = np.random.default_rng(seed)
    side = size // 4
    with ClipPackWriter(directory, size) as writer:
        for number in range(num_clips):
            body = bodies[number % len(bodies)]
            colour = np.array([255, 40, 40] if body == "hand" else [40, 40, 255], np.uint8)
            coarse = torch.from_numpy(generator.uniform(40, 200, (1, 3, 12, 12)))
            scene = torch.nn.functional.interpolate(coarse, (2 * size, 2 * size), mode="bilinear")[0].movedim(0, -1)
            texture = scene.numpy().astype(np.uint8)
            start = generator.uniform(size * 0.2, size * 0.55, 2)
            velocity, drift = generator.uniform(-2.5, 2.5, 2) * size / 64, generator.uniform(-1.5, 1.5, 2) * size / 64
            frames = np.zeros((num_frames, size, size, 3), np.uint8)
            mask = np.zeros((num_frames, size, size), np.uint8)
            places, shifts = np.zeros((num_frames, 2), np.float32), np.zeros((num_frames, 2), np.float32)
            for index in range(num_frames):
                shift = np.rint(drift * index).astype(int)
                x, y = np.rint(np.clip(start + velocity * index, 0, size - side)).astype(int)
                row, column = size // 2 - shift[1], size // 2 - shift[0]
                frames[index] = texture[row : row + size, column : column + size]
                frames[index, y : y + side, x : x + side] = colour
                mask[index, y : y + side, x : x + side] = 255
                places[index] = (np.array([x, y]) + side / 2) / size * 2 - 1
                shifts[index] = shift / size * 2
            clip = Clip(name=f"clip-{number}", source="toy", rate_hz=4.0, instruction="move the square", body=body)
            writer.add(clip, frames, mask if masks else None, mask, places, shifts)
    return ClipPack.open(directory)


@pytest.fixture(scope="session")
def make_clips(tmp_path_factory: pytest.TempPathFactory) -> MakeClips:
    def make(**changes: object) -> ClipPack:
        return write_clips(tmp_path_factory.mktemp("clips") / "pack", **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def clips(make_clips: MakeClips) -> ClipPack:
    return make_clips()


def toy_schedule(num_steps: int) -> Schedule:
    return Schedule(num_steps=num_steps, learning_rate=3e-3, warmup_steps=2, save_every=4, log_every=1, ema_decay=0.9)


@pytest.fixture(scope="session")
def eyes_settings() -> EyesSettings:
    visual = VisualSettings(image_size=SIZE, patch=8, width=32, num_layers=1)
    return EyesSettings(visual=visual, decoder_layers=1, batch_size=8, schedule=toy_schedule(8))


@pytest.fixture(scope="session")
def settings() -> LatentActionSettings:
    return LatentActionSettings(
        gap_s=1.0,
        num_codes=8,
        num_tokens=2,
        latent_dim=8,
        motion_weight=1.0,
        width=32,
        encoder_layers=1,
        decoder_layers=1,
        batch_size=8,
        schedule=toy_schedule(10),
    )


@pytest.fixture(scope="session")
def eyes(clips: ClipPack, eyes_settings: EyesSettings, tmp_path_factory: pytest.TempPathFactory) -> FrozenEyes:
    return train_eyes([clips], eyes_settings, tmp_path_factory.mktemp("eyes"), seed=0)


@pytest.fixture(scope="session")
def trained(
    clips: ClipPack,
    eyes: FrozenEyes,
    settings: LatentActionSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[LatentActionModel, Path]:
    """A model after a few steps, and where it lies."""
    directory = tmp_path_factory.mktemp("latent-actions")
    return train_latent_actions([clips], eyes, settings, directory, seed=0), directory
