"""How a robot plays chunks, and whether a policy and a body can be played that way.

Owns the settings and their checks, which are made before anything moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from premotor.client.description import Embodiment, PolicyDescription
from premotor.client.errors import FixRequestError
from premotor.client.hold import Hold, HoldRule
from premotor.client.images import ImageEncoding, encode_jpeg
from premotor.client.playback import ActionBuffer, PlaybackRule, RealTimeChunkingRule


@dataclass(frozen=True, kw_only=True)
class PlaybackSettings:
    """How chunks are played and asked for.

    `execution_horizon` is how many steps after an observation the next chunk is asked for at the latest, None for the
    policy's own. `observe_every_step` takes frames at every step, which recording needs. `timeout_s` None is the time
    that a chunk covers: an answer that takes longer holds no action that could still be played.
    """

    rule: PlaybackRule
    hold: HoldRule
    execution_horizon: int | None = None
    observe_every_step: bool = False
    image_encoding: ImageEncoding = "jpeg"
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if self.execution_horizon is not None and self.execution_horizon < 1:
            raise ValueError(f"execution_horizon is {self.execution_horizon}, expected at least 1")
        if self.timeout_s is not None and not 0 < self.timeout_s < float("inf"):
            raise ValueError(f"timeout_s is {self.timeout_s}, expected more than 0")


def check_settings(description: PolicyDescription, embodiment: Embodiment, settings: PlaybackSettings) -> None:
    """Raises ValueError, or FixRequestError for what the policy does not support, before a robot moves."""
    if settings.image_encoding == "jpeg":
        # What has no codec says so here, and not in the asker's thread when the robot has been reset.
        encode_jpeg(np.zeros((8, 8, 3), np.uint8))
    Hold(embodiment, settings.hold)
    ActionBuffer(embodiment.action, settings.rule)
    rule, horizon = settings.rule, description.action_horizon
    if settings.execution_horizon is not None and settings.execution_horizon > horizon:
        raise ValueError(f"execution_horizon is {settings.execution_horizon}, a chunk has {horizon} actions")
    if not isinstance(rule, RealTimeChunkingRule):
        return
    supported = description.real_time_chunking_methods
    if not supported or (rule.method != "auto" and rule.method not in supported):
        raise FixRequestError(
            f"real-time chunking by {rule.method!r} was asked for, policy {description.name!r} supports "
            f"{', '.join(supported) or 'none'}",
            field="real_time_chunking.method",
        )
