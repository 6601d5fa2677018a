"""Observations that a policy accepts and that mean nothing, to load a service with.

Owns random frames, states and histories that fit a policy's description. Frames are smooth with a little noise, as
camera frames are: pure noise would make every JPEG several times too large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from premotor.client.chunks import ChunkArguments
from premotor.client.description import Camera, Embodiment, Group, PolicyDescription
from premotor.client.history import HistoryBuffer
from premotor.client.images import ImageEncoding, encode_jpeg

INSTRUCTION = "pick up the object and put it at the goal"
_PATCH_PIXELS = 16
_NOISE_LEVELS = 8


def synthetic_arguments(
    description: PolicyDescription,
    embodiment: Embodiment,
    *,
    robot_id: str,
    episode_id: str,
    image_encoding: ImageEncoding,
    rng: np.random.Generator,
) -> ChunkArguments:
    """What `predict_chunk` takes: every camera at its own resolution, already encoded, and a full history."""
    frames = {camera.name: synthetic_frame(camera, rng) for camera in embodiment.cameras}
    history = HistoryBuffer(description.history_steps, embodiment.state_dim, embodiment.action_dim)
    for _ in range(description.history_steps):
        history.append(synthetic_vector(embodiment.state, rng), synthetic_vector(embodiment.action, rng))
    return ChunkArguments(
        policy=description.name,
        robot_id=robot_id,
        episode_id=episode_id,
        embodiment=embodiment.name,
        images={name: encode_jpeg(frame) if image_encoding == "jpeg" else frame for name, frame in frames.items()},
        state=synthetic_vector(embodiment.state, rng),
        instruction=INSTRUCTION,
        history=history,
        image_encoding=image_encoding,
    )


def synthetic_frame(camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """RGB pixels of the camera's own resolution: uint8 [height, width, 3]."""
    rows, columns = (math.ceil(extent / _PATCH_PIXELS) for extent in (camera.height, camera.width))
    patches = rng.integers(0, 256 - _NOISE_LEVELS, (rows, columns, 3), np.uint8)
    smooth = patches.repeat(_PATCH_PIXELS, 0).repeat(_PATCH_PIXELS, 1)[: camera.height, : camera.width]
    return smooth + rng.integers(0, _NOISE_LEVELS, smooth.shape, np.uint8)


def synthetic_vector(groups: Sequence[Group], rng: np.random.Generator) -> np.ndarray:
    """Values inside the groups' limits: float32 [sum of dims]."""
    bounds = [
        _finite_bounds(lower, upper)
        for group in groups
        for lower, upper in zip(
            group.lower_limit or (-math.inf,) * group.dim, group.upper_limit or (math.inf,) * group.dim, strict=True
        )
    ]
    lower, upper = np.array(bounds).T
    return rng.uniform(lower, upper).astype(np.float32)


def _finite_bounds(lower: float, upper: float) -> tuple[float, float]:
    """One unit from the finite side, or around zero, where a side is open."""
    if math.isinf(lower) and math.isinf(upper):
        return -1.0, 1.0
    return (upper - 1.0 if math.isinf(lower) else lower), (lower + 1.0 if math.isinf(upper) else upper)
