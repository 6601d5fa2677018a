"""The past of one robot, kept by the robot.

Owns the window that a request carries. The server keeps nothing between calls, so a new episode is a `reset` here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from premotor.client.errors import FixRequestError


class HistoryWindow(NamedTuple):
    """The last steps, oldest first; only the last `num_valid_steps` rows are real, those before them are zeros."""

    states: np.ndarray  # float32 [history_steps, state_dim]
    actions: np.ndarray  # float32 [history_steps, action_dim]
    num_valid_steps: int


class HistoryBuffer:
    """A fixed window of past states and the commands sent at them. Not thread-safe: it belongs to one control loop.

    Append one step per control period, after its command was sent, at the policy's control rate: the policy was trained
    on steps that far apart. The observation of a request is the step after the last one appended.
    """

    def __init__(self, history_steps: int, state_dim: int, action_dim: int) -> None:
        for name, value, least in (
            ("history_steps", history_steps, 0),
            ("state_dim", state_dim, 1),
            ("action_dim", action_dim, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        self._states = np.zeros((history_steps, state_dim), np.float32)
        self._actions = np.zeros((history_steps, action_dim), np.float32)
        self._num_valid_steps = 0

    @property
    def history_steps(self) -> int:
        return self._states.shape[0]

    @property
    def state_dim(self) -> int:
        return self._states.shape[1]

    @property
    def action_dim(self) -> int:
        return self._actions.shape[1]

    def __len__(self) -> int:
        """Number of real steps in the window."""
        return self._num_valid_steps

    def append(self, state: np.ndarray, action: np.ndarray) -> None:
        """Adds the state measured at a step, [state_dim], and the command sent then, [action_dim].

        The oldest step leaves. Raises FixRequestError for another shape or values that are not finite, and
        then adds nothing.
        """
        new_state = _row(state, self.state_dim, "history.states")
        new_action = _row(action, self.action_dim, "history.actions")
        if self.history_steps == 0:
            return
        for rows, new in ((self._states, new_state), (self._actions, new_action)):
            rows[:-1] = rows[1:]
            rows[-1] = new
        self._num_valid_steps = min(self._num_valid_steps + 1, self.history_steps)

    def reset(self) -> None:
        """Forgets everything, for a new episode."""
        self._states[:] = 0
        self._actions[:] = 0
        self._num_valid_steps = 0

    def window(self) -> HistoryWindow:
        """A copy of the window, padded at its old end to `history_steps` rows."""
        return HistoryWindow(self._states.copy(), self._actions.copy(), self._num_valid_steps)


def _row(values: np.ndarray, dim: int, field: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        row = np.asarray(values, np.float32)
    if row.shape != (dim,):
        raise FixRequestError(f"{field}: a row of shape {list(row.shape)} came, expected [{dim}]", field=field)
    if not np.isfinite(row).all():
        raise FixRequestError(f"{field}: {row} came, expected finite numbers", field=field)
    return row
