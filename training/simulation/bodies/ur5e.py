"""The `ur5e` body: a six-joint arm with a Robotiq gripper, moved in joint deltas, 20 times a second."""

from __future__ import annotations

from training.simulation.robosuite.arm import RobosuiteArm, joint_delta_spec

ARM = RobosuiteArm(robot="UR5e", unseen_bodies=("fixed_mount0_pedestal",))
SPEC = joint_delta_spec("ur5e", num_joints=6, num_finger_joints=6)
DISTURBANCE_SCALE = 0.4
