"""Moves the point between a gripper's finger pads towards a pose: what all robosuite experts are written in.

Keeps nothing between two calls but the posture of the reset, so that the same state gives the same action.
"""

# mujoco is a C extension: pyright sees few of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mujoco
import numpy as np

from policy.embodiment import EmbodimentSpec, GroupKind, group_slices
from training.simulation.robosuite.arm import JOINT_STEP_RAD, POSITION_STEP_M, ROTATION_STEP_RAD, RobosuiteArm
from training.simulation.rotations import Matrix, Vector, rotation_between, rotation_vector

OPEN, CLOSE = -1.0, 1.0
UP = np.array([0.0, 0.0, 1.0])
FARTHEST_M, FARTHEST_RAD = 0.06, 0.25  # that a joint-space step looks ahead
DAMPING = 2.5e-3
POSTURE_GAIN = 0.05


class ArmServo:
    """The hand of one robot as experts see and move it."""

    def __init__(self, environment: Any, arm: RobosuiteArm, spec: EmbodimentSpec) -> None:
        robot = environment.robots[0]
        self._model, self._data = environment.sim.model._model, environment.sim.data._data
        self._site = robot.eef_site_id["right"]
        controller = robot.part_controllers["right"]
        self._qpos, self._qvel = np.array(controller.qpos_index), np.array(controller.qvel_index)
        self._opening_axis = arm.opening_axis
        self._left_pad, self._right_pad = (self._geoms(names) for names in arm.pads or _declared_pads(robot))
        self._columns = {group.name: columns for group, columns in group_slices(spec.action)}
        self._moves_joints = spec.action[0].kind is GroupKind.JOINT_POSITION
        self._still = np.zeros(spec.action_dim)
        if "mode" in self._columns:
            self._still[self._columns["mode"]] = -1.0
        self._rest = np.zeros(len(self._qpos))

    def _geoms(self, names: Iterable[str]) -> list[int]:
        return [self._model.geom(name).id for name in names]

    def reset(self) -> None:
        """Take the present posture for the one at rest."""
        self._rest = self._data.qpos[self._qpos].copy()

    def rotation(self) -> Matrix:
        return self._data.site_xmat[self._site].reshape(3, 3).copy()

    def opening_direction(self) -> Vector:
        return self.rotation()[:, self._opening_axis]

    def tool_position(self) -> Vector:
        """Where the pads are along the approach axis: those of a Robotiq advance as they close."""
        data, approach = self._data, self.rotation()[:, 2]
        left, right = self._pad_centres()
        return data.site_xpos[self._site] + approach * (approach @ (0.5 * (left + right) - data.site_xpos[self._site]))

    def opening_m(self) -> float:
        """Distance of the pads' centres."""
        left, right = self._pad_centres()
        return float(np.linalg.norm(left - right))

    def _pad_centres(self) -> tuple[Vector, Vector]:
        centres = self._data.geom_xpos
        return centres[self._left_pad].mean(axis=0), centres[self._right_pad].mean(axis=0)

    def last_joint_rad(self) -> float:
        """Of the wrist, which turns the hand about its approach."""
        return float(self._data.qpos[self._qpos[-1]])

    def nearest_opening(self, directions: Iterable[Vector]) -> Vector:
        """The direction, as it is or reversed, that takes the least turn to open along."""
        opening = self.opening_direction()
        return max(directions, key=lambda direction: abs(direction @ opening))

    def aim(self, opening: Vector, approach: Vector = -UP) -> Matrix:
        """The nearest rotation that approaches along `approach` and opens along plus or minus `opening`."""
        rotation = rotation_between(self.rotation()[:, 2], approach) @ self.rotation()
        present = rotation[:, self._opening_axis]
        wanted = opening - approach * (opening @ approach)
        return rotation_between(present, wanted * np.sign(present @ wanted)) @ rotation

    def turn_rad(self, rotation: Matrix) -> float:
        """The angle that is left to `rotation`."""
        return float(np.linalg.norm(rotation_vector(rotation @ self.rotation().T)))

    def action(self, position: Vector, rotation: Matrix, grip: float, *, gain: float = 1.3) -> Vector:
        """The action, limits not yet applied, that moves the tool towards a pose."""
        move, turn = position - self.tool_position(), rotation_vector(rotation @ self.rotation().T)
        action = self._still.copy()
        if self._moves_joints:
            action[self._columns["arm"]] = self._joint_steps(move, turn, gain)
        else:
            action[self._columns["position"]] = _within(gain * move / POSITION_STEP_M)
            action[self._columns["rotation"]] = _within(gain * turn / ROTATION_STEP_RAD)
        action[self._columns["gripper"]] = grip
        return action

    def _joint_steps(self, move: Vector, turn: Vector, gain: float) -> Vector:
        """Damped least squares, in steps of JOINT_STEP_RAD; the null space pulls to the posture at rest."""
        jacobian = np.zeros((6, self._model.nv))
        mujoco.mj_jacSite(self._model, self._data, jacobian[:3], jacobian[3:], self._site)
        jacobian = jacobian[:, self._qvel]
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + DAMPING * np.eye(6))
        step = gain * inverse @ np.concatenate([_shorten(move, FARTHEST_M), _shorten(turn, FARTHEST_RAD)])
        null_space = np.eye(len(step)) - inverse @ jacobian
        step += null_space @ (POSTURE_GAIN * (self._rest - self._data.qpos[self._qpos]))
        return _within(step / JOINT_STEP_RAD)


def _declared_pads(robot: Any) -> tuple[list[str], list[str]]:
    geoms = robot.gripper["right"].important_geoms
    return geoms["left_fingerpad"], geoms["right_fingerpad"]


def _within(command: Vector) -> Vector:
    """The command, shortened so that no element is beyond 1."""
    return command / max(1.0, float(np.abs(command).max()))


def _shorten(vector: Vector, limit: float) -> Vector:
    return vector * min(1.0, limit / max(float(np.linalg.norm(vector)), 1e-9))
