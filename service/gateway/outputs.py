"""Whether a chunk may leave: the right numbers, all finite, inside what the body declares.

Owns the check of a model's answer against its embodiment's published limits. It refuses; it never clamps, replaces or
repairs, because a robot that is told nothing came will hold, and one that is sent something will play it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NoReturn

import numpy as np

from premotor.v1 import policy_pb2
from service.errors import OutputViolationError

# A limit is a decimal number and an action a float32 that was scaled and shifted on its way: some units in the last
# place, of the largest number of that dimension, are no violation.
ROUNDING = 8 * float(np.finfo(np.float32).eps)
_LARGEST = np.finfo(np.float32).max


class OutputCheck:
    """The limits of one embodiment's actions as arrays, made once: a check costs some microseconds."""

    def __init__(self, embodiment: policy_pb2.Embodiment, *, action_horizon: int) -> None:
        self._embodiment = embodiment.name
        self._groups = [group.name for group in embodiment.action for _ in range(group.dim)]
        self._shape = action_horizon, len(self._groups)
        self._lower = _per_dimension(embodiment, lambda group: group.lower_limit, -np.inf)
        self._upper = _per_dimension(embodiment, lambda group: group.upper_limit, np.inf)
        self._step = _per_dimension(embodiment, lambda group: group.step_limit, np.inf)
        limits = np.abs([self._lower, self._upper])
        slack = ROUNDING * np.where(np.isfinite(limits), limits, 0.0).max(axis=0)
        with np.errstate(over="ignore"):  # to infinity, beyond which no float32 lies
            # What is not bounded is at least finite.
            self._least = (self._lower - slack).astype(np.float32).clip(-_LARGEST, _LARGEST)
            self._most = (self._upper + slack).astype(np.float32).clip(-_LARGEST, _LARGEST)
        self._limits_steps = bool(np.isfinite(self._step).any())

    def check(self, actions: np.ndarray) -> None:
        """Raises OutputViolationError for the first limit that is broken, and the first group that breaks it."""
        if actions.dtype != np.float32 or actions.shape != self._shape:
            detail = f"{actions.dtype} {list(actions.shape)} came, expected float32 {list(self._shape)}"
            raise OutputViolationError(f"its shape or type is not that of {self._embodiment!r}", detail=detail)
        # One question, which not even NaN passes, while nothing is wrong.
        if not ((actions >= self._least) & (actions <= self._most)).all():
            if not np.isfinite(actions).all():
                self._refuse(~np.isfinite(actions), actions, "is not finite")
            if (actions < self._least).any():
                self._refuse(actions < self._least, actions, "is below lower_limit", self._lower)
            self._refuse(actions > self._most, actions, "is above upper_limit", self._upper)
        if self._limits_steps:
            self._check_steps(actions)

    def _check_steps(self, actions: np.ndarray) -> None:
        # In float64, in which the difference of two float32 is exact enough and cannot overflow.
        steps = np.abs(np.subtract(actions[1:], actions[:-1], dtype=np.float64))
        if (steps > self._step).any():
            slack = ROUNDING * np.maximum(np.abs(actions[1:]), np.abs(actions[:-1]), dtype=np.float64)
            if (steps > self._step + slack).any():
                self._refuse(steps > self._step + slack, steps, "changes by more than step_limit", self._step)

    def _refuse(self, broken: np.ndarray, values: np.ndarray, how: str, limit: np.ndarray | None = None) -> NoReturn:
        """`broken` and `values` are [num_steps, action_dim], `limit` is [action_dim]."""
        dimension = int(broken.any(axis=0).argmax())
        step = int(broken[:, dimension].argmax())
        group = self._groups[dimension]
        detail = f"group {group!r} of {self._embodiment!r}: {values[step, dimension]} at [{step}, {dimension}] {how}"
        if limit is not None:
            detail += f" {limit[dimension]}"
        raise OutputViolationError(
            f"action group {group!r} of {self._embodiment!r} {how}",
            group=group,
            detail=f"{detail}; {int(broken.sum())} of {broken.size} such values",
        )


def _per_dimension(
    embodiment: policy_pb2.Embodiment, limit: Callable[[policy_pb2.Group], Iterable[float]], unbounded: float
) -> np.ndarray:
    """float64 [action_dim]"""
    values = [list(limit(group)) or [unbounded] * group.dim for group in embodiment.action]
    return np.array([value for group in values for value in group])
