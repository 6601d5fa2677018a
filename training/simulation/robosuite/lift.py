"""robosuite's Lift: one cube on a table, to be taken up."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.simulation.rendering import FreeView
from training.simulation.robosuite.objects import body_pose, horizontal, is_grasped, quarter_turn_yaw
from training.simulation.robosuite.servo import CLOSE, OPEN, ArmServo
from training.simulation.robosuite.simulation import RobosuiteTask
from training.simulation.rotations import Vector

LIFTED_M = 0.92


class LiftScene:
    def __init__(self, environment: Any, servo: ArmServo) -> None:
        self._environment, self._servo = environment, servo

    def environment_state(self) -> Vector:
        position, rotation = body_pose(self._environment, self._environment.cube_body_id)
        return np.append(position, quarter_turn_yaw(rotation))

    def expert_action(self) -> Vector:
        """Come down over the cube along a funnel, close, lift."""
        servo = self._servo
        cube, cube_rotation = body_pose(self._environment, self._environment.cube_body_id)
        tool = servo.tool_position()
        offset = horizontal(cube - tool)
        rotation = servo.aim(servo.nearest_opening(cube_rotation[:, :2].T))
        turn = servo.turn_rad(rotation)
        if is_grasped(self._environment, self._environment.cube):
            return servo.action(np.array([cube[0], cube[1], LIFTED_M]), rotation, CLOSE)
        height = np.clip(max(4.0 * (offset - 0.008), 0.3 * (turn - 0.1)), 0.0, 0.08)
        near = offset < 0.012 and turn < 0.15 and tool[2] - cube[2] < 0.015
        return servo.action(cube + (0.0, 0.0, height), rotation, CLOSE if near else OPEN)


LIFT = RobosuiteTask(
    environment="Lift",
    instruction="lift the cube",
    max_steps=120,
    front=FreeView(look_at=(-0.03, 0.0, 0.88), distance=0.5, azimuth=140.0, elevation=-35.0),
    environment_state_names=("cube_x", "cube_y", "cube_z", "cube_yaw_sin4", "cube_yaw_cos4"),
    scene=LiftScene,
)
