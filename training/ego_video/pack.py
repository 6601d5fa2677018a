"""Clip packs: video of many clips as memory-mapped arrays at one picture size, and pairs of their frames.

A pack is a directory with `clips.json` (the clips, what was skipped and why, the sha256 of each array) and
`frames.npy` uint8 [total, S, S, 3], RGB and upright. Optional arrays run beside it: `masks.npy` and `truth.npy`
uint8 [total, S, S], `flow_steps.npy` and `truth_steps.npy` float32 [total, 4], `effector.npy` and `scenery.npy` float32
[total, 2]. Owns the format, not where clips come from.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from policy.strict_json import build
from training.ego_video.motion_moments import NUM_MOMENTS, Moments
from training.json_file import write_json

FORMAT_VERSION = 1
MANIFEST = "clips.json"
Frames = npt.NDArray[np.uint8]
Masks = npt.NDArray[np.uint8]
Places = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

_OPTIONAL = ("masks", "flow_steps", "truth", "truth_steps", "effector", "scenery")


class ClipPackError(ValueError):
    """A clip pack on disk is not what its clips.json says."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One run of frames at a constant rate; `first_frame` counts through the whole pack and is set by its writer.

    `instruction` is empty when there is none; `body` names who moves ("hand", a robot's name), empty when unknown.
    """

    name: str
    source: str
    rate_hz: float
    instruction: str = ""
    body: str = ""
    first_frame: int = 0
    num_frames: int = 0

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError(f"a clip of {self.source!r} has no name")
        if not 0 < self.rate_hz < float("inf"):
            raise ValueError(f"clip {self.name!r} has rate_hz {self.rate_hz}, expected above 0")


@dataclass(frozen=True, kw_only=True)
class SkippedClip:
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ClipPack:
    """All clips' frames end to end. Arrays are memory maps, read-only.

    `masks` says from 0 to 255 how much of a pixel moves by its own around that frame, and `flow_steps` how that goes on
    to the next frame (motion_moments.py); both are made of the frames. `truth`, `truth_steps`, `effector` and `scenery`
    are privileged, known to a simulator alone: for scores, probes and the arm that is trained on the truth, which is
    `pack.with_truth()`.
    """

    directory: Path
    image_size: int
    clips: tuple[Clip, ...]
    skipped: tuple[SkippedClip, ...]
    sha256: Mapping[str, str]  # of each array file
    frames: Frames  # [total, S, S, 3]
    masks: Masks | None  # [total, S, S]
    flow_steps: Moments | None  # [total, 4]
    truth: Masks | None  # [total, S, S], the hand and what it moves
    truth_steps: Moments | None  # [total, 4], flow_steps inside the truth
    effector: Places | None  # [total, 2], x right and y down in [-1, 1]; NaN where unknown
    scenery: Places | None  # [total, 2], the background's shift against the clip's first frame, same units

    @property
    def digest(self) -> str:
        """Changes with the pixels, the masks, the clips and their words; not with what was skipped."""
        made_of = {"image_size": self.image_size, "clips": [asdict(clip) for clip in self.clips], "sha256": self.sha256}
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

    @property
    def num_frames(self) -> int:
        return len(self.frames)

    @classmethod
    def open(cls, directory: Path | str) -> ClipPack:
        """Map a pack's arrays, reading almost nothing. Raises ClipPackError for a foreign format or a bad file."""
        directory = Path(directory)
        if not (directory / MANIFEST).is_file():
            raise ClipPackError(f"{directory} is not a clip pack: no {MANIFEST}")
        values = json.loads((directory / MANIFEST).read_text())
        if values.get("format_version") != FORMAT_VERSION:
            raise ClipPackError(
                f"clip pack {directory} has format_version {values.get('format_version')}, expected {FORMAT_VERSION}"
            )
        where = f"{directory / MANIFEST}"
        try:
            clips = tuple(build(Clip, clip, where) for clip in values["clips"])
            skipped = tuple(build(SkippedClip, clip, where) for clip in values["skipped"])
            size, sha256 = int(values["image_size"]), dict(values["sha256"])
        except (KeyError, ValueError) as error:
            raise ClipPackError(f"{where}: {error}") from None
        total = _check_contiguous(clips, where)
        arrays = {
            name: _mapped(directory / f"{name}.npy", name, total, size) if f"{name}.npy" in sha256 else None
            for name in ("frames", *_OPTIONAL)
        }
        if arrays["frames"] is None:
            raise ClipPackError(f"{where} lists no frames.npy")
        return cls(directory=directory, image_size=size, clips=clips, skipped=skipped, sha256=sha256, **arrays)  # type: ignore[arg-type]

    def verify(self) -> None:
        """Read every array and compare its sha256 with clips.json. Raises ClipPackError naming one that differs."""
        for name, expected in self.sha256.items():
            if _file_sha256(self.directory / name) != expected:
                raise ClipPackError(f"clip pack {self.directory}: {name} does not have the sha256 in {MANIFEST}")

    def with_truth(self) -> ClipPack:
        """The pack with the simulator's masks in place of its own, and flow inside them; nothing of its own is left."""
        return replace(self, masks=self.truth, flow_steps=self.truth_steps)

    def frames_of(self, clip: Clip) -> slice:
        """Where a clip's frames lie in every array of the pack."""
        return slice(clip.first_frame, clip.first_frame + clip.num_frames)


class ClipPackWriter(AbstractContextManager["ClipPackWriter"]):
    """Streams clips into `<directory>.tmp`, which `close` renames, so that a pack is whole or not there.

    What an earlier writer left in `<directory>.tmp` is thrown away, a pack at `directory` is replaced on close. The
    first clip settles which optional arrays there are. As a context: closed at its end, discarded at an exception.
    """

    def __init__(self, directory: Path | str, image_size: int) -> None:
        self._directory, self._image_size = Path(directory), int(image_size)
        if image_size < 1:
            raise ValueError(f"image_size is {image_size}, expected at least 1 pixel")
        if self._directory.exists() and not (self._directory / MANIFEST).is_file():
            raise ValueError(f"{self._directory} is there and is no clip pack; name another directory")
        self._staged = self._directory.with_name(self._directory.name + ".tmp")
        if self._staged.exists():
            shutil.rmtree(self._staged)
        self._staged.mkdir(parents=True)
        self._clips: list[Clip] = []
        self._names: set[str] = set()
        self._skipped: list[SkippedClip] = []
        self._arrays: dict[str, _GrowingArray] = {}

    @property
    def clips(self) -> Sequence[Clip]:
        """Those added until now."""
        return self._clips

    @property
    def skipped(self) -> Sequence[SkippedClip]:
        return self._skipped

    def add(
        self,
        clip: Clip,
        frames: Frames,
        masks: Masks | None = None,
        truth: Masks | None = None,
        effector: Places | None = None,
        scenery: Places | None = None,
        flow_steps: Moments | None = None,
        truth_steps: Moments | None = None,
    ) -> Clip:
        """The clip as stored. `frames` is uint8 [T, S, S, 3]; the others are as ClipPack says, [T, ...].

        Raises ValueError for a shape or dtype that does not fit, a second clip of a name, and optional arrays other
        than the first clip had; nothing of the clip is written then.
        """
        given = {
            "frames": frames,
            "masks": masks,
            "flow_steps": flow_steps,
            "truth": truth,
            "truth_steps": truth_steps,
            "effector": effector,
            "scenery": scenery,
        }
        arrays = {name: np.ascontiguousarray(array) for name, array in given.items() if array is not None}
        if clip.name in self._names:
            raise ValueError(f"two clips are named {clip.name!r}")
        if len(frames) < 1:
            raise ValueError(f"clip {clip.name!r} has no frames")
        if self._clips and set(arrays) != set(self._arrays):
            raise ValueError(f"clip {clip.name!r} has {sorted(arrays)}, those before it {sorted(self._arrays)}")
        for name, array in arrays.items():
            dtype, shape = _kind(name, self._image_size)
            if array.dtype != dtype or array.shape != (len(frames), *shape):
                raise ValueError(
                    f"{name} of clip {clip.name!r} is {array.dtype} {array.shape}, "
                    f"expected {dtype} {(len(frames), *shape)}"
                )
        stored = replace(clip, first_frame=self._num_frames, num_frames=len(frames))
        for name, array in arrays.items():
            if name not in self._arrays:
                self._arrays[name] = _GrowingArray(self._staged / f"{name}.npy", *_kind(name, self._image_size))
            self._arrays[name].append(array)
        self._clips.append(stored)
        self._names.add(stored.name)
        return stored

    def skip(self, name: str, reason: str) -> None:
        """Note in the pack that a clip is not in it."""
        self._skipped.append(SkippedClip(name=name, reason=reason))

    def close(self) -> ClipPack:
        """Finish the pack and open it. Raises ValueError when no clip was added; nothing is left then."""
        if not self._clips:
            self.discard()
            raise ValueError(f"no clip for {self._directory}: {len(self._skipped)} were skipped")
        for array in self._arrays.values():
            array.close()
        write_json(
            self._staged / MANIFEST,
            {
                "format_version": FORMAT_VERSION,
                "image_size": self._image_size,
                "clips": [asdict(clip) for clip in self._clips],
                "skipped": [asdict(clip) for clip in self._skipped],
                "has_masks": "masks" in self._arrays,
                "has_truth": "truth" in self._arrays,
                "sha256": {f"{name}.npy": _file_sha256(self._staged / f"{name}.npy") for name in self._arrays},
            },
        )
        if self._directory.exists():
            shutil.rmtree(self._directory)
        self._staged.rename(self._directory)
        return ClipPack.open(self._directory)

    def discard(self) -> None:
        """Leave nothing behind; a pack that was at `directory` stays."""
        for array in self._arrays.values():
            array.abort()
        shutil.rmtree(self._staged, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    @property
    def _num_frames(self) -> int:
        return self._clips[-1].first_frame + self._clips[-1].num_frames if self._clips else 0


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Two frames of one clip, B times."""

    first: Frames  # [B, S, S, 3]
    last: Frames  # [B, S, S, 3]
    first_mask: npt.NDArray[np.float32] | None  # [B, S, S] in [0, 1]
    last_mask: npt.NDArray[np.float32] | None
    clip: Integers  # [B], index into the pack's clips
    frame: Integers  # [B, 2], counted through the whole pack
    instruction: tuple[str, ...]


class FramePairs:
    """Every pair (t, t + gap) within a clip, in order of t; the gap is `gap_s` in the nearest whole number of frames.

    With `max_gap_s`, t + gap_s must lie in the clip and the gap of a pair is drawn from gap_s to max_gap_s, as far as
    the clip goes, by the pair's index alone. Raises ValueError for a gap under half a frame and a pack without a pair.
    """

    def __init__(self, pack: ClipPack, gap_s: float, max_gap_s: float | None = None) -> None:
        if not gap_s > 0 or (max_gap_s is not None and not max_gap_s >= gap_s):
            raise ValueError(f"gap_s is {gap_s} and max_gap_s {max_gap_s}, expected 0 < gap_s <= max_gap_s")
        self.pack = pack
        rates = np.array([clip.rate_hz for clip in pack.clips])
        self._min_gap = np.rint(gap_s * rates).astype(np.int64)
        self._max_gap = np.rint((max_gap_s or gap_s) * rates).astype(np.int64)
        if (self._min_gap < 1).any():
            clip = pack.clips[int(np.argmin(self._min_gap))]
            raise ValueError(f"gap_s is {gap_s}, less than half a frame of clip {clip.name!r} at {clip.rate_hz:g} Hz")
        self._start = np.array([clip.first_frame for clip in pack.clips], np.int64)
        self._stop = self._start + np.array([clip.num_frames for clip in pack.clips], np.int64)
        self._end = np.cumsum(np.maximum(self._stop - self._start - self._min_gap, 0))
        if not len(self):
            longest_s = max((clip.num_frames / clip.rate_hz for clip in pack.clips), default=0.0)
            raise ValueError(
                f"clip pack {pack.directory} has no two frames {gap_s} s apart, its longest is {longest_s:.2f} s"
            )

    def __len__(self) -> int:
        return int(self._end[-1]) if len(self._end) else 0

    @property
    def clips_without(self) -> list[str]:
        """Names of the clips that are too short to have a pair."""
        return [self.pack.clips[index].name for index in np.flatnonzero(np.diff(self._end, prepend=0) == 0)]

    def places(self, indices: npt.ArrayLike) -> tuple[Integers, Integers]:
        """The clip [B] and the two frames [B, 2] of each pair, no pixel read. Raises IndexError beyond the last."""
        index = np.asarray(indices, np.int64)
        if index.ndim != 1 or (len(index) and not (index.min() >= 0 and index.max() < len(self))):
            raise IndexError(f"pairs {index} of {len(self)}")
        clip = np.searchsorted(self._end, index, side="right")
        num_before = np.where(clip > 0, self._end[clip - 1], 0)
        first = self._start[clip] + index - num_before
        least = self._min_gap[clip]
        most = np.minimum(self._max_gap[clip], self._stop[clip] - 1 - first)
        gap = least + np.floor(_uniform(index) * (most - least + 1)).astype(np.int64)
        return clip, np.stack([first, first + gap], axis=1)

    def batch(self, indices: npt.ArrayLike) -> PairBatch:
        """The pairs of these indices [B], read from the memory maps."""
        clip, frame = self.places(indices)
        pack = self.pack
        first_mask = last_mask = None
        if pack.masks is not None:
            first_mask, last_mask = (pack.masks[frame[:, side]].astype(np.float32) / np.float32(255) for side in (0, 1))
        return PairBatch(
            first=np.asarray(pack.frames[frame[:, 0]]),
            last=np.asarray(pack.frames[frame[:, 1]]),
            first_mask=first_mask,
            last_mask=last_mask,
            clip=clip,
            frame=frame,
            instruction=tuple(pack.clips[index].instruction for index in clip),
        )


class _GrowingArray:
    """One .npy file whose first axis grows; its header is written again at the end, in the same room."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._dtype, self._shape, self._length = dtype, shape, 0
        self._file: BinaryIO = path.open("wb")
        self._write_header()
        self._data_start = self._file.tell()

    def append(self, rows: npt.NDArray[Any]) -> None:
        self._file.write(rows.data)
        self._length += len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        # numpy leaves room in a header for the first axis to grow.
        assert self._file.tell() == self._data_start
        self._file.close()

    def abort(self) -> None:
        self._file.close()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._length, *self._shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


def _kind(name: str, size: int) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The dtype and one frame's shape of an array of the pack."""
    if name == "frames":
        return np.dtype(np.uint8), (size, size, 3)
    if name in ("masks", "truth"):
        return np.dtype(np.uint8), (size, size)
    return np.dtype(np.float32), (NUM_MOMENTS if name in ("flow_steps", "truth_steps") else 2,)


def _mapped(path: Path, name: str, total: int, size: int) -> npt.NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ClipPackError(f"{path} cannot be read: {error}") from None
    dtype, shape = _kind(name, size)
    if array.dtype != dtype or array.shape != (total, *shape):
        raise ClipPackError(f"{path} is {array.dtype} {array.shape}, expected {dtype} {(total, *shape)}")
    return array


def _check_contiguous(clips: Sequence[Clip], where: str) -> int:
    """The number of frames of all clips."""
    total = 0
    for clip in clips:
        if clip.first_frame != total or clip.num_frames < 1:
            raise ClipPackError(
                f"{where}: {clip.name!r} has {clip.num_frames} frames from {clip.first_frame}, expected from {total}"
            )
        total += clip.num_frames
    return total


def _uniform(index: Integers) -> npt.NDArray[np.float64]:
    """A number in [0, 1) that is a function of each index alone: splitmix64, its upper 53 bits."""
    with np.errstate(over="ignore"):
        z = (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
