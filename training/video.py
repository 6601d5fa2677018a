"""Videos a person can open: a task's episodes one after another, its cameras side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.simulation.task import Frame

_SCALE = 3
_BORDER = 6
_SOLVED, _FAILED = (40, 170, 80), (200, 50, 50)


class EpisodeVideo:
    """H.264 in MP4, written beside and renamed on close. A green border marks a solved episode's last second."""

    def __init__(self, path: Path, rate_hz: float) -> None:
        import av

        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._staged = path, path.with_name(path.name + ".tmp")
        self._container = av.open(str(self._staged), "w", format="mp4")
        self._stream = None
        self._rate = max(1, round(rate_hz))

    def add_frame(self, frame: Frame) -> None:
        self._write(_picture(frame))

    def end_episode(self, last: Frame, *, succeeded: bool) -> None:
        picture = _picture(last)
        colour = _SOLVED if succeeded else _FAILED
        for rows in (slice(None, _BORDER), slice(-_BORDER, None)):
            picture[rows] = colour
            picture[:, rows] = colour
        for _ in range(self._rate):
            self._write(picture)

    def close(self) -> None:
        """Without a frame there is no file: a video that cannot be opened helps nobody."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()
        if self._stream is not None:
            self._staged.replace(self._path)

    def discard(self) -> None:
        """Leave nothing behind: half a film is none."""
        self._container.close()
        self._staged.unlink(missing_ok=True)

    def _write(self, picture: npt.NDArray[np.uint8]) -> None:
        import av

        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate, options={"crf": "23"})
            self._stream.height, self._stream.width = picture.shape[:2]
            self._stream.pix_fmt = "yuv420p"
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))


def _picture(frame: Frame) -> npt.NDArray[np.uint8]:
    views: Sequence[npt.NDArray[np.uint8]] = list(frame.images.values())
    return np.ascontiguousarray(np.concatenate(views, axis=1).repeat(_SCALE, axis=0).repeat(_SCALE, axis=1))
