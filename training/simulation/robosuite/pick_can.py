"""robosuite's PickPlaceCan: a can in one bin, to be brought into its compartment of the other bin."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.simulation.rendering import FreeView
from training.simulation.robosuite.objects import body_pose, horizontal, is_grasped, slope
from training.simulation.robosuite.servo import CLOSE, OPEN, UP, ArmServo
from training.simulation.robosuite.simulation import RobosuiteTask
from training.simulation.rotations import Matrix, Vector

# From the compartment's centre towards the robot: arms at full stretch do not reach the centre.
DROP_OFFSET_M = np.array([-0.04, -0.05, 0.0])
CARRY_M, DROP_M = 0.2, 0.07  # of the can's centre above the bin's floor
LETTING_GO_M = 0.015  # how far above the height that counts as in the bin the hand begins to open
RISEN_M = 0.3  # of the hand above the bin's floor, when all is done
GRASP_ABOVE_CENTRE_M = 0.02
CAN_WIDTH_M = 0.05
ALONG_X, ALONG_Y = np.eye(3)[:2]


class PickCanScene:
    def __init__(self, environment: Any, servo: ArmServo) -> None:
        self._environment, self._servo = environment, servo
        self._can = environment.objects[environment.object_id]
        self._floor_m = float(environment.bin2_pos[2])

    def _position(self) -> Vector:
        return body_pose(self._environment, self._environment.obj_body_id[self._can.name])[0]

    def environment_state(self) -> Vector:
        return self._position()

    def expert_action(self) -> Vector:
        can = self._position()
        rotation = self._servo.aim(self._servo.nearest_opening((ALONG_X, ALONG_Y)))
        if not self._environment.not_in_bin(can - LETTING_GO_M * UP, self._environment.object_id):
            return self._release(rotation)
        if is_grasped(self._environment, self._can):
            return self._carry(can, rotation)
        return self._grasp(can, rotation)

    def _grasp(self, can: Vector, rotation: Matrix) -> Vector:
        servo = self._servo
        tool, turn = servo.tool_position(), servo.turn_rad(rotation)
        goal = can + GRASP_ABOVE_CENTRE_M * UP
        offset = horizontal(goal - tool)
        height = max(slope(offset - 0.012, 4.0, 0.12), slope(turn - 0.15, 0.3, 0.12))
        near = offset < 0.018 and turn < 0.3 and tool[2] - goal[2] < 0.02
        return servo.action(goal + height * UP, rotation, CLOSE if near else OPEN)

    def _carry(self, can: Vector, rotation: Matrix) -> Vector:
        """Move the can by what it is away from its place, up before it goes sideways."""
        drop = self._environment.target_bin_placements[self._environment.object_id] + DROP_OFFSET_M
        drop[2] = self._floor_m + DROP_M
        move = drop - can
        move[2] += slope(horizontal(move) - 0.03, 4.0, CARRY_M - DROP_M)
        move[:2] *= np.clip(1.5 - move[2] / 0.06, 0.0, 1.0)
        return self._servo.action(self._servo.tool_position() + move, rotation, CLOSE)

    def _release(self, rotation: Matrix) -> Vector:
        """Open where the hand is, then rise."""
        servo = self._servo
        tool = servo.tool_position()
        rise = slope(servo.opening_m() - CAN_WIDTH_M - 0.01, 4.0, 0.1)
        return servo.action(tool + min(rise, self._floor_m + RISEN_M - tool[2]) * UP, rotation, OPEN)


PICK_CAN = RobosuiteTask(
    environment="PickPlaceCan",
    instruction="put the can into its compartment of the bin",
    max_steps=300,
    front=FreeView(look_at=(0.1, -0.14, 0.86), distance=0.82, azimuth=130.0, elevation=-42.0),
    environment_state_names=("can_x", "can_y", "can_z"),
    scene=PickCanScene,
)
