"""robosuite's NutAssemblySquare: a square nut with a handle, to be put over the square peg."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.simulation.rendering import FreeView
from training.simulation.robosuite.objects import body_pose, horizontal, is_grasped, quarter_turn_yaw, slope
from training.simulation.robosuite.servo import CLOSE, OPEN, UP, ArmServo
from training.simulation.robosuite.simulation import RobosuiteTask
from training.simulation.rotations import Matrix, Vector, rotation_about

QUARTER_TURN_RAD = 0.5 * np.pi
# Heights of the nut's centre above the table: carried, lower than the peg's tip, low enough to let go.
CARRY_M, AROUND_PEG_M, LOWERED_M, PLACED_M = 0.17, 0.125, 0.04, 0.055
AROUND_PEG_OFFSET_M = 0.015
OUTWARD_M = 0.006  # of the grasp beyond the handle's middle, away from the hole
HANDLE_WIDTH_M = 0.032
RISEN_M = 0.2
FURTHEST_WRIST_RAD = 2.6


class NutAssemblyScene:
    def __init__(self, environment: Any, servo: ArmServo) -> None:
        self._environment, self._servo = environment, servo
        self._nut = environment.nuts[environment.nut_id]
        self._table_m = float(environment.table_offset[2])

    def _pose(self) -> tuple[Vector, Matrix]:
        return body_pose(self._environment, self._environment.obj_body_id[self._nut.name])

    def _peg(self) -> Vector:
        return body_pose(self._environment, self._environment.peg1_body_id)[0]

    def environment_state(self) -> Vector:
        nut, rotation = self._pose()
        return np.concatenate([nut, _outward(rotation)[:2], quarter_turn_yaw(rotation)])

    def expert_action(self) -> Vector:
        nut, nut_rotation = self._pose()
        offset, height = horizontal(nut - self._peg()), nut[2] - self._table_m
        if offset < AROUND_PEG_OFFSET_M and height < PLACED_M:
            return self._release(nut_rotation)
        if is_grasped(self._environment, self._nut):
            return self._carry(nut, nut_rotation)
        return self._grasp(nut, nut_rotation)

    def _grasp(self, nut: Vector, nut_rotation: Matrix) -> Vector:
        servo, outward = self._servo, _outward(nut_rotation)
        rotation = servo.aim(np.cross(UP, outward))
        handle = nut + (0.054 + OUTWARD_M) * outward + 0.003 * UP
        tool, turn = servo.tool_position(), servo.turn_rad(rotation)
        offset = horizontal(handle - tool)
        height = max(slope(offset - 0.008, 4.0, 0.1), slope(turn - 0.1, 0.3, 0.1))
        near = offset < 0.012 and turn < 0.15 and tool[2] - handle[2] < 0.012
        return servo.action(handle + height * UP, rotation, CLOSE if near else OPEN)

    def _carry(self, nut: Vector, nut_rotation: Matrix) -> Vector:
        """Move the nut by what it is away from its place: up, over the peg's tip with its sides along, down."""
        servo, peg = self._servo, self._peg()
        turn_rad = self._turn_rad(nut_rotation)
        offset, height = horizontal(nut - peg), nut[2] - self._table_m
        astray = offset + 0.02 * abs(turn_rad)
        around_peg = offset < AROUND_PEG_OFFSET_M and height < AROUND_PEG_M
        goal_height = LOWERED_M + (0.0 if around_peg else slope(astray - 0.004, 30.0, CARRY_M - LOWERED_M))
        turn = rotation_about(UP, turn_rad)
        rotation = turn @ servo.aim(np.cross(UP, _outward(nut_rotation)))
        goal = np.array([peg[0], peg[1], self._table_m + goal_height])
        tool = servo.tool_position()
        move = goal + turn @ (tool - nut) - tool
        move[:2] *= np.clip(1.5 - (goal[2] - nut[2]) / 0.05, 0.0, 1.0)
        return servo.action(tool + move, rotation, CLOSE)

    def _turn_rad(self, nut_rotation: Matrix) -> float:
        """To the quarter turn that brings the handle nearest to the robot, of those within the wrist's reach."""
        outward = _outward(nut_rotation)
        yaw = np.arctan2(outward[1], outward[0])
        nearest = np.round(yaw / QUARTER_TURN_RAD) * QUARTER_TURN_RAD - yaw
        wrist_rad = self._servo.last_joint_rad()

        def cost(turn_rad: float) -> float:
            beyond = max(0.0, abs(wrist_rad - turn_rad) - FURTHEST_WRIST_RAD)
            return float(np.cos(yaw + turn_rad) + 0.35 * abs(turn_rad) + 10.0 * beyond)

        return min((nearest + QUARTER_TURN_RAD * quarters for quarters in (-2, -1, 0, 1, 2)), key=cost)

    def _release(self, nut_rotation: Matrix) -> Vector:
        """Open where the hand is, then rise."""
        servo = self._servo
        tool = servo.tool_position()
        rotation = servo.aim(np.cross(UP, _outward(nut_rotation)))
        rise = slope(servo.opening_m() - HANDLE_WIDTH_M - 0.015, 4.0, 0.08)
        return servo.action(tool + min(rise, self._table_m + RISEN_M - tool[2]) * UP, rotation, OPEN)


def _outward(nut_rotation: Matrix) -> Vector:
    """The horizontal direction from the hole to the handle."""
    direction = nut_rotation[:, 0] * (1.0, 1.0, 0.0)
    return direction / max(float(np.linalg.norm(direction)), 1e-9)


NUT_ASSEMBLY = RobosuiteTask(
    environment="NutAssemblySquare",
    instruction="put the square nut over the square peg",
    max_steps=350,
    front=FreeView(look_at=(0.02, 0.14, 0.88), distance=0.68, azimuth=-105.0, elevation=-42.0),
    environment_state_names=(
        *("nut_x", "nut_y", "nut_z", "handle_direction_x", "handle_direction_y"),
        *("nut_yaw_sin4", "nut_yaw_cos4"),
    ),
    scene=NutAssemblyScene,
)
