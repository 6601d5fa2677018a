"""Masks of motion on pictures whose motion is known: a patch that slides over a cloth, and a camera above it."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from training.ego_video.flow_masks import flow_masks, hand_part

Pixels = npt.NDArray[np.uint8]

SIZE, NUM_FRAMES, RATE_HZ = 64, 9, 10.0


def cloth(seed: int, size: int = 160) -> Pixels:
    """Blotches of a few pixels, [size, size, 3], one of two colours each."""
    blotches = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(size, size)), (0, 0), 2.5)
    part = np.clip(0.5 + blotches / (4 * blotches.std()), 0, 1)[..., None]
    return (part * (200, 170, 120) + (1 - part) * (90, 60, 110)).astype(np.uint8)


def film(*, camera: bool, patch: bool, noise: float = 1.5) -> tuple[Pixels, Pixels]:
    """Frames [T, 64, 64, 3] and where the patch is, 0 or 255 [T, 64, 64]."""
    background, rng = cloth(0), np.random.default_rng(1)
    frames, truth = [], []
    for at in range(NUM_FRAMES):
        angle_deg, shift = (0.8 * at, np.array([1.3 * at, -0.7 * at])) if camera else (0.0, np.zeros(2))
        turn = cv2.getRotationMatrix2D((80.0, 80.0), angle_deg, 1.0 + 0.004 * at * camera)
        turn[:, 2] += shift - 48
        frame = cv2.warpAffine(background, turn, (SIZE, SIZE))
        mask = np.zeros((SIZE, SIZE), np.uint8)
        if patch:
            left = 6 + 3 * at
            frame[24:40, left : left + 18] = cloth(7)[24:40, 40:58] // 4 + np.array([10, 130, 20], np.uint8)
            mask[24:40, left : left + 18] = 255
        frames.append(np.clip(frame + rng.normal(0, noise, frame.shape) + 0.5, 0, 255).astype(np.uint8))
        truth.append(mask)
    return np.stack(frames), np.stack(truth)


def overlap(masks: Pixels, truth: Pixels) -> float:
    found, there = masks > 127, truth > 127
    return float((found & there).sum() / (found | there).sum())


def test_a_still_scene_has_an_empty_mask() -> None:
    frames, _ = film(camera=False, patch=False)

    assert not flow_masks(frames, RATE_HZ).any()


def test_a_camera_that_moves_over_a_still_scene_leaves_next_to_nothing() -> None:
    frames, _ = film(camera=True, patch=False)

    assert (flow_masks(frames, RATE_HZ) > 0).mean() < 0.01


@pytest.mark.parametrize("camera", [False, True])
def test_what_moves_by_itself_is_found_whether_or_not_the_camera_moves(camera: bool) -> None:
    frames, truth = film(camera=camera, patch=True)

    masks = flow_masks(frames, RATE_HZ)

    assert masks.dtype == np.uint8
    assert masks.shape == truth.shape
    assert set(np.unique(masks)) == {0, 255}
    assert overlap(masks, truth) > 0.65


def test_a_picture_need_not_be_square() -> None:
    frames, truth = film(camera=True, patch=True)

    masks = flow_masks(np.ascontiguousarray(frames[:, 12:52]), RATE_HZ)

    assert masks.shape == (NUM_FRAMES, 40, SIZE)
    assert overlap(masks, truth[:, 12:52]) > 0.65


def test_masks_are_a_function_of_the_frames_alone() -> None:
    frames, _ = film(camera=True, patch=True)

    first = flow_masks(frames, RATE_HZ)
    cv2.setRNGSeed(99)

    np.testing.assert_array_equal(flow_masks(frames, RATE_HZ), first)


def test_two_frames_are_a_clip_and_one_is_not() -> None:
    frames, truth = film(camera=True, patch=True)

    assert flow_masks(frames[:2], RATE_HZ).shape == truth[:2].shape
    with pytest.raises(ValueError, match=r"uint8 \(1, 64, 64, 3\), expected uint8 \[T, H, W, 3\]"):
        flow_masks(frames[:1], RATE_HZ)


def test_frames_of_another_kind_and_an_impossible_rate_are_refused() -> None:
    frames, _ = film(camera=False, patch=False)

    with pytest.raises(ValueError, match="float32"):
        flow_masks(frames.astype(np.float32), RATE_HZ)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rate_hz is 0"):
        flow_masks(frames, 0.0)


def test_the_hand_alone_is_taken_from_a_channel_that_knows_it() -> None:
    masks = np.array([[[255, 255, 0]]], np.uint8)
    hand = np.array([[[255, 0, 255]]], np.uint8)

    np.testing.assert_array_equal(hand_part(masks, hand), [[[255, 0, 0]]])
    with pytest.raises(ValueError, match="expected one shape"):
        hand_part(masks, hand[..., :2])


def test_without_opencv_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, _ = film(camera=False, patch=False)
    monkeypatch.setitem(sys.modules, "cv2", None)

    with pytest.raises(ImportError, match=r"premotor\[sim\]"):
        flow_masks(frames, RATE_HZ)
