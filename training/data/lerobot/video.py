"""Video and still images through PyAV: encode a run of frames, decode spans of a file. Knows nothing of datasets.

PyAV is optional for training from packs, so this module is imported only where pixels are decoded or encoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from training.data.lerobot.layout import DatasetError

Frames = npt.NDArray[np.uint8]

# A key frame every second frame keeps single-frame reads cheap; without B-frames, frames come out as they go in.
_H264_OPTIONS = {"crf": "18", "g": "2", "bf": "0", "preset": "veryfast"}


class VideoEncoder:
    """One growing H.264 file. Frame k of the file is shown at k / fps seconds."""

    def __init__(self, path: Path, *, fps: float, height: int, width: int) -> None:
        if height % 2 or width % 2:
            raise DatasetError(f"{path.name}: frames are {height} x {width}, yuv420p video needs even numbers")
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(100_000), options=dict(_H264_OPTIONS)
        )
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        self._stream.codec_context.thread_count = 1

    def append(self, frames: Frames) -> None:
        """frames: uint8 [n, height, width, 3], RGB."""
        for frame in frames:
            self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()

    def abort(self) -> None:
        """Let go of the file without finishing it."""
        self._container.close()


def decode_spans(path: Path, fps: float, spans: Sequence[tuple[float, int]]) -> Iterator[Frames]:
    """Every frame of each (start in seconds, number of frames), in one pass over the file; spans lie in order.

    Yields uint8 [height, width, 3]. Raises DatasetError when the file has no video, lacks a frame of a span, does not
    decode a wanted frame whole, or says that it is to be turned: a data set's features give the shape as it is stored.
    """
    try:
        yield from _decode_spans(path, fps, spans)
    except FFmpegError as error:
        raise DatasetError(f"{path}: does not decode: {error}") from None


def _decode_spans(path: Path, fps: float, spans: Sequence[tuple[float, int]]) -> Iterator[Frames]:
    if not spans:
        return
    with av.open(str(path)) as container:
        stream = _video(container, path)
        stream.thread_type = "AUTO"
        time_base = stream.time_base
        if time_base is None:
            raise DatasetError(f"{path}: the video stream has no time base")
        first_s = spans[0][0] - 0.5 / fps
        container.seek(max(int(first_s / time_base), 0), stream=stream, backward=True)
        frames = container.decode(stream)
        for start_s, length in spans:
            wanted = 0
            while wanted < length:
                frame = next(frames, None)
                if frame is None or frame.time is None:
                    raise DatasetError(
                        f"{path}: ends before frame {wanted} of the {length} starting at {start_s:.3f} s"
                    )
                found = round((frame.time - start_s) * fps)
                if found < wanted:
                    continue
                if found > wanted:
                    raise DatasetError(
                        f"{path}: no frame at {start_s + wanted / fps:.3f} s, next is at {frame.time:.3f} s"
                    )
                # What a decoder cannot read it paints over, with what was there before.
                if frame.is_corrupt:
                    raise DatasetError(f"{path}: damaged: frame {wanted} of the {length} starting at {start_s:.3f} s")
                if frame.rotation:
                    raise DatasetError(f"{path}: turned by {frame.rotation} degrees, a data set's pictures are not")
                yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
                wanted += 1


def frame_times_s(path: Path) -> npt.NDArray[np.float64]:
    """When each frame of a file is shown, in order, read from its packets without decoding one.

    Raises DatasetError for a file that is no video.
    """
    try:
        with av.open(str(path)) as container:
            stream = _video(container, path)
            if stream.time_base is None:
                raise DatasetError(f"{path}: the video stream has no time base")
            ticks = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
    except FFmpegError as error:
        raise DatasetError(f"{path}: {error}") from None
    return np.sort(np.array(ticks, np.float64)) * float(stream.time_base)


def _video(container: InputContainer, path: Path) -> VideoStream:
    if not container.streams.video:
        raise DatasetError(f"{path}: it has no video")
    return container.streams.video[0]


def decode_image(encoded: bytes) -> Frames:
    """A PNG or JPEG file's bytes -> uint8 [height, width, 3], RGB. Raises DatasetError when they are not one."""
    try:
        with av.open(io.BytesIO(encoded), mode="r") as container:
            for frame in container.decode(video=0):
                return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    except FFmpegError as error:
        raise DatasetError(f"a picture of {len(encoded)} bytes does not decode: {error}") from None
    raise DatasetError(f"a picture of {len(encoded)} bytes holds none")
