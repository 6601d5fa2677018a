"""One figure from results.json: success and the RMS jump at seams against the delay, a line a rule, a row a task.

Owns what is drawn; its look is that of the experiments' figures. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.experiments.plots import COLORS, MARKERS, STYLE, errorbar, save
from training.playback.scenes import is_valid
from training.rollout import RULES

Values = Mapping[str, Any]


def draw(values: Values, directory: Path) -> list[Path]:
    """plot.png and plot.svg; nothing without a row that says something: those that the clock made invalid do not."""
    rows = [row for row in values["rows"] if is_valid(row)]
    if not rows:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    num_columns = 1 + max(len(row["seams"]) for row in rows)
    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(
            len(tasks),
            num_columns,
            figsize=(3.2 * num_columns, 0.6 + 2.5 * len(tasks)),
            layout="constrained",
            squeeze=False,
        )
        for task, axes in zip(tasks, panels, strict=True):
            _task(axes, [row for row in rows if row["task"] == task])
        for axes in panels[-1]:
            axes.set_xlabel(values["axis"])
        # A rule that one task's body cannot play may be another's.
        named = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels[:, 0]]
        shown = {label: handle for each in named for handle, label in each}
        figure.legend(list(shown.values()), list(shown), loc="outside upper right", ncols=len(shown))
        figure.suptitle(_title(values), x=0.01, ha="left", fontweight="bold")
        paths = save(figure, directory)
        pyplot.close(figure)
    return paths


def _title(values: Values) -> str:
    partial = f", {values['num_left']} rows left" if values["num_left"] else ""
    return f"{values['title']}  ({values['measurement']['episodes']} scenes{partial})"


def _task(panels: Sequence[Any], rows: Sequence[Values]) -> None:
    success, *jumps = panels
    groups = rows[0]["seams"]
    for index, rule in enumerate(RULES):
        of_rule = sorted((row for row in rows if row["rule"] == rule), key=lambda row: row["delay_steps"])
        if not of_rule:
            continue
        found = [
            {
                "value": row["successes"] / row["episodes"],
                "low": row["success_low"],
                "high": row["success_high"],
            }
            for row in of_rule
        ]
        # Lines that lie on each other are told apart by a small shift.
        errorbar(success, [row["delay_steps"] + 0.06 * (index - 1.5) for row in of_rule], found, index, rule)
        for axes, group in zip(jumps, groups, strict=False):
            points = [
                (row["delay_steps"], jump) for row in of_rule if (jump := row["seams"][group]["action_rms"]) is not None
            ]
            axes.plot(
                [delay for delay, _ in points],
                [jump for _, jump in points],
                color=COLORS[index],
                marker=MARKERS[index],
                markersize=4.5,
            )
    success.set(ylabel="success, %", ylim=(0, 100), title=rows[0]["task"])
    for axes, (group, figures) in zip(jumps, groups.items(), strict=False):
        axes.set(ylabel="RMS jump at seams", title=f"{group}, {figures['unit']}")
        axes.set_ylim(bottom=0)
    for axes in jumps[len(groups) :]:
        axes.set_axis_off()
