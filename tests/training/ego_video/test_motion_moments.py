"""Moments of masks and of flow: closed forms on squares, and on a square that really moves."""

from __future__ import annotations

import numpy as np

from training.ego_video.motion_moments import flow_steps, largest_parts, places

SIZE = 64


def square(x: int, y: int, side: int = 16) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[y : y + side, x : x + side] = 255
    return mask


def test_the_largest_part_of_each_mask_stays() -> None:
    drawn = ["#.#", "###", "..."], [".#.", "#..", "#.#"], ["...", "...", "..."]
    masks = np.array([[[pixel == "#" for pixel in row] for row in rows] for rows in drawn])
    kept = largest_parts(masks)
    assert kept[0].tolist() == masks[0].tolist()
    assert kept[1].tolist() == [[False] * 3, [True, False, False], [True, False, False]]
    assert not kept[2].any()


def test_a_part_that_winds_hangs_together() -> None:
    spiral = np.array(
        [
            [1, 1, 1, 1, 1],
            [0, 0, 0, 0, 1],
            [1, 1, 1, 0, 1],
            [1, 0, 0, 0, 1],
            [1, 1, 1, 1, 1],
        ],
        bool,
    )
    assert largest_parts(spiral[None])[0].tolist() == spiral.tolist()


def test_a_place_is_the_centroid_and_the_upper_end_of_the_largest_part() -> None:
    masks = np.stack([square(8, 32), np.maximum(square(40, 16), square(0, 60, 4)), np.zeros((SIZE, SIZE), np.uint8)])
    found = places(masks)
    np.testing.assert_allclose(found[:2, :2], [[-0.5, 0.25], [0.5, -0.25]], atol=1e-6)
    np.testing.assert_allclose(found[:2, 2], [-0.5, 0.5], atol=1e-6)
    # The tip is above the middle by what a weight that falls by e^-6 each half picture makes of 16 rows.
    rows = (np.arange(16) * 2 - 15) / SIZE
    above = (rows * np.exp(-6 * rows)).sum() / np.exp(-6 * rows).sum()
    np.testing.assert_allclose(found[:2, 3], np.array([0.25, -0.25]) + above, atol=1e-5)
    assert np.isnan(found[2]).all()


def test_many_frames_are_as_one_by_one() -> None:
    masks = (np.random.default_rng(0).uniform(size=(300, 8, 8)) > 0.6).astype(np.uint8) * 255
    one_by_one = np.concatenate([places(mask[None]) for mask in masks])
    np.testing.assert_array_equal(places(masks), one_by_one)


def test_flow_inside_a_mask_sums_to_how_far_it_went() -> None:
    rng = np.random.default_rng(0)
    scene, thing = (rng.integers(low, high, (SIZE, SIZE, 3), np.uint8) for low, high in ((0, 120), (120, 255)))
    masks = np.stack([square(10 + 2 * at, 30 - at) for at in range(6)])
    masks[:, :4, :4] = 255  # a stray blob that stands still
    frames = np.repeat(scene[None], 6, axis=0)
    for at in range(6):
        frames[at, 30 - at : 46 - at, 10 + 2 * at : 26 + 2 * at] = thing[:16, :16]
    steps = flow_steps(frames, masks)
    np.testing.assert_array_equal(steps[-1], 0)
    np.testing.assert_allclose(steps.sum(0), np.array([10, -5, 10, -5]) * 2 / SIZE, atol=0.05)
    masks[2] = 0
    assert not flow_steps(frames, masks)[2].any()
