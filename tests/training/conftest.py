"""A run small enough to train in a test: one task of random paths, and the recipe for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind
from training.data.lerobot.writer import LeRobotWriter
from training.loop import Schedule
from training.recipe import DataRecipe, Recipe, RunDirectory, Stage1Recipe, Stage2Recipe

SPEC = EmbodimentSpec(
    name="slider",
    cameras=(Camera(name="front", height=32, width=32),),
    state=(Group(name="position", dim=2, kind=GroupKind.OTHER, unit="m"),),
    action=(Group(name="position", dim=2, kind=GroupKind.OTHER, unit="m"),),
    control_rate_hz=10.0,
)
RECIPE = Recipe(
    name="toy",
    size="tiny-vlm",
    autocast=False,
    data=DataRecipe(tasks=("slide",), episodes_per_task=4),
    stage1=Stage1Recipe(schedule=Schedule(num_steps=12, warmup_steps=2, save_every=4, log_every=1), batch_size=8),
    stage2=Stage2Recipe(
        schedule=Schedule(num_steps=8, warmup_steps=2, save_every=3, log_every=1), batch_size=4, decay_steps=4
    ),
)


def write_demonstrations(root: Path, seeds: Sequence[int] = range(4)) -> None:
    generator = np.random.default_rng(seeds[0])
    numeric = {"dtype": "float32", "shape": [2], "names": ["x", "y"]}
    features = {
        "observation.images.front": {"dtype": "video", "shape": [32, 32, 3], "names": ["height", "width", "channels"]},
        "observation.state": numeric,
        "action": numeric,
        "executed_action": numeric,
        "observation.environment_state": numeric,
    }
    annotations = {"task": "slide", "embodiment": SPEC.to_json(), "environment_state_names": ["x", "y"]}
    with LeRobotWriter(root, fps=10.0, features=features, robot_type="slider", annotations=annotations) as writer:
        for count, seed in enumerate(seeds):
            steps = 20 + count
            path = np.cumsum(generator.normal(size=(steps, 2)), 0).astype(np.float32)
            writer.add_episode(
                {
                    "observation.images.front": generator.integers(0, 256, (steps, 32, 32, 3), dtype=np.uint8),
                    "observation.state": path,
                    "action": path + 1,
                    "executed_action": path + 1,
                    "observation.environment_state": path * 2,
                },
                "slide it over",
                seed=seed,
            )


@pytest.fixture(scope="session")
def toy_recipe() -> Recipe:
    return RECIPE


@pytest.fixture(scope="session")
def demonstrate() -> Callable[[Path, Sequence[int]], None]:
    """Writes the toy task's data set of these scenes."""
    return write_demonstrations


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = RunDirectory(root=tmp_path_factory.mktemp("run"))
    write_demonstrations(run.dataset("slide"))
    return run
