"""The numbers normalisation needs, per embodiment: streaming, mergeable, the same in whatever order parts are merged.

Quantiles are exact until a dimension has more distinct float32 values than are kept; then neighbouring values share a
counter, a power of two of them, so that merging stays a sum of counters. Statistics are applied by
policy/normalization.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from policy.embodiment import EmbodimentSpec, Group, group_slices
from training.data.pack import Pack

MAX_DISTINCT = 2**20
_ROWS_PER_READ = 2**18
_QUANTILES = {"q01": 0.01, "q99": 0.99}


class ValueCounts:
    """How often each float32 value came in one dimension; beyond max_distinct values, how often each bin of them."""

    def __init__(self, max_distinct: int) -> None:
        self._max_distinct = max_distinct
        self._keys = np.empty(0, np.int64)
        self._counts = np.empty(0, np.int64)
        self._shift = 0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        keys, counts = np.unique(_ordered_keys(values), return_counts=True)
        self._absorb(keys, counts, 0)

    def merge(self, other: ValueCounts) -> None:
        self._absorb(other._keys, other._counts, other._shift)

    def quantile(self, quantile: float) -> float:
        """Linear interpolation between order statistics, as numpy's default."""
        cumulative = np.cumsum(self._counts)
        position = quantile * (cumulative[-1] - 1)
        below = int(np.floor(position))
        ranks = np.array([below, min(below + 1, cumulative[-1] - 1)])
        low, high = self._values(self._keys[np.searchsorted(cumulative, ranks, side="right")])
        return float(low + (high - low) * (position - below))

    def _absorb(self, keys: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], shift: int) -> None:
        target = max(self._shift, shift)
        keys = np.concatenate([self._keys >> (target - self._shift), keys >> (target - shift)])
        counts = np.concatenate([self._counts, counts])
        self._keys, self._counts = _sum_by_key(keys, counts)
        self._shift = target
        # The number of bins only grows as values come, so the coarsest width needed does not depend on their order.
        while len(self._keys) > self._max_distinct:
            self._shift += 1
            self._keys, self._counts = _sum_by_key(self._keys >> 1, self._counts)

    def _values(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        middle = (keys << self._shift) + ((1 << self._shift) >> 1)
        bits = np.where(middle < 0, -middle | 0x80000000, middle).astype(np.uint32)
        return bits.view(np.float32).astype(np.float64)


class RunningStatistics:
    """Count, mean, standard deviation, extremes and quantiles of rows [n, dim] that come in parts."""

    def __init__(self, dim: int, *, max_distinct: int = MAX_DISTINCT) -> None:
        self._dim = dim
        self._count = 0
        self._mean = np.zeros(dim)
        self._m2 = np.zeros(dim)
        self._min = np.full(dim, np.inf)
        self._max = np.full(dim, -np.inf)
        self._values = [ValueCounts(max_distinct) for _ in range(dim)]

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """Raises ValueError for rows of another width, another dtype or with a value that is not finite."""
        if rows.ndim != 2 or rows.shape[1] != self._dim or rows.dtype != np.float32:
            raise ValueError(f"rows are {rows.dtype} {rows.shape}, expected float32 [n, {self._dim}]")
        if not np.isfinite(rows).all():
            raise ValueError(f"row {int(np.argwhere(~np.isfinite(rows))[0][0])} of {len(rows)} is not finite")
        if not len(rows):
            return
        wide = rows.astype(np.float64)
        mean = wide.mean(0)
        self._merge_moments(len(rows), mean, ((wide - mean) ** 2).sum(0), wide.min(0), wide.max(0))
        for counts, column in zip(self._values, rows.T, strict=True):
            counts.add(column)

    def merge(self, other: RunningStatistics) -> None:
        if other._dim != self._dim:
            raise ValueError(f"statistics of {other._dim} dimensions cannot join those of {self._dim}")
        self._merge_moments(other._count, other._mean, other._m2, other._min, other._max)
        for counts, others in zip(self._values, other._values, strict=True):
            counts.merge(others)

    def to_json(self) -> dict[str, list[float]]:
        """One number a dimension for each name. Raises ValueError when no row came."""
        if not self._count:
            raise ValueError("statistics of no rows")
        stats: dict[str, list[float]] = {
            "mean": self._mean.tolist(),
            "std": np.sqrt(self._m2 / self._count).tolist(),
            "min": self._min.tolist(),
            "max": self._max.tolist(),
        }
        for name, quantile in _QUANTILES.items():
            values = np.array([counts.quantile(quantile) for counts in self._values])
            stats[name] = np.clip(values, self._min, self._max).tolist()
        stats["count"] = [self._count] * self._dim
        return stats

    def _merge_moments(self, count: int, mean: Any, m2: Any, low: Any, high: Any) -> None:
        """Chan's update, which keeps its digits where sums of squares lose them."""
        if not count:
            return
        total = self._count + count
        delta = mean - self._mean
        self._mean = self._mean + delta * (count / total)
        self._m2 = self._m2 + m2 + delta**2 * (self._count * count / total)
        self._min, self._max = np.minimum(self._min, low), np.maximum(self._max, high)
        self._count = total


class EmbodimentStatistics:
    """Statistics of one embodiment's states, and of its actions as the model sees them.

    An absolute or delta group counts every action once. A relative group counts a_{t+i} - s_t for every frame t and
    every real step i of its chunk, which is what normalisation meets; so `count` differs by dimension.
    """

    def __init__(self, spec: EmbodimentSpec, *, horizon: int) -> None:
        self.spec, self.horizon = spec, horizon
        self._state = RunningStatistics(spec.state_dim)
        self._action = [RunningStatistics(group.dim) for group in spec.action]

    def add(self, pack: Pack) -> None:
        if pack.spec.digest != self.spec.digest:
            raise ValueError(
                f"pack {pack.directory} is of another embodiment {pack.spec.name!r} than {self.spec.name!r}"
            )
        for start in range(0, pack.num_frames, _ROWS_PER_READ):
            frames = np.arange(start, min(start + _ROWS_PER_READ, pack.num_frames))
            self._state.add(pack.state[frames])
            for (group, columns), statistics in zip(group_slices(self.spec.action), self._action, strict=True):
                if group.relative_to is None:
                    statistics.add(pack.action[frames][:, columns])
                else:
                    statistics.add(self._relative(pack, frames, group, columns))

    def merge(self, other: EmbodimentStatistics) -> None:
        if (other.spec.digest, other.horizon) != (self.spec.digest, self.horizon):
            raise ValueError(
                f"statistics of {other.spec.name!r} cannot join those of {self.spec.name!r}: spec or horizon differ"
            )
        self._state.merge(other._state)
        for statistics, others in zip(self._action, other._action, strict=True):
            statistics.merge(others)

    def to_json(self) -> dict[str, dict[str, list[float]]]:
        parts = [statistics.to_json() for statistics in self._action]
        action = {name: [number for part in parts for number in part[name]] for name in parts[0]}
        return {"state": self._state.to_json(), "action": action}

    def _relative(
        self, pack: Pack, frames: npt.NDArray[np.int64], group: Group, columns: slice
    ) -> npt.NDArray[np.float32]:
        anchor_columns = next(
            found for state, found in group_slices(self.spec.state) if state.name == group.relative_to
        )
        episode = pack.episode_of(frames)
        end = pack.episode_start[episode] + pack.episode_length[episode]
        anchors = pack.state[frames][:, anchor_columns]
        parts = []
        for offset in range(self.horizon):
            real = frames + offset < end
            parts.append(pack.action[frames[real] + offset][:, columns] - anchors[real])
        return np.concatenate(parts)


def embodiment_statistics(packs: Sequence[Pack], *, horizon: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Embodiment name -> {"state": ..., "action": ...} over all of its packs; different bodies are never merged.

    Raises ValueError when two packs give one name to different specs.
    """
    found: dict[str, EmbodimentStatistics] = {}
    for pack in packs:
        found.setdefault(pack.spec.name, EmbodimentStatistics(pack.spec, horizon=horizon)).add(pack)
    return {name: statistics.to_json() for name, statistics in found.items()}


def _ordered_keys(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Integers in the order of the floats, neighbours for neighbouring floats; -0.0 is 0.0."""
    bits = np.ascontiguousarray(values).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _sum_by_key(
    keys: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    if not len(keys):
        return keys, counts
    order = np.argsort(keys, kind="stable")  # two sorted runs: a merge, not a sort
    keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[first], np.add.reduceat(counts, first)
