"""Reports: results/NAME/report.md of one experiment of paper A on one page, and the writing of all and of RESULTS.md.

Reads results.json files alone and says nothing that is not in them: a claim has the verdict that its interval gives it.
Figures are plots.py's, RESULTS.md's words summary.py's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.experiments.claim_cells import claims, estimate, ours, paper_value, papers, remarks, sample
from training.experiments.definitions.catalogue import EXPERIMENTS
from training.experiments.footnotes import Footnotes
from training.experiments.markdown import SAMPLE, SAMPLE_LEGEND, table, whole_percent
from training.experiments.method import compute_table, method, progress, shortfalls
from training.experiments.named_run import command, is_partial
from training.experiments.plots import draw
from training.experiments.success_tables import floors, goal, success_table, task_table
from training.experiments.summary import format_summary
from training.experiments.verdict import RULE, what_held
from training.experiments.video import report as video_report
from training.experiments.video.definitions.catalogue import VIDEO_EXPERIMENTS
from training.json_file import write_text

NOTES = "notes.md"  # of results/, by hand: what was found outside of the experiments
Values = Mapping[str, Any]


def write_reports(results: Path) -> list[Path]:
    """Every report, figure and RESULTS.md, made again from results/*/results.json; returns what was written.

    Raises ValueError for the results of an experiment that is none, before anything is written.
    """
    read = {path.parent: json.loads(path.read_text()) for path in sorted(results.glob("*/results.json"))}
    names = [*EXPERIMENTS, *VIDEO_EXPERIMENTS]
    for directory, values in read.items():
        if values["experiment"] not in names:
            raise ValueError(
                f"{directory}/results.json is of {values['experiment']!r}, expected one of {', '.join(names)}"
            )
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
    notes = (results / NOTES).read_text() if (results / NOTES).is_file() else ""
    write_text(summary, format_summary(list(found.values()), notes) + video_report.format_section(list(video.values())))
    return [*written, summary]


def format_report(values: Values, figures: Sequence[str]) -> str:
    """One experiment on one page."""
    succeeded = [*success_table(values), *task_table(values), goal(values), *floors(values)]
    footnotes = Footnotes()
    parts = [
        f"# {values['experiment']}: {values['title']}",
        values["question"],
        f"`{command(values)}`",
        *([f"**Partial.** {progress(values)}"] if is_partial(values) else []),
        *(f"![{values['title']}]({name})" for name in figures if name.endswith(".png")),
        *(["## Success", *succeeded] if any(succeeded) else []),
        "## Claims",
        table(
            ["claim", "ours (95 % interval)", SAMPLE, "paper A", "verdict", "note"],
            [
                [
                    each["claim"],
                    ours(each),
                    sample(each),
                    papers(each),
                    each["verdict"],
                    footnotes.cell(remarks(each, values)),
                ]
                for each in claims(values)
            ],
        ),
        SAMPLE_LEGEND,
        footnotes.as_list(),
        _what_held(values),
        f"Paper A: {values['paper']}",
        "## How it was done",
        "\n".join(f"- {line}" for line in [*method(values), *values["notes"], *shortfalls(values)]),
        RULE,
        *compute_table(values),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what_held(values: Values) -> str:
    lines = what_held([(each["claim"], each["verdict"], _beside_paper(each)) for each in claims(values)])
    caveats = sorted({found["caveat"] for each in claims(values) if (found := estimate(each)) and found["caveat"]})
    lines += [f"Caveat: {caveat}." for caveat in caveats]
    for each in values["comparisons"]:
        if each["share_of_compute"] is not None:
            share = whole_percent(each["share_of_compute"])
            lines.append(f"Measured: {each['baseline']} computes {share} of what {each['arm']} does.")
    return "  \n".join(lines)


def _beside_paper(claim: Values) -> str:
    found, paper = estimate(claim), paper_value(claim)
    if found is None or paper is None:
        return ""
    return f" (paper A's figure lies {'inside' if found['low'] <= paper <= found['high'] else 'outside'} our interval)"
