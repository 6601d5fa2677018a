"""The `sawyer` body: Meta-World's hand, moved in small Cartesian steps, 80 times a second."""

from __future__ import annotations

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind, Normalization, Representation
from training.simulation.task import IMAGE_SIZE

DISTURBANCE_SCALE = 0.5

SPEC = EmbodimentSpec(
    name="sawyer",
    cameras=tuple(Camera(name=name, height=IMAGE_SIZE, width=IMAGE_SIZE) for name in ("left", "right")),
    state=(
        Group(name="hand", dim=3, kind=GroupKind.END_EFFECTOR_POSITION, unit="m", normalization=Normalization.MIN_MAX),
        Group(
            name="gripper", dim=1, kind=GroupKind.GRIPPER, unit="fraction open", normalization=Normalization.IDENTITY
        ),
    ),
    action=(
        Group(
            name="hand",
            dim=3,
            kind=GroupKind.END_EFFECTOR_POSITION,
            unit="cm",
            representation=Representation.DELTA,
            normalization=Normalization.IDENTITY,
            lower_limit=(-1.0,) * 3,
            upper_limit=(1.0,) * 3,
        ),
        Group(
            name="gripper",
            dim=1,
            kind=GroupKind.GRIPPER,
            unit="effort, 1 closes",
            normalization=Normalization.IDENTITY,
            lower_limit=(-1.0,),
            upper_limit=(1.0,),
        ),
    ),
    control_rate_hz=80.0,
)
