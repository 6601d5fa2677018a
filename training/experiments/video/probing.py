"""What latent actions know of held-out clips, counted clip by clip, so that clips can be resampled afterwards.

The questions are those of training/latent_actions/probes.py. Owns the JSON of a probe: `sums` has lists over clips (of
CKA, over bodies) for each part that figures.py names, `num_directions_removed` is one for each body. Draws no interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from training.ego_video.mask_scores import score_masks
from training.ego_video.pack import ClipPack, FramePairs
from training.latent_actions.label import LatentActionLabels, label_frames
from training.latent_actions.model import LatentActionModel
from training.latent_actions.probes import displacements, spoken
from training.latent_actions.readout import body_directions, linear_cka, matched, one_hot, readout_errors, without

_MAX_PAIRS = 4000
_MAX_MATCHED = 512  # of a body, as probes.py takes
_NUM_BOOTSTRAPS = 50  # paper B's

Integers = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


def probe_by_clip(model: LatentActionModel, hands: ClipPack, robots: ClipPack) -> dict[str, Any]:
    """Read-outs and codes of the hands' clips; codes carried from hands to robots, and how alike both are, by body.

    How well the packs' own masks fit the simulator's is among them, though no model has a part in it.

    A read-out from `action` is from what the decoder hears: one-hot codes, or the latents of a model without codebooks.
    Raises ValueError for a pack without `effector`, and for fewer clips than a read-out needs.
    """
    own, others = _Seen.of(model, hands), _Seen.of(model, robots)
    bodies = sorted({clip.body for clip in robots.clips})
    transfer, cka = [], {"cka.as_is": [], "cka.without_body": []}
    num_removed = []
    for body in bodies:
        target = _spread(others.known(np.array([clip.body == body for clip in robots.clips])[others.clip]))
        source = own.known(np.ones(len(own.clip), bool))
        partner = source[matched(own.effector[source], others.effector[target])]
        transfer.append(_transfer(model, own, others, target, partner))
        directions, draws = alignment_by_draw(own.vectors[partner], others.vectors[target])
        num_removed.append(len(directions))
        for name, values in draws.items():
            cka[name].append(values)
    together = {f"transfer.{name}": np.concatenate([each[name] for each in transfer]).tolist() for name in transfer[0]}
    return {
        "num_pairs": len(own.clip),
        "num_clips": len(hands.clips),
        "bodies": bodies,
        "num_directions_removed": num_removed,
        "sums": {
            **_readouts(model, own),
            **_codes(model, own),
            **together,
            **cka,
            **_mask_scores("hands", hands),
            **_mask_scores("robots", robots),
        },
    }


class _Seen:
    """Pairs of frames of a pack with their labels."""

    def __init__(self, pack: ClipPack, clip: Integers, frame: Integers, labels: LatentActionLabels) -> None:
        self.pack, self.clip, self.frame, self.labels = pack, clip, frame, labels
        self.moved = displacements(pack, frame)
        if "effector" not in self.moved:
            raise ValueError(f"clip pack {pack.directory} does not know where the effector is; film it again")
        self.effector = self.moved["effector"]
        self.vectors = labels.latents.reshape(len(clip), -1)

    @classmethod
    def of(cls, model: LatentActionModel, pack: ClipPack) -> _Seen:
        pairs = FramePairs(pack, model.settings.gap_s)
        index = np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), _MAX_PAIRS)).astype(np.int64))
        clip, frame = pairs.places(index)
        return cls(pack, clip, frame, label_frames(model, pack.frames[frame[:, 0]], pack.frames[frame[:, 1]]))

    def known(self, among: npt.NDArray[np.bool_]) -> Integers:
        """Pairs whose effector is in the picture in both frames."""
        return np.flatnonzero(among & np.isfinite(self.effector).all(1))


def _spread(rows: Integers) -> Integers:
    """At most _MAX_MATCHED of them, evenly over all."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MAX_MATCHED)).astype(np.int64))]


def _readouts(model: LatentActionModel, seen: _Seen) -> dict[str, Any]:
    labels, num_codes, found = seen.labels, model.settings.num_codes, {}
    heard = {
        "action": one_hot(labels.codes, num_codes) if num_codes else seen.vectors,
        "background": one_hot(labels.background_codes, num_codes)
        if num_codes
        else labels.background_latents.reshape(len(seen.clip), -1),
    }
    for name, moved in seen.moved.items():
        rows = np.isfinite(moved).all(1)
        for source, inputs in heard.items():
            errors = np.stack(readout_errors(inputs[rows], moved[rows], seen.clip[rows]), 1)
            found[f"{name}.{source}"] = _by_clip(errors, seen.clip[rows], len(seen.pack.clips)).tolist()
    return found


def _codes(model: LatentActionModel, seen: _Seen) -> dict[str, Any]:
    num_codes = model.settings.num_codes
    if not num_codes:
        return {}
    counts = {
        "action_codes": one_hot(seen.labels.codes, num_codes),
        "background_codes": one_hot(seen.labels.background_codes, num_codes),
    }
    return {
        name: _by_clip(each.reshape(len(each), -1, num_codes).sum(1), seen.clip, len(seen.pack.clips)).tolist()
        for name, each in counts.items()
    }


def _mask_scores(name: str, pack: ClipPack) -> dict[str, Any]:
    """Of each clip its masks' mean IoU over the frames that move, and 1; zeros where none does."""
    if pack.masks is None or pack.truth is None or pack.scenery is None:
        return {}
    found = score_masks(pack).clips
    rows = [[found[clip.name], 1.0] if clip.name in found else [0.0, 0.0] for clip in pack.clips]
    return {f"masks.{name}": rows}


@torch.inference_mode()
def _transfer(
    model: LatentActionModel, hands: _Seen, robots: _Seen, target: Integers, partner: Integers
) -> Mapping[str, npt.NDArray[np.float64]]:
    """Per clip of the robots' pack that has a pair: error of the last frame's features weighed by how far they changed,
    and what it would be if nothing changed, [clips, 2]. Arms are those of probes.code_transfer.
    """
    shuffled = partner[np.random.default_rng(0).permutation(len(partner))]
    rows: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in ("own", "transferred", "shuffled", "none")}
    for at in range(0, len(target), 64):
        part = slice(at, at + 64)
        first, last = _features(model, robots, target[part])
        own = spoken(model, model.encode(first, last))
        changed = (last - first).square().mean(-1)  # what did not change shows no action
        actions = {
            "own": own.action,
            "transferred": spoken(model, model.encode(*_features(model, hands, partner[part]))).action,
            "shuffled": spoken(model, model.encode(*_features(model, hands, shuffled[part]))).action,
            "none": torch.zeros_like(own.action),
        }
        for name, action in actions.items():
            error = (model.decode(first, action, own.background) - last).square().mean(-1)
            sums = torch.stack([(error * changed).sum(-1), changed.square().sum(-1)], -1)
            rows[name].append(sums.double().cpu().numpy())
    clips, clip = np.unique(robots.clip[target], return_inverse=True)
    return {name: _by_clip(np.concatenate(each), clip, len(clips)) for name, each in rows.items()}


def alignment_by_draw(first: Vectors, second: Vectors) -> tuple[npt.NDArray[np.float64], Mapping[str, Sequence[float]]]:
    """The directions that tell bodies apart, and linear CKA of matched rows on each bootstrap of them, as they are and
    without those.
    """
    directions = body_directions(np.concatenate([first, second]), np.arange(len(first) + len(second)) >= len(first))
    generator = np.random.default_rng(0)
    draws = [generator.integers(0, len(first), len(first)) for _ in range(_NUM_BOOTSTRAPS)]
    bare = without(first, directions), without(second, directions)
    return directions, {
        "cka.as_is": [linear_cka(first[draw], second[draw]) for draw in draws],
        "cka.without_body": [linear_cka(bare[0][draw], bare[1][draw]) for draw in draws],
    }


def _features(model: LatentActionModel, seen: _Seen, rows: Integers) -> tuple[torch.Tensor, torch.Tensor]:
    device = model.action_query.device
    first, last = (
        model.see(torch.from_numpy(np.array(seen.pack.frames[seen.frame[rows, side]])).to(device)) for side in (0, 1)
    )
    return first, last


def _by_clip(rows: npt.NDArray[np.float64], clip: Integers, num_clips: int) -> npt.NDArray[np.float64]:
    """Sums of rows [N, k] of each clip, [num_clips, k]."""
    sums = np.zeros((num_clips, rows.shape[1]))
    np.add.at(sums, clip, rows)
    return sums
