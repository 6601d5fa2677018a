"""A small arm's data set: three joints in rad and a gripper, absolute targets, one camera, two instructions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind
from training.data.lerobot.writer import LeRobotWriter

LENGTHS = (9, 12, 7)
NAMES = ["shoulder_pan.pos", "shoulder_lift.pos", "elbow_flex.pos", "gripper.pos"]
CAMERA = "observation.images.wrist"
TASKS = ("pick the cube", "place the cube", "pick the cube")

Arrays = dict[str, np.ndarray]
Change = Callable[[int, Arrays], None]


def groups() -> tuple[Group, ...]:
    return (
        Group(name="joints", dim=3, kind=GroupKind.JOINT_POSITION, unit="rad"),
        Group(name="gripper", dim=1, kind=GroupKind.GRIPPER, unit="fraction open"),
    )


@pytest.fixture
def spec() -> EmbodimentSpec:
    return EmbodimentSpec(
        name="arm",
        cameras=(Camera(name="wrist", height=32, width=48),),
        state=groups(),
        action=groups(),
        control_rate_hz=10.0,
    )


def episode_arrays(episode: int, length: int) -> Arrays:
    """Slow waves, the action a little ahead of the state; pictures that move."""
    generator = np.random.default_rng(episode)
    phase = np.arange(length + 1)[:, None] / 4 + np.arange(4) + episode
    path = np.sin(phase).astype(np.float32)
    path[:, 3] = np.abs(path[:, 3])
    picture = np.repeat(np.repeat(generator.integers(0, 256, (4, 6, 3), np.uint8), 8, 0), 8, 1)
    return {
        "observation.state": path[:-1].copy(),
        "action": path[1:].copy(),
        CAMERA: np.stack([np.roll(picture, 3 * frame, 1) for frame in range(length)]),
    }


@pytest.fixture
def write_arm(tmp_path: Path) -> Callable[..., Path]:
    """Writes the data set as LeRobot would; `change` is given every episode's arrays before that."""

    def write(
        change: Change | None = None,
        *,
        lengths: tuple[int, ...] = LENGTHS,
        tasks: tuple[str, ...] = TASKS,
        features: Mapping[str, Any] | None = None,
        names: Any = NAMES,
        fps: float = 10.0,
    ) -> Path:
        root = tmp_path / "arm-data"
        numeric = {"dtype": "float32", "shape": [4], "names": names}
        declared: dict[str, Any] = {
            "observation.state": numeric,
            "action": numeric,
            CAMERA: {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channels"]},
            **(features or {}),
        }
        with LeRobotWriter(root, fps=fps, features=declared, robot_type="arm") as writer:
            for episode, length in enumerate(lengths):
                arrays = episode_arrays(episode, length)
                if change is not None:
                    change(episode, arrays)
                writer.add_episode(arrays, tasks[episode])
        return root

    return write
