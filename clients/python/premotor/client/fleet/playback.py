"""What a robot's body would have played: worked out after the run, from the stamps of its chunks.

Owns one robot's control steps, holds and chunk ages. The rule by which an action is found for a step is ActionBuffer's
(premotor.client.playback), the same as in a robot, but that a body which is not there stands still in no step: rows
wait for nobody. That nothing stale was played is checked here a second time, in seconds and by the numbers of the
actions alone: neither the buffer's steps nor the stamps it was given have a say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from premotor.client.description import Group
from premotor.client.fleet.robot import Ask
from premotor.client.playback import ActionBuffer, Replace

# Of a control step: what two ways of computing one moment may differ by.
_ROUNDING_STEPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Control steps in a row without an action; seconds after the run's start.

    `is_over` is False for one that still lasted when the run ended, whose `end_s` is then the run's.
    """

    start_s: float
    end_s: float
    is_over: bool = True


@dataclass(kw_only=True)
class Playback:
    """What was played from `first_step` on. `ages_steps` counts played steps by the age of their chunk."""

    num_steps: int = 0
    num_supplied: int = 0
    num_stale: int = 0
    ages_steps: Counter[int] = field(default_factory=Counter)
    holds: list[Hold] = field(default_factory=list)

    @property
    def supplied_share(self) -> float:
        return self.num_supplied / self.num_steps if self.num_steps else 0.0


class _Arrival(NamedTuple):
    """A chunk: when it came and when its robot had looked, in seconds after the start."""

    came_s: float
    looked_s: float
    actions: np.ndarray


def play(
    asks: Sequence[Ask],
    groups: Sequence[Group],
    *,
    control_rate_hz: float,
    first_s: float,
    end_s: float,
) -> Playback:
    """The control steps in [first_s, end_s), with each chunk from the moment at which it came.

    Step k is at k / control_rate_hz. A robot looks when it means to ask: a chunk is for the step before which that was,
    wherever its question waited since, on the robot, at a gateway or inside a server. It can be played from the first
    step that had not begun when it came. A robot that nothing came for holds from `first_s` on.
    """
    arrivals = sorted(
        (
            _Arrival(ask.ended_s, ask.intended_s, ask.answer.actions)
            for ask in asks
            if ask.answer is not None and ask.ended_s is not None
        ),
        key=lambda arrival: arrival.came_s,
    )
    buffer = ActionBuffer(groups, Replace())
    first_step, end_step = math.ceil(first_s * control_rate_hz), math.ceil(end_s * control_rate_hz)
    playback = Playback()
    held: list[int] = []
    position = 0
    here: list[_Arrival] = []
    for step in range(end_step):
        step_s = step / control_rate_hz
        while position < len(arrivals) and arrivals[position].came_s <= step_s:
            arrival = arrivals[position]
            position += 1
            for_step = math.floor(arrival.looked_s * control_rate_hz)
            buffer.insert(arrival.actions, for_step=for_step, now_step=step)
            here = [each for each in here if _lasts(each, step_s, control_rate_hz)] + [arrival]
        planned = buffer.action(step)
        if step < first_step:
            continue
        playback.num_steps += 1
        if planned is None:
            held.append(step)
            continue
        playback.num_supplied += 1
        playback.ages_steps[planned.age_steps] += 1
        playback.num_stale += _is_stale(planned.action, step_s, control_rate_hz, here)
    playback.holds = _holds(held, control_rate_hz, end_step)
    return playback


def looking_again(asks: Iterable[Ask]) -> list[Ask]:
    """The same, had robots looked again at the moment at which a question that had waited went out."""
    return [replace(ask, intended_s=ask.sent_s) if ask.waited and ask.sent_s is not None else ask for ask in asks]


def _is_stale(action: np.ndarray, step_s: float, control_rate_hz: float, here: Iterable[_Arrival]) -> bool:
    """Not a row, for this very moment, of any chunk that had come by then.

    Rows are for the moment their robot looked and one control step later each; the row for a step is the first that is
    not before it.
    """
    for came_s, looked_s, actions in here:
        exact_row = (step_s - looked_s) * control_rate_hz
        first = max(0, math.ceil(exact_row - _ROUNDING_STEPS))
        last = min(len(actions) - 1, math.floor(exact_row + 1 + _ROUNDING_STEPS))
        if came_s <= step_s and any(np.array_equal(action, actions[row]) for row in range(first, last + 1)):
            return False
    return True


def _lasts(arrival: _Arrival, step_s: float, control_rate_hz: float) -> bool:
    return arrival.looked_s + (len(arrival.actions) + 1) / control_rate_hz >= step_s


def _holds(steps: Sequence[int], control_rate_hz: float, end_step: int) -> list[Hold]:
    if not steps:
        return []
    breaks: list[int] = np.flatnonzero(np.diff(steps) > 1).tolist()
    starts = [steps[0], *(steps[i + 1] for i in breaks)]
    ends = [*(steps[i] for i in breaks), steps[-1]]
    return [
        Hold(start_s=start / control_rate_hz, end_s=(end + 1) / control_rate_hz, is_over=end + 1 < end_step)
        for start, end in zip(starts, ends, strict=True)
    ]
