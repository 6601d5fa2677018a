"""gym-aloha's tasks on the `aloha` body: two six-joint arms with grippers, absolute joint targets.

Owns the cameras, the seeding of the scenes and what success is. Runs gym-aloha's models on MuJoCo directly,
as its own `env.step` renders three large images every time. One action lasts three of gym-aloha's 50 Hz control steps,
over which the joint targets move in a straight line.
"""

# mujoco is a C extension: pyright sees few of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from training.simulation.aloha_experts import (
    FINGER_CLOSED_M,
    FINGER_OPEN_M,
    FIRST_JOINT,
    Arms,
    hand_over,
    insert,
)
from training.simulation.bodies.aloha import SPEC
from training.simulation.rendering import FastRenderer, FreeView
from training.simulation.rotations import Vector
from training.simulation.task import Frame

VIEWS = {
    "top": FreeView(look_at=(0.05, 0.5, 0.1), distance=0.62, azimuth=90.0, elevation=-80.0),
    "front": FreeView(look_at=(0.03, 0.5, 0.15), distance=0.64, azimuth=90.0, elevation=-28.0),
}
CONTROL_STEPS_PER_ACTION = 3
CONTROL_STEP_S = 0.02
FIRST_OBJECT = 16  # in qpos: both arms, then a position and a quaternion per object
LEFT_FINGER = "vx300s_left/10_left_gripper_finger"

Touching = set[frozenset[str]]


@dataclass(frozen=True, kw_only=True)
class AlohaTask:
    """What differs between the tasks of this body."""

    model: str
    instruction: str
    max_steps: int
    objects: tuple[str, ...]  # in the order of the model's qpos
    lowest: tuple[tuple[float, float, float], ...]  # corner of each object's start, metres
    highest: tuple[tuple[float, float, float], ...]
    solved: Callable[[Touching], bool]  # of the pairs of geoms in contact
    expert: Callable[[Arms], Vector]


def _transferred(touching: Touching) -> bool:
    """gym-aloha's reward 4: the left gripper touches the cube and the cube does not touch the table."""
    return {"red_box", LEFT_FINGER} in touching and {"red_box", "table"} not in touching


def _inserted(touching: Touching) -> bool:
    """gym-aloha's reward 4: the peg touches the pin inside the socket."""
    return {"red_peg", "pin"} in touching


# Objects start as in gym-aloha, but at rest: it drops them from 5 cm.
TASKS = {
    "transfer-cube": AlohaTask(
        model="bimanual_viperx_transfer_cube.xml",
        instruction="hand the cube from the right arm to the left arm",
        max_steps=160,
        objects=("cube",),
        lowest=((0.0, 0.4, 0.02),),
        highest=((0.2, 0.6, 0.02),),
        solved=_transferred,
        expert=hand_over,
    ),
    "insertion": AlohaTask(
        model="bimanual_viperx_insertion.xml",
        instruction="put the peg into the socket",
        max_steps=200,
        objects=("peg", "socket"),
        lowest=((0.1, 0.4, 0.01), (-0.2, 0.4, 0.022)),
        highest=((0.2, 0.6, 0.01), (-0.1, 0.6, 0.022)),
        solved=_inserted,
        expert=insert,
    ),
}


class AlohaSimulation:
    """One gym-aloha task behind the Simulation protocol."""

    spec = SPEC

    def __init__(self, task: str) -> None:
        from gym_aloha.constants import ASSETS_DIR, START_ARM_POSE

        self._definition = TASKS[task]
        self.task, self.instruction = task, self._definition.instruction
        self.max_steps = self._definition.max_steps
        self.environment_state_names = tuple(f"{name}_{axis}" for name in self._definition.objects for axis in "xyz")
        self._model: Any = mujoco.MjModel.from_xml_path(str(ASSETS_DIR / self._definition.model))
        self._data: Any = mujoco.MjData(self._model)
        self._start = np.array(START_ARM_POSE)
        self._substeps = round(CONTROL_STEP_S / self._model.opt.timestep)
        self._lower = np.concatenate([group.lower_limit for group in SPEC.action])
        self._upper = np.concatenate([group.upper_limit for group in SPEC.action])
        self._geom_names = [self._model.geom(i).name for i in range(self._model.ngeom)]
        self._arms = Arms(self._model, self._data)
        self._renderer: FastRenderer | None = None
        self._succeeded = False

    def reset(self, seed: int) -> None:
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:FIRST_OBJECT] = self._start
        objects = self._objects()
        objects[:, :3] = np.random.default_rng(seed).uniform(self._definition.lowest, self._definition.highest)
        objects[:, 3:] = (1.0, 0.0, 0.0, 0.0)
        self._data.ctrl[:] = self._start
        mujoco.mj_forward(self._model, self._data)
        self._target = self._state()
        self._succeeded = False

    def _objects(self) -> npt.NDArray[np.float64]:
        """Position and quaternion of each object, [num objects, 7]: a view on the simulation's state."""
        return self._data.qpos[FIRST_OBJECT:].reshape(-1, 7)

    def observe(self) -> Frame:
        if self._renderer is None:
            self._renderer = FastRenderer(self._model, VIEWS)
        return Frame(
            images=self._renderer.render(self._data),
            state=self.state(),
            environment_state=self.environment_state(),
        )

    def state(self) -> npt.NDArray[np.float32]:
        return self._state().astype(np.float32)

    def environment_state(self) -> npt.NDArray[np.float32]:
        return self._objects()[:, :3].astype(np.float32).ravel()

    def _state(self) -> Vector:
        qpos = self._data.qpos
        return np.concatenate(
            [np.append(qpos[first : first + 6], self._arms.opening(arm)) for arm, first in FIRST_JOINT.items()]
        )

    def step(self, action: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        executed = np.clip(action, self._lower, self._upper).astype(np.float32)
        before, self._target = self._target, executed.astype(np.float64)
        for step in range(1, CONTROL_STEPS_PER_ACTION + 1):
            self._control(before + step / CONTROL_STEPS_PER_ACTION * (self._target - before))
            self._succeeded |= self._definition.solved(self._touching())
        return executed

    def _control(self, target: Vector) -> None:
        ctrl = self._data.ctrl
        for first, part in zip(FIRST_JOINT.values(), (target[:7], target[7:]), strict=True):
            finger = FINGER_CLOSED_M + part[6] * (FINGER_OPEN_M - FINGER_CLOSED_M)
            ctrl[first : first + 6] = part[:6]
            ctrl[first + 6], ctrl[first + 7] = finger, -finger
        mujoco.mj_step(self._model, self._data, self._substeps)

    def _touching(self) -> Touching:
        """The pairs of geoms in contact, by name."""
        pairs = self._data.contact.geom[: self._data.ncon].tolist()
        return {frozenset((self._geom_names[a], self._geom_names[b])) for a, b in pairs}

    def succeeded(self) -> bool:
        return self._succeeded

    def expert(self) -> Iterator[npt.NDArray[np.float32]]:
        while True:
            yield np.clip(self._definition.expert(self._arms), self._lower, self._upper).astype(np.float32)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
