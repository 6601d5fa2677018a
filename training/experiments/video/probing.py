"""What latent actions know of held-out clips, counted clip by clip, so that clips can be resampled afterwards.

The questions are those of training/latent_actions/probes.py. Owns the JSON of a probe: `sums` has lists over clips for
each part that figures.py names; of errors and CKA, lists over bodies of the figure of all matched pairs and of each
draw of clips. `matching` and `num_directions_removed` are of each body. Draws no interval.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from training.ego_video.mask_scores import score_masks
from training.ego_video.pack import ClipPack, FramePairs
from training.latent_actions.label import LatentActionLabels, label_frames
from training.latent_actions.model import LatentActionModel
from training.latent_actions.probes import destinations, displacements, spoken
from training.latent_actions.readout import (
    body_directions,
    linear_cka,
    matched,
    one_hot,
    readout_errors,
    readout_residuals,
    without,
)

# Raised when what a probe measures changes: what another version measured is then measured again.
PROBE_VERSION = 1
_MAX_PAIRS = 4000
_MAX_MATCHED = 512  # of a body, as probes.py takes
_NUM_BOOTSTRAPS = 200  # paper B's are 50, which leave one beyond each end of an interval

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]


def probe_by_clip(model: LatentActionModel, hands: ClipPack, robots: ClipPack) -> dict[str, Any]:
    """Read-outs and codes of the hands' clips; codes carried from hands to robots, and how alike both are, by body.

    How well the packs' own masks fit the simulator's is among them, though no model has a part in it.

    A read-out from `action` is from what the decoder hears: one-hot codes, or the latents of a model without codebooks.
    Raises ValueError for a pack without `effector`, and for fewer clips than a read-out needs.
    """
    own, others = _Seen.of(model, hands), _Seen.of(model, robots)
    bodies = sorted({clip.body for clip in robots.clips})
    generator = np.random.default_rng(0)
    matches = [_match(own, others, body, generator) for body in bodies]
    clips = [(own.clip[match.partner], others.clip[match.target]) for match in matches]
    by_body: defaultdict[str, list[Sequence[float]]] = defaultdict(list)
    num_removed = []
    for match, weights in zip(matches, weights_by_draw(clips, len(hands.clips), generator), strict=True):
        directions, cka = alignment_by_draw(own.vectors[match.partner], others.vectors[match.target], weights)
        num_removed.append(len(directions))
        for name, draws in (cka | _transfer(model, own, others, match, weights)).items():
            by_body[name].append(draws)
    return {
        "num_pairs": len(own.clip),
        "num_clips": len(hands.clips),
        "bodies": bodies,
        "matching": [_matching(own, others, match) for match in matches],
        "num_directions_removed": num_removed,
        "sums": {
            **_readouts(model, own),
            **_codes(model, own),
            **by_body,
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


@dataclass(frozen=True)
class _Match:
    """Pairs of frames of one body; of each the hands' pair whose effector moved most alike, and any pair of hands."""

    target: Integers
    partner: Integers
    any_hand: Integers


def _match(hands: _Seen, robots: _Seen, body: str, generator: np.random.Generator) -> _Match:
    source = hands.known(np.ones(len(hands.clip), bool))
    target = _spread(robots.known(np.array([clip.body == body for clip in robots.pack.clips])[robots.clip]))
    partner = source[matched(hands.effector[source], robots.effector[target])]
    return _Match(target, partner, generator.choice(source, len(target)))


def _matching(hands: _Seen, robots: _Seen, match: _Match) -> dict[str, float]:
    """How good and how many a body's partners are; `mismatch` of the displacement is in half pictures."""
    apart = hands.effector[match.partner] - robots.effector[match.target]
    return {
        "num_pairs": len(match.target),
        "mismatch": float(np.linalg.norm(apart, axis=1).mean()),
        "num_partner_pairs": len(np.unique(match.partner)),
        "num_partner_clips": len(np.unique(hands.clip[match.partner])),
    }


def read_targets(pack: ClipPack, clip: Integers, frame: Integers) -> dict[str, Numbers]:
    """What codes are asked for, [N, 2] in half pictures, NaN where the pack does not know.

    What moved how far, where the effector is in the last frame, and how far it moved beyond what that place tells by a
    ridge regression held out by clip: codes that say where it is and no more say nothing of that.
    """
    targets = displacements(pack, frame) | destinations(pack, frame)
    moved, place = targets["effector"], targets["effector_place"]
    known = np.isfinite(moved).all(1)
    left = np.full_like(moved, np.nan)
    left[known] = readout_residuals(place[known], moved[known], clip[known])
    return {**targets, "effector_given_place": left}


def weights_by_draw(
    clips: Sequence[tuple[Integers, Integers]], num_hand_clips: int, generator: np.random.Generator
) -> list[Numbers]:
    """Of each body how often each of its matched pairs counts, [1 + draws, pairs]: once, and then in each draw.

    `clips` has the hand's and the robot's clip of each pair. Clips of hands and of each body are drawn with
    replacement, independently, and a pair counts as often as its two clips were drawn together: pairs of a clip are
    alike, and one hand's clip is many robots' partner. What leaves a body no pair is drawn again.
    """
    robots = [np.unique(robot, return_inverse=True)[1] for _, robot in clips]
    found = [[np.ones(len(robot))] for robot in robots]
    while len(found[0]) <= _NUM_BOOTSTRAPS:
        times = _times_drawn(num_hand_clips, generator)
        drawn = [
            times[hand] * _times_drawn(int(robot.max()) + 1, generator)[robot]
            for (hand, _), robot in zip(clips, robots, strict=True)
        ]
        if all(each.any() for each in drawn):
            for of_body, each in zip(found, drawn, strict=True):
                of_body.append(each)
    return [np.stack(of_body) for of_body in found]


def _times_drawn(number: int, generator: np.random.Generator) -> Numbers:
    return generator.multinomial(number, np.full(number, 1 / number)).astype(np.float64)


def _spread(rows: Integers) -> Integers:
    """At most _MAX_MATCHED of them, evenly over all."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MAX_MATCHED)).astype(np.int64))]


def _readouts(model: LatentActionModel, seen: _Seen) -> dict[str, Any]:
    labels, num_codes = seen.labels, model.settings.num_codes
    heard = {
        "action": one_hot(labels.codes, num_codes) if num_codes else seen.vectors,
        "background": one_hot(labels.background_codes, num_codes)
        if num_codes
        else labels.background_latents.reshape(len(seen.clip), -1),
    }
    targets = read_targets(seen.pack, seen.clip, seen.frame)
    asked = {f"{name}.{source}": (inputs, name) for name in targets for source, inputs in heard.items()}
    asked["effector.action_latents"] = seen.vectors, "effector"
    asked["effector.place"] = targets["effector_place"], "effector"
    return {part: _read_out(inputs, targets[name], seen) for part, (inputs, name) in asked.items()}


def _read_out(inputs: npt.NDArray[Any], target: Numbers, seen: _Seen) -> list[list[float]]:
    """Of each clip the squared errors of the read-out and of the mean."""
    rows = np.isfinite(target).all(1)
    errors = np.stack(readout_errors(inputs[rows], target[rows], seen.clip[rows]), 1)
    return _by_clip(errors, seen.clip[rows], len(seen.pack.clips)).tolist()


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
    model: LatentActionModel, hands: _Seen, robots: _Seen, match: _Match, weights: Numbers
) -> dict[str, list[float]]:
    """What probes.code_transfer has, by each of weights [D, targets]."""
    rows: dict[str, list[Numbers]] = {name: [] for name in ("own", "transferred", "shuffled", "none")}
    for at in range(0, len(match.target), 64):
        part = slice(at, at + 64)
        first, last = _features(model, robots, match.target[part])
        own = spoken(model, model.encode(first, last))
        changed = (last - first).square().mean(-1)  # what did not change shows no action
        actions = {
            "own": own.action,
            "transferred": spoken(model, model.encode(*_features(model, hands, match.partner[part]))).action,
            "shuffled": spoken(model, model.encode(*_features(model, hands, match.any_hand[part]))).action,
            "none": torch.zeros_like(own.action),
        }
        for name, action in actions.items():
            error = (model.decode(first, action, own.background) - last).square().mean(-1)
            sums = torch.stack([(error * changed).sum(-1), changed.square().sum(-1)], -1)
            rows[name].append(sums.double().cpu().numpy())
    sums = {name: weights @ np.concatenate(each) for name, each in rows.items()}  # D 2
    return {f"transfer.{name}": (each[:, 0] / np.maximum(each[:, 1], 1e-12)).tolist() for name, each in sums.items()}


def alignment_by_draw(first: Vectors, second: Vectors, weights: Numbers) -> tuple[Numbers, dict[str, list[float]]]:
    """The directions that tell bodies apart, of all rows, and linear CKA of matched rows by each of weights [D, rows],
    as they are and without those.
    """
    directions = body_directions(np.concatenate([first, second]), np.arange(len(first) + len(second)) >= len(first))
    bare = without(first, directions), without(second, directions)
    return directions, {
        "cka.as_is": [linear_cka(first, second, each) for each in weights],
        "cka.without_body": [linear_cka(*bare, each) for each in weights],
    }


def _features(model: LatentActionModel, seen: _Seen, rows: Integers) -> tuple[torch.Tensor, torch.Tensor]:
    device = model.action_query.device
    first, last = (
        model.see(torch.from_numpy(np.array(seen.pack.frames[seen.frame[rows, side]])).to(device)) for side in (0, 1)
    )
    return first, last


def _by_clip(rows: Numbers, clip: Integers, num_clips: int) -> Numbers:
    """Sums of rows [N, k] of each clip, [num_clips, k]."""
    sums = np.zeros((num_clips, rows.shape[1]))
    np.add.at(sums, clip, rows)
    return sums
