"""An EmbodimentSpec for a LeRobot dataset that brings none: all its features can say. Kinds and units stay unknown."""

from __future__ import annotations

import math

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind
from training.data.lerobot.layout import DatasetError, frame_shape
from training.data.lerobot.reader import LeRobotReader

STATE_KEY = "observation.state"
ACTION_KEY = "action"
CAMERA_PREFIX = "observation.images."


def camera_name(key: str) -> str:
    return key.removeprefix(CAMERA_PREFIX).removeprefix("observation.")


def camera_key(reader: LeRobotReader, name: str) -> str:
    """The feature of a camera. Raises DatasetError naming the cameras there are."""
    for key in reader.camera_keys:
        if camera_name(key) == name:
            return key
    raise DatasetError(f"{reader.root}: no camera {name!r}, it has {list(map(camera_name, reader.camera_keys))}")


def embodiment_of(reader: LeRobotReader) -> EmbodimentSpec:
    """The spec in the dataset's annotations, or one group a side from its features."""
    annotated = reader.annotations.get("embodiment")
    if annotated is not None:
        return EmbodimentSpec.from_json(annotated)
    cameras = tuple(
        Camera(name=camera_name(key), height=height, width=width)
        for key in reader.camera_keys
        for height, width, _ in [frame_shape(reader.features[key])]
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
