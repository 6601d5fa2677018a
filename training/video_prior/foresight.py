"""What a pretrained backbone foresees: the codes of clips that it did not learn from, by body, against guessing them.

What cannot be foreseen of a frame and words no policy can take over from video: pretraining that is no better than the
codes' own frequencies has taught nothing that is not in these. Trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from policy.config import ModelConfig
from training.objective import to_device
from training.video_prior.intent_pretraining import LabelledClips

_MAX_FRAMES = 2000
_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Foresight:
    """Of one body's frames: cross-entropy in nats per code and the part of codes that is most likely; `guessed_*` are
    those of who knows how often each code comes in these very frames and nothing else.
    """

    num_frames: int
    cross_entropy: float
    guessed_cross_entropy: float
    accuracy: float
    guessed_accuracy: float


@torch.inference_mode()
def foresee(
    intent: nn.ModuleDict, clips: LabelledClips, config: ModelConfig, device: str | torch.device = "cpu"
) -> Mapping[str, Foresight]:
    """Of each body in the clips, at most 2,000 frames spread evenly over its own. `intent` is pretrain_intent's."""
    intent.to(device).eval()
    bodies = np.array([_body(clips, pack, frame) for pack, frame in clips.places])
    found = {}
    for body in sorted(set(bodies.tolist())):
        own = clips.places[bodies == body]
        own = own[np.unique(np.linspace(0, len(own) - 1, min(len(own), _MAX_FRAMES)).astype(np.int64))]
        logits, codes = [], []
        for part in np.array_split(own, -(-len(own) // _ROWS)):
            observation, labels = clips.batch(part, config, None)
            query = intent["backbone"](to_device(observation, device)).without_history
            logits.append(intent["head"](query).logits.float().cpu())
            codes.append(labels)
        found[body] = _compared(torch.cat(logits), torch.cat(codes))
    return found


def format_foresight(found: Mapping[str, Foresight]) -> str:
    """A line of each body."""
    return "\n".join(
        f"  {body or 'unknown body'}: cross-entropy {each.cross_entropy:.3f}, by frequency alone "
        f"{each.guessed_cross_entropy:.3f}; right {100 * each.accuracy:.0f} %, by frequency alone "
        f"{100 * each.guessed_accuracy:.0f} %; {each.num_frames} frames"
        for body, each in found.items()
    )


def _body(clips: LabelledClips, pack: int, frame: int) -> str:
    return next(clip.body for clip in clips.packs[pack].clips if frame < clip.first_frame + clip.num_frames)


def _compared(logits: torch.Tensor, codes: torch.Tensor) -> Foresight:
    shares = F.one_hot(codes, logits.shape[-1]).float().mean(0)  # K codes
    return Foresight(
        num_frames=len(codes),
        cross_entropy=F.cross_entropy(logits.flatten(0, 1), codes.flatten()).item(),
        guessed_cross_entropy=-torch.special.xlogy(shares, shares).sum(-1).mean().item(),
        accuracy=(logits.argmax(-1) == codes).float().mean().item(),
        guessed_accuracy=shares.max(-1).values.mean().item(),
    )
