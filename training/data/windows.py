"""Which frames a training sample reads: the chunk ahead, the history behind. Pure index arithmetic over a pack.

The convention, in one place. Frame t holds the state s_t and images o_t seen at t, the action a_t commanded at t (the
label) and the action x_t executed at t. A sample at t predicts the chunk a_t .. a_{t+H-1}, and E reads
(s_t, a_t) .. (s_{t+H-1}, a_{t+H-1}). Its history is (s_{t-N}, x_{t-N}) .. (s_{t-1}, x_{t-1}), all strictly before t: it
never holds a label of the chunk, and a robot about to be told a_t has all of it. (Paper A draws a history that includes
a_t; read literally that leaks the first label.) No window leaves its episode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.data.pack import FloatRows, Pack

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """A batch of samples in physical units. Masks are True where a step is real."""

    frames: npt.NDArray[np.int64]  # [batch]
    states: FloatRows  # [batch, horizon, state_dim]; states[:, 0] is the observation's
    actions: FloatRows  # [batch, horizon, action_dim]
    chunk_mask: Mask  # [batch, horizon]; past the episode's end the last row repeats under False
    history_states: FloatRows  # [batch, history_steps, state_dim], oldest first, ending one step before the observation
    history_actions: FloatRows  # [batch, history_steps, action_dim], as executed
    history_mask: Mask  # [batch, history_steps]; before the episode's start zeros under False


def gather_windows(pack: Pack, frame_indices: npt.NDArray[np.int64], *, horizon: int, history_steps: int) -> Windows:
    """The windows of frames of a pack. Raises IndexError for a frame outside the pack."""
    frames = np.asarray(frame_indices, np.int64)
    if horizon < 1 or history_steps < 0:
        raise ValueError(f"horizon {horizon} and history_steps {history_steps}, expected at least 1 and 0")
    if frames.size and (frames.min() < 0 or frames.max() >= pack.num_frames):
        raise IndexError(f"frames {frames.min()} to {frames.max()} of a pack of {pack.num_frames}")
    episode = pack.episode_of(frames)
    first = pack.episode_start[episode][:, None]
    last = first + pack.episode_length[episode][:, None] - 1

    ahead = frames[:, None] + np.arange(horizon)
    behind = frames[:, None] - np.arange(history_steps, 0, -1)
    chunk_mask, history_mask = ahead <= last, behind >= first
    ahead, behind = np.minimum(ahead, last), np.maximum(behind, first)
    return Windows(
        frames=frames,
        states=_rows(pack.state, ahead),
        actions=_rows(pack.action, ahead),
        chunk_mask=chunk_mask,
        history_states=_zeroed(_rows(pack.state, behind), history_mask),
        history_actions=_zeroed(_rows(pack.executed_action, behind), history_mask),
        history_mask=history_mask,
    )


def _rows(values: FloatRows, indices: npt.NDArray[np.int64]) -> FloatRows:
    """`take` copies whole rows, which is 4 to 14 times as fast as `values[indices]`."""
    return np.take(np.asarray(values), indices, axis=0)


def _zeroed(values: FloatRows, mask: Mask) -> FloatRows:
    """A masked row at an episode's first frame would be frame t itself, with its label: it must not be readable."""
    values[~mask] = 0
    return values
