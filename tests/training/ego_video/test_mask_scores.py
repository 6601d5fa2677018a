"""Intersection over union in closed form, and which frames it is taken over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.ego_video.mask_scores import iou, mean_iou, moving_frames, score_masks
from training.ego_video.pack import Clip, ClipPack, ClipPackWriter

SIZE, NUM_FRAMES = 16, 6


def square(left: int, width: int = 4) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[4:8, left : left + width] = 255
    return mask


def places(speed: float, rate_hz: float = 10.0) -> np.ndarray:
    """An effector that goes right at `speed`, half pictures per second."""
    return np.stack([np.arange(NUM_FRAMES) * speed / rate_hz, np.zeros(NUM_FRAMES)], axis=1).astype(np.float32)


def write_pack(directory: Path, *, found_left: int, speeds: tuple[float, ...] = (0.5,), truth: bool = True) -> ClipPack:
    """A clip for each speed; the truth is the square at 4."""
    with ClipPackWriter(directory, SIZE) as writer:
        for index, speed in enumerate(speeds):
            writer.add(
                Clip(name=f"clip{index}", source="drawn", rate_hz=10.0),
                np.zeros((NUM_FRAMES, SIZE, SIZE, 3), np.uint8),
                masks=np.stack([square(found_left)] * NUM_FRAMES),
                truth=np.stack([square(4)] * NUM_FRAMES) if truth else None,
                effector=places(speed),
                scenery=np.zeros((NUM_FRAMES, 2), np.float32),
            )
    return ClipPack.open(directory)


def test_iou_is_what_two_masks_share_of_what_they_cover() -> None:
    assert iou(square(4), square(4)) == 1.0
    assert iou(square(4), square(6)) == pytest.approx(2 / 6)
    assert iou(square(0), square(8)) == 0.0


def test_two_empty_masks_agree_and_an_empty_one_misses_everything() -> None:
    empty = np.zeros((SIZE, SIZE), np.uint8)

    assert iou(empty, empty) == 1.0
    assert iou(empty, square(4)) == 0.0


def test_half_a_pixel_is_in_a_mask_and_less_is_not() -> None:
    assert iou(np.full((2, 2), 128, np.uint8), np.full((2, 2), 255, np.uint8)) == 1.0
    assert iou(np.full((2, 2), 127, np.uint8), np.full((2, 2), 255, np.uint8)) == 0.0


def test_frames_that_do_not_move_are_left_out_of_the_mean() -> None:
    masks, truth = np.stack([square(4), square(12)]), np.stack([square(4), square(4)])

    assert mean_iou(masks, truth, np.array([True, False])) == 1.0
    assert mean_iou(masks, truth, np.array([True, True])) == 0.5


def test_motion_is_the_effectors_own_and_not_the_cameras() -> None:
    still = np.zeros((NUM_FRAMES, 2), np.float32)

    assert moving_frames(places(0.2), still, 10.0).all()
    assert not moving_frames(places(0.05), still, 10.0).any()
    assert not moving_frames(places(0.5), places(0.5), 10.0).any()


def test_an_effector_out_of_the_picture_is_counted_as_moving() -> None:
    effector = places(0.0)
    effector[0] = np.nan

    moves = moving_frames(effector, np.zeros_like(effector), 10.0)

    assert moves.tolist() == [True, True, False, False, False, False]


def test_a_pack_is_scored_over_its_clips_that_move(tmp_path: Path) -> None:
    score = score_masks(write_pack(tmp_path / "pack", found_left=6, speeds=(0.5, 0.0)))

    assert score.mean_iou == pytest.approx(2 / 6)
    assert (score.num_moving, score.num_frames) == (NUM_FRAMES, 2 * NUM_FRAMES)
    assert list(score.clips) == ["clip0"]
    assert score.sources == {"drawn": pytest.approx(2 / 6)}
    assert score.as_json()["mean_iou_of_all"] == pytest.approx(2 / 6)


def test_a_pack_without_truth_or_without_motion_has_no_score(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks masks, truth"):
        score_masks(write_pack(tmp_path / "untold", found_left=4, truth=False))
    with pytest.raises(ValueError, match="no frame in which the effector moves"):
        score_masks(write_pack(tmp_path / "still", found_left=4, speeds=(0.0,)))
