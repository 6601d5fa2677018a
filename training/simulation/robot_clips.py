"""Clips of robots that hide their actions: experts at their tasks, filmed with what only a simulator knows.

The counterpart of hand_clips.py on the robots' own cameras, which stand still: their scenery never shifts. A clip is a
function of its task and seed. Owns which camera films a body and which point is its effector; keeps no state and no
action. Needs `MUJOCO_GL` set before mujoco is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from training.ego_video.pack import Clip
from training.simulation.registry import make_simulation
from training.simulation.rendering import Stage, check_frame
from training.simulation.task import IMAGE_SIZE, Simulation

Pixels = npt.NDArray[np.uint8]

_STEPS_AFTER_SUCCESS = 6
_MOVING_M = 0.003  # a part that gets as far between the frames around one is moving there
_TURNING = 0.03  # the same for the entries of its rotation matrix
# By body: the camera that films it, the first of its spec, and MuJoCo's name of the point between its fingers.
_FILMED = {"sawyer": ("left", "endEffector"), "panda": ("front", "gripper0_right_grip_site")}


@dataclass(frozen=True, kw_only=True)
class RobotClip:
    """One clip of T frames as ClipPackWriter.add takes it; all but frames and words is privileged."""

    clip: Clip
    frames: Pixels  # [T, S, S, 3]
    truth: Pixels  # [T, S, S], all that moves
    effector: npt.NDArray[np.float32]  # [T, 2], NaN out of the picture
    scenery: npt.NDArray[np.float32]  # [T, 2], zeros


class _Staged(Simulation, Protocol):
    def stage(self) -> Stage: ...


def film_robot(
    task: str, seeds: Sequence[int], *, image_size: int, steps_per_frame: int, rate_hz: float
) -> Iterator[RobotClip]:
    """A clip of each scene that the expert solves, a frame every `steps_per_frame` control steps.

    `rate_hz` is what the clip says of itself: bodies that move at another pace than hands are shown at theirs. Raises
    ValueError for a body of which no effector is known and a size that does not divide a camera's.
    """
    if image_size < 1 or IMAGE_SIZE % image_size:
        raise ValueError(f"image_size is {image_size}, expected a divisor of {IMAGE_SIZE}")
    simulation = cast(_Staged, make_simulation(task))
    try:
        body = simulation.spec.name
        if body not in _FILMED:
            raise ValueError(f"task {task!r} is on {body!r}, whose effector is not known; expected {sorted(_FILMED)}")
        for seed in seeds:
            taken = _take(simulation, seed, steps_per_frame, *_FILMED[body])
            if taken is not None:
                yield _developed(taken, simulation, seed, image_size, rate_hz)
    finally:
        simulation.close()


@dataclass(frozen=True)
class _Taken:
    images: Pixels  # [T, 128, 128, 3]
    geoms: npt.NDArray[np.int32]  # [T, 128, 128]
    poses: npt.NDArray[np.float64]  # [T, num geoms, 12]: place, rotation matrix
    effector: npt.NDArray[np.float64]  # [T, 2]


def _take(simulation: _Staged, seed: int, steps_per_frame: int, camera: str, site: str) -> _Taken | None:
    simulation.reset(seed)
    expert = simulation.expert()
    rows: list[tuple[Any, ...]] = []
    steps_left, solved = simulation.max_steps, False
    step = 0
    while steps_left > 0:
        if step % steps_per_frame == 0:
            image = simulation.observe().images[camera]
            check_frame({camera: image})
            stage = simulation.stage()
            data = stage.data
            poses = np.concatenate([data.geom_xpos, data.geom_xmat], axis=1)
            place = stage.renderer.project(data, camera, data.site(site).xpos)
            rows.append((image, stage.renderer.geoms(data, camera), poses, place))
        simulation.step(next(expert))
        step, steps_left = step + 1, steps_left - 1
        if simulation.succeeded() and not solved:
            solved, steps_left = True, _STEPS_AFTER_SUCCESS
    return _Taken(*(np.stack(column) for column in zip(*rows, strict=True))) if solved else None


def _developed(taken: _Taken, simulation: Simulation, seed: int, image_size: int, rate_hz: float) -> RobotClip:
    moving = _moving(taken.poses)
    shown = np.where(taken.geoms < 0, 0, taken.geoms)
    moved = (taken.geoms >= 0) & np.take_along_axis(moving, shown.reshape(len(shown), -1), 1).reshape(shown.shape)
    inside = (np.abs(taken.effector) <= 1).all(axis=1, keepdims=True)
    return RobotClip(
        clip=Clip(
            name=f"{simulation.task}-{seed:07d}",
            source=f"simulated {simulation.spec.name}, task {simulation.task}, seed {seed}",
            rate_hz=rate_hz,
            instruction=simulation.instruction,
            body=simulation.spec.name,
        ),
        frames=_pooled(taken.images, image_size),
        truth=_pooled(255.0 * moved, image_size),
        effector=np.where(inside, taken.effector, np.nan).astype(np.float32),
        scenery=np.zeros((len(moved), 2), np.float32),
    )


def _moving(poses: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which geoms move around each frame, [T, num geoms]."""
    before, after = np.concatenate([poses[:1], poses[:-1]]), np.concatenate([poses[1:], poses[-1:]])
    change = np.abs(after - before)
    return (change[..., :3].max(-1) > _MOVING_M) | (change[..., 3:].max(-1) > _TURNING)


def _pooled(images: npt.NDArray[Any], size: int) -> Pixels:
    """[T, n * size, n * size, ...] to uint8 [T, size, size, ...], the mean of each square of n pixels."""
    side = images.shape[1] // size
    squares = images.reshape(len(images), size, side, size, side, *images.shape[3:])
    return (squares.mean(axis=(2, 4)) + 0.5).astype(np.uint8)
