"""What latent actions know: of the effector's motion, of the scenery's, of another body's (paper B's questions).

Effector and scenery are privileged arrays of a clip pack: scores alone read them. Owns the questions and their JSON
form; the statistics are readout.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from training.ego_video.pack import ClipPack, FramePairs
from training.latent_actions.label import LatentActionLabels, codes_of, label_frames
from training.latent_actions.model import LatentActionModel, Latents
from training.latent_actions.quantizer import perplexity, shares, usage
from training.latent_actions.readout import body_directions, linear_cka, matched, one_hot, readout_r2, without

_MAX_PAIRS = 4000
_NUM_BOOTSTRAPS = 50


def probe(model: LatentActionModel, pack: ClipPack) -> dict[str, Any]:
    """All figures of one model on the clips of one pack, which should be clips it was not trained on.

    R2 is of ridge read-outs held out by clip: of the effector's displacement in the picture, of the same against the
    scenery, and of the scenery's. A figure whose arrays the pack lacks is left out.
    """
    pairs = FramePairs(pack, model.settings.gap_s)
    index = np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), _MAX_PAIRS)).astype(np.int64))
    clip, frame = pairs.places(index)
    labels = label_frames(model, pack.frames[frame[:, 0]], pack.frames[frame[:, 1]])
    figures: dict[str, Any] = {"num_pairs": len(index), "num_clips": len(np.unique(clip))}
    if model.settings.num_codes:
        figures["codes"] = {
            "action": _use(labels.codes, model.settings.num_codes),
            "background": _use(labels.background_codes, model.settings.num_codes),
        }
    told = displacements(pack, frame) | destinations(pack, frame)
    figures["r2"] = {name: readouts(model, labels, targets, clip) for name, targets in told.items()}
    bodies = np.array([pack.clips[number].body for number in clip])
    effector = displacements(pack, frame).get("effector")
    first, *others = sorted(set(bodies.tolist()) - {""}) or [""]
    if effector is not None and others:
        figures["bodies"] = {
            f"{first} to {other}": between_bodies(
                model, labels, pack, frame, effector, bodies == first, bodies == other
            )
            for other in others
        }
    return figures


def displacements(pack: ClipPack, frame: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
    """What moved how far between frames [N, 2], as [N, 2] in half pictures; NaN where the pack does not know."""
    moved = {}
    for name, places in (("effector", pack.effector), ("scenery", pack.scenery)):
        if places is not None:
            moved[name] = (places[frame[:, 1]] - places[frame[:, 0]]).astype(np.float64)
    if len(moved) == 2:
        moved["effector_in_scene"] = moved["effector"] - moved["scenery"]
    return moved


def destinations(pack: ClipPack, frame: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
    """Where the effector is in the last of frames [N, 2]: codes that say this say less of how it got there."""
    return {} if pack.effector is None else {"effector_place": pack.effector[frame[:, 1]].astype(np.float64)}


def readouts(
    model: LatentActionModel,
    labels: LatentActionLabels,
    targets: npt.NDArray[np.float64],
    clip: npt.NDArray[np.int64],
) -> dict[str, float]:
    """R2 of targets [N, 2] from the action and background codes (one-hot), and from the latents before them.

    Rows with NaN are left out.
    """
    known = np.isfinite(targets).all(1)
    inputs: dict[str, npt.NDArray[Any]] = {
        "action_latents": labels.latents.reshape(len(targets), -1),
        "background_latents": labels.background_latents.reshape(len(targets), -1),
    }
    if model.settings.num_codes:
        inputs["action_codes"] = one_hot(labels.codes, model.settings.num_codes)
        inputs["background_codes"] = one_hot(labels.background_codes, model.settings.num_codes)
    return {name: readout_r2(x[known], targets[known], clip[known]) for name, x in sorted(inputs.items())}


def between_bodies(
    model: LatentActionModel,
    labels: LatentActionLabels,
    pack: ClipPack,
    frame: npt.NDArray[np.int64],
    effector: npt.NDArray[np.float64],
    of_first: npt.NDArray[np.bool_],
    of_second: npt.NDArray[np.bool_],
) -> dict[str, Any]:
    """Code transfer from one body to another and their alignment, on pairs matched by the effector's displacement."""
    known = np.isfinite(effector).all(1)
    source, target = np.flatnonzero(of_first & known), np.flatnonzero(of_second & known)[:512]
    partner = source[matched(effector[source], effector[target])]
    anyone = np.random.default_rng(0).choice(source, len(target))
    vectors = labels.latents.reshape(len(effector), -1)
    return {
        "num_pairs": len(target),
        "motion_mismatch": float(np.linalg.norm(effector[partner] - effector[target], axis=1).mean()),
        "transfer": code_transfer(model, pack, frame, target, partner, anyone),
        "cka": alignment(vectors[partner], vectors[target]),
    }


@torch.inference_mode()
def code_transfer(
    model: LatentActionModel,
    pack: ClipPack,
    frame: npt.NDArray[np.int64],
    target: npt.NDArray[np.int64],
    partner: npt.NDArray[np.int64],
    anyone: npt.NDArray[np.int64],
) -> dict[str, float]:
    """Error of the last frame's features weighed by how far they changed, over what it would be if nothing changed.

    By whose action codes they were decoded: `own` is the pair's own, `transferred` those of `partner`, a pair of equal
    motion of another body, `shuffled` those of `anyone` of that body and `none` zeros; background codes are the pair's
    own throughout.
    """
    sums: dict[str, float] = dict.fromkeys(("own", "transferred", "shuffled", "none"), 0.0)
    weight = 0.0
    for at in range(0, len(target), 64):
        rows = slice(at, at + 64)
        first, last = _see(model, pack, frame[target[rows]])
        own = spoken(model, model.encode(first, last))
        changed = (last - first).square().mean(-1)  # what did not change shows no action
        weight += float(changed.square().sum())
        for name, chosen in (
            ("own", None),
            ("transferred", partner[rows]),
            ("shuffled", anyone[rows]),
            ("none", None),
        ):
            action = own.action if name == "own" else torch.zeros_like(own.action)
            if chosen is not None:
                action = spoken(model, model.encode(*_see(model, pack, frame[chosen]))).action
            error = (model.decode(first, action, own.background) - last).square().mean(-1)
            sums[name] += float((error * changed).sum())
    return {name: value / max(weight, 1e-12) for name, value in sums.items()}


def alignment(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> Mapping[str, Any]:
    """Linear CKA of matched rows of two bodies, as they are and with the directions removed that tell bodies apart.

    Each with mean and standard deviation over bootstraps of the rows, as paper B reports them.
    """
    directions = body_directions(np.concatenate([first, second]), np.arange(len(first) + len(second)) >= len(first))
    generator = np.random.default_rng(0)
    draws = [generator.integers(0, len(first), len(first)) for _ in range(_NUM_BOOTSTRAPS)]
    figures: dict[str, Any] = {"num_directions_removed": len(directions)}
    bare = without(first, directions), without(second, directions)
    for name, x, y in (("as_is", first, second), ("without_body", *bare)):
        values = [linear_cka(x[draw], y[draw]) for draw in draws]
        figures[name] = {"mean": float(np.mean(values)), "std": float(np.std(values))}
    return figures


def spoken(model: LatentActionModel, latents: Latents) -> Latents:
    """What the decoder hears: the codes' vectors, or the latents of a model without codebooks."""
    if model.action_codebook is None or model.background_codebook is None:
        return latents
    action, background = codes_of(model, latents)
    return Latents(model.action_codebook.vectors[action], model.background_codebook.vectors[background])


def _see(model: LatentActionModel, pack: ClipPack, frame: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    device = model.action_query.device
    first, last = (model.see(torch.from_numpy(np.array(pack.frames[frame[:, side]])).to(device)) for side in (0, 1))
    return first, last


def _use(codes: npt.NDArray[np.int64], num_codes: int) -> dict[str, float]:
    share = shares(torch.from_numpy(codes), num_codes)
    return {"usage": float(usage(share)), "perplexity": float(perplexity(share))}


def format_figures(figures: Mapping[str, Any]) -> str:
    """The figures as lines for a person; `held_out` says whether the model never saw the clips."""
    which = "held out" if figures["held_out"] else "clips it was trained on (--test-clips names others)"
    lines = [f"{figures['num_pairs']} pairs of {figures['num_clips']} clips, {which}"]
    for name, use in figures.get("codes", {}).items():
        lines.append(f"{name} codes: usage {use['usage']:.0%}, perplexity {use['perplexity']:.1f}")
    for name, values in figures["r2"].items():
        lines.append(f"R2 of {name}: " + ", ".join(f"{source} {value:.2f}" for source, value in values.items()))
    for name, values in figures.get("bodies", {}).items():
        errors = ", ".join(f"{arm} {error:.3f}" for arm, error in values["transfer"].items())
        cka = ", ".join(f"{arm} {values['cka'][arm]['mean']:.3f}" for arm in ("as_is", "without_body"))
        removed = values["cka"]["num_directions_removed"]
        lines += [
            f"codes from {name}: error {errors}",
            f"alignment of {name}: CKA {cka} ({removed} directions removed)",
        ]
    return "\n".join(lines)
