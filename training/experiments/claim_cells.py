"""How a claim of paper A's experiments stands in a table: ours, its interval, its sample, the paper's, its footnotes.

Reads the values of a results.json. Which claims there are and their verdicts are outcomes.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.experiments.markdown import count, sample_cell, seeds_cell

# Arms whose trainings compute more different amounts than this are said to.
_ALIKE_COMPUTE = 0.05
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
    return seeds_cell(claim["ratio"], count(last - first + 1, "step"))


def papers(claim: Values) -> str:
    if "ratio" in claim:
        return "-" if claim["paper_ratio"] is None else f"about {claim['paper_ratio']:.0f} times"
    return "-" if claim["paper_points"] is None else f"{claim['paper_points']:+.1f} points"


def remarks(claim: Values, values: Values) -> list[str]:
    """Footnotes of a claim among the `values` of its experiment: what else its arms differ in."""
    return [*_compute(claim, values), *([claim["note"]] if claim["note"] else [])]


def _compute(claim: Values, values: Values) -> list[str]:
    if "ratio" in claim or claim["than"]:
        return []
    seconds = {arm["name"]: arm["compute"]["seconds"] for arm in values["arms"]}
    arm, baseline = seconds[claim["arm"]], seconds[claim["baseline"]]
    if not arm or not baseline or abs(arm / baseline - 1) <= _ALIKE_COMPUTE:
        return []
    return [f"The arm's training computes {arm / baseline:.2f} times what its baseline's does, as measured."]
