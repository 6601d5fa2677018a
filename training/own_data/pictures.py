"""Faults in the cameras: a video shorter or longer than its episode, pictures that do not decode or of another size.

Every picture's time is compared. Only the first and the last of an episode are decoded; packing decodes them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from policy.embodiment import EmbodimentSpec
from training.data.lerobot.embodiment import camera_key
from training.data.lerobot.layout import DatasetError, frame_shape
from training.data.lerobot.reader import Episode, LeRobotReader
from training.data.lerobot.video import frame_times_s
from training.own_data.problems import Problem, Problems

_TAKE_OUT = "copy or record the file anew, or take those episodes out of the data set"


def check_pictures(reader: LeRobotReader, spec: EmbodimentSpec, problems: Problems) -> None:
    for key in _keys(reader, spec):
        is_video = reader.features[key]["dtype"] == "video"
        times: tuple[Path, np.ndarray | None] | None = None
        for episode in reader.episodes:
            if is_video:
                path, start_s = reader.video_file(episode, key)
                if times is None or times[0] != path:
                    times = path, _times(path, key, problems)
                if times[1] is None or not _check_times(reader, episode, key, times[1] - start_s, problems):
                    continue
            _check_decoded(reader, episode, key, problems)


def _keys(reader: LeRobotReader, spec: EmbodimentSpec) -> Iterator[str]:
    """Cameras that the metadata already refused are left out."""
    for camera in spec.cameras:
        try:
            key = camera_key(reader, camera.name)
        except DatasetError:
            continue
        if frame_shape(reader.features[key]) == (camera.height, camera.width, 3):
            yield key


def _times(path: Path, key: str, problems: Problems) -> np.ndarray | None:
    try:
        return frame_times_s(path)
    except (DatasetError, OSError, ValueError, IndexError) as error:
        problems.add(
            "video",
            Problem(
                file=str(path),
                column=key,
                found=f"not readable: {error}",
                expected="a video that decodes",
                remedy=_TAKE_OUT,
            ),
        )
        return None


def _check_times(reader: LeRobotReader, episode: Episode, key: str, times_s: np.ndarray, problems: Problems) -> bool:
    """`times_s` are those of a whole file, from the episode's first frame on."""
    path = str(reader.video_file(episode, key)[0])
    ends = np.array([-0.5, episode.length]) / reader.fps
    first, stop = np.searchsorted(times_s, ends)
    missing = np.setdiff1d(np.arange(episode.length), np.round(times_s[first:stop] * reader.fps))
    if missing.size:
        problems.add(
            "frames",
            Problem(
                file=path,
                column=key,
                place=f"episode {episode.index} frame {int(missing[0])}",
                found=f"{episode.length - missing.size} frames of video",
                expected=f"{episode.length}, one for each row",
                remedy=_TAKE_OUT,
            ),
        )
        return False
    held = _frames_held(reader, episode, key, len(times_s))
    if held > episode.length:
        problems.add(
            "frames",
            Problem(
                file=path,
                column=key,
                place=f"episode {episode.index}",
                found=f"{held} frames of video",
                expected=f"{episode.length}, one for each row",
                remedy="a discarded take is probably part of the video: take the episode out",
            ),
        )
    return held <= episode.length


def _frames_held(reader: LeRobotReader, episode: Episode, key: str, num_in_file: int) -> int:
    """A v2 file is one episode's; in v3 the metadata says until when it runs, if it does."""
    if not reader.version.startswith("v3"):
        return num_in_file
    start_s, end_s = (episode.row.get(f"videos/{key}/{name}_timestamp") for name in ("from", "to"))
    held = episode.length if start_s is None or end_s is None else round((end_s - start_s) * reader.fps)
    # Ends that came from a container's duration may lie a frame late.
    return episode.length if held == episode.length + 1 else held


def _check_decoded(reader: LeRobotReader, episode: Episode, key: str, problems: Problems) -> None:
    is_video = reader.features[key]["dtype"] == "video"
    file = str(reader.video_file(episode, key)[0] if is_video else reader.data_file(episode))
    for frame in (0, episode.length - 1):
        place = f"episode {episode.index} frame {frame}"
        try:
            picture = reader.frames(episode, key, [frame])[0]
        except (DatasetError, OSError, ValueError, IndexError, StopIteration) as error:
            problems.add(
                "decode",
                Problem(
                    file=file,
                    column=key,
                    place=place,
                    found=f"not decodable: {error}",
                    expected="a picture",
                    remedy=_TAKE_OUT,
                ),
            )
            return
        if picture.shape != frame_shape(reader.features[key]):
            problems.add(
                "size",
                Problem(
                    file=file,
                    column=key,
                    place=place,
                    found=f"a picture of {picture.shape}",
                    expected=f"{frame_shape(reader.features[key])}, as info.json says",
                    remedy="correct the shape in info.json and in the spec, or re-encode the video",
                ),
            )
            return
