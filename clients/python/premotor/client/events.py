"""What happens while a robot plays chunks, as values.

Owns the events and what their fields mean. An observer is any function of one event; it is called in the thread that
plays, between two commands, and must return at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from premotor.client.chunks import Chunk
from premotor.client.description import Embodiment, PolicyDescription
from premotor.client.playback import PlaybackCounts

# Before the first chunk; after a chunk ran out; since asking has ended for good.
HoldReason = Literal["waiting", "underrun", "stopped"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PlayerEvent:
    """`step` is the control step in which it was noticed, counted from the episode's first."""

    step: int


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeBegan(PlayerEvent):
    episode_id: str
    robot_id: str
    instruction: str
    description: PolicyDescription
    embodiment: Embodiment


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed(PlayerEvent):
    """Frames were taken in this step, whether a chunk was asked for with them or not."""

    images: Mapping[str, np.ndarray | bytes]
    state: np.ndarray
    capture_time_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked(PlayerEvent):
    """A chunk was asked for with this step's observation.

    `inference_delay` is the one that was told to the server, None without real-time chunking.
    """

    remaining_steps: int
    threshold_steps: int
    inference_delay: int | None


@dataclass(frozen=True, kw_only=True, eq=False)
class ChunkArrived(PlayerEvent):
    """`latency_s` is from the taking of the observation, in step `for_step`, to the chunk's arrival."""

    chunk: Chunk
    for_step: int
    latency_s: float
    num_late_rows: int
    num_outrun_rows: int
    num_replaced_rows: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ActionPlayed(PlayerEvent):
    """`action` is the command as sent, `state` was measured just before, `time_s` is on the player's clock."""

    time_s: float
    state: np.ndarray
    action: np.ndarray
    for_step: int
    age_steps: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Held(PlayerEvent):
    """No action was valid for this step; `action` is the command that was sent instead."""

    time_s: float
    state: np.ndarray
    action: np.ndarray
    reason: HoldReason


@dataclass(frozen=True, kw_only=True, eq=False)
class Recovered(PlayerEvent):
    """An action is played again, after so many steps without."""

    num_held_steps: int


@dataclass(frozen=True, kw_only=True, eq=False)
class PeriodsSkipped(PlayerEvent):
    """The steps before this one went by with no command at all: the robot or the computer took too long."""

    num_periods: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Failed(PlayerEvent):
    """A question, or an attempt to connect again, came to nothing; the next is in `retry_delay_s`."""

    error: Exception
    retry_delay_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconnected(PlayerEvent):
    """The gateway answers again and serves what it served."""

    away_s: float
    num_attempts: int
    revision: str


@dataclass(frozen=True, kw_only=True, eq=False)
class SwapSeen(PlayerEvent):
    """Another revision answers in the middle of an episode, or for the first time; its schema is the same.

    That a new episode goes to one of those that have answered before, as in a split, is no swap.
    """

    previous_revision: str
    revision: str


@dataclass(frozen=True, kw_only=True, eq=False)
class AskingStopped(PlayerEvent):
    """Nothing will be asked any more; the robot is held and the error is raised to whoever plays."""

    error: Exception


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeEnded(PlayerEvent):
    """`completed` is False where an error ended it."""

    counts: PlaybackCounts
    num_skipped_periods: int
    completed: bool


Observer = Callable[[PlayerEvent], None]
