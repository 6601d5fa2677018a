"""Ratios of interleaved rounds: the median, and how far it may be off by chance.

Owns the statistics. A ratio is always taken inside a round, whose blocks the machine's other work met alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_DRAWS = 4000


def median_interval(values: Sequence[float]) -> dict[str, Any] | None:
    """The median of the rounds and 95 % of the medians of rounds drawn again, with replacement; None without rounds."""
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return None
    drawn = np.random.default_rng(0).choice(known, (_DRAWS, len(known)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5)).tolist()
    return {"median": float(np.median(known)), "low": low, "high": high, "rounds": [float(value) for value in known]}


def round_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, Any] | None:
    """As `median_interval`, of the ratio in each round; a round in which the denominator is 0 has none."""
    pairs = zip(numerators, denominators, strict=True)
    return median_interval([upper / lower for upper, lower in pairs if lower > 0])
