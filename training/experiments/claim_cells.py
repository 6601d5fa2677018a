"""How a claim of paper A's experiments stands in a table: ours with its interval, what is behind it, the paper's.

Reads the values of a results.json. Which claims there are and their verdicts are outcomes.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.experiments.markdown import sample_cell, seeds_cell

Values = Mapping[str, Any]


def claims(values: Values) -> list[Values]:
    return [*values["comparisons"], *values["ratios"]]


def estimate(claim: Values) -> Values | None:
    return claim["ratio"] if "ratio" in claim else claim["difference"]


def paper_value(claim: Values) -> float | None:
    if "ratio" in claim:
        return claim["paper_ratio"]
    return None if claim["paper_points"] is None else claim["paper_points"] / 100


def ours(claim: Values) -> str:
    found = estimate(claim)
    if found is None:
        return "-"
    if "ratio" in claim:
        interval = "one seed, no interval" if found["num_seeds"] == 1 else f"{found['low']:.2f} to {found['high']:.2f}"
        return f"{found['value']:.2f} times ({interval})"
    return points(found)


def points(found: Values) -> str:
    """A difference of successes in percentage points, with its interval."""
    value, low, high = (100 * found[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"


def sample(claim: Values) -> str:
    """How much stands behind ours."""
    if "ratio" not in claim:
        return sample_cell(claim["difference"])
    first, last = claim["steps"]
    return seeds_cell(claim["ratio"], f"{last - first + 1} steps")


def papers(claim: Values) -> str:
    if "ratio" in claim:
        return "-" if claim["paper_ratio"] is None else f"about {claim['paper_ratio']:.0f} times"
    return "-" if claim["paper_points"] is None else f"{claim['paper_points']:+.1f} points"
