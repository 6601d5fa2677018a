from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind
from training.data.lerobot import LeRobotWriter
from training.data.pack import Pack

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture
def lerobot_fixture() -> Path:
    """Written by lerobot 0.4.4 itself: 3 episodes of 12, 20 and 9 frames, one AV1 camera."""
    return FIXTURES / "lerobot_v30"


@pytest.fixture
def lerobot_expected() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "lerobot_v30_expected.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture
def spec() -> EmbodimentSpec:
    """2-D joints, whose actions are relative to them, and a gripper."""
    return EmbodimentSpec(
        name="toy",
        cameras=(Camera(name="front", height=64, width=96), Camera(name="wrist", height=32, width=32)),
        state=(
            Group(name="gripper", dim=1, kind=GroupKind.GRIPPER, unit="normalized"),
            Group(name="joints", dim=2, kind=GroupKind.JOINT_POSITION, unit="rad"),
        ),
        action=(
            Group(name="joints", dim=2, kind=GroupKind.JOINT_POSITION, unit="rad", relative_to="joints"),
            Group(name="gripper", dim=1, kind=GroupKind.GRIPPER, unit="normalized"),
        ),
        control_rate_hz=20.0,
    )


def rolled(height: int, width: int, length: int, seed: int) -> np.ndarray:
    """A coarse random picture moving 3 pixels a frame, so that neighbouring frames are far apart after any codec."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    picture = blocks.repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(picture, 3 * k, 1) for k in range(length)])


@pytest.fixture
def rolled_frames() -> Callable[..., np.ndarray]:
    return rolled


@pytest.fixture
def write_dataset(spec: EmbodimentSpec) -> Callable[..., Path]:
    """Writes a dataset of `spec` with random numbers and moving pictures, and returns its root."""

    def write(root: Path, lengths: Sequence[int] = (7, 12, 5), *, executed: bool = True, seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        features: dict[str, Any] = {
            f"observation.images.{camera.name}": {
                "dtype": "video",
                "shape": [camera.height, camera.width, 3],
                "names": ["height", "width", "channels"],
            }
            for camera in spec.cameras
        }
        numeric = {"observation.state": 3, "action": 3, "observation.environment_state": 2}
        if executed:
            numeric["executed_action"] = 3
        for key, dim in numeric.items():
            features[key] = {"dtype": "float32", "shape": [dim], "names": {"axes": [f"{key}.{i}" for i in range(dim)]}}
        annotations = {"task": "push", "embodiment": spec.to_json()}
        with LeRobotWriter(root, fps=20, features=features, robot_type="toy", annotations=annotations) as writer:
            for number, length in enumerate(lengths):
                arrays = {key: rng.normal(size=(length, dim)).astype(np.float32) for key, dim in numeric.items()}
                for camera in spec.cameras:
                    frames = rolled(camera.height, camera.width, length, 10 * seed + number)
                    arrays[f"observation.images.{camera.name}"] = frames
                writer.add_episode(arrays, "push the block", seed=100 + number)
        return root

    return write


@pytest.fixture
def pack_of(spec: EmbodimentSpec) -> Callable[..., Pack]:
    """A pack in memory, without files."""

    def build(state: np.ndarray, action: np.ndarray, lengths: Sequence[int], **fields: Any) -> Pack:
        length = np.array(lengths, np.int64)
        defaults: dict[str, Any] = {
            "directory": Path("in-memory"),
            "task": "push",
            "source_sha256": "0" * 64,
            "instructions": ("push the block",),
            "spec": spec,
            "image_size": None,
            "state": state,
            "action": action,
            "executed_action": action,
            "environment_state": None,
            "environment_state_names": (),
            "images": {},
            "episode_start": np.cumsum(length) - length,
            "episode_length": length,
            "episode_seed": np.zeros_like(length),
            "episode_instruction": np.zeros_like(length),
        }
        return Pack(**(defaults | fields))

    return build
