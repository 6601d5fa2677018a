"""The `pandaomron` body: a panda on a torso on a wheeled base; the hand is moved and turned, 20 times a second."""

from __future__ import annotations

from training.simulation.robosuite.arm import RobosuiteArm, pose_delta_spec

ARM = RobosuiteArm(robot="PandaOmron", unseen_bodies=("mobilebase0_wheeled_base", "robot0_link0", "robot0_link1"))
SPEC = pose_delta_spec("pandaomron", num_joints=7, num_finger_joints=2, mobile=True)
DISTURBANCE_SCALE = 0.3
