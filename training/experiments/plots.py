"""One figure per experiment, as PNG and SVG, from results.json alone. Every success is drawn with its 95 % interval.

Owns how each kind of figure looks. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#882255")
MARKERS = "osD^vPX<"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "premotor",
    "figure.dpi": 150,
}
_PAPER_COLOR = "#777777"
Values = Mapping[str, Any]


def draw(values: Values, directory: Path) -> list[Path]:
    """plot.png and plot.svg; nothing when no arm has a figure yet."""
    kind = values["figure"]
    if not _has_something(values):
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure = {"curve": _curve, "arms": _arms, "families": _families, "losses": _losses}[kind](pyplot, values)
        figure.suptitle(title_of(values), x=0.01, ha="left", fontweight="bold")
        paths = save(figure, directory)
        pyplot.close(figure)
    return paths


def save(figure: Any, directory: Path) -> list[Path]:
    """plot.png and plot.svg; without a date the same results give the same bytes."""
    paths = [directory / "plot.png", directory / "plot.svg"]
    for path in paths:
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _has_something(values: Values) -> bool:
    if values["figure"] == "losses":
        return any(arm["log"].get("prediction") for arm in values["arms"])
    return any(_group(checkpoint) for arm in values["arms"] for checkpoint in arm["checkpoints"])


def title_of(values: Values) -> str:
    partial = any(counts["left"] for counts in values["jobs"].values())
    return f"{values['title']}  ({values['budget']['name']}, {_seeds_drawn(values)}{', partial' if partial else ''})"


def _seeds_drawn(values: Values) -> str:
    """How many seeds of training stand behind what is drawn, beside those that were asked for."""
    asked = len(values["seeds"])
    if values["figure"] == "losses":
        numbers = [len(arm["log"].get("prediction", ())) for arm in values["arms"]]
    else:
        last = [_group(arm["checkpoints"][-1]) for arm in values["arms"]]
        numbers = [found["num_seeds"] for found in last if found]
    fewest, most = min((n for n in numbers if n), default=0), max(numbers, default=0)
    if fewest == most == asked:
        return f"{asked} seed{'s' if asked > 1 else ''}"
    return f"{fewest if fewest == most else f'{fewest} to {most}'} of {asked} seeds"


def _curve(pyplot: Any, values: Values) -> Any:
    """Success over training on the left, the end by group of tasks on the right, tasks below where there are many."""
    many = len(values["tasks"]) > 5
    figure = pyplot.figure(figsize=(10, 8 if many else 4.2), layout="constrained")
    grid = figure.add_gridspec(2 if many else 1, 2, width_ratios=(3, 2))
    left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    for index, arm in enumerate(values["arms"]):
        points = [(checkpoint["step"], found) for checkpoint in arm["checkpoints"] if (found := _group(checkpoint))]
        if not points:
            continue
        shift = 0.006 * (index - 1) * max(step for step, _ in points)
        errorbar(left, [step + shift for step, _ in points], [found for _, found in points], index, arm["name"])
    left.set(xlabel="steps of stage 2", ylabel="success, %", ylim=(0, 100), title="mean over tasks, by checkpoint")
    left.legend(loc="upper left")
    _grouped(right, values["arms"], [("all", "all tasks"), ("low-data", "low data"), ("rest", "others")])
    right.set(ylabel="success, %", ylim=(0, 100), title="last checkpoint; open marks: paper A")
    if many:
        _tasks(figure.add_subplot(grid[1, :]), values)
    return figure


def _grouped(axes: Any, arms: Sequence[Values], groups: Sequence[tuple[str, str]]) -> None:
    for index, arm in enumerate(arms):
        last = arm["checkpoints"][-1]["groups"]
        offset = 0.22 * (index - (len(arms) - 1) / 2)
        shown = [(place, last[name]) for place, (name, _) in enumerate(groups) if name in last]
        if shown:
            errorbar(
                axes, [place + offset for place, _ in shown], [found for _, found in shown], index, arm["name"], ""
            )
        papers = [(place, arm["paper"][name]) for place, (name, _) in enumerate(groups) if name in arm["paper"]]
        if papers:
            axes.plot(
                [place + offset + 0.07 for place, _ in papers],
                [percent for _, percent in papers],
                linestyle="",
                marker=MARKERS[index % len(MARKERS)],
                markerfacecolor="none",
                markeredgecolor=_PAPER_COLOR,
            )
    axes.set_xticks(range(len(groups)), [title for _, title in groups])
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.grid(axis="x", visible=False)


def _tasks(axes: Any, values: Values) -> None:
    names = list(values["tasks"])
    for index, arm in enumerate(values["arms"]):
        offset = 0.22 * (index - (len(values["arms"]) - 1) / 2)
        found = arm["checkpoints"][-1]["tasks"]
        shown = [(place, found[name]) for place, name in enumerate(names) if found.get(name, {}).get("episodes")]
        if shown:
            estimates = [
                {"value": each["successes"] / each["episodes"], "low": each["low"], "high": each["high"]}
                for _, each in shown
            ]
            errorbar(axes, [place + offset for place, _ in shown], estimates, index, arm["name"], "")
    about = [values["tasks"][name] for name in names]
    labels = [
        f"{name}\n{each['body']}{' *' if each['low_data'] else ''}" for name, each in zip(names, about, strict=True)
    ]
    axes.set_xticks(range(len(names)), labels, rotation=35, ha="right", fontsize=8)
    axes.set(ylabel="success, %", ylim=(0, 100), title="last checkpoint, by task (* low data)")
    axes.grid(axis="x", visible=False)


def _arms(pyplot: Any, values: Values) -> Any:
    """A row per arm: all tasks, and the low-data group beside."""
    arms = values["arms"]
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.6 * len(arms)), layout="constrained")
    for row, arm in enumerate(arms):
        groups = arm["checkpoints"][-1]["groups"]
        for shift, name, index in ((-0.12, "all", 0), (0.12, "low-data", 1)):
            if name in groups:
                _row(axes, row + shift, groups[name], index, {"all": "all tasks", "low-data": "low-data group"}[name])
        if "all" in arm["paper"]:
            axes.plot(arm["paper"]["all"], row - 0.12, "o", markerfacecolor="none", markeredgecolor=_PAPER_COLOR)
    _name_rows(axes, [arm["name"] for arm in arms])
    axes.set_title("last checkpoint; open circles: paper A", fontsize=9)
    return figure


def _families(pyplot: Any, values: Values) -> Any:
    """Lines over what varies on the left, arms outside of any family, or named as theirs is, on the right."""
    arms = values["arms"]
    families = list(dict.fromkeys(arm["family"] for arm in arms if arm["family"]))
    alone = [arm for arm in arms if arm["family"] in ("", arm["name"])]
    figure, panels = pyplot.subplots(
        1, 2 if alone else 1, figsize=(10 if alone else 6.5, 4), layout="constrained", squeeze=False
    )
    left = panels[0, 0]
    positions = sorted({arm["position"] for arm in arms if arm["family"]})
    for index, family in enumerate(families):
        points = [
            (positions.index(arm["position"]) + 0.06 * (index - (len(families) - 1) / 2), found)
            for arm in arms
            if arm["family"] == family and (found := _group(arm["checkpoints"][-1]))
        ]
        if points:
            errorbar(left, [x for x, _ in points], [found for _, found in points], index, family)
    left.set_xticks(range(len(positions)), [f"{position:g}" for position in positions])
    left.set(xlabel=values["axis"], ylabel="success, %", ylim=(0, 100))
    left.legend()
    if alone:
        right = panels[0, 1]
        for row, arm in enumerate(alone):
            if found := _group(arm["checkpoints"][-1]):
                _row(right, row, found, len(families), "")
        _name_rows(right, [arm["name"] for arm in alone])
    return figure


def _losses(pyplot: Any, values: Values) -> Any:
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    titles = {"prediction": "prediction loss", "gradient_norm": "gradient norm before clipping"}
    for axes, (quantity, title) in zip(panels, titles.items(), strict=True):
        for index, arm in enumerate(values["arms"]):
            runs = list(arm["log"].get(quantity, {}).values())
            if not runs:
                continue
            width = arm["log"]["steps_averaged"]
            steps = (np.arange(len(runs[0])) + 0.5) * width
            logs = np.log(np.array(runs))
            color = COLORS[index]
            axes.plot(steps, np.exp(logs.mean(axis=0)), color=color, label=arm["name"])
            axes.fill_between(steps, np.exp(logs.min(axis=0)), np.exp(logs.max(axis=0)), color=color, alpha=0.2, lw=0)
        axes.set(xlabel="steps of stage 2", title=f"{title}; band: range of seeds", yscale="log")
        axes.title.set_fontsize(9)
    panels[0].legend()
    return figure


def _group(checkpoint: Values) -> Values | None:
    """All the tasks that an arm is tested on."""
    return checkpoint["groups"].get("all")


def errorbar(
    axes: Any, places: Sequence[float], found: Sequence[Values], index: int, label: str, line: str = "-"
) -> None:
    """Successes in percent at `places`, as the `index`-th of a figure's arms."""
    values = np.array([100 * each["value"] for each in found])
    ends = np.array([[100 * each["low"], 100 * each["high"]] for each in found])
    axes.errorbar(
        places,
        values,
        yerr=np.abs(ends - values[:, None]).T,
        label=label,
        color=COLORS[index % len(COLORS)],
        marker=MARKERS[index % len(MARKERS)],
        markersize=4.5,
        linestyle=line,
        capsize=2,
    )


def _row(axes: Any, place: float, found: Values, index: int, label: str) -> None:
    value = 100 * found["value"]
    ends = [[abs(value - 100 * found["low"])], [abs(100 * found["high"] - value)]]
    known = axes.get_legend_handles_labels()[1]
    axes.errorbar(
        value,
        place,
        xerr=ends,
        color=COLORS[index % len(COLORS)],
        marker=MARKERS[index % len(MARKERS)],
        label=label if label and label not in known else None,
        capsize=2,
    )


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set(xlabel="success, %", xlim=(0, 100))
    axes.grid(axis="y", visible=False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="lower right")
