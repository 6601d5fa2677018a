"""Whether two chunks are the same actions. Speed that changes what a robot does counts for nothing.

Owns the measure and the tolerance.
"""

from __future__ import annotations

import math

import numpy as np

# What batching and another process may change by rounding.
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}


def are_equal(difference: float, *, dtype: str) -> bool:
    return difference <= TOLERANCE[dtype]


def action_difference(actions: np.ndarray, expected: np.ndarray) -> float:
    """The largest of any value, relative to 1 + the expected one's size.

    Infinite for another shape, which would be broadcast, and for what is not finite, which compares as nothing.
    """
    if actions.shape != expected.shape or not (np.isfinite(actions).all() and np.isfinite(expected).all()):
        return math.inf
    return float((np.abs(actions - expected) / (1 + np.abs(expected))).max(initial=0.0))
