"""A robot that is not there: any body of a policy, for examples, tests and load.

Owns frames that mean nothing and a state that follows commands as an ideal body would. Does not simulate physics.
"""

from __future__ import annotations

import time

import numpy as np

from premotor.client.description import Embodiment
from premotor.client.hold import measured_positions
from premotor.client.robot import RobotObservation
from premotor.client.synthetic import synthetic_frame, synthetic_vector


class SyntheticRobot:
    """Implements `Robot`. A state group takes what an absolute action group of its name, width and unit commands."""

    def __init__(self, embodiment: Embodiment, generator: np.random.Generator) -> None:
        self._embodiment, self._generator = embodiment, generator
        self._images = {camera.name: synthetic_frame(camera, generator) for camera in embodiment.cameras}
        self._state = synthetic_vector(embodiment.state, generator)
        self._follows = tuple(measured_positions(embodiment))

    def reset(self) -> None:
        self._state = synthetic_vector(self._embodiment.state, self._generator)

    def observe(self) -> RobotObservation:
        return RobotObservation(images=self._images, state=self.state(), capture_time_s=time.monotonic())

    def state(self) -> np.ndarray:
        return self._state.copy()

    def act(self, action: np.ndarray) -> np.ndarray:
        for position in self._follows:
            self._state[position.in_state] = action[position.in_action]
        return action
