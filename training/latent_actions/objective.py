"""What latent actions are trained to do: one decoder three times, each path answering for its part of the picture.

Paper B's masked losses (arXiv 2606.18955) as its released code computes them: the action path's error where things move
by their own, the background path's elsewhere, the full path's everywhere, weight 1 each. Three things are added, for
judged on the foreground alone the action path may show a hand everywhere, and then no code needs to say where the hand
went. It may be held to the first frame's patches outside the foreground, which no motion of the camera has to be known
for; a linear map of the action codes alone may have to say how far what moves got; and the encoder may have to know
both frames' masks patch by patch, for the other losses alone teach it late where things are that move.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from training.latent_actions.model import LatentActionModel, Latents
from training.latent_actions.quantizer import perplexity, shares, usage


def latent_action_losses(
    model: LatentActionModel,
    first: Float[Tensor, "batch patches features"],
    last: Float[Tensor, "batch patches features"],
    foreground: Bool[Tensor, "batch patches"] | None,
    motion: Float[Tensor, "batch motions"] | None = None,
    coverage: Float[Tensor, "batch patches 2"] | None = None,
    *,
    quantize: bool = True,
    revive_with: torch.Generator | None = None,
) -> Mapping[str, Float[Tensor, ""]]:
    """Of two frames as the model sees them. `foreground` None: both paths answer for all patches.

    `motion` is what moments.py makes of each pair, NaN where that is not known, and `coverage` how much of each patch
    moves in the first and in the last frame; their errors are fractions of what saying nothing, and the mean, costs.
    With `quantize` False latents stay as they are, as in a model without codebooks. With a generator dead codes of both
    codebooks revive.
    """
    encoded = model.encode_all(first, last)
    latents = encoded.latents
    metrics: dict[str, Tensor] = {}
    action, background = latents.action, latents.background
    quantizing = first.new_zeros(())
    if quantize and model.action_codebook is not None and model.background_codebook is not None:
        if revive_with is not None:
            model.action_codebook.revive(latents.action, revive_with)
            model.background_codebook.revive(latents.background, revive_with)
        quantized = {
            "action": model.action_codebook(latents.action),
            "background": model.background_codebook(latents.background),
        }
        action, background = quantized["action"].latents, quantized["background"].latents
        for name, book in (("action", model.action_codebook), ("background", model.background_codebook)):
            book.count(quantized[name].codes)
            share = shares(quantized[name].codes, len(book.share))
            metrics |= {f"{name}_usage": usage(share), f"{name}_perplexity": perplexity(share)}
            quantizing = quantizing + quantized[name].loss
    full, moved, still = reconstructions(model, first, Latents(action, background))
    whole = torch.ones(last.shape[:2], dtype=torch.bool, device=last.device)
    moving, staying = (whole, whole) if foreground is None else (foreground, ~foreground)
    errors = {
        "full": masked_error(full, last, whole),
        "foreground": masked_error(moved, last, moving),
        "background": masked_error(still, last, staying),
    }
    if foreground is not None and model.settings.elsewhere == "first":
        # Divided by the foreground's count: a patch that shows what is not there weighs as much as one that lacks it.
        errors["elsewhere"] = (moved - first).square().mean(-1)[staying].sum() / moving.sum().clamp(min=1)
    if motion is not None and model.settings.motion_weight:
        known = motion.isfinite()
        motion = motion.where(known, 0)
        missed = (model.motion_out(action.flatten(1)) - motion) * known
        errors["motion"] = model.settings.motion_weight * missed.square().sum() / motion.square().sum().clamp(min=1)
    if coverage is not None and model.masks_out is not None:
        missed = model.masks_out(encoded.patches) - coverage
        varied = (coverage - coverage.mean()).square().sum().clamp(min=1)
        errors["masks"] = model.settings.mask_weight * missed.square().sum() / varied
    return {"loss": sum(errors.values(), quantizing), **errors, "quantization": quantizing, **metrics}


def reconstructions(
    model: LatentActionModel, first: Float[Tensor, "batch patches features"], codes: Latents
) -> tuple[Tensor, Tensor, Tensor]:
    """The last frame's features by all codes, by the action's alone and by the background's alone."""
    nothing = torch.zeros_like(codes.action)
    decoded = model.decode(
        first.repeat(3, 1, 1),
        torch.cat([codes.action, codes.action, nothing]),
        torch.cat([codes.background, nothing, codes.background]),
    )
    full, moved, still = decoded.chunk(3)
    return full, moved, still


def masked_error(
    guess: Float[Tensor, "batch patches features"],
    truth: Float[Tensor, "batch patches features"],
    mask: Bool[Tensor, "batch patches"],
) -> Float[Tensor, ""]:
    """Mean squared error over what `mask` marks in the whole batch; 0 where it marks nothing."""
    error = (guess.float() - truth.float()).square().mean(-1)
    return (error * mask).sum() / mask.sum().clamp(min=1)


def covered(mask: Float[Tensor, "batch size size"], side: int) -> Float[Tensor, "batch patches"]:
    """How much of each patch, `side` of them in a row, is in a mask in [0, 1]."""
    return F.adaptive_avg_pool2d(mask[:, None], side).flatten(1)


def foreground_patches(
    mask: Float[Tensor, "batch size size"], side: int, above: float
) -> Bool[Tensor, "batch patches"]:
    """Patches of which more than `above` moves; `mask` is in [0, 1], `side` the patches of a row."""
    return covered(mask, side) > above
