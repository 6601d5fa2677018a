"""One page from results.json: the claims, then of each task success and jumps by rule and delay. Owns its words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from training.playback.claims import FEWEST_SCENES
from training.playback.scenes import MOST_STALLED_SHARE, is_valid

Values = Mapping[str, Any]
_INTERVALS = (
    "Intervals are 95 %: Wilson's for the success of a task; for a ratio of jumps a bootstrap over tasks, then scenes, "
    "the same scenes for both sides; for a difference of success the wider of such a bootstrap and of Wilson's for how "
    "many pairs of scenes differ each way. A claim holds when its whole interval does; where all of it lies on the "
    f"other side the opposite was found. Fewer than {FEWEST_SCENES} scenes show nothing."
)
_JUMPS = (
    "A jump is how far an action is from the one before, dimension by dimension, in the units that the body is "
    "commanded in; of its first difference, how far the step is from the step before. A cell is the RMS at seams, "
    "where one chunk takes over from another, after the slash that of all other steps, which is the motion that the "
    "task asks for, and in brackets the largest at a seam."
)


def format_report(values: Values, figures: Sequence[str]) -> str:
    tasks = list(dict.fromkeys(row["task"] for row in values["rows"]))
    parts = [
        f"# {values['title']}",
        f"`{values['command']}`",
        *([f"**Partial.** {values['num_left']} rows are left."] if values["num_left"] else []),
        *(f"![{values['title']}]({name})" for name in figures if name.endswith(".png")),
        "## Claims",
        *_claims(values["claims"]),
        *(part for task in tasks for part in _task(values, task)),
        *_not_applicable(values["not_applicable"]),
        "## How it was done",
        "\n".join(f"- {line}" for line in [*_identity(values), values["delay"], _JUMPS, _INTERVALS]),
    ]
    return "\n\n".join(parts) + "\n"


def _claims(claims: Sequence[Values]) -> list[str]:
    if not claims:
        return ["None: no method of real-time chunking was asked for."]
    lines = [[claim["claim"], _estimate(claim), claim["verdict"]] for claim in claims]
    parts = [
        [
            f"{part['task']}, {part['group']}",
            claim["method"],
            part["quantity"].partition("_")[0],
            f"{part['jump']:.3g} {part['unit']}",
            f"{part['replace_jump']:.3g} {part['unit']}",
            f"{part['ratio']:.2f} ({part['low']:.2f} to {part['high']:.2f})",
            "yes" if part["in_mean"] else "no",
        ]
        for claim in claims
        for part in claim.get("parts", ())
    ]
    caveats = dict.fromkeys(claim["estimate"]["caveat"] for claim in claims if claim["estimate"])
    missing = dict.fromkeys(reason for claim in claims for reason in claim["missing"])
    return [
        _table(["claim", "found (95 % interval)", "verdict"], lines),
        *(
            [
                "The ratio of a claim is the geometric mean of these, one a group of actions and task. Grippers and "
                "modes are not in it: whether a command happens to flip at a seam would decide it.",
                _table(
                    ["task, group", "method", "jump of", "RMS at seams", "of replace", "ratio", "in the mean"], parts
                ),
            ]
            if parts
            else []
        ),
        *([f"Left out: {'; '.join(missing)}."] if missing else []),
        *(f"Caveat: {caveat}." for caveat in caveats if caveat),
    ]


def _estimate(claim: Values) -> str:
    found = claim["estimate"]
    if found is None:
        return "-"
    if claim["kind"] == "ratio":
        return f"{found['value']:.2f} times ({found['low']:.2f} to {found['high']:.2f})"
    value, low, high = (100 * found[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"


def _task(values: Values, task: str) -> list[str]:
    rows = {(row["rule"], row["delay_steps"]): row for row in values["rows"] if row["task"] == task}
    rules = list(dict.fromkeys(rule for rule, _ in rows))
    delays = sorted({delay for _, delay in rows})
    header = ["rule", *(f"delay {delay}" for delay in delays)]

    def by_delay(rule: str, cell: Callable[[Values], str]) -> list[str]:
        return [cell(rows[rule, delay]) if (rule, delay) in rows else "-" for delay in delays]

    parts = [f"## {task}", _table(header, [[rule, *by_delay(rule, _success)] for rule in rules])]
    clocked = [row for row in rows.values() if row["real_time"] is not None]
    if clocked:
        parts += ["What the clock did:", _clock_table(clocked)]
    groups = next(iter(rows.values()))["seams"]
    lines = [
        [f"{group}, {what}, {figures['unit']}", rule, *by_delay(rule, partial(_jump, group, quantity))]
        for group, figures in groups.items()
        for quantity, what in (("action", "action"), ("difference", "first difference"))
        for rule in rules
    ]
    return [*parts, _table(["jump of", *header], lines)]


def _success(row: Values) -> str:
    if not is_valid(row):
        return "invalid"
    rate, low, high = row["successes"] / row["episodes"], row["success_low"], row["success_high"]
    return f"{100 * rate:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def _jump(group: str, quantity: str, row: Values) -> str:
    figures = row["seams"][group]
    at_seams, elsewhere = figures[f"{quantity}_rms"], figures[f"{quantity}_rms_elsewhere"]
    if at_seams is None:
        return "no seam"
    other = "-" if elsewhere is None else f"{elsewhere:.3g}"
    return f"{at_seams:.3g} / {other} ({figures[f'{quantity}_max']:.3g})"


def _clock_table(rows: Sequence[Values]) -> str:
    lines = []
    for row in rows:
        clock = row["real_time"]
        measured = "-"
        if clock["delay_steps_mean"] is not None:
            measured = f"{clock['delay_steps_mean']:.1f} (p95 {clock['delay_steps_p95']:.0f})"
        counts = ("num_steps", "num_held_steps", "num_late_steps", "num_skipped_periods", "num_stalled_steps")
        methods = ", ".join(f"{name} {number}" for name, number in sorted(clock["methods"].items()))
        lines.append(
            [row["rule"], str(row["delay_steps"]), measured, *(str(clock[count]) for count in counts)]
            + [str(clock["num_failures"]), methods, "yes" if clock["valid"] else "**no**"]
        )
    header = ["rule", "periods added", "measured delay, steps", "steps", "held", "late", "skipped", "stalled", "failed"]
    return _table([*header, "chunks by method", "valid"], lines)


def _not_applicable(refused: Sequence[Values]) -> list[str]:
    """What is the same for several tasks and delays is said once."""
    if not refused:
        return []
    by_reason: dict[tuple[str, str], dict[str, list[int]]] = {}
    for each in refused:
        of_rule = by_reason.setdefault((each["rule"], each["reason"]), {})
        of_rule.setdefault(each["task"], []).append(each["delay_steps"])
    lines = []
    for (rule, reason), tasks in by_reason.items():
        where = "; ".join(f"{task} at {', '.join(map(str, delays))}" for task, delays in tasks.items())
        lines.append(f"- {rule}: {reason} ({where})")
    return ["## Not applicable", "\n".join(lines)]


def _identity(values: Values) -> list[str]:
    measured, policy = values["measurement"], values["policy"]
    scenes = f"{measured['episodes']} {values['scenes']} scenes a row, seeds {measured['first_seed']} on"
    trained = policy["max_inference_delay"]
    lines = [
        f"Revision {measured['revision']}, {measured['mode']}, {scenes}; chunks of {policy['action_horizon']} actions, "
        f"{policy['execution_horizon']} played, "
        + (f"prefixes of up to {trained} trained." if trained else "no prefix trained."),
    ]
    if measured["mode"] == "real time":
        lines.append(
            f"A row is invalid when its simulator stood still for more than {100 * MOST_STALLED_SHARE:g} % of its "
            "steps; nothing of it enters a claim or the figure. After a step that was held or went by no jump is "
            "counted."
        )
    else:
        lines.append(f"The policy was told {'the true' if measured['history'] else 'no'} history.")
    return lines


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])
