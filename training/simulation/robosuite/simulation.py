"""Any robosuite task on any of its arms, behind the Simulation protocol.

Owns the making of the environment, the seeding of its scenes, its cameras' renderer and success. A scene (lift.py,
stack.py, ...) owns its objects and its expert. Soft resets only: the compiled model, hence the objects' sizes and the
renderer, stay the same for every scene.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from policy.embodiment import EmbodimentSpec, GroupKind
from training.simulation.bodies import load_body
from training.simulation.rendering import FastRenderer, FreeView, ModelView, Stage
from training.simulation.robosuite.arm import CONTROL_RATE_HZ, RobosuiteArm
from training.simulation.robosuite.drive import Drive, JointDrive, PoseDrive, joint_delta_controller
from training.simulation.robosuite.servo import ArmServo
from training.simulation.rotations import Vector
from training.simulation.task import Frame

WRIST_CAMERA = "robot0_eye_in_hand"
COLLISION_GEOM_GROUP = 0


class Scene(Protocol):
    """The objects of one environment and the expert that moves them."""

    def environment_state(self) -> Vector: ...

    def expert_action(self) -> Vector: ...


@dataclass(frozen=True, kw_only=True)
class RobosuiteTask:
    """What differs between tasks; a task's file may replace the instruction, the limit or the view."""

    environment: str
    instruction: str
    max_steps: int
    front: FreeView
    environment_state_names: tuple[str, ...]
    scene: Callable[[Any, ArmServo], Scene]
    options: Mapping[str, Any] = field(default_factory=dict)


class RobosuiteSimulation:
    """One task on one body."""

    def __init__(self, task: str, body: str, definition: RobosuiteTask) -> None:
        description = load_body(body)
        self.task, self.instruction, self.spec = task, definition.instruction, description.SPEC
        self.max_steps = definition.max_steps
        self.environment_state_names = definition.environment_state_names
        self._arm = cast(RobosuiteArm, vars(description)["ARM"])
        wrist = ModelView(camera=WRIST_CAMERA, unseen_bodies=self._arm.unseen_by_wrist)
        self._views = {"front": definition.front, "wrist": wrist}
        self._environment = _make_environment(definition, self._arm, self.spec)
        self._model, self._data = self._environment.sim.model._model, self._environment.sim.data._data
        robot = self._environment.robots[0]
        joints, fingers = robot.part_controllers["right"].qpos_index, robot._ref_gripper_joint_pos_indexes["right"]
        self._state_qpos = np.array([*joints, *fingers])
        self._drive = self._make_drive()
        self._servo = ArmServo(self._environment, self._arm, self.spec)
        self._scene = definition.scene(self._environment, self._servo)
        self._renderer: FastRenderer | None = None
        self._succeeded = False

    def _make_drive(self) -> Drive:
        joints = self.spec.action[0].kind is GroupKind.JOINT_POSITION
        return JointDrive(self._environment) if joints else PoseDrive(self._environment)

    def reset(self, seed: int) -> None:
        environment = self._environment
        environment.rng = np.random.default_rng(seed)
        # The environment's generator alone is not enough: samplers keep the one they were built with.
        placement = environment.placement_initializer
        for sampler in (placement, *getattr(placement, "samplers", {}).values()):
            sampler.rng = environment.rng
        environment.reset()
        self._drive.reset()
        self._servo.reset()
        self._succeeded = False

    def observe(self) -> Frame:
        if self._renderer is None:
            self._renderer = self._make_renderer()
        return Frame(
            images=self._renderer.render(self._data),
            state=self.state(),
            environment_state=self.environment_state(),
        )

    def state(self) -> npt.NDArray[np.float32]:
        return self._data.qpos[self._state_qpos].astype(np.float32)

    def environment_state(self) -> npt.NDArray[np.float32]:
        return self._scene.environment_state().astype(np.float32)

    def _make_renderer(self) -> FastRenderer:
        unseen = [self._model.body(name).id for name in self._arm.unseen_bodies]
        self._model.geom_group[np.isin(self._model.geom_bodyid, unseen)] = COLLISION_GEOM_GROUP
        return FastRenderer(self._model, self._views, hidden_geom_groups=(COLLISION_GEOM_GROUP,))

    def stage(self) -> Stage:
        """For filming: what a picture does not say."""
        if self._renderer is None:
            self._renderer = self._make_renderer()
        return Stage(self._model, self._data, self._renderer)

    def step(self, action: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        executed = np.clip(action, -1.0, 1.0).astype(np.float32)
        self._drive.play(executed.astype(np.float64))
        self._succeeded |= bool(self._environment._check_success())
        return executed

    def succeeded(self) -> bool:
        return self._succeeded

    def expert(self) -> Iterator[npt.NDArray[np.float32]]:
        while True:
            yield np.clip(self._scene.expert_action(), -1.0, 1.0).astype(np.float32)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._environment.close()


def _make_environment(definition: RobosuiteTask, arm: RobosuiteArm, spec: EmbodimentSpec) -> Any:
    # robosuite warns on import about its optional parts (macros file, mink, robosuite_models), none of them used here.
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    import robosuite
    from robosuite.controllers import load_composite_controller_config

    controllers: Any = load_composite_controller_config(robot=arm.robot)
    if spec.action[0].kind is GroupKind.JOINT_POSITION:
        controllers["body_parts"]["right"] = joint_delta_controller()
    else:
        controllers["body_parts"]["right"].update(type="OSC_POSE", input_ref_frame="world", input_type="delta")
    return robosuite.make(
        definition.environment,
        robots=arm.robot,
        controller_configs=controllers,
        control_freq=int(CONTROL_RATE_HZ),
        seed=0,
        hard_reset=False,
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=False,
        ignore_done=True,
        horizon=1_000_000,
        **definition.options,
    )
