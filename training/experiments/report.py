"""Words and tables: results/NAME/report.md of one experiment, and RESULTS.md over all of them.

Reads results.json files alone and says nothing that is not in them: a claim has the verdict that its interval gives it.
Figures are plots.py's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.experiments.definitions import EXPERIMENTS
from training.experiments.markdown import count, percent_cell, table, task_cell
from training.experiments.named_run import command, is_partial, label, results_directory
from training.experiments.plots import draw
from training.experiments.results import HOLDS, NOT_RUN, NOT_SHOWN, OPPOSITE
from training.experiments.video import report as video_report
from training.json_file import write_text

_ASKED_SEEDS, _ASKED_EPISODES = 3, 50
_RULE = (
    "Intervals are 95 %: Wilson's for one task, else a bootstrap over seeds of training, then tasks, then episodes. "
    "Differences are paired by seed and scene. A claim holds when its interval excludes no effect on the claimed side; "
    "a difference whose interval contains 0 is not shown."
)
_MULTIPLICITY = (
    "With many claims some intervals exclude no effect by chance: of those where there is none, about one in forty is "
    "expected to hold here and as many to show the opposite."
)
_GROUPS = ("all", "low-data", "rest")
Values = Mapping[str, Any]


def write_reports(results: Path) -> list[Path]:
    """Every report, figure and RESULTS.md, made again from results/*/results.json; returns what was written."""
    read = {path.parent: json.loads(path.read_text()) for path in sorted(results.glob("*/results.json"))}
    found = {directory: values for directory, values in read.items() if values["experiment"] in EXPERIMENTS}
    video = {directory: values for directory, values in read.items() if directory not in found}
    written = []
    for directory, values in found.items():
        figures = draw(values, directory)
        report = directory / "report.md"
        write_text(report, format_report(values, [figure.name for figure in figures]))
        written += [report, *figures]
    for directory, values in video.items():
        written += video_report.write_report(values, directory)
    summary = results.parent / "RESULTS.md"
    write_text(summary, format_summary(list(found.values())) + video_report.format_section(list(video.values())))
    return [*written, summary]


def format_report(values: Values, figures: Sequence[str]) -> str:
    """One experiment on one page."""
    parts = [
        f"# {values['experiment']}: {values['title']}",
        values["question"],
        f"`{command(values)}`",
        *([f"**Partial.** {progress(values)}"] if is_partial(values) else []),
        *(f"![{values['title']}]({name})" for name in figures if name.endswith(".png")),
        *_success_table(values),
        *_task_table(values),
        "## Claims",
        _claims_table(values),
        *_what_held(values),
        f"Paper A: {values['paper']}",
        "## How it was done",
        "\n".join(f"- {line}" for line in [*_method(values), *values["notes"], *shortfalls(values)]),
        _RULE,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def format_summary(all_values: Sequence[Values]) -> str:
    """RESULTS.md: each claim of paper A and of ours in one table."""
    order = list(EXPERIMENTS)
    known = sorted(all_values, key=lambda values: (values["budget"]["name"], order.index(values["experiment"])))
    rows = [
        [
            f"[{label(values)}]({results_directory(values)}/report.md)",
            claim["claim"],
            _ours(claim),
            _papers(claim),
            claim["verdict"],
            f"`{command(values)}`",
        ]
        for values in known
        for claim in _claims(values)
    ]
    costs = [
        [
            label(values),
            progress(values),
            f"{values['planned_hours']:.2f}",
            *(f"{values['costs'][f'{kind}_hours']:.2f}" for kind in ("stage1", "stage2", "evaluation")),
        ]
        for values in known
    ]
    counts = {
        verdict: sum(claim["verdict"] == verdict for values in known for claim in _claims(values))
        for verdict in (HOLDS, NOT_SHOWN, OPPOSITE, NOT_RUN)
    }
    parts = [
        "# Results",
        "Paper A is arXiv 2606.26095, which gives neither seeds nor intervals; its figures are those of its own "
        "robots and sizes, so what can be compared is the sign of a difference and its rough size. "
        "`python -m training experiment report` makes this page from `results/`.",
        f"{_RULE} {_MULTIPLICITY}",
        f"Of {sum(counts.values())} claims {counts[HOLDS]} hold, {counts[NOT_SHOWN]} are not shown, for "
        f"{counts[OPPOSITE]} the opposite was found, {counts[NOT_RUN]} were not run.",
        table(["experiment", "claim", "ours (95 % interval)", "paper A", "verdict", "command"], rows),
        "## Joint success",
        *_joint_success(known),
        "## Cost",
        "The plan, which is printed before anything starts, is wall clock with the budget's worker processes when an "
        "experiment is run alone; the last three columns are measured hours of one worker process. What several "
        "experiments share is counted in each.",
        table(["experiment", "done", "planned hours", "stage 1", "stage 2", "tests"], costs),
        *_totals(known),
        "## Not run, or with less than was asked",
        "\n".join(f"- {line}" for line in _missing(known)) or "Nothing.",
    ]
    return "\n\n".join(parts) + "\n"


def progress(values: Values) -> str:
    """How much of the training and testing is done."""
    words = {"stage 1": "priors trained", "stage 2": "policies trained", "evaluation": "tests done"}
    return ", ".join(
        f"{counts['all'] - counts['left']} of {counts['all']} {words[kind]}"
        for kind, counts in values["jobs"].items()
        if counts["all"]
    )


def shortfalls(values: Values) -> list[str]:
    """Where there is less than three seeds, fifty episodes, or all of the jobs."""
    budget, lines = values["budget"], []
    if len(values["seeds"]) < _ASKED_SEEDS:
        lines.append(f"Shortfall: {count(len(values['seeds']), 'seed')} of training, {_ASKED_SEEDS} were asked for.")
    tests = any(arm["checkpoints"] for arm in values["arms"])
    if tests and budget["episodes"] < _ASKED_EPISODES:
        lines.append(
            f"Shortfall: {budget['episodes']} test episodes a task and seed, {_ASKED_EPISODES} were asked for."
        )
    if is_partial(values):
        lines.append(f"Shortfall: {progress(values)}.")
    dirty = {run["git_commit"] for arm in values["arms"] for run in arm["runs"] if run["git_commit"]}
    if len(dirty) > 1:
        lines.append(f"The policies were trained at {len(dirty)} commits: {', '.join(sorted(dirty))}.")
    return lines


def _success_table(values: Values) -> list[str]:
    tested = [arm for arm in values["arms"] if arm["checkpoints"]]
    if not tested:
        return []
    low_data = {about["low_data"] for about in values["tasks"].values()}
    groups = _GROUPS if len(low_data) == 2 else _GROUPS[:1]
    titles = {"all": _tasks_title(values), "low-data": "low-data group", "rest": "other tasks"}
    rows = []
    for arm in tested:
        cells = []
        for group in groups:
            paper = arm["paper"].get(group)
            cells += [percent_cell(_last(arm)["groups"].get(group)), "" if paper is None else f"{paper:.1f}"]
        seeds = max((each["num_seeds"] for each in _last(arm)["groups"].values()), default=0)
        rows.append([arm["name"], *cells, str(seeds)])
    header = [cell for group in groups for cell in (f"{titles[group]}, %", "paper A")]
    keep = [
        index for index in range(len(header) + 2) if index in (0, len(header) + 1) or any(row[index] for row in rows)
    ]
    header = ["arm", *header, "seeds"]
    return ["## Success", table([header[i] for i in keep], [[row[i] for i in keep] for row in rows])]


def _tasks_title(values: Values) -> str:
    tasks = list(values["tasks"])
    return tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks"


def _task_table(values: Values) -> list[str]:
    """Per task with Wilson's interval; only where there are few arms, or it would be no page."""
    tested = [arm for arm in values["arms"] if arm["checkpoints"]]
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


def _claims_table(values: Values) -> str:
    rows = [[claim["claim"], _ours(claim), _papers(claim), claim["verdict"]] for claim in _claims(values)]
    return table(["claim", "ours (95 % interval)", "paper A", "verdict"], rows)


def _what_held(values: Values) -> list[str]:
    titles = {HOLDS: "Held", NOT_SHOWN: "Not shown", OPPOSITE: "The opposite was found", NOT_RUN: "Not run"}
    lines = []
    for verdict, title in titles.items():
        named = [claim["claim"] + _beside_paper(claim) for claim in _claims(values) if claim["verdict"] == verdict]
        if named:
            lines.append(f"{title}: {'; '.join(named)}.")
    caveats = sorted({found["caveat"] for claim in _claims(values) if (found := _estimate(claim)) and found["caveat"]})
    return ["  \n".join([*lines, *(f"Caveat: {caveat}." for caveat in caveats)])]


def _beside_paper(claim: Values) -> str:
    found, paper = _estimate(claim), _paper_value(claim)
    if found is None or paper is None:
        return ""
    return f" (paper A's figure lies {'inside' if found['low'] <= paper <= found['high'] else 'outside'} our interval)"


def _method(values: Values) -> list[str]:
    budget, hardware = values["budget"], values["hardware"]
    bodies = list(dict.fromkeys(about["body"] for about in values["tasks"].values()))
    tested = any(arm["checkpoints"] for arm in values["arms"])
    num_seeds = count(len(values["seeds"]), "seed")
    lines = [f"Budget {budget['name']} ({budget['what']}): size {budget['size']}, {num_seeds} of training."]
    if tested:
        curve = f"; {budget['curve_episodes']} at earlier checkpoints" if values["figure"] == "curve" else ""
        lines.append(
            f"{count(len(values['tasks']), 'task')} on {count(len(bodies), 'body', 'bodies')}; {budget['episodes']} "
            f"test episodes a task and seed{curve}."
        )
    costs = values["costs"]
    lines.append(
        f"{costs['stage1_hours']:.2f} hours of one worker for stage 1, {costs['stage2_hours']:.2f} for stage 2, "
        f"{costs['evaluation_hours']:.2f} for tests, on {hardware['num_cpus']} cores of {hardware['processor']}"
        + (f" and {', '.join(hardware['gpus'])}" if hardware["gpus"] else "")
        + "; exact recipes in [recipes](recipes), which differ from seed to seed in the seed alone."
    )
    return lines


def _joint_success(known: Sequence[Values]) -> list[str]:
    tables = []
    for values in known:
        if values["experiment"] == "prior":
            tables += [f"{label(values)}: {progress(values)}.", *_success_table(values)[1:], *_task_table(values)]
    return tables or ["The experiment `prior` was not run."]


def _totals(known: Sequence[Values]) -> list[str]:
    """Measured hours of a budget's experiments together, what they share counted once."""
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
        lines.append(
            f"Budget {budget}, {len(of_budget)} of {len(EXPERIMENTS)} experiments, what they share counted once: "
            f"{hours:.2f} hours of one worker process, {hours / num_workers:.2f} of the budget's {num_workers}."
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


def _claims(values: Values) -> list[Values]:
    return [*values["comparisons"], *values["ratios"]]


def _estimate(claim: Values) -> Values | None:
    return claim["ratio"] if "ratio" in claim else claim["difference"]


def _paper_value(claim: Values) -> float | None:
    if "ratio" in claim:
        return claim["paper_ratio"]
    return None if claim["paper_points"] is None else claim["paper_points"] / 100


def _ours(claim: Values) -> str:
    found = _estimate(claim)
    if found is None:
        return "-"
    if "ratio" in claim:
        interval = "one seed, no interval" if found["num_seeds"] == 1 else f"{found['low']:.2f} to {found['high']:.2f}"
        return f"{found['value']:.2f} times ({interval})"
    value, low, high = (100 * found[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"


def _papers(claim: Values) -> str:
    if "ratio" in claim:
        return "-" if claim["paper_ratio"] is None else f"about {claim['paper_ratio']:.0f} times"
    return "-" if claim["paper_points"] is None else f"{claim['paper_points']:+.1f} points"


def _last(arm: Values) -> Values:
    return arm["checkpoints"][-1]
