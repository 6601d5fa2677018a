"""Plays one action on a robosuite robot: the physics steps of a control step and the controller's torques at each.

Owns what robosuite's own `step` does, less the observations, rewards and buffers nobody here reads: that is most of
its time. Does not own what an action means to an expert (servo.py).
"""

# mujoco is a C extension: pyright sees few of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any, Protocol

import mujoco
import numpy as np

from training.simulation.robosuite.arm import CONTROL_RATE_HZ, JOINT_STEP_RAD, POSITION_STEP_M, ROTATION_STEP_RAD
from training.simulation.rotations import Matrix, Vector, rotation_about

ARM = "right"
STIFFNESS = 150.0
DAMPING = 2.0 * np.sqrt(STIFFNESS)


class Drive(Protocol):
    def reset(self) -> None:
        """Start from the scene as it is now."""
        ...

    def play(self, action: Vector) -> None:
        """Advance the simulation by one control step."""
        ...


def joint_delta_controller() -> dict[str, Any]:
    """robosuite's controller for an arm in joint deltas; JointDrive computes the same torques."""
    return {
        "type": "JOINT_POSITION",
        "input_type": "delta",
        "input_min": -1,
        "input_max": 1,
        "output_min": -JOINT_STEP_RAD,
        "output_max": JOINT_STEP_RAD,
        "kp": STIFFNESS,
        "damping_ratio": 1,
        "impedance_mode": "fixed",
        "kp_limits": [0, 300],
        "damping_ratio_limits": [0, 10],
        "qpos_limits": None,
        "interpolation": None,
        "ramp_ratio": 0.2,
        "gripper": {"type": "GRIP"},
    }


class JointDrive:
    """An arm held at joint targets by torques that make its inertia vanish."""

    def __init__(self, environment: Any) -> None:
        robot = environment.robots[0]
        self._model, self._data = environment.sim.model._model, environment.sim.data._data
        self._substeps = _substeps(environment)
        controller = robot.part_controllers[ARM]
        self._qpos, self._qvel = np.array(controller.qpos_index), np.array(controller.qvel_index)
        self._motors = np.array(robot._ref_actuators_indexes_dict[ARM])
        self._lowest, self._highest = self._model.actuator_ctrlrange[self._motors].T.copy()
        self._gripper = robot.gripper[ARM]
        self._fingers = np.array(robot._ref_joint_gripper_actuator_indexes[ARM])
        low, high = self._model.actuator_ctrlrange[self._fingers].T
        self._finger_middle, self._finger_half = 0.5 * (high + low), 0.5 * (high - low)
        self._inertia = np.zeros((self._model.nv, self._model.nv))

    def reset(self) -> None:
        """Nothing is kept between two actions."""

    def play(self, action: Vector) -> None:
        model, data = self._model, self._data
        mujoco.mj_step1(model, data)
        goal = data.qpos[self._qpos] + JOINT_STEP_RAD * action[:-1]
        data.ctrl[self._fingers] = self._finger_middle + self._finger_half * self._gripper.format_action(action[-1:])
        for substep in range(self._substeps):
            if substep:
                mujoco.mj_step1(model, data)
            data.ctrl[self._motors] = self._torques(goal)
            mujoco.mj_step2(model, data)

    def _torques(self, goal: Vector) -> Vector:
        data, qvel = self._data, self._qvel
        mujoco.mj_fullM(self._model, self._inertia, data.qM)
        inertia = self._inertia[qvel][:, qvel]
        wanted = STIFFNESS * (goal - data.qpos[self._qpos]) - DAMPING * data.qvel[qvel]
        return np.clip(inertia @ wanted + data.qfrc_bias[qvel], self._lowest, self._highest)


class PoseDrive:
    """A hand pulled towards a pose by a spring, with robosuite's operational space law (its OSC_POSE, world frame).

    The arm's torques are computed here; a mobile base's other parts keep robosuite's own controllers.
    """

    def __init__(self, environment: Any) -> None:
        from robosuite.utils import control_utils

        self._law = control_utils
        self._robot = environment.robots[0]
        self._model, self._data = environment.sim.model._model, environment.sim.data._data
        self._substeps = _substeps(environment)
        self._columns = {
            part: slice(*bounds) for part, bounds in self._robot.composite_controller._action_split_indexes.items()
        }
        self._motors = {part: np.array(self._robot._ref_actuators_indexes_dict[part]) for part in self._columns}
        self._limits = {part: self._model.actuator_ctrlrange[motors].T for part, motors in self._motors.items()}
        arm = self._robot.part_controllers[ARM]
        self._qpos, self._qvel = np.array(arm.qpos_index), np.array(arm.qvel_index)
        self._site = self._robot.eef_site_id[ARM]
        self._base_site = self._model.site(f"{arm.naming_prefix}{arm.part_name}_center").id
        self._inertia, self._jacobian, self._base_jacobian = (
            np.zeros((rows, self._model.nv)) for rows in (self._model.nv, 6, 6)
        )
        self.reset()

    def reset(self) -> None:
        self._rest = self._data.qpos[self._qpos].copy()
        self._goal = self._pose()
        parts = self._robot.part_controllers
        self._others = {part: parts[part] for part in self._columns if part != ARM}

    def _pose(self) -> tuple[Vector, Matrix]:
        return self._data.site_xpos[self._site].copy(), self._data.site_xmat[self._site].reshape(3, 3).copy()

    def play(self, action: Vector) -> None:
        model, data = self._model, self._data
        mujoco.mj_step1(model, data)
        self._set_goals(action)
        for substep in range(self._substeps):
            if substep:
                mujoco.mj_step1(model, data)
            self._command(ARM, self._torques())
            for part, controller in self._others.items():
                self._command(part, controller.run_controller())
            mujoco.mj_step2(model, data)

    def _command(self, part: str, command: Vector) -> None:
        self._data.ctrl[self._motors[part]] = np.clip(command, *self._limits[part])

    def _set_goals(self, action: Vector) -> None:
        """The hand's goal is a step from where it is or, while the base moves, from its goal before."""
        moves_base = len(action) > self._columns[f"{ARM}_gripper"].stop and action[-1] > 0
        position, rotation = self._goal if moves_base else self._pose()
        turn = ROTATION_STEP_RAD * action[3:6]
        angle_rad = float(np.linalg.norm(turn))
        if angle_rad > 0:
            rotation = rotation_about(turn / angle_rad, angle_rad) @ rotation
        self._goal = position + POSITION_STEP_M * action[:3], rotation
        for part, controller in self._others.items():
            command = action[self._columns[part]]
            gripper = self._robot.gripper.get(part.removesuffix("_gripper"))
            controller.set_goal(command if gripper is None else gripper.format_action(command))

    def _torques(self) -> Vector:
        model, data, law, qvel = self._model, self._data, self._law, self._qvel
        mujoco.mj_fullM(model, self._inertia, data.qM)
        inertia = self._inertia[qvel][:, qvel]
        mujoco.mj_jacSite(model, data, self._jacobian[:3], self._jacobian[3:], self._site)
        mujoco.mj_jacSite(model, data, self._base_jacobian[:3], self._base_jacobian[3:], self._base_site)
        jacobian = np.ascontiguousarray(self._jacobian[:, qvel])
        velocity = (self._jacobian - self._base_jacobian) @ data.qvel
        position, rotation = self._pose()
        error = np.concatenate([self._goal[0] - position, law.orientation_error(self._goal[1], rotation)])
        wanted = STIFFNESS * error - DAMPING * velocity
        _, push, twist, null_space = law.opspace_matrices(inertia, jacobian, jacobian[:3], jacobian[3:])
        wrench = np.concatenate([push @ wanted[:3], twist @ wanted[3:]])
        posture = law.nullspace_torques(inertia, null_space, self._rest, data.qpos[self._qpos], data.qvel[qvel])
        return jacobian.T @ wrench + data.qfrc_bias[qvel] + posture


def _substeps(environment: Any) -> int:
    return round(1.0 / (CONTROL_RATE_HZ * environment.model_timestep))
