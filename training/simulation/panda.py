"""robosuite's Lift on the `panda` body: a seven-joint arm moved in joint deltas, 20 times a second.

Owns the body's spec, its cameras, the seeding of its scenes and its expert. Soft resets only: the compiled model, hence
the cube's size and the renderer, stay the same for every scene.
"""

# mujoco is a C extension: pyright sees few of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind, Normalization, Representation
from training.simulation.rendering import IMAGE_SIZE, FastRenderer, FreeView, ModelView
from training.simulation.rotations import Matrix, Vector, rotation_between, rotation_vector
from training.simulation.task import Frame

VIEWS = {
    "front": FreeView(look_at=(-0.03, 0.0, 0.88), distance=0.5, azimuth=140.0, elevation=-35.0),
    "wrist": ModelView(camera="robot0_eye_in_hand"),
}
COLLISION_GEOM_GROUP = 0
# Out of both views but for a corner, and half of the triangles: hiding them nearly halves the time of an image.
UNSEEN_BODIES = ("fixed_mount0_pedestal", "robot0_link0", "robot0_link1", "robot0_link2")
JOINT_STEP_RAD = 0.1
OPEN, CLOSE = -1.0, 1.0
TABLE_HEIGHT_M = 0.8

PANDA = EmbodimentSpec(
    name="panda",
    cameras=tuple(Camera(name=name, height=IMAGE_SIZE, width=IMAGE_SIZE) for name in VIEWS),
    state=(
        Group(name="arm", dim=7, kind=GroupKind.JOINT_POSITION, unit="rad", normalization=Normalization.MIN_MAX),
        Group(name="fingers", dim=2, kind=GroupKind.GRIPPER, unit="m", normalization=Normalization.MIN_MAX),
    ),
    action=(
        Group(
            name="arm",
            dim=7,
            kind=GroupKind.JOINT_POSITION,
            unit="0.1 rad",
            representation=Representation.DELTA,
            normalization=Normalization.QUANTILE,
            lower_limit=(-1.0,) * 7,
            upper_limit=(1.0,) * 7,
        ),
        Group(
            name="gripper",
            dim=1,
            kind=GroupKind.GRIPPER,
            unit="1 closes, -1 opens",
            representation=Representation.ABSOLUTE,
            normalization=Normalization.IDENTITY,
            lower_limit=(-1.0,),
            upper_limit=(1.0,),
        ),
    ),
    control_rate_hz=20.0,
)

_JOINT_DELTA = {
    "type": "JOINT_POSITION",
    "input_type": "delta",
    "input_min": -1,
    "input_max": 1,
    "output_min": -JOINT_STEP_RAD,
    "output_max": JOINT_STEP_RAD,
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "qpos_limits": None,
    "interpolation": None,
    "ramp_ratio": 0.2,
    "gripper": {"type": "GRIP"},
}


class PandaSimulation:
    """Lift behind the Simulation protocol."""

    task = "lift"
    instruction = "lift the cube"
    spec = PANDA
    max_steps = 120
    environment_state_names = ("cube_x", "cube_y", "cube_z", "cube_yaw_sin4", "cube_yaw_cos4")

    def __init__(self, task: str = "lift") -> None:
        if task != self.task:
            raise ValueError(f"the panda body has the task {self.task!r}, not {task!r}")
        self._environment = _make_environment()
        self._model, self._data = self._environment.sim.model._model, self._environment.sim.data._data
        robot = self._environment.robots[0]
        controller = robot.part_controllers["right"]
        self._joint_qpos, self._joint_qvel = np.array(controller.qpos_index), np.array(controller.qvel_index)
        self._finger_qpos = np.array(robot._ref_gripper_joint_pos_indexes["right"])
        self._cube = self._environment.cube_body_id
        self._servo = ArmServo(self._model, self._data, robot.eef_site_id["right"], self._joint_qpos, self._joint_qvel)
        self._renderer: FastRenderer | None = None
        self._succeeded = False

    def reset(self, seed: int) -> None:
        environment = self._environment
        # env.rng alone is not enough: the placement samplers keep the generator they were built with.
        environment.rng = np.random.default_rng(seed)
        environment.placement_initializer.rng = environment.rng
        environment.reset()
        self._servo.rest = self._data.qpos[self._joint_qpos].copy()
        self._succeeded = False

    def observe(self) -> Frame:
        if self._renderer is None:
            self._renderer = self._make_renderer()
        position, rotation = self._cube_pose()
        yaw = np.arctan2(rotation[1, 0], rotation[0, 0])
        return Frame(
            images=self._renderer.render(self._data),
            state=self.state(),
            environment_state=np.append(position, [np.sin(4 * yaw), np.cos(4 * yaw)]).astype(np.float32),
        )

    def state(self) -> npt.NDArray[np.float32]:
        return self._data.qpos[np.concatenate([self._joint_qpos, self._finger_qpos])].astype(np.float32)

    def _make_renderer(self) -> FastRenderer:
        unseen = [self._model.body(name).id for name in UNSEEN_BODIES]
        self._model.geom_group[np.isin(self._model.geom_bodyid, unseen)] = COLLISION_GEOM_GROUP
        return FastRenderer(self._model, VIEWS, hidden_geom_groups=(COLLISION_GEOM_GROUP,))

    def step(self, action: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        executed = np.clip(action, -1.0, 1.0).astype(np.float32)
        self._environment.step(executed.astype(np.float64))
        self._succeeded |= bool(self._environment._check_success())
        return executed

    def succeeded(self) -> bool:
        return self._succeeded

    def expert(self) -> Iterator[npt.NDArray[np.float32]]:
        while True:
            yield np.clip(self._expert_action(), -1.0, 1.0).astype(np.float32)

    def _expert_action(self) -> Vector:
        """Come down over the cube along a funnel, close, lift."""
        servo, (cube, cube_rotation) = self._servo, self._cube_pose()
        tool = servo.tool_position()
        offset = float(np.linalg.norm(cube[:2] - tool[:2]))
        rotation = servo.aim(max(cube_rotation[:, :2].T, key=lambda axis: abs(axis @ servo.rotation()[:, 1])))
        turn = float(np.linalg.norm(rotation_vector(rotation @ servo.rotation().T)))
        if self._holds_cube():
            return servo.action(np.array([cube[0], cube[1], TABLE_HEIGHT_M + 0.12]), rotation, CLOSE)
        height = np.clip(max(4.0 * (offset - 0.008), 0.3 * (turn - 0.1)), 0.0, 0.08)
        near = offset < 0.012 and turn < 0.15 and tool[2] - cube[2] < 0.015
        return servo.action(cube + (0.0, 0.0, height), rotation, CLOSE if near else OPEN)

    def _holds_cube(self) -> bool:
        environment = self._environment
        return bool(
            environment._check_grasp(gripper=environment.robots[0].gripper["right"], object_geoms=environment.cube)
        )

    def _cube_pose(self) -> tuple[Vector, Matrix]:
        return self._data.xpos[self._cube].copy(), self._data.xmat[self._cube].reshape(3, 3).copy()

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._environment.close()


class ArmServo:
    """Moves the point between the finger pads towards a pose by damped least squares on the joints."""

    TOOL_OFFSET_M = -0.0036  # from the gripper's site along its z, with the gripper open

    def __init__(
        self, model: Any, data: Any, site: int, joint_qpos: npt.NDArray[Any], joint_qvel: npt.NDArray[Any]
    ) -> None:
        self._model, self._data, self._site = model, data, site
        self._joint_qpos, self._joint_qvel = joint_qpos, joint_qvel
        self.rest = data.qpos[joint_qpos].copy()

    def rotation(self) -> Matrix:
        return self._data.site_xmat[self._site].reshape(3, 3).copy()

    def tool_position(self) -> Vector:
        return self._data.site_xpos[self._site] + self.TOOL_OFFSET_M * self.rotation()[:, 2]

    def aim(self, opening: Vector) -> Matrix:
        """The nearest rotation that points down and opens along plus or minus `opening`."""
        down = np.array([0.0, 0.0, -1.0])
        rotation = rotation_between(self.rotation()[:, 2], down) @ self.rotation()
        wanted = opening * (1.0, 1.0, 0.0)
        return rotation_between(rotation[:, 1], wanted * np.sign(rotation[:, 1] @ wanted)) @ rotation

    def action(self, position: Vector, rotation: Matrix, grip: float, *, gain: float = 1.3) -> Vector:
        """Joint deltas in steps of JOINT_STEP_RAD, then the gripper; the null space pulls to the reset's posture."""
        move = position - self.tool_position()
        turn = rotation_vector(rotation @ self.rotation().T)
        jacobian = np.zeros((6, self._model.nv))
        mujoco.mj_jacSite(self._model, self._data, jacobian[:3], jacobian[3:], self._site)
        jacobian = jacobian[:, self._joint_qvel]
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + 2.5e-3 * np.eye(6))
        step = gain * inverse @ np.concatenate([_shorten(move, 0.06), _shorten(turn, 0.25)])
        null_space = np.eye(len(step)) - inverse @ jacobian
        step += null_space @ (0.05 * (self.rest - self._data.qpos[self._joint_qpos]))
        command = step / JOINT_STEP_RAD
        return np.append(command / max(1.0, float(np.abs(command).max())), grip)


def _shorten(vector: Vector, limit: float) -> Vector:
    return vector * min(1.0, limit / max(float(np.linalg.norm(vector)), 1e-9))


def _make_environment() -> Any:
    # robosuite warns on import about its optional parts (macros file, mink, robosuite_models), none of them used here.
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    import robosuite
    from robosuite.controllers import load_composite_controller_config

    controllers: Any = load_composite_controller_config(robot="Panda")
    controllers["body_parts"]["right"] = _JOINT_DELTA
    return robosuite.make(
        "Lift",
        robots="Panda",
        controller_configs=controllers,
        control_freq=int(PANDA.control_rate_hz),
        seed=0,
        hard_reset=False,
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        ignore_done=True,
        horizon=1_000_000,
    )
