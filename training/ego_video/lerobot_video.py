"""Cameras of LeRobot data sets as clips: an episode's view is a clip, and its states and actions are not read.

Our own recordings are such data sets, and so are registrations of a run. Does not own the format: training/data/lerobot
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from training.data.lerobot.embodiment import camera_key, camera_name
from training.data.lerobot.layout import DatasetError
from training.data.lerobot.reader import Episode, LeRobotReader
from training.ego_video.sources import FoundClip, PictureForm, ReadClip, UnusableClipError, masks_of, refused

# Bounds what is held at a camera's own size; a run of frames costs one seek.
_FRAMES_AT_ONCE = 64
_MASKS = "observation.masks."


def lerobot_clips(root: Path, cameras: Sequence[str] | None = None, body: str = "") -> list[FoundClip]:
    """Every episode seen by every camera, or by those named. A data set that does not open is one unusable clip.

    A camera's mask channel is the feature observation.masks.NAME, which is no camera. `body` is the data set's own
    where it is empty. Raises DatasetError for a camera that the data set does not have.
    """
    from training.data.registration import open_reader

    source = f"lerobot:{root.name}"
    try:
        reader = open_reader(root)
    except (ValueError, pa.ArrowException, OSError, KeyError) as error:
        return [refused(root.name, source, f"the data set does not open: {error}")]
    seen = [key for key in reader.camera_keys if not key.startswith(_MASKS)]
    keys = seen if cameras is None else [camera_key(reader, name) for name in cameras]
    annotated = reader.annotations.get("embodiment") or {}
    body = body or annotated.get("name") or ("" if reader.robot_type == "unknown" else reader.robot_type)
    return [
        FoundClip(
            name=f"{root.name}/{camera_name(key)}/{episode.index:06d}",
            source=f"{source}/{camera_name(key)}",
            body=body,
            read=partial(_read, reader, episode, key),
        )
        for key in keys
        for episode in reader.episodes
    ]


def _read(reader: LeRobotReader, episode: Episode, key: str, form: PictureForm) -> ReadClip:
    from training.data.pack import episode_instruction
    from training.ego_video.video_file import kept_frames, regular_rate_hz

    try:
        times_s = reader.numeric(episode, ["timestamp"])["timestamp"].astype(np.float64)
        rate_hz = regular_rate_hz(times_s)
        if abs(rate_hz / reader.fps - 1) > 0.05:
            raise UnusableClipError(f"its frames come at {rate_hz:.2f} Hz, the data set says {reader.fps:g}")
        kept = kept_frames(episode.length, reader.fps, form.max_rate_hz)
        frames, channel = _squares(reader, episode, key, kept, form.image_size), _MASKS + camera_name(key)
        masks = None
        if form.with_masks and channel in reader.camera_keys:
            masks = masks_of(_squares(reader, episode, channel, kept, form.image_size))
        instruction = episode_instruction(reader, episode)
    except (DatasetError, pa.ArrowException, OSError, KeyError) as error:
        raise UnusableClipError(str(error)) from None
    return ReadClip(frames=frames, rate_hz=reader.fps / kept.step, instruction=instruction, masks=masks)


def _squares(reader: LeRobotReader, episode: Episode, key: str, kept: range, size: int) -> np.ndarray:
    import av

    from training.ego_video.video_file import upright_square

    squares = []
    for start in range(0, len(kept), _FRAMES_AT_ONCE):
        for frame in reader.frames(episode, key, kept[start : start + _FRAMES_AT_ONCE]):
            squares.append(upright_square(av.VideoFrame.from_ndarray(frame, format="rgb24"), size))
    return np.stack(squares)
