"""Which frames step k trains on: a pure function of (seed, k), so a resumed run sees what an unbroken one would have.

Owns no loader state and reads no data. Each pack is walked by one fresh permutation of its frames per epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Counts per step repeat with this period, over which they match the weights to 1 / (_PERIOD * batch_size).
_PERIOD = 1024
_COUNTS_STREAM, _PERMUTATION_STREAM = 0, 1


class TaskBalancedSampler:
    """Batches that mix packs by weight, whatever the packs' sizes.

    Every step draws floor or ceil of weight * batch_size frames from each pack. Ranks take every world_size-th sample
    of the global batch, so the union over ranks does not depend on how many there are.
    """

    def __init__(
        self,
        num_frames_per_pack: Sequence[int],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        shares = np.asarray(weights, np.float64)
        if not len(num_frames_per_pack) or min(num_frames_per_pack) < 1:
            raise ValueError(
                f"packs of {list(num_frames_per_pack)} frames, expected at least one pack and one frame in each"
            )
        if shares.shape != (len(num_frames_per_pack),) or not np.isfinite(shares).all() or (shares <= 0).any():
            raise ValueError(
                f"weights {list(weights)} for {len(num_frames_per_pack)} packs, expected a positive one for each"
            )
        if batch_size < 1 or batch_size % world_size or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size {batch_size} for rank {rank} of {world_size}, expected a multiple of the ranks"
            )
        self._num_frames = [int(number) for number in num_frames_per_pack]
        self._seed, self._rank, self._world_size = seed, rank, world_size
        counts = _counts_per_step(shares / shares.sum(), batch_size, np.random.default_rng([seed, _COUNTS_STREAM]))
        if not counts.any(axis=0).all():
            raise ValueError(
                f"weights {list(weights)} leave a pack without a frame in {_PERIOD} batches of {batch_size}"
            )
        self._drawn = np.concatenate([np.zeros((1, len(shares)), np.int64), counts.cumsum(0)])  # before each step
        self._permutations: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}

    def batch(self, step: int) -> list[tuple[int, npt.NDArray[np.int64]]]:
        """This rank's samples of global step `step`: (pack index, frame indices), packs that gave none left out."""
        if step < 0:
            raise ValueError(f"step is {step}, expected at least 0")
        period, phase = divmod(step, _PERIOD)
        before = period * self._drawn[-1] + self._drawn[phase]
        counts = self._drawn[phase + 1] - self._drawn[phase]
        picks, offset = [], 0
        for pack, (start, count) in enumerate(zip(before.tolist(), counts.tolist(), strict=True)):
            mine = np.arange(start + (self._rank - offset) % self._world_size, start + count, self._world_size)
            if len(mine):
                picks.append((pack, self._frames(pack, mine)))
            offset += count
        return picks

    def _frames(self, pack: int, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The frames at positions of the endless walk over a pack, epoch after epoch."""
        epochs, places = np.divmod(positions, self._num_frames[pack])
        frames = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            frames[chosen] = self._permutation(pack, epoch)[places[chosen]]
        return frames

    def _permutation(self, pack: int, epoch: int) -> npt.NDArray[np.int64]:
        cached = self._permutations.get(pack)
        if cached is None or cached[0] != epoch:
            generator = np.random.default_rng([self._seed, _PERMUTATION_STREAM, pack, epoch])
            cached = self._permutations[pack] = (epoch, generator.permutation(self._num_frames[pack]))
        return cached[1]


def _counts_per_step(
    shares: npt.NDArray[np.float64], batch_size: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Frames per pack for each step of a period, rows summing to batch_size: systematic resampling."""
    borders = np.cumsum(shares) * batch_size
    borders[-1] = batch_size
    offsets = (generator.permutation(_PERIOD) + 0.5) / _PERIOD
    upto = np.clip(np.ceil(borders[None, :] - offsets[:, None]), 0, batch_size).astype(np.int64)
    return np.diff(upto, axis=1, prepend=0)
