"""Where what moves is and how it goes on, in a few numbers of each frame: moments of masks and of the flow inside them.

A map of a mask's change is mostly the mask's noise: what latent actions learn from should be little and nearly right.
Stray blobs count for nothing, for a frame's largest connected part alone is read. Its tip is its upper end, for in a
wearer's own view arms come from below; of other bodies it is one more point of what moves. Owns the numbers, which need
no label; `flow_steps` needs OpenCV and is called when clips are packed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from training.ego_video.flow_masks import frame_flows

NUM_MOMENTS = 4  # of each kind: x and y of the whole, x and y of the tip

Masks = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.uint8]
Moments = npt.NDArray[np.float32]

_TIP = 6.0  # how steeply the tip's weight falls, in e-folds per half picture downwards
_INSIDE = 128  # of 255
_CHUNK = 256  # frames at a time


def places(masks: Masks) -> Moments:
    """Of masks uint8 [T, S, S]: x and y of the largest part's centroid and of its tip, [T, 4] in half pictures from the
    middle, x right and y down. NaN where a mask is empty.
    """
    found = np.full((len(masks), NUM_MOMENTS), np.nan, np.float32)
    grid = _grid(masks.shape[1])
    for at in range(0, len(masks), _CHUNK):
        part = largest_parts(np.asarray(masks[at : at + _CHUNK]) >= _INSIDE)
        there = part.any((1, 2))
        of_each = [_mean(part[there] * weight, grid, grid[:, None]) for weight in _weights(grid)]
        found[at : at + len(part)][there] = np.concatenate(of_each, 1)
    return found


def flow_steps(frames: Pixels, masks: Masks) -> Moments:
    """How what moves goes on from each frame of a clip to the next: the mean flow of the largest part and of its tip,
    [T, 4] in half pictures, x right and y down; the camera's motion is in it. 0 where a mask is empty and in the last
    frame, so that a sum over frames is how far it went. Raises ImportError that names the extra without OpenCV.
    """
    steps = np.zeros((len(frames), NUM_MOMENTS), np.float32)
    grid = _grid(masks.shape[1])
    inside = largest_parts(masks >= _INSIDE)
    for at, flow in enumerate(frame_flows(frames)):
        if inside[at].any():
            x, y = np.moveaxis(flow * (2 / len(grid)), -1, 0)
            weights = [(inside[at] * weight)[None] for weight in _weights(grid)]
            steps[at] = np.concatenate([_mean(weight, x, y)[0] for weight in weights])
    return steps


def largest_parts(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Of each mask [T, H, W] its largest part that hangs together by pixels' sides; an empty one stays empty."""
    labels = np.where(masks, np.arange(1, masks.size + 1).reshape(masks.shape), 0)
    while True:
        spread = _spread_along_rows(_spread_along_rows(labels).swapaxes(1, 2)).swapaxes(1, 2)
        if np.array_equal(spread, labels):
            break
        labels = spread
    # A part's label is the number of one of its pixels, so a frame's labels are numbers of its own pixels.
    sizes = np.bincount(labels.ravel(), minlength=masks.size + 1)[1:].reshape(len(masks), -1)
    largest = sizes.argmax(1) + 1 + np.arange(len(masks)) * sizes.shape[1]
    return masks & (labels == largest[:, None, None])


def _spread_along_rows(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Each run of labels above 0 in a row takes its highest."""
    flat = np.pad(labels, ((0, 0), (0, 0), (0, 1))).ravel()  # so that no run goes on in the next row
    inside = flat > 0
    starts = np.flatnonzero(inside & ~np.concatenate([[False], inside[:-1]]))
    if not len(starts):
        return labels
    lengths = np.flatnonzero(inside & ~np.concatenate([inside[1:], [False]])) - starts + 1
    flat[inside] = np.repeat(np.maximum.reduceat(flat, starts), lengths)
    return flat.reshape(*labels.shape[:2], -1)[..., :-1]


def _weights(grid: Moments) -> tuple[Moments, Moments]:
    """Of a mask's rows, [S, 1], for the whole and for the tip."""
    return np.ones_like(grid)[:, None], np.exp(-_TIP * grid)[:, None]


def _mean(weight: npt.NDArray[np.floating], x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> Moments:
    """Means of x and y, [T, 2], by a weight [T, S, S] of which some is above 0."""
    total = weight.sum((1, 2))
    return np.stack([(weight * each).sum((1, 2)) / total for each in (x, y)], 1).astype(np.float32)


def _grid(size: int) -> Moments:
    """The middles of a row's pixels, in half pictures from the middle."""
    return ((np.arange(size) * 2 + 1) / size - 1).astype(np.float32)
