"""Writes LeRobot v3.0 datasets: one data file, one H.264 file per camera, metadata and statistics as in lerobot 0.4.

Files do not roll over at 100/200 MB: every episode says chunk 0, file 0, which any v3 reader follows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from training.data.lerobot.layout import (
    ANNOTATIONS_PATH,
    DATA_TEMPLATE,
    EPISODES_TEMPLATE,
    INDEX_FEATURES,
    INFO_PATH,
    STATS_PATH,
    TASKS_PATH,
    VIDEO_TEMPLATE,
    WRITTEN_VERSION,
    DatasetError,
    Features,
    arrow_type,
    row_shape,
)
from training.data.lerobot.stats import FeatureStats, ImageStats, NumericStats

if TYPE_CHECKING:
    from training.data.lerobot.video import VideoEncoder

_FIRST = {"chunk_index": 0, "file_index": 0}


class LeRobotWriter:
    """Appends episodes to `<root>.tmp`, which becomes `root` on `close`; an exception inside `with` leaves nothing.

    `features` are LeRobot's: name -> {"dtype", "shape", "names"}, dtype "video" for uint8 [height, width, 3] frames;
    the index columns are added. `annotations` is kept beside them, for `LeRobotReader.annotations`.
    Raises FileExistsError when `root` exists, DatasetError for an episode that does not fit the features.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        fps: float,
        features: Features,
        robot_type: str,
        annotations: Mapping[str, Any] | None = None,
    ) -> None:
        self.root = Path(root)
        if self.root.exists():
            raise FileExistsError(f"dataset {self.root} exists already")
        for key, feature in features.items():
            if key in INDEX_FEATURES or feature["dtype"] in ("image", "string"):
                raise DatasetError(f"feature {key!r} of dtype {feature['dtype']!r} cannot be written")
        self.fps, self.robot_type, self.annotations = fps, robot_type, annotations
        self.features = {key: {**feature, "shape": list(feature["shape"])} for key, feature in features.items()}
        self.features |= {key: dict(feature) for key, feature in INDEX_FEATURES.items()}
        self._directory = self.root.with_name(self.root.name + ".tmp")
        if self._directory.exists():
            shutil.rmtree(self._directory)
        self._schema = pa.schema(
            [(key, arrow_type(feature)) for key, feature in self.features.items() if feature["dtype"] != "video"]
        )
        self._data = pq.ParquetWriter(self._create(DATA_TEMPLATE.format(**_FIRST)), self._schema, compression="snappy")
        self._videos: dict[str, VideoEncoder] = {}
        self._episodes: list[dict[str, Any]] = []
        self._seeds: list[int | None] = []
        self._task_index: dict[str, int] = {}
        self._num_frames = 0
        self._stats = {key: self._new_stats(key) for key in self.features}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._abort()

    def add_episode(self, arrays: Mapping[str, np.ndarray], task: str, *, seed: int | None = None) -> int:
        """Append one episode, returning its index. arrays: feature -> [length, *shape], the same length for all.

        `task` is the instruction. `seed` is kept in the episode's metadata and read back as `Episode.seed`.
        """
        if not task:
            raise DatasetError("an episode's task is empty")
        length = len(next(iter(arrays.values())))
        columns = self._checked(arrays, length)
        index, start = len(self._episodes), self._num_frames
        frame_index = np.arange(length)
        columns |= {
            "timestamp": (frame_index / self.fps).astype(np.float32),
            "frame_index": frame_index,
            "episode_index": np.full(length, index),
            "index": start + frame_index,
            "task_index": np.full(length, self._task_index.setdefault(task, len(self._task_index))),
        }
        row: dict[str, Any] = {"episode_index": index, "tasks": [task], "length": length}
        row |= {f"data/{part}": number for part, number in _FIRST.items()}
        row |= {"dataset_from_index": start, "dataset_to_index": start + length}
        for key, values in columns.items():
            if self.features[key]["dtype"] == "video":
                self._encoder(key).append(values)
                row |= {f"videos/{key}/{part}": number for part, number in _FIRST.items()}
                row |= {
                    f"videos/{key}/from_timestamp": start / self.fps,
                    f"videos/{key}/to_timestamp": (start + length) / self.fps,
                }
        self._data.write_table(
            pa.Table.from_arrays([_arrow_column(columns[f.name], f.type) for f in self._schema], schema=self._schema)
        )
        for key, values in columns.items():
            episode_stats = self._new_stats(key)
            episode_stats.add(values)
            self._stats[key].add(values)
            row |= {f"stats/{key}/{name}": value for name, value in episode_stats.to_json().items()}
        row |= {f"meta/episodes/{part}": number for part, number in _FIRST.items()}
        self._episodes.append(row)
        self._seeds.append(seed)
        self._num_frames += length
        return index

    def side_file(self, path: str) -> Path:
        """Where to write a file of one's own now, so that it becomes `root / path` with the rest."""
        return self._create(path)

    def close(self) -> None:
        """Finish every file and give the dataset its name. Raises DatasetError when it holds no episode."""
        if not self._episodes:
            self._abort()
            raise DatasetError(f"dataset {self.root} would hold no episode")
        self._data.close()
        for encoder in self._videos.values():
            encoder.close()
        episodes = pa.Table.from_pylist(self._episodes).append_column("seed", pa.array(self._seeds, pa.int64()))
        pq.write_table(episodes, self._create(EPISODES_TEMPLATE.format(**_FIRST)))
        _write_tasks(self._create(TASKS_PATH), self._task_index)
        self._write_json(STATS_PATH, {key: stats.to_json() for key, stats in self._stats.items()})
        self._write_json(INFO_PATH, self._info())
        if self.annotations is not None:
            self._write_json(ANNOTATIONS_PATH, self.annotations)
        self._directory.rename(self.root)

    def _abort(self) -> None:
        self._data.close()
        for encoder in self._videos.values():
            encoder.abort()
        shutil.rmtree(self._directory)

    def _checked(self, arrays: Mapping[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
        expected = set(self.features) - set(INDEX_FEATURES)
        if set(arrays) != expected:
            raise DatasetError(f"episode has features {sorted(arrays)}, the dataset has {sorted(expected)}")
        columns: dict[str, np.ndarray] = {}
        for key, values in arrays.items():
            feature, values = self.features[key], np.asarray(values)
            dtype = np.dtype(np.uint8 if feature["dtype"] == "video" else feature["dtype"])
            shape = (length, *row_shape(feature))
            if length < 1 or values.shape not in (shape, (length, *feature["shape"])):
                raise DatasetError(
                    f"feature {key!r} has shape {values.shape}, expected {shape} with at least one frame"
                )
            if not np.can_cast(values.dtype, dtype, "same_kind"):
                raise DatasetError(f"feature {key!r} is {values.dtype}, expected {dtype}")
            if not np.isfinite(values).all():
                raise DatasetError(
                    f"feature {key!r} is not finite at frame {int(np.argwhere(~np.isfinite(values))[0][0])}"
                )
            columns[key] = np.ascontiguousarray(values, dtype).reshape(shape)
        return columns

    def _encoder(self, key: str) -> VideoEncoder:
        if key not in self._videos:
            from training.data.lerobot.video import VideoEncoder

            height, width, _ = self.features[key]["shape"]
            path = self._create(VIDEO_TEMPLATE.format(video_key=key, **_FIRST))
            self._videos[key] = VideoEncoder(path, fps=self.fps, height=height, width=width)
        return self._videos[key]

    def _new_stats(self, key: str) -> FeatureStats:
        return ImageStats() if self.features[key]["dtype"] == "video" else NumericStats()

    def _info(self) -> dict[str, Any]:
        fps = int(self.fps) if float(self.fps).is_integer() else self.fps
        features = {key: dict(feature) for key, feature in self.features.items()}
        for key in self._videos:
            height, width, channels = features[key]["shape"]
            features[key]["info"] = {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": fps,
                "video.channels": channels,
                "has_audio": False,
            }
        return {
            "codebase_version": WRITTEN_VERSION,
            "robot_type": self.robot_type,
            "total_episodes": len(self._episodes),
            "total_frames": self._num_frames,
            "total_tasks": len(self._task_index),
            "chunks_size": 1000,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": DATA_TEMPLATE,
            "video_path": VIDEO_TEMPLATE if self._videos else None,
            "features": features,
        }

    def _create(self, path: str) -> Path:
        place = self._directory / path
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def _write_json(self, path: str, content: Mapping[str, Any]) -> None:
        self._create(path).write_text(json.dumps(content, indent=4) + "\n")


def _arrow_column(values: np.ndarray, column_type: pa.DataType) -> pa.Array:
    dims: list[int] = []
    while pa.types.is_fixed_size_list(column_type):
        dims.append(column_type.list_size)
        column_type = column_type.value_type
    column = pa.array(values.reshape(-1), column_type)
    for dim in reversed(dims):
        column = pa.FixedSizeListArray.from_arrays(column, dim)
    return column


def _write_tasks(path: Path, task_index: Mapping[str, int]) -> None:
    """The table a pandas DataFrame indexed by the task string would leave: lerobot looks tasks up by that index."""
    table = pa.table(
        {
            "task_index": pa.array(task_index.values(), pa.int64()),
            "__index_level_0__": pa.array(task_index.keys(), pa.string()),
        }
    )
    pandas = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [
            {
                "name": None,
                "field_name": None,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": {"encoding": "UTF-8"},
            }
        ],
        "columns": [
            {
                "name": "task_index",
                "field_name": "task_index",
                "pandas_type": "int64",
                "numpy_type": "int64",
                "metadata": None,
            },
            {
                "name": None,
                "field_name": "__index_level_0__",
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": None,
            },
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)
