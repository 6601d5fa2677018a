"""Drafts an EmbodimentSpec from what a data set says of its robot; what it cannot say is a TODO with a guess.

Names and widths come from the features or from a modality.json, guesses of units and limits from the numbers. Kind,
unit and an action's representation stay open: a wrong one trains without a complaint and moves a robot wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policy.embodiment import GroupKind, Normalization, Representation
from training.data.lerobot.embodiment import ACTION_KEY, STATE_KEY, camera_name
from training.data.lerobot.layout import DatasetError, element_names, frame_shape, row_shape
from training.data.lerobot.reader import LeRobotReader
from training.json_file import write_json
from training.own_data.dimension_names import kind_of, runs_of
from training.own_data.info_file import read_checked_info
from training.own_data.modality import Modality, ModalityGroup, read_modality
from training.own_data.numbers import has_spike
from training.own_data.problems import ImportRefusedError, Problems
from training.own_data.spec_file import TODO, fields_left_open

_WIDENED_BY = 0.1  # of a dimension's range, on either side
_RADIANS_END = 2 * np.pi


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A spec as JSON values, and what a person should know besides."""

    values: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def fields_left_open(self) -> list[tuple[str, str]]:
        return list(fields_left_open(self.values))


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """A run of columns to become a group. `absolute` is None where nothing says."""

    name: str
    dim: int
    kind: GroupKind
    absolute: bool | None = None


def draft_spec(root: Path, *, modality_path: Path | None = None) -> Draft:
    """Raises ImportRefusedError with the faults of info.json, DatasetError or FileNotFoundError for what else cannot be
    read or for lack of state, action or camera.
    """
    problems = Problems()
    if read_checked_info(root, problems) is None:
        raise ImportRefusedError(str(root), problems)
    reader = LeRobotReader(root)
    for key in (STATE_KEY, ACTION_KEY):
        if key not in reader.numeric_keys or len(reader.features[key]["shape"]) != 1:
            raise DatasetError(
                f"{root}: no vector {key!r}, it has {list(reader.numeric_keys)}; join the robot's columns into {key!r}"
            )
    dims = {key: int(reader.features[key]["shape"][0]) for key in (STATE_KEY, ACTION_KEY)}
    modality = None
    if modality_path is not None:
        modality = read_modality(modality_path, state_dim=dims[STATE_KEY], action_dim=dims[ACTION_KEY])
    state, action = _numbers(reader, STATE_KEY), _numbers(reader, ACTION_KEY)
    state_columns = _columns(reader, STATE_KEY, modality.state if modality else None)
    action_columns = _columns(reader, ACTION_KEY, modality.action if modality else None)
    state_of = dict(zip([columns.name for columns in state_columns], _split(state, state_columns), strict=True))
    values = {
        "name": reader.robot_type if reader.robot_type != "unknown" else f"{TODO} the robot's name",
        "cameras": _cameras(reader, modality),
        "state": [
            _group(columns, numbers, Representation.ABSOLUTE.value)
            for columns, numbers in zip(state_columns, _split(state, state_columns), strict=True)
        ],
        "action": [
            _group(columns, numbers, _representation(columns, numbers, state_of.get(columns.name)))
            for columns, numbers in zip(action_columns, _split(action, action_columns), strict=True)
        ],
        "control_rate_hz": reader.fps,
    }
    return Draft(values=values, notes=tuple(_notes(reader, modality)))


def write_draft(draft: Draft, path: Path) -> None:
    """Raises FileExistsError rather than write over a spec that somebody may have finished."""
    if path.exists():
        raise FileExistsError(f"{path} exists already, and a draft never replaces a spec; name another file")
    write_json(path, draft.values)


def _columns(reader: LeRobotReader, key: str, groups: Sequence[ModalityGroup] | None) -> list[_Columns]:
    if groups is not None:
        return [_of_modality(group) for group in groups]
    dim = int(reader.features[key]["shape"][0])
    names = element_names(reader.features[key])
    if names is None or len(names) != dim:
        return [_Columns(name=key.rpartition(".")[2], dim=dim, kind=GroupKind.OTHER)]
    return [_Columns(name=run.name, dim=run.dim, kind=run.kind) for run in runs_of(names)]


def _of_modality(group: ModalityGroup) -> _Columns:
    kind = GroupKind.END_EFFECTOR_ROTATION if group.is_rotation else kind_of(group.name)
    return _Columns(name=group.name, dim=group.dim, kind=kind, absolute=group.absolute)


def _numbers(reader: LeRobotReader, key: str) -> np.ndarray:
    """[num_frames, dim]; numbers that are not finite are left to the import, which refuses them."""
    values = np.concatenate(
        [reader.numeric(episode, [key])[key].reshape(episode.length, -1) for episode in reader.episodes]
    ).astype(np.float64)
    numbers = np.where(np.isfinite(values), values, np.nan)
    if (empty := np.flatnonzero(np.isnan(numbers).all(axis=0))).size:
        raise DatasetError(f"{reader.root}: {key!r} has no finite number in its dimensions {empty.tolist()}")
    return numbers


def _split(numbers: np.ndarray, columns: Sequence[_Columns]) -> list[np.ndarray]:
    stops = np.cumsum([run.dim for run in columns])
    return np.split(numbers, stops[:-1], axis=1)


def _cameras(reader: LeRobotReader, modality: Modality | None) -> list[dict[str, Any]]:
    keys = reader.camera_keys if modality is None else modality.camera_keys
    if unknown := [key for key in keys if key not in reader.camera_keys]:
        raise DatasetError(f"modality.json names the videos {unknown}, {reader.root} has {list(reader.camera_keys)}")
    shown = [key for key in keys if not _is_depth(reader, key)]
    if not shown:
        raise DatasetError(f"{reader.root}: no colour camera, and a policy needs one to look")
    shapes = {key: frame_shape(reader.features[key]) for key in shown}
    return [{"name": camera_name(key), "height": shapes[key][0], "width": shapes[key][1]} for key in shown]


def _is_depth(reader: LeRobotReader, key: str) -> bool:
    feature = reader.features[key]
    details = feature.get("info") or feature.get("video_info") or {}
    return bool(details.get("video.is_depth_map")) or frame_shape(feature)[2] != 3


def _group(columns: _Columns, numbers: np.ndarray, representation: str) -> dict[str, Any]:
    kinds = ", ".join(kind.value for kind in GroupKind)
    q01, q99 = np.nanquantile(numbers, (0.01, 0.99), axis=0)
    seen = {"min": np.nanmin(numbers, axis=0), "max": np.nanmax(numbers, axis=0), "q01": q01, "q99": q99}
    is_gripper = columns.kind is GroupKind.GRIPPER
    return {
        "name": columns.name,
        "dim": columns.dim,
        "kind": f"{TODO} {columns.kind.value}? one of {kinds}",
        "unit": _unit(columns.kind, max(abs(seen["min"].min()), abs(seen["max"].max()))),
        "representation": representation,
        "normalization": (Normalization.MIN_MAX if is_gripper else Normalization.QUANTILE).value,
        "relative_to": None,
        "lower_limit": _limits(seen, "min", -_WIDENED_BY),
        "upper_limit": _limits(seen, "max", _WIDENED_BY),
    }


def _limits(seen: Mapping[str, np.ndarray], end: str, widened_by: float) -> list[float | str]:
    limits: list[float | str] = []
    for dim, is_spike in enumerate(has_spike(seen)):
        low, high, q01, q99 = (float(seen[name][dim]) for name in ("min", "max", "q01", "q99"))
        if low == high:
            limits.append(
                f"{TODO} it is {low:.6g} in every frame: give that twice if it never moves, or else its limit"
            )
        elif is_spike:
            limits.append(f"{TODO} it goes from {low:.4g} to {high:.4g}, but nearly always from {q01:.4g} to {q99:.4g}")
        else:
            limits.append(float(f"{seen[end][dim] + widened_by * (high - low):.4g}"))
    return limits


def _unit(kind: GroupKind, largest: float) -> str:
    seen = f"the largest number is {largest:.4g}"
    if kind is GroupKind.JOINT_POSITION:
        guess = "rad" if largest <= _RADIANS_END else "deg"
        return f"{TODO} {guess}? {seen}; LeRobot's drivers also give -100 to 100 of a joint's range"
    if kind is GroupKind.END_EFFECTOR_POSITION:
        return f"{TODO} {'m' if largest <= 5 else 'mm'}? {seen}"
    if kind is GroupKind.END_EFFECTOR_ROTATION:
        return f"{TODO} {'rad' if largest <= _RADIANS_END else 'deg'}? {seen}; say also which rotation it is"
    if kind is GroupKind.GRIPPER:
        guess = "fraction open" if largest <= 1.5 else "percent open"
        return f"{TODO} {guess}? {seen}"
    return f"{TODO} what one step of it is; {seen}"


def _representation(columns: _Columns, action: np.ndarray, state: np.ndarray | None) -> str:
    """A target lies where the robot is about to be; a delta lies about zero wherever the robot is."""
    if columns.absolute is not None:
        return (Representation.ABSOLUTE if columns.absolute else Representation.DELTA).value
    if state is None or state.shape != action.shape:
        return f"{TODO} absolute or delta? no state group of the same name and width to compare with"
    distance = float(np.nanmedian(np.abs(action - state)))
    moved = float(np.nanmedian(np.nanmax(state, axis=0) - np.nanmin(state, axis=0)))
    guess = Representation.ABSOLUTE if distance < 0.2 * moved else Representation.DELTA
    return (
        f"{TODO} {guess.value}? the median distance between action and state is {distance:.3g}, "
        f"the state's range {moved:.3g}"
    )


def _notes(reader: LeRobotReader, modality: Modality | None) -> list[str]:
    notes = [
        "limits are the data's range and a tenth more: put the robot's own there, commands saturate at them",
        "for absolute targets, name in relative_to the state group they are targets of: motion is learnt, not place",
    ]
    if depth := [key for key in reader.camera_keys if _is_depth(reader, key)]:
        notes.append(f"left out, not colour: {', '.join(depth)}")
    vectors = (STATE_KEY, ACTION_KEY)
    others = [key for key in reader.numeric_keys if key not in vectors and len(row_shape(reader.features[key])) == 1]
    if others:
        notes.append(f"left out, neither {STATE_KEY} nor {ACTION_KEY}: {', '.join(others)}")
    if modality is not None:
        columns = [key for key in modality.instruction_columns if key in reader.numeric_keys and key != "task_index"]
        if columns:
            notes.append(
                f"modality.json also finds words through {', '.join(columns)}: import with --instruction-column to "
                f"use one of them in place of task_index"
            )
    return notes
