"""Faults of info.json itself: its format, and fields that are not what every reader takes them for. Knows no spec."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from training.data.lerobot.embodiment import ACTION_KEY, STATE_KEY
from training.data.lerobot.layout import INDEX_FEATURES, INFO_PATH, DatasetError, is_camera, is_numeric
from training.data.lerobot.reader import read_info
from training.data.pack import EXECUTED_ACTION_KEY
from training.own_data.problems import Problem, Problems

_READ_FEATURES = (STATE_KEY, ACTION_KEY, EXECUTED_ACTION_KEY, *INDEX_FEATURES)
_V3_PLACES = {"chunk_index": 0, "file_index": 0}
_V2_PLACES = {"episode_chunk": 0, "episode_index": 0}
_COMPLETE = "complete the feature in info.json"
_SHOWN = 80  # characters of a value that is refused

Fault = tuple[str, str]  # what is expected, the remedy


def read_checked_info(root: Path, problems: Problems) -> dict[str, Any] | None:
    """info.json, or None when its format is not one to read any further."""
    file = str(root / INFO_PATH)
    try:
        info = read_info(root)
    except FileNotFoundError:
        problems.add(
            "info",
            Problem(
                file=file,
                found="no such file",
                expected="a LeRobot data set of format v2.0, v2.1 or v3.0",
                remedy="name the directory that holds meta/, data/ and videos/",
            ),
        )
        return None
    except DatasetError as error:
        problems.add(
            "info",
            Problem(
                file=file,
                found=str(error).removeprefix(f"{file}: "),
                expected="a format that is read here",
                remedy="convert it with LeRobot to v3.0 in parquet and mp4",
            ),
        )
        return None
    except (ValueError, TypeError, AttributeError) as error:
        problems.add(
            "info",
            Problem(
                file=file,
                found=f"not readable: {error}",
                expected="JSON with an object",
                remedy="restore the file",
            ),
        )
        return None
    faults = [*_faults_of_fields(info), *_faults_of_features(info["features"])]
    for column, value, (expected, remedy) in faults:
        found = json.dumps(value)
        found = found if len(found) <= _SHOWN else f"{found[:_SHOWN]}..."
        problems.add("field", Problem(file=file, column=column, found=found, expected=expected, remedy=remedy))
    return None if faults else info


def _faults_of_fields(info: Mapping[str, Any]) -> Iterator[tuple[str, Any, Fault]]:
    fps = info["fps"]
    if not _is_number(fps) or not 0 < fps <= sys.float_info.max:
        yield "fps", fps, ("a finite number above 0", "write the rate that it was recorded at, in frames a second")
    for name in ("total_episodes", "total_frames"):
        if not _is_count(info[name]):
            yield name, info[name], ("a whole number", "write what the episodes listed in meta/ add up to")
    if not isinstance(info.get("robot_type"), str | None):
        yield "robot_type", info["robot_type"], ("the robot's name, or null", "write the name")
    is_v3 = info["codebase_version"].startswith("v3")
    if not is_v3 and not _is_count(info.get("chunks_size", 1), least=1):
        yield "chunks_size", info["chunks_size"], (
            "a whole number above 0",
            "write how many episodes each directory of data/ has room for; LeRobot's own number is 1000",
        )  # fmt: skip
    features = info["features"]
    has_video = isinstance(features, Mapping) and any(
        isinstance(feature, Mapping) and feature.get("dtype") == "video" for feature in features.values()
    )
    for name in ("data_path", "video_path") if has_video else ("data_path",):
        places = _V3_PLACES if is_v3 else _V2_PLACES
        if not _is_template(info.get(name), places):
            yield name, info.get(name), (
                f"a path with the places {', '.join(f'{{{place}}}' for place in places)}",
                f"write where the files of {name.removesuffix('_path')} lie, as LeRobot does",
            )  # fmt: skip


def _faults_of_features(features: Any) -> Iterator[tuple[str, Any, Fault]]:
    if not isinstance(features, Mapping):
        yield "features", features, ("an object with every feature", "restore the file")
        return
    for name, feature in features.items():
        fault = _fault_of_feature(name, feature)
        if fault is not None:
            yield f"feature {name!r}", feature, fault


def _fault_of_feature(name: str, feature: Any) -> Fault | None:
    if not isinstance(feature, Mapping) or not isinstance(feature.get("dtype"), str) or not feature.get("shape"):
        return "dtype and shape, three dimensions for a camera", _COMPLETE
    shape = feature["shape"]
    if not isinstance(shape, list) or not all(_is_count(dim, least=1) for dim in shape):
        return "a shape of whole numbers above 0", _COMPLETE
    if is_camera(feature) and len(shape) != 3:
        return "dtype and shape, three dimensions for a camera", _COMPLETE
    if name in _READ_FEATURES and is_numeric(feature) and not _is_dtype_of_numbers(feature["dtype"]):
        return "a dtype of numbers, such as float32", "write the dtype that its column has in data/"
    if not isinstance(feature.get("names"), list | Mapping | None):
        return "names in a list or an object, or null", "name every dimension, or write null"
    if is_camera(feature) and not all(isinstance(feature.get(key) or {}, Mapping) for key in ("info", "video_info")):
        return "an object as its info", "take info out, or let LeRobot write it"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any, *, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_template(value: Any, places: Mapping[str, int]) -> bool:
    """A path may leave places out: one file may hold every episode."""
    if not isinstance(value, str):
        return False
    try:
        return bool(value.format(video_key="", **places))
    except (LookupError, ValueError, TypeError, AttributeError):
        return False


def _is_dtype_of_numbers(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "biuf"
    except (TypeError, ValueError, SyntaxError):
        return False
