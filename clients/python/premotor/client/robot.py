"""What a chunk player needs of a robot.

Owns the protocol alone; bodies and their drivers implement it (adapters/, or a few lines of one's own).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class RobotObservation:
    """What a robot perceives at one instant.

    `images` maps camera name to RGB pixels, uint8 [height, width, 3], or to the bytes of a JPEG or PNG file. They are
    encoded in another thread: they must not be written to afterwards. `state` is [state_dim] in the embodiment's units.
    `capture_time_s` is when the frames were taken, on the player's clock: the monotonic one, unless it was given
    another. The chunk is for the control step of that moment, so stamp after a read that waits for a camera.
    """

    images: Mapping[str, np.ndarray | bytes]
    state: np.ndarray
    capture_time_s: float


class Robot(Protocol):
    """One body. All methods are called from one thread, the one that plays, and should return well within a step.

    Where `observe` or `state` does not, the steps that pass meanwhile are skipped, their actions with them.
    """

    def reset(self) -> None:
        """Makes ready for a new episode, before its first step."""
        ...

    def observe(self) -> RobotObservation:
        """The newest frame of every camera, and the state. Called for the steps at which a chunk is asked for."""
        ...

    def state(self) -> np.ndarray:
        """The state alone, [state_dim]. Called for all other steps."""
        ...

    def act(self, action: np.ndarray) -> np.ndarray:
        """Sends one command, float32 [action_dim], without waiting for its end; returns it as sent, clipped or not."""
        ...
