"""The simulated tasks: reproducible scenes, usable frames, experts that solve them, bounded actions."""

from __future__ import annotations

import os

os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is first imported

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from policy.embodiment import GroupKind, group_slices
from training.simulation.disturbance import Disturbance
from training.simulation.registry import (
    TASK_NAMES,
    MissingSimulatorError,
    embodiment,
    make_simulation,
    simulator_versions,
)
from training.simulation.task import Simulation

EXPERT_STEPS = {
    "pick-place": 70,
    "drawer-open": 70,
    "button-press": 60,
    "transfer-cube": 60,
    "lift": 60,
    "assembly": 110,
    "insertion": 65,
    "pick-can": 145,
    "nut-assembly": 170,
    "stack-ur5e": 110,
    "pick-can-iiwa": 125,
    "stack-kinova3": 100,
    "open-door": 60,
    "stack-omron": 100,
}


@pytest.fixture(scope="module", params=TASK_NAMES)
def simulation(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    made = make_simulation(request.param)
    yield made
    made.close()


def play(simulation: Simulation, seed: int, num_steps: int) -> np.ndarray:
    """States of an expert's episode, [num_steps, state_dim]."""
    simulation.reset(seed)
    expert = simulation.expert()
    states = []
    for _ in range(num_steps):
        simulation.step(next(expert))
        states.append(simulation.state())
    return np.stack(states)


def test_a_seed_is_one_scene_and_another_seed_another(simulation: Simulation) -> None:
    def scene(seed: int) -> np.ndarray:
        return np.append(play(simulation, seed, 25), simulation.environment_state())

    first, other, again = (scene(seed) for seed in (3, 100_004, 3))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_the_expert_solves_its_task_in_few_steps(simulation: Simulation) -> None:
    play(simulation, 11, EXPERT_STEPS[simulation.task])
    assert simulation.succeeded()
    assert simulation.max_steps >= 2 * EXPERT_STEPS[simulation.task]


def test_the_same_state_has_the_same_label_whatever_came_before(simulation: Simulation) -> None:
    simulation.reset(4)
    followed = simulation.expert()
    for _ in range(20):
        simulation.step(next(followed))
        np.testing.assert_array_equal(next(followed), next(simulation.expert()))


def test_success_is_of_the_episode_and_ends_with_the_reset(simulation: Simulation) -> None:
    play(simulation, 11, EXPERT_STEPS[simulation.task])
    simulation.reset(11)
    assert not simulation.succeeded()


def test_the_expert_solves_a_disturbed_episode(simulation: Simulation) -> None:
    solved = []
    for seed in range(10, 15):
        disturbance = Disturbance(np.random.default_rng([seed, 1]), simulation.spec)
        simulation.reset(seed)
        expert, steps_left = simulation.expert(), simulation.max_steps
        while steps_left and not simulation.succeeded():
            simulation.step(disturbance.apply(next(expert)))
            steps_left -= 1
        solved.append(simulation.succeeded())
    assert sum(solved) >= 4


def test_frames_show_every_camera_without_noise_and_the_state_of_the_moment(simulation: Simulation) -> None:
    from training.simulation.rendering import NOISE_LIMIT, pixel_noise

    simulation.reset(5)
    frame = simulation.observe()
    assert tuple(frame.images) == simulation.spec.camera_names
    for camera in simulation.spec.cameras:
        image = frame.images[camera.name]
        assert image.shape == (camera.height, camera.width, 3)
        assert image.dtype == np.uint8
        assert pixel_noise(image) < NOISE_LIMIT
        assert image.std() > 5
    assert frame.state.dtype == np.float32
    assert frame.state.shape == (simulation.spec.state_dim,)
    np.testing.assert_array_equal(frame.state, simulation.state())
    assert frame.environment_state.shape == (len(simulation.environment_state_names),)
    np.testing.assert_array_equal(frame.environment_state, simulation.environment_state())


def test_images_follow_the_scene(simulation: Simulation) -> None:
    images = []
    for seed in (5, 6, 5):
        simulation.reset(seed)
        images.append(simulation.observe().images)
    for camera in simulation.spec.camera_names:
        np.testing.assert_array_equal(images[0][camera], images[2][camera])
        assert (images[0][camera] != images[1][camera]).any()


def test_a_step_plays_an_action_clipped_to_the_limits_of_the_embodiment(simulation: Simulation) -> None:
    simulation.reset(0)
    for side in (-100.0, 100.0):
        executed = simulation.step(np.full(simulation.spec.action_dim, side, np.float32))
        limits = [limit for g in simulation.spec.action for limit in (g.lower_limit if side < 0 else g.upper_limit)]
        np.testing.assert_allclose(executed, limits, rtol=1e-6)
        assert executed.dtype == np.float32


@pytest.mark.parametrize("task", ["drawer-open", "lift", "transfer-cube"])
def test_a_disturbance_is_seeded_bursty_and_never_on_a_gripper(task: str) -> None:
    spec = embodiment(task)

    def offsets(seed: int) -> np.ndarray:
        disturbance = Disturbance(np.random.default_rng(seed), spec)
        return np.stack([disturbance.apply(np.zeros(spec.action_dim, np.float32)) for _ in range(200)])

    first = offsets(0)
    np.testing.assert_array_equal(first, offsets(0))
    assert (first != offsets(1)).any()
    for group, columns in group_slices(spec.action):
        if group.kind is GroupKind.GRIPPER:
            assert not first[:, columns].any()
        else:
            moving = np.abs(first[:, columns]).max(axis=1) > 1e-3
            assert 0.1 < moving.mean() < 0.9
            neighbours = np.corrcoef(first[:-1, columns].ravel(), first[1:, columns].ravel())[0, 1]
            assert neighbours > 0.7


def test_a_scene_is_the_same_in_another_process() -> None:
    script = (
        "import hashlib; from training.simulation.registry import make_simulation; "
        "s = make_simulation('transfer-cube'); s.reset(7); e = s.expert(); [s.step(next(e)) for _ in range(10)]; "
        "print(hashlib.sha256(s.state().tobytes()).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    simulation = make_simulation("transfer-cube")
    here = hashlib.sha256(play(simulation, 7, 10)[-1].tobytes()).hexdigest()
    simulation.close()
    assert elsewhere.stdout.strip() == here


def test_a_noise_frame_is_refused_by_name() -> None:
    from training.simulation.rendering import NoisyFrameError, check_frame

    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    with pytest.raises(NoisyFrameError, match="'left' has pixel noise"):
        check_frame({"left": noise})


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown task 'draweropen', did you mean 'drawer-open'"):
        make_simulation("draweropen")


def test_a_missing_simulator_is_an_error_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gym_aloha", None)
    monkeypatch.delitem(sys.modules, "gym_aloha.constants", raising=False)
    with pytest.raises(MissingSimulatorError, match=r"gym-aloha.*pip install"):
        make_simulation("transfer-cube")


def test_the_remedy_for_robosuite_is_one_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "robosuite", None)
    root = Path(__file__).resolve().parents[2]
    (pin,) = (line for line in (root / "constraints.txt").read_text().splitlines() if line.startswith("robosuite=="))
    with pytest.raises(MissingSimulatorError, match=f"lift.* needs robosuite.*then pip install --no-deps {pin}$"):
        make_simulation("lift")
    assert f"pip install --no-deps {pin}" in (root / "CONTRIBUTING.md").read_text()


def test_a_task_names_the_versions_its_images_depend_on() -> None:
    assert set(simulator_versions("lift")) == {"mujoco", "robosuite"}
