from __future__ import annotations

import pytest
import torch

from policy.convolutional import Stem, spatial_softmax


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 8), (4, 3), (6, 8)])
def test_a_peaked_map_gives_the_coordinates_of_its_cell(row: int, column: int) -> None:
    heat = torch.zeros(1, 1, 7, 9)
    heat[..., row, column] = 200.0
    expected = torch.tensor([[[-1 + 2 * column / 8, -1 + 2 * row / 6, 1.0]]])
    torch.testing.assert_close(spatial_softmax(heat), expected, atol=1e-6, rtol=0)


def test_a_flat_map_gives_the_middle_and_no_certainty() -> None:
    expected = torch.tensor([0.0, 0.0, 1 / 63]).expand(2, 3, 3)
    torch.testing.assert_close(spatial_softmax(torch.full((2, 3, 7, 9), 5.0)), expected, atol=1e-6, rtol=0)


def test_two_equal_peaks_give_their_midpoint() -> None:
    heat = torch.zeros(1, 1, 5, 5)
    heat[..., 1, 0] = heat[..., 3, 2] = 200.0
    torch.testing.assert_close(spatial_softmax(heat)[0, 0], torch.tensor([-0.5, 0.0, 0.5]), atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_stem_tells_where_a_thing_is() -> None:
    torch.manual_seed(0)
    stem = Stem((8, 8, 16, 16), num_keypoints=4).eval()
    frames = torch.zeros(2, 3, 48, 48)
    frames[0, :, 4:12, 4:12] = frames[1, :, 36:44, 36:44] = 1.0
    keypoints, grid = stem(frames)
    assert keypoints.shape == (2, 4, 3) and grid.shape == (2, 9, 16)
    assert (keypoints[0] - keypoints[1]).abs().max() > 1e-3
