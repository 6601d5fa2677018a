"""What real-time chunking must do to be worth it, each claim with its 95 % interval over scenes.

Owns the claims and their bootstrap. Two rules are compared on the same scenes of the same tasks: a draw takes tasks,
then scenes of each, and the same ones for both. Grippers and modes are left out of a mean of jumps and listed beside:
whether such a command happens to flip at a seam says nothing of how smooth a motion is, and is large enough to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from policy.embodiment import GroupKind
from training.experiments.statistics import NUM_DRAWS, Estimate, paired_difference
from training.experiments.verdict import HOLDS, NOT_RUN, NOT_SHOWN, OPPOSITE
from training.playback.cells import Cell
from training.playback.scenes import PlayedScene, Row, is_valid, summary
from training.rollout import RuleName
from training.seams import COUNTS

CLAIMED_DELAY_STEPS = 4
MOST_JUMP_RATIO = 0.5
MOST_SUCCESS_LOST = 0.05
# Of fewer scenes a bootstrap gives an interval that is too narrow to decide by.
FEWEST_SCENES = 10
_NO_MOTION = (GroupKind.GRIPPER.value, GroupKind.OTHER.value)
_METHODS: tuple[RuleName, ...] = ("guidance", "prefix")
_QUANTITIES = {"action_rms": "the action", "difference_rms": "its first difference"}
Rows = Mapping[Cell, Row]


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two rules on the scenes of one task."""

    task: str
    arm: Row
    than: Row


def claims(
    rows: Rows, tasks: Sequence[str], rules: Sequence[RuleName], why_missing: Callable[[Cell], str]
) -> list[Any]:
    """Of each method that was asked for: its jumps at a delay beside replace's, and its success beside no delay at all.

    `why_missing` says why a cell has no row.
    """
    found = []
    for method in _METHODS:
        if method not in rules:
            continue
        late = _pairs(rows, tasks, method, CLAIMED_DELAY_STEPS, why_missing)
        for quantity, what in _QUANTITIES.items():
            found.append(
                {
                    "method": method,
                    "claim": f"{method} at a delay of {CLAIMED_DELAY_STEPS} steps: the RMS jump of {what} at seams is "
                    f"at most {MOST_JUMP_RATIO:g} times that of replace",
                    **_jump_claim(*late, quantity),
                }
            )
        found.append(
            {
                "method": method,
                "claim": f"{method} at a delay of {CLAIMED_DELAY_STEPS} steps: success is at most "
                f"{100 * MOST_SUCCESS_LOST:g} points below that of replace without a delay",
                **_success_claim(*_pairs(rows, tasks, method, 0, why_missing)),
            }
        )
    return found


def _pairs(
    rows: Rows, tasks: Sequence[str], method: RuleName, than_delay: int, why_missing: Callable[[Cell], str]
) -> tuple[list[_Pair], list[str]]:
    """What there is on both sides, and why other tasks have none."""
    pairs, missing = [], []
    for task in tasks:
        cells = [
            Cell(rule=method, delay_steps=CLAIMED_DELAY_STEPS, task=task),
            Cell(rule="replace", delay_steps=than_delay, task=task),
        ]
        reasons = [_why_not(cell, rows, why_missing) for cell in cells]
        if any(reasons):
            missing += [
                f"{task}, {cell.rule} at {cell.delay_steps}: {reason}"
                for cell, reason in zip(cells, reasons, strict=True)
                if reason
            ]
        else:
            pairs.append(_Pair(task=task, arm=rows[cells[0]], than=rows[cells[1]]))
    return pairs, missing


def _why_not(cell: Cell, rows: Rows, why_missing: Callable[[Cell], str]) -> str:
    if cell not in rows:
        return why_missing(cell)
    return "" if is_valid(summary(rows[cell])) else "invalid, its simulator stalled"


def _success_claim(pairs: Sequence[_Pair], missing: Sequence[str]) -> dict[str, Any]:
    if not pairs:
        return _not_run("difference", missing)
    arm, than = (
        np.array([[[scene.succeeded for scene in row.scenes] for row in side]])
        for side in ([pair.arm for pair in pairs], [pair.than for pair in pairs])
    )
    found = paired_difference(arm, than)
    verdict = _verdict(found, holds=found.low >= -MOST_SUCCESS_LOST, opposite=found.high < -MOST_SUCCESS_LOST)
    return {"kind": "difference", "estimate": found.to_json(), "verdict": verdict, "missing": list(missing)}


def _jump_claim(pairs: Sequence[_Pair], missing: Sequence[str], quantity: str) -> dict[str, Any]:
    """The ratio is the geometric mean over what moves on all tasks, so that units do not matter; each group beside."""
    parts = [_Part(pair, group, quantity) for pair in pairs for group in pair.arm.scenes[0].seams]
    unmoved = [f"{part.task}, {part.group}: no jump to compare" for part in parts if not part.is_comparable]
    parts = [part for part in parts if part.is_comparable]
    motions = [part for part in parts if part.is_motion]
    if not motions:
        return _not_run("ratio", [*missing, *unmoved])
    found = _mean_ratio(motions)
    verdict = _verdict(found, holds=found.high <= MOST_JUMP_RATIO, opposite=found.low > MOST_JUMP_RATIO)
    return {
        "kind": "ratio",
        "estimate": found.to_json(),
        "verdict": verdict,
        "missing": [*missing, *unmoved],
        "parts": [part.to_json() for part in parts],
    }


class _Part:
    """One action group on one task: sums of squared jumps and their counts, scene by scene."""

    def __init__(self, pair: _Pair, group: str, quantity: str) -> None:
        self.task, self.group, self._quantity = pair.task, group, quantity
        self._unit, kind = (pair.arm.scenes[0].seams[group][name] for name in ("unit", "kind"))
        self.is_motion = kind not in _NO_MOTION
        # [2 sides, 2 (sum of squares, count), num_scenes]
        self._sums = np.stack([_sums(row.scenes, group, quantity) for row in (pair.arm, pair.than)])
        with np.errstate(invalid="ignore"):
            self.arm, self.than = (float(np.sqrt(squares / count)) for squares, count in self._sums.sum(axis=2))

    @property
    def num_scenes(self) -> int:
        return self._sums.shape[2]

    @property
    def is_comparable(self) -> bool:
        """Whether both sides had seams, and replace jumped at all."""
        return bool(np.isfinite(self.arm) and self.than > 0)

    @property
    def ratio(self) -> float:
        return self.arm / self.than

    def drawn_ratios(self, scenes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """[num_draws] of scenes [num_draws, num_scenes]; NaN where a draw has nothing to compare."""
        sums = self._sums[:, :, scenes].sum(axis=3)  # side, square or count, draw
        with np.errstate(divide="ignore", invalid="ignore"):
            means = np.sqrt(sums[:, 0] / sums[:, 1])
            ratios = means[0] / means[1]
        return np.where(np.isfinite(ratios), ratios, np.nan)

    def to_json(self) -> dict[str, Any]:
        generator = np.random.default_rng(0)
        ratios = self.drawn_ratios(generator.integers(self.num_scenes, size=(NUM_DRAWS, self.num_scenes)))
        low, high = np.nanpercentile(ratios, [2.5, 97.5])
        return {
            "task": self.task,
            "group": self.group,
            "quantity": self._quantity,
            "in_mean": self.is_motion,
            "unit": self._unit,
            "jump": self.arm,
            "replace_jump": self.than,
            "ratio": self.ratio,
            "low": float(low),
            "high": float(high),
        }


def _sums(scenes: Sequence[PlayedScene], group: str, quantity: str) -> npt.NDArray[np.float64]:
    figures = [scene.seams[group] for scene in scenes]
    counts = np.array([each[COUNTS[quantity]] for each in figures], np.float64)
    return np.stack([counts * np.array([each[quantity] or 0.0 for each in figures]) ** 2, counts])


def _mean_ratio(parts: Sequence[_Part]) -> Estimate:
    """Groups of one task share its scenes, so a draw takes them together."""
    tasks = list(dict.fromkeys(part.task for part in parts))
    num_tasks, num_scenes = len(tasks), parts[0].num_scenes
    generator = np.random.default_rng(0)
    sums, counts = np.zeros((num_tasks, NUM_DRAWS)), np.zeros((num_tasks, NUM_DRAWS))
    for place, task in enumerate(tasks):
        scenes = generator.integers(num_scenes, size=(NUM_DRAWS, num_scenes))
        logs = np.stack([_logarithm(part.drawn_ratios(scenes)) for part in parts if part.task == task])
        sums[place], counts[place] = np.nansum(logs, axis=0), np.isfinite(logs).sum(axis=0)
    drawn, draw = generator.integers(num_tasks, size=(num_tasks, NUM_DRAWS)), np.arange(NUM_DRAWS)
    num_groups = counts[drawn, draw].sum(axis=0)
    means = (sums[drawn, draw].sum(axis=0) / np.maximum(num_groups, 1))[num_groups > 0]
    low, high = np.exp(np.percentile(means, [2.5, 97.5]))
    return Estimate(
        value=float(np.exp(np.mean(_logarithm(np.array([part.ratio for part in parts]))))),
        low=float(low),
        high=float(high),
        num_seeds=1,
        num_tasks=num_tasks,
        num_episodes=num_scenes,
    )


def _logarithm(ratios: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Nothing beside something counts as a millionth: a mean of logarithms needs some number."""
    return np.log(np.maximum(ratios, 1e-6))


def _verdict(found: Estimate, *, holds: bool, opposite: bool) -> str:
    if found.num_episodes < FEWEST_SCENES:
        return NOT_SHOWN
    return HOLDS if holds else OPPOSITE if opposite else NOT_SHOWN


def _not_run(kind: str, missing: Sequence[str]) -> dict[str, Any]:
    return {"kind": kind, "estimate": None, "verdict": NOT_RUN, "missing": list(missing)}
