"""What a report calls the run of an experiment: the command that makes it, where it lies, whether it is whole.

Owns what the reports of both papers' experiments say alike; reads the values of a results.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.experiments.results import results_name

Values = Mapping[str, Any]


def command(values: Values) -> str:
    budget = values["budget"]
    seeds = "" if values["seeds"] == budget["seeds"] else f" --seeds {','.join(map(str, values['seeds']))}"
    named = "" if budget["name"] == "cpu" else f" --budget {budget['name']}"
    return f"python -m training experiment {values['experiment']}{named}{seeds}"


def is_partial(values: Values) -> bool:
    return any(counts["left"] for counts in values["jobs"].values())


def label(values: Values) -> str:
    return results_directory(values).removeprefix("results/")


def results_directory(values: Values) -> str:
    return f"results/{results_name(values['experiment'], values['budget']['name'])}"
