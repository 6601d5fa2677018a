"""Disturbed demonstrations: the arm is pushed off its path in bursts while the label stays the expert's.

A policy then sees how to come back (DART, arXiv 1703.09327). Owns the seeded process; does not know any task.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from policy.embodiment import EmbodimentSpec, Group, GroupKind, group_slices
from training.simulation.bodies import load_body

BURST_STEPS = (4, 12)
QUIET_STEPS = (8, 32)
SMOOTHING = 0.6


class Disturbance:
    """Offsets for one episode: bursts in a random direction, faded in and out, quiet in between; on arms alone."""

    def __init__(self, rng: np.random.Generator, spec: EmbodimentSpec, *, scale: float | None = None) -> None:
        """`scale` is the standard deviation of a burst's offset per dimension, in the action's unit; None: that of
        the body.
        """
        self._rng = rng
        self._scale = load_body(spec.name).DISTURBANCE_SCALE if scale is None else scale
        self._mask = np.concatenate(
            [np.full(group.dim, _moves(group), np.float32) for group, _ in group_slices(spec.action)]
        )
        self._offset = np.zeros(spec.action_dim)
        self._target = np.zeros(spec.action_dim)
        self._steps_left = int(rng.integers(0, QUIET_STEPS[1]))
        self._quiet = True

    def apply(self, action: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The action to execute in place of the expert's; the simulation still clips it."""
        if self._steps_left <= 0:
            self._quiet = not self._quiet
            low, high = QUIET_STEPS if self._quiet else BURST_STEPS
            self._steps_left = int(self._rng.integers(low, high + 1))
            draw = self._rng.normal(0.0, self._scale, len(self._target))
            self._target = np.zeros_like(draw) if self._quiet else draw
        self._steps_left -= 1
        self._offset += SMOOTHING * (self._target - self._offset)
        return (action + self._offset * self._mask).astype(np.float32)


def _moves(group: Group) -> bool:
    return group.kind not in (GroupKind.GRIPPER, GroupKind.BASE, GroupKind.OTHER)
