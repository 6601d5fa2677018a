"""Names that robots' data sets use become groups; what no name says stays other."""

from __future__ import annotations

import pytest

from policy.embodiment import GroupKind
from training.own_data.dimension_names import runs_of


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            [
                "shoulder_pan.pos",
                "shoulder_lift.pos",
                "elbow_flex.pos",
                "wrist_flex.pos",
                "wrist_roll.pos",
                "gripper.pos",
            ],
            [("joints", 5), ("gripper", 1)],
        ),
        (["main_shoulder_pan", "main_elbow_flex", "main_gripper"], [("joints", 2), ("gripper", 1)]),
        (
            ["left_waist", "left_forearm_roll", "left_gripper", "right_waist", "right_wrist_angle", "right_gripper"],
            [("left_joints", 2), ("left_gripper", 1), ("right_joints", 2), ("right_gripper", 1)],
        ),
        (["panda_joint1", "panda_joint2", "panda_finger_joint1"], [("joints", 2), ("gripper", 1)]),
        (
            ["x", "y", "z", "roll", "pitch", "yaw", "pad", "gripper"],
            [("end_effector_position", 3), ("end_effector_rotation", 3), ("other", 1), ("gripper", 1)],
        ),
        (
            ["eef_pos_x", "eef_pos_y", "eef_rot_x", "qw", "g0", "g1"],
            [("end_effector_position", 2), ("end_effector_rotation", 2), ("gripper", 2)],
        ),
        (["arm_elbow_flex.pos", "x.vel", "y.vel", "theta.vel"], [("joints", 1), ("base", 3)]),
        (["base_x", "base_y", "base_theta"], [("base", 3)]),
        (["base", "shoulder", "elbow"], [("joints", 3)]),
        (["kLeftShoulderPitch", "kLeftElbow", "kRightShoulderYaw"], [("left_joints", 2), ("right_joints", 1)]),
        (["joint_0.vel", "joint_1.vel", "joint_0.effort"], [("joint_velocities", 2), ("other", 1)]),
        (["joint_0", "gripper", "joint_1"], [("joints", 1), ("gripper", 1), ("joints_2", 1)]),
        (["state_0", "state_1"], [("other", 2)]),
    ],
    ids=[
        *("so-100", "so-100 of old", "aloha", "panda", "open-x", "poses", "lekiwi", "base", "a joint called base"),
        *("unitree", "velocities", "a name used twice", "nothing said"),
    ],
)
def test_runs_of_names_become_groups(names: list[str], expected: list[tuple[str, int]]) -> None:
    assert [(run.name, run.dim) for run in runs_of(names)] == expected


def test_a_run_knows_its_kind() -> None:
    assert [run.kind for run in runs_of(["elbow", "x", "rx", "jaw", "left_wheel"])] == [
        GroupKind.JOINT_POSITION,
        GroupKind.END_EFFECTOR_POSITION,
        GroupKind.END_EFFECTOR_ROTATION,
        GroupKind.GRIPPER,
        GroupKind.BASE,
    ]
