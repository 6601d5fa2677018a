"""The rule that turns an interval into a verdict, and its words. Computes no interval: that is statistics.py's."""

from __future__ import annotations

from training.experiments.experiment import Direction
from training.experiments.statistics import Estimate

HOLDS, NOT_SHOWN, OPPOSITE, NOT_RUN = "holds", "not shown", "the opposite", "not run"
INTERVALS = (
    "Intervals are 95 %. By task they are Wilson's of all episodes, which contain no variation between seeds of "
    "training. Of means and differences of success they are the widest of three: a bootstrap over seeds of training, "
    "tasks and scenes; Student's over the seeds' means, which with two seeds is 12.7 standard errors each way; and "
    "Wilson's of all episodes, for a difference of how many pairs differ each way. Differences are paired by seed and "
    "scene."
)
RULE = (
    f"{INTERVALS} Ratios have Student's. A claim holds when its interval excludes no effect on the claimed side; one "
    "whose interval contains it, or that has one seed of training behind it, is not shown."
)


def verdict(estimate: Estimate | None, expected: Direction, neutral: float = 0.0) -> str:
    """By rule: what the interval excludes. `neutral` is what no effect would be. One seed of training shows nothing."""
    if estimate is None:
        return NOT_RUN
    if estimate.low <= neutral <= estimate.high or estimate.num_seeds == 1:
        return NOT_SHOWN
    return HOLDS if (estimate.low > neutral) == (expected == "higher") else OPPOSITE


def what_held(claims: list[tuple[str, str, str]]) -> list[str]:
    """A line per verdict: of (claim, verdict, what stands behind the claim in brackets)."""
    titles = {HOLDS: "Held", NOT_SHOWN: "Not shown", OPPOSITE: "The opposite was found", NOT_RUN: "Not run"}
    lines = []
    for each, title in titles.items():
        named = [claim + beside for claim, found, beside in claims if found == each]
        if named:
            lines.append(f"{title}: {'; '.join(named)}.")
    return lines
