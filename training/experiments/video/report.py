"""Words and tables of the experiments on video: results/NAME/report.md of one, and their section of RESULTS.md.

Reads results.json alone and says nothing that is not in it. Figures are plots.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.experiments.claim_cells import points
from training.experiments.markdown import (
    ASKED_EPISODES,
    ASKED_SEEDS,
    SAMPLE,
    SAMPLE_LEGEND,
    count,
    percent_cell,
    sample_cell,
    seeds_cell,
    table,
    task_cell,
)
from training.experiments.named_run import (
    command,
    elsewhere_lines,
    how_tested,
    is_partial,
    label,
    recipes_line,
    results_directory,
)
from training.experiments.verdict import HOLDS, INTERVALS, NOT_RUN, NOT_SHOWN, OPPOSITE, what_held
from training.experiments.video.compute import measured_lines
from training.experiments.video.definitions.catalogue import VIDEO_EXPERIMENTS
from training.experiments.video.figures import FIGURES, OF_MATCHED_CLIPS
from training.experiments.video.plots import draw
from training.experiments.video.results import PROBES
from training.experiments.video.room import by_seed, little_room
from training.json_file import write_text

_RULE = (
    f"{INTERVALS} Of what codes know they are the wider of a bootstrap over seeds of training and held-out clips, by "
    "which differences are paired, and Student's over the seeds. Where clips of hands and robots are matched, for CKA "
    "and errors with codes, clips of hands and of each body are drawn independently, and a pair counts as often as its "
    "two clips were drawn together; partners, the body subspace and read-outs stay those of all clips. A claim holds "
    "when its interval excludes no effect, or the bound that it names, on the claimed side; one whose interval "
    "contains it, or that has one seed of training behind it, is not shown."
)
_SAMPLE = f"{SAMPLE}, or clips"
_WHAT = {
    "clips": "sets of clips",
    "eyes": "eyes",
    "codes": "sets of codes",
    "probe": "probes",
    "pretraining": "pretrainings",
    "prior": "priors of paper A",
    "labels": "sets of labels",
    "alignment": "alignments",
    "policy": "policies",
    "test": "tests",
}
Values = Mapping[str, Any]


def write_report(values: Values, directory: Path) -> list[Path]:
    """The report and figures of one results.json; returns what was written."""
    figures = draw(values, directory)
    report = directory / "report.md"
    write_text(report, format_report(values, [figure.name for figure in figures]))
    return [report, *figures]


def format_report(values: Values, figures: Sequence[str]) -> str:
    """One experiment on one page."""
    claims = [
        [claim["claim"], _ours(claim), _sample(claim), _papers(claim), claim["verdict"]] for claim in values["claims"]
    ]
    parts = [
        f"# {values['experiment']}: {values['title']}",
        values["question"],
        f"`{command(values)}`",
        *([f"**Partial.** {progress(values)}"] if is_partial(values) else []),
        *(f"![{values['title']}]({name})" for name in figures if name.endswith(".png")),
        *(_figures_table(values) if values["of"] == PROBES else _success_tables(values)),
        "" if values["of"] == PROBES else little_room(values),
        "## Claims",
        table(["claim", "ours (95 % interval)", _SAMPLE, "paper B", "verdict"], claims),
        SAMPLE_LEGEND,
        _what_held(values),
        f"Paper B: {values['paper']}",
        "## How it was done",
        "\n".join(f"- {line}" for line in [*_method(values), *values["notes"], *shortfalls(values)]),
        _RULE,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def format_pilot(values: Values) -> str:
    """The controls by task and seed, and where they leave no room."""
    parts = [*_success(values), by_seed(values), little_room(values)]
    if is_partial(values):
        parts.append(f"Not every task was tested: {progress(values)}.")
    elif not parts[-1]:
        parts.append("Over all seeds the controls leave room on every task.")
    return "\n\n".join(part for part in parts if part)


def format_section(all_values: Sequence[Values]) -> str:
    """The part of RESULTS.md that is about video; empty where nothing was run."""
    if not all_values:
        return ""
    order = list(VIDEO_EXPERIMENTS)
    known = sorted(all_values, key=lambda values: (values["budget"]["name"], order.index(values["experiment"])))
    # The control first: before any other claim, what the head does without video.
    known.sort(key=lambda values: values["experiment"] != "adaptation")
    rows = [
        [
            f"[{label(values)}]({results_directory(values)}/report.md)",
            claim["claim"],
            _ours(claim),
            _sample(claim),
            _papers(claim),
            claim["verdict"],
            f"`{command(values)}`",
        ]
        for values in known
        for claim in values["claims"]
    ]
    costs = [
        [label(values), progress(values), f"{values['planned_hours']:.2f}", f"{_hours(values):.2f}"] for values in known
    ]
    counts = {
        each: sum(claim["verdict"] == each for values in known for claim in values["claims"])
        for each in (HOLDS, NOT_SHOWN, OPPOSITE, NOT_RUN)
    }
    parts = [
        "## Priors from video",
        "Paper B is arXiv 2606.18955, whose figures are those of its own robots, video and sizes. It never ran its "
        "control, the same head without latent pretraining: it is stated first.",
        _control(known),
        f"Of {sum(counts.values())} claims {counts[HOLDS]} hold, {counts[NOT_SHOWN]} are not shown, for "
        f"{counts[OPPOSITE]} the opposite was found, {counts[NOT_RUN]} were not run. {_RULE}",
        f"With {sum(counts.values())} claims some intervals exclude no effect by chance: of claims without any effect "
        "about one in twenty, half of these on the claimed side. One that holds alone among its like is a hint.",
        table(["experiment", "claim", "ours (95 % interval)", _SAMPLE, "paper B", "verdict", "command"], rows),
        SAMPLE_LEGEND,
        *_tables(known),
        "What several of these share is counted in each; planned hours are wall clock with the budget's worker "
        "processes, spent ones of one worker.",
        table(["experiment", "done", "planned hours", "spent hours"], costs),
        "\n".join(f"- {line}" for line in _missing(known)),
    ]
    return "\n" + "\n\n".join(part for part in parts if part) + "\n"


def progress(values: Values) -> str:
    """How much is done."""
    return ", ".join(
        f"{counts['all'] - counts['left']} of {counts['all']} {_WHAT[kind]}" for kind, counts in values["jobs"].items()
    )


def shortfalls(values: Values) -> list[str]:
    """Where there is less than three seeds, fifty episodes, or all of the jobs."""
    lines = []
    if len(values["seeds"]) < ASKED_SEEDS:
        lines.append(f"Shortfall: {count(len(values['seeds']), 'seed')} of training, {ASKED_SEEDS} were asked for.")
    if values["of"] != PROBES and values["budget"]["episodes"] < ASKED_EPISODES:
        lines.append(
            f"Shortfall: {values['budget']['episodes']} test episodes a task and seed, {ASKED_EPISODES} were asked for."
        )
    if is_partial(values):
        lines.append(f"Shortfall: {progress(values)}.")
    if len(values["git_commits"]) > 1:
        lines.append(f"Jobs ran at {len(values['git_commits'])} commits: {', '.join(values['git_commits'])}.")
    return lines + elsewhere_lines(values) + _told_lines(values)


def _told_lines(values: Values) -> list[str]:
    probes = {run["digest"]: run.get("told", False) for arm in values["arms"] for run in arm["runs"]}
    if not (num_told := sum(probes.values())):
        return []
    return [f"{num_told} of {len(probes)} probes were not made here: they are as results/*/jobs.json has them."]


def _control(known: Sequence[Values]) -> str:
    """A sentence on the control, of the experiment that has it; says so where it was not run."""
    for values in known:
        control = values["arms"][0]
        if values["experiment"] == "adaptation" and control["success"] is not None:
            cells = [
                f"{percent_cell(arm['success'])} % with {arm['position']:g}"
                for arm in values["arms"]
                if arm["family"] == control["family"] and arm["success"] is not None
            ]
            return f"The control, {control['family']}: {', '.join(cells)} demonstrations of each task."
    return "The control was not run."


def _tables(known: Sequence[Values]) -> list[str]:
    found = []
    for values in known:
        of_codes = values["of"] == PROBES
        found += [f"### {label(values)}", *(_figures_table(values) if of_codes else _success(values))]
        found += ["" if of_codes else little_room(values), f"Paper B: {values['paper']}"]
    return found


def _figures_table(values: Values) -> list[str]:
    """A row per figure, a column per arm; beside an arm what paper B has."""
    rows = []
    for name in values["shown"]:
        cells = [_figure_cell(name, arm["figures"].get(name), arm["paper"].get(name)) for arm in values["arms"]]
        rows.append([FIGURES[name].title, *cells])
    return [table(["figure", *(arm["name"] for arm in values["arms"])], rows)]


def _figure_cell(name: str, found: Values | None, paper: float | None) -> str:
    if found is None:
        return "-"
    beside = "" if paper is None else f"; paper B {paper:.3f}"
    return f"{_number(name, found['value'])} ({_number(name, found['low'])} to {_number(name, found['high'])}){beside}"


def _number(figure: str, value: float) -> str:
    kind = FIGURES[figure].kind
    if kind == "usage":
        return f"{100 * value:.0f} %"
    return f"{value:.1f}" if kind == "perplexity" else f"{value:.3f}"


def _success_tables(values: Values) -> list[str]:
    return ["## Success", *_success(values), *_alignment_tables(values)]


def _alignment_tables(values: Values) -> list[str]:
    """How well V says what E says on episodes that it never saw: means over seeds, of the arms that have a V."""
    rows = []
    for arm in values["arms"]:
        scores = arm["alignment"]
        if scores:
            retrieval, distance, constant, candidates, pairs = (
                sum(each[name] for each in scores) / len(scores)
                for name in ("retrieval", "distance", "constant_distance", "num_candidates", "num_pairs")
            )
            rows.append(
                [
                    arm["name"],
                    f"{100 * retrieval:.1f} (chance {100 / candidates:.1f})",
                    f"{distance:.3f}",
                    f"{constant:.3f}",
                    f"{pairs:.0f}",
                    str(len(scores)),
                ]
            )
    if not rows:
        return []
    columns = ["arm", "retrieval, %", "distance", "of one answer for all", "pairs", "seeds"]
    return [
        "## Alignment of video to trajectories",
        "A pair of frames' z_v against E's z of the same span, on robots' held-out episodes: how often its own z is "
        "the nearest among the candidates, and the mean squared distance to it.",
        table(columns, rows),
    ]


def _success(values: Values) -> list[str]:
    tasks = list(values["tasks"])
    rows = [
        [
            arm["name"],
            percent_cell(arm["success"]),
            seeds_cell(arm["success"]),
            *(task_cell(arm["tasks"][task]) if arm["tasks"][task]["episodes"] else "-" for task in tasks),
        ]
        for arm in values["arms"]
    ]
    return [table(["arm", "all, %", "seeds", *(f"{task}, %" for task in tasks)], rows)]


def _what_held(values: Values) -> str:
    lines = what_held([(claim["claim"], claim["verdict"], _beside_paper(claim)) for claim in values["claims"]])
    caveats = sorted(
        {found["caveat"] for claim in values["claims"] if (found := claim["estimate"]) and found["caveat"]}
    )
    measured = measured_lines(values["claims"])
    return "  \n".join([*lines, *(f"Caveat: {caveat}." for caveat in caveats), *measured])


def _beside_paper(claim: Values) -> str:
    found, paper = claim["estimate"], claim["paper"]
    if found is None or paper is None:
        return ""
    return f" (paper B's figure lies {'inside' if found['low'] <= paper <= found['high'] else 'outside'} our interval)"


def _method(values: Values) -> list[str]:
    budget, hardware = values["budget"], values["hardware"]
    clips = ", ".join(f"{number} {name.replace('-', ' for ')}" for name, number in budget["clips"].items())
    lines = [
        f"Budget {budget['name']} ({budget['what']}): {count(len(values['seeds']), 'seed')} of training; scenes "
        f"filmed: {clips}."
    ]
    if values["of"] == PROBES:
        removed = " or ".join(map(str, values["num_directions_removed"])) or "no"
        lines.append(
            f"{values['num_pairs']} pairs of frames of hands; robots are {' and '.join(values['bodies'])}. CKA without "
            f"the body subspace is without {removed} directions, by body and arm."
        )
        lines += [
            f"Matched with {body}: {match['num_pairs']} pairs of its frames have {match['num_partner_pairs']} "
            f"different partners of {match['num_partner_clips']} clips of hands; how far the effectors moved differs "
            f"by {match['mismatch']:.3f} half pictures on average."
            for body, match in zip(values["bodies"], values["matching"], strict=True)
        ]
    else:
        lines.append(
            f"Size {budget['size']}, {count(len(values['tasks']), 'task')}, {budget['episodes']} test episodes a task "
            f"and seed. {how_tested(values)}"
        )
    lines.append(
        f"{_hours(values):.2f} hours of one worker, on {hardware['num_cpus']} cores of {hardware['processor']}; "
        f"{recipes_line(values)}."
    )
    return lines


def _missing(known: Sequence[Values]) -> list[str]:
    run = {values["experiment"] for values in known}
    lines = [f"{name}: not run." for name in VIDEO_EXPERIMENTS if name not in run]
    return lines + [f"{label(values)}: {line}" for values in known for line in shortfalls(values)]


def _ours(claim: Values) -> str:
    found = claim["estimate"]
    if found is None:
        return "-"
    if claim["kind"] == "success":
        return points(found)
    if claim["second"] is None:
        figure = claim["first"]["figure"]
        value, low, high = (_number(figure, found[name]) for name in ("value", "low", "high"))
        return f"{value} ({low} to {high})"
    return f"{found['value']:+.3f} of {claim['kind']} ({found['low']:+.3f} to {found['high']:+.3f})"


def _sample(claim: Values) -> str:
    found = claim["estimate"]
    if claim["kind"] == "success" or found is None:
        return sample_cell(found)
    return seeds_cell(found, "bootstraps" if claim["kind"] in OF_MATCHED_CLIPS else f"{found['num_tasks']} clips")


def _papers(claim: Values) -> str:
    if claim["paper"] is None:
        return "-"
    return f"{100 * claim['paper']:+.1f} points" if claim["kind"] == "success" else f"{claim['paper']:+.3f}"


def _hours(values: Values) -> float:
    return sum(values["seconds"].values()) / 3600
