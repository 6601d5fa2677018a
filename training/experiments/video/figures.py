"""Figures of latent actions with their intervals: what is counted clip by clip, resampled over seeds and clips.

Owns the names of figures, how each follows from sums over clips, and the bootstrap. Probes no model (probing.py does),
and of matched clips of two bodies takes the draws that a probe made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from training.experiments.statistics import NUM_DRAWS, Estimate, at_least_students

Array = npt.NDArray[np.float64]
Kind = Literal["R2", "error", "usage", "perplexity", "CKA", "IoU"]
OF_MATCHED_CLIPS: tuple[Kind, ...] = ("error", "CKA")  # of hands and robots, whose clips a probe draws
# What a figure can be at all: no interval of one reaches further, and none of a difference further than these allow.
RANGES: Mapping[Kind, tuple[float, float]] = {
    "R2": (-np.inf, 1.0),
    "error": (0.0, np.inf),
    "usage": (0.0, 1.0),
    "perplexity": (1.0, np.inf),
    "CKA": (0.0, 1.0),
    "IoU": (0.0, 1.0),
}
_DRAWS_AT_ONCE = 250
_USED_ABOVE = 0.1  # of an equal share: what the quantizer revives below is no code in use


@dataclass(frozen=True, kw_only=True)
class Figure:
    """`part` says where a probe's JSON has it."""

    title: str
    kind: Kind
    part: str


def _r2(title: str, part: str) -> Figure:
    return Figure(title=f"R2 of {title}", kind="R2", part=part)


FIGURES: Mapping[str, Figure] = {
    "effector, action": _r2("effector from action", "effector.action"),
    "effector, background": _r2("effector from background", "effector.background"),
    "effector, action latents": _r2("effector from action latents", "effector.action_latents"),
    "effector, place": _r2("effector from its last place alone", "effector.place"),
    "effector given place, action": _r2("effector given place from action", "effector_given_place.action"),
    "effector given place, background": _r2("effector given place from background", "effector_given_place.background"),
    "effector place, action": _r2("effector's last place from action", "effector_place.action"),
    "effector place, background": _r2("effector's last place from background", "effector_place.background"),
    "effector in scene, action": _r2("effector in scene from action", "effector_in_scene.action"),
    "effector in scene, background": _r2("effector in scene from background", "effector_in_scene.background"),
    "scenery, action": _r2("scenery from action", "scenery.action"),
    "scenery, background": _r2("scenery from background", "scenery.background"),
    "usage": Figure(title="action codes used", kind="usage", part="action_codes"),
    "background usage": Figure(title="background codes used", kind="usage", part="background_codes"),
    "perplexity": Figure(title="perplexity of action codes", kind="perplexity", part="action_codes"),
    "own codes": Figure(title="error with own codes", kind="error", part="transfer.own"),
    "transferred codes": Figure(title="error with a hand's codes", kind="error", part="transfer.transferred"),
    "shuffled codes": Figure(title="error with any codes", kind="error", part="transfer.shuffled"),
    "no codes": Figure(title="error without codes", kind="error", part="transfer.none"),
    "mask IoU": Figure(title="IoU of flow masks of hands", kind="IoU", part="masks.hands"),
    "mask IoU, robots": Figure(title="IoU of flow masks of robots", kind="IoU", part="masks.robots"),
    "CKA": Figure(title="CKA as it is", kind="CKA", part="cka.as_is"),
    "CKA without body": Figure(title="CKA without the body subspace", kind="CKA", part="cka.without_body"),
}


@dataclass(frozen=True)
class Sample:
    """One figure of one arm: [seeds, clips, sums]; of matched clips, errors and CKA, [seeds, bodies, 1 + draws], the
    first of all clips and the others of clips drawn by the probe.
    """

    kind: Kind
    values: Array

    @property
    def to_draw(self) -> tuple[int, int]:
        """How many there are to draw and how many are drawn: all clips, or one of the probe's draws."""
        if self.kind in OF_MATCHED_CLIPS:
            return self.values.shape[2] - 1, 1
        return self.values.shape[1], self.values.shape[1]

    def drawn(self, seeds: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> Array:
        """The figure for seeds [D, S] and what `to_draw` says [D, C] of each draw, [D].

        Fewer clips have a higher CKA, so the probe's draws stand here around the figure of all clips.
        """
        if self.kind in OF_MATCHED_CLIPS:
            of_all, draws = self.by_seed[:, None], self.values.mean(1)[:, 1:]
            return (of_all + draws - draws.mean(1, keepdims=True))[seeds, others].mean(1)
        return _of_sums(self.kind, self.values[seeds[:, :, None], others[:, None, :]].sum(2)).mean(1)

    @property
    def by_seed(self) -> Array:
        if self.kind in OF_MATCHED_CLIPS:
            return self.values[:, :, 0].mean(1)
        return _of_sums(self.kind, self.values.sum(1))


def sample_of(figure: str, probes: Sequence[Mapping[str, Any]]) -> Sample | None:
    """A figure of the probes of one arm's seeds; None where an arm has none, as continuous latents have no codes."""
    kind, part = FIGURES[figure].kind, FIGURES[figure].part
    if not probes or any(part not in probe["sums"] for probe in probes):
        return None
    return Sample(kind, np.array([probe["sums"][part] for probe in probes], np.float64))


def estimate(first: Sample, second: Sample | None = None, *, seed: int = 0, num_draws: int = NUM_DRAWS) -> Estimate:
    """The figure, or the difference of two, mean over seeds, with its 95 % interval.

    That is the wider of a bootstrap over seeds and clips and Student's over seeds, for three seeds that are drawn from
    three vary too little (statistics.py), and no wider than the figure can be. Raises ValueError for two that are not
    of the same seeds and clips.
    """
    bootstrapped = _bootstrap(first, second, seed, num_draws)
    by_seed, (least, most) = first.by_seed, RANGES[first.kind]
    if second is not None:
        by_seed, least, most = by_seed - second.by_seed, least - most, most - least
    found = at_least_students(bootstrapped, by_seed)
    return replace(found, low=max(found.low, least), high=min(found.high, most))


def _bootstrap(first: Sample, second: Sample | None, seed: int, num_draws: int) -> Estimate:
    if second is not None and first.values.shape[:2] != second.values.shape[:2]:
        raise ValueError(f"figures are of {first.values.shape[:2]} and {second.values.shape[:2]} seeds and clips")
    num_seeds, num_clips = first.values.shape[:2]
    to_draw, num_drawn = first.to_draw
    generator = np.random.default_rng(seed)
    draws = []
    for start in range(0, num_draws, _DRAWS_AT_ONCE):
        count = min(_DRAWS_AT_ONCE, num_draws - start)
        seeds = generator.integers(num_seeds, size=(count, num_seeds))
        clips = generator.integers(to_draw, size=(count, num_drawn))
        draws.append(first.drawn(seeds, clips) - (second.drawn(seeds, clips) if second is not None else 0.0))
    low, high = np.percentile(np.concatenate(draws), [2.5, 97.5])
    value = float(first.by_seed.mean() - (second.by_seed.mean() if second is not None else 0.0))
    # What takes away clips takes away codes: resampled usage lies below the figure, which its interval must contain.
    return Estimate(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        num_seeds=num_seeds,
        num_tasks=num_clips,
        num_episodes=1,
    )


def _of_sums(kind: Kind, sums: Array) -> Array:
    return _BY_KIND[kind](sums)


def _usage(counts: Array) -> Array:
    return (counts >= _USED_ABOVE * np.maximum(counts.mean(-1, keepdims=True), 1e-12)).mean(-1)


def _perplexity(counts: Array) -> Array:
    share = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    return np.exp(-(share * np.log(np.where(share > 0, share, 1))).sum(-1))


_BY_KIND: Mapping[Kind, Callable[[Array], Array]] = {
    "R2": lambda sums: 1 - sums[..., 0] / np.maximum(sums[..., 1], 1e-12),
    "IoU": lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1e-12),
    "usage": _usage,
    "perplexity": _perplexity,
}
