"""RESULTS.md on paper A: each claim in one table beside the paper's figure, joint success, cost, what is missing.

Reads the values of results.json files alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.experiments.claim_cells import claims, ours, papers, remarks, sample
from training.experiments.definitions.catalogue import EXPERIMENTS
from training.experiments.footnotes import Footnotes
from training.experiments.markdown import SAMPLE, SAMPLE_LEGEND, table
from training.experiments.method import progress, shortfalls
from training.experiments.named_run import command, label, results_directory
from training.experiments.success_tables import goal, success_table, task_table
from training.experiments.verdict import HOLDS, NOT_RUN, NOT_SHOWN, OPPOSITE, RULE

_MULTIPLICITY = (
    "With many claims some intervals exclude no effect by chance. Simulated without any effect, with 3 seeds, 50 "
    "episodes and 1 to 5 tasks, at most about one in twenty does (tests/training/experiments/test_statistics.py), "
    "half of these on the claimed side."
)
_DEVIATIONS = (
    "What differs from the paper and bears on every claim: the backbone also sees the present state, hidden for 30 % "
    "of the samples; eyes are trained from nothing; a loss on where objects are, which only a simulator knows, trains "
    "them in every arm ([docs/methods.md](docs/methods.md))."
)
Values = Mapping[str, Any]


def format_summary(all_values: Sequence[Values], notes: str = "") -> str:
    """`notes` stand below the table of claims, word for word."""
    order = list(EXPERIMENTS)
    known = sorted(all_values, key=lambda values: (values["budget"]["name"], order.index(values["experiment"])))
    footnotes = Footnotes()
    rows = [
        [
            f"[{label(values)}]({results_directory(values)}/report.md)",
            claim["claim"],
            ours(claim),
            sample(claim),
            papers(claim),
            claim["verdict"],
            footnotes.cell(remarks(claim, values)),
            f"`{command(values)}`",
        ]
        for values in known
        for claim in claims(values)
    ]
    counts = {
        verdict: sum(claim["verdict"] == verdict for values in known for claim in claims(values))
        for verdict in (HOLDS, NOT_SHOWN, OPPOSITE, NOT_RUN)
    }
    parts = [
        "# Results",
        "Paper A is arXiv 2606.26095, which gives neither seeds nor intervals; its figures are those of its own "
        "robots and sizes, so what can be compared is the sign of a difference and its rough size. "
        "`python -m training experiment report` makes this page from `results/`.",
        _DEVIATIONS,
        f"{RULE} {_MULTIPLICITY}",
        f"Of {sum(counts.values())} claims {counts[HOLDS]} hold, {counts[NOT_SHOWN]} are not shown, for "
        f"{counts[OPPOSITE]} the opposite was found, {counts[NOT_RUN]} were not run.",
        table(["experiment", "claim", "ours (95 % interval)", SAMPLE, "paper A", "verdict", "note", "command"], rows),
        SAMPLE_LEGEND,
        footnotes.as_list(),
        notes.rstrip("\n"),
        "## Joint success",
        *_joint_success(known),
        "## Cost",
        "The plan, which is printed before anything starts, is wall clock with the budget's worker processes when an "
        "experiment is run alone; the last columns are measured hours of one worker process, and those in which the "
        "machine stood still, which the others leave out. What several experiments share is counted in each.",
        table(
            ["experiment", "done", "planned hours", "stage 1", "stage 2", "tests", "stood still"],
            [_costs(values) for values in known],
        ),
        *_totals(known),
        "## Not run, or with less than was asked",
        "\n".join(f"- {line}" for line in _missing(known)) or "Nothing.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _costs(values: Values) -> list[str]:
    hours = (values["costs"][f"{kind}_hours"] for kind in ("stage1", "stage2", "evaluation", "left_out"))
    return [label(values), progress(values), f"{values['planned_hours']:.2f}", *(f"{each:.2f}" for each in hours)]


def _joint_success(known: Sequence[Values]) -> list[str]:
    found = []
    for values in known:
        if values["experiment"] == "prior":
            found += [
                f"{label(values)}: {progress(values)}.",
                goal(values),
                *success_table(values),
                *task_table(values),
            ]
    return found or ["The experiment `prior` was not run."]


def _totals(known: Sequence[Values]) -> list[str]:
    """Planned and measured hours of a budget's experiments together, what they share counted once."""
    lines = []
    for budget in dict.fromkeys(values["budget"]["name"] for values in known):
        seconds: dict[tuple[Any, ...], float] = {}
        of_budget = [values for values in known if values["budget"]["name"] == budget]
        for arm in (arm for values in of_budget for arm in values["arms"]):
            for index, run in enumerate(arm["runs"]):
                seconds[("stage 1", run["stage1_digest"])] = run["stage1_seconds"]
                seconds[("stage 2", run["digest"])] = run["stage2_seconds"]
                for tested in arm["checkpoints"]:
                    key = ("tests", run["digest"], arm["condition"], tested["step"])
                    seconds[key] = max(seconds.get(key, 0.0), tested["seconds"][index])
        hours, num_workers = sum(seconds.values()) / 3600, of_budget[0]["budget"]["num_workers"]
        planned = max(values["planned_hours_of_all"] for values in of_budget)
        lines.append(
            f"Budget {budget}, what experiments share counted once. Planned for all {len(EXPERIMENTS)}: {planned:.2f} "
            f"hours with its {num_workers} worker processes. Measured so far, of {len(of_budget)} experiments: "
            f"{hours:.2f} hours of one worker process, {hours / num_workers:.2f} of {num_workers}."
        )
    return lines


def _missing(known: Sequence[Values]) -> list[str]:
    run = {(values["experiment"], values["budget"]["name"]) for values in known}
    lines = [
        f"{name}, budget {budget}: not run."
        for budget in ("cpu", "gpu")
        for name in EXPERIMENTS
        if (name, budget) not in run
    ]
    return lines + [f"{label(values)}: {line}" for values in known for line in shortfalls(values)]
