"""Toy clips of a square that moves as its words say, and a recipe of the whole chain that trains in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.ego_video.pack import Clip, ClipPackWriter
from training.video_prior.recipe import VideoPriorRecipe

_SIZE, _FRAMES = 16, 12


def _clip(direction: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    frames = np.full((_FRAMES, _SIZE, _SIZE, 3), generator.integers(40, 120), np.uint8)
    masks = np.zeros((_FRAMES, _SIZE, _SIZE), np.uint8)
    row, start = generator.integers(2, 10), 0 if direction > 0 else 11
    for step in range(_FRAMES):
        column = start + direction * step
        frames[step, row : row + 4, column : column + 4] = (220, 160, 130)
        masks[step, row : row + 4, column : column + 4] = 255
    return frames, masks


@pytest.fixture(scope="session")
def clip_packs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two packs; one of them has a clip without words."""
    root = tmp_path_factory.mktemp("clips")
    for name in ("hands", "more"):
        with ClipPackWriter(root / name, _SIZE) as writer:
            for index in range(4):
                direction = 1 if index % 2 else -1
                words = "push it to the right" if direction > 0 else "push it to the left"
                clip = Clip(
                    name=str(index),
                    source=name,
                    rate_hz=5.0,
                    instruction="" if (name, index) == ("more", 0) else words,
                    body="hand",
                )
                writer.add(clip, *_clip(direction, index))
    return str(root / "hands"), str(root / "more")


@pytest.fixture(scope="session")
def recipe_values(clip_packs: tuple[str, str]) -> dict[str, Any]:
    """The JSON of a recipe on the task `slide` of tests/training/conftest.py."""

    def schedule(num_steps: int) -> dict[str, Any]:
        return {"num_steps": num_steps, "warmup_steps": 1, "save_every": 3, "log_every": 1}

    return {
        "name": "toy-video",
        "clips": list(clip_packs),
        "eyes": {
            "visual": {"image_size": 16, "patch": 4, "width": 32, "num_layers": 1},
            "decoder_layers": 1,
            "batch_size": 4,
            "schedule": schedule(3),
        },
        "latent_actions": {
            "gap_s": 0.4,
            "num_codes": 4,
            "num_tokens": 2,
            "latent_dim": 8,
            "width": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "batch_size": 4,
            "schedule": schedule(3),
        },
        "pretraining": {"schedule": schedule(4), "batch_size": 4, "image_shift": 2},
        "base": {
            "size": "tiny-vlm",
            "autocast": False,
            "data": {"tasks": ["slide"], "episodes_per_task": 4},
            "stage1": {"schedule": {"num_steps": 0}},
            "stage2": {"schedule": schedule(8), "batch_size": 4, "decay_steps": 0, "num_draws": 2},
        },
    }


@pytest.fixture(scope="session")
def recipe(recipe_values: dict[str, Any]) -> VideoPriorRecipe:
    return VideoPriorRecipe.from_json(recipe_values)


@pytest.fixture
def run_root(toy_run: Any, tmp_path: Path) -> Path:
    """A run's directory with the recordings of `slide`, and nothing made of them yet."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data").symlink_to(toy_run.datasets)
    return tmp_path / "run"
