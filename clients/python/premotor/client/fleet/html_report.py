"""One page of a run: figures in tables, five plots, nothing to load from anywhere.

Owns the page. Does not own the figures (figures.py) nor how a plot is drawn (svg.py).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from premotor.client.fleet.figures import SUPPLIED_GOAL, broken_assertions, fairness_and_bytes
from premotor.client.fleet.run import FleetRun
from premotor.client.fleet.svg import Axis, Mark, Plot

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--faint:#667085;--paper:#fff;--line:#e4e7ec;--a:#1f6feb;--b:#b42318;
--fault:#f79009;--swap:#12a150}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--faint:#98a2b3;--paper:#12161c;--line:#2a313c;--a:#6ea8fe;
--b:#ff8a7a;--fault:#f7b955;--swap:#5bd18b}}
*{box-sizing:border-box}body{margin:0 auto;max-width:60rem;padding:1rem;background:var(--paper);color:var(--ink);
font:16px/1.45 system-ui,sans-serif}h1{font-size:1.4rem;margin:.2rem 0}h2{font-size:1.05rem;margin:1.6rem 0 .4rem}
p{margin:.3rem 0;color:var(--faint)}.verdict{padding:.6rem .8rem;border-left:4px solid var(--b);color:var(--ink);
background:color-mix(in srgb,var(--b) 12%,transparent)}.tiles{display:grid;gap:.6rem;
grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));margin:1rem 0}.tile{border:1px solid var(--line);
border-radius:.5rem;padding:.5rem .7rem}.tile b{display:block;font-size:1.25rem}.tile span{color:var(--faint);
font-size:.85rem}.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;
font-size:.9rem;width:100%}th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap}th:first-child,td:first-child{text-align:left}svg{display:block;width:100%;min-width:30rem;
height:auto;font:11px system-ui,sans-serif}svg text{fill:var(--faint)}svg .small{font-size:10px}
.grid{stroke:var(--line)}.line{fill:none;stroke-width:1.6}.a{stroke:var(--a)}.b{stroke:var(--b)}
.dot{fill:none;stroke-width:3;stroke-linecap:round;stroke-opacity:.55}.bar{fill:var(--a)}
.level{stroke:var(--faint);stroke-dasharray:4 3}.mark{fill-opacity:.22}.mark.fault{fill:var(--fault)}
.mark.swap{fill:var(--swap);fill-opacity:.8}pre{white-space:pre-wrap;overflow-wrap:anywhere;color:var(--faint);
font-size:.8rem}
"""


def write_html(run: FleetRun, path: Path) -> None:
    """One self-contained file."""
    path.write_text(fleet_page(run))


def fleet_page(run: FleetRun) -> str:
    report, settings = run.report, run.settings
    title = f"{settings.num_robots} robots, {settings.endpoint}, network {settings.network}"
    sections = (
        ("Latency over time", "From when the robot meant to ask, of every answer.", _over_time(run)),
        ("Robots that hold", "How many had no valid action to play, at each moment.", _holding(run)),
        ("Latency, cumulative", "Share of all questions answered within a time.", _cumulative(run)),
        ("Control steps supplied", "Share of each robot's control steps that had a valid action.", _supplied(run)),
        ("Chunk age when executed", "How old the observation behind each executed action was.", _ages(run)),
    )
    plots = "".join(
        f'<h2>{escape(name)}</h2><p>{escape(text)}</p><div class="wide">{plot}</div>' for name, text, plot in sections
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>"
        f"<p>{escape(_what(run))}</p>{_verdict(report)}{_tiles(run)}{plots}"
        f"{_faults(report)}{_latencies(report)}{_robots(report)}"
        f"<h2>How</h2><pre>{escape(_conditions(report))}</pre></html>\n"
    )


def _what(run: FleetRun) -> str:
    settings = run.settings
    cameras = ", ".join(f"{camera.width}x{camera.height}" for camera in settings.embodiment.cameras)
    return (
        f"{settings.rate_hz:g} questions a second of each for {settings.duration_s:g} s, open loop; "
        f"frames {cameras}, {settings.image_encoding}; chunks of {settings.description.action_horizon} actions, played "
        f"at {settings.control_rate_hz:g} Hz. In flight: {run.report['in_flight']}. {run.report['began']}"
    )


def _verdict(report: dict[str, Any]) -> str:
    return "".join(f'<p class="verdict">{escape(problem)}</p>' for problem in broken_assertions(report))


def _tiles(run: FleetRun) -> str:
    fleet, lag_ms = run.report["fleet"], run.report["scheduling_lag_ms"]
    latency = fleet["latency_ms"]
    tiles = [
        (
            _percent(fleet["supplied_share"]),
            f"control steps supplied, of at most {_percent(fleet['most_supplied_share'])}",
        ),
        (f"{fleet['robots_supplied']} of {run.settings.num_robots}", f"robots with {_percent(SUPPLIED_GOAL)} of that"),
        (_ms(latency, "p50"), "latency p50"),
        (_ms(latency, "p99"), "latency p99"),
        (f"{fleet['chunks_per_s']:.1f}", f"chunks a second, of {fleet['offered_per_s']:.1f} asked for"),
        (_percent(fleet["deadline_miss_share"]), "deadlines missed"),
        (str(sum(fleet["failures"].values())), "questions failed"),
        (_ms(lag_ms, "p99"), "own scheduling lag p99"),
        *fairness_and_bytes(run.report),
    ]
    cells = (f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _marks(report: dict[str, Any]) -> list[Mark]:
    marks = [Mark(start=fault["start_s"], end=fault["end_s"], text=fault["kind"]) for fault in report["faults"]]
    swaps = sorted(swap["at_s"] for swap in report["fleet"]["swaps_seen"])
    return marks + ([Mark(start=swaps[0], end=swaps[-1], text="new revision", kind="swap")] if swaps else [])


def _over_time(run: FleetRun) -> str:
    answered = _answered(run)
    if not len(answered):
        return "<p>No answer came.</p>"
    duration_s = run.settings.duration_s
    latencies_ms = np.maximum(1e3 * answered[:, 1], 1e-2)
    plot = Plot(
        "latency over time",
        Axis(label="seconds", low=0.0, high=duration_s),
        _latency_axis(latencies_ms, run.settings.deadline_s),
    )
    plot.marks(_marks(run.report))
    plot.dots(answered[:, 0], latencies_ms)
    plot.level(1e3 * run.settings.deadline_s, "deadline")
    return plot.svg()


def _holding(run: FleetRun) -> str:
    holds = [hold for robot in run.robots for hold in robot.playback.holds]
    changes = sorted([(hold.start_s, 1) for hold in holds] + [(hold.end_s, -1) for hold in holds])
    # Two points a change, so that the line has corners.
    times_s, counts, holding = [run.settings.settle_s], [0], 0
    for time_s, change in changes:
        times_s += [time_s, time_s]
        counts += [holding, holding + change]
        holding += change
    plot = Plot(
        "robots that hold over time",
        Axis(label="seconds", low=0.0, high=run.settings.duration_s),
        Axis(label="robots", low=0.0, high=float(run.settings.num_robots)),
    )
    plot.marks(_marks(run.report))
    plot.line(np.array([*times_s, run.settings.duration_s]), np.array([*counts, holding]), kind="b")
    return plot.svg()


def _cumulative(run: FleetRun) -> str:
    answered = _answered(run)
    if not len(answered):
        return "<p>No answer came.</p>"
    latencies_ms = np.sort(np.maximum(1e3 * answered[:, 1], 1e-2))
    num_questions = sum(len(robot.log.asks) for robot in run.robots)
    axis = _latency_axis(latencies_ms, run.settings.deadline_s)
    plot = Plot(
        "share of questions answered within a time",
        Axis(label="milliseconds", low=axis.low, high=axis.high, logarithmic=True),
        Axis(label="share", low=0.0, high=1.0),
    )
    plot.line(latencies_ms, np.arange(1, len(latencies_ms) + 1) / num_questions)
    deadline_ms = 1e3 * run.settings.deadline_s
    plot.marks([Mark(start=deadline_ms, end=deadline_ms, text="deadline")])
    return plot.svg()


def _supplied(run: FleetRun) -> str:
    shares = np.array([robot.playback.supplied_share for robot in run.robots])
    numbers = np.arange(len(shares))
    plot = Plot(
        "share of control steps supplied, by robot",
        Axis(label="robot", low=-0.5, high=len(shares) - 0.5),
        Axis(label="share", low=0.0, high=1.0),
    )
    plot.bars(numbers - 0.4, numbers + 0.4, shares, [f"robot {i}: {_percent(s)}" for i, s in enumerate(shares)])
    plot.level(SUPPLIED_GOAL * run.settings.most_supplied_share, "goal")
    return plot.svg()


def _ages(run: FleetRun) -> str:
    ages = sum((robot.playback.ages_steps for robot in run.robots), Counter[int]())
    if not ages:
        return "<p>No action was executed.</p>"
    most = max(ages) + 1
    width = max(1, math.ceil(most / 60))
    counts = np.zeros(math.ceil(most / width))
    for age, count in ages.items():
        counts[age // width] += count
    starts_ms = 1e3 * width * np.arange(len(counts)) / run.settings.control_rate_hz
    step_ms = 1e3 * width / run.settings.control_rate_hz
    plot = Plot(
        "age of executed actions",
        Axis(label="milliseconds since the observation", low=0.0, high=float(starts_ms[-1] + step_ms)),
        Axis(label="control steps", low=0.0, high=float(counts.max())),
    )
    plot.bars(starts_ms, starts_ms + step_ms, counts)
    return plot.svg()


def _faults(report: dict[str, Any]) -> str:
    if not report["faults"]:
        return ""
    rows = [
        (
            fault["kind"],
            f"{fault['start_s']:.1f}",
            f"{fault['end_s']:.1f}",
            fault["robots_that_held"],
            f"{fault['longest_hold_s']:.2f}",
            "-" if fault["recovery_s"] is None else f"{fault['recovery_s']['median']:.2f}",
            "-" if fault["recovery_s"] is None else f"{fault['recovery_s']['max']:.2f}",
            fault["robots_answered_again"],
            fault["robots_never_recovered"],
            fault["problem"] or "-",
        )
        for fault in report["faults"]
    ]
    heads = (
        "fault",
        "from s",
        "to s",
        "robots held",
        "longest hold s",
        "recovery median s",
        "most s",
        "answered again",
        "never recovered",
        "problem",
    )
    return f"<h2>Faults</h2>{_table(heads, rows)}"


def _latencies(report: dict[str, Any]) -> str:
    fleet = report["fleet"]
    spans = (("latency", fleet["latency_ms"]), *fleet["latency_split_ms"].items())
    rows = [
        (name, *(f"{span[key]:.2f}" for key in ("mean", "p50", "p90", "p99", "max"))) for name, span in spans if span
    ]
    return f"<h2>Where the time went</h2>{_table(('ms', 'mean', 'p50', 'p90', 'p99', 'max'), rows)}"


def _robots(report: dict[str, Any]) -> str:
    rows = [
        (
            robot["robot"],
            _percent(robot["supplied_share"]),
            robot["num_underruns"],
            _ms(robot["latency_ms"], "p50"),
            _ms(robot["latency_ms"], "p99"),
            _percent(robot["deadline_miss_share"]),
            robot["num_never_sent"],
            ", ".join(f"{kind} {count}" for kind, count in sorted(robot["failures"].items())) or "-",
            robot["num_reconnections"],
        )
        for robot in report["robots"]
    ]
    heads = ("robot", "supplied", "underruns", "p50", "p99", "missed", "never sent", "failures", "reconnections")
    return f"<h2>Robots</h2>{_table(heads, rows)}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _conditions(report: dict[str, Any]) -> str:
    conditions = {name: report[name] for name in ("settings", "machine", "versions")}
    pinned = "" if report["pinned"] else "not pinned: the robots share their machine's CPUs\n"
    return f"{pinned}{report.get('command', '')}\n{json.dumps(conditions, indent=1)}"


def _answered(run: FleetRun) -> np.ndarray:
    """[num_answers, 2]: when a question was meant to be asked, and its latency, in seconds."""
    found = [
        (ask.intended_s, latency_s)
        for robot in run.robots
        for ask in robot.log.asks
        if (latency_s := ask.latency_s) is not None
    ]
    return np.array(found).reshape(-1, 2)


def _latency_axis(latencies_ms: np.ndarray, deadline_s: float) -> Axis:
    """Whole powers of ten around all that is drawn."""
    low = 10.0 ** math.floor(math.log10(float(latencies_ms.min())))
    high = 10.0 ** math.ceil(math.log10(1.01 * max(float(latencies_ms.max()), 1e3 * deadline_s)))
    return Axis(label="milliseconds", low=low, high=high, logarithmic=True)


def _ms(span: dict[str, float] | None, key: str) -> str:
    return "-" if span is None else f"{span[key]:.1f} ms"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
