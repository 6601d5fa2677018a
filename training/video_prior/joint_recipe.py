"""How trajectories and video come to share one motion latent, as frozen data read from JSON. Trains nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from policy.strict_json import build
from training.loop import Schedule

AlignmentLoss = Literal["regression", "contrastive"]


@dataclass(frozen=True, kw_only=True)
class AlignmentRecipe:
    """V learns to say of a robot's two frames what E says of the states and actions between them.

    "regression" is the mean squared distance, as stage 2's alignment; "contrastive" is InfoNCE among the batch, cosines
    divided by `temperature`. `gap_s` is between the two frames; null is the length of a chunk, which E's window has.
    The last `held_out_fraction` of each task's episodes are never trained on: the scores of the manifest are theirs.
    Of a body that is `held_out_body` V learns nothing, and all of its pairs have scores of their own.
    """

    loss: AlignmentLoss = "regression"
    temperature: float = 0.1
    width: int = 256
    gap_s: float | None = None
    held_out_fraction: float = 0.1
    held_out_body: str = ""
    batch_size: int = 64
    schedule: Schedule = field(
        default_factory=lambda: Schedule(num_steps=1000, warmup_steps=50, ema_decay=0.99, weight_decay=1e-2)
    )

    def __post_init__(self) -> None:
        if self.loss not in get_args(AlignmentLoss):
            raise ValueError(f"joint.alignment.loss is {self.loss!r}, expected one of {list(get_args(AlignmentLoss))}")
        if not self.temperature > 0:
            raise ValueError(f"joint.alignment.temperature is {self.temperature}, expected more than 0")
        if not 0 < self.held_out_fraction < 1:
            raise ValueError(f"joint.alignment.held_out_fraction is {self.held_out_fraction}, expected between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class JointRecipe:
    """What stage 2 learns from clips beside robots: z' of a clip's frame is pulled to z_v of what moves next in it.

    `video_weight` is that term's; at 0 stage 2 is paper A's alone, the control, which needs neither codes nor V. It
    falls to 0 over `video_decay_steps` as stage 2's lambda does over decay_steps; null keeps it. `video_batch_size`
    frames come on top of stage 2's batch.
    """

    alignment: AlignmentRecipe = field(default_factory=AlignmentRecipe)
    video_weight: float = 1.0
    video_decay_steps: int | None = None
    video_batch_size: int = 32

    def __post_init__(self) -> None:
        if not self.video_weight >= 0:
            raise ValueError(f"joint.video_weight is {self.video_weight}, expected at least 0")
        if self.video_decay_steps is not None and self.video_decay_steps < 1:
            raise ValueError(f"joint.video_decay_steps is {self.video_decay_steps}, expected at least 1, or null")
        if self.video_batch_size < 1:
            raise ValueError(f"joint.video_batch_size is {self.video_batch_size}, expected at least 1")

    @property
    def sees_clips(self) -> bool:
        return self.video_weight > 0

    @classmethod
    def from_json(cls, values: Any) -> JointRecipe:
        """Raises ValueError that names an unknown, missing or impossible key."""
        if isinstance(values, Mapping) and "alignment" in values:
            alignment = values["alignment"]
            if isinstance(alignment, Mapping) and "schedule" in alignment:
                schedule = build(Schedule, alignment["schedule"], "joint.alignment.schedule")
                alignment = {**alignment, "schedule": schedule}
            values = {**values, "alignment": build(AlignmentRecipe, alignment, "joint.alignment")}
        return build(cls, values, "joint")
