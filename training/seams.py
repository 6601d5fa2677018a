"""How far commands jump where one chunk takes over from another, in the units of the body.

Owns the two jumps of a seam and their figures. Does not own which chunk says what (premotor.client.playback).
"""

from __future__ import annotations

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
        """Of each group: its unit, the number of seams, maxima and root mean squares; None where nothing was seen."""
        return {
            group.name: {
                "unit": group.unit,
                "num_seams": len(self._jumps[True]),
                "action_max": _largest(self._jumps[True], columns),
                "action_rms": _root_mean_square(self._jumps[True], columns),
                "difference_max": _largest(self._kinks[True], columns),
                "difference_rms": _root_mean_square(self._kinks[True], columns),
                "action_rms_elsewhere": _root_mean_square(self._jumps[False], columns),
                "difference_rms_elsewhere": _root_mean_square(self._kinks[False], columns),
            }
            for group, columns in group_slices(self._groups)
        }


def _largest(rows: Sequence[Floats], columns: slice) -> float | None:
    return float(np.stack(rows)[:, columns].max()) if rows else None


def _root_mean_square(rows: Sequence[Floats], columns: slice) -> float | None:
    return float(np.sqrt(np.square(np.stack(rows)[:, columns], dtype=np.float64).mean())) if rows else None
