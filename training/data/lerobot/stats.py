"""The statistics lerobot keeps beside a dataset, per episode and over all, in its layout and by its keys.

These serve other tools that read our datasets. What normalises a policy is training/data/statistics.py.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


class FeatureStats(Protocol):
    def add(self, values: np.ndarray) -> None: ...

    def to_json(self) -> dict[str, Any]: ...


class NumericStats:
    """Exact statistics per element; keeps every value, which for numeric features is small."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        """values: [length] or [length, *shape]."""
        self._parts.append(values[:, None] if values.ndim == 1 else values)

    def to_json(self) -> dict[str, Any]:
        values = np.concatenate(self._parts)
        wide = values.astype(np.float64)
        stats = {
            "min": values.min(0),
            "max": values.max(0),
            "mean": wide.mean(0),
            "std": wide.std(0),
            "count": np.array([len(values)]),
        }
        stats |= dict(zip(_QUANTILES, np.quantile(wide, list(_QUANTILES.values()), axis=0), strict=True))
        return {name: value.tolist() for name, value in stats.items()}


class ImageStats:
    """Exact statistics per colour channel, in [0, 1] and shape (3, 1, 1): 256 counters a channel say it all."""

    def __init__(self) -> None:
        self._num_pixels = np.zeros((3, 256), np.int64)
        self._num_frames = 0

    def add(self, values: np.ndarray) -> None:
        """values: uint8 [length, height, width, 3]."""
        for channel in range(3):
            self._num_pixels[channel] += np.bincount(values[..., channel].reshape(-1), minlength=256)
        self._num_frames += len(values)

    def to_json(self) -> dict[str, Any]:
        levels = np.arange(256) / 255
        per_channel = [_level_stats(levels, counts) for counts in self._num_pixels]
        stats = {name: [[[channel[name]]] for channel in per_channel] for name in per_channel[0]}
        return {**stats, "count": [self._num_frames]}


def _level_stats(levels: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    total, below = counts.sum(), counts.cumsum()
    present = np.flatnonzero(counts)
    mean = float((levels * counts).sum() / total)
    stats = {
        "min": float(levels[present[0]]),
        "max": float(levels[present[-1]]),
        "mean": mean,
        "std": float(np.sqrt((counts * (levels - mean) ** 2).sum() / total)),
    }
    for name, quantile in _QUANTILES.items():
        stats[name] = float(levels[np.searchsorted(below, quantile * (total - 1), side="right")])
    return stats
