"""Which action is for which control step: chunks in, one action a step out.

Owns the stamps, the overlap of chunks and what is counted of both. Knows no clock, no thread and no robot: a control
step is an integer, and whoever calls says which one it is. Does not own what is played when there is no action
(hold.py), or when to ask for the next chunk (control_loop.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from premotor.client.description import Group

# Kinds whose numbers lie on a line, so that the mean of two values is a value between them.
_AVERAGED_KINDS = ("joint_position", "joint_velocity", "end_effector_position")


@dataclass(frozen=True, kw_only=True)
class Replace:
    """The newest chunk that holds a step says its action."""


@dataclass(frozen=True, kw_only=True)
class TemporalEnsemble:
    """The weighted mean of all chunks that hold a step (ACT, arXiv 2304.13705, section IV-A).

    Weights are exp(-coefficient i) with i = 0 for the oldest chunk; 0.01 is the value of ACT's published code, and
    makes the mean nearly an even one. Averaged are absolute groups on a line: joints, their velocities, end-effector
    positions. Everything else is the newest chunk's: a delta starts from where the body is, and the mean with a chunk
    that expected it elsewhere repeats or undoes motion; half-way between an open and a closed gripper is a command that
    no chunk gave; components of a rotation do not average to a rotation; and of other groups it is not known.
    """

    coefficient: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.coefficient < math.inf:
            raise ValueError(f"coefficient is {self.coefficient}, expected a finite number, 0 or more")


@dataclass(frozen=True, kw_only=True)
class RealTimeChunkingRule:
    """The server makes each chunk continue the one being played; the newest chunk then says the action, as in Replace.

    `method` and `max_guidance_weight` are those of RealTimeChunking. Where "prefix" is asked for and the measured delay
    is more than the policy was trained for, that request leaves the method to the server.
    """

    method: Literal["auto", "guidance", "prefix"] = "auto"
    max_guidance_weight: float | None = None


PlaybackRule = Replace | TemporalEnsemble | RealTimeChunkingRule


class PlannedAction(NamedTuple):
    """The action of one step, float32 [action_dim], and the newest chunk that had a say in it."""

    action: np.ndarray
    for_step: int  # the step at which that chunk's observation was captured
    age_steps: int  # from there to the step that is played


class Insertion(NamedTuple):
    """What became of a chunk's rows: how many are of no use any more, how many are a newer chunk's or changed a plan.

    Of no use are as many as steps have gone by since the observation: the first ones, or where the body stood still
    the last, which its time no longer covers.

    Rows that a mean is made with change the plan; none of them is a newer chunk's.
    """

    num_late_rows: int
    num_outrun_rows: int
    num_replaced_rows: int


@dataclass(kw_only=True)
class PlaybackCounts:
    """What happened since the first step. Every step that was asked for is played, an underrun or waited.

    `ages` counts played actions by their age in steps.
    """

    num_played: int = 0
    num_underruns: int = 0  # steps without an action after the first chunk came
    num_waited: int = 0  # steps before it came
    num_chunks: int = 0
    num_useless_chunks: int = 0  # every row came too late, or after a newer chunk's
    num_late_rows: int = 0  # as many as steps had passed when their chunk came
    num_skipped_rows: int = 0  # planned for a step that was never asked for
    num_replaced_rows: int = 0
    ages: Counter[int] = field(default_factory=Counter)

    @property
    def mean_age_steps(self) -> float:
        """Of the played actions; 0 when there were none."""
        return sum(age * number for age, number in self.ages.items()) / max(self.num_played, 1)


class _Chunk(NamedTuple):
    for_step: int
    num_still_steps: int
    actions: np.ndarray

    @property
    def end(self) -> int:
        return self.for_step + len(self.actions)

    def row(self, step: int) -> np.ndarray:
        return self.actions[step - self.for_step - self.num_still_steps]


class HeldSteps:
    """In which steps of an episode a body was held, as runs of them."""

    def __init__(self) -> None:
        self._runs: list[tuple[int, int]] = []  # the first step and the one after the last, oldest first

    def note(self, step: int) -> None:
        """Steps are noted in order."""
        if self._runs and self._runs[-1][1] == step:
            self._runs[-1] = self._runs[-1][0], step + 1
        else:
            self._runs.append((step, step + 1))

    def since(self, step: int) -> int:
        """How many there were from `step` on."""
        num_held = 0
        for begin, end in reversed(self._runs):
            if end <= step:
                break
            num_held += end - max(begin, step)
        return num_held


class ActionBuffer:
    """The plan of one episode. An action is given for its own step or not at all.

    A step's own action is the one that its chunk has for it: so many rows after the first as the body has moved on in
    since the observation.
    """

    def __init__(self, groups: Sequence[Group], rule: PlaybackRule, *, start_step: int = 0) -> None:
        """`groups` are the embodiment's action groups, `start_step` the first step that will be asked for.

        Raises ValueError for a temporal ensemble of a body none of whose groups can be averaged.
        """
        self._action_dim = sum(group.dim for group in groups)
        self._coefficient = rule.coefficient if isinstance(rule, TemporalEnsemble) else None
        self._averaged = np.concatenate([np.full(group.dim, _is_averaged(group)) for group in groups])
        if self._coefficient is not None and not self._averaged.any():
            kinds = ", ".join(f"{group.name} ({group.representation} {group.kind})" for group in groups)
            raise ValueError(
                f"a temporal ensemble would average nothing: no action group of {kinds} can be averaged; "
                "use Replace or RealTimeChunkingRule"
            )
        # Ordered by for_step. All of them began by now, so each holds every step from now to its end.
        self._chunks: list[_Chunk] = []
        self._next_step = start_step
        self.counts = PlaybackCounts()

    @property
    def start_step(self) -> int:
        """The first step that may still be asked for."""
        return self._next_step

    @property
    def newest_for_step(self) -> int | None:
        """When the observation behind the newest chunk that is still of use was captured; None without one."""
        return self._chunks[-1].for_step if self._chunks else None

    def insert(self, actions: np.ndarray, *, for_step: int, now_step: int, num_still_steps: int = 0) -> Insertion:
        """Adds a chunk, [num_actions, action_dim], whose observation was captured at `for_step`.

        Row i is for step for_step + i; rows for steps before `now_step` are dropped. In `num_still_steps` of these the
        body was held where it was: so many rows later is where it is now, and the plan is for so many steps later. Its
        end stays: no row is played when the time that the chunk covers is over. Chunks may come in any order. Raises
        ValueError for another shape or an observation from the future.
        """
        if actions.ndim != 2 or actions.shape[1] != self._action_dim or len(actions) == 0:
            raise ValueError(f"a chunk of shape {list(actions.shape)} came, expected [1 or more, {self._action_dim}]")
        if for_step > now_step:
            raise ValueError(
                f"a chunk for step {for_step} came at step {now_step}, expected an observation of the past"
            )
        num_steps = now_step - for_step
        if not 0 <= num_still_steps <= num_steps:
            raise ValueError(
                f"num_still_steps is {num_still_steps}, expected 0 to {num_steps}, the steps since the observation"
            )
        chunk = _Chunk(for_step, num_still_steps, actions)
        first = max(now_step, self._next_step)
        self._drop_before(first)
        # In a mean every chunk has a say, the order of observations takes nothing from anybody.
        newest_older = for_step if self._coefficient is None else now_step
        newer_end = max((each.end for each in self._chunks if each.for_step > newest_older), default=first)
        older_end = max((each.end for each in self._chunks if each.for_step <= newest_older), default=first)
        insertion = Insertion(
            num_late_rows=min(max(first - for_step, 0), len(actions)),
            num_outrun_rows=max(min(chunk.end, newer_end) - first, 0),
            num_replaced_rows=max(min(chunk.end, older_end) - newer_end, 0),
        )
        counts = self.counts
        counts.num_chunks += 1
        counts.num_late_rows += insertion.num_late_rows
        counts.num_replaced_rows += insertion.num_replaced_rows
        if chunk.end <= newer_end:
            counts.num_useless_chunks += 1
            return insertion
        if self._coefficient is None:
            # What a newer chunk holds as well is never looked at again.
            self._chunks = [each for each in self._chunks if each.for_step > for_step or each.end > chunk.end]
        position = sum(each.for_step <= for_step for each in self._chunks)
        self._chunks.insert(position, chunk)
        return insertion

    def action(self, step: int) -> PlannedAction | None:
        """The action for this very step, or None. Steps are asked for in order; those passed over are gone.

        Raises ValueError for a step that was asked for, or passed over, before.
        """
        if step < self._next_step:
            raise ValueError(f"step {step} was asked for after step {self._next_step - 1}: time runs forward")
        counts = self.counts
        counts.num_skipped_rows += max(min(step, self._end()) - self._next_step, 0)
        self._next_step = step + 1
        self._drop_before(step)
        if not self._chunks:
            if counts.num_chunks:
                counts.num_underruns += 1
            else:
                counts.num_waited += 1
            return None
        planned = self._plan(step)
        counts.num_played += 1
        counts.ages[planned.age_steps] += 1
        return planned

    def remaining(self, now_step: int) -> int:
        """How many steps in a row, `now_step` the first, have an action."""
        return max(self._end() - max(now_step, self._next_step), 0)

    def planned(self, now_step: int) -> np.ndarray:
        """The actions that would be played from `now_step` on if nothing came: float32 [remaining, action_dim]."""
        rows = [self._plan(step).action for step in range(now_step, self._end())]
        return np.stack(rows) if rows else np.zeros((0, self._action_dim), np.float32)

    def clear(self) -> None:
        """Forgets the plan; what was counted stays."""
        self._chunks.clear()

    def _end(self) -> int:
        return max((chunk.end for chunk in self._chunks), default=self._next_step)

    def _drop_before(self, step: int) -> None:
        if any(chunk.end <= step for chunk in self._chunks):
            self._chunks = [chunk for chunk in self._chunks if chunk.end > step]

    def _plan(self, step: int) -> PlannedAction:
        holding = [chunk for chunk in self._chunks if chunk.end > step]
        newest = holding[-1]
        action = np.array(newest.row(step), np.float32)
        if self._coefficient is not None and len(holding) > 1:
            weights = np.exp(-self._coefficient * np.arange(len(holding)))
            rows = np.stack([chunk.row(step) for chunk in holding])
            mean = weights @ rows / weights.sum()
            action[self._averaged] = mean[self._averaged]
        return PlannedAction(action, newest.for_step, step - newest.for_step)


def _is_averaged(group: Group) -> bool:
    return group.representation == "absolute" and group.kind in _AVERAGED_KINDS
