"""How far commands jump where one chunk takes over from another, in the units of the body.

Owns the two jumps of a seam and their figures. Does not own which chunk says what (premotor.client.playback).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from policy.embodiment import Group, group_slices

Floats = npt.NDArray[np.float32]


class SeamMeter:
    """Watches the commands of any number of episodes; `start` before each.

    Of the action a_t with which a chunk takes over, the jump is |a_t - a_(t-1)|, and that of the first difference is
    |(a_t - a_(t-1)) - (a_(t-1) - a_(t-2))|, dimension by dimension. The same of all other steps tells how much of it is
    motion that the task asks for.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = tuple(groups)
        self._last: list[Floats] = []
        # By whether it is of a seam: rows of |a_t - a_(t-1)| and of its change, [action_dim] each.
        self._jumps: dict[bool, list[Floats]] = {True: [], False: []}
        self._kinks: dict[bool, list[Floats]] = {True: [], False: []}

    def start(self) -> None:
        """A new episode: what comes next follows nothing."""
        self._last.clear()

    def note(self, action: Floats, *, takes_over: bool) -> None:
        """One command, [action_dim]; the first of an episode takes over from nothing."""
        if self._last:
            jump = action - self._last[-1]
            self._jumps[takes_over].append(np.abs(jump))
            if len(self._last) > 1:
                self._kinks[takes_over].append(np.abs(jump - (self._last[-1] - self._last[-2])))
        self._last = [*self._last[-1:], action]

    def figures(self) -> Mapping[str, Any]:
        """Of each group: kind, unit, maxima and root mean squares, None where nothing was seen, and of how many jumps.

        A jump's difference takes one action more: after the first two actions of an episode there is none yet.
        """
        return {
            group.name: {
                "kind": group.kind.value,
                "unit": group.unit,
                "num_seams": len(self._jumps[True]),
                "action_max": _largest(self._jumps[True], columns),
                "action_rms": _root_mean_square(self._jumps[True], columns),
                "difference_max": _largest(self._kinks[True], columns),
                "difference_rms": _root_mean_square(self._kinks[True], columns),
                "action_rms_elsewhere": _root_mean_square(self._jumps[False], columns),
                "difference_rms_elsewhere": _root_mean_square(self._kinks[False], columns),
                "num_seam_differences": len(self._kinks[True]),
                "num_elsewhere": len(self._jumps[False]),
                "num_differences_elsewhere": len(self._kinks[False]),
            }
            for group, columns in group_slices(self._groups)
        }


# Each figure of jumps, and the one that says of how many.
COUNTS: Mapping[str, str] = {
    "action_max": "num_seams",
    "action_rms": "num_seams",
    "difference_max": "num_seam_differences",
    "difference_rms": "num_seam_differences",
    "action_rms_elsewhere": "num_elsewhere",
    "difference_rms_elsewhere": "num_differences_elsewhere",
}


def pooled(figures: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The figures of one meter that had watched what each of several did; they are of one body."""
    return {
        name: {
            "kind": group["kind"],
            "unit": group["unit"],
            **{count: sum(each[name][count] for each in figures) for count in dict.fromkeys(COUNTS.values())},
            **{figure: _pooled([each[name] for each in figures], figure) for figure in COUNTS},
        }
        for name, group in (figures[0].items() if figures else ())
    }


def _pooled(groups: Sequence[Mapping[str, Any]], figure: str) -> float | None:
    seen = [(group[figure], group[COUNTS[figure]]) for group in groups if group[COUNTS[figure]]]
    if not seen:
        return None
    if figure.endswith("_max"):
        return max(value for value, _ in seen)
    return math.sqrt(sum(value**2 * count for value, count in seen) / sum(count for _, count in seen))


def _largest(rows: Sequence[Floats], columns: slice) -> float | None:
    return float(np.stack(rows)[:, columns].max()) if rows else None


def _root_mean_square(rows: Sequence[Floats], columns: slice) -> float | None:
    return float(np.sqrt(np.square(np.stack(rows)[:, columns], dtype=np.float64).mean())) if rows else None
