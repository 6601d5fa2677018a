"""Faults that info.json shows against the spec, and those of the statistics beside it. Reads no frame.

What info.json is by itself is info_file.py's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from policy.embodiment import EmbodimentSpec
from training.data.lerobot.embodiment import ACTION_KEY, STATE_KEY, camera_name
from training.data.lerobot.layout import (
    INDEX_FEATURES,
    INFO_PATH,
    STATS_PATH,
    Features,
    frame_shape,
    is_camera,
    is_numeric,
)
from training.data.pack import EXECUTED_ACTION_KEY
from training.own_data.problems import Problem, Problems

EPISODE_STATS_PATH = "meta/episodes_stats.jsonl"
_STATS_NAMES = ("min", "max", "mean", "std")
_MAKE_STATS = (
    "let LeRobot compute them (lerobot-edit-dataset --operation.type recompute_stats), and see whether the recording "
    "was cut off before it could"
)

Bounds = Mapping[str, tuple[np.ndarray, np.ndarray]]


def check_metadata(root: Path, info: Mapping[str, Any], spec: EmbodimentSpec, problems: Problems) -> None:
    file = str(root / INFO_PATH)
    if abs(float(info["fps"]) - spec.control_rate_hz) > 1e-6 * spec.control_rate_hz:
        problems.add(
            "rate",
            Problem(
                file=file,
                column="fps",
                found=f"{info['fps']}",
                expected=f"the spec's control_rate_hz {spec.control_rate_hz}",
                remedy="set control_rate_hz to the rate it was recorded at, or resample the data set",
            ),
        )
    features: Features = info["features"]
    _check_vectors(file, features, spec, problems)
    _check_cameras(file, features, spec, problems)
    for name in INDEX_FEATURES:
        if name not in features or not is_numeric(features[name]):
            problems.add(
                "index feature",
                Problem(
                    file=file,
                    column=f"feature {name!r}",
                    found="no such feature",
                    expected="a column of every data set",
                    remedy="write the data set anew with LeRobot",
                ),
            )


def _check_vectors(file: str, features: Features, spec: EmbodimentSpec, problems: Problems) -> None:
    for key, dim, side in (
        (STATE_KEY, spec.state_dim, "state"),
        (ACTION_KEY, spec.action_dim, "action"),
        (EXECUTED_ACTION_KEY, spec.action_dim, "action"),
    ):
        feature = features.get(key)
        if feature is None and key == EXECUTED_ACTION_KEY:
            continue
        if feature is None or not is_numeric(feature):
            problems.add(
                "vector",
                Problem(
                    file=file,
                    column=f"feature {key!r}",
                    found=f"not there; it has {sorted(features)}",
                    expected=f"numbers of shape [{dim}]",
                    remedy=f"join the robot's columns into {key!r}, in the order of the spec's {side} groups",
                ),
            )
        elif list(feature["shape"]) != [dim]:
            problems.add(
                "vector",
                Problem(
                    file=file,
                    column=f"feature {key!r}",
                    found=f"shape {list(feature['shape'])}",
                    expected=f"[{dim}], the sum of the spec's {side} groups",
                    remedy=f"correct the dims of the spec's {side} groups, or the data set",
                ),
            )


def _check_cameras(file: str, features: Features, spec: EmbodimentSpec, problems: Problems) -> None:
    cameras = {camera_name(key): feature for key, feature in features.items() if is_camera(feature)}
    for camera in spec.cameras:
        expected = (camera.height, camera.width, 3)
        if camera.name not in cameras:
            problems.add(
                "camera",
                Problem(
                    file=file,
                    column=f"camera {camera.name!r}",
                    found=f"not there; it has {sorted(cameras)}",
                    expected=f"frames of {expected}",
                    remedy="rename the camera in the spec, or take it out",
                ),
            )
        elif frame_shape(cameras[camera.name]) != expected:
            problems.add(
                "camera",
                Problem(
                    file=file,
                    column=f"camera {camera.name!r}",
                    found=f"frames of {frame_shape(cameras[camera.name])}",
                    expected=f"{expected}, height, width and channels",
                    remedy="give the recorded height and width in the spec",
                ),
            )


def read_bounds(root: Path, info: Mapping[str, Any], problems: Problems) -> Bounds:
    """The smallest and largest numbers by the data set's own statistics, by feature; missing ones are a fault."""
    of_episodes = info["codebase_version"] == "v2.1" and not (root / STATS_PATH).is_file()
    path = root / (EPISODE_STATS_PATH if of_episodes else STATS_PATH)
    try:
        text = path.read_text()
        if of_episodes:
            parts = [json.loads(line)["stats"] for line in text.splitlines() if line.strip()]
        else:
            parts = [json.loads(text)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else f"not readable: {error}"
        problems.add(
            "statistics",
            Problem(
                file=str(path),
                found=found,
                expected="statistics of every feature",
                remedy=_MAKE_STATS,
            ),
        )
        return {}
    bounds: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for key in (STATE_KEY, ACTION_KEY):
        dim = info["features"].get(key, {}).get("shape", [0])
        found = _bounds_of(parts, key, list(dim))
        if isinstance(found, str):
            problems.add(
                "statistics",
                Problem(
                    file=str(path),
                    column=f"feature {key!r}",
                    found=found,
                    expected=f"finite {', '.join(_STATS_NAMES)} of shape {list(dim)}",
                    remedy=_MAKE_STATS,
                ),
            )
        else:
            bounds[key] = found
    return bounds


def _bounds_of(parts: Iterable[Any], key: str, shape: list[int]) -> tuple[np.ndarray, np.ndarray] | str:
    """Smallest and largest over all parts, or what is wrong with them."""
    lows, highs = [], []
    for part in parts:
        stats = part.get(key) if isinstance(part, Mapping) else None
        if not isinstance(stats, Mapping):
            return "no statistics of it"
        if missing := [name for name in _STATS_NAMES if name not in stats]:
            return f"statistics without {', '.join(missing)}"
        try:
            arrays = {name: np.asarray(stats[name], np.float64) for name in _STATS_NAMES}
        except (TypeError, ValueError):
            return "statistics that are not numbers"
        for name, values in arrays.items():
            if list(values.shape) != shape or not np.isfinite(values).all():
                return f"{name} of shape {list(values.shape)}{', not finite' * (not np.isfinite(values).all())}"
        lows.append(arrays["min"])
        highs.append(arrays["max"])
    return (np.min(lows, axis=0), np.max(highs, axis=0)) if lows else "no statistics of it"
