"""robosuite behind one simulation: its drives are robosuite's controllers, and what is left undrawn is not seen."""

from __future__ import annotations

import os

os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is first imported

from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
import pytest

from training.simulation import rendering
from training.simulation.disturbance import Disturbance
from training.simulation.registry import make_simulation
from training.simulation.robosuite.arm import RobosuiteArm
from training.simulation.robosuite.drive import Drive
from training.simulation.robosuite.simulation import RobosuiteSimulation

TASKS = ("pick-can-iiwa", "open-door", "stack-omron")


class RobosuiteDrive:
    """The physics steps and controllers of robosuite's own `step`."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment

    def reset(self) -> None: ...

    def play(self, action: np.ndarray) -> None:
        environment = self._environment
        for substep in range(25):
            mujoco.mj_step1(environment.sim.model._model, environment.sim.data._data)  # pyright: ignore[reportAttributeAccessIssue]
            environment._pre_action(action, policy_step=substep == 0)
            mujoco.mj_step2(environment.sim.model._model, environment.sim.data._data)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(scope="module", params=TASKS)
def simulation(request: pytest.FixtureRequest) -> Iterator[RobosuiteSimulation]:
    made = make_simulation(request.param)
    assert isinstance(made, RobosuiteSimulation)
    yield made
    made.close()


def states(simulation: RobosuiteSimulation, drive: Drive, actions: np.ndarray) -> np.ndarray:
    kept, simulation._drive = simulation._drive, drive
    simulation.reset(2)
    played = []
    for action in actions:
        simulation.step(action)
        played.append(simulation.state())
    simulation._drive = kept
    return np.stack(played)


def test_a_drive_moves_the_robot_as_robosuites_controllers_do(simulation: RobosuiteSimulation) -> None:
    actions = np.random.default_rng(0).normal(0.0, 0.4, (25, simulation.spec.action_dim)).astype(np.float32)
    expected = states(simulation, RobosuiteDrive(simulation._environment), actions)
    np.testing.assert_allclose(states(simulation, simulation._drive, actions), expected, atol=1e-4)
    assert np.abs(np.diff(expected, axis=0)).max() > 0.01


def test_what_is_left_undrawn_changes_no_pixel(
    simulation: RobosuiteSimulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation.reset(3)
    expert = simulation.expert()
    disturbance = Disturbance(np.random.default_rng(3), simulation.spec)
    for step in range(60):
        if step % 15 == 0:
            images = simulation.observe().images
            with monkeypatch.context() as patched:
                patched.setattr(rendering, "_out_of_sight", lambda model, data, view: np.zeros(model.ngeom, bool))
                everything = simulation.observe().images
            for camera in images:
                np.testing.assert_array_equal(images[camera], everything[camera])
        simulation.step(disturbance.apply(next(expert)))


def test_drawing_leaves_the_model_as_it_was(simulation: RobosuiteSimulation) -> None:
    simulation.reset(3)
    simulation.observe()
    groups = simulation._model.geom_group.copy()
    simulation.observe()
    np.testing.assert_array_equal(simulation._model.geom_group, groups)


def test_a_gripper_opens_across_its_approach() -> None:
    with pytest.raises(ValueError, match="opening_axis is 2, expected 0 or 1"):
        RobosuiteArm(robot="Panda", opening_axis=2)
