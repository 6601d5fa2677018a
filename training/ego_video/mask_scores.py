"""How well masks of motion fit a simulator's segmentation: intersection over union, over the frames that move.

Owns the score alone. `truth`, `effector` and `scenery` of a pack are privileged: nothing here may reach training.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.ego_video.pack import ClipPack, Masks, Places

MIN_SPEED = 0.1  # half pictures per second, of the effector against the scenery


@dataclass(frozen=True, kw_only=True)
class MaskScore:
    """`mean_iou` is over the `num_moving` frames that move, `mean_iou_of_all` over every frame: means of clips' means.

    `sources` and `clips` have the frames that move of each source and clip, by name. A clip in which nothing moves
    counts in the second mean alone.
    """

    mean_iou: float
    mean_iou_of_all: float
    num_frames: int
    num_moving: int
    sources: Mapping[str, float]
    clips: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        return {
            "mean_iou": self.mean_iou,
            "mean_iou_of_all": self.mean_iou_of_all,
            "num_frames": self.num_frames,
            "num_moving": self.num_moving,
            "sources": dict(self.sources),
            "clips": dict(self.clips),
        }


def iou(mask: Masks, truth: Masks) -> float:
    """Of two masks [H, W], a pixel being in one from 128 on; 1 where both are empty."""
    found, there = mask >= 128, truth >= 128
    union = np.count_nonzero(found | there)
    return np.count_nonzero(found & there) / union if union else 1.0


def mean_iou(masks: Masks, truth: Masks, moves: npt.NDArray[np.bool_]) -> float:
    """Over the frames [T] of a clip that move, one at least."""
    return float(np.mean([iou(masks[at], truth[at]) for at in np.flatnonzero(moves)]))


def moving_frames(effector: Places, scenery: Places, rate_hz: float) -> npt.NDArray[np.bool_]:
    """In which frames [T] the effector moves against the scenery, faster than MIN_SPEED; unknown is moving."""
    velocity = np.gradient((effector - scenery).astype(np.float64), 1 / rate_hz, axis=0)
    speed = np.linalg.norm(velocity, axis=1)
    return ~(speed < MIN_SPEED)


def score_masks(pack: ClipPack) -> MaskScore:
    """The pack's masks against its truth. Raises ValueError when it lacks one of the arrays needed or nothing moves."""
    masks, truth, effector, scenery = pack.masks, pack.truth, pack.effector, pack.scenery
    if masks is None or truth is None or effector is None or scenery is None:
        raise ValueError(f"clip pack {pack.directory} lacks masks, truth, effector or scenery, which a score needs")
    of_moving: dict[str, float] = {}
    of_source: defaultdict[str, list[float]] = defaultdict(list)
    of_all, num_moving = [], 0
    for clip in pack.clips:
        rows = pack.frames_of(clip)
        moves = moving_frames(effector[rows], scenery[rows], clip.rate_hz)
        of_all.append(mean_iou(masks[rows], truth[rows], np.ones_like(moves)))
        if moves.any():
            num_moving += int(moves.sum())
            of_moving[clip.name] = mean_iou(masks[rows], truth[rows], moves)
            of_source[clip.source].append(of_moving[clip.name])
    if not of_moving:
        raise ValueError(f"clip pack {pack.directory} has no frame in which the effector moves")
    return MaskScore(
        mean_iou=float(np.mean(list(of_moving.values()))),
        mean_iou_of_all=float(np.mean(of_all)),
        num_frames=pack.num_frames,
        num_moving=num_moving,
        sources={source: float(np.mean(scores)) for source, scores in sorted(of_source.items())},
        clips=of_moving,
    )
