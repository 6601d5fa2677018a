"""How an experiment was done, in words: budget, tests, data, compute, and what there is less of than was asked.

Reads the values of a results.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.experiments.markdown import ASKED_EPISODES, ASKED_SEEDS, count, table
from training.experiments.named_run import elsewhere_lines, how_tested, is_partial, recipes_line
from training.experiments.store import UNKNOWN_COMMIT

_ASKED_CURVE_EPISODES = 10
# Of the data's growth, this much must show in what stage 1 sees of it.
_LEAST_SHARE_SEEN = 0.5
Values = Mapping[str, Any]


def method(values: Values) -> list[str]:
    """The lines that say how, shortfalls apart."""
    budget, hardware, costs = values["budget"], values["hardware"], values["costs"]
    bodies = list(dict.fromkeys(about["body"] for about in values["tasks"].values()))
    num_seeds = count(len(values["seeds"]), "seed")
    lines = [f"Budget {budget['name']} ({budget['what']}): size {budget['size']}, {num_seeds} of training."]
    if any(arm["checkpoints"] for arm in values["arms"]):
        curve = f"; {budget['curve_episodes']} at earlier checkpoints" if values["figure"] == "curve" else ""
        lines.append(
            f"{count(len(values['tasks']), 'task')} on {count(len(bodies), 'body', 'bodies')}; {budget['episodes']} "
            f"test episodes a task and seed{curve}. {how_tested(values)}"
        )
    lines += _low_data(values)
    lines += _stage1_windows(values)
    standstill = f" ({costs['left_out_hours']:.2f} more stood still)" if costs["left_out_hours"] else ""
    lines.append(
        f"{costs['stage1_hours']:.2f} hours of one worker for stage 1, {costs['stage2_hours']:.2f} for stage 2, "
        f"{costs['evaluation_hours']:.2f} for tests{standstill}, on {hardware['num_cpus']} cores of "
        f"{hardware['processor']}"
        + (f" and {', '.join(hardware['gpus'])}" if hardware["gpus"] else "")
        + f"; {recipes_line(values)}."
    )
    return lines


def progress(values: Values) -> str:
    """How much of the training and testing is done."""
    words = {"stage 1": "priors trained", "stage 2": "policies trained", "evaluation": "tests done"}
    return ", ".join(
        f"{counts['all'] - counts['left']} of {counts['all']} {words[kind]}"
        for kind, counts in values["jobs"].items()
        if counts["all"]
    )


def shortfalls(values: Values) -> list[str]:
    """Where there is less than three seeds, fifty episodes, ten at earlier checkpoints, or all of the jobs."""
    budget, lines = values["budget"], []
    if len(values["seeds"]) < ASKED_SEEDS:
        lines.append(f"Shortfall: {count(len(values['seeds']), 'seed')} of training, {ASKED_SEEDS} were asked for.")
    tests = any(arm["checkpoints"] for arm in values["arms"])
    if tests and budget["episodes"] < ASKED_EPISODES:
        lines.append(f"Shortfall: {budget['episodes']} test episodes a task and seed, {ASKED_EPISODES} were asked for.")
    if values["figure"] == "curve" and budget["curve_episodes"] < _ASKED_CURVE_EPISODES:
        lines.append(
            f"Shortfall: {count(budget['curve_episodes'], 'test episode')} a task and seed at earlier checkpoints, "
            f"{_ASKED_CURVE_EPISODES} were asked for."
        )
    if is_partial(values):
        lines.append(f"Shortfall: {progress(values)}.")
    commits = {run["git_commit"] for arm in values["arms"] for run in arm["runs"] if run["git_commit"]}
    if len(commits) > 1:
        lines.append(f"The policies were trained at {len(commits)} commits: {', '.join(sorted(commits))}.")
    lines += elsewhere_lines(values)
    if len(values["tested_at"]) > 1 or UNKNOWN_COMMIT in values["tested_at"]:
        each = (_tests_of(commit, about) for commit, about in sorted(values["tested_at"].items()))
        lines.append(f"Commits at which the tests ran: {'; '.join(each)}.")
    return lines


def _tests_of(commit: str, about: Values) -> str:
    versions = (f"{package} {' and '.join(each)}" for package, each in sorted(about["versions"].items()))
    return f"{commit} ({', '.join([count(about['tests'], 'test'), *versions])})"


def compute_table(values: Values) -> list[str]:
    """What training each arm computes with one seed; empty where no log tells."""
    of_training: dict[tuple[str, ...], list[Values]] = {}
    for arm in values["arms"]:
        of_training.setdefault(tuple(run["digest"] for run in arm["runs"]), []).append(arm)
    arms = [(arm, len(others)) for arm, *others in of_training.values()]
    known = [arm["compute"]["seconds"] for arm, _ in arms if arm["compute"]["seconds"]]
    if not known:
        return []
    rows = [
        [
            f"{arm['name']} and {count(num_others, 'arm')} more" if num_others else arm["name"],
            *(_steps_cell(arm["compute"], phase) for phase in ("stage 1", "distilling", "stage 2")),
            *_seconds_cells(arm["compute"]["seconds"], known[0]),
            _stage1_cell(arm),
        ]
        for arm, num_others in arms
    ]
    return [
        "## Compute",
        "One seed's training as steps, each at its measured seconds: the median of a run, which no standstill moves, "
        "and of all runs here with such steps the least, for the machine had other work as well. Shares are of the "
        "first arm that is known. The last column is stage 1's seconds over stage 2's, where stage 2 is trained to its "
        "end; paper A's stage 1 takes about a tenth.",
        table(
            ["arm", "stage 1", "stage 2, distilling", "stage 2, else", "seconds", "share", "stage 1 over stage 2"], rows
        ),
    ]


def _steps_cell(compute: Values, phase: str) -> str:
    parts = [part for part in compute["parts"] if part["phase"] == phase]
    cells = [f"{part['steps']} x {'?' if part['step_s'] is None else format(part['step_s'], '.3f')}" for part in parts]
    return " + ".join(cells) or "-"


def _seconds_cells(seconds: float | None, first: float) -> tuple[str, str]:
    return ("-", "-") if seconds is None else (f"{seconds:.0f}", f"{seconds / first:.2f}")


def _stage1_cell(arm: Values) -> str:
    """Of an arm that is tested: the others stop early."""
    parts, seconds = arm["compute"]["parts"], arm["compute"]["seconds"]
    if seconds is None or not arm["checkpoints"] or parts[0]["phase"] != "stage 1":
        return "-"
    stage1_s = parts[0]["steps"] * parts[0]["step_s"]
    return f"{100 * stage1_s / (seconds - stage1_s):.1f} %"


def _low_data(values: Values) -> list[str]:
    here = [task for task, about in values["tasks"].items() if about["low_data"]]
    group = values["low_data_group"]
    if not here or len(here) == len(group):
        return []
    return [f"Of the low-data group's {count(len(group), 'task')} {len(here)} are here: {', '.join(here)}."]


def _stage1_windows(values: Values) -> list[str]:
    """How much more an arm with more motion sees of it, where there is one."""
    seen = {arm["name"]: arm["stage1_windows"] for arm in values["arms"] if arm["stage1_windows"]}
    if not any(about["motion_episodes"] for about in seen.values()):
        return []
    each = [
        f"{name} sees {about['distinct']} different ones of {about['windows']} "
        f"({about['drawn'] / about['windows']:.2f} passes over its data)"
        for name, about in seen.items()
    ]
    once = min(seen.values(), key=lambda about: about["windows"])
    more = max(seen.values(), key=lambda about: about["windows"])
    data, distinct = more["windows"] / once["windows"], more["distinct"] / once["distinct"]
    line = f"Stage 1 draws {once['drawn']} windows in every arm that has one: {', '.join(each)}."
    if distinct < _LEAST_SHARE_SEEN * data:
        line += (
            f" In so short a stage 1, {data:.1f} times the data is {distinct:.2f} times as many different windows: "
            "where more motion is not shown to help, that is partly a property of the budget."
        )
    return [line]
