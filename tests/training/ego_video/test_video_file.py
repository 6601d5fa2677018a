from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from training.ego_video.sources import PictureForm, UnusableClipError
from training.ego_video.video_file import kept_frames, read_video, regular_rate_hz, upright_square

Frames = Callable[..., np.ndarray]
Video = Callable[..., Path]
Numbers = Callable[[np.ndarray], list[int]]
FORM = PictureForm(image_size=32)


def test_a_video_becomes_squares_of_its_every_frame(
    tmp_path: Path, make_video: Video, make_frames: Frames, numbers: Numbers
) -> None:
    clip = read_video(make_video(tmp_path / "a.mp4", make_frames(30)), FORM)
    assert (clip.frames.shape, clip.frames.dtype, clip.rate_hz) == ((30, 32, 32, 3), np.uint8, pytest.approx(30))
    assert numbers(clip.frames) == list(range(30))


def test_a_lower_rate_keeps_every_third_frame(
    tmp_path: Path, make_video: Video, make_frames: Frames, numbers: Numbers
) -> None:
    clip = read_video(make_video(tmp_path / "a.mp4", make_frames(31)), PictureForm(image_size=32, max_rate_hz=10))
    assert clip.rate_hz == pytest.approx(10)
    assert numbers(clip.frames) == list(range(0, 31, 3))


@pytest.mark.parametrize(
    ("rate_hz", "max_rate_hz", "step"),
    [(30, 10, 3), (30000 / 1001, 10, 3), (25, 10, 3), (10, 10, 1), (10.005, 10, 1), (10.2, 10, 2), (5, 10, 1)],
)
def test_the_kept_rate_is_the_highest_not_above_the_one_asked_for(
    rate_hz: float, max_rate_hz: float, step: int
) -> None:
    assert kept_frames(100, rate_hz, max_rate_hz) == range(0, 100, step)
    assert kept_frames(100, rate_hz, None) == range(100)


def test_the_centre_fills_the_square_and_the_sides_are_cut(tmp_path: Path, make_video: Video) -> None:
    frames = np.zeros((4, 48, 96, 3), np.uint8)
    frames[:, :, :24], frames[:, :, 72:] = (255, 0, 0), (0, 0, 255)
    frames[:, :, 24:72] = 128
    clip = read_video(make_video(tmp_path / "a.mp4", frames), FORM)
    inner = clip.frames[:, :, 2:-2].astype(int)
    assert np.abs(inner - 128).max() < 16


def test_a_smaller_picture_is_the_average_of_areas() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    square = upright_square(av.VideoFrame.from_ndarray(frame, format="rgb24"), 16)
    areas = frame.reshape(16, 4, 16, 4, 3).mean((1, 3))
    assert np.abs(square - areas).max() <= 2


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_turned_video_is_turned_upright(tmp_path: Path, turned_quadrants: Video, quarters: int) -> None:
    clip = read_video(turned_quadrants(tmp_path / "a.mp4", quarters), FORM)
    corners = clip.frames[0, [8, 8, 24, 24], [8, 24, 8, 24]].astype(int)
    np.testing.assert_allclose(corners, [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]], atol=24)


def test_wide_stored_pixels_are_shown_wide() -> None:
    frame = np.zeros((48, 48, 3), np.uint8)
    frame[:, :12] = frame[:, 36:] = 255
    shown = upright_square(av.VideoFrame.from_ndarray(frame, format="rgb24"), 24, aspect=2.0)
    assert shown.shape == (24, 24, 3) and shown[:, 1:-1].max() == 0


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])


def cut_in_the_last_frame(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def overwrite(path: Path) -> None:
    """More than a frame, so that a frame's own length is among what is lost."""
    content = bytearray(path.read_bytes())
    length = len(content) // 4
    content[2 * length : 3 * length] = bytes(length)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, r"cut short: \d+ of 30 frames"),
        (cut_in_the_last_frame, "cut short: 29 of 30 frames"),
        (overwrite, "does not decode|damaged"),
        (lambda path: path.write_bytes(b""), "does not decode"),
        (lambda path: path.write_bytes(b"words, not pixels"), "does not decode"),
        (lambda path: path.unlink(), "does not decode"),
    ],
)
def test_a_damaged_video_is_unusable(
    tmp_path: Path, make_video: Video, damage: Callable[[Path], None], reason: str
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (30, 48, 80, 3), np.uint8)
    path = make_video(tmp_path / "a.mp4", frames, faststart=True)
    assert len(read_video(path, FORM).frames) == 30
    damage(path)
    with pytest.raises(UnusableClipError, match=reason):
        read_video(path, FORM)


def test_sound_alone_is_unusable(tmp_path: Path, sound_alone: Callable[[Path], Path]) -> None:
    with pytest.raises(UnusableClipError, match="no video"):
        read_video(sound_alone(tmp_path / "a.mp4"), FORM)


def test_bytes_spoilt_here_and_there_are_found(
    tmp_path: Path, make_video: Video, scatter_damage: Callable[[Path], None]
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (30, 48, 80, 3), np.uint8)
    path = make_video(tmp_path / "a.mp4", frames, faststart=True)
    scatter_damage(path)
    with pytest.raises(UnusableClipError, match=r"damaged: frame \d+ of 30"):
        read_video(path, FORM)


def test_a_video_of_a_variable_rate_is_unusable(tmp_path: Path, make_video: Video, make_frames: Frames) -> None:
    times_ms = [33 * k + (20 if k > 12 else 0) for k in range(30)]
    path = make_video(tmp_path / "a.mp4", make_frames(30), times_ms=times_ms)
    with pytest.raises(UnusableClipError, match=r"33\.0 to 53\.0 ms apart"):
        read_video(path, FORM)


def test_a_video_turned_by_an_odd_angle_is_unusable(tmp_path: Path, half_turned: Callable[[Path], Path]) -> None:
    with pytest.raises(UnusableClipError, match="45 degrees"):
        read_video(half_turned(tmp_path / "a.mp4"), FORM)


def test_a_clock_that_rounds_is_regular_and_a_frame_left_out_is_not() -> None:
    regular_s = np.arange(60) / 120
    in_ms_s = np.round(regular_s, 3)
    assert regular_rate_hz(in_ms_s, 1e-3) == pytest.approx(120, rel=1e-3)
    with pytest.raises(UnusableClipError, match="varies"):
        regular_rate_hz(np.delete(in_ms_s, 30), 1e-3)
    with pytest.raises(UnusableClipError, match="varies"):
        regular_rate_hz(np.delete(regular_s, 30), 1 / 120)  # MP4's clock may tick once a frame


@pytest.mark.parametrize(("irregularity", "regular"), [(0.04, True), (0.06, False)])
def test_frames_may_be_up_to_five_percent_out_of_step(irregularity: float, regular: bool) -> None:
    apart_s = np.full(40, 0.1)
    apart_s[20] *= 1 + irregularity
    if regular:
        assert regular_rate_hz(np.cumsum(apart_s)) == pytest.approx(10, rel=2e-3)
    else:
        with pytest.raises(UnusableClipError, match="varies"):
            regular_rate_hz(np.cumsum(apart_s))


@pytest.mark.parametrize("times_s", [[], [0.5], [1.0, 1.0, 1.0]])
def test_frames_without_a_time_between_them_have_no_rate(times_s: list[float]) -> None:
    with pytest.raises(UnusableClipError):
        regular_rate_hz(np.array(times_s))


@pytest.mark.parametrize(("size", "rate_hz"), [(0, None), (64, 0), (64, -1), (64, float("nan"))])
def test_a_form_that_no_frame_can_have_is_refused(size: int, rate_hz: float | None) -> None:
    with pytest.raises(ValueError, match="expected"):
        PictureForm(image_size=size, max_rate_hz=rate_hz)
