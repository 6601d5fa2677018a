"""Tables and cells of the reports. Owns how a figure is written; what is written is the reports'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


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
