"""Filmed robots: the effector where the picture shows it, all that moves and nothing else in the truth."""

from __future__ import annotations

import numpy as np
import pytest

from training.simulation.robot_clips import RobotClip, film_robot

_PACKAGES = {"lift": "robosuite", "pick-place": "metaworld"}


@pytest.fixture(scope="module", params=["lift", "pick-place"])
def clip(request: pytest.FixtureRequest) -> RobotClip:
    pytest.importorskip(_PACKAGES[request.param])
    (filmed,) = film_robot(request.param, (3,), image_size=64, steps_per_frame=3, rate_hz=10.0)
    return filmed


def test_a_clip_has_frames_words_a_body_and_no_action(clip: RobotClip) -> None:
    num_frames = len(clip.frames)
    assert clip.frames.shape == (num_frames, 64, 64, 3) and num_frames >= 10
    assert clip.clip.instruction and clip.clip.body in ("panda", "sawyer")
    assert clip.clip.rate_hz == 10.0
    assert not clip.scenery.any() and clip.scenery.shape == (num_frames, 2)
    assert not {"action", "state"} & set(vars(clip))


def test_what_moves_is_near_the_effector_and_what_changes_is_in_the_truth(clip: RobotClip) -> None:
    moving = clip.truth > 127
    assert 0.01 < moving.mean() < 0.6
    change = np.abs(np.diff(clip.frames.astype(int), axis=0)).max(-1)
    either = moving[1:] | moving[:-1]
    assert change[either].mean() > 5 * change[~either].mean()
    known = np.isfinite(clip.effector).all(1)
    assert known.sum() >= 10
    rows, columns = (np.rint((clip.effector[known, axis] + 1) / 2 * 63).astype(int) for axis in (1, 0))
    near = [
        moving[frame, max(0, row - 8) : row + 9, max(0, column - 8) : column + 9].any()
        for frame, row, column in zip(np.flatnonzero(known), rows, columns, strict=True)
    ]
    assert np.mean(near) > 0.8


def test_the_same_scene_gives_the_same_clip() -> None:
    pytest.importorskip("metaworld")
    first, second = (
        next(film_robot("pick-place", (5,), image_size=32, steps_per_frame=10, rate_hz=10.0)) for _ in range(2)
    )
    np.testing.assert_array_equal(first.frames, second.frames)
    np.testing.assert_array_equal(first.effector, second.effector)


def test_a_body_without_a_known_effector_and_an_odd_size_are_refused() -> None:
    with pytest.raises(ValueError, match="image_size is 60, expected a divisor of 128"):
        next(film_robot("lift", (0,), image_size=60, steps_per_frame=3, rate_hz=10.0))
    pytest.importorskip("gym_aloha")
    with pytest.raises(ValueError, match="'transfer-cube' is on 'aloha', whose effector is not known"):
        next(film_robot("transfer-cube", (0,), image_size=64, steps_per_frame=3, rate_hz=10.0))
