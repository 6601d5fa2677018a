"""What a robot is told when no action is valid: stay.

Owns the meaning of "stay" for a body's action groups. A zero is "no motion" for a delta or a velocity, and "go to zero"
for an absolute position, which no rule here ever says. Does not own when to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from premotor.client.description import Embodiment, Group

# The state as measured, [state_dim], and the last command, [action_dim], None before the first; returns a command.
HoldCallback = Callable[[np.ndarray, "np.ndarray | None"], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class LastPosition:
    """Absolute groups stay where they are; deltas and velocities are zero.

    `at` says where that is: "commanded" repeats the last command, so that a motion that is nearly done is finished and
    a load is not let sink; "measured" stops at what the state group of the same name, width and unit says. Before the
    first command it is the measured one. Groups that no state group measures are held as commanded, and before the
    first command as `first` says, group name to values in its unit.
    """

    at: Literal["commanded", "measured"] = "commanded"
    first: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ZeroVelocity:
    """Zeros, for a body all of whose action groups are deltas or velocities; refused for any other."""


HoldRule = LastPosition | ZeroVelocity | HoldCallback


class Hold:
    """A rule made to fit one body."""

    def __init__(self, embodiment: Embodiment, rule: HoldRule) -> None:
        """Raises ValueError where the rule cannot say what one of the body's groups should do."""
        if not isinstance(rule, (LastPosition, ZeroVelocity)) and not callable(rule):
            raise ValueError(f"hold is {rule!r}, expected LastPosition, ZeroVelocity or a function")
        self._rule = rule
        self._action_dim = embodiment.action_dim
        self._moves = np.concatenate([np.full(group.dim, is_motion(group)) for group in embodiment.action])
        self._measured = tuple(measured_positions(embodiment))
        self._lower, self._upper = _limits(embodiment.action)
        self._first = np.zeros(self._action_dim, np.float32)
        if isinstance(rule, LastPosition):
            self._read_first(embodiment, rule)
        elif isinstance(rule, ZeroVelocity) and not self._moves.all():
            names = ", ".join(group.name for group in embodiment.action if not is_motion(group))
            raise ValueError(
                f"embodiment {embodiment.name!r}: {names} are absolute positions, where zero is a place to go to; "
                "hold with LastPosition or a function"
            )

    def action(self, state: np.ndarray, last_action: np.ndarray | None) -> np.ndarray:
        """The command that keeps the body still: float32 [action_dim], inside its limits where it is measured.

        Raises ValueError for a command of a function that has another shape or is not finite.
        """
        if isinstance(self._rule, ZeroVelocity):
            return np.zeros(self._action_dim, np.float32)
        if not isinstance(self._rule, LastPosition):
            return self._checked(self._rule(state, last_action))
        held = np.array(self._first if last_action is None else last_action, np.float32)
        if last_action is None or self._rule.at == "measured":
            for position in self._measured:
                held[position.in_action] = state[position.in_state]
            held = np.clip(held, self._lower, self._upper)
        held[self._moves] = 0
        return held

    def _checked(self, action: np.ndarray) -> np.ndarray:
        held = np.array(action, np.float32)
        if held.shape != (self._action_dim,) or not np.isfinite(held).all():
            raise ValueError(f"the hold function returned {held}, expected {self._action_dim} finite numbers")
        return held

    def _read_first(self, embodiment: Embodiment, rule: LastPosition) -> None:
        """What nothing measures, and only that, has a value of the caller's."""
        measured = {position.name for position in self._measured}
        given = dict(rule.first)
        for group, where in _columns(embodiment.action):
            if is_motion(group) or group.name in measured:
                continue
            if group.name not in given:
                raise ValueError(
                    f"embodiment {embodiment.name!r}: no state group has the name, width and unit of {group.name} "
                    f"({group.unit}), so where it is cannot be measured; say what holds it before the first command, "
                    f"LastPosition(first={{{group.name!r}: ...}}), or hold with a function"
                )
            values = np.array(given.pop(group.name), np.float32)
            if values.shape != (group.dim,) or not np.isfinite(values).all():
                raise ValueError(f"first[{group.name!r}] is {values}, expected {group.dim} finite numbers")
            self._first[where] = values
        if given:
            raise ValueError(
                f"first names {', '.join(given)}, which embodiment {embodiment.name!r} measures, moves by deltas or "
                "velocities, or does not have"
            )


def unmeasured_at_zero(embodiment: Embodiment) -> dict[str, list[float]]:
    """`LastPosition.first` for a body whose grippers and modes, where nothing measures them, may begin at 0.

    Zero is no effort for a gripper that is commanded by effort, and a mode moves nothing by itself; for one where 0 is
    a place to go to, say another. Empty for a body that measures all. Raises ValueError where another group is not
    measured.
    """
    measured = {position.name for position in measured_positions(embodiment)}
    unmeasured = [group for group in embodiment.action if not is_motion(group) and group.name not in measured]
    if unknown := [group.name for group in unmeasured if group.kind not in ("gripper", "other")]:
        raise ValueError(
            f"embodiment {embodiment.name!r}: where {', '.join(unknown)} are is not measured, say how they hold"
        )
    return {group.name: [0.0] * group.dim for group in unmeasured}


def is_motion(group: Group) -> bool:
    """Whether zero means "do not move" for an action group."""
    return group.representation == "delta" or group.kind == "joint_velocity" or group.unit.endswith("/s")


class MeasuredPosition(NamedTuple):
    """A group that is both commanded and measured, with its columns in action and state."""

    name: str
    in_action: slice
    in_state: slice


def measured_positions(embodiment: Embodiment) -> Iterator[MeasuredPosition]:
    """Absolute action groups that a state group of the same name, width and unit measures."""
    actions = {group.name: (group, where) for group, where in _columns(embodiment.action)}
    for group, in_state in _columns(embodiment.state):
        if group.name in actions:
            action, in_action = actions[group.name]
            if (action.dim, action.unit) == (group.dim, group.unit) and not is_motion(action):
                yield MeasuredPosition(group.name, in_action, in_state)


def _columns(groups: Sequence[Group]) -> Iterator[tuple[Group, slice]]:
    start = 0
    for group in groups:
        yield group, slice(start, start + group.dim)
        start += group.dim


def _limits(groups: Sequence[Group]) -> tuple[np.ndarray, np.ndarray]:
    lower = [bound for group in groups for bound in group.lower_limit or (-np.inf,) * group.dim]
    upper = [bound for group in groups for bound in group.upper_limit or (np.inf,) * group.dim]
    return np.array(lower, np.float32), np.array(upper, np.float32)
