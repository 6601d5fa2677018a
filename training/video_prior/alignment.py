"""V: a head that brings latent actions of two frames onto the sphere of E's motion latents (ours).

On robots' recordings both exist: what moved between two frames, and the states and actions of the same span. There V
learns E's answer, and E stands still. Owns V, the rows it learns from, its training and its scores. Latent actions and
E come as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from policy.prior import ActionPrior, normalize_latent
from training.batches import Mixture
from training.corpus import Corpus
from training.data.pack import Pack
from training.data.sampler import TaskBalancedSampler
from training.latent_actions.label import Vectors
from training.loop import run
from training.objective import encode_motion, to_device
from training.video_prior.joint_recipe import AlignmentLoss, AlignmentRecipe

# Among how many pairs of frames a score's retrieval looks, and how many batches of so many it takes at most.
_CANDIDATES, _SCORED_BATCHES = 64, 16
_ENCODED_BATCH = 256

Picks = Sequence[tuple[int, npt.NDArray[np.int64]]]  # (pack, frames)


class VideoHead(nn.Module):
    """V: z_v = norm(MLP(latent actions of a frame pair, standardized)), on the same sphere as E's z."""

    def __init__(self, num_features: int, width: int, latent_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_features, width)
        self.out = nn.Linear(width, latent_dim)

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch latent_dim"]:
        return normalize_latent(self.out(F.silu(self.hidden(features))))


@dataclass(frozen=True)
class StandardizedLatents:
    """Continuous action latents of some packs' frames, each body's of mean 0 and variance 1.

    Who moves, and how far it gets within a gap, shifts latents more than where it goes does.
    """

    features: Sequence[Vectors]  # per pack [num_frames, num_tokens * latent_dim]
    paired: Sequence[npt.NDArray[np.bool_]]  # per pack [num_frames]: is there a second frame within clip or episode?


def standardized(latents: Sequence[Vectors], bodies: Sequence[npt.NDArray[np.str_]]) -> StandardizedLatents:
    """`latents` [num_frames, num_tokens, latent_dim] of each pack as label_pack gives them, zeros where a frame has no
    second one; `bodies` [num_frames] name who moves."""
    flat = [each.reshape(len(each), -1) for each in latents]
    whole, body = np.concatenate(flat), np.concatenate(bodies)
    paired = whole.any(1)
    features = np.zeros_like(whole)
    for name in np.unique(body[paired]):
        rows = np.flatnonzero(paired & (body == name))
        own = whole[rows]
        spread = own.std(0)
        features[rows] = (own - own.mean(0)) / np.where(spread < 1e-6, 1, spread)
    borders = np.cumsum([len(each) for each in flat])[:-1]
    return StandardizedLatents(np.split(features, borders), np.split(paired, borders))


@dataclass(frozen=True)
class AlignmentRows:
    features: Tensor  # float32 [batch, num_tokens * latent_dim]
    z: Tensor  # float32 [batch, latent_dim], E's


@dataclass(frozen=True, kw_only=True)
class MotionPairs:
    """Robots' frames that have both: a second frame a gap later, and the window of states and actions that E reads.

    E stands still, so it is asked once of each frame, not at every step.
    """

    tasks: Sequence[str]  # of each pack
    features: Sequence[Vectors]  # of each pack [num_frames, num_features]
    z: Sequence[Vectors]  # of each pack [num_frames, latent_dim], zeros where there is no pair
    training: Sequence[npt.NDArray[np.int64]]  # frames of each pack
    held_out: Sequence[npt.NDArray[np.int64]]  # of its last episodes
    unseen: Sequence[npt.NDArray[np.int64]]  # all of a body that is held out, none of the others

    @classmethod
    def of(
        cls,
        mixture: Mixture,
        latents: StandardizedLatents,
        prior: ActionPrior,
        *,
        held_out_fraction: float,
        held_out_body: str = "",
    ) -> MotionPairs:
        """Raises ValueError for a pack without a pair to train on and a `held_out_body` that is none or the only."""
        bodies = [pack.spec.name for pack in mixture.packs]
        if held_out_body and not {held_out_body} < set(bodies):
            raise ValueError(
                f"joint.alignment.held_out_body is {held_out_body!r}, expected one of several: {sorted(set(bodies))}"
            )
        none = np.zeros(0, np.int64)
        parts = [
            (none, none, np.flatnonzero(paired))
            if body == held_out_body
            else (*_split(pack, paired, held_out_fraction), none)
            for body, pack, paired in zip(bodies, mixture.packs, latents.paired, strict=True)
        ]
        return cls(
            tasks=[pack.task for pack in mixture.packs],
            features=latents.features,
            z=_motion_latents(prior, mixture, latents.paired),
            training=[training for training, _, _ in parts],
            held_out=[held_out for _, held_out, _ in parts],
            unseen=[unseen for _, _, unseen in parts],
        )

    def batch(self, picks: Picks) -> AlignmentRows:
        features, z = (np.concatenate([each[index][frames] for index, frames in picks])
                       for each in (self.features, self.z))  # fmt: skip
        return AlignmentRows(torch.from_numpy(features), torch.from_numpy(z))


@torch.inference_mode()
def _motion_latents(prior: ActionPrior, mixture: Mixture, paired: Sequence[npt.NDArray[np.bool_]]) -> list[Vectors]:
    device = next(prior.parameters()).device
    found = []
    for index, here in enumerate(paired):
        z = np.zeros((len(here), mixture.config.latent_dim), np.float32)
        frames = np.flatnonzero(here)
        for start in range(0, len(frames), _ENCODED_BATCH):
            part = frames[start : start + _ENCODED_BATCH]
            motion = to_device(mixture.motion([(index, part)]), device)
            z[part] = encode_motion(prior, motion).cpu().numpy()
        found.append(z)
    return found


def _split(
    pack: Pack, paired: npt.NDArray[np.bool_], held_out_fraction: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    num_held_out = int(np.ceil(pack.num_episodes * held_out_fraction))
    first_held_out = int(pack.episode_start[pack.num_episodes - num_held_out])
    frames = np.flatnonzero(paired)
    training, held_out = frames[frames < first_held_out], frames[frames >= first_held_out]
    if not len(training):
        raise ValueError(
            f"pack {pack.directory}: of {pack.num_episodes - num_held_out} episodes to align on none has two frames a "
            "gap apart; record more or shorten joint.alignment.gap_s"
        )
    return training, held_out


def alignment_losses(z_video: Tensor, z: Tensor, kind: AlignmentLoss, temperature: float) -> dict[str, Tensor]:
    """ "loss" is what to minimise, of V's and E's latents [batch, latent_dim]; none of it reaches E.

    "distance" is the mean squared one. "retrieval" is the part of z_v whose nearest z of the batch is their own.
    """
    z = z.detach()
    # Of latents of root mean square 1 the mean product is the cosine.
    cosine = z_video @ z.T / z.shape[-1]
    own = torch.arange(len(z), device=z.device)
    losses = {
        "distance": (z_video - z).square().mean(),
        "retrieval": (cosine.argmax(1) == own).float().mean(),
    }
    if kind == "regression":
        return {"loss": losses["distance"], **losses}
    logits = cosine / temperature
    return {"loss": (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2, **losses}


def alignment_identity(corpus: Corpus, recipe: AlignmentRecipe, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """What a resumed alignment must agree on, and what names its directory."""
    settings = {name: value for name, value in asdict(recipe).items() if name != "schedule"}
    return {
        **corpus.identity(corpus.stage2_packs),
        "training": "joint alignment",
        "alignment": settings,
        "starts_from": dict(made_by),
    }


def align(
    corpus: Corpus,
    pairs: MotionPairs,
    recipe: AlignmentRecipe,
    directory: Path,
    *,
    made_by: Mapping[str, Any],
    device: str | torch.device = "cpu",
    until: int | None = None,
) -> VideoHead:
    """Train V to the recipe's end (or to step `until`), resuming what `directory` holds; averaged weights.

    `made_by` says what made latents and prior, for a resumed run to agree on.
    """
    seed, data = corpus.recipe.seed + 7, corpus.recipe.data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = VideoHead(pairs.features[0].shape[1], recipe.width, corpus.config.latent_dim).to(device)
    trained = [index for index, frames in enumerate(pairs.training) if len(frames)]
    sampler = TaskBalancedSampler(
        [len(pairs.training[index]) for index in trained],
        [data.weight(pairs.tasks[index]) for index in trained],
        recipe.batch_size,
        seed,
    )

    def batch(step: int) -> AlignmentRows:
        picks = [(trained[at], pairs.training[trained[at]][places]) for at, places in sampler.batch(step)]
        return to_device(pairs.batch(picks), device)

    def loss(step: int, rows: AlignmentRows, generator: torch.Generator) -> Mapping[str, Tensor]:
        return alignment_losses(head(rows.features), rows.z, recipe.loss, recipe.temperature)

    averaged = run(
        directory=directory,
        modules=nn.ModuleDict({"head": head}),
        averaged="head",
        schedule=recipe.schedule,
        seed=seed,
        batch=batch,
        loss=loss,
        identity=alignment_identity(corpus, recipe, made_by),
        device=device,
        until=until,
    )
    averaged.copy_to(head)
    return head.eval()


def score_alignment(head: VideoHead, pairs: MotionPairs) -> dict[str, float]:
    """How well V says what E says, on held-out episodes of all packs alike; as "unseen_..." of a body that is held out.

    "distance" and "retrieval" are alignment_losses', in batches of `num_candidates`: 64, or all pairs where there are
    fewer. "constant_distance" is that of the best answer that is the same for every pair.
    """
    scores = _score(head, pairs, pairs.held_out)
    if any(len(frames) for frames in pairs.unseen):
        scores |= {f"unseen_{name}": value for name, value in _score(head, pairs, pairs.unseen).items()}
    return scores


@torch.inference_mode()
def _score(head: VideoHead, pairs: MotionPairs, among: Sequence[npt.NDArray[np.int64]]) -> dict[str, float]:
    places = np.concatenate([np.stack([np.full_like(frames, index), frames], 1) for index, frames in enumerate(among)])
    if not len(places):
        return {"num_pairs": 0, "num_candidates": 0}
    places = np.random.default_rng(0).permutation(places)
    num_candidates = min(_CANDIDATES, len(places))
    num_batches = min(_SCORED_BATCHES, len(places) // num_candidates)
    device = head.out.weight.device
    found, said = [], []
    for start in range(0, num_batches * num_candidates, num_candidates):
        chosen = places[start : start + num_candidates]
        picks = [(index, chosen[chosen[:, 0] == index, 1]) for index in np.unique(chosen[:, 0]).tolist()]
        rows = to_device(pairs.batch(picks), device)
        losses = alignment_losses(head(rows.features), rows.z, "regression", 1.0)
        found.append([losses["distance"].item(), losses["retrieval"].item()])
        said.append(rows.z)
    distance, retrieval = np.mean(found, 0).tolist()
    z = torch.cat(said)
    return {
        "num_pairs": num_batches * num_candidates,
        "num_candidates": num_candidates,
        "distance": distance,
        "constant_distance": (normalize_latent(z.mean(0)) - z).square().mean().item(),
        "retrieval": retrieval,
    }
