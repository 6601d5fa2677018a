"""One figure per experiment on video, as PNG and SVG, from results.json alone. Owns how each kind looks.

Successes and figures of codes are drawn with their 95 % intervals. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.experiments.plots import COLORS, MARKERS, STYLE, errorbar, save
from training.experiments.video.figures import FIGURES
from training.experiments.video.results import PROBES

_PAPER_COLOR = "#777777"
Values = Mapping[str, Any]


def draw(values: Values, directory: Path) -> list[Path]:
    """plot.png and plot.svg; nothing when no arm has a figure yet."""
    probes = values["of"] == PROBES
    if not any(arm["figures"] if probes else arm["success"] for arm in values["arms"]):
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        if probes:
            figure = _figures(pyplot, values)
        else:
            figure = (_families if values["figure"] == "families" else _arms)(pyplot, values)
        partial = any(counts["left"] for counts in values["jobs"].values())
        seeds = len(values["seeds"])
        title = (
            f"{values['title']}  ({values['budget']['name']}, {seeds} seed{'s' if seeds > 1 else ''}"
            f"{', partial' if partial else ''})"
        )
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        paths = save(figure, directory)
        pyplot.close(figure)
    return paths


def _figures(pyplot: Any, values: Values) -> Any:
    """A row per arm, a mark per figure; open marks are paper B's."""
    arms, drawn = values["arms"], values["drawn"]
    figure, axes = pyplot.subplots(figsize=(8, 1.4 + 0.7 * len(arms)), layout="constrained")
    for index, name in enumerate(drawn):
        shift = 0.15 * (index - (len(drawn) - 1) / 2)
        found = [(row + shift, arm["figures"][name]) for row, arm in enumerate(arms) if name in arm["figures"]]
        if found:
            _rows(axes, [place for place, _ in found], [each for _, each in found], index, FIGURES[name].title)
        papers = [(row + shift, arm["paper"][name]) for row, arm in enumerate(arms) if name in arm["paper"]]
        if papers:
            axes.plot(
                [value for _, value in papers],
                [place for place, _ in papers],
                linestyle="",
                marker=MARKERS[index % len(MARKERS)],
                markerfacecolor="none",
                markeredgecolor=_PAPER_COLOR,
                label="paper B",
            )
    _name_rows(axes, [arm["name"] for arm in arms])
    axes.axvline(0, color="#999999", linewidth=0.8)
    figure.legend(loc="outside lower right", ncols=3, fontsize=8)
    return figure


def _arms(pyplot: Any, values: Values) -> Any:
    arms = [(row, arm["success"]) for row, arm in enumerate(values["arms"]) if arm["success"]]
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.5 * len(values["arms"])), layout="constrained")
    _rows(axes, [row for row, _ in arms], [_percent(found) for _, found in arms], 0, "")
    _name_rows(axes, [arm["name"] for arm in values["arms"]])
    axes.set(xlabel="success, %", xlim=(0, 100))
    return figure


def _families(pyplot: Any, values: Values) -> Any:
    arms = values["arms"]
    families = list(dict.fromkeys(arm["family"] for arm in arms if arm["family"]))
    positions = sorted({arm["position"] for arm in arms if arm["family"]})
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for index, family in enumerate(families):
        points = [
            (positions.index(arm["position"]) + 0.05 * (index - (len(families) - 1) / 2), arm["success"])
            for arm in arms
            if arm["family"] == family and arm["success"]
        ]
        if points:
            errorbar(axes, [x for x, _ in points], [found for _, found in points], index, family)
    axes.set_xticks(range(len(positions)), [f"{position:g}" for position in positions])
    axes.set(xlabel=values["axis"], ylabel="success, %", ylim=(0, 100))
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _rows(axes: Any, places: list[float], found: list[Values], index: int, label: str) -> None:
    middle = [each["value"] for each in found]
    ends = [
        [each["value"] - each["low"] for each in found],
        [each["high"] - each["value"] for each in found],
    ]
    axes.errorbar(
        middle,
        places,
        xerr=ends,
        linestyle="",
        color=COLORS[index % len(COLORS)],
        marker=MARKERS[index % len(MARKERS)],
        markersize=4.5,
        capsize=2,
        label=label or None,
    )


def _percent(found: Values) -> Values:
    return {name: 100 * found[name] for name in ("value", "low", "high")}


def _name_rows(axes: Any, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
