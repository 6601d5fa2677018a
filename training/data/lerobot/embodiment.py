"""An EmbodimentSpec for a LeRobot dataset that brings none: all its features can say. Kinds and units stay unknown."""

from __future__ import annotations

import math

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind
from training.data.lerobot.layout import DatasetError
from training.data.lerobot.reader import LeRobotReader

STATE_KEY = "observation.state"
ACTION_KEY = "action"
CAMERA_PREFIX = "observation.images."


def embodiment_of(reader: LeRobotReader) -> EmbodimentSpec:
    """The spec in the dataset's annotations, or one group a side from its features."""
    annotated = reader.annotations.get("embodiment")
    if annotated is not None:
        return EmbodimentSpec.from_json(annotated)
    cameras = tuple(
        Camera(
            name=key.removeprefix(CAMERA_PREFIX),
            height=reader.features[key]["shape"][0],
            width=reader.features[key]["shape"][1],
        )
        for key in reader.camera_keys
    )
    return EmbodimentSpec(
        name=reader.robot_type,
        cameras=cameras,
        state=(_group(reader, STATE_KEY, "state"),),
        action=(_group(reader, ACTION_KEY, "action"),),
        control_rate_hz=reader.fps,
    )


def _group(reader: LeRobotReader, key: str, name: str) -> Group:
    if key not in reader.numeric_keys:
        raise DatasetError(f"{reader.root}: no numeric feature {key!r}, it has {list(reader.numeric_keys)}")
    return Group(name=name, dim=math.prod(reader.features[key]["shape"]), kind=GroupKind.OTHER, unit="unknown")
