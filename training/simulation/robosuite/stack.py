"""robosuite's Stack: a red cube, to be put on a larger green one."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.simulation.rendering import FreeView
from training.simulation.robosuite.objects import body_pose, horizontal, is_grasped, quarter_turn_yaw, slope
from training.simulation.robosuite.servo import CLOSE, OPEN, UP, ArmServo
from training.simulation.robosuite.simulation import RobosuiteTask
from training.simulation.rotations import Matrix, Vector

STACKED_M = 0.045  # between the centres of the two cubes
CUBE_WIDTH_M = 0.04
RISEN_M = 0.18  # of the hand above the base, when all is done
CROWDED_M, CROWDED_RANGE_M = 0.09, 0.03  # the cubes' distance up to which a finger finds no room between them


class StackScene:
    def __init__(self, environment: Any, servo: ArmServo) -> None:
        self._environment, self._servo = environment, servo

    def _poses(self) -> tuple[Vector, Matrix, Vector]:
        """The cube, its rotation and the position of the base it goes on."""
        cube, rotation = body_pose(self._environment, self._environment.cubeA_body_id)
        return cube, rotation, body_pose(self._environment, self._environment.cubeB_body_id)[0]

    def environment_state(self) -> Vector:
        cube, rotation, base = self._poses()
        return np.concatenate([cube, quarter_turn_yaw(rotation), base])

    def expert_action(self) -> Vector:
        cube, cube_rotation, base = self._poses()
        above = cube - base - STACKED_M * UP
        # With the cube in hand the side is settled: a choice by the base's direction would turn it over the base.
        level = self._servo.aim(self._servo.nearest_opening(cube_rotation[:, :2].T))
        if horizontal(above) < 0.02 and abs(above[2]) < 0.006:
            return self._release(base, level)
        if is_grasped(self._environment, self._environment.cubeA):
            return self._carry(above, level)
        return self._grasp(cube, self._servo.aim(self._opening(cube, cube_rotation, base)))

    def _opening(self, cube: Vector, cube_rotation: Matrix, base: Vector) -> Vector:
        """The side of the cube to take: that of the least turn, unless a finger would come down on the base."""
        apart = (base - cube) * (1.0, 1.0, 0.0)
        nearness = 1.0 - slope(horizontal(apart) - CROWDED_M, 1.0 / CROWDED_RANGE_M, 1.0)
        crowded = apart / max(horizontal(apart), 1e-9) * nearness
        present = self._servo.opening_direction()
        return max(cube_rotation[:, :2].T, key=lambda axis: abs(axis @ present) - 1.5 * abs(axis @ crowded))

    def _grasp(self, cube: Vector, rotation: Matrix) -> Vector:
        servo = self._servo
        tool, turn = servo.tool_position(), servo.turn_rad(rotation)
        offset = horizontal(cube - tool)
        height = max(slope(offset - 0.008, 4.0, 0.08), slope(turn - 0.1, 0.3, 0.08))
        near = offset < 0.012 and turn < 0.15 and tool[2] - cube[2] < 0.015
        return servo.action(cube + height * UP, rotation, CLOSE if near else OPEN)

    def _carry(self, above: Vector, rotation: Matrix) -> Vector:
        """Move the cube by what it is away from its place, up before it goes sideways."""
        move = -above + slope(horizontal(above) - 0.008, 4.0, 0.08) * UP
        move[:2] *= np.clip(1.5 - move[2] / 0.04, 0.0, 1.0)
        return self._servo.action(self._servo.tool_position() + move, rotation, CLOSE)

    def _release(self, base: Vector, rotation: Matrix) -> Vector:
        """Open where the hand is, then rise."""
        servo = self._servo
        tool = servo.tool_position()
        rise = slope(servo.opening_m() - CUBE_WIDTH_M - 0.015, 4.0, 0.08)
        return servo.action(tool + min(rise, base[2] + RISEN_M - tool[2]) * UP, rotation, OPEN)


STACK = RobosuiteTask(
    environment="Stack",
    instruction="put the red cube on the green cube",
    max_steps=280,
    front=FreeView(look_at=(0.0, 0.0, 0.87), distance=0.5, azimuth=140.0, elevation=-35.0),
    environment_state_names=(
        *("cube_x", "cube_y", "cube_z", "cube_yaw_sin4", "cube_yaw_cos4"),
        *("base_x", "base_y", "base_z"),
    ),
    scene=StackScene,
)
