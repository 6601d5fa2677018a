"""What reports of both papers' experiments say alike of a run: its command, its place, whether it is whole, its tests.

Reads the values of a results.json.
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


def recipes_line(values: Values) -> str:
    """Where the recipes are, and what other seeds have in place of theirs."""
    first, *others = values["seeds"]
    line = f"exact recipes of seed {first} in [recipes](recipes)"
    if not others:
        return line
    differ = "in the seed and the name that says it"
    if any(run.get("parent_digest") for arm in values["arms"] for run in arm["runs"]):
        differ += ", and in the digest of the policy that they start from, which is that of their own seed"
    return f"{line}; those of other seeds differ {differ}"


def elsewhere_lines(values: Values) -> list[str]:
    """How many policies another machine trained; none where none."""
    of_digest = {run["digest"]: run for arm in values["arms"] for run in arm["runs"]}
    if not (num_elsewhere := sum(run.get("elsewhere", False) for run in of_digest.values())):
        return []
    return [
        f"{num_elsewhere} of {len(of_digest)} policies were trained and tested on another machine, on its own "
        "recordings of the same scenes: experts' arithmetic differs between processors in the last bits."
    ]


def how_tested(values: Values) -> str:
    """A sentence on how policies were asked and played, and on which scenes."""
    testing = values["testing"]
    horizons = ""
    if testing["execution_horizon"] is not None:
        horizons = f"{testing['execution_horizon']} actions of each chunk of {testing['action_horizon']} are played, "
    first = testing["first_seed"]
    last = first + values["budget"]["episodes"] - 1
    return (
        f"Policies take {testing['num_inference_steps']} Euler steps a chunk; {horizons}then the next one takes over "
        f"(rule {testing['rule']}). Scenes are seeds {first} to {last} of the range for testing, the same for every "
        "arm and seed of training."
    )
