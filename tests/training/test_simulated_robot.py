"""A simulated task is a robot for a chunk player, and in real time its world does not wait for commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind, Representation
from premotor.client.hold import Hold
from training.simulation.registry import TASK_NAMES, embodiment
from training.simulation.robot import RealTime, SimulatedRobot, described, still
from training.simulation.task import Frame

Floats = npt.NDArray[np.float32]
SPEC = EmbodimentSpec(
    name="arm",
    cameras=(Camera(name="front", height=8, width=8),),
    state=(Group(name="joint", dim=1, kind=GroupKind.JOINT_POSITION, unit="rad"),),
    action=(
        Group(name="joint", dim=1, kind=GroupKind.JOINT_POSITION, unit="rad"),
        Group(name="slide", dim=1, kind=GroupKind.BASE, unit="m", representation=Representation.DELTA),
        Group(name="gripper", dim=1, kind=GroupKind.GRIPPER, unit="effort"),
    ),
    control_rate_hz=10.0,
)


class FakeSimulation:
    """A joint that is where it was told to be; every step takes `step_s` of the clock it is given."""

    task, instruction, spec, max_steps = "reach", "reach", SPEC, 50
    environment_state_names = ()

    def __init__(self) -> None:
        self.now_s, self.step_s = 100.0, 0.0
        self.played: list[Floats] = []
        self.seeds: list[int] = []
        self.joint, self.solved_at = 0.25, 1000

    def reset(self, seed: int) -> None:
        self.seeds.append(seed)
        self.played.clear()
        self.joint = 0.25

    def observe(self) -> Frame:
        frames = {"front": np.zeros((8, 8, 3), np.uint8)}
        return Frame(images=frames, state=self.state(), environment_state=np.zeros(0, np.float32))

    def state(self) -> Floats:
        return np.array([self.joint], np.float32)

    def environment_state(self) -> Floats:
        return np.zeros(0, np.float32)

    def step(self, action: Floats) -> Floats:
        self.now_s += self.step_s
        self.played.append(action)
        self.joint = float(action[0])
        return action

    def succeeded(self) -> bool:
        return len(self.played) >= self.solved_at

    def expert(self) -> Iterator[Floats]:
        raise AssertionError("a robot asked the expert")

    def close(self) -> None: ...


def command(joint: float, slide: float = 0.5, gripper: float = 1.0) -> Floats:
    return np.array([joint, slide, gripper], np.float32)


@pytest.fixture
def simulation() -> FakeSimulation:
    return FakeSimulation()


@pytest.fixture
def world(simulation: FakeSimulation) -> RealTime:
    robot = RealTime(SimulatedRobot(simulation, iter(range(9))), SPEC, now_s=lambda: simulation.now_s)
    robot.reset()
    return robot


def test_in_lock_step_a_command_is_a_step_and_nothing_else_is(simulation: FakeSimulation) -> None:
    robot = SimulatedRobot(simulation, iter([7, 8]))
    robot.reset()
    np.testing.assert_allclose(robot.state(), [0.25])
    np.testing.assert_array_equal(robot.act(command(1.0)), command(1.0))
    np.testing.assert_allclose(robot.observe().state, [1.0])
    assert len(simulation.played) == robot.num_steps == 1
    robot.reset()
    assert (simulation.seeds, robot.num_steps) == ([7, 8], 0)


def test_a_task_that_is_finished_is_not_stepped_further(simulation: FakeSimulation) -> None:
    robot = SimulatedRobot(simulation, iter([7]))
    robot.reset()
    simulation.solved_at = 2
    for _ in range(5):
        robot.act(command(1.0))
    assert (len(simulation.played), robot.succeeded, robot.finished) == (2, True, True)
    simulation.solved_at, simulation.max_steps = 1000, 2  # pyright: ignore
    assert (robot.succeeded, robot.finished) == (False, True)


def test_commands_that_come_in_time_are_the_only_steps_of_a_real_time_world(
    simulation: FakeSimulation, world: RealTime
) -> None:
    for step in range(20):
        simulation.now_s = 100.0 + step / 10 + 0.003 * (step % 5)
        world.state()
        world.act(command(step))
    assert [played[0] for played in simulation.played] == list(range(20))
    assert (world.num_late_steps, world.num_stalled_steps) == (0, 0)


def test_a_world_goes_on_without_commands_holding_the_body_still(simulation: FakeSimulation, world: RealTime) -> None:
    world.state()
    world.act(command(3.0))
    simulation.now_s += 0.35
    world.act(command(4.0))
    # The joint stays, the slide is not moved by its last delta again, the gripper keeps its grip.
    np.testing.assert_array_equal(simulation.played[1:3], [command(3.0, slide=0.0)] * 2)
    np.testing.assert_array_equal(simulation.played[3], command(4.0))
    assert (len(simulation.played), world.num_late_steps) == (4, 2)


def test_before_its_first_command_a_body_stays_where_it_is(simulation: FakeSimulation, world: RealTime) -> None:
    world.state()
    simulation.now_s += 0.2
    world.state()
    np.testing.assert_array_equal(simulation.played, [command(0.25, slide=0, gripper=0)] * 2)


def test_a_simulator_slower_than_its_world_says_so_and_does_not_fall_behind_for_ever(
    simulation: FakeSimulation, world: RealTime
) -> None:
    simulation.step_s = 0.15
    world.state()
    for _ in range(10):
        world.act(command(1.0))
    assert world.num_stalled_steps > 0
    assert len(simulation.played) < 30


def test_a_reset_begins_a_new_world(simulation: FakeSimulation, world: RealTime) -> None:
    world.state()
    simulation.now_s += 5
    world.state()
    assert world.num_late_steps == 50
    world.reset()
    simulation.now_s += 5
    world.act(command(1.0))
    assert (world.num_late_steps, len(simulation.played)) == (0, 1)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_every_tasks_body_can_be_held(task: str) -> None:
    spec = embodiment(task)
    hold = Hold(described(spec), still(spec))
    held = hold.action(np.full(spec.state_dim, 0.1, np.float32), None)
    assert held.shape == (spec.action_dim,)


def test_a_body_whose_place_is_not_measured_is_refused() -> None:
    fields: dict[str, Any] = SPEC.to_json()
    fields["action"][0]["unit"] = "deg"
    with pytest.raises(ValueError, match="where joint are is not measured"):
        still(EmbodimentSpec.from_json(fields))
