"""Reads LeRobot datasets of format v2.0, v2.1 and v3.0, as recorded. Owns no resizing and no statistics."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from training.data.lerobot.layout import (
    ANNOTATIONS_PATH,
    INFO_PATH,
    READABLE_VERSIONS,
    TASKS_PATH,
    DatasetError,
    is_camera,
    is_numeric,
    row_shape,
)

Frames = npt.NDArray[np.uint8]

_REQUIRED_INFO = ("codebase_version", "fps", "features", "data_path", "total_episodes", "total_frames")


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One recorded demonstration. `tasks` are its instructions; `row` is its metadata as stored."""

    index: int
    length: int
    tasks: tuple[str, ...]
    seed: int | None
    row: Mapping[str, Any] = field(repr=False)


class LeRobotReader:
    """A dataset directory: numeric features as arrays, camera frames on demand or in one sequential pass.

    Opening checks the version, the metadata and that every file an episode points to exists, and raises DatasetError or
    FileNotFoundError otherwise. `string` features are not read. Not thread-safe: it keeps the last table it opened.
    `annotations` are what our own data sets carry in a file, for a data set that carries none.
    """

    def __init__(self, root: Path | str, *, annotations: Mapping[str, Any] | None = None) -> None:
        self.root = Path(root)
        self.info = read_info(self.root)
        self.version: str = self.info["codebase_version"]
        self.fps = float(self.info["fps"])
        self.robot_type: str = self.info.get("robot_type") or "unknown"
        self.features: dict[str, dict[str, Any]] = self.info["features"]
        self.tasks = self._read_tasks()
        self.episodes = self._read_episodes()
        self.annotations: dict[str, Any] = dict(annotations or {})
        if annotations is None and (self.root / ANNOTATIONS_PATH).exists():
            self.annotations = json.loads((self.root / ANNOTATIONS_PATH).read_text())
        self._table: tuple[Path, pa.Table] | None = None
        self._check_files()

    @property
    def num_frames(self) -> int:
        return sum(episode.length for episode in self.episodes)

    @property
    def camera_keys(self) -> tuple[str, ...]:
        return tuple(key for key, feature in self.features.items() if is_camera(feature))

    @property
    def numeric_keys(self) -> tuple[str, ...]:
        return tuple(key for key, feature in self.features.items() if is_numeric(feature))

    def numeric(self, episode: Episode, keys: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Numeric features of one episode, [length, *shape] each in the declared dtype; shape (1,) gives [length]."""
        rows = self._rows(episode)
        return {key: self._column(rows, key, episode) for key in (self.numeric_keys if keys is None else keys)}

    def frames(self, episode: Episode, key: str, indices: Sequence[int]) -> Frames:
        """Camera frames of one episode by frame index, in the order asked: uint8 [len(indices), height, width, 3]."""
        wanted = sorted({int(index) for index in indices})
        if not wanted or wanted[0] < 0 or wanted[-1] >= episode.length:
            raise IndexError(f"frames {list(indices)} of episode {episode.index}, which has {episode.length}")
        found = dict(zip(wanted, self._decode(episode, key, wanted), strict=True))
        return np.stack([found[int(index)] for index in indices])

    def frames_all(self, episode: Episode, key: str) -> Frames:
        """Every camera frame of one episode: uint8 [length, height, width, 3]."""
        return np.stack(list(self._decode(episode, key, range(episode.length))))

    def iter_frames(self, key: str) -> Iterator[Frames]:
        """Every camera frame of the dataset in order, uint8 [height, width, 3]; decodes each video file once."""
        if self._camera(key)["dtype"] == "image":
            for episode in self.episodes:
                yield from self._decode(episode, key, range(episode.length))
            return
        from training.data.lerobot.video import decode_spans

        for path, spans in self._video_runs(key):
            yield from decode_spans(path, self.fps, spans)

    def _video_runs(self, key: str) -> Iterator[tuple[Path, list[tuple[float, int]]]]:
        """Consecutive episodes that lie in one file, in that file's order."""
        run: list[tuple[float, int]] = []
        for episode, following in pairwise([*self.episodes, None]):
            assert episode is not None
            path, start_s = self.video_file(episode, key)
            run.append((start_s, episode.length))
            next_path, next_start_s = self.video_file(following, key) if following else (None, 0.0)
            if next_path != path or next_start_s < start_s:
                yield path, run
                run = []

    def _decode(self, episode: Episode, key: str, indices: Sequence[int]) -> Iterator[Frames]:
        """Frames at strictly increasing indices."""
        from training.data.lerobot.video import decode_image, decode_spans

        if self._camera(key)["dtype"] == "image":
            cells = self._rows(episode).column(key)
            for index in indices:
                yield decode_image(self._image_bytes(cells[index].as_py(), episode, key))
            return
        path, start_s = self.video_file(episode, key)
        if isinstance(indices, range):
            spans = [(start_s, len(indices))]
        else:
            spans = [(start_s + index / self.fps, 1) for index in indices]
        yield from decode_spans(path, self.fps, spans)

    def _image_bytes(self, cell: Mapping[str, Any] | None, episode: Episode, key: str) -> bytes:
        if cell and cell.get("bytes"):
            return cell["bytes"]
        if cell and cell.get("path"):
            return (self.root / cell["path"]).read_bytes()
        raise DatasetError(f"{self.root}: an image of {key!r} in episode {episode.index} has neither bytes nor a path")

    def _camera(self, key: str) -> Mapping[str, Any]:
        if key not in self.camera_keys:
            raise KeyError(f"no camera feature {key!r} in {self.root}, it has {list(self.camera_keys)}")
        return self.features[key]

    def video_file(self, episode: Episode, key: str) -> tuple[Path, float]:
        """The file of an episode's video and the second its first frame is shown at."""
        template = self.info.get("video_path")
        if not template:
            raise DatasetError(f"{self.root / INFO_PATH}: feature {key!r} is video and video_path is not given")
        start_s = self._field(episode, f"videos/{key}/from_timestamp") if self._is_v3 else 0.0
        return self._path(template, episode, key), start_s

    def data_file(self, episode: Episode) -> Path:
        return self._path(self.info["data_path"], episode)

    @property
    def _is_v3(self) -> bool:
        return self.version.startswith("v3")

    def _field(self, episode: Episode, name: str) -> Any:
        value = episode.row.get(name)
        if value is None:
            raise DatasetError(f"{self.root}: metadata of episode {episode.index} lacks {name!r}")
        return value

    def _path(self, template: str, episode: Episode, key: str | None = None) -> Path:
        if self._is_v3:
            prefix = f"videos/{key}" if key else "data"
            places = {part: self._field(episode, f"{prefix}/{part}") for part in ("chunk_index", "file_index")}
        else:
            places = {
                "episode_index": episode.index,
                "episode_chunk": episode.index // int(self.info.get("chunks_size", 1000)),
            }
        return self.root / template.format(video_key=key, **places)

    def _rows(self, episode: Episode) -> pa.Table:
        path = self.data_file(episode)
        if self._table is None or self._table[0] != path:
            self._table = (path, pq.read_table(path, memory_map=True))
        table = self._table[1]
        start = self._field(episode, "dataset_from_index") - table.column("index")[0].as_py() if self._is_v3 else 0
        rows = table.slice(start, episode.length) if start >= 0 else table.slice(0, 0)
        if len(rows) != episode.length or (not self._is_v3 and len(table) != episode.length):
            raise DatasetError(
                f"{path}: {len(table)} rows do not hold episode {episode.index} of {episode.length} frames"
            )
        for key, expected in (("episode_index", episode.index), ("frame_index", np.arange(episode.length))):
            found = self._column(rows, key, episode)
            wrong = np.flatnonzero(found != expected)
            if len(wrong):
                frame = int(wrong[0])
                raise DatasetError(
                    f"{path}: rows of episode {episode.index} are not where the metadata says: its row {frame} has "
                    f"{key} {found[frame]}, expected {np.broadcast_to(expected, found.shape)[frame]}"
                )
        return rows

    def _column(self, rows: pa.Table, key: str, episode: Episode) -> np.ndarray:
        feature = self.features.get(key)
        if feature is None or not is_numeric(feature):
            raise KeyError(f"no numeric feature {key!r} in {self.root}, it has {list(self.numeric_keys)}")
        if key not in rows.column_names:
            raise DatasetError(f"{self.root}: data of episode {episode.index} has no column {key!r}")
        values = _flatten(rows.column(key))
        shape = (len(rows), *row_shape(feature))
        if len(values) != np.prod(shape) or values.null_count:
            raise DatasetError(
                f"{self.root}: {key!r} in episode {episode.index} holds {len(values)} values "
                f"({values.null_count} null), expected {' x '.join(map(str, shape))}"
            )
        return values.to_numpy(zero_copy_only=False).reshape(shape).astype(feature["dtype"], copy=False)

    def _read_tasks(self) -> dict[int, str]:
        if not self._is_v3:
            return {int(row["task_index"]): row["task"] for row in self._json_lines("meta/tasks.jsonl")}
        columns = pq.read_table(_existing(self.root / TASKS_PATH)).to_pydict()
        # The string is the pandas index of the table lerobot writes, so its column is named only when the index is.
        names = [name for name in ("task", "__index_level_0__") if name in columns]
        if not names or "task_index" not in columns:
            raise DatasetError(
                f"{self.root / TASKS_PATH}: columns {list(columns)}, expected task_index and the task string"
            )
        return dict(zip(columns["task_index"], columns[names[0]], strict=True))

    def _read_episodes(self) -> tuple[Episode, ...]:
        rows = self._episode_rows_v3() if self._is_v3 else self._json_lines("meta/episodes.jsonl")
        episodes = tuple(
            Episode(
                index=int(row["episode_index"]),
                length=int(row["length"]),
                tasks=tuple(row["tasks"]),
                seed=None if row.get("seed") is None else int(row["seed"]),
                row=row,
            )
            for row in sorted(rows, key=lambda row: row["episode_index"])
        )
        for name, found in (("total_episodes", len(episodes)), ("total_frames", sum(e.length for e in episodes))):
            if found != self.info[name]:
                raise DatasetError(
                    f"{self.root}: episode metadata adds up to {found}, info.json says {name} {self.info[name]}"
                )
        return episodes

    def _episode_rows_v3(self) -> list[dict[str, Any]]:
        paths = sorted((self.root / "meta/episodes").glob("*/*.parquet"))
        if not paths:
            raise FileNotFoundError(f"{self.root}: no meta/episodes/chunk-*/file-*.parquet")
        rows: list[dict[str, Any]] = []
        for path in paths:
            # Per-episode statistics are most of the file and none of the reader's business.
            columns = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
            rows += pq.read_table(path, columns=columns).to_pylist()
        return rows

    def _json_lines(self, path: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in _existing(self.root / path).read_text().splitlines() if line.strip()]

    def _check_files(self) -> None:
        video_keys = [key for key in self.camera_keys if self.features[key]["dtype"] == "video"]
        paths = {self.data_file(episode) for episode in self.episodes}
        paths |= {self.video_file(episode, key)[0] for episode in self.episodes for key in video_keys}
        missing = [str(path) for path in sorted(paths) if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"{len(missing)} files of the data set are missing: {', '.join(missing[:8])}")


def read_info(root: Path) -> dict[str, Any]:
    """info.json. Raises DatasetError for a format that is not read, FileNotFoundError when it is missing."""
    path = _existing(root / INFO_PATH)
    info = json.loads(path.read_text())
    storage = info.get("storage_format", "lerobot")
    if storage != "lerobot":
        raise DatasetError(f"{path}: storage_format is {storage!r}, only the parquet and mp4 layout is read")
    missing = [name for name in _REQUIRED_INFO if name not in info]
    if missing:
        raise DatasetError(f"{path}: lacks {missing}")
    if info["codebase_version"] not in READABLE_VERSIONS:
        raise DatasetError(
            f"{path}: codebase_version is {info['codebase_version']!r}, expected one of {', '.join(READABLE_VERSIONS)}"
        )
    return info


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"dataset file {path} is missing")
    return path


def _flatten(column: pa.ChunkedArray) -> pa.Array:
    """A scalar, list, fixed-size-list or nested column as one flat array."""
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks)
    while True:
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        if not (
            pa.types.is_list(values.type)
            or pa.types.is_large_list(values.type)
            or pa.types.is_fixed_size_list(values.type)
        ):
            return values
        values = values.flatten()
