"""Training of eyes and of latent actions on clip packs, and both as they lie on disk.

A directory of eyes holds `eyes.json` (their settings) and `eyes.safetensors`; one of latent actions
`latent_actions.json`, `latent_actions.safetensors` and the eyes they were trained on in `eyes/`. Beside them lies what
training resumes from. Loop and resume are training/loop.py's.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from policy.durable import rename_durably
from policy.visual_features import (
    FrozenEyes,
    VisualSettings,
    build_eyes,
    load_pretrained,
    read_visual_directory,
)
from training.ego_video.pack import ClipPack, FramePairs, PairBatch
from training.json_file import write_json
from training.latent_actions.eyes import MaskedAutoencoder
from training.latent_actions.model import LatentActionModel
from training.latent_actions.moments import Motions, PairMotions, mirrored_motions, motion_scale
from training.latent_actions.objective import covered, foreground_patches, latent_action_losses
from training.latent_actions.settings import EyesSettings, LatentActionSettings
from training.latent_actions.variation import Variation
from training.loop import run, step_seed

EYES, LATENT_ACTIONS = "eyes", "latent_actions"
_REVIVING = 0.8  # of training: in the rest codes settle, and so do their averages
_MEASURED_FRAMES = 1024
_CODEBOOK_RATE = 5.0  # times the learning rate: codes keep up with the latents that they stand for


@dataclass(frozen=True)
class _Rows:
    first: Tensor  # uint8 [batch, size, size, 3]
    last: Tensor
    foreground: Tensor | None  # bool [batch, patches]
    motion: Tensor | None  # [batch, what codes must say]
    coverage: Tensor | None  # [batch, patches, 2]


def train_eyes(
    packs: Sequence[ClipPack],
    settings: EyesSettings,
    directory: Path,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    until: int | None = None,
) -> FrozenEyes:
    """Small eyes, trained on single frames to the end (or to step `until`), resuming what `directory` holds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        autoencoder = MaskedAutoencoder(settings.visual, settings.decoder_layers).to(device)
    frames = _Frames(packs)

    def batch(step: int) -> Tensor:
        return frames.batch(_drawn(seed + 1, step, frames.total, settings.batch_size)).to(device)

    def loss(step: int, rows: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        return autoencoder.losses(rows, generator, settings.masked_fraction)

    averaged = run(
        directory=directory,
        modules=nn.ModuleDict({"autoencoder": autoencoder}),
        averaged="autoencoder",
        schedule=settings.schedule,
        seed=seed,
        batch=batch,
        loss=loss,
        identity={"training": EYES, **_without_schedule(settings.to_json()), "clips": [pack.digest for pack in packs]},
        device=device,
        until=until,
    )
    averaged.copy_to(autoencoder)
    autoencoder.zero_grad()  # what is left would count in the gradient norm of whoever trains with these eyes
    eyes = FrozenEyes(settings.visual, autoencoder.vit)
    if until is None or until >= settings.schedule.num_steps:
        save_eyes(eyes, directory)
    return eyes


def train_latent_actions(
    packs: Sequence[ClipPack],
    eyes: FrozenEyes,
    settings: LatentActionSettings,
    directory: Path,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    until: int | None = None,
) -> LatentActionModel:
    """Trained to the end (or to step `until`), resuming what `directory` holds; returns averaged weights.

    Raises ValueError for a pack that lacks the masks that `settings` ask for, or has no two frames so far apart.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LatentActionModel(settings, eyes).to(device)
    pairs = [FramePairs(masked(pack, settings), settings.gap_s, settings.max_gap_s) for pack in packs]
    ends = np.cumsum([len(each) for each in pairs])
    side = round(eyes.num_tokens**0.5)
    frames = _Frames(packs)
    with torch.no_grad():
        some = frames.batch(_drawn(seed + 2, 0, frames.total, _MEASURED_FRAMES))
        model.measure(torch.cat([eyes(part.to(device)) for part in some.split(settings.batch_size)]))
    sight = copy.deepcopy(model.eyes).to(torch.bfloat16) if settings.eyes_in_bfloat16 else model.eyes
    first_quantized, last_revival = (
        part * settings.schedule.num_steps for part in (settings.continuous_part, _REVIVING)
    )

    @cache  # what has ended is opened without them, and they take seconds
    def told() -> tuple[Sequence[PairMotions], Motions]:
        motions = [PairMotions(each.pack) for each in pairs]
        return motions, motion_scale(motions, pairs)

    def batch(step: int) -> _Rows:
        index = _drawn(seed + 1, step, int(ends[-1]), settings.batch_size)
        source = np.searchsorted(ends, index, side="right")
        drawn = [number for number in range(len(pairs)) if (source == number).any()]
        parts = [pairs[number].batch(index[source == number] - (ends[number] - len(pairs[number]))) for number in drawn]
        first, last = (torch.from_numpy(np.concatenate([getattr(part, name) for part in parts]))
                       for name in ("first", "last"))  # fmt: skip
        variation = None
        if settings.vary:
            generator = torch.Generator().manual_seed(step_seed(seed + 4, step))
            variation = Variation.draw(settings.batch_size, generator)
            first, last = variation.of_frames(first), variation.of_frames(last)
        foreground = motion = coverage = None
        if settings.masks != "none":
            first_mask, last_mask = (
                torch.from_numpy(np.concatenate([_mask(part, name) for part in parts]))
                for name in ("first_mask", "last_mask")
            )
            if variation is not None:
                first_mask, last_mask = variation.of_masks(first_mask), variation.of_masks(last_mask)
            moving = last_mask if settings.masked_frames == "last" else torch.maximum(first_mask, last_mask)
            foreground = foreground_patches(moving, side, settings.foreground_above).to(device)
            coverage = torch.stack([covered(mask, side) for mask in (first_mask, last_mask)], -1).to(device)
            if settings.motion_weight:
                motions, scale = told()
                of_each = [motions[number].between(part.frame) for number, part in zip(drawn, parts, strict=True)]
                motion = torch.from_numpy(np.concatenate(of_each) / scale)
                if variation is not None:
                    motion = mirrored_motions(motion, variation.mirrored)
                motion = motion.to(device)
        return _Rows(
            first.to(device),
            last.to(device),
            foreground,
            motion,
            coverage,
        )

    def loss(step: int, rows: _Rows, generator: torch.Generator) -> Mapping[str, Tensor]:
        return latent_action_losses(
            model,
            model.see(rows.first, sight),
            model.see(rows.last, sight),
            rows.foreground,
            rows.motion,
            rows.coverage,
            quantize=step >= first_quantized,
            revive_with=generator if step < last_revival else None,
        )

    averaged = run(
        directory=directory,
        modules=nn.ModuleDict({"model": model}),
        averaged="model",
        schedule=settings.schedule,
        seed=seed,
        batch=batch,
        loss=loss,
        identity={
            "training": LATENT_ACTIONS,
            **_without_schedule(settings.to_json()),
            "eyes": eyes_digest(eyes),
            "clips": [pack.digest for pack in packs],
        },
        device=device,
        until=until,
        rate_scales={f"model.{part}_codebook.": _CODEBOOK_RATE for part in ("action", "background")},
    )
    averaged.copy_to(model)
    if until is None or until >= settings.schedule.num_steps:
        save_latent_actions(model, directory)
    return model.eval()


def masked(pack: ClipPack, settings: LatentActionSettings) -> ClipPack:
    """The pack with the masks that `settings` name. Raises ValueError where it has none of them."""
    if settings.masks == "none":
        return replace(pack, masks=None)
    own = pack.with_truth() if settings.masks == "truth" else pack
    if own.masks is None:
        raise ValueError(
            f"clip pack {pack.directory} has no {settings.masks} masks; "
            "pack it again with them, or train with masks 'none'"
        )
    return own


def save_eyes(eyes: FrozenEyes, directory: Path) -> None:
    _write_weights(directory / f"{EYES}.safetensors", eyes.model.state_dict())
    write_json(directory / f"{EYES}.json", eyes.settings.to_json())


def read_eyes(directory: Path | str, image_size: int | None = None) -> FrozenEyes:
    """Eyes that were trained here, or a vision model that Hugging Face's save_pretrained wrote.

    `image_size` in pixels is of the pictures that such a model reads, its own by default: fewer cost less. Raises
    OSError for what is missing, ValueError for what is not supported and another size of eyes that were trained here.
    """
    directory = Path(directory)
    path = directory / f"{EYES}.json"
    with torch.random.fork_rng(devices=[]):
        if not path.is_file():
            eyes = build_eyes(read_visual_directory(directory, image_size))
            load_pretrained(eyes, directory)
            return eyes
        eyes = build_eyes(VisualSettings.from_json(json.loads(path.read_text())))
    if image_size not in (None, eyes.settings.image_size):
        raise ValueError(f"{directory} was trained on pictures of {eyes.settings.image_size} pixels, not {image_size}")
    eyes.model.load_state_dict(load_file(directory / f"{EYES}.safetensors"))
    return eyes


def eyes_digest(eyes: FrozenEyes) -> str:
    """What makes them these eyes: settings and weights."""
    digest = hashlib.sha256(json.dumps(eyes.settings.to_json(), sort_keys=True).encode())
    _add_weights(digest, eyes.model)
    return digest.hexdigest()


def save_latent_actions(model: LatentActionModel, directory: Path) -> None:
    """The file of settings last: where it is, all is."""
    save_eyes(model.eyes, directory / EYES)
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("eyes.")}
    _write_weights(directory / f"{LATENT_ACTIONS}.safetensors", own)
    write_json(directory / f"{LATENT_ACTIONS}.json", model.settings.to_json())


def read_latent_actions(directory: Path | str) -> LatentActionModel:
    """A trained model with its eyes. Raises OSError for what is missing, ValueError for what does not fit."""
    directory = Path(directory)
    path = directory / f"{LATENT_ACTIONS}.json"
    if not path.is_file():
        raise OSError(f"{directory} holds no {path.name}; train it first: python -m training latent-actions")
    settings = LatentActionSettings.from_json(json.loads(path.read_text()), str(path))
    eyes = read_eyes(directory / EYES)
    with torch.random.fork_rng(devices=[]):
        model = LatentActionModel(settings, eyes)
    whole = {f"eyes.{name}": value for name, value in eyes.state_dict().items()}
    model.load_state_dict(whole | load_file(directory / f"{LATENT_ACTIONS}.safetensors"))
    return model.requires_grad_(False).eval()


def model_digest(model: LatentActionModel) -> str:
    """What makes it this model, eyes included."""
    digest = hashlib.sha256(json.dumps([model.settings.to_json(), eyes_digest(model.eyes)], sort_keys=True).encode())
    _add_weights(digest, model)
    return digest.hexdigest()


class _Frames:
    """All frames of some packs."""

    def __init__(self, packs: Sequence[ClipPack]) -> None:
        self._packs = packs
        self._ends = np.cumsum([pack.num_frames for pack in packs])
        self.total = int(self._ends[-1])

    def batch(self, index: npt.NDArray[np.int64]) -> Tensor:
        """In order of packs, which a sum over the batch does not see."""
        source = np.searchsorted(self._ends, index, side="right")
        parts = [
            torch.from_numpy(np.ascontiguousarray(pack.frames[index[source == number] - (end - pack.num_frames)]))
            for number, (pack, end) in enumerate(zip(self._packs, self._ends, strict=True))
            if (source == number).any()
        ]
        if len({part.shape[1:] for part in parts}) > 1:
            raise ValueError("clip packs of different image_size cannot be trained on together; pack them alike")
        return torch.cat(parts)


def _drawn(seed: int, step: int, total: int, count: int) -> npt.NDArray[np.int64]:
    generator = torch.Generator().manual_seed(step_seed(seed, step))
    return torch.randint(total, (count,), generator=generator).numpy()


def _mask(pairs: PairBatch, name: str) -> npt.NDArray[np.float32]:
    mask = getattr(pairs, name)
    assert mask is not None
    return mask


def _without_schedule(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "schedule"}


def _write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".tmp")
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, staged)
    rename_durably(staged, path)


def _add_weights(digest: Any, module: nn.Module) -> None:
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
