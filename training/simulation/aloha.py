"""gym-aloha's TransferCube on the `aloha` body: two six-joint arms with grippers, absolute joint targets.

Owns the body's spec, its cameras, the seeding of its scenes and its expert. Runs gym-aloha's model on MuJoCo directly,
as its own `env.step` renders three large images every time. One action lasts three of gym-aloha's 50 Hz control steps,
over which the joint targets move in a straight line.
"""

# mujoco is a C extension: pyright sees few of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind, Normalization
from training.simulation.rendering import IMAGE_SIZE, FastRenderer, FreeView
from training.simulation.rotations import Matrix, Vector, rotation_about, rotation_vector
from training.simulation.task import Frame

VIEWS = {
    "top": FreeView(look_at=(0.05, 0.5, 0.1), distance=0.62, azimuth=90.0, elevation=-80.0),
    "front": FreeView(look_at=(0.03, 0.5, 0.15), distance=0.64, azimuth=90.0, elevation=-28.0),
}
CONTROL_STEPS_PER_ACTION = 3
CONTROL_STEP_S = 0.02
ARMS = ("left", "right")
FIRST_JOINT = {"left": 0, "right": 8}  # in qpos and ctrl: six joints and two fingers per arm, then the cube
CUBE = 16
JOINT_LOWER_RAD = (-3.14158, -1.85005, -1.76278, -3.14158, -1.8675, -3.14158)
JOINT_UPPER_RAD = (3.14158, 1.25664, 1.6057, 3.14158, 2.23402, 3.14158)
FINGER_CLOSED_M, FINGER_OPEN_M = 0.01844, 0.058
OPEN, CLOSED = 1.0, 0.0
CUBE_LOW, CUBE_HIGH = (0.0, 0.4, 0.02), (0.2, 0.6, 0.02)  # as in gym-aloha, but at rest: it drops the cube from 5 cm


def _arm_groups(*, action: bool) -> tuple[Group, ...]:
    groups: list[Group] = []
    for arm in ("left", "right"):
        groups += [
            Group(
                name=f"{arm}_arm",
                dim=6,
                kind=GroupKind.JOINT_POSITION,
                unit="rad",
                normalization=Normalization.QUANTILE,
                relative_to=f"{arm}_arm" if action else None,
                lower_limit=JOINT_LOWER_RAD,
                upper_limit=JOINT_UPPER_RAD,
            ),
            Group(
                name=f"{arm}_gripper",
                dim=1,
                kind=GroupKind.GRIPPER,
                unit="fraction open",
                normalization=Normalization.MIN_MAX,
                lower_limit=(0.0,) if action else (),
                upper_limit=(1.0,) if action else (),
            ),
        ]
    return tuple(groups)


ALOHA = EmbodimentSpec(
    name="aloha",
    cameras=tuple(Camera(name=name, height=IMAGE_SIZE, width=IMAGE_SIZE) for name in VIEWS),
    state=_arm_groups(action=False),
    action=_arm_groups(action=True),
    control_rate_hz=1.0 / (CONTROL_STEPS_PER_ACTION * CONTROL_STEP_S),
)


def _axes(x: tuple[float, float, float], y: tuple[float, float, float]) -> Matrix:
    """The rotation whose first column is x and whose second is y made orthogonal to it."""
    first = np.array(x) / np.linalg.norm(x)
    second = np.array(y) - first * (first @ np.array(y))
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)], axis=1)


FROM_RIGHT = _axes((-0.5, 0.0, -np.sqrt(0.75)), (0.0, -1.0, 0.0))
LEVEL_LEFT = _axes((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
MEETING = np.array([0.0, 0.5, 0.25])
LEFT_WAITS = MEETING + (-0.15, 0.0, -0.005)
LEFT_TAKES = MEETING + (-0.003, 0.0, -0.005)
LEFT_LEAVES = MEETING + (-0.1, 0.0, -0.005)
RIGHT_LEAVES = MEETING + (0.15, 0.0, 0.02)
GRASP_HEIGHT_M = 0.018
HELD_OPENING = (0.5, 0.66)  # fraction open of a gripper with the cube in it
RELEASED = 0.75
LEAD_M, LEAD_RAD = 0.03, 0.2  # how far ahead of the arm the expert puts its target: the speed


class AlohaSimulation:
    """TransferCube behind the Simulation protocol."""

    task = "transfer-cube"
    instruction = "hand the cube from the right arm to the left arm"
    spec = ALOHA
    max_steps = 160
    environment_state_names = ("cube_x", "cube_y", "cube_z")

    def __init__(self, task: str = "transfer-cube") -> None:
        from gym_aloha.constants import ASSETS_DIR, START_ARM_POSE

        if task != self.task:
            raise ValueError(f"the aloha body has the task {self.task!r}, not {task!r}")
        self._model: Any = mujoco.MjModel.from_xml_path(str(ASSETS_DIR / "bimanual_viperx_transfer_cube.xml"))
        self._data: Any = mujoco.MjData(self._model)
        self._start = np.array(START_ARM_POSE)
        self._substeps = round(CONTROL_STEP_S / self._model.opt.timestep)
        self._lower = np.concatenate([group.lower_limit for group in ALOHA.action])
        self._upper = np.concatenate([group.upper_limit for group in ALOHA.action])
        self._cube_geom = self._model.geom("red_box").id
        self._table_geom = self._model.geom("table").id
        self._fingers = {
            arm: [self._model.geom(f"vx300s_{arm}/10_{side}_gripper_finger").id for side in ("left", "right")]
            for arm in ARMS
        }
        self._solver = {arm: _InverseKinematics(self._model, arm) for arm in ARMS}
        self._renderer: FastRenderer | None = None
        self._succeeded = False

    def reset(self, seed: int) -> None:
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:CUBE] = self._start
        self._data.qpos[CUBE : CUBE + 3] = np.random.default_rng(seed).uniform(CUBE_LOW, CUBE_HIGH)
        self._data.qpos[CUBE + 3 :] = (1.0, 0.0, 0.0, 0.0)
        self._data.ctrl[:] = self._start
        mujoco.mj_forward(self._model, self._data)
        self._target = self._state()
        self._succeeded = False

    def observe(self) -> Frame:
        if self._renderer is None:
            self._renderer = FastRenderer(self._model, VIEWS)
        return Frame(
            images=self._renderer.render(self._data),
            state=self.state(),
            environment_state=self._data.qpos[CUBE : CUBE + 3].astype(np.float32),
        )

    def state(self) -> npt.NDArray[np.float32]:
        return self._state().astype(np.float32)

    def _state(self) -> Vector:
        qpos = self._data.qpos
        arms = []
        for arm in ARMS:
            first = FIRST_JOINT[arm]
            arms += [qpos[first : first + 6], [(qpos[first + 6] - FINGER_CLOSED_M) / (FINGER_OPEN_M - FINGER_CLOSED_M)]]
        return np.concatenate(arms)

    def step(self, action: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        executed = np.clip(action, self._lower, self._upper).astype(np.float32)
        before, self._target = self._target, executed.astype(np.float64)
        for step in range(1, CONTROL_STEPS_PER_ACTION + 1):
            self._control(before + step / CONTROL_STEPS_PER_ACTION * (self._target - before))
            self._succeeded |= self._transferred()
        return executed

    def _control(self, target: Vector) -> None:
        ctrl = self._data.ctrl
        for arm, part in zip(ARMS, (target[:7], target[7:]), strict=True):
            first = FIRST_JOINT[arm]
            finger = FINGER_CLOSED_M + part[6] * (FINGER_OPEN_M - FINGER_CLOSED_M)
            ctrl[first : first + 6] = part[:6]
            ctrl[first + 6], ctrl[first + 7] = finger, -finger
        mujoco.mj_step(self._model, self._data, self._substeps)

    def _touching(self) -> set[int]:
        """The geoms in contact with the cube."""
        pairs = self._data.contact.geom[: self._data.ncon]
        return set(pairs[(pairs == self._cube_geom).any(axis=1)].ravel().tolist()) - {self._cube_geom}

    def _transferred(self) -> bool:
        """gym-aloha's reward 4: the left gripper touches the cube and the cube does not touch the table."""
        touching = self._touching()
        return self._fingers["left"][0] in touching and self._table_geom not in touching

    def succeeded(self) -> bool:
        return self._succeeded

    def expert(self) -> Iterator[npt.NDArray[np.float32]]:
        while True:
            yield np.clip(self._expert_action(), self._lower, self._upper).astype(np.float32)

    def _expert_action(self) -> Vector:
        """A function of the true state alone: the right arm lifts the cube, the left one takes it in the middle."""
        cube = self._data.qpos[CUBE : CUBE + 3].copy()
        left, right = self._solver["left"], self._solver["right"]
        left_tool, right_tool = left.position(self._data), right.position(self._data)
        state = self._state()
        right_holds = _holds(state[13], right_tool, cube)
        if _holds(state[6], left_tool, cube):
            free = state[13] > RELEASED
            take = (LEFT_LEAVES if free else LEFT_TAKES, LEVEL_LEFT, CLOSED)
            give = (RIGHT_LEAVES if free else MEETING, FROM_RIGHT, OPEN)
        elif right_holds:
            there = float(np.linalg.norm(left_tool - LEFT_TAKES)) < 0.015
            meets = float(np.linalg.norm(cube - MEETING)) < 0.05
            take = (LEFT_TAKES if meets else LEFT_WAITS, LEVEL_LEFT, CLOSED if there else OPEN)
            give = (MEETING, FROM_RIGHT, CLOSED)
        else:
            take = (LEFT_WAITS, LEVEL_LEFT, OPEN)
            give = self._grasp(cube, right_tool)
        return np.concatenate(
            [
                np.append(left.solve(self._data, *take[:2]), take[2]),
                np.append(right.solve(self._data, *give[:2]), give[2]),
            ]
        )

    def _grasp(self, cube: Vector, tool: Vector) -> tuple[Vector, Matrix, float]:
        goal = np.array([cube[0], cube[1], GRASP_HEIGHT_M])
        offset = float(np.linalg.norm(tool[:2] - goal[:2]))
        height = np.clip(5.0 * (offset - 0.009), 0.0, 0.1)
        near = offset < 0.013 and tool[2] - goal[2] < 0.015
        return goal + (0.0, 0.0, height), FROM_RIGHT, CLOSED if near else OPEN

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _holds(opening: float, tool: Vector, cube: Vector) -> bool:
    return HELD_OPENING[0] < opening < HELD_OPENING[1] and float(np.linalg.norm(tool - cube)) < 0.025


class _InverseKinematics:
    """Joint targets a limited way ahead of one arm, towards a pose of its tool."""

    def __init__(self, model: Any, arm: str) -> None:
        self._model, self._scratch = model, mujoco.MjData(model)
        self._site = model.site(f"cali_{arm}_site1").id
        self._index = np.arange(FIRST_JOINT[arm], FIRST_JOINT[arm] + 6)
        self._lower, self._upper = model.jnt_range[self._index].T

    def position(self, data: Any) -> Vector:
        return data.site_xpos[self._site].copy()

    def solve(self, data: Any, position: Vector, rotation: Matrix) -> Vector:
        """Damped least squares from the arm's present joints; limits are kept, collisions are not looked at."""
        start_position, start_rotation = (
            data.site_xpos[self._site].copy(),
            data.site_xmat[self._site].reshape(3, 3).copy(),
        )
        move, turn = position - start_position, rotation_vector(rotation @ start_rotation.T)
        distance_m, angle_rad = float(np.linalg.norm(move)), float(np.linalg.norm(turn))
        position = start_position + move * min(1.0, LEAD_M / max(distance_m, 1e-9))
        if angle_rad > LEAD_RAD:
            rotation = rotation_about(turn / angle_rad, LEAD_RAD) @ start_rotation
        return self._converge(data, position, rotation)

    def _converge(self, data: Any, position: Vector, rotation: Matrix) -> Vector:
        scratch, index = self._scratch, self._index
        scratch.qpos[:] = data.qpos
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
