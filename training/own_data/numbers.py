"""Faults in the numbers of states and actions: not finite, never moving, in another unit than stated, out of limits.

And numbers that are not those which the data set's own statistics were made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from policy.embodiment import Group, GroupKind, Representation, group_slices
from policy.normalization import RANGE_FLOOR
from training.data.statistics import RunningStatistics
from training.own_data.problems import Problem, Problems

_ROWS_AT_ONCE = 2**16
# Beyond this no sensor or command is meant.
_ABSURD = 1e6
# A number this many times the width of the middle 98 % away from its middle is a glitch, not a motion.
_SPIKE = 100.0
_LIMIT_TOLERANCE = 1e-3  # of the width between the limits: how far noise may carry a reading at an end stop
_ROUNDING = 1e-6  # of a number, when it is kept as float32
_RADIANS, _DEGREES = {"rad", "radian", "radians"}, {"deg", "degree", "degrees"}
_METRES = {"m", "metre", "metres", "meter", "meters"}
_MILLIMETRES = {"mm", "millimetre", "millimetres", "millimeter", "millimeters"}
_ANGULAR = (GroupKind.JOINT_POSITION, GroupKind.END_EFFECTOR_ROTATION)
_TWO_TURNS_RAD = 4 * math.pi


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """One number of a column and where it stands."""

    file: Path
    episode: int
    frame: int
    value: float

    @property
    def place(self) -> str:
        return f"episode {self.episode} frame {self.frame}"


class VectorCheck:
    """One column of vectors, episode by episode; `report` says what is wrong with all of it."""

    def __init__(
        self, key: str, groups: tuple[Group, ...], dim: int, bounds: tuple[np.ndarray, np.ndarray] | None
    ) -> None:
        self._key, self._groups, self._bounds = key, groups, bounds
        self._lower = _limits(groups, lambda group: group.lower_limit, -np.inf)
        self._upper = _limits(groups, lambda group: group.upper_limit, np.inf)
        ends = np.nan_to_num(np.maximum(np.abs(self._lower), np.abs(self._upper)), posinf=0.0)
        width = np.nan_to_num(self._upper - self._lower, posinf=0.0)
        self._slack = _LIMIT_TOLERANCE * width + _ROUNDING * ends
        self._names = [f"{group.name}[{place}]" for group in groups for place in range(group.dim)]
        self._statistics = RunningStatistics(dim)
        self._waiting: list[np.ndarray] = []
        self._largest: list[_Seen | None] = [None] * dim
        self._not_finite: list[tuple[_Seen, int] | None] = [None] * dim
        self._beyond: list[tuple[_Seen, int] | None] = [None] * dim
        self._file: Path | None = None

    def add(self, file: Path, episode: int, values: np.ndarray) -> None:
        """values: [length, dim]."""
        values = values.astype(np.float64)
        self._file = self._file or file
        finite = np.isfinite(values)
        with np.errstate(invalid="ignore"):  # comparing NaN, which `finite` leaves out
            beyond = finite & ((values < self._lower - self._slack) | (values > self._upper + self._slack))
        for dim in np.flatnonzero(~finite.all(axis=0)):
            _count(self._not_finite, int(dim), file, episode, values, ~finite)
        for dim in np.flatnonzero(beyond.any(axis=0)):
            _count(self._beyond, int(dim), file, episode, values, beyond)
        self._see_largest(file, episode, np.where(finite, values, 0.0))
        self._waiting.append(values[finite.all(axis=1)].astype(np.float32))
        if sum(map(len, self._waiting)) >= _ROWS_AT_ONCE:
            self._digest()

    def report(self, problems: Problems, *, complete: bool) -> None:
        """`complete` is whether every episode came."""
        self._digest()
        self._report_counted(problems)
        try:
            statistics = {name: np.array(values) for name, values in self._statistics.to_json().items()}
        except ValueError:
            return  # no whole row is finite, which is reported
        self._report_constant(statistics, problems)
        self._report_scale(statistics, problems)
        if complete and not any(self._not_finite):
            self._report_stale_statistics(statistics, problems)

    def _digest(self) -> None:
        if self._waiting:
            self._statistics.add(np.concatenate(self._waiting))
            self._waiting = []

    def _see_largest(self, file: Path, episode: int, values: np.ndarray) -> None:
        frames = np.abs(values).argmax(axis=0)
        for dim, frame in enumerate(frames.tolist()):
            seen, value = self._largest[dim], float(values[frame, dim])
            if seen is None or abs(value) > abs(seen.value):
                self._largest[dim] = _Seen(file=file, episode=episode, frame=frame, value=value)

    def _column(self, dim: int) -> str:
        return f"column {self._key!r} dimension {dim} ({self._names[dim]})"

    def _report_counted(self, problems: Problems) -> None:
        for dim, counted in enumerate(self._not_finite):
            if counted is not None:
                seen, count = counted
                problems.add(
                    "finite",
                    Problem(
                        file=str(seen.file),
                        column=self._column(dim),
                        place=seen.place,
                        found=f"{seen.value}, {count} frames in all",
                        expected="finite numbers",
                        remedy="take those episodes out or mend the driver: a gap filled by guess teaches a guess",
                    ),
                )
        for dim, counted in enumerate(self._beyond):
            if counted is not None:
                seen, count = counted
                problems.add(
                    "limits",
                    Problem(
                        file=str(seen.file),
                        column=self._column(dim),
                        place=seen.place,
                        found=f"{seen.value:.6g}, {count} frames in all are beyond",
                        expected=f"{self._lower[dim]:.6g} to {self._upper[dim]:.6g}, the spec's limits",
                        remedy="correct the limits or the unit in the spec, or take those episodes out",
                    ),
                )

    def _report_constant(self, statistics: dict[str, np.ndarray], problems: Problems) -> None:
        """Limits that are equal say that a dimension is meant never to move; commands are then held there."""
        low, high = statistics["min"], statistics["max"]
        for dim in np.flatnonzero(high - low < 2 * RANGE_FLOOR).tolist():
            if self._lower[dim] == self._upper[dim]:
                continue
            still = f"{low[dim]:.6g} in every frame"
            problems.add(
                "constant",
                Problem(
                    file=str(self._file),
                    column=self._column(dim),
                    found=still if high[dim] == low[dim] else f"only {low[dim]:.6g} to {high[dim]:.6g}",
                    expected=f"a dimension that moves by more than {2 * RANGE_FLOOR:g}, below which nothing is scaled",
                    remedy="see whether the sensor was plugged in, or convert to a smaller unit; if it is meant never "
                    "to move, give its value as both lower_limit and upper_limit in the spec",
                ),
            )

    def _report_scale(self, statistics: dict[str, np.ndarray], problems: Problems) -> None:
        largest = np.array([0.0 if seen is None else abs(seen.value) for seen in self._largest])
        spikes = has_spike(statistics)
        for group, columns in group_slices(self._groups):
            small = _looks_like(group, float(largest[columns].max()))
            if small:
                problems.add(
                    "unit",
                    Problem(
                        file=str(self._file),
                        column=f"column {self._key!r} group {group.name!r}",
                        found=f"no number larger than {largest[columns].max():.4g}",
                        expected=f"numbers in {group.unit}",
                        remedy=f"these look like {small}: correct the unit in the spec, or convert the data",
                    ),
                )
            bound, meant = _bound(group)
            beyond = [dim for dim in range(columns.start, columns.stop) if largest[dim] > bound]
            if beyond:
                worst = max(beyond, key=lambda dim: largest[dim])
                spread = f", and too much in {len(beyond)} of the group's {group.dim} dimensions"
                self._report_largest(
                    worst,
                    problems,
                    expected=f"at most {bound:.4g} for {meant}",
                    remedy="correct the unit in the spec, or convert the data",
                    spread=spread,
                )
                continue
            for dim in range(columns.start, columns.stop):
                limited = np.isfinite(self._lower[dim]) and np.isfinite(self._upper[dim])
                if spikes[dim] and not limited:
                    usual = f"{statistics['q01'][dim]:.4g} to {statistics['q99'][dim]:.4g}"
                    self._report_largest(
                        dim,
                        problems,
                        expected=f"numbers near {usual}, where 98 % of them are",
                        remedy="take episodes with a sensor's glitch out; if it is meant, give limits that hold it",
                    )

    def _report_largest(self, dim: int, problems: Problems, *, expected: str, remedy: str, spread: str = "") -> None:
        seen = self._largest[dim]
        assert seen is not None
        problems.add(
            "scale",
            Problem(
                file=str(seen.file),
                column=self._column(dim),
                place=seen.place,
                found=f"{seen.value:.6g}{spread}",
                expected=expected,
                remedy=remedy,
            ),
        )

    def _report_stale_statistics(self, statistics: dict[str, np.ndarray], problems: Problems) -> None:
        if self._bounds is None:
            return
        low, high = self._bounds
        slack = 1e-4 + 1e-3 * (statistics["max"] - statistics["min"])
        wrong = (np.abs(low - statistics["min"]) > slack) | (np.abs(high - statistics["max"]) > slack)
        for dim in np.flatnonzero(wrong).tolist():
            problems.add(
                "stale statistics",
                Problem(
                    file=str(self._file),
                    column=self._column(dim),
                    found=f"{statistics['min'][dim]:.6g} to {statistics['max'][dim]:.6g}",
                    expected=f"{low[dim]:.6g} to {high[dim]:.6g}, as the data set's own statistics say",
                    remedy="the data or the statistics were changed after recording: see which is right, then let "
                    "LeRobot compute the statistics anew (lerobot-edit-dataset --operation.type recompute_stats)",
                ),
            )


def has_spike(statistics: Mapping[str, np.ndarray]) -> npt.NDArray[np.bool_]:
    """Per dimension, whether a number lies absurdly far from nearly all others; not where nearly all are the same."""
    width = statistics["q99"] - statistics["q01"]
    middle = (statistics["q99"] + statistics["q01"]) / 2
    off = np.maximum(statistics["max"] - middle, middle - statistics["min"])
    return (width > 0) & (off > _SPIKE * width)


def _count(
    counted: list[tuple[_Seen, int] | None], dim: int, file: Path, episode: int, values: np.ndarray, wrong: np.ndarray
) -> None:
    frames = np.flatnonzero(wrong[:, dim])
    before = counted[dim]
    if before is None:
        frame = int(frames[0])
        seen = _Seen(file=file, episode=episode, frame=frame, value=float(values[frame, dim]))
        counted[dim] = (seen, len(frames))
    else:
        counted[dim] = (before[0], before[1] + len(frames))


def _limits(groups: tuple[Group, ...], side: Callable[[Group], tuple[float, ...]], default: float) -> np.ndarray:
    return np.concatenate([np.array(side(group) or [default] * group.dim) for group in groups])


def _bound(group: Group) -> tuple[float, str]:
    """The largest magnitude that a group's unit leaves plausible, and what that was meant for."""
    unit = group.unit.strip().lower()
    if group.kind in _ANGULAR and unit in _RADIANS:
        return _TWO_TURNS_RAD, "an angle in rad, two turns"
    if group.kind in _ANGULAR and unit in _DEGREES:
        return 720.0, "an angle in degrees, two turns"
    if group.kind is GroupKind.END_EFFECTOR_POSITION and unit in _METRES:
        return 10.0, "the reach of an arm in metres"
    if group.kind is GroupKind.END_EFFECTOR_POSITION and unit in _MILLIMETRES:
        return 10_000.0, "the reach of an arm in millimetres"
    if group.kind is GroupKind.GRIPPER and unit in _METRES:
        return 1.0, "the opening of a gripper in metres"
    return _ABSURD, "anything of a robot"


def _looks_like(group: Group, largest: float) -> str:
    """The larger unit that a whole group of absolute numbers is in instead, or nothing."""
    unit = group.unit.strip().lower()
    if group.representation is not Representation.ABSOLUTE or not largest:
        return ""
    if group.kind is GroupKind.JOINT_POSITION and unit in _DEGREES and largest <= 2 * math.pi:
        return "radians"
    if group.kind is GroupKind.END_EFFECTOR_POSITION and unit in _MILLIMETRES and largest <= 2:
        return "metres"
    return ""
