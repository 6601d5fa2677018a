"""What a dimension's name says of it: which part of a robot, by the names that LeRobot's robots and conversions use.

SO-100 ("shoulder_pan.pos"), ALOHA ("left_waist"), Franka ("panda_joint1", "x", "roll"), LeKiwi ("x.vel"), Unitree
("kLeftShoulderPitch"). These are guesses for a person to settle; nothing is trained on them unseen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from policy.embodiment import GroupKind

_GRIPPER = {"gripper", "grippers", "finger", "fingers", "jaw", "claw"}
_WHEELS = {"wheel", "wheels", "chassis"}
_JOINT = {
    "joint", "joints", "qpos", "shoulder", "elbow", "forearm", "wrist", "waist", "torso", "neck", "head", "hip",
    "knee", "ankle", "thumb", "motor", "motors",
}  # fmt: skip
_LIMB = {"arm", "leg", "hand", "base"}
_VELOCITY = {"vel", "velocity", "velocities", "qvel", "speed"}
_FORCE = {"effort", "torque", "force", "current", "load"}
_ROTATION = {
    "roll", "pitch", "yaw", "rx", "ry", "rz", "qx", "qy", "qz", "qw", "wx", "wy", "wz", "rot", "rotation", "rpy",
    "quat", "quaternion", "orientation", "euler", "rotvec",
}  # fmt: skip
_POSITION = {"x", "y", "z", "px", "py", "pz", "dx", "dy", "dz", "xyz", "translation"}
_TOOL = {"ee", "eef", "tcp", "effector"}
_GROUP_NAMES = {
    GroupKind.JOINT_POSITION: "joints",
    GroupKind.JOINT_VELOCITY: "joint_velocities",
    GroupKind.END_EFFECTOR_POSITION: "end_effector_position",
    GroupKind.END_EFFECTOR_ROTATION: "end_effector_rotation",
    GroupKind.GRIPPER: "gripper",
    GroupKind.BASE: "base",
    GroupKind.OTHER: "other",
}


@dataclass(frozen=True, kw_only=True)
class DimensionRun:
    """Neighbouring dimensions of one kind, on one side of the robot."""

    name: str
    kind: GroupKind
    dim: int


def runs_of(names: Sequence[str]) -> list[DimensionRun]:
    """Runs of dimensions whose names say the same kind and side, named after both; a name used twice gets a number."""
    runs: list[tuple[str, GroupKind, int]] = []
    for name in names:
        side, kind = side_of(name), kind_of(name)
        if runs and runs[-1][:2] == (side, kind):
            runs[-1] = (side, kind, runs[-1][2] + 1)
        else:
            runs.append((side, kind, 1))
    used = Counter[str]()
    found = []
    for side, kind, dim in runs:
        name = f"{side}_{_GROUP_NAMES[kind]}" if side else _GROUP_NAMES[kind]
        used[name] += 1
        found.append(DimensionRun(name=name if used[name] == 1 else f"{name}_{used[name]}", kind=kind, dim=dim))
    return found


def side_of(name: str) -> str:
    """ "left", "right" or nothing."""
    return next((word for word in _words(name) if word in ("left", "right")), "")


def kind_of(name: str) -> GroupKind:
    words = set(_words(name))
    if words & _FORCE:
        return GroupKind.OTHER
    if words & _GRIPPER or re.fullmatch(r"g\d+", name.lower()):
        return GroupKind.GRIPPER
    if words & _WHEELS or _is_base_motion(words):
        return GroupKind.BASE
    if words & _JOINT:
        return GroupKind.JOINT_VELOCITY if words & _VELOCITY else GroupKind.JOINT_POSITION
    if words & _ROTATION:
        return GroupKind.END_EFFECTOR_ROTATION
    if words & (_POSITION | _TOOL):
        return GroupKind.END_EFFECTOR_POSITION
    if words & _LIMB:
        return GroupKind.JOINT_VELOCITY if words & _VELOCITY else GroupKind.JOINT_POSITION
    return GroupKind.OTHER


def _is_base_motion(words: set[str]) -> bool:
    """A mobile base moves in x, y and heading; an arm's joint called base does not."""
    axes = words & (_POSITION | _ROTATION | {"theta", "vx", "vy", "vz", "linear", "angular"})
    return bool(axes and words & ({"base"} | _VELOCITY) and not words & _TOOL) or "theta" in words


def _words(name: str) -> list[str]:
    """Lower-case words of snake_case, dotted and camelCase names, digits left out."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
