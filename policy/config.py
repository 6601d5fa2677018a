"""What a model is made of, as frozen data: everything needed to build it before its weights are read.

Owns the config of the whole VLA and its JSON form. Names no size (sizes.py) and builds no module (vla.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, get_args

from policy.bounds import check_number, check_one_of, check_whole
from policy.images import Interpolation
from policy.prior import EncoderInputs
from policy.strict_json import build, frozen
from policy.trunk import TrunkConfig

_T = TypeVar("_T")
# Channels of the convolutional eyes are normalised in so many groups.
CHANNEL_GROUPS = 4


@dataclass(frozen=True, kw_only=True)
class ConvolutionalSettings:
    """The convolutional backbone's own numbers (convolutional.py)."""

    kind: Literal["convolutional"] = "convolutional"
    vocabulary: int
    num_keypoints: int
    channels: tuple[int, int, int, int]
    trunk: TrunkConfig

    def __post_init__(self) -> None:
        for name in ("vocabulary", "num_keypoints"):
            check_whole(f"backbone.{name}", getattr(self, name), 1)
        if len(self.channels) != 4 or any(number < 1 or number % CHANNEL_GROUPS for number in self.channels):
            raise ValueError(
                f"backbone.channels are {list(self.channels)}, expected four multiples of {CHANNEL_GROUPS}"
            )


@dataclass(frozen=True, kw_only=True)
class VlmSettings:
    """A Hugging Face image-text-to-text model (vlm.py); `hugging_face` is its own config, `model_type` included.

    `image_mean` and `image_std` are of pixels in 0 to 1; None is what its family was trained on.
    """

    kind: Literal["vlm"] = "vlm"
    hugging_face: Mapping[str, Any]
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, values, lowest in (("image_mean", self.image_mean, -1e3), ("image_std", self.image_std, 1e-6)):
            if values is not None and not (len(values) == 3 and all(lowest <= value <= 1e3 for value in values)):
                raise ValueError(f"backbone.{name} is {list(values)}, expected three numbers from {lowest:g} to 1000")


@dataclass(frozen=True, kw_only=True)
class IntentSettings:
    """Of a model whose backbone gives intent alone (intent_vla.py): codes of latent actions, and what D reads of them.

    `visual` is the JSON form of the frozen eyes' settings (visual_features.py); None leaves D without eyes of its own.
    Without `use_intent` D reads eyes and state, and the backbone is not asked.
    """

    num_codes: int
    num_tokens: int = 4
    visual: Mapping[str, Any] | None = None
    use_intent: bool = True

    def __post_init__(self) -> None:
        if self.num_codes < 2 or self.num_tokens < 1:
            raise ValueError(
                f"intent has {self.num_tokens} tokens of {self.num_codes} codes, expected at least 1 of at least 2"
            )
        if self.visual is None and not self.use_intent:
            raise ValueError("intent.use_intent is false and visual is null, expected one of them: D would be blind")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    size: str
    num_embodiments: int
    max_cameras: int
    max_state_dim: int
    max_action_dim: int
    image_size: int
    interpolation: Interpolation
    action_horizon: int
    execution_horizon: int
    history_steps: int
    num_inference_steps: int
    max_inference_steps: int
    noise_scale: float  # of the initial noise at inference: 1 samples the flow, less gives up diversity for accuracy
    latent_dim: int
    num_soft_tokens: int
    encoder: TrunkConfig
    decoder: TrunkConfig
    backbone: ConvolutionalSettings | VlmSettings
    encoder_inputs: EncoderInputs = "state-action"
    # Longest prefix of given actions, in control steps, that the decoder was trained to continue; 0 is none.
    max_inference_delay: int = 0
    # Paper B's way from looking to moving; None is paper A's.
    intent: IntentSettings | None = None

    def __post_init__(self) -> None:
        for name in (
            "num_embodiments", "max_cameras", "max_state_dim", "max_action_dim", "image_size", "action_horizon",
            "latent_dim",
        ):  # fmt: skip
            check_whole(name, getattr(self, name), 1)
        for name in ("history_steps", "num_soft_tokens"):
            check_whole(name, getattr(self, name), 0)
        check_one_of("interpolation", self.interpolation, get_args(Interpolation))
        check_one_of("encoder_inputs", self.encoder_inputs, get_args(EncoderInputs))
        if not 0 <= self.max_inference_delay < self.action_horizon:
            raise ValueError(
                f"max_inference_delay is {self.max_inference_delay}, "
                f"expected 0 to less than action_horizon {self.action_horizon}"
            )
        if not 1 <= self.execution_horizon <= self.action_horizon:
            raise ValueError(
                f"execution_horizon is {self.execution_horizon}, expected 1 to action_horizon {self.action_horizon}"
            )
        if not 1 <= self.num_inference_steps <= self.max_inference_steps:
            raise ValueError(
                f"num_inference_steps is {self.num_inference_steps}, "
                f"expected 1 to max_inference_steps {self.max_inference_steps}"
            )
        check_number("noise_scale", self.noise_scale, 0, 1)

    def to_json(self) -> dict[str, Any]:
        values = json.loads(json.dumps(asdict(self)))
        # What came later is named where it differs, so that runs and checkpoints from before it stay what they are.
        if not self.max_inference_delay:
            del values["max_inference_delay"]
        if self.intent is None:
            del values["intent"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Raises ValueError that names an unknown, missing or impossible key."""
        if not isinstance(values, Mapping):
            raise ValueError(f"model is {type(values).__name__}, expected an object")
        values = dict(values)
        values["encoder"] = _built(TrunkConfig, values.get("encoder"), "encoder")
        values["decoder"] = _built(TrunkConfig, values.get("decoder"), "decoder")
        values["backbone"] = _backbone(values.get("backbone"))
        if "intent" in values:
            values["intent"] = _built(IntentSettings, values["intent"], "intent")
        return _built(cls, values, "model")


# What changes how a trained model is asked, and nothing about how it was trained.
INFERENCE_ONLY = ("execution_horizon", "num_inference_steps", "max_inference_steps", "noise_scale")


def _built(kind: type[_T], values: Any, where: str) -> _T:
    return build(kind, frozen(values, where), where)


def _backbone(values: Any) -> ConvolutionalSettings | VlmSettings:
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if kind == "vlm":
        return _built(VlmSettings, values, "backbone")
    if kind == "convolutional":
        trunk = _built(TrunkConfig, values.get("trunk"), "backbone.trunk")
        return _built(ConvolutionalSettings, {**values, "trunk": trunk}, "backbone")
    raise ValueError(f"backbone.kind is {kind!r}, expected 'convolutional' or 'vlm'")
