"""What every source of clips gives: clips by name that can be read one at a time, or a reason why one cannot.

Each source is a function of a directory that lists its clips without decoding one. Does not own any source's format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.ego_video.pack import Frames, Masks

# Beside NAME.mp4: a video of as many frames, bright where something is in the mask.
MASK_ENDING = ".mask.mp4"


class UnusableClipError(ValueError):
    """This clip is left out; the message is the reason, and other clips are not concerned."""


@dataclass(frozen=True, kw_only=True)
class ReadClip:
    """Upright square frames uint8 [T, S, S, 3] at a constant rate. `instruction` is empty when there is none.

    `masks` are those of a channel that came with the video, uint8 [T, S, S], 255 where it is bright; None where it has
    none or none was asked for.
    """

    frames: Frames
    rate_hz: float
    instruction: str = ""
    masks: Masks | None = None


@dataclass(frozen=True, kw_only=True)
class PictureForm:
    """How frames are wanted: squares of `image_size` pixels, at the highest rate that is not above `max_rate_hz`.

    `with_masks` reads the mask channel as well, of a clip that has one.
    """

    image_size: int
    max_rate_hz: float | None = None
    with_masks: bool = False

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}, expected at least 1 pixel")
        if self.max_rate_hz is not None and not self.max_rate_hz > 0:
            raise ValueError(f"max_rate_hz is {self.max_rate_hz}, expected above 0")


@dataclass(frozen=True, kw_only=True)
class FoundClip:
    """One clip of a source. `read` decodes it or raises UnusableClipError; `body` names who moves, if known."""

    name: str
    source: str
    body: str
    read: Callable[[PictureForm], ReadClip]


def masks_of(pictures: Frames) -> Masks:
    """A channel that was stored as pictures [T, S, S, 3]: what is brighter than half is in the mask."""
    return np.where(pictures.max(-1) >= 128, np.uint8(255), np.uint8(0))


def refused(name: str, source: str, reason: str) -> FoundClip:
    """A clip of which it is known before reading that it cannot be used."""

    def read(form: PictureForm) -> ReadClip:
        raise UnusableClipError(reason)

    return FoundClip(name=name, source=source, body="", read=read)
