"""What action codes alone must say of a pair of frames: how far what moves got, as moments of masks and of flow.

Owns the differences between two frames and their scale; the numbers of one frame are ego_video/motion_moments.py's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from training.ego_video.motion_moments import NUM_MOMENTS, places
from training.ego_video.pack import ClipPack, FramePairs

NUM_MOTIONS = 2 * NUM_MOMENTS  # by masks, then by flow: x and y, of the whole and of its tip

Motions = npt.NDArray[np.float32]
_MIRROR = torch.tensor([-1.0, 1.0]).repeat(NUM_MOTIONS // 2)


class PairMotions:
    """How far what moves got between any two frames of a clip, in half pictures, NaN where that is not known: where a
    mask is empty, and by flow in a pack that has no `flow_steps`. Raises ValueError for a pack without masks.
    """

    def __init__(self, pack: ClipPack) -> None:
        if pack.masks is None:
            raise ValueError(f"clip pack {pack.directory} has no masks, which motion is read from")
        self._places = places(pack.masks)
        self._gone = np.full((pack.num_frames, NUM_MOMENTS), np.nan)
        if pack.flow_steps is not None:
            self._gone[0] = 0.0
            np.cumsum(pack.flow_steps[:-1], axis=0, dtype=np.float64, out=self._gone[1:])

    def between(self, frame: npt.NDArray[np.int64]) -> Motions:
        """Of frames [B, 2] counted through the whole pack, [B, NUM_MOTIONS]."""
        first, last = frame.T
        both = (self._places[last] - self._places[first], self._gone[last] - self._gone[first])
        return np.concatenate(both, axis=1).astype(np.float32)


def motion_scale(motions: Sequence[PairMotions], pairs: Sequence[FramePairs]) -> Motions:
    """The root mean square of each of the NUM_MOTIONS over all pairs; 1 of one that is never known or always 0."""
    all_of_them = np.concatenate(
        [each.between(of.places(np.arange(len(of)))[1]) for each, of in zip(motions, pairs, strict=True)]
    )
    known = np.isfinite(all_of_them)
    mean = np.square(np.where(known, all_of_them, 0)).sum(0) / np.maximum(known.sum(0), 1)
    return np.where(mean > 0, np.sqrt(mean), 1).astype(np.float32)


def mirrored_motions(
    motions: Float[Tensor, "batch motions"], mirrored: Bool[Tensor, " batch"]
) -> Float[Tensor, "batch motions"]:
    """As the mirrored pictures show them: to the left is to the right."""
    return torch.where(mirrored[:, None], motions * _MIRROR, motions)
