"""What a body that robosuite simulates is made of: its description for the simulation and the shape of its spec.

Imports no simulator, as bodies are read without one.
"""

from __future__ import annotations

from dataclasses import dataclass

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind, Normalization, Representation
from training.simulation.task import IMAGE_SIZE

CONTROL_RATE_HZ = 20.0
JOINT_STEP_RAD = 0.1  # of an action of 1
POSITION_STEP_M, ROTATION_STEP_RAD = 0.05, 0.5


@dataclass(frozen=True, kw_only=True)
class RobosuiteArm:
    """One of robosuite's robots.

    `opening_axis` is the axis of the gripper's site along which the fingers open; the site's z axis is the approach.
    `pads` names the finger pads, left and right, where the model lacks those that robosuite declares for it.
    `unseen_bodies` are hidden from every camera: large meshes out of all views but for a corner. `unseen_by_wrist`
    are never in the picture of the wrist's camera.
    """

    robot: str
    opening_axis: int = 0
    pads: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    unseen_bodies: tuple[str, ...] = ()
    unseen_by_wrist: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.opening_axis not in (0, 1):
            raise ValueError(f"opening_axis is {self.opening_axis}, expected 0 or 1: z is the approach")


def joint_delta_spec(name: str, *, num_joints: int, num_finger_joints: int) -> EmbodimentSpec:
    """An arm moved in joint deltas."""
    return EmbodimentSpec(
        name=name,
        cameras=_cameras(),
        state=_state(num_joints, num_finger_joints),
        action=(
            Group(
                name="arm",
                dim=num_joints,
                kind=GroupKind.JOINT_POSITION,
                unit="0.1 rad",
                representation=Representation.DELTA,
                normalization=Normalization.QUANTILE,
                lower_limit=(-1.0,) * num_joints,
                upper_limit=(1.0,) * num_joints,
            ),
            _gripper(),
        ),
        control_rate_hz=CONTROL_RATE_HZ,
    )


def pose_delta_spec(name: str, *, num_joints: int, num_finger_joints: int, mobile: bool = False) -> EmbodimentSpec:
    """An arm whose hand is moved and turned in the world's axes; `mobile` adds a torso, a base and their mode."""
    return EmbodimentSpec(
        name=name,
        cameras=_cameras(),
        state=_state(num_joints, num_finger_joints),
        action=(
            _delta("position", 3, GroupKind.END_EFFECTOR_POSITION, "5 cm", Normalization.QUANTILE),
            _delta("rotation", 3, GroupKind.END_EFFECTOR_ROTATION, "0.5 rad", Normalization.QUANTILE),
            *(_mobile_groups() if mobile else ()),
            _gripper(),
            *((_mode(),) if mobile else ()),
        ),
        control_rate_hz=CONTROL_RATE_HZ,
    )


def _cameras() -> tuple[Camera, ...]:
    return tuple(Camera(name=name, height=IMAGE_SIZE, width=IMAGE_SIZE) for name in ("front", "wrist"))


def _state(num_joints: int, num_finger_joints: int) -> tuple[Group, ...]:
    fingers_unit = "m" if num_finger_joints == 2 else "rad"
    return (
        Group(
            name="arm",
            dim=num_joints,
            kind=GroupKind.JOINT_POSITION,
            unit="rad",
            normalization=Normalization.MIN_MAX,
        ),
        Group(
            name="fingers",
            dim=num_finger_joints,
            kind=GroupKind.GRIPPER,
            unit=fingers_unit,
            normalization=Normalization.MIN_MAX,
        ),
    )


def _delta(name: str, dim: int, kind: GroupKind, unit: str, normalization: Normalization) -> Group:
    return Group(
        name=name,
        dim=dim,
        kind=kind,
        unit=unit,
        representation=Representation.DELTA,
        normalization=normalization,
        lower_limit=(-1.0,) * dim,
        upper_limit=(1.0,) * dim,
    )


def _mobile_groups() -> tuple[Group, ...]:
    """The expert never moves them: a constant has no statistics, so they stay as they are."""
    return (
        _delta("torso", 1, GroupKind.OTHER, "fraction of the range", Normalization.IDENTITY),
        _delta("base", 3, GroupKind.BASE, "fraction of the range", Normalization.IDENTITY),
    )


def _gripper() -> Group:
    return _switch("gripper", GroupKind.GRIPPER, "1 closes, -1 opens")


def _mode() -> Group:
    return _switch("mode", GroupKind.OTHER, "1 moves the base, -1 the arm")


def _switch(name: str, kind: GroupKind, unit: str) -> Group:
    return Group(
        name=name,
        dim=1,
        kind=kind,
        unit=unit,
        representation=Representation.ABSOLUTE,
        normalization=Normalization.IDENTITY,
        lower_limit=(-1.0,),
        upper_limit=(1.0,),
    )
