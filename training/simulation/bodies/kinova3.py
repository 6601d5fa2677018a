"""The `kinova3` body: a seven-joint arm with a Robotiq gripper, moved in joint deltas, 20 times a second."""

from __future__ import annotations

from training.simulation.robosuite.arm import RobosuiteArm, joint_delta_spec

ARM = RobosuiteArm(robot="Kinova3", unseen_bodies=("fixed_mount0_pedestal",), unseen_by_wrist=("robot0_Bracelet_Link",))
SPEC = joint_delta_spec("kinova3", num_joints=7, num_finger_joints=6)
DISTURBANCE_SCALE = 0.4
