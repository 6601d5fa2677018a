"""Videos open in a player, hold every frame, and show how an episode ended."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from training.simulation.task import Frame
from training.video import EpisodeVideo

HEIGHT = WIDTH = 32
SCALE = 3  # small frames are enlarged for a person's eyes
RATE_HZ = 10.0


def frame(level: int, cameras: tuple[str, ...] = ("left", "right")) -> Frame:
    images = {name: np.full((HEIGHT, WIDTH, 3), level + 60 * i, np.uint8) for i, name in enumerate(cameras)}
    return Frame(images=images, state=np.zeros(1, np.float32), environment_state=np.zeros(1, np.float32))


def pictures(path: Path) -> list[npt.NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        return [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]


def test_a_video_has_every_frame_and_a_second_of_the_end_of_each_episode(tmp_path: Path) -> None:
    path = tmp_path / "videos" / "slide.mp4"
    video = EpisodeVideo(path, RATE_HZ)
    for num_frames in (5, 3):
        for step in range(num_frames):
            video.add_frame(frame(10 * step))
        video.end_episode(frame(50), succeeded=True)
    video.close()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == RATE_HZ
    found = pictures(path)
    assert len(found) == (5 + 10) + (3 + 10)
    assert found[0].shape == (SCALE * HEIGHT, 2 * SCALE * WIDTH, 3)


def test_cameras_stand_side_by_side(tmp_path: Path) -> None:
    video = EpisodeVideo(tmp_path / "slide.mp4", RATE_HZ)
    video.add_frame(frame(100))
    video.close()
    (picture,) = pictures(tmp_path / "slide.mp4")
    middle = SCALE * WIDTH
    assert picture[:, : middle - 8].mean() == pytest.approx(100, abs=3)
    assert picture[:, middle + 8 :].mean() == pytest.approx(160, abs=3)


@pytest.mark.parametrize(("succeeded", "strongest"), [(True, 1), (False, 0)])
def test_the_border_of_the_end_is_green_for_success_and_red_for_failure(
    tmp_path: Path, succeeded: bool, strongest: int
) -> None:
    video = EpisodeVideo(tmp_path / "slide.mp4", RATE_HZ)
    video.add_frame(frame(100))
    video.end_episode(frame(100), succeeded=succeeded)
    video.close()
    first, *_, last = pictures(tmp_path / "slide.mp4")
    corner = last[:4, :4].reshape(-1, 3).mean(0)
    assert corner.argmax() == strongest
    assert corner.max() - corner.min() > 80
    assert np.ptp(first[:4, :4].reshape(-1, 3).mean(0)) < 10


def test_nothing_has_the_videos_name_before_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "slide.mp4"
    video = EpisodeVideo(path, RATE_HZ)
    video.add_frame(frame(0))
    assert not path.exists()
    video.close()
    assert [found.name for found in tmp_path.iterdir()] == ["slide.mp4"]


def test_without_a_frame_there_is_no_video(tmp_path: Path) -> None:
    EpisodeVideo(tmp_path / "slide.mp4", RATE_HZ).close()
    assert list(tmp_path.iterdir()) == []
