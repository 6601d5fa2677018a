"""One video file as upright squares at a constant rate, and what makes a file unusable. Through PyAV.

Owns the checks of a file: that it decodes whole, that its frames are evenly spaced, that it can be turned upright. A
frame is brought to the size by area averaging, its shorter side filling the square, and then cropped at the centre.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from training.ego_video.pack import Frames
from training.ego_video.sources import MASK_ENDING, PictureForm, ReadClip, UnusableClipError, masks_of

# Of the time between two frames: more than that is another rate, less is a clock that rounds.
_MAX_IRREGULARITY = 0.05
# A rate this little above the one asked for is that rate.
_RATE_TOLERANCE = 1e-3


def read_video(path: Path, form: PictureForm) -> ReadClip:
    """Raises UnusableClipError for a file that is damaged, cut short, of a variable rate or turned by an odd angle."""
    try:
        rate_hz, num_frames = _rate_and_length(path)
        kept = kept_frames(num_frames, rate_hz, form.max_rate_hz)
        frames = list(_decode(path, kept, num_frames, form.image_size))
    except FFmpegError as error:
        raise UnusableClipError(f"does not decode: {error.strerror}") from None
    return ReadClip(frames=np.stack(frames), rate_hz=rate_hz / kept.step)


def read_with_masks(path: Path, form: PictureForm) -> ReadClip:
    """As read_video; where masks are wanted and NAME.mask.mp4 lies beside NAME.mp4, with those of it.

    Raises UnusableClipError too when that has other frames.
    """
    clip, beside = read_video(path, form), path.with_name(path.stem + MASK_ENDING)
    if not (form.with_masks and beside.is_file()):
        return clip
    try:
        masks = read_video(beside, form)
    except UnusableClipError as error:
        raise UnusableClipError(f"{beside.name} beside it: {error}") from None
    if len(masks.frames) != len(clip.frames) or abs(masks.rate_hz / clip.rate_hz - 1) > _MAX_IRREGULARITY:
        raise UnusableClipError(
            f"{beside.name} beside it has {len(masks.frames)} frames at {masks.rate_hz:g} Hz, it has "
            f"{len(clip.frames)} at {clip.rate_hz:g} Hz"
        )
    return replace(clip, masks=masks_of(masks.frames))


def regular_rate_hz(times_s: npt.NDArray[np.float64], tick_s: float = 0.0) -> float:
    """The rate of frames shown at `times_s`, whose clock has a tick of `tick_s`.

    Raises UnusableClipError for fewer than two frames and for two that are more than 5 % closer or further apart.
    """
    if len(times_s) < 2:
        raise UnusableClipError(f"too short: it has {len(times_s)} frames")
    apart_s = np.diff(times_s)
    usual_s = float(np.median(apart_s))
    # Where a tick is about a frame, a frame that is left out is one tick too.
    rounding_s = tick_s if tick_s < usual_s / 4 else 0.0
    if usual_s <= 0 or np.abs(apart_s - usual_s).max() > _MAX_IRREGULARITY * usual_s + rounding_s:
        raise UnusableClipError(
            f"its rate varies: frames are {1e3 * apart_s.min():.1f} to {1e3 * apart_s.max():.1f} ms apart, "
            f"{1e3 * usual_s:.1f} ms in the middle"
        )
    return float((len(times_s) - 1) / (times_s[-1] - times_s[0]))


def kept_frames(num_frames: int, rate_hz: float, max_rate_hz: float | None) -> range:
    """Every k-th frame, the smallest k that brings the rate to at most `max_rate_hz`."""
    step = 1 if max_rate_hz is None else max(1, math.ceil(rate_hz / max_rate_hz - _RATE_TOLERANCE))
    return range(0, num_frames, step)


def upright_square(frame: av.VideoFrame, size: int, aspect: float = 1.0) -> Frames:
    """uint8 [size, size, 3], turned as the file says. `aspect` is a stored pixel's width by its height.

    Raises UnusableClipError when the file says to turn it by no multiple of 90 degrees.
    """
    turns, rest = divmod(frame.rotation, 90)
    if rest:
        raise UnusableClipError(f"turned by {frame.rotation} degrees, only multiples of 90 are undone")
    width, height = frame.width * aspect, float(frame.height)
    scale = size / min(width, height)
    small = frame.reformat(
        width=max(size, round(width * scale)),
        height=max(size, round(height * scale)),
        format="rgb24",
        interpolation="AREA",
    )
    whole = np.asarray(small.to_ndarray(), np.uint8)
    top, left = (whole.shape[0] - size) // 2, (whole.shape[1] - size) // 2
    # FFmpeg's angle is how far the picture must be turned counterclockwise to stand upright, as np.rot90 does it.
    return np.ascontiguousarray(np.rot90(whole[top : top + size, left : left + size], turns))


def _rate_and_length(path: Path) -> tuple[float, int]:
    """From the packets, without decoding one."""
    with _open(path) as container:
        stream = _video(container)
        if stream.time_base is None:
            raise UnusableClipError("its video has no time base")
        # The last packet is empty: it flushes the decoder.
        packets = [packet for packet in container.demux(stream) if packet.size]
        whole = sum(not packet.is_corrupt for packet in packets)
        if whole < max(len(packets), stream.frames):
            raise UnusableClipError(f"cut short: {whole} of {max(len(packets), stream.frames)} frames are whole")
        # What an edit list leaves out is decoded and not shown.
        ticks = [packet.pts for packet in packets if not packet.is_discard]
        if any(tick is None for tick in ticks):
            raise UnusableClipError("some of its frames have no time")
        times_s = np.sort(np.array(ticks, np.float64)) * float(stream.time_base)
        return regular_rate_hz(times_s, float(stream.time_base)), len(ticks)


def _decode(path: Path, kept: range, num_frames: int, size: int) -> Iterator[Frames]:
    with _open(path) as container:
        stream = _video(container)
        stream.thread_type = "AUTO"
        aspect = float(stream.sample_aspect_ratio or 1)
        found = 0
        for found, frame in enumerate(islice(container.decode(stream), num_frames), start=1):
            # What a decoder cannot read it paints over, with what was there before.
            if frame.is_corrupt:
                raise UnusableClipError(f"damaged: frame {found - 1} of {num_frames}")
            if found - 1 in kept:
                yield upright_square(frame, size, aspect)
        if found < num_frames:
            raise UnusableClipError(f"cut short: {found} of {num_frames} frames decode")


def _open(path: Path) -> InputContainer:
    # A file's title may be in any encoding, and is not read.
    return av.open(str(path), metadata_errors="replace")


def _video(container: InputContainer) -> VideoStream:
    if not container.streams.video:
        raise UnusableClipError("it has no video")
    return container.streams.video[0]
