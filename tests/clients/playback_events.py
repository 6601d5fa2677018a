"""What a player says of an episode, made up: events for whatever listens to one."""

from __future__ import annotations

import numpy as np

from premotor.client import Chunk, Embodiment, Group, PlaybackCounts, PolicyDescription, RetryableError, ServerTiming
from premotor.client.description import Camera
from premotor.client.events import (
    ActionPlayed,
    Asked,
    AskingStopped,
    ChunkArrived,
    EpisodeBegan,
    EpisodeEnded,
    Failed,
    Held,
    Observed,
    PeriodsSkipped,
    PlayerEvent,
    Reconnected,
    Recovered,
    SwapSeen,
)

HORIZON, DELAY = 4, 2
BODY = Embodiment(
    name="slider",
    cameras=(Camera(name="front", height=32, width=32),),
    state=(Group(name="position", dim=2, kind="joint_position", unit="m", representation="absolute"),),
    action=(Group(name="position", dim=2, kind="joint_position", unit="m", representation="absolute"),),
    control_rate_hz=10.0,
)
DESCRIPTION = PolicyDescription(
    name="tabletop",
    revision="0123456789ab",
    variant="",
    embodiments=(BODY,),
    history_steps=0,
    action_horizon=HORIZON,
    execution_horizon=2,
    num_inference_steps=4,
    max_inference_steps=8,
    schema_digest="digest",
)


def episode_events(
    episode_id: str = "one", *, num_steps: int = 12, skipped_at: int | None = None, completed: bool = True
) -> list[PlayerEvent]:
    """Chunks are asked for at every fourth step and come two steps later, so that two steps after each are held.

    States are the step, frames its number in all pixels. With `skipped_at` three periods before that step went by.
    """
    events: list[PlayerEvent] = [
        EpisodeBegan(
            step=0,
            episode_id=episode_id,
            robot_id="robot",
            instruction="slide it over",
            description=DESCRIPTION,
            embodiment=BODY,
        )
    ]
    for step in range(num_steps):
        if skipped_at is not None and skipped_at - 3 <= step < skipped_at:
            continue
        if step == skipped_at:
            events.append(PeriodsSkipped(step=step, num_periods=3))
        events += _step_events(step)
    events += [
        Failed(step=num_steps - 1, error=RetryableError("away"), retry_delay_s=0.5),
        Reconnected(step=num_steps - 1, away_s=0.5, num_attempts=1, revision="0123456789ab"),
        SwapSeen(step=num_steps - 1, previous_revision="0123456789ab", revision="ffffffffffff"),
    ]
    if not completed:
        events.append(AskingStopped(step=num_steps, error=RetryableError("gone")))
    events.append(EpisodeEnded(step=num_steps, counts=PlaybackCounts(), num_skipped_periods=0, completed=completed))
    return events


def _step_events(step: int) -> list[PlayerEvent]:
    for_step = step - (step - DELAY) % 4 - DELAY
    state = np.full(2, step, np.float32)
    frames = {"front": np.full((32, 32, 3), 10 * step % 256, np.uint8)}
    events: list[PlayerEvent] = [Observed(step=step, images=frames, state=state, capture_time_s=0.1 * step)]
    if step % 4 == 0:
        events.append(Asked(step=step, remaining_steps=0, threshold_steps=2, inference_delay=None))
    if step % 4 == DELAY:
        events.append(
            ChunkArrived(
                step=step,
                chunk=_chunk(for_step),
                for_step=for_step,
                latency_s=0.2 + for_step / 1000,
                num_late_rows=DELAY,
                num_outrun_rows=0,
                num_replaced_rows=0,
            )
        )
        events.append(Recovered(step=step, num_held_steps=2))
    if step < DELAY or step - for_step >= HORIZON:
        return [*events, Held(step=step, time_s=0.1 * step, state=state, action=state, reason="underrun")]
    action = np.full(2, 100 + step, np.float32)
    return [
        *events,
        ActionPlayed(
            step=step, time_s=0.1 * step, state=state, action=action, for_step=for_step, age_steps=step - for_step
        ),
    ]


def _chunk(for_step: int) -> Chunk:
    return Chunk(
        actions=(100 + for_step + np.arange(HORIZON, dtype=np.float32))[:, None].repeat(2, 1),
        revision="0123456789ab",
        seed=0,
        timing=ServerTiming(decode_s=0.001, queue_s=0.002, inference_s=0.003, total_s=0.007),
        robot_id="robot",
        episode_id="one",
        request_id=f"request-{for_step}",
        capture_time_s=None,
        round_trip_s=0.15,
    )
