"""Success by arm, group and task as tables, what the best arm reaches of an experiment's goal, and what none reaches.

Reads the values of a results.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.experiments.claim_cells import points
from training.experiments.markdown import count, percent_cell, seeds_cell, table, task_cell, whole_percent

_GROUPS = ("all", "low-data", "rest")
_FAILS_BELOW = 0.1
Values = Mapping[str, Any]


def success_table(values: Values) -> list[str]:
    """A row per arm, a column per group of tasks with its seeds; empty where nothing is tested."""
    tested = _tested(values)
    if not tested:
        return []
    low_data = {about["low_data"] for about in values["tasks"].values()}
    groups = _GROUPS if len(low_data) == 2 else _GROUPS[:1]
    titles = {"all": _tasks_title(values), "low-data": "low-data group", "rest": "other tasks"}
    rows = []
    for arm in tested:
        cells = []
        for group in groups:
            found, paper = _last(arm)["groups"].get(group), arm["paper"].get(group)
            cells += [percent_cell(found), seeds_cell(found), "" if paper is None else f"{paper:.1f}"]
        rows.append([arm["name"], *cells])
    header = ["arm", *(cell for group in groups for cell in (f"{titles[group]}, %", "seeds", "paper A"))]
    keep = [index for index in range(len(header)) if any(row[index] for row in rows)]
    return [table([header[i] for i in keep], [[row[i] for i in keep] for row in rows])]


def task_table(values: Values) -> list[str]:
    """Per task with Wilson's interval; only where there are few arms, or it would be no page."""
    tested = _tested(values)
    if not tested or len(tested) > 5 or len(values["tasks"]) < 2:
        return []
    rows = []
    for task, about in values["tasks"].items():
        cells = []
        for arm in tested:
            found = _last(arm)["tasks"].get(task)
            cells.append("" if found is None or not found["episodes"] else task_cell(found))
        rows.append([task, f"{about['body']}{', low data' if about['low_data'] else ''}", *cells])
    return [table(["task", "body", *(f"{arm['name']}, %" for arm in tested)], rows)]


def goal(values: Values) -> str:
    """What the best arm reaches of the goal, whether it was still rising, and where it fails; empty without a goal."""
    tested = [arm for arm in _tested(values) if _last(arm)["groups"].get("all")]
    if values["goal"] is None or not tested:
        return ""
    best = max(tested, key=lambda arm: _last(arm)["groups"]["all"]["value"])
    found = _last(best)["groups"]["all"]
    reached = "reached" if found["value"] >= values["goal"] else "not reached"
    words = [
        f"**Goal.** At least {100 * values['goal']:.0f} % mean success over {count(found['num_tasks'], 'task')}: the "
        f"best arm, {best['name']}, has {percent_cell(found)} % with {count(found['num_seeds'], 'seed')} of training: "
        f"{reached}."
    ]
    if trend := best["trend"]:
        change, first, last = trend["difference"], trend["first"], trend["last"]
        slope = 100 * change["value"] / (last - first) * 1000
        words.append(
            f"From step {first} to {last}, while the learning rate falls to its end, it changed by {points(change)}, "
            f"{slope:+.1f} a thousand steps, on the same {count(change['num_episodes'], 'scene')} a task and seed: "
            + ("it was still rising." if change["low"] > 0 else "no rise is shown.")
        )
    tasks = {task: each["successes"] / each["episodes"] for task, each in _last(best)["tasks"].items()}
    if failed := [f"{task} ({100 * rate:.0f} %)" for task, rate in tasks.items() if rate < _FAILS_BELOW]:
        words.append(f"Below {100 * _FAILS_BELOW:.0f} % are {', '.join(failed)}.")
    return " ".join(words)


def floors(values: Values) -> list[str]:
    """A line each on tasks and on reference arms that succeed so rarely that arms can hardly differ."""
    return [line for line in (_tasks_at_the_floor(values), _references_at_the_floor(values)) if line]


def _tasks_at_the_floor(values: Values) -> str:
    found = []
    for task in values["tasks"]:
        of_arms = [tasks[task] for arm in _tested(values) if task in (tasks := _last(arm)["tasks"])]
        rates = [of["successes"] / of["episodes"] for of in of_arms if of["episodes"]]
        if rates and max(rates) < _FAILS_BELOW:
            found.append(f"{task} ({whole_percent(max(rates))})")
    return (
        f"**Floor.** Below {whole_percent(_FAILS_BELOW)} in every arm, the best one's in brackets: {', '.join(found)}. "
        "There arms can hardly differ."
        if found
        else ""
    )


def _references_at_the_floor(values: Values) -> str:
    found = {
        arm["name"]: estimate
        for arm in _tested(values)
        if arm["name"] in values["references"] and (estimate := _last(arm)["groups"].get("all"))
    }
    if not found or max(estimate["value"] for estimate in found.values()) >= _FAILS_BELOW:
        return ""
    reached = ", ".join(f"{name} {percent_cell(estimate)} %" for name, estimate in found.items())
    return f"**Floor.** Arms that lack nothing: {reached}. What the others lack can hardly show below that."


def _tested(values: Values) -> list[Values]:
    return [arm for arm in values["arms"] if arm["checkpoints"]]


def _tasks_title(values: Values) -> str:
    tasks = list(values["tasks"])
    return tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks"


def _last(arm: Values) -> Values:
    return arm["checkpoints"][-1]
