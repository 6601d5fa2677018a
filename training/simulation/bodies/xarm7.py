"""The `xarm7` body: a seven-joint arm whose hand is moved and turned in small steps, 20 times a second."""

from __future__ import annotations

from training.simulation.robosuite.arm import RobosuiteArm, pose_delta_spec

ARM = RobosuiteArm(
    robot="XArm7",
    opening_axis=1,
    pads=(
        ("gripper0_right_left_finger_pad_1", "gripper0_right_left_finger_pad_2"),
        ("gripper0_right_right_finger_pad_1", "gripper0_right_right_finger_pad_2"),
    ),
    unseen_bodies=("fixed_mount0_pedestal",),
    unseen_by_wrist=("robot0_link5", "robot0_link6"),
)
SPEC = pose_delta_spec("xarm7", num_joints=7, num_finger_joints=6)
DISTURBANCE_SCALE = 0.4
