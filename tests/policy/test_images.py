from __future__ import annotations

import pytest
import torch

from policy.images import Interpolation, resize_frames, to_unit_range


def _ramp(width: int, step: int) -> torch.Tensor:
    """One frame whose pixels count up along a row: uint8 [1, width, width, 3]."""
    row = (torch.arange(width) * step).to(torch.uint8)
    return row[None, None, :, None].expand(1, width, width, 3).contiguous()


def test_a_frame_of_the_right_size_is_returned_untouched() -> None:
    frames = _ramp(16, 8)
    assert resize_frames(frames, 16) is frames


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(7, 31), (64, 48), (5, 5)])
def test_a_flat_frame_stays_flat(shape: tuple[int, int], interpolation: Interpolation) -> None:
    frames = torch.tensor([17, 200, 255], dtype=torch.uint8).expand(2, *shape, 3)
    resized = resize_frames(frames, 12, interpolation)
    assert torch.equal(resized, frames[:, :1, :1].expand(2, 12, 12, 3))


def test_halving_a_ramp_gives_the_value_at_each_new_pixels_centre() -> None:
    # The centre of new pixel i lies at 2 i + 0.5 old pixels; the ends feel the border.
    resized = resize_frames(_ramp(32, 4), 16)
    expected = (4 * (2 * torch.arange(16) + 0.5)).to(torch.uint8)
    assert torch.equal(resized[0, 8, 1:-1, 0], expected[1:-1])


def test_shrinking_averages_instead_of_skipping() -> None:
    stripes = (torch.arange(64) % 2 * 200).to(torch.uint8)[None, None, :, None].expand(1, 64, 64, 3)
    assert ((resize_frames(stripes, 8).int() - 100).abs() <= 13).all()


def test_bicubic_overshoot_is_clamped() -> None:
    edge = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    edge[:, :, 4:] = 255
    resized = resize_frames(edge, 32, "bicubic")
    assert (resized[0, 0, :12, 0] < 30).all() and (resized[0, 0, 20:, 0] > 225).all()


@pytest.mark.parametrize(
    "frames",
    [torch.zeros(1, 8, 8, 3), torch.zeros(8, 8, 3, dtype=torch.uint8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)],
    ids=["float", "one frame", "channels first"],
)
def test_what_is_no_uint8_hwc_batch_is_refused(frames: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        resize_frames(frames, 4)


def test_pixels_become_minus_one_to_one_channels_first() -> None:
    frames = torch.zeros(2, 3, 4, 5, 3, dtype=torch.uint8)
    frames[..., 0], frames[..., 1] = 255, 51
    planes = to_unit_range(frames)
    assert planes.shape == (2, 3, 3, 4, 5)
    torch.testing.assert_close(planes[0, 0, :, 0, 0], torch.tensor([1.0, -0.6, -1.0]))
