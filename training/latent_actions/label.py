"""Codes of pairs of frames: of any, and of every frame of a pack with the frame a gap later, kept beside the pack.

Owns the cache `latent_actions_<digest>.npz` in a pack's directory, which is of one model and one gap.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from training.data.pack import Pack
from training.ego_video.pack import ClipPack
from training.latent_actions.model import LatentActionModel, Latents
from training.latent_actions.train import model_digest

UNLABELLED = -1

Codes = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class LatentActionLabels:
    """Of N pairs of frames; the codes of a model with continuous latents are [N, 0]."""

    codes: Codes  # [N, num_tokens]
    latents: Vectors  # [N, num_tokens, latent_dim], before quantisation
    background_codes: Codes
    background_latents: Vectors


def label_frames(model: LatentActionModel, first: Frames, last: Frames, batch_size: int = 64) -> LatentActionLabels:
    """What moved between frames [N, S, S, 3], uint8 of any size that the eyes can resize."""
    if len(first) != len(last):
        raise ValueError(f"{len(first)} first frames and {len(last)} last frames, expected as many")
    if not len(first):
        return _empty(model, 0)
    starts = range(0, len(first), batch_size)
    parts = [_label(model, _features(model, first[at : at + batch_size]), _features(model, last[at : at + batch_size]))
             for at in starts]  # fmt: skip
    return _joined(parts)


def label_pack(
    model: LatentActionModel, pack: ClipPack | Pack, *, gap_s: float, camera: str | None = None
) -> LatentActionLabels:
    """Labels of all frames [total] of a clip pack, or of a robot's pack as its `camera` saw it (default: its first).

    The label of a frame is of it and the frame `gap_s` later; where that lies beyond its clip or episode codes are
    UNLABELLED and latents 0. Read from beside the pack where they were made before.
    """
    runs, frames = list(_runs(pack, gap_s)), _frames(pack, camera)
    made_of = json.dumps([model_digest(model), _source(pack), [list(run) for run in runs], camera])
    path = Path(pack.directory) / f"latent_actions_{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            return LatentActionLabels(**{field.name: file[field.name] for field in fields(LatentActionLabels)})
    labels = _empty(model, len(frames))
    for start, length, gap in runs:
        if length <= gap:
            continue
        # A frame is the first of one pair and the last of another: its features are computed once.
        seen = torch.cat([_features(model, frames[at : min(at + 64, start + length)])
                          for at in range(start, start + length, 64)])  # fmt: skip
        part = _label(model, seen[:-gap], seen[gap:])
        for field in fields(LatentActionLabels):
            getattr(labels, field.name)[start : start + length - gap] = getattr(part, field.name)
    staged = path.with_name(path.name + ".tmp")
    with staged.open("wb") as file:
        np.savez(file, allow_pickle=False, **{field.name: getattr(labels, field.name) for field in fields(labels)})
    staged.replace(path)
    return labels


def _runs(pack: ClipPack | Pack, gap_s: float) -> Iterator[tuple[int, int, int]]:
    """First frame, number of frames and gap in frames of each clip or episode."""
    if isinstance(pack, ClipPack):
        shots = [(clip.first_frame, clip.num_frames, clip.rate_hz) for clip in pack.clips]
    else:
        rate_hz = pack.spec.control_rate_hz
        bounds = zip(pack.episode_start.tolist(), pack.episode_length.tolist(), strict=True)
        shots = [(start, length, rate_hz) for start, length in bounds]
    for start, length, rate_hz in shots:
        gap = round(gap_s * rate_hz)
        if gap < 1:
            raise ValueError(f"gap_s is {gap_s}, less than half a frame at {rate_hz:g} Hz")
        yield start, length, gap


def _frames(pack: ClipPack | Pack, camera: str | None) -> Frames:
    if isinstance(pack, ClipPack):
        if camera is not None:
            raise ValueError(f"clip pack {pack.directory} has no cameras, {camera!r} was asked for")
        return pack.frames
    if not pack.images:
        raise ValueError(f"pack {pack.directory} holds no images to label")
    name = pack.spec.cameras[0].name if camera is None else camera
    if name not in pack.images:
        raise ValueError(f"pack {pack.directory} has cameras {sorted(pack.images)}, {name!r} was asked for")
    return pack.images[name]


def _source(pack: ClipPack | Pack) -> str:
    return pack.digest if isinstance(pack, ClipPack) else f"{pack.source_sha256} {pack.image_size}"


@torch.inference_mode()
def _features(model: LatentActionModel, frames: Frames) -> torch.Tensor:
    device = model.action_query.device
    return model.see(torch.from_numpy(np.array(frames)).to(device))  # a copy: memory maps cannot be written


@torch.inference_mode()
def _label(model: LatentActionModel, first: torch.Tensor, last: torch.Tensor) -> LatentActionLabels:
    latents = model.encode(first, last)
    action, background = codes_of(model, latents)
    return LatentActionLabels(
        codes=action.cpu().numpy(),
        latents=latents.action.float().cpu().numpy(),
        background_codes=background.cpu().numpy(),
        background_latents=latents.background.float().cpu().numpy(),
    )


def codes_of(model: LatentActionModel, latents: Latents) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of action and background, int64 [batch, num_tokens]; [batch, 0] of a model that does not quantise."""
    if model.action_codebook is None or model.background_codebook is None:
        nothing = latents.action.new_zeros((len(latents.action), 0), dtype=torch.long)
        return nothing, nothing
    return model.action_codebook.nearest(latents.action), model.background_codebook.nearest(latents.background)


def _empty(model: LatentActionModel, total: int) -> LatentActionLabels:
    settings = model.settings
    num_codes = settings.num_tokens if settings.num_codes else 0
    vectors = (total, settings.num_tokens, settings.latent_dim)
    return LatentActionLabels(
        codes=np.full((total, num_codes), UNLABELLED, np.int64),
        latents=np.zeros(vectors, np.float32),
        background_codes=np.full((total, num_codes), UNLABELLED, np.int64),
        background_latents=np.zeros(vectors, np.float32),
    )


def _joined(parts: list[LatentActionLabels]) -> LatentActionLabels:
    names = [field.name for field in fields(LatentActionLabels)]
    return LatentActionLabels(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
