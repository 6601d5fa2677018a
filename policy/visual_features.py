"""Frozen eyes: frames to patch features that no training ever changes (paper B, arXiv 2606.18955, stages 1 and 3).

Owns their settings and JSON form, the small vision transformer, and any plain vision transformer of Hugging Face's from
a local directory: safetensors alone, no code that comes with a model. Trains nothing (training/latent_actions/ does).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from policy.images import resize_frames, to_unit_range
from policy.strict_json import build, frozen
from policy.trunk import Trunk, TrunkConfig
from policy.vlm_directory import check_weights, read_processor

VisualKind = Literal["small", "transformers"]
_SMALL_HEAD_DIM = 32
_POSITION_PERIOD = 100.0


@dataclass(frozen=True, kw_only=True)
class VisualSettings:
    """What eyes are made of; `hugging_face` is a vision model's own config, `model_type` included, of that kind alone.

    `image_mean` and `image_std` are of pixels in 0 to 1; the small kind reads [-1, 1].
    """

    kind: VisualKind = "small"
    image_size: int = 64  # pixels
    patch: int = 8  # pixels
    width: int = 128
    num_layers: int = 4
    hugging_face: Mapping[str, Any] | None = None
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.kind not in ("small", "transformers"):
            raise ValueError(f"visual.kind is {self.kind!r}, expected 'small' or 'transformers'")
        if self.patch < 1 or self.image_size < self.patch or self.image_size % self.patch:
            raise ValueError(f"visual.image_size {self.image_size} is not a multiple of patch {self.patch}")
        if self.kind == "small" and (self.width < 1 or self.width % _SMALL_HEAD_DIM):
            raise ValueError(f"visual.width is {self.width}, expected a multiple of {_SMALL_HEAD_DIM}")
        if (self.hugging_face is None) != (self.kind == "small"):
            raise ValueError(f"visual.hugging_face goes with kind 'transformers' alone, kind is {self.kind!r}")
        for name, values in (("image_mean", self.image_mean), ("image_std", self.image_std)):
            if len(values) != 3:
                raise ValueError(f"visual.{name} has {len(values)} numbers, expected 3")
        if min(self.image_std) <= 0:
            raise ValueError(f"visual.image_std is {list(self.image_std)}, expected positive numbers")

    @property
    def num_tokens(self) -> int:
        return (self.image_size // self.patch) ** 2

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: Any) -> VisualSettings:
        """Raises ValueError that names an unknown, missing or impossible key."""
        return build(cls, frozen(values, "visual"), "visual")


class SmallVit(nn.Module):
    """Square patches, fixed sines and cosines of their row and column, and the shared trunk."""

    position: Tensor

    def __init__(self, settings: VisualSettings) -> None:
        super().__init__()
        self.patch = settings.patch
        self.patch_in = nn.Linear(3 * settings.patch**2, settings.width)
        self.trunk = Trunk(small_trunk(settings.width, settings.num_layers))
        side = settings.image_size // settings.patch
        self.register_buffer("position", grid_position(side, settings.width), persistent=False)

    def forward(
        self, frames: Float[Tensor, "batch 3 size size"], kept: Int[Tensor, "batch kept"] | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Frames in [-1, 1]; with `kept` only these patches are read, and the others cost nothing."""
        x = self.patch_in(to_patches(frames, self.patch)) + self.position
        if kept is None:
            return self.trunk(x)
        x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))
        return self.trunk(x, positions=kept)


class FrozenEyes(nn.Module):
    """Features of frames. No weight requires a gradient, and `train()` does not wake it up."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, settings: VisualSettings, model: nn.Module) -> None:
        super().__init__()
        self.settings = settings
        self.model: Any = model.requires_grad_(False)
        mean, std = torch.tensor((settings.image_mean, settings.image_std)).view(2, 3, 1, 1)
        self.register_buffer("image_mean", mean, persistent=False)
        self.register_buffer("image_std", std, persistent=False)
        self.eval()

        self._at_another_size: dict[str, bool] = {}
        own = getattr(getattr(model, "config", None), "image_size", settings.image_size)
        if own != settings.image_size and "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
            # DINO's models do so unasked, and know no such argument.
            self._at_another_size = {"interpolate_pos_encoding": True}

    @property
    def width(self) -> int:
        return self.settings.width

    @property
    def num_tokens(self) -> int:
        return self.settings.num_tokens

    def train(self, mode: bool = True) -> FrozenEyes:
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "batch size size 3"]) -> Float[Tensor, "batch tokens width"]:
        """Patches row by row, each normalised to mean 0 and variance 1 without learned scale; frames of another size
        are resized. Raises ValueError for what are no frames."""
        frames = resize_frames(images, self.settings.image_size)
        if isinstance(self.model, SmallVit):
            tokens = self.model(to_unit_range(frames).to(self.model.position.dtype))
        else:
            tokens = self._ask_transformers(frames)
        return F.layer_norm(tokens.float(), (self.width,))

    def _ask_transformers(self, frames: Tensor) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        pixels = (frames.movedim(-1, -3).float() / 255 - self.image_mean) / self.image_std
        tokens = self.model(pixel_values=pixels.to(dtype), **self._at_another_size).last_hidden_state
        # Class and register tokens, where a model has them, come first.
        if tokens.ndim != 3 or tokens.shape[1] < self.num_tokens or tokens.shape[2] != self.width:
            raise ValueError(
                f"{self.model.config.model_type} returns {list(tokens.shape[1:])}, expected at least "
                f"{self.num_tokens} tokens of {self.width}: visual.patch, image_size or width are not this model's"
            )
        return tokens[:, -self.num_tokens :]


def build_eyes(settings: VisualSettings) -> FrozenEyes:
    """Eyes with weights at random, from torch's default generator; whoever builds them loads theirs."""
    if settings.hugging_face is None:
        return FrozenEyes(settings, SmallVit(settings))
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(**settings.hugging_face)
    return FrozenEyes(settings, AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False))


def read_visual_directory(directory: Path | str, image_size: int | None = None) -> VisualSettings:
    """Settings of the vision model, or of the vision half of a model, that save_pretrained wrote to `directory`.

    `image_size` in pixels is the model's own by default. Raises OSError for what is missing, ValueError for a model
    that has no patches or whose pixels are made in another way; either says what to do.
    """
    from transformers import AutoConfig

    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise OSError(f"{directory} holds no config.json; give a directory that Hugging Face's save_pretrained wrote")
    check_weights(directory)
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    config = getattr(config, "vision_config", config)
    for name in ("patch_size", "image_size", "hidden_size", "num_hidden_layers"):
        if not isinstance(getattr(config, name, None), int):
            raise ValueError(f"{directory}: {config.model_type} has no {name}; frozen eyes are vision transformers")
    own = json.loads(json.dumps(config.to_dict()))
    for origin in ("_name_or_path", "transformers_version", "auto_map"):
        own.pop(origin, None)
    pixels = read_processor(directory)
    return VisualSettings(
        kind="transformers",
        image_size=image_size or config.image_size // config.patch_size * config.patch_size,
        patch=config.patch_size,
        width=config.hidden_size,
        num_layers=config.num_hidden_layers,
        hugging_face=own,
        image_mean=tuple(pixels.get("image_mean") or (0.5, 0.5, 0.5)),
        image_std=tuple(pixels.get("image_std") or (0.5, 0.5, 0.5)),
    )


def load_pretrained(eyes: FrozenEyes, directory: Path | str) -> None:
    """Weights of the model in `directory`, of whose read_visual_directory `eyes` were built.

    Raises OSError for a missing file, ValueError when the weights are not all of the model's.
    """
    check_weights(Path(directory))
    loaded, report = type(eyes.model).from_pretrained(
        directory,
        config=eyes.model.config,
        local_files_only=True,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
    )
    # Pooled features are not asked for; what is missing else would be left at random.
    if missing := sorted(name for name in report["missing_keys"] if "pooler" not in name and ".head." not in name):
        raise ValueError(
            f"{directory} lacks {len(missing)} weights of its {loaded.config.model_type}, {missing[0]} first; "
            "save the whole model there again"
        )
    eyes.model.load_state_dict(loaded.state_dict())


def small_trunk(width: int, num_layers: int) -> TrunkConfig:
    """The trunk that small eyes and the models on top of them use; `width` is a multiple of 32."""
    heads = width // _SMALL_HEAD_DIM
    return TrunkConfig(
        width=width,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=_SMALL_HEAD_DIM,
        mlp_width=2 * width,
        rope_theta=1e4,
    )


def to_patches(frames: Float[Tensor, "batch channels size size"], patch: int) -> Float[Tensor, "batch tokens values"]:
    """Row by row; a patch's values are channels, rows, columns."""
    return F.unfold(frames, patch, stride=patch).transpose(1, 2)


def grid_position(side: int, width: int) -> Float[Tensor, "tokens width"]:
    """Sines and cosines of row and column, a quarter of `width` each."""
    frequencies = _POSITION_PERIOD ** -torch.linspace(0, 1, width // 4)
    angles = torch.arange(side).float()[:, None] * frequencies
    rows = angles[:, None].expand(-1, side, -1).flatten(0, 1)
    columns = angles[None].expand(side, -1, -1).flatten(0, 1)
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], -1)
