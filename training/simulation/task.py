"""What a simulated task on one body is: the protocol that recording, evaluation and the demo drive, and its frames.

Owns no simulator and imports none: each simulator's module implements `Simulation`, and registry.py finds the tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from policy.embodiment import EmbodimentSpec

IMAGE_SIZE = 128  # pixels, height and width of every camera


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One instant of a task.

    `environment_state` is privileged (object and goal positions, metres): for auxiliary losses and checks, never for
    a policy.
    """

    images: Mapping[str, npt.NDArray[np.uint8]]  # camera name -> [128, 128, 3], RGB, upright
    state: npt.NDArray[np.float32]  # [state_dim]
    environment_state: npt.NDArray[np.float32]  # [num names]


class Simulation(Protocol):
    """One task on one body. Not thread-safe: one instance per process or thread."""

    task: str
    instruction: str
    spec: EmbodimentSpec
    max_steps: int
    environment_state_names: tuple[str, ...]

    def reset(self, seed: int) -> None:
        """Set the scene of this seed: the same one in any process, whatever ran before."""
        ...

    def observe(self) -> Frame:
        """Render every camera and read the state."""
        ...

    def state(self) -> npt.NDArray[np.float32]:
        """The state alone, float32 [state_dim], without rendering: what a robot logs between two observations."""
        ...

    def environment_state(self) -> npt.NDArray[np.float32]:
        """What a frame's `environment_state` holds, float32 [num names], without rendering."""
        ...

    def step(self, action: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Play one action, float32 [action_dim] in the spec's units; returns the action as executed (clipped)."""
        ...

    def succeeded(self) -> bool:
        """Whether the task was solved, now or at an earlier step since the reset."""
        ...

    def expert(self) -> Iterator[npt.NDArray[np.float32]]:
        """The scripted expert, after a reset: each `next` gives its action for the true state of that moment."""
        ...

    def close(self) -> None:
        """Free the renderer and the simulator."""
        ...
