"""Tables and cells of the reports. Owns how a figure is written; what is written is the reports'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ASKED_SEEDS, ASKED_EPISODES = 3, 50  # of training; of tests, of each seed and task
# Markdown takes a bare asterisk for emphasis.
FEWER = r"\*"
SAMPLE = "seeds x tasks x episodes"
SAMPLE_LEGEND = f"{FEWER} fewer than the {ASKED_SEEDS} seeds or {ASKED_EPISODES} episodes that were asked for."


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def percent_cell(found: Mapping[str, Any] | None) -> str:
    """An estimate's JSON in percent, with its interval."""
    if found is None:
        return "-"
    return f"{100 * found['value']:.1f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def task_cell(found: Mapping[str, Any]) -> str:
    """Successes of one task in percent, with Wilson's interval."""
    return f"{100 * found['successes'] / found['episodes']:.0f} ({100 * found['low']:.0f} to {100 * found['high']:.0f})"


def sample_cell(found: Mapping[str, Any] | None) -> str:
    """How much stands behind an estimate of successes, marked where it is less than was asked."""
    if found is None:
        return "-"
    fewer = found["num_seeds"] < ASKED_SEEDS or found["num_episodes"] < ASKED_EPISODES
    return f"{found['num_seeds']} x {found['num_tasks']} x {found['num_episodes']}{f' {FEWER}' if fewer else ''}"


def seeds_cell(found: Mapping[str, Any] | None, of: str = "") -> str:
    """The number of seeds of training; with what else there is, by its name, for figures that no episode makes."""
    if found is None:
        return "-"
    seeds = f"{count(found['num_seeds'], 'seed')} x {of}" if of else f"{found['num_seeds']}"
    return seeds if found["num_seeds"] >= ASKED_SEEDS else f"{seeds} {FEWER}"


def whole_percent(share: float) -> str:
    return f"{100 * share:.0f} %"
