"""What a robot's body would have played: worked out after the run, from the stamps of its chunks.

Owns one robot's control steps, holds and chunk ages. The rule by which an action is found for a step is ActionBuffer's
(premotor.client.playback), the same as in a robot; that nothing stale was played is checked here a second time, by the
stamps alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from premotor.client.description import Group
from premotor.client.fleet.robot import Ask
from premotor.client.playback import ActionBuffer, PlannedAction, Replace


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Control steps in a row without an action; seconds after the run's start."""

    start_s: float
    end_s: float


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


def play(
    asks: Sequence[Ask],
    groups: Sequence[Group],
    *,
    control_rate_hz: float,
    first_s: float,
    end_s: float,
) -> Playback:
    """The control steps in [first_s, end_s), with each chunk from the moment at which it came.

    Step k is at k / control_rate_hz. A chunk is for the step before which its observation was last taken, and can be
    played from the first step that had not begun when it came. A robot that nothing came for holds from `first_s` on.
    """
    arrivals = sorted(
        ((ask.ended_s, ask) for ask in asks if ask.answer is not None and ask.ended_s is not None),
        key=lambda arrival: arrival[0],
    )
    buffer = ActionBuffer(groups, Replace())
    first_step, end_step = math.ceil(first_s * control_rate_hz), math.ceil(end_s * control_rate_hz)
    playback = Playback()
    held: list[int] = []
    position = 0
    came: dict[int, tuple[float, np.ndarray]] = {}
    for step in range(end_step):
        step_s = step / control_rate_hz
        while position < len(arrivals) and arrivals[position][0] <= step_s:
            came_s, ask = arrivals[position]
            position += 1
            assert ask.answer is not None and ask.sent_s is not None
            for_step = math.floor(ask.sent_s * control_rate_hz)
            came[for_step] = (came_s, ask.answer.actions)
            buffer.insert(ask.answer.actions, for_step=for_step, now_step=step)
        planned = buffer.action(step)
        if step < first_step:
            continue
        playback.num_steps += 1
        if planned is None:
            held.append(step)
            continue
        playback.num_supplied += 1
        playback.ages_steps[planned.age_steps] += 1
        playback.num_stale += _is_stale(planned, step, step_s, came)
    playback.holds = _holds(held, control_rate_hz)
    return playback


def _is_stale(planned: PlannedAction, step: int, step_s: float, came: Mapping[int, tuple[float, np.ndarray]]) -> bool:
    """Not the row for this very step of a chunk that had come by then."""
    came_s, actions = came[planned.for_step]
    age = step - planned.for_step
    return came_s > step_s or not 0 <= age < len(actions) or not np.array_equal(planned.action, actions[age])


def _holds(steps: Sequence[int], control_rate_hz: float) -> list[Hold]:
    if not steps:
        return []
    breaks: list[int] = np.flatnonzero(np.diff(steps) > 1).tolist()
    starts = [steps[0], *(steps[i + 1] for i in breaks)]
    ends = [*(steps[i] for i in breaks), steps[-1]]
    spans = zip(starts, ends, strict=True)
    return [Hold(start_s=start / control_rate_hz, end_s=(end + 1) / control_rate_hz) for start, end in spans]
