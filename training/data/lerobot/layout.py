"""What LeRobot's formats fix: file templates, the columns every dataset has, how features are typed. No files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

DATA_TEMPLATE = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_TEMPLATE = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_TEMPLATE = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
TASKS_PATH = "meta/tasks.parquet"
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
# Ours, beside LeRobot's own files, which it ignores: what LeRobot's features cannot say, such as the EmbodimentSpec.
ANNOTATIONS_PATH = "meta/premotor.json"

READABLE_VERSIONS = ("v2.0", "v2.1", "v3.0")
WRITTEN_VERSION = "v3.0"

INDEX_FEATURES: Mapping[str, Mapping[str, Any]] = {
    name: {"dtype": dtype, "shape": [1], "names": None}
    for name, dtype in (
        ("timestamp", "float32"),
        ("frame_index", "int64"),
        ("episode_index", "int64"),
        ("index", "int64"),
        ("task_index", "int64"),
    )
}
_IMAGE_DTYPES = ("video", "image")

Features = Mapping[str, Mapping[str, Any]]


class DatasetError(ValueError):
    """A dataset is not what its format promises; the message names the file or field, what came, what was expected."""


def is_camera(feature: Mapping[str, Any]) -> bool:
    return feature["dtype"] in _IMAGE_DTYPES


def is_numeric(feature: Mapping[str, Any]) -> bool:
    return feature["dtype"] != "string" and not is_camera(feature)


def row_shape(feature: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of one frame's value as an array; a feature of shape (1,) is a scalar in the table."""
    shape = tuple(int(dim) for dim in feature["shape"])
    return () if shape == (1,) else shape


def frame_shape(feature: Mapping[str, Any]) -> tuple[int, int, int]:
    """Height, width and channels of a camera feature as decoded; some data sets declare channels first."""
    first, second, third = (int(dim) for dim in feature["shape"])
    return (second, third, first) if first <= 4 < third else (first, second, third)


def element_names(feature: Mapping[str, Any]) -> tuple[str, ...] | None:
    """A feature's names as one flat tuple: `names` may be null, a list, or a dict such as {"motors": [...]}."""
    names = feature.get("names")
    if names is None:
        return None
    if isinstance(names, Mapping):
        return tuple(str(name) for part in names.values() for name in (part if isinstance(part, list) else [part]))
    return tuple(str(name) for name in names)


def arrow_type(feature: Mapping[str, Any]) -> pa.DataType:
    """The parquet column type lerobot 0.4 writes for a numeric feature: nested fixed-size lists, or a scalar."""
    column_type = pa.from_numpy_dtype(np.dtype(feature["dtype"]))
    for dim in reversed(row_shape(feature)):
        column_type = pa.list_(column_type, dim)
    return column_type
