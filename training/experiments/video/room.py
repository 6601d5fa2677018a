"""Whether what claims compare with leaves room: a task that is solved hardly ever or nearly always tells no arms apart.

Reads the values of a results.json. Owns the bounds and the words; what they are part of is report.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.experiments.markdown import table

FLOOR, CEILING = 0.15, 0.85
Values = Mapping[str, Any]


def little_room(values: Values) -> str:
    """Where a baseline of a claim, or without claims any arm, solves too few or too many scenes; empty where none."""
    baselines = {claim["baseline"] for claim in values["claims"]}
    baselines |= {claim["than"][1] for claim in values["claims"] if claim["than"]}
    arms = [arm for arm in values["arms"] if arm["name"] in baselines or not values["claims"]]
    outside = [
        f"{arm['name']}: {100 * task['successes'] / task['episodes']:.0f} % of {name}"
        for arm in arms
        for name, task in arm["tasks"].items()
        if task["episodes"] and not FLOOR <= task["successes"] / task["episodes"] <= CEILING
    ]
    if not outside:
        return ""
    return (
        f"**Little room.** Outside of {100 * FLOOR:.0f} to {100 * CEILING:.0f} %, where arms can hardly be told "
        f"apart: {'; '.join(outside)}."
    )


def by_seed(values: Values) -> str:
    """A row per arm: what each seed of training solves of each task."""
    places = [(task, str(seed)) for task in values["tasks"] for seed in values["seeds"]]
    rows = [
        [arm["name"], *(_percent(arm["tasks"][task]["outcomes"][seed]) for task, seed in places)]
        for arm in values["arms"]
    ]
    return table(["arm", *(f"{task}, seed {seed}, %" for task, seed in places)], rows)


def _percent(outcomes: str) -> str:
    return f"{100 * outcomes.count('1') / len(outcomes):.0f}" if outcomes else "-"
