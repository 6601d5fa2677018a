"""Experts of the `aloha` body: joint targets from the true poses of the tools and the objects, one frame alone.

Owns what an expert reads and moves (Arms), its inverse kinematics and the experts' rules. Knows no scene or success.
"""

# mujoco is a C extension: pyright sees few of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from training.simulation.rotations import Matrix, Vector, rotation_about, rotation_vector

FIRST_JOINT = {"left": 0, "right": 8}  # in qpos and ctrl: six joints and two fingers per arm, then the objects
FINGER_CLOSED_M, FINGER_OPEN_M = 0.01844, 0.058
OPEN, CLOSED = 1.0, 0.0
LEAD_RAD = 0.12  # how far ahead of a joint the expert puts its target: the speed


def _axes(x: tuple[float, float, float], y: tuple[float, float, float]) -> Matrix:
    """The rotation whose first column is x and whose second is y made orthogonal to it."""
    first = np.array(x) / np.linalg.norm(x)
    second = np.array(y) - first * (first @ np.array(y))
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)], axis=1)


FROM_RIGHT = _axes((-0.5, 0.0, -np.sqrt(0.75)), (0.0, -1.0, 0.0))
FROM_LEFT = _axes((0.5, 0.0, -np.sqrt(0.75)), (0.0, 1.0, 0.0))
LEVEL_LEFT = _axes((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class ToolGoal:
    """Where a gripper should be, metres, and how far open, as a fraction.

    The pose is solved near `posture` (six joints, the waist's seen from the goal's bearing), and the arm moves there in
    joint space, however its wrist is turned now.
    """

    position: Vector
    rotation: Matrix
    opening: float
    posture: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Pose:
    position: Vector
    rotation: Matrix


class Arms:
    """Both arms of one simulation as an expert sees them."""

    def __init__(self, model: Any, data: Any) -> None:
        self._model, self._data = model, data
        self._solver = {arm: _InverseKinematics(model, arm) for arm in FIRST_JOINT}

    def tool(self, arm: str) -> Pose:
        return self._solver[arm].tool(self._data)

    def opening(self, arm: str) -> float:
        finger = self._data.qpos[FIRST_JOINT[arm] + 6]
        return float((finger - FINGER_CLOSED_M) / (FINGER_OPEN_M - FINGER_CLOSED_M))

    def object(self, body: str) -> Pose:
        first = self._model.jnt_qposadr[self._model.body(body).jntadr[0]]
        position, quaternion = np.split(self._data.qpos[first : first + 7], [3])
        rotation = np.zeros(9)
        mujoco.mju_quat2Mat(rotation, quaternion)
        return Pose(position=position.copy(), rotation=rotation.reshape(3, 3))

    def action(self, goals: Mapping[str, ToolGoal]) -> Vector:
        """One action of the body, left arm first."""
        parts = []
        for arm in FIRST_JOINT:
            parts.append(np.append(self._solver[arm].solve(self._data, goals[arm]), goals[arm].opening))
        return np.concatenate(parts)


# Near these an arm never turns its wrist round: without them the right one does, to the side where the cube lies.
POINTING_DOWN = (0.0, -0.3, 0.8, 0.0, 0.6, 0.0)
REACHING_LEVEL = (0.0, -0.3, 0.8, 0.0, -0.5, 1.57)
MEETING = np.array([0.0, 0.5, 0.25])
LEFT_WAITS = MEETING + (-0.15, 0.0, -0.005)
LEFT_TAKES = MEETING + (-0.003, 0.0, -0.005)
LEFT_LEAVES = MEETING + (-0.1, 0.0, -0.005)
RIGHT_LEAVES = MEETING + (0.15, 0.0, 0.02)
GRASP_HEIGHT_M = 0.018
HELD_OPENING = (0.5, 0.66)  # fraction open of a gripper with the cube in it
RELEASED = 0.75


def hand_over(arms: Arms) -> Vector:
    """The right arm lifts the cube, the left one takes it in the middle."""
    cube = arms.object("box").position
    left, right = arms.tool("left").position, arms.tool("right").position
    if _holds_cube(arms.opening("left"), left, cube):
        free = arms.opening("right") > RELEASED
        take = ToolGoal(
            position=LEFT_LEAVES if free else LEFT_TAKES, rotation=LEVEL_LEFT, opening=CLOSED, posture=REACHING_LEVEL
        )
        give = ToolGoal(
            position=RIGHT_LEAVES if free else MEETING, rotation=FROM_RIGHT, opening=OPEN, posture=POINTING_DOWN
        )
    elif _holds_cube(arms.opening("right"), right, cube):
        there = float(np.linalg.norm(left - LEFT_TAKES)) < 0.015
        meets = float(np.linalg.norm(cube - MEETING)) < 0.05
        take = ToolGoal(
            position=LEFT_TAKES if meets else LEFT_WAITS,
            rotation=LEVEL_LEFT,
            opening=CLOSED if there else OPEN,
            posture=REACHING_LEVEL,
        )
        give = ToolGoal(position=MEETING, rotation=FROM_RIGHT, opening=CLOSED, posture=POINTING_DOWN)
    else:
        take = ToolGoal(position=LEFT_WAITS, rotation=LEVEL_LEFT, opening=OPEN, posture=REACHING_LEVEL)
        give = _grasp(np.array([cube[0], cube[1], GRASP_HEIGHT_M]), right, FROM_RIGHT, POINTING_DOWN)
    return arms.action({"left": take, "right": give})


def _holds_cube(opening: float, tool: Vector, cube: Vector) -> bool:
    return HELD_OPENING[0] < opening < HELD_OPENING[1] and float(np.linalg.norm(tool - cube)) < 0.025


def _grasp(goal: Vector, tool: Vector, rotation: Matrix, posture: tuple[float, ...]) -> ToolGoal:
    """Down to `goal` along a funnel, open until there."""
    offset = float(np.linalg.norm(tool[:2] - goal[:2]))
    height = np.clip(5.0 * (offset - 0.009), 0.0, 0.1)
    near = offset < 0.013 and tool[2] - goal[2] < 0.015
    return ToolGoal(
        position=goal + (0.0, 0.0, height), rotation=rotation, opening=CLOSED if near else OPEN, posture=posture
    )


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the two parts to be joined and how its arm takes it."""

    body: str
    side: float  # of the meeting point along x
    rotation: Matrix
    height_m: float  # of the tool at the grasp
    held_opening: tuple[float, float]


PARTS = {
    "left": Part(body="socket", side=-1.0, rotation=FROM_LEFT, height_m=0.02, held_opening=(0.45, 0.72)),
    "right": Part(body="peg", side=1.0, rotation=FROM_RIGHT, height_m=0.012, held_opening=(0.2, 0.45)),
}
JOINING = np.array([0.0, 0.5, 0.15])
APART_M, JOINED_M = 0.24, 0.092  # between the parts' centres; the peg meets the pin at 0.1
APPROACH_M = 0.025  # how far ahead of the parts their goals are: slower than the arms could


def insert(arms: Arms) -> Vector:
    """Each arm lifts its part, both line up in the middle and push together."""
    held = {arm: _holds_part(arms, arm) for arm in PARTS}
    distance_m = _joining_distance(arms) if all(held.values()) else APART_M
    return arms.action({arm: _carry(arms, arm, distance_m) if held[arm] else _take_part(arms, arm) for arm in PARTS})


def _holds_part(arms: Arms, arm: str) -> bool:
    part, tool = PARTS[arm], arms.tool(arm).position
    thing = arms.object(part.body)
    low, high = part.held_opening
    reach = np.abs(thing.rotation.T @ (tool - thing.position))
    return low < arms.opening(arm) < high and bool((reach < (0.035, 0.012, 0.02)).all())


def _take_part(arms: Arms, arm: str) -> ToolGoal:
    part, tool = PARTS[arm], arms.tool(arm).position
    thing = arms.object(part.body)
    yaw = np.arctan(thing.rotation[1, 0] / thing.rotation[0, 0])
    rotation = rotation_about(np.array([0.0, 0.0, 1.0]), float(yaw)) @ part.rotation
    return _grasp(np.array([*thing.position[:2], part.height_m]), tool, rotation, POINTING_DOWN)


def _carry(arms: Arms, arm: str, distance_m: float) -> ToolGoal:
    """Move the held part, as it lies in the gripper, level and in line to its place."""
    part, tool = PARTS[arm], arms.tool(arm)
    thing = arms.object(part.body)
    place = JOINING + (part.side * distance_m / 2, 0.0, 0.0)
    turn = thing.rotation.T
    return ToolGoal(
        position=place + turn @ (tool.position - thing.position),
        rotation=turn @ tool.rotation,
        opening=CLOSED,
        posture=POINTING_DOWN,
    )


def _joining_distance(arms: Arms) -> float:
    """How near the parts may come: a funnel over how far the peg's tip is off the socket's axis."""
    peg, socket = arms.object("peg"), arms.object("socket")
    tip = peg.position - 0.06 * peg.rotation[:, 0]
    off_axis = float(np.linalg.norm((socket.rotation.T @ (tip - socket.position))[1:]))
    funnel_m = JOINED_M + float(np.clip(10.0 * (off_axis - 0.005), 0.0, APART_M - JOINED_M))
    return max(funnel_m, float(peg.position[0] - socket.position[0]) - APPROACH_M)


class _InverseKinematics:
    """Joint targets a limited way ahead of one arm, towards a pose of its tool."""

    def __init__(self, model: Any, arm: str) -> None:
        self._model, self._scratch = model, mujoco.MjData(model)
        self._site = model.site(f"cali_{arm}_site1").id
        self._base = model.body(f"vx300s_{arm}").id
        self._index = np.arange(FIRST_JOINT[arm], FIRST_JOINT[arm] + 6)
        self._lower, self._upper = model.jnt_range[self._index].T

    def tool(self, data: Any) -> Pose:
        return Pose(
            position=data.site_xpos[self._site].copy(), rotation=data.site_xmat[self._site].reshape(3, 3).copy()
        )

    def solve(self, data: Any, goal: ToolGoal) -> Vector:
        """Damped least squares; joint limits are kept, collisions are not looked at."""
        present = data.qpos[self._index]
        bearing = data.xmat[self._base].reshape(3, 3).T @ (goal.position - data.xpos[self._base])
        near = np.array(goal.posture)
        near[0] += np.arctan2(bearing[1], bearing[0])
        move = self._converge(data, near, goal.position, goal.rotation) - present
        return present + move * min(1.0, LEAD_RAD / max(float(np.abs(move).max()), 1e-9))

    def _converge(self, data: Any, start: Vector, position: Vector, rotation: Matrix) -> Vector:
        scratch, index = self._scratch, self._index
        scratch.qpos[:] = data.qpos
        scratch.qpos[index] = start
        jacobian = np.zeros((6, self._model.nv))
        for _ in range(20):
            mujoco.mj_kinematics(self._model, scratch)
            mujoco.mj_comPos(self._model, scratch)
            turn = rotation_vector(rotation @ scratch.site_xmat[self._site].reshape(3, 3).T)
            error = np.concatenate([position - scratch.site_xpos[self._site], 0.5 * turn])
            if np.linalg.norm(error) < 5e-4:
                break
            mujoco.mj_jacSite(self._model, scratch, jacobian[:3], jacobian[3:], self._site)
            arm = jacobian[:, index] * np.array([1, 1, 1, 0.5, 0.5, 0.5])[:, None]
            step = arm.T @ np.linalg.solve(arm @ arm.T + 1e-4 * np.eye(6), error)
            step *= min(1.0, 0.3 / max(float(np.abs(step).max()), 1e-9))
            scratch.qpos[index] = np.clip(scratch.qpos[index] + step, self._lower, self._upper)
        return scratch.qpos[index].copy()
