"""The experts of the tasks that need precision: one label per frame, no wrist turned over, a calm end."""

from __future__ import annotations

import os

os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is first imported

from collections.abc import Iterator

import numpy as np
import pytest

from training.record import STEPS_AFTER_SUCCESS
from training.simulation.disturbance import Disturbance
from training.simulation.registry import make_simulation
from training.simulation.task import Simulation

FOREARM_ROLLS = [3, 10]  # in the state of `aloha`


@pytest.fixture(scope="module", params=["assembly", "insertion"])
def simulation(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    made = make_simulation(request.param)
    yield made
    made.close()


def play_to_the_end(simulation: Simulation, seed: int) -> list[np.ndarray]:
    """The state before each action of the expert, until some steps after its success."""
    simulation.reset(seed)
    expert, states = simulation.expert(), []
    while not simulation.succeeded() and len(states) < simulation.max_steps:
        states.append(simulation.state())
        simulation.step(next(expert))
    assert simulation.succeeded()
    for _ in range(STEPS_AFTER_SUCCESS):
        states.append(simulation.state())
        simulation.step(next(expert))
    return states


def test_the_label_is_a_function_of_the_frame(simulation: Simulation) -> None:
    simulation.reset(4)
    followed = simulation.expert()
    disturbance = Disturbance(np.random.default_rng(4), simulation.spec)
    for _ in range(60):
        label = next(followed)
        np.testing.assert_array_equal(label, next(simulation.expert()))
        simulation.step(disturbance.apply(label))


def test_the_parts_stay_joined_after_the_success(simulation: Simulation) -> None:
    for seed in (50_000, 50_001):
        play_to_the_end(simulation, seed)
        positions = simulation.environment_state().reshape(-1, 3)
        if simulation.task == "assembly":
            _, ring, peg_top = positions
            assert np.linalg.norm(ring[:2] - peg_top[:2]) < 0.02
            assert ring[2] < peg_top[2]
        else:
            peg, socket = positions
            np.testing.assert_allclose(peg - socket, (0.1, 0.0, 0.0), atol=0.01)
            assert min(peg[2], socket[2]) > 0.1


def test_the_insertion_turns_no_wrist_over() -> None:
    simulation = make_simulation("insertion")
    for seed in (50_000, 50_001):
        rolls_rad = np.stack(play_to_the_end(simulation, seed))[:, FOREARM_ROLLS]
        assert np.abs(rolls_rad).max() < 0.5 * np.pi
    simulation.close()
