"""Masks of what moves by itself in a clip whose camera moves too, from the pictures alone: no label, no model.

Four steps. Dense flow (OpenCV's DIS) from each frame to those around it. The camera's part of it, a homography fitted
by RANSAC, is taken away: what is left is evidence where it exceeds an adaptive threshold (Otsu's, with a floor below
which nothing moves) and the picture really differs from what the camera's motion alone would show. Evidence is carried
along the flow to the frames before and after, for a hand also rests. Its border, which flow blurs by several pixels, is
drawn by the colours (GrabCut).

What a hand moves is in the mask, and so is whatever else moves, a passer-by as well. The hand alone cannot be told from
what it holds without a label; `hand_part` takes it from a mask channel that knows. Limits: the camera's motion is one
homography, so near things shift when the head moves sideways, and most of the picture must be scenery. Needs OpenCV.
"""

# OpenCV's stubs want an array where its documentation wants None.
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Field = npt.NDArray[np.floating[Any]]

GAPS_S = (0.2, 0.4)  # between the frames that are compared: a short one for fast hands, a long one for slow ones
_WORKING_SIZE = 256  # pixels: DIS matches patches of 8, too coarse for a hand in a picture of 64
_FLOOR = 0.01  # of the picture's side, motion below which nothing moves
_RANSAC_TOLERANCE = 0.006  # of the picture's side
_MIN_INLIERS = 0.4  # of the flow, for a homography to be believed
_CHANGE = 20.0  # grey levels by which a pixel must differ from what the camera's motion alone would show
_CARRIED = 0.8  # of a frame's evidence that comes from its neighbour
_ENOUGH = 0.25  # carried evidence above which a pixel may be in the mask; 0.5 is the threshold in every frame
_CERTAIN = 0.8
_CUT_MARGIN = 0.05  # of the picture's side, how far beyond the evidence the colours may draw the border
_CUT_ROUNDS = 3


def flow_masks(frames: Pixels, rate_hz: float) -> Pixels:
    """Masks of a clip, uint8 [T, H, W], 255 where something moves around that frame and 0 elsewhere.

    `frames` is uint8 [T, H, W, 3] at `rate_hz`, all of one camera. A function of the frames alone. Raises ValueError
    for another shape and a clip of one frame, ImportError that names the extra without OpenCV.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 2:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, expected uint8 [T, H, W, 3] with T of 2 or more")
    if not 0 < rate_hz < float("inf"):
        raise ValueError(f"rate_hz is {rate_hz}, expected above 0")
    clip = _ClipMotion(frames)
    gaps = sorted({min(max(1, round(gap_s * rate_hz)), len(frames) - 1) for gap_s in GAPS_S})
    evidence = clip.carried([clip.evidence(at, gaps) for at in range(len(frames))])
    return np.stack([clip.cut(at, each) for at, each in enumerate(evidence)])


def hand_part(masks: Pixels, hand: Pixels) -> Pixels:
    """What of the masks is the hand, the paper's form: `hand` is a channel that knows, of the masks' shape."""
    if masks.shape != hand.shape:
        raise ValueError(f"masks are {masks.shape} and the hand's {hand.shape}, expected one shape")
    return np.minimum(masks, hand)


def frame_flows(frames: Pixels) -> Iterator[Field]:
    """From each frame of a clip [T, H, W, 3] but the last to the next: where its pixels go, x and y in pixels, the
    camera's motion included, [H, W, 2]. Raises ImportError that names the extra without OpenCV.
    """
    clip = _ClipMotion(frames)
    return (clip.flow(at, at + 1) for at in range(len(frames) - 1))


class _ClipMotion:
    """The flow of one clip between any two of its frames, and what follows from it; fields are [H, W] of the frames."""

    def __init__(self, frames: Pixels) -> None:
        self._cv2 = opencv()
        self._frames = frames
        self._num_frames, self._height, self._width = frames.shape[:3]
        self._side = max(self._height, self._width)
        self._flow = self._cv2.DISOpticalFlow_create(self._cv2.DISOPTICAL_FLOW_PRESET_FAST)
        scale = max(1.0, _WORKING_SIZE / self._side)
        size = (round(self._width * scale), round(self._height * scale))
        self._enlarged = [
            self._cv2.resize(each, size, interpolation=self._cv2.INTER_CUBIC) for each in _contrast(frames)
        ]
        self._grid = np.stack(np.meshgrid(np.arange(self._width), np.arange(self._height)), axis=-1).astype(np.float32)

    def flow(self, at: int, to: int) -> Field:
        """Where each pixel of frame `at` has gone in frame `to`, x and y in pixels, [H, W, 2]."""
        flow = self._flow.calc(self._enlarged[at], self._enlarged[to], None)
        small = self._cv2.resize(flow, (self._width, self._height), interpolation=self._cv2.INTER_AREA)
        return small * (self._width / flow.shape[1])

    def evidence(self, at: int, gaps: Sequence[int]) -> Field:
        """In [0, 1], 0.5 at the threshold: how surely each pixel moves against the frames `gaps` before and after."""
        cv2 = self._cv2
        strength, change = np.zeros((2, self._height, self._width), np.float32)
        for gap in gaps:
            compared = [self._against(at, to) for to in (at - gap, at + gap) if 0 <= to < self._num_frames]
            if not compared:
                continue
            # What is hidden in one of the two frames is seen in the other: the smaller residual is the true one.
            residual = np.min([residual for residual, _ in compared], axis=0)
            residual[~np.isfinite(residual)] = 0.0
            strength = np.maximum(strength, residual / self._threshold(residual))
            change = np.maximum(change, np.max([change for _, change in compared], axis=0))
        near = cv2.dilate(np.minimum(change / _CHANGE, 1.0), _disc(cv2, self._side / 32))
        return np.minimum(strength, 2.0) / 2.0 * cv2.GaussianBlur(near, (0, 0), self._side / 64)

    def _against(self, at: int, to: int) -> tuple[Field, Field]:
        """What of the flow to `to` is not the camera's, in pixels, infinite where the camera's part leaves the picture;
        and by how many grey levels the frame differs from `to` moved as the camera did.
        """
        cv2 = self._cv2
        flow = self.flow(at, to)
        carried = self._carried_by_camera(flow)
        outside = ((carried < 0) | (carried > (self._width - 1, self._height - 1))).any(axis=-1)
        residual = np.linalg.norm(self._grid + flow - carried, axis=-1)
        residual[outside] = np.inf
        moved = cv2.remap(self._smoothed(to), carried[..., 0], carried[..., 1], cv2.INTER_LINEAR)
        # Against the darkest and the lightest nearby: at an edge, half a pixel is many grey levels.
        square = np.ones((3, 3), np.uint8)
        own = self._smoothed(at)
        change = np.maximum(cv2.erode(moved, square) - own, own - cv2.dilate(moved, square)).max(axis=-1)
        change[outside] = 0.0
        return residual, np.maximum(change, 0.0)

    def _smoothed(self, at: int) -> Field:
        return self._cv2.GaussianBlur(self._frames[at], (3, 3), 0.7).astype(np.float32)

    def _carried_by_camera(self, flow: Field) -> Field:
        """Where the camera's motion alone takes each pixel, [H, W, 2]: a homography, an affine map or a shift."""
        cv2 = self._cv2
        step = max(1, self._side // 32)
        first = self._grid[step // 2 :: step, step // 2 :: step].reshape(-1, 2)
        last = first + flow[step // 2 :: step, step // 2 :: step].reshape(-1, 2)
        tolerance = _RANSAC_TOLERANCE * self._side
        camera, inliers = cv2.findHomography(first, last, cv2.RANSAC, tolerance)
        if camera is None or inliers.mean() < _MIN_INLIERS:
            affine, inliers = cv2.estimateAffine2D(first, last, method=cv2.RANSAC, ransacReprojThreshold=tolerance)
            camera = None if affine is None or inliers.mean() < _MIN_INLIERS else np.vstack([affine, (0, 0, 1)])
        if camera is None:
            return self._grid + np.median(last - first, axis=0)
        return cv2.perspectiveTransform(self._grid.reshape(1, -1, 2), camera).reshape(self._grid.shape)

    def _threshold(self, residual: Field) -> float:
        """Otsu's between what stands and what moves, in pixels, at least the floor: a still scene has one class."""
        top = float(np.percentile(residual, 99.5))
        floor = _FLOOR * self._side
        if top <= floor:
            return floor
        levels = np.clip(residual * (255 / top), 0, 255).astype(np.uint8)
        level, _ = self._cv2.threshold(levels, 0, 255, self._cv2.THRESH_OTSU)
        return max(floor, level / 255 * top)

    def carried(self, evidence: Sequence[Field]) -> list[Field]:
        """Each frame's evidence with that of the frames before and after it, carried along the flow and fading."""
        later = self._swept(evidence, range(self._num_frames), -1)
        earlier = self._swept(evidence, range(self._num_frames - 1, -1, -1), 1)
        return [(later[at] + earlier[at]) / 2 for at in range(self._num_frames)]

    def _swept(self, evidence: Sequence[Field], order: Sequence[int], neighbour: int) -> dict[int, Field]:
        cv2 = self._cv2
        swept = {order[0]: evidence[order[0]]}
        for at in order[1:]:
            source = self._grid + self.flow(at, at + neighbour)
            brought = cv2.remap(swept[at + neighbour], source[..., 0], source[..., 1], cv2.INTER_LINEAR)
            swept[at] = (1 - _CARRIED) * evidence[at] + _CARRIED * brought
        return swept

    def cut(self, at: int, evidence: Field) -> Pixels:
        """The mask of one frame, 0 or 255 [H, W]: evidence cleaned, and its border drawn by the frame's colours."""
        cv2 = self._cv2
        disc = _disc(cv2, self._side / 64)
        moves = (evidence > _ENOUGH).astype(np.uint8)
        moves = cv2.morphologyEx(cv2.morphologyEx(moves, cv2.MORPH_OPEN, disc), cv2.MORPH_CLOSE, disc)
        around = cv2.dilate(moves, _disc(cv2, _CUT_MARGIN * self._side))
        labels = np.where(around > 0, cv2.GC_PR_BGD, cv2.GC_BGD).astype(np.uint8)
        labels[moves > 0] = cv2.GC_PR_FGD
        labels[(moves > 0) & (evidence > _CERTAIN)] = cv2.GC_FGD
        if not moves.any() or moves.all():
            return moves * np.uint8(255)
        # GrabCut starts from OpenCV's own generator: a mask must be a function of the frames.
        cv2.setRNGSeed(0)
        cv2.grabCut(
            self._frames[at], labels, None, np.zeros((1, 65)), np.zeros((1, 65)), _CUT_ROUNDS, cv2.GC_INIT_WITH_MASK
        )
        return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8) * np.uint8(255)


def _contrast(frames: Pixels) -> Iterator[Pixels]:
    """Each frame in grey, [H, W], along the axis in which the clip's colours differ most: a green sleeve on a red table
    of equal brightness is one grey otherwise.
    """
    some = frames[:: max(1, len(frames) // 16)].reshape(-1, 3).astype(np.float32)
    mean = some.mean(axis=0)
    _, axes = np.linalg.eigh((some - mean).T @ (some - mean))
    axis = axes[:, -1]
    low, high = np.percentile((some - mean) @ axis, (0.5, 99.5))
    for frame in frames:
        grey = (frame - mean) @ axis
        yield np.clip((grey - low) * (255 / max(high - low, 1.0)), 0, 255).astype(np.uint8)


def _disc(cv2: Any, radius: float) -> Pixels:
    width = 2 * max(1, round(radius)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))


def opencv() -> ModuleType:
    """Raises ImportError that names the extra."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(f"masks and the flow in them need OpenCV ({error}): pip install 'premotor[sim]'") from None
    return cv2
