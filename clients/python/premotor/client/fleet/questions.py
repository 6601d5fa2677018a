"""What the robots of a fleet see: observations that differ from one question to the next.

Owns the making of them, before the clock starts where it costs time. Does not own when they are sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from premotor.client.description import Camera, Embodiment, PolicyDescription
from premotor.client.history import HistoryBuffer
from premotor.client.images import ImageEncoding
from premotor.client.synthetic import synthetic_arguments

# Frames are drawn once and come round after so many questions; no two questions have the same state and seed.
NUM_VIEWS = 24
# An episode stays on the revision it began on, so a swap is seen at the next one.
QUESTIONS_PER_EPISODE = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One observation. `view` numbers its frames within the run, for a wire that has them at its other end already."""

    images: Mapping[str, np.ndarray | bytes]
    state: np.ndarray
    instruction: str
    history: HistoryBuffer | None
    seed: int
    episode: int
    view: int


class Questions:
    """Observations of one body, of any number of robots."""

    def __init__(
        self,
        description: PolicyDescription,
        embodiment: Embodiment,
        *,
        image_encoding: ImageEncoding,
        with_history: bool,
        seed: int,
        policy_seed: int | None = None,
    ) -> None:
        rng = np.random.default_rng(seed)
        self._views = [
            synthetic_arguments(
                description, embodiment, robot_id="fleet", episode_id="fleet", image_encoding=image_encoding, rng=rng
            )
            for _ in range(NUM_VIEWS)
        ]
        self._embodiment = embodiment
        self._with_history = with_history
        self._policy_seed = policy_seed

    def describe(self) -> dict[str, Any]:
        """What one question holds, without what a wire adds to it."""
        view = self._views[0]
        frames = view["images"].values()
        return {
            "embodiment": self._embodiment.name,
            "cameras": [f"{camera.name} {camera.width}x{camera.height}" for camera in self._embodiment.cameras],
            "frame_bytes": sum(frame.nbytes if isinstance(frame, np.ndarray) else len(frame) for frame in frames),
            "state_bytes": view["state"].nbytes,
            "instruction_bytes": len(view["instruction"].encode()),
        }

    @property
    def views(self) -> tuple[Mapping[str, np.ndarray | bytes], ...]:
        return tuple(view["images"] for view in self._views)

    def question(self, robot: int, number: int) -> Question:
        """The `number`-th of a robot: a function of these two and the seed."""
        index = (7 * robot + number) % NUM_VIEWS
        view, other = self._views[index], self._views[(index + 1 + number // NUM_VIEWS) % NUM_VIEWS]
        # Between two states inside the limits lie only such; the share is another for every question.
        share = np.float32(np.modf((number * 64 + robot) * 0.6180339887)[0])
        return Question(
            images=view["images"],
            state=(1 - share) * view["state"] + share * other["state"],
            instruction=view["instruction"],
            history=view.get("history") if self._with_history else None,
            seed=1_000 * number + robot if self._policy_seed is None else self._policy_seed,
            episode=number // QUESTIONS_PER_EPISODE,
            view=index,
        )


def with_frames(embodiment: Embodiment, num_cameras: int, height: int, width: int) -> Embodiment:
    """The body with frames of that size. Raises ValueError when it has another number of cameras."""
    if num_cameras != len(embodiment.cameras):
        names = [camera.name for camera in embodiment.cameras]
        raise ValueError(f"{num_cameras} cameras came, {embodiment.name!r} has {len(names)}: {names}")
    cameras = tuple(Camera(name=camera.name, height=height, width=width) for camera in embodiment.cameras)
    return replace(embodiment, cameras=cameras)
