"""The `aloha` body: two six-joint arms with grippers, absolute joint targets, one per three 50 Hz control steps."""

from __future__ import annotations

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind, Normalization
from training.simulation.task import IMAGE_SIZE

DISTURBANCE_SCALE = 0.04
JOINT_LOWER_RAD = (-3.14158, -1.85005, -1.76278, -3.14158, -1.8675, -3.14158)
JOINT_UPPER_RAD = (3.14158, 1.25664, 1.6057, 3.14158, 2.23402, 3.14158)


def _arm_groups(*, action: bool) -> tuple[Group, ...]:
    groups: list[Group] = []
    for arm in ("left", "right"):
        groups += [
            Group(
                name=f"{arm}_arm",
                dim=6,
                kind=GroupKind.JOINT_POSITION,
                unit="rad",
                normalization=Normalization.QUANTILE,
                relative_to=f"{arm}_arm" if action else None,
                lower_limit=JOINT_LOWER_RAD,
                upper_limit=JOINT_UPPER_RAD,
            ),
            Group(
                name=f"{arm}_gripper",
                dim=1,
                kind=GroupKind.GRIPPER,
                unit="fraction open",
                normalization=Normalization.MIN_MAX,
                lower_limit=(0.0,) if action else (),
                upper_limit=(1.0,) if action else (),
            ),
        ]
    return tuple(groups)


SPEC = EmbodimentSpec(
    name="aloha",
    cameras=tuple(Camera(name=name, height=IMAGE_SIZE, width=IMAGE_SIZE) for name in ("top", "front")),
    state=_arm_groups(action=False),
    action=_arm_groups(action=True),
    control_rate_hz=1.0 / (3 * 0.02),
)
