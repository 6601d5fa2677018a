"""A simulated task as the robot that a chunk player drives, and a world that does not wait for it.

Owns the way from `Simulation` to `Robot`, and real time: a simulation that is stepped against the wall clock. Does not
own simulators, or the pace of commands (premotor.client's player).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from policy.embodiment import EmbodimentSpec
from policy.embodiment import Group as SpecGroup
from premotor.client import Embodiment, Group, LastPosition, RobotObservation
from premotor.client.description import Camera
from premotor.client.hold import Hold, unmeasured_at_zero
from training.simulation.task import Simulation

Floats = npt.NDArray[np.float32]


class SimulatedRobot:
    """One task in lock step: time stands still between two commands. Implements premotor.client's `Robot`."""

    def __init__(self, simulation: Simulation, seeds: Iterator[int]) -> None:
        """A reset sets the scene of the next of `seeds`; raises StopIteration after the last."""
        self._simulation, self._seeds = simulation, seeds
        self.num_steps = 0

    @property
    def finished(self) -> bool:
        """Whether the task was solved or its step limit is reached; a player's `until`."""
        return self._simulation.succeeded() or self.num_steps >= self._simulation.max_steps

    @property
    def succeeded(self) -> bool:
        return self._simulation.succeeded()

    def reset(self) -> None:
        self._simulation.reset(next(self._seeds))
        self.num_steps = 0

    def observe(self) -> RobotObservation:
        capture_time_s = time.monotonic()
        frame = self._simulation.observe()
        return RobotObservation(images=frame.images, state=frame.state, capture_time_s=capture_time_s)

    def state(self) -> Floats:
        return self._simulation.state()

    def act(self, action: Floats) -> Floats:
        """One control step of the simulation; nothing once the task is finished."""
        if self.finished:
            return action
        self.num_steps += 1
        return self._simulation.step(action)


class RealTime:
    """A simulated robot whose world goes on at its control rate, whether a command comes or not.

    A control step that went by without a command is simulated with the one that keeps the body still, as a robot's own
    controller would, and counted as late. A simulator that is slower than its control rate cannot do this: its world
    then stands still for the steps that it lost, which are counted as stalled and make any figure of time meaningless.
    """

    def __init__(
        self,
        robot: SimulatedRobot,
        spec: EmbodimentSpec,
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._robot, self._rate_hz, self._now_s = robot, spec.control_rate_hz, now_s
        self._hold = Hold(described(spec), still(spec))
        self._start_s: float | None = None
        self._num_steps = 0
        self._last_action: Floats | None = None
        self.num_late_steps = 0
        self.num_stalled_steps = 0

    @property
    def finished(self) -> bool:
        return self._robot.finished

    @property
    def succeeded(self) -> bool:
        return self._robot.succeeded

    def reset(self) -> None:
        """The world begins to move when it is first looked at."""
        self._robot.reset()
        self._start_s, self._last_action = None, None
        self._num_steps = self.num_late_steps = self.num_stalled_steps = 0

    def observe(self) -> RobotObservation:
        self._catch_up()
        return self._robot.observe()

    def state(self) -> Floats:
        self._catch_up()
        return self._robot.state()

    def act(self, action: Floats) -> Floats:
        self._catch_up()
        return self._step(action)

    def _catch_up(self) -> None:
        for _ in range(self._steps_behind()):
            self.num_late_steps += 1
            self._step(self._hold.action(self._robot.state(), self._last_action))
        # What went by while it was catching up would be caught up with later still, and so on without end.
        stalled = self._steps_behind()
        self.num_stalled_steps += stalled
        self._num_steps += stalled

    def _steps_behind(self) -> int:
        now_s = self._now_s()
        if self._start_s is None:
            self._start_s = now_s
        # The step of this very period is the one whose command may still come.
        due = math.floor((now_s - self._start_s) * self._rate_hz + 1e-6)
        return max(due - self._num_steps, 0)

    def _step(self, action: Floats) -> Floats:
        self._num_steps += 1
        self._last_action = self._robot.act(action)
        return self._last_action


def described(spec: EmbodimentSpec) -> Embodiment:
    """A spec as a gateway describes it to robots."""
    return Embodiment(
        name=spec.name,
        cameras=tuple(Camera(name=camera.name, height=camera.height, width=camera.width) for camera in spec.cameras),
        state=tuple(map(_described_group, spec.state)),
        action=tuple(map(_described_group, spec.action)),
        control_rate_hz=spec.control_rate_hz,
    )


def still(spec: EmbodimentSpec) -> LastPosition:
    """How a simulated body is held: where it was last told to be, or is; grippers and modes that nothing measures at 0.

    Zero is no effort for the simulators' grippers, and a mode moves nothing by itself. A real body's rule is its
    owner's to state. Raises ValueError where another group is not measured.
    """
    return LastPosition(first=unmeasured_at_zero(described(spec)))


def _described_group(group: SpecGroup) -> Group:
    return Group(
        name=group.name,
        dim=group.dim,
        kind=group.kind.value,
        unit=group.unit,
        representation=group.representation.value,
        lower_limit=group.lower_limit,
        upper_limit=group.upper_limit,
        step_limit=group.step_limit,
    )
