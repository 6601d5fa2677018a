"""What eyes and latent actions are trained with, as frozen data with a JSON form. Trains nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from policy.strict_json import build
from policy.visual_features import VisualSettings
from training.loop import Schedule

# none: both paths answer for the whole picture; flow: the pack's own masks; truth: the simulator's, for comparison.
Masks = Literal["none", "flow", "truth"]
# Whose masks are foreground: the last frame's alone, as in paper B's code, or also where motion left in the first.
MaskedFrames = Literal["last", "both"]
# What the action path must show outside the foreground: whatever it likes, as in paper B, or the first frame's patch.
Elsewhere = Literal["anything", "first"]


@dataclass(frozen=True, kw_only=True)
class EyesSettings:
    """Of train_eyes. A directory of a vision model needs none: its eyes are read, not trained."""

    visual: VisualSettings = field(default_factory=lambda: VisualSettings(width=96, num_layers=3))
    masked_fraction: float = 0.75
    decoder_layers: int = 2
    batch_size: int = 64
    schedule: Schedule = field(default_factory=lambda: _schedule(1000, 1e-3))

    def __post_init__(self) -> None:
        if self.visual.kind != "small":
            raise ValueError(f"eyes of kind {self.visual.kind!r} are read from their directory, not trained")
        if not 0 < self.masked_fraction < 1:
            raise ValueError(f"eyes.masked_fraction is {self.masked_fraction}, expected between 0 and 1")

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: Any, where: str = "eyes") -> EyesSettings:
        """Raises ValueError that names an unknown, missing or impossible key."""
        values = _object(values, where)
        if "visual" in values:
            values["visual"] = VisualSettings.from_json(values["visual"])
        if "schedule" in values:
            values["schedule"] = build(Schedule, values["schedule"], f"{where}.schedule")
        return build(cls, values, where)


@dataclass(frozen=True, kw_only=True)
class LatentActionSettings:
    """Of train_latent_actions. `num_codes` 0 leaves the latents continuous. Paper B's code has 16 codes and 4 tokens.

    `motion_weight` is of the motion that action codes alone must give, `mask_weight` of both frames' masks that the
    encoder must know patch by patch (objective.py); paper B has neither, 0.
    In the first `continuous_part` of training latents are not quantised, so that codes start where latents say
    something; paper B quantises from the first step, 0.
    With `vary` a pair is mirrored or not and takes other colours each time that it is drawn.
    With `eyes_in_bfloat16` the frozen eyes compute so while codes are trained, in half the time on a CPU that
    multiplies it in tiles; whoever reads the codes afterwards uses them as they are.
    A patch is foreground where more of it than `foreground_above` moves: 0.47 is paper B's code's.
    """

    gap_s: float = 1.0
    max_gap_s: float | None = None
    masks: Masks = "flow"
    masked_frames: MaskedFrames = "both"
    elsewhere: Elsewhere = "first"
    foreground_above: float = 0.47
    motion_weight: float = 2.0
    mask_weight: float = 1.0
    continuous_part: float = 0.4
    vary: bool = True
    eyes_in_bfloat16: bool = False
    num_codes: int = 16
    num_tokens: int = 4
    latent_dim: int = 2
    width: int = 64
    encoder_layers: int = 2
    decoder_layers: int = 2
    beta: float = 0.25
    batch_size: int = 32
    schedule: Schedule = field(default_factory=lambda: _schedule(1500, 2e-3))

    def __post_init__(self) -> None:
        if self.masks not in ("none", "flow", "truth"):
            raise ValueError(f"latent_actions.masks is {self.masks!r}, expected 'none', 'flow' or 'truth'")
        if self.masked_frames not in ("last", "both"):
            raise ValueError(f"latent_actions.masked_frames is {self.masked_frames!r}, expected 'last' or 'both'")
        if self.elsewhere not in ("anything", "first"):
            raise ValueError(f"latent_actions.elsewhere is {self.elsewhere!r}, expected 'anything' or 'first'")
        if self.num_codes < 0 or self.num_codes == 1:
            raise ValueError(f"latent_actions.num_codes is {self.num_codes}, expected at least 2, or 0 for continuous")
        for name in ("motion_weight", "mask_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"latent_actions.{name} is {getattr(self, name)}, expected 0 or more")
        if not 0 <= self.continuous_part < 1:
            raise ValueError(f"latent_actions.continuous_part is {self.continuous_part}, expected 0 to below 1")
        if not 0 <= self.foreground_above < 1:
            raise ValueError(f"latent_actions.foreground_above is {self.foreground_above}, expected 0 to below 1")

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: Any, where: str = "latent_actions") -> LatentActionSettings:
        """Raises ValueError that names an unknown, missing or impossible key."""
        values = _object(values, where)
        if "schedule" in values:
            values["schedule"] = build(Schedule, values["schedule"], f"{where}.schedule")
        return build(cls, values, where)


def _schedule(num_steps: int, learning_rate: float) -> Schedule:
    return Schedule(
        num_steps=num_steps, learning_rate=learning_rate, warmup_steps=100, ema_decay=0.995, weight_decay=1e-2
    )


def _object(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {type(values).__name__}, expected an object")
    return dict(values)
