"""Ratios of interleaved rounds: the median, and how far it may be off by chance.

Owns the statistics. A ratio is always taken inside a round, whose blocks the machine's other work met alike. NaN is a
round that counts for nothing. A round in which a peer got nothing at all counts: there the ratio is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

_DRAWS = 4000

# What is known of a ratio when what both ways, the one or the other could have given is not: "open" is nothing.
Bound = Literal["", "at least", "at most", "open"]


def median_interval(values: Sequence[float]) -> dict[str, Any] | None:
    """The median of the rounds and 95 % of the medians of rounds drawn again, with replacement; None without rounds.

    Numbers may be infinite. `rounds` are those that count, `num_without` how many do not.
    """
    known = [float(value) for value in values if not math.isnan(value)]
    if not known:
        return None
    drawn = np.random.default_rng(0).choice(known, (_DRAWS, len(known)))
    # Not interpolated: between two infinities lies no number.
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5), method="nearest").tolist()
    return {
        "median": float(np.median(known)),
        "low": low,
        "high": high,
        "rounds": known,
        "num_without": len(values) - len(known),
    }


def round_ratios(
    numerators: Sequence[float], denominators: Sequence[float], *, bound: Bound = ""
) -> dict[str, Any] | None:
    """As `median_interval`, of the ratio in each round; `bound` is passed on.

    Where the denominator is 0 and the numerator is not, the ratio is infinite; where both are, there is none.
    """
    found = median_interval([_ratio(upper, lower) for upper, lower in zip(numerators, denominators, strict=True)])
    return None if found is None else {**found, "bound": bound}


def bound(*, own_is_open: bool, other_is_open: bool) -> Bound:
    """Of a ratio of two figures, either of which may only be known not to be smaller than it is."""
    if own_is_open and other_is_open:
        return "open"
    return "at least" if own_is_open else "at most" if other_is_open else ""


def _ratio(upper: float, lower: float) -> float:
    if math.isnan(upper) or math.isnan(lower):
        return math.nan
    if lower > 0:
        return upper / lower
    return math.inf if upper > 0 else math.nan
