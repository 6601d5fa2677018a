"""The `panda` body: a seven-joint arm with two fingers, moved in joint deltas, 20 times a second."""

from __future__ import annotations

from training.simulation.robosuite.arm import RobosuiteArm, joint_delta_spec

ARM = RobosuiteArm(
    robot="Panda",
    unseen_bodies=("fixed_mount0_pedestal", "robot0_link0", "robot0_link1", "robot0_link2"),
)
SPEC = joint_delta_spec("panda", num_joints=7, num_finger_joints=2)
DISTURBANCE_SCALE = 0.4
