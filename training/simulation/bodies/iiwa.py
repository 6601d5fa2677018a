"""The `iiwa` body: a seven-joint arm with a Robotiq gripper, moved in joint deltas, 20 times a second."""

from __future__ import annotations

from training.simulation.robosuite.arm import RobosuiteArm, joint_delta_spec

ARM = RobosuiteArm(
    robot="IIWA", unseen_bodies=("fixed_mount0_pedestal",), unseen_by_wrist=("robot0_link_6", "robot0_link_7")
)
SPEC = joint_delta_spec("iiwa", num_joints=7, num_finger_joints=6)
DISTURBANCE_SCALE = 0.4
